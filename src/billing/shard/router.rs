//! From an account to the shard that has it, on this node.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::life::Life;
use super::map::Map;
use super::metrics::{Metrics, Outcome, Procedure};
use super::postbox::{Answer, Reply, Slip};
use super::seat::{Request, Seat, Standing, Told, busy};
use super::spread::Spread;
use super::transfer::{Neighbours, Transfer};
use super::wall::WallClock;
use super::{Cluster, Config, Error, Failure, History, Owners, ShardStatus};
use crate::billing::domain::{Account, Key, Operation, Refusal, bucket_of};
use crate::billing::journal::{self, Cursor, Journal, Lease, ReplicaSetStatus};
use crate::billing::notifier::{self, Courier};
use crate::billing::projection;
use crate::clock;

/// How long `cluster` and `owners` wait for the journal; what is known without it is shown then.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Histories read at once: half of the connections that a replica set has for the ledger, so that slow ones do not hold up the
/// projectors, which write over the same.
const READERS_MAX: usize = 2;
/// How long a history waits before it looks again for what another shard has yet to write.
const LEVEL: Duration = Duration::from_millis(20);
/// A command that came to a shard without its bucket waits so long for a map that knows better.
const MAP_TIMEOUT: Duration = Duration::from_secs(2);

/// Every shard of this cluster as seen from this node. Cheap to clone. When the last clone is dropped, its tasks are cut where
/// they are, as if the process had died; the closing token ends them in order, see [`Router::stopped`].
#[derive(Clone)]
pub struct Router(pub(super) Arc<Inner>);

/// By shard, account, the cursor to begin before, and the most lines.
type Reader = dyn Fn(u32, u64, Option<Cursor>, usize) -> BoxFuture<'static, Read> + Send + Sync;

pub(super) struct Inner {
    pub(super) config: Arc<Config>,
    pub(super) seats: Arc<[Arc<Seat>]>,
    pub(super) map: Arc<Map>,
    pub(super) wall: WallClock,
    metrics: Arc<Metrics>,
    closing: CancellationToken,
    /// When a shard was last given to a node that asked; locked while one is.
    pub(super) gave: tokio::sync::Mutex<Option<Instant>>,
    pub(super) resting: Arc<AtomicBool>,
    read_leases: Box<Observe<Option<Vec<Lease>>>>,
    read_status: Box<Observe<Vec<ReplicaSetStatus>>>,
    pub(super) read_map: ReadMap,
    read: Box<Reader>,
    /// Of the ledger.
    readers: Semaphore,
    tasks: Mutex<JoinSet<()>>,
}

/// The version of the bucket map in the journal, which this node knows then.
type ReadMap = Box<dyn Fn() -> BoxFuture<'static, Result<u64, journal::Error>> + Send + Sync>;

/// None, or nothing: the journal did not answer.
type Observe<T> = dyn Fn() -> BoxFuture<'static, T> + Send + Sync;
type Read = Result<journal::History, journal::Error>;

impl Router {
    /// Begins to follow every shard, and to own those that are free. Returns before any of that has come about; see
    /// [`Router::settled`]. `closing` ends it in order. Without `neighbours` nothing is moved to other nodes' shards, and no shard
    /// is asked for.
    ///
    /// # Errors
    /// The journal does not answer, the settings of the notifier are unusable, or a metric is registered already.
    pub async fn start(
        config: Config,
        journal: Journal,
        wall: WallClock,
        registry: &Registry,
        notifier: notifier::Config,
        neighbours: Option<Arc<dyn Neighbours>>,
        closing: CancellationToken,
    ) -> Result<Router, Error> {
        Router::start_on(config, journal, wall, registry, notifier, neighbours, closing).await
    }

    pub(super) async fn start_on<B: Backend>(
        config: Config,
        backend: B,
        wall: WallClock,
        registry: &Registry,
        notifier: notifier::Config,
        neighbours: Option<Arc<dyn Neighbours>>,
        closing: CancellationToken,
    ) -> Result<Router, Error> {
        let metrics = Arc::new(Metrics::new(registry).map_err(Error::Register)?);
        let now = wall.clone();
        let courier = Courier::new(notifier, registry, move || now.now())?;
        let projection = projection::Metrics::new(registry).map_err(Error::Register)?;
        let map = Arc::new(Map::new(backend.bucket_map().await?));
        let config = Arc::new(config);
        let seats: Arc<[Arc<Seat>]> = (0..config.shards)
            .map(|shard| Arc::new(Seat::new(shard, config.queue, metrics.of_shard(shard))))
            .collect();
        let transfer = Arc::new(Transfer {
            config: Arc::clone(&config),
            backend: backend.clone(),
            seats: Arc::clone(&seats),
            map: Arc::clone(&map),
            neighbours: neighbours.clone(),
        });
        let resting = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for seat in seats.iter() {
            let life = Life {
                config: Arc::clone(&config),
                backend: backend.clone(),
                wall: wall.clone(),
                metrics: Arc::clone(&metrics),
                courier: courier.clone(),
                projection: projection.clone(),
                transfer: Arc::clone(&transfer),
                seat: Arc::clone(seat),
                resting: Arc::clone(&resting),
                closing: closing.clone(),
            };
            tasks.spawn(watch_over(Arc::clone(seat), life.run()));
        }
        tasks.spawn({
            let (map, backend, every, closing) =
                (Arc::clone(&map), backend.clone(), config.map_refresh, closing.clone());
            async move { map.keep(backend, every, closing).await }
        });
        if let Some(neighbours) = neighbours {
            let (config, seats, wall) = (Arc::clone(&config), Arc::clone(&seats), wall.clone());
            let (resting, closing) = (Arc::clone(&resting), closing.clone());
            tasks.spawn(Spread { config, seats, neighbours, wall, resting, closing }.run());
        }
        let read_map: ReadMap = Box::new({
            let (map, backend) = (Arc::clone(&map), backend.clone());
            move || {
                let (map, backend) = (Arc::clone(&map), backend.clone());
                Box::pin(async move { map.read(&backend).await.map(|map| map.version) })
            }
        });
        let ledger = backend.clone();
        let read = move |shard, account, before, limit| -> BoxFuture<'static, Read> {
            let ledger = ledger.clone();
            Box::pin(async move { ledger.history(shard, account, before, limit).await })
        };
        let journal = backend.clone();
        let read_leases = move || -> BoxFuture<'static, Option<Vec<Lease>>> {
            let journal = journal.clone();
            Box::pin(async move { timeout(OBSERVE_TIMEOUT, journal.leases()).await.ok()?.ok() })
        };
        let read_status = move || -> BoxFuture<'static, Vec<ReplicaSetStatus>> {
            let backend = backend.clone();
            Box::pin(async move { timeout(OBSERVE_TIMEOUT, backend.status()).await.unwrap_or_default() })
        };
        Ok(Router(Arc::new(Inner {
            config,
            seats,
            map,
            wall,
            metrics,
            closing,
            gave: tokio::sync::Mutex::new(None),
            resting,
            read_leases: Box::new(read_leases),
            read_status: Box::new(read_status),
            read_map,
            read: Box::new(read),
            readers: Semaphore::new(READERS_MAX),
            tasks: Mutex::new(tasks),
        })))
    }

    /// Durable when it returns.
    pub async fn operate(&self, account: u64, key: Key, operation: Operation) -> Result<Account, Failure> {
        let procedure = Procedure::of(&operation);
        let result = self.ask(account, |reply| Request::Operate { account, key, operation, reply }).await;
        self.told(procedure, result)
    }

    /// As of now, and never of what is not durable.
    pub async fn get(&self, account: u64) -> Result<Account, Failure> {
        let result = self.ask(account, |reply| Request::Get { account, reply }).await.map_err(unread);
        self.told(Procedure::Get, result)
    }

    /// As [`Router::operate`], and as [`Router::get`] without an operation, but the answer comes to a postbox, so that many
    /// can be outstanding for little. False: it does not, and the question is to be asked by one of these.
    pub fn post(&self, account: u64, operation: Option<(Key, Operation)>, slip: Slip) -> bool {
        let Ok(seat) = self.seat_with(account) else {
            slip.withdraw();
            return false;
        };
        let reply = Reply::Post(slip);
        let request = match operation {
            None => Request::Get { account, reply },
            Some((key, operation)) => Request::Operate { account, key, operation, reply },
        };
        match seat.try_hand_in(request) {
            Ok(()) => true,
            Err(
                Request::Get { reply: Reply::Post(slip), .. }
                | Request::Operate { reply: Reply::Post(slip), .. },
            ) => {
                slip.withdraw();
                false
            }
            Err(_) => false,
        }
    }

    /// What such an answer says. None: nothing was done, because the account is elsewhere or changes hands, and it is to be
    /// asked for again with more patience. An owner that is busy and stays would only be asked twice.
    pub fn posted(
        &self,
        account: u64,
        operation: Option<&Operation>,
        answer: Answer,
    ) -> Option<Result<Account, Failure>> {
        let is_here = || self.seat_with(account).and_then(Seat::is_here).is_ok();
        match (answer, operation) {
            (Err(Failure::Refused(Refusal::Elsewhere)), _) => None,
            (Err(Failure::Busy { .. }), _) if !is_here() => None,
            (answer, Some(operation)) => Some(self.told(Procedure::of(operation), answer)),
            (answer, None) => Some(self.told(Procedure::Get, answer.map_err(unread))),
        }
    }

    fn told(&self, procedure: Procedure, result: Answer) -> Result<Account, Failure> {
        let outcome = match &result {
            Ok(Told { replayed: true, .. }) => Outcome::Replayed,
            result => Outcome::of(result),
        };
        self.0.metrics.operation(procedure, outcome);
        result.map(|told| told.account)
    }

    /// What became of an account of a shard this node owns, newest first, before `before`. It has all that was acknowledged
    /// before it was asked for, or says that it may not.
    pub async fn history(
        &self,
        account: u64,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<History, Failure> {
        let result = self.history_here(account, before, limit).await;
        self.0.metrics.operation(Procedure::History, Outcome::of(&result));
        result
    }

    async fn history_here(
        &self,
        account: u64,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<History, Failure> {
        // The owner says whether there is such an account, and that it is here.
        let get = |reply| Request::Get { account, reply };
        self.ask(account, get).await.map_err(unread)?;
        let seat = self.seat_with(account)?;
        let standing = seat.standing();
        let Standing::Own { feed, .. } = &*standing else { return Err(busy()) };
        // What was acknowledged by now is in this batch, or before it.
        let patience = self.0.config.projection.patience;
        let until = tokio::time::Instant::now() + patience;
        let reached = feed.reached(seat.seq(), patience).await;
        let read = async {
            loop {
                let place = self.0.readers.acquire().await;
                let read = (self.0.read)(seat.shard, account, before, limit).await;
                drop(place);
                match read {
                    // The shard that had the account before writes its last lines.
                    Ok(journal::History { whole: false, .. }) if tokio::time::Instant::now() < until => {
                        tokio::time::sleep(LEVEL).await;
                    }
                    read => return read,
                }
            }
        };
        match timeout(self.0.config.answer_timeout, read).await {
            Ok(Ok(journal::History { entries, next, whole })) => {
                Ok(History { entries, next, behind: !reached || !whole })
            }
            Ok(Err(error)) => {
                tracing::warn!(shard = seat.shard, %error, "a history could not be read");
                Err(busy())
            }
            Err(_) => Err(busy()),
        }
    }

    /// Accounts of these shards, by id, above `after`. Each call looks at every account. `Busy` or `Elsewhere` if one is not this
    /// node's, and `Busy` while a bucket of theirs is on its way or they have not those of the map, rather than leave its accounts
    /// out; whoever puts together what several nodes tell compares [`Router::map_version`] before and after as well.
    pub async fn list(
        &self,
        shards: &[u32],
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Account>, Failure> {
        let result = self.list_owned(shards, after, limit).await;
        self.0.metrics.operation(Procedure::List, Outcome::of(&result));
        result
    }

    async fn list_owned(
        &self,
        shards: &[u32],
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Account>, Failure> {
        let mut waiting = Vec::new();
        for seat in shards.iter().map(|shard| self.0.seats.get(*shard as usize)) {
            let seat = seat.ok_or_else(busy)?;
            seat.is_worth_a_try(&seat.standing()).await;
            let (reply, answer) = oneshot::channel();
            seat.hand_in(Request::List { after, limit, reply })?;
            waiting.push(answer);
        }
        let mut accounts = Vec::new();
        for answer in waiting {
            accounts.extend(self.answer(answer).await.map_err(unread)?);
        }
        accounts.sort_unstable_by_key(|account| account.id);
        accounts.truncate(limit);
        Ok(accounts)
    }

    /// Shards, their owners and the journal behind them. Waits for the journal for at most three seconds.
    pub async fn cluster(&self) -> Cluster {
        let (Owners { node, shards }, replica_sets) = tokio::join!(self.owners(), (self.0.read_status)());
        Cluster { node, shards, replica_sets }
    }

    /// Shards and their owners alone, for which not every server of the journal is asked. Waits for the journal as long at most.
    pub async fn owners(&self) -> Owners {
        let Inner { config, seats, map, read_leases, .. } = &*self.0;
        let leases = read_leases().await;
        let map = map.current();
        let shards = seats.iter().map(|seat| {
            let buckets = map.shards.iter().filter(|shard| **shard == seat.shard).count() as u32;
            let lease = leases.iter().flatten().find(|lease| lease.shard == seat.shard);
            status(config, seat, lease, buckets)
        });
        Owners { node: config.node.name.clone(), shards: shards.collect() }
    }

    /// Can this node take writes on some shard, by itself or by forwarding? False as long as a shard is given up here.
    pub fn is_able(&self) -> bool {
        let Inner { seats, closing, .. } = &*self.0;
        !closing.is_cancelled()
            && !seats.iter().any(|seat| seat.is_broken())
            && seats.iter().any(|seat| seat.is_able())
    }

    /// Resolves at a moment at which every shard has an owner, this node or another, as far as this node knows. It may be
    /// otherwise right after; a shard that nobody can own keeps it from resolving.
    pub async fn settled(&self) {
        while !self.0.seats.iter().all(|seat| seat.is_owned()) {
            for seat in self.0.seats.iter() {
                seat.owned().await;
            }
        }
    }

    /// Resolves once none of these accounts is in a shard of the node at `advertise` any more, and each is in one that has an owner.
    pub async fn left(&self, accounts: &[u64], advertise: &str) {
        for account in accounts {
            if let Ok(seat) = self.seat_with(*account) {
                seat.left(advertise).await;
            }
        }
    }

    /// Resolves once all work is done after the closing token was cancelled: leases are released, nothing is written.
    pub async fn stopped(&self) {
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock());
        while tasks.join_next().await.is_some() {}
    }

    /// Cuts every task where it is, as a crash would.
    #[cfg(test)]
    pub(super) async fn crash(self) {
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock());
        tasks.shutdown().await;
    }

    /// Gets an answer from the shard that has the account. A bucket that is not where the map says is on its way; so whenever
    /// there is a new map, it is asked for again; and whoever was not taken by an owner who leaves waits for the next one.
    async fn ask(&self, account: u64, request: impl Fn(Reply) -> Request) -> Answer {
        let until = tokio::time::Instant::now() + MAP_TIMEOUT;
        loop {
            let version = self.0.map.current().version;
            let seat = self.seat_with(account)?;
            let standing = seat.standing();
            match self.ask_once(seat, &request).await {
                Err(Failure::Refused(Refusal::Elsewhere)) => {}
                Err(Failure::Busy { .. })
                    if tokio::time::Instant::now() < until && seat.is_worth_a_try(&standing).await =>
                {
                    continue;
                }
                answer => return answer,
            }
            if timeout_at(until, self.0.map.newer_than(version)).await.is_err() {
                return Err(busy());
            }
        }
    }

    fn seat_with(&self, account: u64) -> Result<&Seat, Failure> {
        let shard = self.0.map.shard_of(bucket_of(account));
        shard.and_then(|shard| self.0.seats.get(shard as usize)).map(AsRef::as_ref).ok_or_else(busy)
    }

    async fn ask_once(&self, seat: &Seat, request: &impl Fn(Reply) -> Request) -> Answer {
        let (reply, answer) = oneshot::channel();
        seat.hand_in(request(Reply::Once(reply)))?;
        self.answer(answer).await
    }

    /// An owner that died does not answer; nor does one whose journal is away for too long.
    async fn answer<T>(&self, answer: oneshot::Receiver<Result<T, Failure>>) -> Result<T, Failure> {
        match timeout(self.0.config.answer_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Failure::Unknown),
        }
    }
}

/// A question that got no answer has changed nothing.
fn unread(failure: Failure) -> Failure {
    if matches!(failure, Failure::Unknown) { busy() } else { failure }
}

fn status(config: &Config, seat: &Seat, lease: Option<&Lease>, buckets: u32) -> ShardStatus {
    let (shard, standing) = (seat.shard, seat.standing());
    let writable = seat.is_able();
    let mut status = ShardStatus {
        shard,
        node: String::new(),
        advertise: String::new(),
        epoch: 0,
        seq: seat.seq(),
        buckets,
        accounts: None,
        astray: seat.astray(),
        writable,
    };
    match &*standing {
        Standing::Own { tenure, .. } => {
            status.node.clone_from(&config.node.name);
            status.advertise.clone_from(&config.node.advertise);
            status.epoch = tenure.epoch;
            status.accounts = u64::try_from(seat.gauges.accounts.get()).ok();
        }
        Standing::Elsewhere { node, advertise, epoch, until, behind: _ } if *until > clock::now() => {
            status.node.clone_from(node);
            status.advertise.clone_from(advertise);
            status.epoch = *epoch;
        }
        Standing::Elsewhere { .. } | Standing::Changing { .. } | Standing::Vacant => {}
    }
    // The journal knows better than what was heard last.
    if let Some(lease) = lease.filter(|lease| !lease.expires_in.is_zero() && status.epoch != lease.epoch) {
        let Lease { shard: _, epoch, seq, node, advertise, expires_in: _ } = lease;
        status = ShardStatus {
            node: node.clone(),
            advertise: advertise.clone(),
            epoch: *epoch,
            seq: (*seq).max(status.seq),
            accounts: None,
            ..status
        };
    }
    status
}

/// A mistake in one shard must not look as if all was well: its lease ends by itself, and the node says that it is unfit.
async fn watch_over(seat: Arc<Seat>, life: impl Future<Output = ()>) {
    if AssertUnwindSafe(life).catch_unwind().await.is_err() {
        tracing::error!(shard = seat.shard, "the shard's task panicked, the shard is given up");
        seat.set_broken(true);
        seat.publish(Standing::Vacant);
    }
}

//! What every door asks: operations on accounts, wherever in the cluster they are. What is not here is asked of the owner,
//! once; so the client never sees who owns what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::error::{Kind, Problem};
use super::gate::Caller;
use super::json::{Order, What};
use super::peers::Peers;
use crate::billing::domain::{Account, Key, Operation, TEST_USERS};
use crate::billing::shard::{Cluster, Failure, Router};

/// The key under which `insert_data` creates: keys count per account, so one does for all.
const INSERT_DATA_KEY: &[u8] = b"insert_data";

/// Images that come in at once.
const IMAGES_MAX: usize = 4;
/// Buckets of one request on their way at once.
const MOVES_AT_ONCE: usize = 4;
/// How long buckets are tried to be moved before it is told how far they are. With what another node then takes for its own
/// it stays below the door's timeout.
const MOVE_PATIENCE: Duration = Duration::from_secs(6);
const MOVE_PAUSE: Duration = Duration::from_millis(100);

/// What a desk asks of the shards of its own node. The router's, and in tests one that fails as told.
pub trait Shards: Clone + Send + Sync + 'static {
    fn operate(
        &self,
        account: u64,
        key: Key,
        operation: Operation,
    ) -> impl Future<Output = Result<Account, Failure>> + Send;
    fn get(&self, account: u64) -> impl Future<Output = Result<Account, Failure>> + Send;
    fn list(
        &self,
        after: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Account>, Failure>> + Send;
    fn cluster(&self) -> impl Future<Output = Cluster> + Send;
    fn move_bucket(&self, bucket: u16, to: u32) -> impl Future<Output = Result<(), Failure>> + Send;
    fn assign(&self, shard: u32, to: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    fn adopt(
        &self,
        shard: u32,
        generation: u64,
        image: Bytes,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
    fn give(&self, shard: u32, to: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    fn is_able(&self) -> bool;
}

impl Shards for Router {
    async fn operate(&self, account: u64, key: Key, operation: Operation) -> Result<Account, Failure> {
        Router::operate(self, account, key, operation).await
    }

    async fn get(&self, account: u64) -> Result<Account, Failure> {
        Router::get(self, account).await
    }

    async fn list(&self, after: Option<u64>, limit: usize) -> Result<Vec<Account>, Failure> {
        Router::list(self, after, limit).await
    }

    async fn cluster(&self) -> Cluster {
        Router::cluster(self).await
    }

    async fn move_bucket(&self, bucket: u16, to: u32) -> Result<(), Failure> {
        Router::move_bucket(self, bucket, to).await
    }

    async fn assign(&self, shard: u32, to: &str) -> Result<(), Failure> {
        Router::assign(self, shard, to).await
    }

    async fn adopt(&self, shard: u32, generation: u64, image: Bytes) -> Result<(), Failure> {
        Router::adopt(self, shard, generation, image).await
    }

    async fn give(&self, shard: u32, to: &str) -> Result<(), Failure> {
        Router::give(self, shard, to).await
    }

    fn is_able(&self) -> bool {
        Router::is_able(self)
    }
}

#[derive(Clone)]
pub struct Desk<S> {
    shards: S,
    peers: Peers,
    images: Arc<Semaphore>,
}

/// The operations of one account within a batch, by their places.
struct Group {
    places: Vec<usize>,
}

/// What is left of a group because another node has the account.
struct Rest {
    advertise: String,
    places: Vec<usize>,
}

type Outcome = Result<Account, Problem>;

impl<S: Shards> Desk<S> {
    pub fn new(shards: S, peers: Peers) -> Desk<S> {
        Desk { shards, peers, images: Arc::new(Semaphore::new(IMAGES_MAX)) }
    }

    pub async fn one(&self, caller: Caller, order: Order) -> Outcome {
        match self.here(&order).await {
            Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => {
                // Boxed: rare, and large.
                let results = Box::pin(self.peers.batch(&advertise, &[order])).await;
                results.into_iter().next().unwrap_or_else(|| Err(lost(&order)))
            }
            outcome => outcome.map_err(Problem::from),
        }
    }

    /// In their order for each account, at once for different ones. If one of an account is not done for lack of an
    /// answer, those after it are not tried, so that the same batch under the same key goes on where this one stopped.
    pub async fn batch(&self, caller: Caller, orders: &[Order]) -> Vec<Outcome> {
        let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
        for (place, order) in orders.iter().enumerate() {
            groups.entry(order.account).or_insert(Group { places: Vec::new() }).places.push(place);
        }
        let mut outcomes: Vec<Option<Outcome>> = vec![None; orders.len()];
        let mut away: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let groups = groups.into_values().map(|group| self.group(caller, orders, group.places));
        for (done, rest) in join_all(groups).await {
            done.into_iter().for_each(|(place, outcome)| outcomes[place] = Some(outcome));
            if let Some(Rest { advertise, places }) = rest {
                away.entry(advertise).or_default().extend(places);
            }
        }
        let away = away.iter().map(|(advertise, places)| async {
            let orders: Vec<Order> = places.iter().map(|place| orders[*place]).collect();
            places.iter().zip(self.peers.batch(advertise, &orders).await).collect::<Vec<_>>()
        });
        for (place, outcome) in join_all(away).await.into_iter().flatten() {
            outcomes[*place] = Some(outcome);
        }
        let told = orders.iter().zip(outcomes);
        told.map(|(order, outcome)| outcome.unwrap_or_else(|| Err(lost(order)))).collect()
    }

    async fn group(
        &self,
        caller: Caller,
        orders: &[Order],
        places: Vec<usize>,
    ) -> (Vec<(usize, Outcome)>, Option<Rest>) {
        let mut done = Vec::with_capacity(places.len());
        let mut stopped = false;
        for (at, place) in places.iter().enumerate() {
            if stopped {
                done.push((*place, Err(not_tried())));
                continue;
            }
            match self.here(&orders[*place]).await {
                Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => {
                    return (done, Some(Rest { advertise, places: places[at..].to_vec() }));
                }
                outcome => {
                    let outcome = outcome.map_err(Problem::from);
                    stopped = outcome.as_ref().is_err_and(|problem| problem.kind.stops());
                    done.push((*place, outcome));
                }
            }
        }
        (done, None)
    }

    async fn here(&self, order: &Order) -> Result<Account, Failure> {
        match order.what {
            What::Get => self.shards.get(order.account).await,
            What::Operate(key, operation) => self.shards.operate(order.account, key, operation).await,
        }
    }

    /// The accounts of all nodes with ids beyond `after`, by id. Fails if some cannot be told, rather than leave them out.
    pub async fn list(
        &self,
        caller: Caller,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Account>, Problem> {
        let mut accounts = self.shards.list(after, limit).await?;
        if caller == Caller::Node {
            return Ok(accounts);
        }
        let Cluster { node, shards, .. } = self.shards.cluster().await;
        if shards.iter().any(|shard| shard.node.is_empty() || shard.advertise.is_empty()) {
            return Err(Problem {
                detail: "a shard has no owner at the moment".to_owned(),
                ..Kind::Busy.into()
            });
        }
        let others: BTreeSet<&str> =
            shards.iter().filter(|shard| shard.node != node).map(|shard| shard.advertise.as_str()).collect();
        let pages = others.into_iter().map(|advertise| self.peers.list(advertise, after, limit));
        for page in join_all(pages).await {
            accounts.extend(page?);
        }
        accounts.sort_unstable_by_key(|account| account.id);
        // A shard that changes hands meanwhile may be told by both.
        accounts.dedup_by_key(|account| account.id);
        accounts.truncate(limit);
        Ok(accounts)
    }

    /// Creates the test users that are not there yet, and gives all as they are.
    pub async fn insert_data(&self, caller: Caller) -> Result<Vec<Account>, Problem> {
        let key = Key::new(INSERT_DATA_KEY).ok_or(Kind::Unknown)?;
        let create = |(account, balance, velocity)| {
            let create = What::Operate(key, Operation::Create { balance, velocity });
            [Order { account, what: create }, Order { account, what: What::Get }]
        };
        let orders: Vec<Order> = TEST_USERS.into_iter().flat_map(create).collect();
        let mut accounts = Vec::with_capacity(TEST_USERS.len());
        for (order, outcome) in orders.iter().zip(self.batch(caller, &orders).await) {
            match outcome {
                Ok(account) if order.what == What::Get => accounts.push(account),
                Ok(_) => {}
                // It was made before, by another key.
                Err(problem) if matches!(problem.kind, Kind::AccountExists | Kind::KeyConflict) => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(accounts)
    }

    /// Moves buckets to a shard, wherever they and it are; all are there when it is `Ok`. Asked again, it goes on.
    pub async fn move_buckets(&self, caller: Caller, buckets: &[u16], to: u32) -> Result<(), Problem> {
        let until = Instant::now() + MOVE_PATIENCE;
        let moving =
            buckets.iter().copied().map(async |bucket| (bucket, self.move_one(bucket, to, until).await));
        let results: Vec<_> = stream::iter(moving).buffer_unordered(MOVES_AT_ONCE).collect().await;
        let mut away: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        let (mut moved, mut failed) = (0, Vec::new());
        for (bucket, result) in results {
            match result {
                Ok(()) => moved += 1,
                Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => {
                    away.entry(advertise).or_default().push(bucket);
                }
                Err(failure) => failed.push((bucket, failure.into())),
            }
        }
        let away = away.into_iter().map(|(advertise, theirs)| async move {
            (theirs.clone(), self.peers.move_buckets(&advertise, theirs, to).await)
        });
        for (theirs, result) in join_all(away).await {
            match (result, theirs.first()) {
                (Err(problem), Some(first)) => failed.push((*first, problem)),
                _ => moved += theirs.len(),
            }
        }
        moves_told(moved, buckets.len(), failed)
    }

    async fn move_one(&self, bucket: u16, to: u32, until: Instant) -> Result<(), Failure> {
        loop {
            let result = self.shards.move_bucket(bucket, to).await;
            if !matches!(result, Err(Failure::Busy { .. })) || Instant::now() + MOVE_PAUSE > until {
                return result;
            }
            tokio::time::sleep(MOVE_PAUSE).await;
        }
    }

    /// Gives a shard to a node by hand, wherever it is.
    pub async fn hand_over(&self, caller: Caller, shard: u32, to: &str) -> Result<(), Problem> {
        match self.shards.assign(shard, to).await {
            Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => {
                self.peers.hand_over(&advertise, shard, to).await
            }
            result => result.map_err(Problem::from),
        }
    }

    /// For as long as it is kept, there is room for an image that another node sends.
    pub fn place_for_image(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.images).try_acquire_owned().map_err(|_| Kind::Busy.into())
    }

    pub async fn adopt(&self, shard: u32, generation: u64, image: Bytes) -> Result<(), Problem> {
        self.shards.adopt(shard, generation, image).await.map_err(|failure| match failure {
            Failure::Refused(refusal) => Problem::malformed(refusal.to_string()),
            other => other.into(),
        })
    }

    pub async fn give(&self, shard: u32, to: &str) -> Result<(), Problem> {
        self.shards.give(shard, to).await.map_err(Problem::from)
    }

    pub async fn cluster(&self) -> Cluster {
        self.shards.cluster().await
    }

    pub fn is_able(&self) -> bool {
        self.shards.is_able()
    }
}

/// No answer came. A question that changes nothing can be asked again by anybody.
pub(super) fn lost(order: &Order) -> Problem {
    match order.what {
        What::Get => Kind::Busy.into(),
        What::Operate(..) => Kind::Unknown.into(),
    }
}

/// What to tell of many at once: that asking again does not help, if it does not for one; that nothing was done, if nothing
/// was for any.
fn moves_told(moved: usize, all: usize, failed: Vec<(u16, Problem)>) -> Result<(), Problem> {
    let hard = failed.iter().find(|(_, problem)| !problem.kind.stops());
    let Some((bucket, problem)) = hard.or(failed.first()) else { return Ok(()) };
    let untouched =
        moved == 0 && failed.iter().all(|(_, problem)| matches!(problem.kind, Kind::Busy | Kind::Loop));
    let kind = match problem.kind {
        kind if !kind.stops() => kind,
        _ if untouched => return Err(problem.clone()),
        _ => Kind::Unknown,
    };
    let detail = format!("{moved} of {all} buckets are there; bucket {bucket}: {}", problem.detail);
    Err(Problem { detail, ..kind.into() })
}

fn not_tried() -> Problem {
    let detail = "an operation on this account before this one got no answer, so this one was not tried";
    Problem { detail: detail.to_owned(), ..Kind::Busy.into() }
}

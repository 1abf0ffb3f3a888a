//! What every door asks: operations on accounts, wherever in the cluster they are. What is not here is asked of the owner,
//! once, and once more if this node did not know better; so the client never sees who owns what.

mod listing;
mod moving;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use tokio::sync::Semaphore;

use super::error::{Kind, Problem};
use super::gate::Caller;
use super::history::{HistoryBody, Page};
use super::json::{Order, What};
use super::peers::Peers;
use crate::billing::domain::{Account, Key, Operation, TEST_USERS, bucket_of};
use crate::billing::journal::Cursor;
use crate::billing::shard::{Answer, Cluster, Failure, History, Owners, Router, Slip};

/// The key under which `insert_data` creates: keys count per account, so one does for all.
const INSERT_DATA_KEY: &[u8] = b"insert_data";

/// What a desk asks of the shards of its own node. The router's, and in tests one that fails as told.
pub trait Shards: Clone + Send + Sync + 'static {
    fn operate(
        &self,
        account: u64,
        key: Key,
        operation: Operation,
    ) -> impl Future<Output = Result<Account, Failure>> + Send;
    fn get(&self, account: u64) -> impl Future<Output = Result<Account, Failure>> + Send;
    /// One of these, whose answer comes to a postbox. False: it does not.
    fn post(&self, account: u64, operation: Option<(Key, Operation)>, slip: Slip) -> bool;
    /// What such an answer says; None: it is to be asked for as one of these.
    fn posted(
        &self,
        account: u64,
        operation: Option<&Operation>,
        answer: Answer,
    ) -> Option<Result<Account, Failure>>;
    /// Of these shards, all of which must be this node's.
    fn list(
        &self,
        shards: &[u32],
        after: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Account>, Failure>> + Send;
    fn history(
        &self,
        account: u64,
        before: Option<Cursor>,
        limit: usize,
    ) -> impl Future<Output = Result<History, Failure>> + Send;
    fn cluster(&self) -> impl Future<Output = Cluster> + Send;
    /// The same without the journal's servers, which are not asked.
    fn owners(&self) -> impl Future<Output = Owners> + Send;
    /// These buckets are not at that address, as this node thought: it looks anew, for a moment.
    fn look_again(&self, buckets: &[u16], advertise: &str) -> impl Future<Output = ()> + Send;
    /// A shard may be this node's now.
    fn look_at(&self, shard: u32);
    /// Resolves once none of these accounts is that node's any more, and each is somebody's.
    fn left(&self, accounts: &[u64], advertise: &str) -> impl Future<Output = ()> + Send;
    fn map_version(&self) -> impl Future<Output = Result<u64, Failure>> + Send;
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

    fn post(&self, account: u64, operation: Option<(Key, Operation)>, slip: Slip) -> bool {
        Router::post(self, account, operation, slip)
    }

    fn posted(
        &self,
        account: u64,
        operation: Option<&Operation>,
        answer: Answer,
    ) -> Option<Result<Account, Failure>> {
        Router::posted(self, account, operation, answer)
    }

    async fn list(&self, shards: &[u32], after: Option<u64>, limit: usize) -> Result<Vec<Account>, Failure> {
        Router::list(self, shards, after, limit).await
    }

    async fn history(&self, account: u64, before: Option<Cursor>, limit: usize) -> Result<History, Failure> {
        Router::history(self, account, before, limit).await
    }

    async fn cluster(&self) -> Cluster {
        Router::cluster(self).await
    }

    async fn owners(&self) -> Owners {
        Router::owners(self).await
    }

    async fn look_again(&self, buckets: &[u16], advertise: &str) {
        Router::look_again(self, buckets, advertise).await;
    }

    fn look_at(&self, shard: u32) {
        Router::look_at(self, shard);
    }

    async fn left(&self, accounts: &[u64], advertise: &str) {
        Router::left(self, accounts, advertise).await;
    }

    async fn map_version(&self) -> Result<u64, Failure> {
        Router::map_version(self).await
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

pub type Outcome = Result<Account, Problem>;

/// May a node that does not have it either be followed by another?
#[derive(Clone, Copy, PartialEq)]
enum Again {
    Yes,
    No,
}

impl<S: Shards> Desk<S> {
    pub fn new(shards: S, peers: Peers) -> Desk<S> {
        Desk { shards, peers, images: Arc::new(Semaphore::new(moving::IMAGES_MAX)) }
    }

    pub async fn one(&self, caller: Caller, order: Order) -> Outcome {
        match self.here(&order).await {
            Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => {
                let results = self.away(&advertise, &[order], Again::Yes).await;
                results.into_iter().next().unwrap_or_else(|| Err(lost(&order)))
            }
            outcome => outcome.map_err(Problem::from),
        }
    }

    /// As [`Desk::one`] for a client, but the answer comes to a postbox, for [`Desk::posted`]. False: it does not, and the order
    /// is one for [`Desk::one`].
    pub fn post(&self, order: &Order, slip: Slip) -> bool {
        let operation = match order.what {
            What::Get => None,
            What::Operate(key, operation) => Some((key, operation)),
        };
        self.shards.post(order.account, operation, slip)
    }

    /// None: this node cannot tell at once, and the order is one for [`Desk::one`].
    pub fn posted(&self, order: &Order, answer: Answer) -> Option<Outcome> {
        let operation = match &order.what {
            What::Get => None,
            What::Operate(_, operation) => Some(operation),
        };
        self.shards.posted(order.account, operation, answer).map(|outcome| outcome.map_err(Problem::from))
    }

    /// What became of an account, from the newest on or before a place.
    pub async fn history(&self, caller: Caller, account: u64, page: Page) -> Result<HistoryBody, Problem> {
        let mut again = Again::Yes;
        loop {
            let advertise = match self.shards.history(account, page.before, page.limit).await {
                Err(Failure::Elsewhere { advertise, .. }) if caller == Caller::Client => advertise,
                told => return Ok(told?.into()),
            };
            match self.peers.history(&advertise, account, &page).await {
                Err(problem) if problem.kind == Kind::Loop && again == Again::Yes => {
                    self.shards.look_again(&[bucket_of(account)], &advertise).await;
                    again = Again::No;
                }
                told => return told,
            }
        }
    }

    /// In their order for each account, at once for different ones. If one of an account is not done for lack of an
    /// answer, those after it are not tried, so that the same batch under the same key goes on where this one stopped.
    pub async fn batch(&self, caller: Caller, orders: &[Order]) -> Vec<Outcome> {
        self.try_batch(caller, orders, Again::Yes).await
    }

    async fn try_batch(&self, caller: Caller, orders: &[Order], again: Again) -> Vec<Outcome> {
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
            places.iter().zip(self.away(advertise, &orders, again).await).collect::<Vec<_>>()
        });
        for (place, outcome) in join_all(away).await.into_iter().flatten() {
            outcomes[*place] = Some(outcome);
        }
        let told = orders.iter().zip(outcomes);
        told.map(|(order, outcome)| outcome.unwrap_or_else(|| Err(lost(order)))).collect()
    }

    /// Asks another node, for as long as it has what it is asked for. Whoever takes that over, because the node is frozen, say,
    /// is asked in its place: a key that was done under the old owner is told again, and one that was not never will be.
    /// If it does not have it any more, and nobody took it over since, this node looks anew and asks once more.
    fn away<'d>(
        &'d self,
        advertise: &'d str,
        orders: &'d [Order],
        again: Again,
    ) -> BoxFuture<'d, Vec<Outcome>> {
        Box::pin(async move {
            let accounts: Vec<u64> = orders.iter().map(|order| order.account).collect();
            tokio::select! {
                mut outcomes = self.peers.batch(advertise, orders) => {
                    if again == Again::Yes {
                        self.ask_again(advertise, orders, &mut outcomes).await;
                    }
                    return outcomes;
                }
                () = self.shards.left(&accounts, advertise) => {}
            }
            tracing::info!(
                peer = advertise,
                orders = orders.len(),
                "another node was asked for what it lost meanwhile"
            );
            let told = orders.iter().zip(self.try_batch(Caller::Client, orders, again).await);
            // What was not done now may have been done before.
            let told = told.map(|(order, outcome)| match outcome {
                Err(problem) if problem.kind.stops() => Err(lost(order)),
                outcome => outcome,
            });
            told.collect()
        })
    }

    /// What that node does not have either, and what it did not try for that.
    async fn ask_again(&self, advertise: &str, orders: &[Order], outcomes: &mut [Outcome]) {
        let mut looped = BTreeSet::new();
        let places: Vec<usize> = (0..orders.len())
            .filter(|place| {
                let account = orders[*place].account;
                is_loop(&outcomes[*place]) && looped.insert(account) || looped.contains(&account)
            })
            .collect();
        if places.is_empty() {
            return;
        }
        let buckets: BTreeSet<u16> = looped.into_iter().map(bucket_of).collect();
        self.shards.look_again(&Vec::from_iter(buckets), advertise).await;
        let orders: Vec<Order> = places.iter().map(|place| orders[*place]).collect();
        let told = self.try_batch(Caller::Client, &orders, Again::No).await;
        places.into_iter().zip(told).for_each(|(place, outcome)| outcomes[place] = outcome);
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

/// A node that was asked does not have it either, and nothing was done.
fn is_loop(outcome: &Outcome) -> bool {
    outcome.as_ref().is_err_and(|problem| problem.kind == Kind::Loop)
}

fn not_tried() -> Problem {
    let detail = "an operation on this account before this one got no answer, so this one was not tried";
    Problem { detail: detail.to_owned(), ..Kind::Busy.into() }
}

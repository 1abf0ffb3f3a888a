//! Shards in memory: the domain itself, a clock that is set, and failures as told.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::desk::Shards;
use crate::billing::domain::{
    Account, BUCKETS, Command, Key, Micros, Operation, Refusal, Reply, State, bucket_of,
};
use crate::billing::journal::{Cursor, Entry, Line, MemberState, MemberStatus, ReplicaSetStatus};
use crate::billing::projection;
use crate::billing::shard::{
    self, Answer, Cluster, Failure, History, Owners, ShardStatus, Slip, Told, Unmovable,
};

/// In microseconds since the epoch.
pub const START: u64 = 1_700_000_000_000_000;

#[derive(Clone)]
pub struct Fake {
    inner: Arc<Mutex<Inner>>,
    /// Where the nodes are, by name.
    addresses: Arc<Mutex<BTreeMap<&'static str, String>>>,
    held: Arc<watch::Sender<bool>>,
    taken: Arc<watch::Sender<bool>>,
}

struct Inner {
    node: &'static str,
    state: State,
    /// The ledger; each operation is a batch.
    lines: Vec<Line>,
    now: Micros,
    /// From the so manieth operation on.
    failure: Option<(usize, Failure)>,
    /// Once it looks again.
    heals: bool,
    map_version: u64,
    /// There is a bucket under way whenever somebody looks.
    moves: bool,
    able: bool,
}

impl Fake {
    pub fn alone() -> Fake {
        Fake::new("a", Arc::default(), 0..BUCKETS)
    }

    /// Two nodes, one for the even buckets and one for the odd ones.
    pub fn pair() -> (Fake, Fake) {
        let addresses = Arc::<Mutex<_>>::default();
        let other = Fake::new("b", Arc::clone(&addresses), (0..BUCKETS).filter(|bucket| bucket % 2 == 1));
        (Fake::new("a", addresses, (0..BUCKETS).filter(|bucket| bucket % 2 == 0)), other)
    }

    fn new(
        node: &'static str,
        addresses: Arc<Mutex<BTreeMap<&'static str, String>>>,
        buckets: impl Iterator<Item = u16>,
    ) -> Fake {
        let inner = Inner {
            node,
            state: State::new(buckets),
            lines: Vec::new(),
            now: Micros::new(START),
            failure: None,
            heals: false,
            map_version: 1,
            moves: false,
            able: true,
        };
        let (held, taken) = (Arc::new(watch::Sender::new(false)), Arc::new(watch::Sender::new(false)));
        Fake { inner: Arc::new(Mutex::new(inner)), addresses, held, taken }
    }

    pub fn found_at(&self, address: &str) {
        self.addresses.lock().insert(self.inner.lock().node, address.to_owned());
    }

    pub fn advance(&self, micros: u64) {
        let mut inner = self.inner.lock();
        inner.now = inner.now.checked_add(micros).unwrap();
    }

    pub fn fail(&self, failure: Failure) {
        self.fail_after(0, failure);
    }

    pub fn fail_after(&self, operations: usize, failure: Failure) {
        self.inner.lock().failure = Some((operations, failure));
    }

    /// Fails until it looks again.
    pub fn mistakes(&self, failure: Failure) {
        self.fail(failure);
        self.inner.lock().heals = true;
    }

    pub fn moves(&self, moves: bool) {
        self.inner.lock().moves = moves;
    }

    pub fn able(&self, able: bool) {
        self.inner.lock().able = able;
    }

    /// Whoever asks waits until it is healed.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    pub fn heal(&self) {
        self.inner.lock().failure = None;
        self.held.send_replace(false);
    }

    /// Has what was another node's.
    pub fn takes_over(&self) {
        self.heal();
        self.taken.send_replace(true);
    }

    pub fn accounts(&self) -> usize {
        self.inner.lock().state.accounts_len()
    }

    async fn free(&self) {
        // Not even a poll that may be put off: who asks first is done first.
        if !*self.held.borrow() {
            return;
        }
        let _ = self.held.subscribe().wait_for(|held| !held).await;
    }

    fn done<T>(&self, account: u64, result: Result<T, Refusal>) -> Result<T, Failure> {
        result.map_err(|refusal| match refusal {
            Refusal::Elsewhere => {
                let node = if bucket_of(account) % 2 == 1 { "b" } else { "a" };
                let advertise = self.addresses.lock().get(node).cloned().unwrap_or_default();
                Failure::Elsewhere { node: node.to_owned(), advertise }
            }
            other => other.into(),
        })
    }
}

impl Inner {
    fn may_fail(&mut self) -> Result<(), Failure> {
        match &mut self.failure {
            Some((0, failure)) => Err(failure.clone()),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Shards for Fake {
    async fn operate(&self, account: u64, key: Key, operation: Operation) -> Result<Account, Failure> {
        self.free().await;
        let result = {
            let mut inner = self.inner.lock();
            inner.may_fail()?;
            let Inner { state, lines, now, .. } = &mut *inner;
            let place = (lines.last().map_or(1, |line| line.seq + 1), 0);
            let operate = Command::Operate { key, account, operation };
            projection::apply(state, &operate, *now, place, lines).result
        };
        self.done(account, result).map(|reply| match reply {
            Reply::Account(account) => account,
            other => panic!("{other:?}"),
        })
    }

    async fn get(&self, account: u64) -> Result<Account, Failure> {
        self.free().await;
        let result = {
            let mut inner = self.inner.lock();
            inner.may_fail()?;
            inner.state.account(account, inner.now)
        };
        self.done(account, result)
    }

    fn post(&self, account: u64, operation: Option<(Key, Operation)>, slip: Slip) -> bool {
        let answer = match operation {
            None => self.get(account).now_or_never(),
            Some((key, operation)) => self.operate(account, key, operation).now_or_never(),
        };
        let Some(answer) = answer else {
            slip.withdraw();
            return false;
        };
        shard::Reply::Post(slip).send(answer.map(|account| Told { account, replayed: false }));
        true
    }

    fn posted(&self, _: u64, _: Option<&Operation>, answer: Answer) -> Option<Result<Account, Failure>> {
        match answer {
            Err(Failure::Elsewhere { .. } | Failure::Busy { .. }) => None,
            answer => Some(answer.map(|told| told.account)),
        }
    }

    async fn list(&self, shards: &[u32], after: Option<u64>, limit: usize) -> Result<Vec<Account>, Failure> {
        self.free().await;
        let mut inner = self.inner.lock();
        inner.may_fail()?;
        let own = u32::from(inner.node == "b");
        assert_eq!(shards, [own], "asked for by name");
        Ok(inner.state.page(after, limit, inner.now))
    }

    async fn history(&self, account: u64, before: Option<Cursor>, limit: usize) -> Result<History, Failure> {
        self.get(account).await?;
        let inner = self.inner.lock();
        let shard = u32::from(inner.node == "b");
        let own = inner.lines.iter().rev().filter(|line| line.after.id == account);
        let mut entries: Vec<Entry> = own.map(|line| Entry { shard, line: *line }).collect();
        if let Some(before) = before {
            // Few enough lines for one digit.
            entries.retain(|entry| Cursor::from(entry).to_string() < before.to_string());
        }
        let next = entries.get(limit.saturating_sub(1)).filter(|_| entries.len() > limit).map(Cursor::from);
        entries.truncate(limit);
        Ok(History { entries, next, behind: false })
    }

    async fn cluster(&self) -> Cluster {
        let Owners { node, shards } = self.owners().await;
        let member = MemberStatus {
            uri: "file:/x".to_owned(),
            state: MemberState::Writable,
            replication: None,
            lag_bytes: None,
            lag: None,
            problem: None,
        };
        let set = ReplicaSetStatus {
            index: 0,
            shards: shards.iter().map(|shard| shard.shard).collect(),
            members: vec![member],
        };
        Cluster { node, shards, replica_sets: vec![set] }
    }

    async fn owners(&self) -> Owners {
        self.free().await;
        let mut addresses = self.addresses.lock().clone();
        let inner = self.inner.lock();
        addresses.entry(inner.node).or_insert_with(|| "nobody-asks:1".to_owned());
        let shards: Vec<ShardStatus> = (0..)
            .zip(addresses)
            .map(|(shard, (node, advertise))| ShardStatus {
                shard,
                node: node.to_owned(),
                advertise,
                epoch: 1,
                seq: 2,
                buckets: 500,
                accounts: (node == inner.node).then_some(inner.state.accounts_len() as u64),
                astray: Default::default(),
                writable: true,
            })
            .collect();
        Owners { node: inner.node.to_owned(), shards }
    }

    async fn look_again(&self, _: &[u16], _: &str) {
        let mut inner = self.inner.lock();
        if inner.heals {
            inner.failure = None;
        }
    }

    fn look_at(&self, _: u32) {}

    async fn left(&self, _: &[u64], _: &str) {
        let _ = self.taken.subscribe().wait_for(|taken| *taken).await;
    }

    async fn map_version(&self) -> Result<u64, Failure> {
        let mut inner = self.inner.lock();
        inner.map_version += u64::from(inner.moves);
        Ok(inner.map_version)
    }

    /// The first of the node's buckets is too large, and there are two shards.
    async fn move_bucket(&self, bucket: u16, to: u32) -> Result<(), Failure> {
        self.free().await;
        let mut inner = self.inner.lock();
        inner.may_fail()?;
        match (bucket, to) {
            (0, _) => Err(Unmovable::TooLarge { bytes: 1 << 30 }.into()),
            (_, 0..2) => Ok(()),
            _ => Err(Unmovable::NoSuchShard.into()),
        }
    }

    async fn assign(&self, shard: u32, _: &str) -> Result<(), Failure> {
        self.free().await;
        self.inner.lock().may_fail()?;
        if shard < 2 { Ok(()) } else { Err(Unmovable::NoSuchShard.into()) }
    }

    async fn adopt(&self, _: u32, generation: u64, image: Bytes) -> Result<(), Failure> {
        self.free().await;
        let mut inner = self.inner.lock();
        inner.may_fail()?;
        let now = inner.now;
        let adopt = Command::Adopt { generation, image: image.as_ref().into() };
        inner.state.apply(&adopt, now).result.map(drop).map_err(Failure::from)
    }

    async fn give(&self, shard: u32, to: &str) -> Result<(), Failure> {
        self.assign(shard, to).await
    }

    fn is_able(&self) -> bool {
        self.inner.lock().able
    }
}

//! An owner without requests, leases and answers: it applies, appends, offers, and remembers every line.

use bytes::Bytes;

use super::*;
use crate::billing::domain::{self, BUCKETS, Command, Key, Money, Operation, State, Velocity};
use crate::billing::journal::LineKind;

pub struct Owner {
    pub journal: Journal,
    pub shard: u32,
    pub epoch: u64,
    pub state: State,
    pub seq: u64,
    pub feed: Option<Feed>,
    pub dice: fastrand::Rng,
    /// What the ledger must hold.
    lines: Vec<Line>,
    now: u64,
}

impl Owner {
    /// With these buckets, in an empty shard.
    pub async fn new(journal: &Journal, shard: u32, buckets: std::ops::Range<u16>, seed: u64) -> Owner {
        let mut owner = Owner {
            journal: journal.clone(),
            shard,
            epoch: acquire(journal, shard).await,
            state: State::new([]),
            seq: 0,
            feed: None,
            dice: fastrand::Rng::with_seed(seed),
            lines: Vec::new(),
            now: 1_780_000_000_000_000,
        };
        let adopt = |bucket| Command::Adopt { generation: 1, image: State::empty_image(bucket).into() };
        owner.turn(buckets.map(adopt).collect()).await;
        owner
    }

    pub async fn all(journal: &Journal, shard: u32, seed: u64) -> Owner {
        Owner::new(journal, shard, 0..BUCKETS, seed).await
    }

    /// As if the node had been lost and come back.
    pub async fn take_over(&mut self) {
        self.epoch = acquire(&self.journal, self.shard).await;
        self.feed = None;
    }

    pub fn passes(&mut self, micros: u64) {
        self.now += micros;
    }

    pub fn not_before(&mut self, other: &Owner) {
        self.now = self.now.max(other.now);
    }

    pub async fn turn(&mut self, commands: Vec<Command>) {
        let (now, mut lines, mut taken) =
            (Micros::new(self.now).max(self.state.last()), Vec::new(), Vec::new());
        for command in commands {
            let place = (self.seq + 1, taken.len());
            if apply(&mut self.state, &command, now, place, &mut lines).changed {
                taken.push(command);
            }
        }
        if taken.is_empty() {
            return;
        }
        let mut payload = Vec::new();
        domain::Batch { at: now, commands: taken }.encode(&mut payload);
        self.seq += 1;
        let Owner { shard, seq, epoch, .. } = *self;
        self.journal.append(&Batch { shard, seq, epoch, payload: Bytes::from(payload) }).await.unwrap();
        self.lines.extend_from_slice(&lines);
        if let Some(feed) = &self.feed {
            feed.offer(seq, now, lines);
        }
    }

    /// Some batches of all that can happen to accounts, after some time each.
    pub async fn work(&mut self, batches: usize) {
        for _ in 0..batches {
            self.passes(self.dice.clone().u64(0..3_000_000));
            let commands = (0..self.dice.usize(1..12)).map(|_| self.any_command()).collect();
            self.turn(commands).await;
        }
    }

    fn any_command(&mut self) -> Command {
        let account = self.dice.u64(0..15).wrapping_sub(2);
        let version = self.state.row(account).map_or(1, |row| row.version);
        let (amount, speed) = (Money::new(self.dice.i64(1..5_000)), Velocity::new(self.dice.i64(0..3_000)));
        let operation = match self.dice.u32(0..12) {
            0..=2 => Operation::Create { balance: amount, velocity: speed },
            3..=4 => Operation::AddMoney { amount },
            5..=6 => Operation::Withdraw { amount },
            7 => Operation::UpdateSpendingVelocity { velocity: speed },
            8..=9 => return Command::Deplete { account, version },
            10 => return Command::Delivered { account, version, at: Micros::new(self.now) },
            _ => return Command::Forget { before: Micros::new(self.now.saturating_sub(5_000_000)) },
        };
        let key: Vec<u8> = (0..self.dice.usize(1..9)).map(|_| self.dice.u8(..)).collect();
        Command::Operate { key: Key::new(&key).unwrap(), account, operation }
    }

    pub async fn snapshot(&self) {
        let Owner { shard, seq, epoch, .. } = *self;
        let payload = Bytes::from(self.state.encode());
        self.journal.put_snapshot(&Snapshot { shard, seq, epoch, payload }).await.unwrap();
        self.journal.truncate(shard, seq).await.unwrap();
    }

    /// What the journal says.
    pub async fn replayed(&self, journal: &Journal) -> State {
        let mut replay = match journal.snapshot(self.shard).await.unwrap() {
            Some(snapshot) => (State::decode(&snapshot.payload).unwrap(), snapshot.seq),
            None => (State::new([]), 0),
        };
        loop {
            let batches = journal.read(self.shard, replay.1, 1 << 20).await.unwrap();
            for batch in &batches {
                replay.0.replay(&domain::Batch::decode(&batch.payload).unwrap());
                replay.1 = batch.seq;
            }
            if batches.is_empty() {
                return replay.0;
            }
        }
    }

    pub fn accounts(&self) -> Vec<u64> {
        let mut accounts: Vec<u64> = self.lines.iter().map(|line| line.after.id).collect();
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }

    /// What a history shows, oldest first.
    pub fn lines_of(&self, account: u64) -> Vec<Line> {
        let told = |line: &&Line| {
            line.after.id == account && matches!(line.kind, LineKind::Event(_) | LineKind::Carried)
        };
        self.lines.iter().filter(told).copied().collect()
    }

    /// What a history shows of what came after the so manieth line.
    pub fn told_since(&self, seen: &mut usize) -> Vec<Line> {
        let lines = &self.lines[*seen..];
        *seen = self.lines.len();
        lines.iter().filter(|line| matches!(line.kind, LineKind::Event(_))).copied().collect()
    }

    /// The lines up to a batch are gone, and each account begins as it was then.
    pub fn carried(&mut self, seq: u64, at: Micros, rows: impl Iterator<Item = Row>) {
        self.lines.retain(|line| line.seq > seq);
        let carried = rows.map(|row| Line::of_row(seq, 0, LineKind::Carried, at, row));
        self.lines = carried.chain(std::mem::take(&mut self.lines)).collect();
    }
}

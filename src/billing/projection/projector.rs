//! One owner's projector: claims the ledger, brings it to the tail of the journal, and follows the owner from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::basing::{Accounts, Basing};
use super::feed::{Chunk, Feed, Taken};
use super::replay::Replay;
use super::sweeping::Sweeping;
use super::{Config, Ledger, Metrics};
use crate::billing::domain::Micros;
use crate::billing::journal::{Error, Line, Stretch};
use crate::clock;
use crate::resilience::backoff::Backoff;
use crate::telemetry::causes;

/// A failover of the database takes seconds; a lost connection is back in milliseconds.
const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(5) };
/// After what no retry mends by itself, such as damage.
const SLOW_RETRY: Duration = Duration::from_secs(30);
/// Bytes of batches derived from in one go: about a millisecond.
const READ_BYTES: usize = 128 << 10;
/// So near to the tail offers are kept, and the rest is read.
const NEAR_BATCHES: u64 = 64;
/// The longest rest after a piece of work.
const REST_MAX: Duration = Duration::from_millis(250);

/// Whose ledger it is.
pub struct Office<L> {
    pub ledger: L,
    pub shard: u32,
    pub epoch: u64,
    /// The last batch of the journal, and its time, when the tenure began.
    pub last: u64,
    pub at: Micros,
    pub config: Config,
    pub metrics: Metrics,
}

/// To be run beside the owner, until its tenure ends.
pub struct Projector<L> {
    office: Office<L>,
    feed: Feed,
    failing: bool,
    /// None where no bases are kept.
    basing: Option<Basing>,
}

/// Why it does not go on as it was.
enum Over {
    /// Another owner writes the ledger.
    Fenced,
    /// The ledger is not where it was left: somebody set it back.
    Altered,
    /// What was to be read is truncated.
    Gone,
    Closed,
}

/// A call, again and again until it is answered.
macro_rules! insist {
    ($projector:expr, $call:expr) => {{
        let mut tries = 0;
        loop {
            match $call.await {
                Ok(answer) => {
                    $projector.recovered();
                    break Ok(answer);
                }
                Err(error) => {
                    if let Some(over) = $projector.wait_after(error, &mut tries).await {
                        break Err(over);
                    }
                }
            }
        }
    }};
}

impl<L: Ledger> Projector<L> {
    pub fn new(office: Office<L>) -> (Projector<L>, Feed) {
        let feed = Feed::new(office.shard, office.last, office.at, &office.config, &office.metrics);
        let basing = office.ledger.keeps_bases().then(|| Basing::new(&office.config));
        (Projector { office, feed: feed.clone(), failing: false, basing }, feed)
    }

    /// Until the feed is closed and empty, or another owner's projector has come. May be dropped at any time: what is not
    /// written then, the next one derives.
    pub async fn run(mut self) {
        let _ended = Ended(self.feed.clone());
        let mut tries = 0;
        loop {
            match self.serve(&mut tries).await {
                Over::Closed => return,
                Over::Fenced => {
                    let Office { shard, epoch, .. } = self.office;
                    return tracing::debug!(shard, epoch, "another owner writes the ledger");
                }
                Over::Altered => {
                    tracing::warn!(
                        shard = self.office.shard,
                        "the ledger was set back, it is derived from there"
                    );
                }
                Over::Gone => {
                    tracing::debug!(shard = self.office.shard, "the journal was truncated meanwhile")
                }
            }
            self.feed.shut();
            sleep(RETRY.delay(tries, fastrand::f64())).await;
            tries = tries.saturating_add(1);
        }
    }

    async fn serve(&mut self, tries: &mut u32) -> Over {
        let Office { shard, epoch, .. } = self.office;
        let claimed: Result<u64, Over> = insist!(self, self.office.ledger.claim(shard, epoch));
        let mut projected = match claimed {
            Ok(projected) => projected,
            Err(over) => return over,
        };
        self.feed.tell(projected);
        loop {
            if self.feed.opened().is_none_or(|after| after > projected) {
                projected = match self.catch_up(projected).await {
                    Ok(projected) => projected,
                    Err(over) => return over,
                };
            }
            *tries = 0;
            projected = match self.live(projected).await {
                Ok(projected) => projected,
                Err(over) => return over,
            };
        }
    }

    // ----------------------------------------------------------------------------------------------------------- live

    /// Until it is behind.
    async fn live(&mut self, mut projected: u64) -> Result<u64, Over> {
        let mut sweeping = Sweeping::new(&self.office.config);
        loop {
            let feed = self.feed.clone();
            let taken = tokio::select! {
                taken = feed.take(projected) => taken,
                () = sweeping.due() => {
                    self.sweep(&mut sweeping).await?;
                    continue;
                }
                loaded = due(&mut self.basing) => {
                    self.base(loaded, projected).await?;
                    continue;
                }
            };
            match taken {
                Taken::Lines(chunk) => {
                    let began = clock::now();
                    projected = self.write(projected, chunk).await?;
                    self.rest(began).await;
                }
                Taken::Behind => return Ok(projected),
                Taken::Closed => return Err(Over::Closed),
            }
        }
    }

    async fn write(&mut self, after: u64, chunk: Chunk) -> Result<u64, Over> {
        let Office { shard, epoch, .. } = self.office;
        let Chunk { through, at, offers } = chunk;
        let began = clock::now();
        let stretch = Stretch { shard, epoch, after, through, at };
        let count = offers.iter().map(|lines| lines.len() as u64).sum();
        let offers = Arc::new(offers);
        insist!(self, self.office.ledger.project(&stretch, &offers))?;
        if let Some(offers) = Arc::into_inner(offers) {
            self.feed.give_back(offers);
        }
        let Metrics { events, write, .. } = &self.office.metrics;
        events.inc_by(count);
        write.observe((clock::now() - began).as_secs_f64());
        if let Some(basing) = &mut self.basing {
            basing.wrote(count);
        }
        self.feed.tell(through);
        Ok(through)
    }

    /// As long as the work took: so at most half of one core goes into the ledger, however much there is to write.
    async fn rest(&mut self, began: Instant) {
        match self.feed.is_urgent() {
            true => tokio::task::yield_now().await,
            false => sleep((clock::now() - began).min(REST_MAX)).await,
        }
    }

    async fn sweep(&mut self, sweeping: &mut Sweeping) -> Result<(), Over> {
        let Some(sweep) = sweeping.sweep(self.office.shard, self.feed.at()) else { return Ok(()) };
        let swept = insist!(self, self.office.ledger.forget_lines(&sweep))?;
        self.office.metrics.forgotten.inc_by(swept.lines);
        if let Some(basing) = &mut self.basing
            && swept.held
        {
            basing.want();
        }
        sweeping.went_on(&sweep, &swept);
        Ok(())
    }

    /// A step of writing all accounts; lines have their turn between two.
    async fn base(&mut self, loaded: Option<Result<Accounts, Error>>, projected: u64) -> Result<(), Over> {
        let Office { shard, epoch, .. } = self.office;
        let Some(basing) = &mut self.basing else { return Ok(()) };
        match loaded {
            Some(Ok(accounts)) => {
                basing.loaded(accounts);
                return Ok(());
            }
            Some(Err(error)) => {
                basing.failed();
                return no_base(shard, &error);
            }
            None => {}
        }
        let Some((base, rows)) = basing.piece(shard, epoch) else {
            basing.begin(&self.office.ledger, shard, projected);
            return Ok(());
        };
        let (began, rows) = (clock::now(), rows.to_vec());
        match self.office.ledger.put_base(&base, &rows).await {
            Ok(()) => {
                self.office.metrics.accounts.inc_by(rows.len() as u64);
                basing.went_on(base.last, clock::now() - began);
                Ok(())
            }
            Err(Error::Fenced { .. }) => Err(Over::Fenced),
            // Lines matter more.
            Err(error) => {
                basing.failed();
                no_base(shard, &error)
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------- catch up

    /// Until the tail is reached, and what comes after it is offered.
    async fn catch_up(&mut self, projected: u64) -> Result<u64, Over> {
        let Office { shard, .. } = self.office;
        self.office.metrics.catch_ups.inc();
        tracing::info!(
            shard,
            projected,
            last = self.feed.last(),
            "the ledger is behind, its lines are derived"
        );
        let (mut replay, mut projected) = self.load(projected).await?;
        let mut lines = Vec::new();
        loop {
            match self.feed.opened() {
                Some(after) if after <= projected => {
                    tracing::info!(shard, projected, "the ledger has caught up");
                    return Ok(projected);
                }
                // What is offered now will not be needed for long.
                Some(after) if is_far(after, replay.seq) => self.feed.shut(),
                Some(_) => {}
                None if !is_far(self.feed.last(), replay.seq) => {
                    self.feed.open();
                    continue;
                }
                // It is not worth the wait.
                None if self.feed.is_closing() => return Err(Over::Closed),
                None => {}
            }
            let began = clock::now();
            let batches = insist!(self, self.office.ledger.batches(shard, replay.seq, READ_BYTES))?;
            for batch in &batches {
                if let Err(error) = replay.take(batch, projected, &mut lines) {
                    self.wait_after(error, &mut 0).await;
                    return Err(Over::Altered);
                }
            }
            // Near the tail it is not waited for more: somebody may wait for these.
            let is_full = lines.len() >= self.office.config.chunk_lines;
            if replay.seq > projected && (is_full || !is_far(self.feed.last(), replay.seq)) {
                projected = self.write(projected, derived(&replay, &mut lines)).await?;
            }
            match batches.is_empty() {
                // Durable, and not to be read yet.
                true => sleep(RETRY.min).await,
                false => self.rest(began).await,
            }
        }
    }

    /// A state that is not beyond the ledger; if there is none in the journal any more, the ledger begins anew with what
    /// there is.
    async fn load(&mut self, projected: u64) -> Result<(Replay, u64), Over> {
        let Office { shard, epoch, .. } = self.office;
        let replay = insist!(self, Replay::before(&self.office.ledger, shard, projected))?;
        let next: Result<Vec<_>, Over> = insist!(self, self.office.ledger.batches(shard, replay.seq, 1));
        match next {
            Ok(_) => return Ok((replay, projected)),
            Err(Over::Gone) => {}
            Err(over) => return Err(over),
        }
        let replay = insist!(self, Replay::newest(&self.office.ledger, shard))?;
        if replay.seq <= projected {
            return Err(Over::Gone);
        }
        tracing::warn!(
            shard,
            projected,
            seq = replay.seq,
            "the ledger begins with a snapshot: batches before are gone"
        );
        let at = replay.state.last();
        let stretch = Stretch { shard, epoch, after: projected, through: replay.seq, at };
        insist!(self, self.office.ledger.carry(&stretch, replay.rows()))?;
        self.office.metrics.carried.inc();
        self.feed.tell(replay.seq);
        let projected = replay.seq;
        Ok((replay, projected))
    }

    // --------------------------------------------------------------------------------------------------------- trouble

    /// What it means for this projector; None: the same call is to be made again, now.
    async fn wait_after(&mut self, error: Error, tries: &mut u32) -> Option<Over> {
        let shard = self.office.shard;
        let wait = match &error {
            Error::Fenced { .. } => return Some(Over::Fenced),
            Error::OutOfOrder { .. } => return Some(Over::Altered),
            Error::Truncated { .. } => return Some(Over::Gone),
            Error::Unavailable { .. } | Error::Unknown { .. } => RETRY.delay(*tries, fastrand::f64()),
            Error::Corrupt { .. } | Error::Damaged { .. } | Error::Config(_) => SLOW_RETRY,
        };
        self.office.metrics.retries.inc();
        let error = causes(&error);
        if wait == SLOW_RETRY {
            tracing::error!(shard, error, "the ledger cannot be written, somebody must act; commands go on");
        } else if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(shard, error, "the ledger does not answer, it is tried again; commands go on");
        }
        *tries = tries.saturating_add(1);
        sleep(wait).await;
        None
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(shard = self.office.shard, "the ledger answers again");
        }
    }
}

/// However it ends, whoever waits for that is told.
struct Ended(Feed);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What was derived from the journal by now.
fn derived(replay: &Replay, lines: &mut Vec<Line>) -> Chunk {
    Chunk { through: replay.seq, at: replay.state.last(), offers: vec![std::mem::take(lines)] }
}

fn is_far(batch: u64, from: u64) -> bool {
    batch.saturating_sub(from) > NEAR_BATCHES
}

async fn due(basing: &mut Option<Basing>) -> Option<Result<Accounts, Error>> {
    match basing {
        Some(basing) => basing.due().await,
        None => std::future::pending().await,
    }
}

fn no_base(shard: u32, error: &Error) -> Result<(), Over> {
    let error = causes(error);
    tracing::warn!(shard, error, "accounts cannot be written for reports, older ones are used");
    Ok(())
}

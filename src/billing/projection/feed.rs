//! From the owner to its projector: a bounded queue of lines, and how far the ledger has come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::{Notify, watch};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Config, Metrics};
use crate::billing::domain::Micros;
use crate::billing::journal::{Line, LineKind, Offers};
use crate::clock;

/// The owner's end, and that of whoever waits for the ledger. Cheap to clone.
#[derive(Clone)]
pub struct Feed(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    queue_lines: usize,
    chunk_lines: usize,
    /// Lines that are enough to go on with, and how long the oldest waits for them; one after the other.
    lingers: [(usize, Duration); 2],
    /// There is something to take, or to notice.
    arrived: Notify,
    /// No use to wait for more.
    urgent: Notify,
    /// Who waits for the ledger.
    readers: AtomicUsize,
    projected: watch::Sender<u64>,
    ended: CancellationToken,
    lag: IntGauge,
    overflows: IntCounter,
}

struct Queue {
    /// Offers are kept: all after this batch. None: none are.
    opened: Option<u64>,
    closing: bool,
    /// The last batch that is durable.
    last: u64,
    at: Micros,
    offers: VecDeque<(u64, Micros, Vec<Line>)>,
    /// An offer without lines counts as one.
    lines: usize,
    /// When the oldest offer came; None: there is none.
    since: Option<Instant>,
    /// Emptied ones, for the owner's next; together as large as a chunk at most.
    buffers: Vec<Vec<Line>>,
    buffer_lines: usize,
}

/// What the projector is to do next.
pub(super) enum Taken {
    Lines(Chunk),
    /// What was offered was dropped: the journal has it.
    Behind,
    /// There is nothing left, and nothing more comes.
    Closed,
}

/// All lines of the batches up to one, as they were offered.
pub(super) struct Chunk {
    pub(super) through: u64,
    /// Its time.
    pub(super) at: Micros,
    pub(super) offers: Offers,
}

impl Feed {
    /// Open from its first batch on.
    pub(super) fn new(shard: u32, last: u64, at: Micros, config: &Config, metrics: &Metrics) -> Feed {
        let offers = VecDeque::new();
        let queue = Queue {
            opened: Some(last),
            closing: false,
            last,
            at,
            offers,
            lines: 0,
            since: None,
            buffers: Vec::new(),
            buffer_lines: 0,
        };
        Feed(Arc::new(Shared {
            queue: Mutex::new(queue),
            queue_lines: config.queue_lines.max(1),
            chunk_lines: config.chunk_lines.max(1),
            lingers: [
                (config.chunk_lines.max(1), config.linger),
                (config.few_lines, config.linger + config.linger_few),
            ],
            arrived: Notify::new(),
            urgent: Notify::new(),
            readers: AtomicUsize::new(0),
            projected: watch::Sender::new(0),
            ended: CancellationToken::new(),
            lag: metrics.lag(shard),
            overflows: metrics.overflows.clone(),
        }))
    }

    /// An empty one to put the lines of the next batch into, some so many; one that was written before if there is.
    pub fn buffer(&self, lines: usize) -> Vec<Line> {
        let mut buffer = {
            let mut queue = self.0.queue.lock();
            let buffer = queue.buffers.pop().unwrap_or_default();
            queue.buffer_lines -= buffer.capacity();
            buffer
        };
        buffer.reserve(lines);
        buffer
    }

    /// The lines of a batch that is durable now, and its time. Never waits.
    pub fn offer(&self, seq: u64, at: Micros, lines: Vec<Line>) {
        let shared = &*self.0;
        let mut queue = shared.queue.lock();
        (queue.last, queue.at) = (seq, at);
        shared.lag.set(lag(seq, *shared.projected.borrow()));
        if queue.opened.is_none() {
            return;
        }
        queue.lines += lines.len().max(1);
        if queue.lines > shared.queue_lines && !queue.offers.is_empty() {
            queue.close();
            shared.overflows.inc();
            shared.urgent.notify_one();
        } else {
            // A history goes on in another shard, whose readers cannot hurry this one.
            let leaves = lines.iter().any(|line| line.kind == LineKind::Released);
            queue.offers.push_back((seq, at, lines));
            queue.since.get_or_insert_with(clock::now);
            if leaves || queue.lines >= shared.chunk_lines {
                shared.urgent.notify_one();
            }
        }
        drop(queue);
        shared.arrived.notify_one();
    }

    /// Nothing more comes: what is queued is to be written, and the projector to end.
    pub fn close(&self) {
        self.0.queue.lock().closing = true;
        self.0.urgent.notify_one();
        self.0.arrived.notify_one();
    }

    /// Resolves once the projector has ended.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Has this batch written without delay, and waits until it is; false if it is not after this time.
    pub async fn reached(&self, seq: u64, patience: Duration) -> bool {
        if *self.0.projected.borrow() >= seq {
            return true;
        }
        let _reader = Reader::new(&self.0);
        self.passed(seq, patience).await
    }

    /// The same, in its own time.
    pub async fn passed(&self, seq: u64, patience: Duration) -> bool {
        let mut projected = self.0.projected.subscribe();
        // The sender lives as long as this feed.
        timeout(patience, projected.wait_for(|projected| *projected >= seq))
            .await
            .is_ok_and(|seen| seen.is_ok())
    }

    // ------------------------------------------------------------------------------------------------- the projector's

    pub(super) fn tell(&self, projected: u64) {
        self.0.lag.set(lag(self.last(), projected));
        self.0.projected.send_replace(projected);
    }

    pub(super) fn last(&self) -> u64 {
        self.0.queue.lock().last
    }

    /// Emptied for the owner; what it will not need goes.
    pub(super) fn give_back(&self, mut offers: Offers) {
        let mut queue = self.0.queue.lock();
        while queue.buffer_lines < self.0.chunk_lines
            && let Some(mut buffer) = offers.pop()
        {
            buffer.clear();
            // One that has no memory is not worth its place.
            if buffer.capacity() > 0 && queue.buffer_lines + buffer.capacity() <= self.0.chunk_lines {
                queue.buffer_lines += buffer.capacity();
                queue.buffers.push(buffer);
            }
        }
        drop(queue);
    }

    /// The time of the last durable batch.
    pub(super) fn at(&self) -> Micros {
        self.0.queue.lock().at
    }

    /// From here on offers are kept.
    pub(super) fn open(&self) {
        let mut queue = self.0.queue.lock();
        queue.close();
        queue.opened = Some(queue.last);
    }

    /// The batch after which all are offered and kept, if they are.
    pub(super) fn opened(&self) -> Option<u64> {
        self.0.queue.lock().opened
    }

    /// Offers are not kept until it is opened again.
    pub(super) fn shut(&self) {
        self.0.queue.lock().close();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.0.queue.lock().closing
    }

    /// Should what is to be written be written at once?
    pub(super) fn is_urgent(&self) -> bool {
        self.0.readers.load(SeqCst) > 0 || self.is_closing()
    }

    pub(super) fn end(&self) {
        self.0.lag.set(0);
        self.0.ended.cancel();
    }

    /// The next lines after `projected`, when there are many or have been some for a while. May be dropped and called again.
    pub(super) async fn take(&self, projected: u64) -> Taken {
        let shared = &*self.0;
        loop {
            let lines = {
                let queue = shared.queue.lock();
                match () {
                    () if !queue.offers.is_empty() => queue.lines,
                    () if queue.opened.is_none() => return Taken::Behind,
                    () if queue.closing => return Taken::Closed,
                    () => 0,
                }
            };
            if lines == 0 {
                shared.arrived.notified().await;
                continue;
            }
            for (enough, linger) in &shared.lingers {
                // From when the oldest came, since whoever waits here may be called away and come again.
                let (lines, since) = {
                    let queue = shared.queue.lock();
                    (queue.lines, queue.since)
                };
                let until = since.unwrap_or_else(clock::now) + *linger;
                if lines >= *enough
                    || self.is_urgent()
                    || timeout_at(until.into(), shared.urgent.notified()).await.is_ok()
                {
                    break;
                }
            }
            if let Some(taken) = shared.queue.lock().pop(projected, shared.chunk_lines) {
                return taken;
            }
        }
    }
}

impl Queue {
    fn close(&mut self) {
        self.opened = None;
        self.offers = VecDeque::new();
        (self.lines, self.since) = (0, None);
    }

    fn pop(&mut self, projected: u64, chunk_lines: usize) -> Option<Taken> {
        let mut chunk = Chunk { through: projected, at: self.at, offers: Vec::new() };
        let mut lines = 0;
        while lines < chunk_lines
            && let Some((seq, at, some)) = self.offers.pop_front()
        {
            self.lines -= some.len().max(1);
            match seq {
                // It was offered while it was derived from the journal.
                seq if seq <= chunk.through => {}
                seq if seq == chunk.through + 1 => {
                    (chunk.through, chunk.at) = (seq, at);
                    lines += some.len().max(1);
                    chunk.offers.push(some);
                }
                _ => {
                    self.close();
                    return Some(Taken::Behind);
                }
            }
        }
        self.since = (!self.offers.is_empty()).then(clock::now);
        (chunk.through > projected).then_some(Taken::Lines(chunk))
    }
}

/// Counts somebody who waits.
struct Reader<'a>(&'a Shared);

impl Reader<'_> {
    fn new(shared: &Shared) -> Reader<'_> {
        shared.readers.fetch_add(1, SeqCst);
        shared.urgent.notify_one();
        Reader(shared)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, SeqCst);
    }
}

fn lag(last: u64, projected: u64) -> i64 {
    i64::try_from(last.saturating_sub(projected)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_of_them_than_a_chunk() {
        let config = Config { chunk_lines: 100, ..Config::default() };
        let feed = Feed::new(0, 0, Micros::ZERO, &config, &Metrics::new(&Registry::new()).unwrap());
        assert!(feed.buffer(7).capacity() >= 7);
        for _ in 0..3 {
            feed.give_back((0..50).map(|at| Vec::with_capacity(at % 8)).collect());
            feed.give_back(vec![Vec::with_capacity(1000)]);
        }
        let capacities: Vec<usize> = std::iter::repeat_with(|| feed.buffer(0).capacity())
            .take_while(|capacity| *capacity > 0)
            .collect();
        let kept: usize = capacities.iter().sum();
        assert!((93..=100).contains(&kept), "{capacities:?}");
        assert_eq!(feed.0.queue.lock().buffer_lines, 0);
    }
}

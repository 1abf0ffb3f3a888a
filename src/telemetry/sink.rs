//! Lines in, a file descriptor out, by a thread of its own: bounded, and never a wait for the one who logs.
//!
//! Lines gather in one buffer; the thread swaps it for its own empty one and writes it whole. It is woken when
//! the first line arrives, then waits up to [`GATHER`] for more, or until the buffer is half full. So logging costs
//! a short lock and a copy, and at most a few wake-ups a second however many lines there are.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;

/// How long the thread lets lines gather: how late a line may appear, and how many are lost by a kill.
const GATHER: Duration = Duration::from_millis(50);

/// How long to wait before trying again on a descriptor that someone made non-blocking.
const WOULD_BLOCK_PAUSE: Duration = Duration::from_millis(10);

/// A handle to one writing thread. The thread ends, and writes what is left, when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Sink(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    lines: Mutex<Lines>,
    /// For the thread: there is something to do.
    work: Condvar,
    /// For `flush`: the thread has written something.
    written: Condvar,
    capacity_bytes: usize,
    dropped: IntCounter,
}

#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// The thread has taken a buffer and is writing it.
    writing: bool,
    /// Someone waits for the buffer to be written: don't gather.
    flush: bool,
    closed: bool,
}

impl Sink {
    /// Starts the thread. At most `capacity_bytes` wait to be written (and as many are being written); a line
    /// beyond that is counted by `dropped`, and so is one that the output refuses.
    pub(super) fn start(
        name: &str,
        output: Box<dyn Write + Send>,
        capacity_bytes: usize,
        dropped: IntCounter,
    ) -> std::io::Result<Sink> {
        let shared = Arc::new(Shared {
            lines: Mutex::default(),
            work: Condvar::new(),
            written: Condvar::new(),
            capacity_bytes,
            dropped,
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || thread.run(output))?;
        Ok(Sink(Arc::new(Handle { shared })))
    }

    /// Takes one line, adding the line feed if it lacks one. Never waits for the output.
    pub(super) fn line(&self, line: &[u8]) {
        let shared = &*self.0.shared;
        let line_feed = line.last() != Some(&b'\n');
        let mut lines = shared.lines.lock();
        let length_before = lines.buffer.len();
        if length_before + line.len() + usize::from(line_feed) > shared.capacity_bytes {
            drop(lines);
            shared.dropped.inc();
            return;
        }
        lines.buffer.extend_from_slice(line);
        if line_feed {
            lines.buffer.push(b'\n');
        }
        let half = shared.capacity_bytes / 2;
        let wake = length_before == 0 || (length_before < half && lines.buffer.len() >= half);
        drop(lines);
        if wake {
            shared.work.notify_one();
        }
    }

    /// Waits until everything taken so far is written, at most `timeout`. True if it was.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let shared = &*self.0.shared;
        let mut lines = shared.lines.lock();
        while lines.writing || !lines.buffer.is_empty() {
            lines.flush = true;
            shared.work.notify_one();
            if shared.written.wait_until(&mut lines, deadline).timed_out() {
                return !lines.writing && lines.buffer.is_empty();
            }
        }
        true
    }

    /// Lines that were dropped.
    pub(super) fn dropped(&self) -> &IntCounter {
        &self.0.shared.dropped
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lines.lock().closed = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn run(&self, mut output: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            if let Err(lost) = write_all(&mut output, &batch) {
                self.dropped.inc_by(lost);
            }
            batch.clear();
            // A burst must not keep its memory for ever.
            batch.shrink_to(64 * 1024);
            self.lines.lock().writing = false;
            self.written.notify_all();
        }
    }

    /// Waits for lines and swaps them into `batch`, which must be empty. False when there will be no more.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        let mut lines = self.lines.lock();
        while lines.buffer.is_empty() {
            if lines.closed {
                return false;
            }
            self.work.wait(&mut lines);
        }
        let until = Instant::now() + GATHER;
        while lines.buffer.len() < self.capacity_bytes / 2 && !lines.flush && !lines.closed {
            if self.work.wait_until(&mut lines, until).timed_out() {
                break;
            }
        }
        std::mem::swap(&mut lines.buffer, batch);
        lines.writing = true;
        lines.flush = false;
        true
    }
}

/// Writes the batch. The error is the number of lines that were not written whole.
fn write_all(output: &mut dyn Write, batch: &[u8]) -> Result<(), u64> {
    let mut rest = batch;
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => break,
            Ok(length) => rest = &rest[length..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(WOULD_BLOCK_PAUSE),
            Err(_) => break,
        }
    }
    match rest.iter().filter(|byte| **byte == b'\n').count() as u64 {
        0 => output.flush().map_err(|_| 0),
        lost => Err(lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Sends each write to the test; waits for a permit before each if there is a gate.
    struct Tap {
        out: mpsc::Sender<Vec<u8>>,
        gate: Option<mpsc::Receiver<()>>,
    }

    impl Write for Tap {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(gate) = &self.gate {
                gate.recv().map_err(|_| std::io::Error::other("the gate is gone"))?;
            }
            self.out.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "test").unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn lines_arrive_whole_and_in_order_from_many_threads() {
        let (out, seen) = mpsc::channel();
        let sink = Sink::start("t", Box::new(Tap { out, gate: None }), 1 << 20, counter()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let sink = sink.clone();
                scope.spawn(move || (0..500).for_each(|n| sink.line(format!("{thread} {n}").as_bytes())));
            }
        });
        assert!(sink.flush(LONG));
        assert_eq!(sink.dropped().get(), 0);
        drop(sink);
        let text = String::from_utf8(seen.iter().flatten().collect()).unwrap();
        for thread in 0..4 {
            let prefix = format!("{thread} ");
            let numbers = text.lines().filter_map(|line| line.strip_prefix(&prefix));
            assert!(numbers.eq((0..500).map(|n| n.to_string())), "thread {thread}");
        }
        assert_eq!(text.lines().count(), 2_000);
    }

    #[test]
    fn a_stuck_output_drops_and_counts_and_never_blocks() {
        let (out, seen) = mpsc::channel();
        let (permit, gate) = mpsc::channel();
        let sink = Sink::start("t", Box::new(Tap { out, gate: Some(gate) }), 40, counter()).unwrap();
        // 10 bytes each with the line feed: at most 4 wait and 4 are being written.
        for _ in 0..100 {
            sink.line(b"123456789");
        }
        let dropped = sink.dropped().get();
        assert!((92..=96).contains(&dropped), "{dropped}");
        assert!(!sink.flush(Duration::from_millis(1)));
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        assert!(sink.flush(LONG));
        drop(permit);
        let written = seen.try_iter().flatten().filter(|byte| *byte == b'\n').count() as u64;
        assert_eq!(written + dropped, 100);
    }

    #[test]
    fn what_the_output_refuses_is_counted() {
        let (out, seen) = mpsc::channel();
        drop(seen);
        let sink = Sink::start("t", Box::new(Tap { out, gate: None }), 1 << 10, counter()).unwrap();
        sink.line(b"one\n");
        sink.line(b"two");
        assert!(sink.flush(LONG));
        assert_eq!(sink.dropped().get(), 2);
    }

    #[test]
    fn the_rest_is_written_when_the_last_handle_goes() {
        let (out, seen) = mpsc::channel();
        let sink = Sink::start("t", Box::new(Tap { out, gate: None }), 1 << 10, counter()).unwrap();
        sink.line(b"last words");
        drop(sink);
        assert_eq!(seen.iter().flatten().collect::<Vec<u8>>(), b"last words\n");
    }
}

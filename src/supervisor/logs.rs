//! The output of kept processes: read line by line, prefixed, written on by a thread per target.
//!
//! A child never waits for whoever reads its log: when the target is slow the queue fills, and lines beyond it are dropped
//! and counted. Everything is bounded: a line, the queue, a file and its one predecessor.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::Error;

/// Longer lines are cut into several, each with its prefix. bingo's longest are well below it.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Lines that may wait for one target: 16 MiB at the very worst.
const QUEUE_LINES: usize = 1024;

/// Where a thread writes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Stdout,
    Stderr,
    /// A file and the bytes it may grow to.
    File(PathBuf, u64),
}

struct Line {
    bytes: Vec<u8>,
    /// Counts it if it cannot be written.
    dropped: IntCounter,
}

/// The way to one target. Clones share its queue and thread.
#[derive(Clone)]
pub struct Sink {
    lines: SyncSender<Line>,
    /// Disconnected when the thread has written its last.
    done: Arc<Mutex<Receiver<()>>>,
}

impl Sink {
    /// Opens the target and starts its thread. Error: the file cannot be opened, or the thread not started.
    pub fn start(target: Target) -> Result<Sink, Error> {
        let mut writer: Box<dyn Write + Send> = match &target {
            // Files are not buffered, so that a rotation never falls into the middle of a line.
            Target::Stdout => Box::new(BufWriter::new(io::stdout())),
            Target::Stderr => Box::new(io::stderr()),
            Target::File(path, bytes_max) => {
                let open = RotatingFile::open(path, *bytes_max);
                let file = open.map_err(|source| Error::Log { path: path.clone(), source })?;
                Box::new(file)
            }
        };
        Sink::with_thread(move |lines| write(&lines, &mut writer))
    }

    fn with_thread(work: impl FnOnce(Receiver<Line>) + Send + 'static) -> Result<Sink, Error> {
        let (lines, queue) = sync_channel(QUEUE_LINES);
        let (working, done) = sync_channel::<()>(0);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                let _working = working;
                work(queue);
            })
            .map_err(Error::Thread)?;
        Ok(Sink { lines, done: Arc::new(Mutex::new(done)) })
    }

    /// Queues a line, or drops and counts it.
    fn put(&self, bytes: Vec<u8>, dropped: &IntCounter) {
        match self.lines.try_send(Line { bytes, dropped: dropped.clone() }) {
            Ok(()) => {}
            Err(TrySendError::Full(line) | TrySendError::Disconnected(line)) => line.dropped.inc(),
        }
    }

    /// Waits until all that was queued is written, but not longer than `wait`. To be called on the last clone.
    pub fn close(self, wait: Duration) {
        let Sink { lines, done } = self;
        drop(lines);
        // Nothing is ever sent: the thread drops its end when it is through.
        let _ = done.lock().recv_timeout(wait);
    }
}

fn write(lines: &Receiver<Line>, writer: &mut dyn Write) {
    loop {
        // Flushed whenever nothing waits: the reader sees a line at once, and a burst costs few writes.
        let line = match lines.recv_timeout(Duration::ZERO) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = writer.flush();
                match lines.recv() {
                    Ok(line) => line,
                    Err(_) => break,
                }
            }
        };
        if writer.write_all(&line.bytes).is_err() {
            line.dropped.inc();
        }
    }
    let _ = writer.flush();
}

/// Reads `output` to its end and puts its lines into `sink`, each after `prefix`.
pub async fn pump(mut output: impl AsyncRead + Unpin, prefix: String, sink: Sink, dropped: IntCounter) {
    let mut splitter = Splitter::new(prefix);
    let mut chunk = vec![0; LINE_BYTES_MAX];
    loop {
        match output.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(count) => splitter.feed(&chunk[..count], |line| sink.put(line, &dropped)),
        }
    }
    splitter.finish(|line| sink.put(line, &dropped));
}

/// Cuts bytes into prefixed lines that end in a newline. Pure.
struct Splitter {
    prefix: Vec<u8>,
    /// The line so far, prefix included; empty between lines.
    line: Vec<u8>,
}

impl Splitter {
    fn new(prefix: String) -> Splitter {
        Splitter { prefix: prefix.into_bytes(), line: Vec::new() }
    }

    fn feed(&mut self, bytes: &[u8], mut put: impl FnMut(Vec<u8>)) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text.strip_suffix(b"\r").unwrap_or(text), true),
                None => (piece, false),
            };
            let mut rest = text;
            loop {
                if self.line.is_empty() {
                    self.line.extend_from_slice(&self.prefix);
                }
                let room = (LINE_BYTES_MAX + self.prefix.len()).saturating_sub(self.line.len());
                let (now, later) = rest.split_at(rest.len().min(room));
                self.line.extend_from_slice(now);
                rest = later;
                if rest.is_empty() {
                    break;
                }
                self.finish(&mut put);
            }
            if ends {
                self.finish(&mut put);
            }
        }
    }

    /// Puts the line begun, if there is one.
    fn finish(&mut self, mut put: impl FnMut(Vec<u8>)) {
        if !self.line.is_empty() {
            let mut line = std::mem::take(&mut self.line);
            line.push(b'\n');
            put(line);
        }
    }
}

/// A file that becomes `path.1` before it would grow beyond `bytes_max`.
struct RotatingFile {
    path: PathBuf,
    bytes_max: u64,
    bytes: u64,
    /// `None` after a failure; opened again by the next write.
    file: Option<File>,
}

impl RotatingFile {
    fn open(path: &Path, bytes_max: u64) -> io::Result<RotatingFile> {
        let mut file = RotatingFile { path: path.to_owned(), bytes_max, bytes: 0, file: None };
        file.reopen()?;
        Ok(file)
    }

    fn reopen(&mut self) -> io::Result<&mut File> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        Ok(self.file.insert(file))
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes > 0 && self.bytes.saturating_add(bytes.len() as u64) > self.bytes_max {
            self.rotate()?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.reopen()?,
        };
        match file.write(bytes) {
            Ok(count) => {
                self.bytes += count as u64;
                Ok(count)
            }
            Err(error) => {
                self.file = None;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "dropped").unwrap()
    }

    fn split(chunks: &[&str]) -> Vec<String> {
        let mut splitter = Splitter::new("x | ".to_owned());
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk.as_bytes(), |line| lines.push(String::from_utf8(line).unwrap()));
        }
        splitter.finish(|line| lines.push(String::from_utf8(line).unwrap()));
        lines
    }

    #[test]
    fn lines_are_prefixed_wherever_the_chunks_end() {
        let expected = ["x | one\n", "x | \n", "x | two\n"];
        assert_eq!(split(&["one\n\ntwo\n"]), expected);
        assert_eq!(split(&["on", "e\r\n", "\n", "two"]), expected);
        assert_eq!(split(&[""]), [""; 0]);
    }

    #[test]
    fn a_long_line_is_cut() {
        let long = "y".repeat(2 * LINE_BYTES_MAX + 1);
        let lines = split(&[&long[..100], &long[100..], "\nz"]);
        let lengths: Vec<usize> = lines.iter().map(|line| line.len() - "x | \n".len()).collect();
        assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX, 1, 1]);
    }

    #[test]
    fn a_file_keeps_its_bound_and_one_predecessor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let sink = Sink::start(Target::File(path.clone(), 100)).unwrap();
        for number in 0..100 {
            sink.put(format!("line {number:04}\n").into_bytes(), &counter());
        }
        sink.close(Duration::from_secs(30));
        let new = std::fs::read_to_string(&path).unwrap();
        let old = std::fs::read_to_string(directory.path().join("log.1")).unwrap();
        assert!(new.ends_with("line 0099\n"), "{new}");
        let both = old + &new;
        assert!(both.len() > 100 && both.len() <= 1100, "{}", both.len());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_target_that_blocks_costs_lines_but_never_the_child() {
        let (release, released) = channel::<()>();
        let sink = Sink::with_thread(move |lines| {
            let _ = released.recv();
            drop(lines);
        })
        .unwrap();
        let dropped = counter();
        for _ in 0..QUEUE_LINES + 10 {
            sink.put(b"x\n".to_vec(), &dropped);
        }
        assert_eq!(dropped.get(), 10);
        drop(release);
        sink.close(Duration::from_secs(30));
    }
}

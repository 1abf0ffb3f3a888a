//! Where the access log goes: lines that are formatted already, written by a thread of their own.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Duration;

use prometheus::{IntCounter, Registry};

use super::{Error, sink::Sink};

/// How much may wait to be written: about 8,000 lines of 500 bytes, a second of a fast node.
const CAPACITY_BYTES: usize = 4 << 20;

/// Where the lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Standard output: events go to standard error, so the two can be told apart.
    #[default]
    Stdout,
    /// A file, appended to and made if it is missing.
    File(PathBuf),
}

/// The access log. A clone is another handle to the same log; the last one dropped lets the thread end.
#[derive(Clone)]
pub struct Writer(Sink);

impl Writer {
    /// Opens the target, starts the thread, and registers `forefront_telemetry_access_lines_dropped_total`.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Thread`], or [`Error::Register`] when there is one in this registry already.
    pub fn open(target: &Target, registry: &Registry) -> Result<Writer, Error> {
        let output: Box<dyn std::io::Write + Send> = match target {
            // Not `std::io::stdout()`: its lock and its line buffer would only add copies and writes.
            Target::Stdout => Box::new(
                super::log::raw(&std::io::stdout())
                    .map_err(|source| Error::Open { path: PathBuf::from("/dev/stdout"), source })?,
            ),
            Target::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                Box::new(file.map_err(|source| Error::Open { path: path.clone(), source })?)
            }
        };
        let dropped = IntCounter::new(
            "forefront_telemetry_access_lines_dropped_total",
            "Access log lines dropped because their reader was too slow or gone.",
        )
        .map_err(Error::Register)?;
        registry.register(Box::new(dropped.clone())).map_err(Error::Register)?;
        Sink::start("access-log", output, CAPACITY_BYTES, dropped).map(Writer).map_err(Error::Thread)
    }

    /// Takes one line (a line feed is added if it lacks one). Copies it into a shared buffer under a short lock;
    /// never waits for the output, and drops and counts the line when 4 MiB are waiting already.
    pub fn line(&self, line: &[u8]) {
        self.0.line(line);
    }

    /// Waits until everything taken so far is written, at most `timeout`; true if it was. For the end of a
    /// process: lines appear within 50 ms by themselves.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.0.flush(timeout)
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.0.dropped().get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        for line in ["one", "two\n"] {
            let writer = Writer::open(&Target::File(path.clone()), &Registry::new()).unwrap();
            writer.line(line.as_bytes());
            assert!(writer.flush(Duration::from_secs(20)));
            assert_eq!(writer.dropped(), 0);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let target = Target::File(PathBuf::from("/nowhere/access.log"));
        let error = Writer::open(&target, &Registry::new()).err().unwrap();
        assert!(error.to_string().contains("/nowhere/access.log"), "{error}");
    }
}

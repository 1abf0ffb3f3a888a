//! The service's own log: JSON lines at debug level, growing fast and never rotated by the service.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Where the lines go. Lines that cannot be written (a full disk, a closed pipe) are lost, as with the real one.
#[derive(Debug)]
pub enum Log {
    None,
    Stdout,
    File(File),
}

/// The fields of a line after the fixed ones; values are JSON texts.
type Field<'a> = (&'a str, String);

/// How often the chatter about database nodes is written (invented: it gives about 70 MB a day at rest).
const CHATTER: Duration = Duration::from_secs(1);

impl Log {
    /// Opens the file for appending. The directory is not made: the real service does not either.
    pub fn open(path: &Path) -> std::io::Result<Log> {
        Ok(Log::File(OpenOptions::new().append(true).create(true).open(path)?))
    }

    /// One line for a finished request.
    pub fn request(&self, url_path: &str, duration: Duration) {
        self.write("server/middleware.go:57", "request completed", || {
            vec![
                ("url_path", serde_json::Value::from(url_path).to_string()),
                ("event_duration", duration.as_nanos().to_string()),
            ]
        });
    }

    /// One line without fields of its own.
    pub fn note(&self, caller: &str, message: &str) {
        self.write(caller, message, Vec::new);
    }

    /// Writes the lines about nodes for ever.
    pub async fn chatter(&self) {
        if matches!(self, Log::None) {
            return;
        }
        let mut ticks = tokio::time::interval(CHATTER);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.note("hasql/cluster.go:201", "Started updating nodes.");
            self.note("hasql/cluster.go:223", "Node is alive.");
            self.note("hasql/cluster.go:240", "Notified all waiters.");
            self.note("core/core.go:88", "I am alive.");
        }
    }

    fn write<'a>(&self, caller: &str, message: &str, fields: impl FnOnce() -> Vec<Field<'a>>) {
        let mut out: &mut dyn Write = match self {
            Log::None => return,
            Log::Stdout => &mut std::io::stdout().lock(),
            // Appending writes of one line each do not mix, so no lock is needed.
            Log::File(file) => &mut &*file,
        };
        let line = line(SystemTime::now(), caller, message, &fields());
        let _ = Write::write_all(&mut out, line.as_bytes());
    }
}

fn line(now: SystemTime, caller: &str, message: &str, fields: &[Field]) -> String {
    use std::fmt::Write;
    let mut line = format!(
        r#"{{"level":"debug","timestamp":"{}","caller":"{caller}","msg":"{message}","app_name":"bingo","app_version":"{}""#,
        humantime::format_rfc3339_millis(now),
        super::VERSION,
    );
    for (name, value) in fields {
        // Writing to a String cannot fail.
        let _ = write!(line, r#","{name}":{value}"#);
    }
    line.push_str("}\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_with_its_fields_in_order() {
        let text =
            line(SystemTime::UNIX_EPOCH, "a.go:1", "request completed", &[("url_path", r#""/\"x""#.into())]);
        assert!(text.starts_with(
            r#"{"level":"debug","timestamp":"1970-01-01T00:00:00.000Z","caller":"a.go:1","msg":"request completed","app_name":"bingo","#
        ));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["url_path"], "/\"x");
    }

    #[test]
    fn the_directory_is_not_made_and_lines_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Log::open(&dir.path().join("missing/main.log")).is_err());
        let path = dir.path().join("main.log");
        for _ in 0..2 {
            Log::open(&path).unwrap().request("/a\"b", Duration::from_millis(3));
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&value["url_path"], &value["event_duration"]), (&"/a\"b".into(), &3_000_000.into()));
        }
    }
}

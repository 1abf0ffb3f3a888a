//! How far each shard's journal is known to have come, kept outside of the engine.
//!
//! The engine takes damage in the middle of its log for a torn end if it happens to look like one (a page of zeros does), and
//! opens with a shorter log. What was appended at least [`INTERVAL`] before is then seen to be missing. The file is written
//! without waiting for the disk: an older one, or none, only sees less.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const INTERVAL: Duration = Duration::from_secs(1);

pub(in crate::billing::journal) struct Heads {
    file: PathBuf,
    noted_at: Option<Duration>,
}

impl Heads {
    /// And what was noted last, by shard: nothing if there is no whole note.
    pub(in crate::billing::journal) fn open(directory: &Path) -> (Heads, Vec<u64>) {
        let file = directory.join("heads");
        let noted = std::fs::read_to_string(&file).ok().and_then(|text| read(&text)).unwrap_or_default();
        (Heads { file, noted_at: None }, noted)
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.noted_at.is_none_or(|at| now.saturating_sub(at) >= INTERVAL)
    }

    /// `heads` are durable already.
    pub(in crate::billing::journal) fn note(&mut self, heads: &[u64], now: Duration) -> io::Result<()> {
        self.noted_at = Some(now);
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, written(heads))?;
        std::fs::rename(fresh, &self.file)
    }
}

/// A line for each shard, and one with the checksum of those before.
fn written(heads: &[u64]) -> String {
    let mut text = String::new();
    for (shard, head) in heads.iter().enumerate() {
        // To a string; it cannot fail.
        let _ = writeln!(text, "{shard} {head}");
    }
    let sum = crc32fast::hash(text.as_bytes());
    text + &format!("crc32 {sum:08x}\n")
}

fn read(text: &str) -> Option<Vec<u64>> {
    let at = text.rfind("crc32 ")?;
    let lines = &text[..at];
    if text[at..] != format!("crc32 {:08x}\n", crc32fast::hash(lines.as_bytes())) {
        return None;
    }
    lines.lines().map(|line| line.split_once(' ')?.1.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_says_nothing() {
        let text = written(&[7, 0, 12]);
        assert_eq!(read(&text), Some(vec![7, 0, 12]));
        for end in 0..text.len() {
            assert_eq!(read(&text[..end]), None, "{:?}", &text[..end]);
        }
        assert_eq!(read(&text.replace('7', "8")), None);
    }
}

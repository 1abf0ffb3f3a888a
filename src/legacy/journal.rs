//! The store file: an append-only list of changes that several processes share, so that they see one database as the
//! real ones share PostgreSQL.
//!
//! Layout, little-endian: a header of 16 bytes (magic, seed), then records of 32 bytes (id u64, start i64, customer u32,
//! movie u32, kind u32, checksum u32). Appends happen under an exclusive `flock`; a reader compares the file's length with what
//! it has read and takes the lock only to read more. Nothing is synced to the disk: it outlives the processes, not the
//! machine.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::calendar::Timestamp;
use super::data::Session;
use super::overlay::{Change, Overlay};

const MAGIC: [u8; 8] = *b"ffleg01\n";
const HEADER: u64 = 16;
const RECORD: usize = 32;

/// Changes a file may hold, 64 MB: enough for days of tests, and a runaway loop cannot fill the disk.
const RECORDS_MAX: u64 = 2_000_000;

/// How long to wait for the lock. It is held for microseconds; a holder that was frozen (SIGSTOP) in between must not
/// hang the other process for ever.
const LOCK_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("the store file {path} could not be {action}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("the store file {0} belongs to another seed or is no store file")]
    Foreign(PathBuf),
    #[error("the store file {path} is damaged at byte {offset}")]
    Corrupt { path: PathBuf, offset: u64 },
    #[error("the store file {0} is locked by another process for too long")]
    Locked(PathBuf),
    #[error("the store file {0} is full")]
    Full(PathBuf),
}

/// Order of calls: [`Journal::lock`], then on the guard [`Guard::catch_up`], then [`Guard::append`]; or
/// [`Journal::catch_up`] alone to read.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// Up to here the file has been applied.
    offset: u64,
}

impl Journal {
    /// Opens the file, or makes it. The changes in it are not read yet.
    ///
    /// # Errors
    /// When it cannot be opened, or was made with another seed.
    pub fn open(path: &Path, seed: u64) -> Result<Journal, JournalError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|source| JournalError::Io { path: path.to_owned(), action: "opened", source })?;
        let mut journal = Journal { file, path: path.to_owned(), offset: HEADER };
        let guard = journal.lock()?;
        guard.journal.header(seed)?;
        drop(guard);
        Ok(journal)
    }

    /// Checks the header, or writes it into a file that has none (a new one, or one whose maker died).
    fn header(&self, seed: u64) -> Result<(), JournalError> {
        let mut expected = [0; HEADER as usize];
        expected[..8].copy_from_slice(&MAGIC);
        expected[8..].copy_from_slice(&seed.to_le_bytes());
        if self.length()? < HEADER {
            return self.file.write_all_at(&expected, 0).map_err(|error| self.io("written", error));
        }
        let mut found = [0; HEADER as usize];
        self.file.read_exact_at(&mut found, 0).map_err(|error| self.io("read", error))?;
        if found == expected { Ok(()) } else { Err(JournalError::Foreign(self.path.clone())) }
    }

    /// Applies what other processes have appended. Costs one `fstat` when that is nothing.
    pub fn catch_up(&mut self, overlay: &mut Overlay) -> Result<(), JournalError> {
        if self.length()? == self.offset {
            return Ok(());
        }
        self.lock()?.catch_up(overlay)
    }

    /// Takes the lock over all processes. Blocks for at most [`LOCK_WAIT`].
    pub fn lock(&mut self) -> Result<Guard<'_>, JournalError> {
        let give_up = Instant::now() + LOCK_WAIT;
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(Guard { journal: self }),
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Err(JournalError::Locked(self.path.clone())),
                Err(TryLockError::Error(error)) => return Err(self.io("locked", error)),
            }
        }
    }

    fn length(&self) -> Result<u64, JournalError> {
        Ok(self.file.metadata().map_err(|error| self.io("read", error))?.len())
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), action, source }
    }
}

/// The lock, given back when dropped.
#[derive(Debug)]
pub struct Guard<'a> {
    journal: &'a mut Journal,
}

impl Guard<'_> {
    /// Applies what is new. A last record that is cut short or wrong was torn by a writer that died: nobody has
    /// seen it (no writer is at work under the lock), so it is cut off.
    pub fn catch_up(&mut self, overlay: &mut Overlay) -> Result<(), JournalError> {
        let length = self.journal.length()?;
        let mut buffer = vec![0; RECORD * 1_024];
        while length.saturating_sub(self.journal.offset) >= RECORD as u64 {
            let rest = length - self.journal.offset;
            let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len()) / RECORD * RECORD;
            let chunk = &mut buffer[..wanted];
            self.journal
                .file
                .read_exact_at(chunk, self.journal.offset)
                .map_err(|e| self.journal.io("read", e))?;
            for record in chunk.as_chunks::<RECORD>().0 {
                let Some(change) = decode(record) else { return self.torn(length) };
                overlay.apply(change);
                self.journal.offset += RECORD as u64;
            }
        }
        if length == self.journal.offset { Ok(()) } else { self.torn(length) }
    }

    fn torn(&mut self, length: u64) -> Result<(), JournalError> {
        let offset = self.journal.offset;
        if length < offset || length - offset > RECORD as u64 {
            return Err(JournalError::Corrupt { path: self.journal.path.clone(), offset });
        }
        self.journal.file.set_len(offset).map_err(|error| self.journal.io("written", error))
    }

    /// Appends a change. [`Guard::catch_up`] comes first, under the same lock; the caller applies the change itself.
    pub fn append(&mut self, change: Change) -> Result<(), JournalError> {
        let offset = self.journal.offset;
        if (offset - HEADER) / RECORD as u64 >= RECORDS_MAX {
            return Err(JournalError::Full(self.journal.path.clone()));
        }
        self.journal.file.write_all_at(&encode(change), offset).map_err(|e| self.journal.io("written", e))?;
        self.journal.offset = offset + RECORD as u64;
        Ok(())
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Fails only for a descriptor that is no file; the lock ends with the process at the latest.
        let _ = self.journal.file.unlock();
    }
}

const INSERT: u32 = 1;
const DELETE: u32 = 2;

fn encode(change: Change) -> [u8; RECORD] {
    let (session, kind) = match change {
        Change::Insert(session) => (session, INSERT),
        Change::Delete(id) => (Session { id, start_time: Timestamp(0), customer_id: 0, movie_id: 0 }, DELETE),
    };
    let mut record = [0; RECORD];
    record[0..8].copy_from_slice(&session.id.to_le_bytes());
    record[8..16].copy_from_slice(&session.start_time.0.to_le_bytes());
    record[16..20].copy_from_slice(&session.customer_id.to_le_bytes());
    record[20..24].copy_from_slice(&session.movie_id.to_le_bytes());
    record[24..28].copy_from_slice(&kind.to_le_bytes());
    let sum = checksum(&record[..28]);
    record[28..].copy_from_slice(&sum.to_le_bytes());
    record
}

fn decode(record: &[u8; RECORD]) -> Option<Change> {
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if word(28) != checksum(&record[..28]) {
        return None;
    }
    let session = Session {
        id: long(0),
        start_time: Timestamp(long(8) as i64),
        customer_id: word(16),
        movie_id: word(20),
    };
    match word(24) {
        INSERT => Some(Change::Insert(session)),
        DELETE => Some(Change::Delete(session.id)),
        _ => None,
    }
}

/// FNV-1a, 32 bits: against torn writes, not against anyone.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811C_9DC5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_any_flipped_byte_is_noticed() {
        let session = Session { id: u64::MAX - 1, start_time: Timestamp(-5), customer_id: 7, movie_id: 9 };
        for change in [Change::Insert(session), Change::Delete(3)] {
            let record = encode(change);
            assert_eq!(decode(&record), Some(change));
            for byte in 0..RECORD {
                let mut damaged = record;
                damaged[byte] ^= 0x40;
                assert_eq!(decode(&damaged), None, "byte {byte}");
            }
        }
        assert_eq!(decode(&[0; RECORD]), None, "a hole of zeros is no record");
    }
}

//! The database the endpoints use: prepared rows, and over them the changes, in memory or in a file that several
//! processes share.

use std::path::PathBuf;
use std::str::FromStr;

use parking_lot::Mutex;

use super::calendar::Timestamp;
use super::data::{Data, Session};
use super::journal::{Journal, JournalError};
use super::overlay::{Change, Overlay, Snapshot};

/// Where changes are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process: another one does not see them, and they end with it.
    Memory,
    /// In a file that all processes of the test share.
    File(PathBuf),
    /// The real thing. Not built in this version.
    Postgres,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store postgres is not built in this version: use memory or file:PATH")]
    PostgresNotBuilt,
    #[error("too many inserted sessions")]
    Full,
    #[error("no such customer")]
    NoCustomer,
    #[error("no such movie")]
    NoMovie,
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Inserted rows that may exist at once, about 50 MB.
const INSERTED_MAX: usize = 1_000_000;

/// A row to insert.
#[derive(Clone, Copy, Debug)]
pub struct NewSession {
    pub start_time: Timestamp,
    pub customer_id: i64,
    pub movie_id: i64,
}

/// Its calls may block for a moment (file, lock of another process): not for an async worker.
#[derive(Debug)]
pub struct Store {
    data: Data,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    overlay: Overlay,
    journal: Option<Journal>,
}

impl Store {
    /// # Errors
    /// When the file cannot be used, or PostgreSQL is asked for.
    pub fn open(kind: &StoreKind, data: &Data) -> Result<Store, StoreError> {
        let mut overlay = Overlay::new(data);
        let journal = match kind {
            StoreKind::Memory => None,
            StoreKind::File(path) => {
                let mut journal = Journal::open(path, data.seed())?;
                journal.catch_up(&mut overlay)?;
                Some(journal)
            }
            StoreKind::Postgres => return Err(StoreError::PostgresNotBuilt),
        };
        Ok(Store { data: *data, state: Mutex::new(State { overlay, journal }) })
    }

    pub fn session(&self, id: u64) -> Result<Option<Session>, StoreError> {
        let state = &mut *self.state.lock();
        state.catch_up()?;
        Ok(state.overlay.session(id))
    }

    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let state = &mut *self.state.lock();
        state.catch_up()?;
        Ok(state.overlay.snapshot())
    }

    /// Inserts a row and gives it the next id, unique over all processes that share the store.
    pub fn insert(&self, row: NewSession) -> Result<Session, StoreError> {
        // The real tables have no foreign keys that are known of; refusing is invented, and keeps the join total.
        let customer_id =
            known(row.customer_id, self.data.sizes().customers).ok_or(StoreError::NoCustomer)?;
        let movie_id = known(row.movie_id, self.data.sizes().movies).ok_or(StoreError::NoMovie)?;
        let make = |overlay: &Overlay| {
            if overlay.inserted() >= INSERTED_MAX {
                return Err(StoreError::Full);
            }
            let id = overlay.next_id();
            Ok(Session { id, start_time: row.start_time, customer_id, movie_id })
        };
        let state = &mut *self.state.lock();
        let Some(journal) = &mut state.journal else {
            let session = make(&state.overlay)?;
            state.overlay.apply(Change::Insert(session));
            return Ok(session);
        };
        let mut guard = journal.lock()?;
        guard.catch_up(&mut state.overlay)?;
        let session = make(&state.overlay)?;
        guard.append(Change::Insert(session))?;
        state.overlay.apply(Change::Insert(session));
        Ok(session)
    }

    /// Deletes a row; false when there is none (any more).
    pub fn delete(&self, id: u64) -> Result<bool, StoreError> {
        let state = &mut *self.state.lock();
        if let Some(journal) = &mut state.journal {
            let mut guard = journal.lock()?;
            guard.catch_up(&mut state.overlay)?;
            if state.overlay.session(id).is_none() {
                return Ok(false);
            }
            guard.append(Change::Delete(id))?;
        } else if state.overlay.session(id).is_none() {
            return Ok(false);
        }
        state.overlay.apply(Change::Delete(id));
        Ok(true)
    }
}

impl State {
    fn catch_up(&mut self) -> Result<(), StoreError> {
        if let Some(journal) = &mut self.journal {
            journal.catch_up(&mut self.overlay)?;
        }
        Ok(())
    }
}

fn known(id: i64, rows: u32) -> Option<u32> {
    u32::try_from(id).ok().filter(|id| (1..=rows).contains(id))
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> Result<StoreKind, String> {
        match text {
            "memory" => Ok(StoreKind::Memory),
            "postgres" => Ok(StoreKind::Postgres),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(StoreKind::File(PathBuf::from(path))),
                _ => Err("expected memory, file:PATH or postgres".to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::super::data::Sizes;
    use super::*;

    const SMALL: Sizes = Sizes { movies: 10, customers: 10, sessions: 100 };
    const ROW: NewSession = NewSession { start_time: Timestamp(1), customer_id: 2, movie_id: 3 };

    fn small() -> Data {
        Data::new(1, SMALL)
    }

    fn file(dir: &tempfile::TempDir) -> StoreKind {
        StoreKind::File(dir.path().join("sessions"))
    }

    #[test]
    fn a_row_is_inserted_read_deleted_and_gone() {
        let store = Store::open(&StoreKind::Memory, &small()).unwrap();
        let session = store.insert(ROW).unwrap();
        assert_eq!(session.id, 101);
        assert_eq!(store.session(101).unwrap(), Some(session));
        assert!(store.delete(101).unwrap());
        assert!(!store.delete(101).unwrap());
        assert_eq!(store.session(101).unwrap(), None);
        assert_eq!(store.insert(ROW).unwrap().id, 102, "an id never comes back");
        assert!(store.delete(5).unwrap());
        assert_eq!(store.session(5).unwrap(), None);
        assert!(store.snapshot().unwrap().is_deleted(5));
        assert!(!store.delete(u64::MAX).unwrap());
    }

    #[test]
    fn a_row_of_nobody_is_refused() {
        let store = Store::open(&StoreKind::Memory, &small()).unwrap();
        for customer_id in [0, -1, 11, i64::MAX] {
            assert!(matches!(store.insert(NewSession { customer_id, ..ROW }), Err(StoreError::NoCustomer)));
        }
        assert!(matches!(store.insert(NewSession { movie_id: 11, ..ROW }), Err(StoreError::NoMovie)));
    }

    #[test]
    fn two_processes_with_one_file_see_each_others_changes() {
        let dir = tempfile::tempdir().unwrap();
        let one = Store::open(&file(&dir), &small()).unwrap();
        let two = Store::open(&file(&dir), &small()).unwrap();
        let session = one.insert(ROW).unwrap();
        assert_eq!(two.session(session.id).unwrap(), Some(session));
        assert!(two.delete(session.id).unwrap());
        assert_eq!(one.session(session.id).unwrap(), None);
        assert!(!one.delete(session.id).unwrap());
        assert!(two.delete(7).unwrap());
        assert!(one.snapshot().unwrap().is_deleted(7));
        let later = Store::open(&file(&dir), &small()).unwrap();
        assert_eq!(later.session(7).unwrap(), None);
        assert_eq!(later.insert(ROW).unwrap().id, session.id + 1);
    }

    #[test]
    fn ids_are_unique_over_processes_that_insert_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let stores: Vec<_> = (0..4).map(|_| Arc::new(Store::open(&file(&dir), &small()).unwrap())).collect();
        let threads: Vec<_> = stores
            .iter()
            .map(|store| {
                let store = Arc::clone(store);
                std::thread::spawn(move || (0..50).map(|_| store.insert(ROW).unwrap().id).collect::<Vec<_>>())
            })
            .collect();
        let mut ids: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (101..301).collect::<Vec<_>>());
        assert!(stores.iter().all(|store| store.snapshot().unwrap().inserted().len() == 200));
    }

    #[test]
    fn a_torn_tail_is_cut_off_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sessions");
        let alive = Store::open(&file(&dir), &small()).unwrap();
        let session = alive.insert(ROW).unwrap();
        for torn in [&[1_u8, 2, 3][..], &[0; 32]] {
            std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(torn).unwrap();
            let later = Store::open(&file(&dir), &small()).unwrap();
            assert_eq!(later.session(session.id).unwrap(), Some(session));
            let next = later.insert(ROW).unwrap();
            assert_eq!(alive.session(next.id).unwrap(), Some(next));
        }
    }

    #[test]
    fn damage_in_the_middle_and_a_foreign_file_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sessions");
        let store = Store::open(&file(&dir), &small()).unwrap();
        store.insert(ROW).unwrap();
        store.insert(ROW).unwrap();
        let other = Store::open(&file(&dir), &Data::new(2, SMALL));
        assert!(matches!(other, Err(StoreError::Journal(JournalError::Foreign(_)))));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let damaged = Store::open(&file(&dir), &small());
        assert!(matches!(damaged, Err(StoreError::Journal(JournalError::Corrupt { offset: 16, .. }))));
    }

    #[test]
    fn kinds_are_read() {
        assert_eq!("memory".parse(), Ok(StoreKind::Memory));
        assert_eq!("file:/a b".parse(), Ok(StoreKind::File("/a b".into())));
        assert!("file:".parse::<StoreKind>().is_err() && "x".parse::<StoreKind>().is_err());
        assert!(matches!(Store::open(&StoreKind::Postgres, &small()), Err(StoreError::PostgresNotBuilt)));
    }
}

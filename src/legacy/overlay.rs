//! What was inserted and deleted since the database was prepared. Pure.

use std::collections::BTreeMap;

use super::data::{Data, Session};

/// One change of `sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Insert(Session),
    Delete(u64),
}

/// The changes in effect. Memory: one bit per prepared row, about 50 bytes per inserted one (the store bounds them).
#[derive(Debug)]
pub struct Overlay {
    data: Data,
    inserted: BTreeMap<u64, Session>,
    /// One bit per prepared session; a set one is deleted.
    deleted: Vec<u64>,
    next_id: u64,
}

/// The changes as they were at one moment, for a list to work on.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    inserted: Vec<Session>,
    deleted: Vec<u64>,
}

impl Overlay {
    pub fn new(data: &Data) -> Overlay {
        let sessions = data.sizes().sessions;
        Overlay {
            data: *data,
            inserted: BTreeMap::new(),
            deleted: vec![0; sessions as usize / 64 + 1],
            next_id: u64::from(sessions) + 1,
        }
    }

    /// The id the next inserted row gets. Like that of a sequence, it never comes back after a deletion.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Inserted rows that still exist.
    pub fn inserted(&self) -> usize {
        self.inserted.len()
    }

    pub fn session(&self, id: u64) -> Option<Session> {
        if let Some(session) = self.inserted.get(&id) {
            return Some(*session);
        }
        if is_set(&self.deleted, id) { None } else { self.data.session(id) }
    }

    /// Puts a change into effect. Changes of one history, applied in one order, give one state in every process.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Insert(session) => {
                self.next_id = self.next_id.max(session.id.saturating_add(1));
                self.inserted.insert(session.id, session);
            }
            Change::Delete(id) => {
                if self.inserted.remove(&id).is_none() && self.data.session(id).is_some() {
                    self.deleted[(id / 64) as usize] |= 1 << (id % 64);
                }
            }
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot { inserted: self.inserted.values().copied().collect(), deleted: self.deleted.clone() }
    }
}

impl Snapshot {
    /// Inserted rows, by id.
    pub fn inserted(&self) -> &[Session] {
        &self.inserted
    }

    pub fn is_deleted(&self, id: u64) -> bool {
        is_set(&self.deleted, id)
    }
}

#[inline]
fn is_set(bits: &[u64], id: u64) -> bool {
    usize::try_from(id / 64)
        .ok()
        .and_then(|word| bits.get(word))
        .is_some_and(|word| word >> (id % 64) & 1 == 1)
}

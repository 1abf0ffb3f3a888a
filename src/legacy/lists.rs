//! The three lists: found in a blocking thread, then written in chunks as the client takes them. A client that leaves
//! ends the work, since nothing is made ahead of what was asked for.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::data::{Data, Session};
use super::faults::Faults;
use super::order::{Prefix, Ranks};
use super::store::{Store, StoreError};

/// Rows of a list at most.
pub const ROWS_MAX: usize = 100_000;

/// The hard limit inside of the service, on the query and the wait for it. Sending the rows is not bounded.
pub const QUERY_LIMIT: Duration = Duration::from_secs(20);

/// Lists at work at once; others wait for their turn, as for a database connection (invented). Each holds at most
/// 2.4 MB of row references.
const AT_ONCE: usize = 32;

/// A chunk is sent once it has grown past this.
const CHUNK_BYTES: usize = 32 << 10;

#[derive(Clone, Copy, Debug)]
pub enum List {
    Movies,
    Customers,
    Sessions,
}

impl List {
    /// What the database needs before the first row, beside the search itself (invented).
    fn query_time(self) -> Duration {
        match self {
            List::Movies => Duration::from_millis(60),
            List::Customers => Duration::from_millis(150),
            List::Sessions => Duration::from_millis(600),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("the query took too long")]
    TooLong,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the query broke off")]
    Broken,
}

/// What lists need beside the rows. Made when it is first asked for, and then for all, whoever leaves meanwhile.
#[derive(Debug, Default)]
struct Index {
    ranks: OnceLock<Ranks>,
    prefix: OnceLock<Prefix>,
}

impl Index {
    fn ranks(&self, data: &Data) -> &Ranks {
        self.ranks.get_or_init(|| Ranks::build(data))
    }

    fn prefix(&self, data: &Data) -> &Prefix {
        self.prefix.get_or_init(|| Prefix::build(data, self.ranks(data), ROWS_MAX))
    }
}

/// Makes lists.
#[derive(Debug)]
pub struct Lists {
    data: Data,
    store: Arc<Store>,
    faults: Arc<Faults>,
    index: Arc<Index>,
    turns: Arc<Semaphore>,
}

impl Lists {
    pub fn new(data: Data, store: Arc<Store>, faults: Arc<Faults>) -> Lists {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Lists { data, store, faults, index: Arc::default(), turns }
    }

    /// The body of a list: one JSON array, streamed.
    pub async fn body(&self, list: List) -> Result<Body, ListError> {
        let found = async {
            // The semaphore is never closed.
            let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| ListError::Broken)?;
            let (rows, ()) = tokio::join!(self.find(list), tokio::time::sleep(list.query_time()));
            Ok::<_, ListError>((rows?, turn))
        };
        let (rows, turn) =
            tokio::time::timeout(QUERY_LIMIT, found).await.map_err(|_| ListError::TooLong)??;
        let faults = Arc::clone(&self.faults);
        let writer = Writer { data: self.data, rows, next: 0, done: false, _turn: turn };
        Ok(Body::from_stream(futures::stream::unfold((writer, faults), async |(mut writer, faults)| {
            faults.unhung().await;
            let chunk = writer.chunk()?;
            Some((Ok::<_, serde_json::Error>(chunk), (writer, faults)))
        })))
    }

    async fn find(&self, list: List) -> Result<Rows, ListError> {
        let (data, store, index) = (self.data, Arc::clone(&self.store), Arc::clone(&self.index));
        let find = move || {
            Ok(match list {
                // Movies by year, name, id and customers by id: not reported, invented.
                List::Movies => {
                    Rows::Movies(index.ranks(&data).movies().iter().copied().take(ROWS_MAX).collect())
                }
                List::Customers => Rows::Customers(data.sizes().customers.min(ROWS_MAX as u32)),
                List::Sessions => {
                    let (ranks, prefix) = (index.ranks(&data), index.prefix(&data));
                    Rows::Sessions(prefix.with_changes(&data, ranks, &store.snapshot()?))
                }
            })
        };
        tokio::task::spawn_blocking(find).await.map_err(|_| ListError::Broken)?
    }
}

/// References to the rows of a list, in order.
enum Rows {
    Movies(Vec<u32>),
    /// The first n.
    Customers(u32),
    Sessions(Vec<Session>),
}

/// Writes the rows, a chunk at a time.
struct Writer {
    data: Data,
    rows: Rows,
    next: usize,
    done: bool,
    _turn: OwnedSemaphorePermit,
}

impl Writer {
    /// The next piece of the array, none after its end.
    fn chunk(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut out = Vec::with_capacity(CHUNK_BYTES + 1_024);
        while out.len() < CHUNK_BYTES {
            let opening = if self.next == 0 { b'[' } else { b',' };
            let before = out.len();
            out.push(opening);
            if !self.row(&mut out) {
                // Past the last row: the separator is not wanted, except the bracket of an empty array.
                out.truncate(before);
                out.extend_from_slice(if self.next == 0 { b"[]" } else { b"]" });
                self.done = true;
                break;
            }
            self.next += 1;
        }
        Some(Bytes::from(out))
    }

    /// Writes the next row; false when there is none.
    fn row(&self, out: &mut Vec<u8>) -> bool {
        match &self.rows {
            Rows::Movies(ids) => ids.get(self.next).and_then(|&id| json(out, &self.data.movie(id)?)),
            Rows::Customers(count) if self.next < *count as usize => {
                self.data.customer(self.next as u32 + 1).and_then(|customer| json(out, &customer))
            }
            Rows::Customers(_) => None,
            Rows::Sessions(rows) => rows.get(self.next).and_then(|&row| json(out, &self.data.join(row)?)),
        }
        .is_some()
    }
}

/// Some if it could be written; rows of plain numbers and texts always can.
fn json(out: &mut Vec<u8>, row: &impl Serialize) -> Option<()> {
    serde_json::to_writer(out, row).ok()
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::super::data::Sizes;
    use super::super::dice::Dice;
    use super::super::store::StoreKind;
    use super::*;

    fn lists(sessions: u32) -> Lists {
        let data = Data::new(1, Sizes { movies: 50, customers: 50, sessions });
        let store = Arc::new(Store::open(&StoreKind::Memory, &data).unwrap());
        Lists::new(data, store, Faults::new(1, Dice::new(1)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_ends_the_work_and_gives_its_turn_back() {
        let lists = lists(1_000);
        let mut body = lists.body(List::Sessions).await.unwrap().into_data_stream();
        let chunk = body.next().await.unwrap().unwrap();
        assert!((CHUNK_BYTES..CHUNK_BYTES + 1_024).contains(&chunk.len()), "{}", chunk.len());
        assert_eq!(lists.turns.available_permits(), AT_ONCE - 1);
        drop(body);
        assert_eq!(lists.turns.available_permits(), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gets_no_turn_within_the_limit_is_refused() {
        let lists = lists(10);
        let mut bodies = Vec::new();
        for _ in 0..AT_ONCE {
            bodies.push(lists.body(List::Movies).await.unwrap());
        }
        assert!(matches!(lists.body(List::Movies).await, Err(ListError::TooLong)));
        bodies.pop();
        assert!(lists.body(List::Movies).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_a_json_array_even_when_empty() {
        for sessions in [0, 1, 2, 1_000] {
            let body = lists(sessions).body(List::Sessions).await.unwrap();
            let text = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let rows: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
            assert_eq!(rows.len(), sessions as usize);
        }
    }
}

//! The history of an account as it is shown, and as one node tells it another.

use serde::{Deserialize, Serialize};

use super::error::Problem;
use super::page::{PAGE_DEFAULT, PAGE_MAX, limit_of};
use crate::billing::domain::{EventKind, Row};
use crate::billing::journal::{Cursor, Entry, Line, LineKind};
use crate::billing::shard::History;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Page {
    pub before: Option<Cursor>,
    pub limit: usize,
}

/// Newest first; `next` is the id of the last line if there are older ones, or null: what to give as `before` for those. `behind`: something may be missing that will
/// be there in a moment.
#[derive(Debug, Serialize, Deserialize)]
pub struct HistoryBody {
    lines: Vec<LineBody>,
    next: Option<String>,
    behind: bool,
}

/// What one event did to the account.
#[derive(Debug, Serialize, Deserialize)]
struct LineBody {
    id: String,
    kind: KindBody,
    at: u64,
    amount: i64,
    charged: i64,
    balance: i64,
    velocity: i64,
    version: u32,
    key: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindBody {
    Created,
    MoneyAdded,
    Withdrawn,
    VelocityChanged,
    Depleted,
    Spared,
    Delivered,
    Carried,
}

impl Page {
    /// `before` and `limit`.
    pub fn read(query: &str) -> Result<Page, Problem> {
        let (mut before, mut limit) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let twice = match name {
                "before" => {
                    let cursor = value.parse::<Cursor>();
                    let refused = |_| {
                        Problem::malformed("before must be the id of a line, or what a page gave as next")
                    };
                    before.replace(cursor.map_err(refused)?).is_some()
                }
                "limit" => limit.replace(limit_of(value, PAGE_MAX)?).is_some(),
                _ => return Err(Problem::malformed("a history takes before and limit, nothing else")),
            };
            if twice {
                return Err(Problem::malformed(format!("{name} is given twice")));
            }
        }
        Ok(Page { before, limit: limit.unwrap_or(PAGE_DEFAULT) })
    }

    /// As another node reads it.
    pub fn query(&self) -> String {
        let Page { before, limit } = self;
        let before = before.map(|before| format!("&before={before}")).unwrap_or_default();
        format!("limit={limit}{before}")
    }
}

impl From<History> for HistoryBody {
    fn from(history: History) -> HistoryBody {
        let History { entries, next, behind } = history;
        let lines = entries.iter().filter_map(LineBody::of).collect();
        HistoryBody { lines, next: next.map(|next| next.to_string()), behind }
    }
}

impl LineBody {
    /// None for moves between shards, which no history tells.
    fn of(entry: &Entry) -> Option<LineBody> {
        let Entry { shard: _, line } = entry;
        let Line { seq: _, position: _, kind, at, amount, charged, after, key } = line;
        let Row { id: _, velocity, version, since: _, stage: _ } = after;
        let kind = match kind {
            LineKind::Event(EventKind::Created) => KindBody::Created,
            LineKind::Event(EventKind::MoneyAdded) => KindBody::MoneyAdded,
            LineKind::Event(EventKind::Withdrawn) => KindBody::Withdrawn,
            LineKind::Event(EventKind::VelocityChanged) => KindBody::VelocityChanged,
            LineKind::Event(EventKind::Depleted) => KindBody::Depleted,
            LineKind::Event(EventKind::Spared) => KindBody::Spared,
            LineKind::Event(EventKind::Delivered) => KindBody::Delivered,
            LineKind::Carried => KindBody::Carried,
            LineKind::Adopted | LineKind::Released => return None,
        };
        Some(LineBody {
            id: Cursor::from(entry).to_string(),
            kind,
            at: at.get(),
            amount: amount.get(),
            charged: charged.get(),
            balance: after.balance().get(),
            velocity: velocity.get(),
            version: *version,
            // From a door it is ASCII.
            key: key.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_is_asked_for() {
        let read = |query: &str| Page::read(query).map_err(|problem| problem.detail);
        let page = read("limit=7&before=1-20-3").unwrap();
        assert_eq!((page.limit, page.before.unwrap().to_string()), (7, "1-20-3".to_owned()));
        assert_eq!(read(&page.query()), Ok(page), "and by another node");
        assert_eq!(read(""), Ok(Page { before: None, limit: PAGE_DEFAULT }));
        for (query, piece) in [
            ("limit=0", "1 to 1000"),
            ("limit=1001", "1 to 1000"),
            ("limit=", "1 to 1000"),
            ("limit=1&limit=2", "limit is given twice"),
            ("before=1-2-3&before=1-2-3", "before is given twice"),
            ("before=", "the id of a line"),
            ("before=12", "what a page gave as next"),
            ("before=1-2f-3", "the id of a line"),
            ("after=1", "nothing else"),
        ] {
            assert!(read(query).unwrap_err().contains(piece), "{query}");
        }
    }
}

//! The ledger: a line for each event of an account, with the account as it was after it. It is derived from the batches by
//! whoever owns the shard, and read without them.
//!
//! The newest line of an account in a shard is the account; so there is no second table to be kept in step with it. What a
//! database has of all accounts besides, a [`Base`], is of some batch that is past, and never changed.

use std::fmt;
use std::str::FromStr;

use super::{Error, Journal};
use crate::billing::domain::{Event, EventKind, Key, Micros, Money, Row};

/// The batches after `after`, up to and with `through`, as the owner with this epoch has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub shard: u32,
    pub epoch: u64,
    pub after: u64,
    pub through: u64,
    /// The time of the last of them; never before that of an earlier stretch, nor before any time in its lines.
    pub at: Micros,
}

/// What one event, or one move, did to one account. (shard, account, seq, position) is its identity for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The batch.
    pub seq: u64,
    /// Within the batch: twice the command's place, and one more for a command's second event.
    pub position: u32,
    pub kind: LineKind,
    pub at: Micros,
    pub amount: Money,
    pub charged: Money,
    /// The account after it.
    pub after: Row,
    /// The command's, if it had one; of a move, which one it was.
    pub key: Option<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    Event(EventKind),
    /// The account as a snapshot had it: what was before is not in the ledger.
    Carried,
    /// The account came from another shard, where the lines before this one are: before a `Released` with the same key.
    Adopted,
    /// The account went to another shard.
    Released,
}

/// Their places are stored: only append.
const KINDS: [LineKind; 10] = [
    LineKind::Event(EventKind::Created),
    LineKind::Event(EventKind::MoneyAdded),
    LineKind::Event(EventKind::Withdrawn),
    LineKind::Event(EventKind::VelocityChanged),
    LineKind::Event(EventKind::Depleted),
    LineKind::Event(EventKind::Spared),
    LineKind::Event(EventKind::Delivered),
    LineKind::Carried,
    LineKind::Adopted,
    LineKind::Released,
];

impl LineKind {
    /// From 1.
    pub(super) fn code(self) -> u8 {
        KINDS.iter().position(|kind| *kind == self).map_or(0, |place| place as u8 + 1)
    }

    pub(super) fn from_code(code: u8) -> Option<LineKind> {
        KINDS.get(usize::from(code).checked_sub(1)?).copied()
    }
}

impl Line {
    pub fn of_event(seq: u64, position: u32, key: Option<Key>, event: &Event) -> Line {
        let Event { kind, at, amount, charged, after } = *event;
        Line { seq, position, kind: LineKind::Event(kind), at, amount, charged, after, key }
    }

    /// Of an account that came or went with its bucket, at this generation, which tells the move apart from all others.
    pub fn of_move(
        (seq, position): (u64, u32),
        kind: LineKind,
        at: Micros,
        after: Row,
        (bucket, generation): (u16, u64),
    ) -> Line {
        let key = Key::new(format!("{bucket}-{generation}").as_bytes());
        Line { key, ..Line::of_row(seq, position, kind, at, after) }
    }

    /// Of an account as it was.
    pub fn of_row(seq: u64, position: u32, kind: LineKind, at: Micros, after: Row) -> Line {
        Line { seq, position, kind, at, amount: Money::ZERO, charged: Money::ZERO, after, key: None }
    }

    /// Whether the account, in any shard, has no older one.
    pub(super) fn is_first(&self) -> bool {
        self.kind == LineKind::Event(EventKind::Created)
    }

    /// Whether the account went by it, to come by the other.
    pub(super) fn went_to(&self, adopted: &Line) -> bool {
        self.kind == LineKind::Released && self.key.is_some() && self.key == adopted.key
    }

    /// Whether it, and so all before it, are older than the last change before a move.
    pub(super) fn is_before(&self, adopted: &Line) -> bool {
        self.after.since < adopted.after.since || self.is_first()
    }
}

/// A line and the shard that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub shard: u32,
    pub line: Line,
}

/// The place of a line in the history of its account; what comes after it in a listing is older. It stays right whatever is
/// written or forgotten. Its text is the id of the line, which people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub(super) shard: u32,
    pub(super) seq: u64,
    pub(super) position: u32,
}

impl Cursor {
    /// Itself in its own shard, and the end of any other.
    pub(super) fn in_shard(self, shard: u32) -> Cursor {
        match shard == self.shard {
            true => self,
            false => Cursor { shard, seq: u64::MAX, position: u32::MAX },
        }
    }
}

impl From<&Entry> for Cursor {
    fn from(entry: &Entry) -> Cursor {
        Cursor { shard: entry.shard, seq: entry.line.seq, position: entry.line.position }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.shard, self.seq, self.position)
    }
}

/// No text that [`Cursor`] wrote.
#[derive(Debug, thiserror::Error)]
#[error("this is no cursor of a history")]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Cursor, NoCursor> {
        let mut parts = text.split('-').map(|part| {
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| part.parse::<u64>().ok()).flatten().ok_or(NoCursor)
        });
        let mut next = || parts.next().unwrap_or(Err(NoCursor));
        let (shard, seq, position) = (next()?, next()?, next()?);
        match (parts.next(), u32::try_from(shard), u32::try_from(position)) {
            (None, Ok(shard), Ok(position)) => Ok(Cursor { shard, seq, position }),
            _ => Err(NoCursor),
        }
    }
}

/// Which lines to forget: a bounded piece of a shard's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    pub shard: u32,
    /// Pages that were written whole before this time.
    pub before: Micros,
    /// From the first of these groups to the last.
    pub first: u16,
    pub last: u16,
    /// Of each group at most so many, the oldest first.
    pub pages: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub lines: u64,
    /// A group has, or may have, more than was asked for: the same is to be asked again.
    pub more: bool,
    /// There are such pages that no [`Base`] stands for yet, and so they stay.
    pub held: bool,
}

/// All accounts of some groups of a shard, as a batch left them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub shard: u32,
    pub epoch: u64,
    /// The batch. It is in the ledger.
    pub seq: u64,
    /// From the first of these groups to the last.
    pub first: u16,
    pub last: u16,
}

/// A piece of an account's history, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    pub entries: Vec<Entry>,
    /// Where to go on; None: this was all.
    pub next: Option<Cursor>,
    /// False: the shard that had the account before has not projected all of that yet, so something is left out.
    pub whole: bool,
}

impl Journal {
    /// Lines of an account that `shard` has now, before `before` or from the newest on, through every shard that had it. It
    /// costs as many pages of the account's group as it goes back, however long the history. Errors: `Unavailable`, `Corrupt`, `Damaged`.
    pub async fn history(
        &self,
        shard: u32,
        account: u64,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<History, Error> {
        let mut place = before.unwrap_or(Cursor { shard, seq: u64::MAX, position: u32::MAX });
        let mut history = History { entries: Vec::new(), next: None, whole: true };
        // One more than asked for tells whether there is more.
        let enough = limit.saturating_add(1);
        'pages: while history.entries.len() < enough {
            let wanted = enough - history.entries.len();
            let lines = self.lines(account, place, wanted).await?;
            let last = lines.len() < wanted;
            for line in lines {
                let entry = Entry { shard: place.shard, line };
                place = Cursor::from(&entry);
                match line.kind {
                    _ if line.is_first() => {
                        history.entries.push(entry);
                        break 'pages;
                    }
                    LineKind::Event(_) | LineKind::Carried => history.entries.push(entry),
                    LineKind::Released => {}
                    LineKind::Adopted => {
                        let (released, whole) = self.before_the_move(&entry).await?;
                        history.whole &= whole;
                        let Some(released) = released else { break 'pages };
                        place = released;
                        continue 'pages;
                    }
                }
            }
            if last {
                break;
            }
        }
        if history.entries.len() > limit {
            history.entries.truncate(limit);
            history.next = history.entries.last().map(Cursor::from);
        }
        Ok(history)
    }

    /// Where the account went from when it came by this line; and whether nothing is left out.
    async fn before_the_move(&self, adopted: &Entry) -> Result<(Option<Cursor>, bool), Error> {
        let Entry { line, .. } = adopted;
        if let Some(released) = self.find_released(line, Cursor::from(adopted)).await? {
            return Ok((Some(released), true));
        }
        // Forgotten, if lines of its time are, or if the shard that had it has nothing more to tell; otherwise yet to come.
        let gone = self.has_forgotten(line.after.since).await? || self.ledger_is_level().await?;
        // What came before that was said had not come when it was looked for.
        let released = self.find_released(line, Cursor::from(adopted)).await?;
        Ok((released, gone || released.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_stored_and_never_change() {
        let codes: Vec<u8> = KINDS.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(LineKind::Event(EventKind::Withdrawn).code(), 3);
        let views = [(8, LineKind::Carried), (9, LineKind::Adopted), (10, LineKind::Released)];
        assert!(views.iter().all(|(code, kind)| LineKind::from_code(*code) == Some(*kind)));
        assert!(codes.iter().all(|code| LineKind::from_code(*code).map(LineKind::code) == Some(*code)));
        assert_eq!((LineKind::from_code(0), LineKind::from_code(11)), (None, None));
    }

    #[test]
    fn only_a_cursor_is_a_cursor() {
        for cursor in [
            Cursor { shard: 0, seq: 1, position: 0 },
            Cursor { shard: u32::MAX, seq: u64::MAX, position: u32::MAX },
        ] {
            assert_eq!(cursor.to_string().parse::<Cursor>().ok(), Some(cursor));
        }
        for bad in
            ["", "1", "1-2", "1-2-3-4", "1-2-", "-1-2", "1--2", "+1-2-3", "a-1-2", "1-2-4294967296", " 1-2-3"]
        {
            assert!(bad.parse::<Cursor>().is_err(), "{bad:?}");
        }
    }
}

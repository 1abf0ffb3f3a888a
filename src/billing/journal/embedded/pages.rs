//! How a page of lines lies in the embedded ledger.

use bytes::{Buf, BufMut};

use crate::billing::domain::{Key, Micros, Money, Row, Stage, Velocity};
use crate::billing::journal::{Line, LineKind, framing};

/// Lines of a page, at most: 5 to 9 KB.
pub(super) const PAGE_LINES: usize = 64;

/// Which stage the account is in, and so what its figure is.
const OPEN: u8 = 0;
const STOPPED: u8 = 1;
const DELIVERED: u8 = 2;

/// Bytes of a line without its key: account, seq, position, kind, stage, at, amount, charged, velocity, version, since, figure,
/// remainder, the key's length.
const LINE_BYTES: usize = 8 + 8 + 4 + 1 + 1 + 8 + 8 + 8 + 8 + 4 + 8 + 8 + 4 + 1;

/// Of a page, before its lines: version, checksum, when it was written, count.
const HEAD_BYTES: usize = 1 + 4 + 8 + 2;

/// The keys come after all lines, one after the other.
pub(super) fn encode(shard: u32, group: u16, at: Micros, lines: &[&Line]) -> Vec<u8> {
    let keys = || lines.iter().map(|line| line.key.as_ref().map(Key::as_bytes).unwrap_or_default());
    let key_bytes: usize = keys().map(<[u8]>::len).sum();
    let mut page = Vec::with_capacity(HEAD_BYTES + lines.len() * LINE_BYTES + key_bytes);
    page.push(framing::VERSION);
    page.put_u32(0);
    page.put_u64(at.get());
    page.put_u16(lines.len() as u16);
    for (line, key) in lines.iter().zip(keys()) {
        put(&mut page, line, key.len() as u8);
    }
    keys().for_each(|key| page.extend_from_slice(key));
    let last = lines.last().map_or(0, |line| line.seq);
    let checksum = framing::checksum(shard, last, u64::from(group), &page[5..]);
    page[1..5].copy_from_slice(&checksum.to_be_bytes());
    page
}

fn put(page: &mut Vec<u8>, line: &Line, key_length: u8) {
    let Line { seq, position, kind, at, amount, charged, after, key: _ } = line;
    let Row { id, velocity, version, since, stage } = after;
    let (stage, figure, remainder) = match *stage {
        Stage::Open { balance, remainder } => (OPEN, balance.get(), remainder),
        Stage::Stopped { velocity } => (STOPPED, velocity.get(), 0),
        Stage::Delivered { overrun } => (DELIVERED, overrun.get(), 0),
    };
    page.put_u64(*id);
    page.put_u64(*seq);
    page.put_u32(*position);
    page.put_u8(kind.code());
    page.put_u8(stage);
    page.put_u64(at.get());
    page.put_i64(amount.get());
    page.put_i64(charged.get());
    page.put_i64(velocity.get());
    page.put_u32(*version);
    page.put_u64(since.get());
    page.put_i64(figure);
    page.put_u32(remainder);
    page.put_u8(key_length);
}

/// A stored page that is what was written.
pub(super) struct Page<'a> {
    /// When it was written.
    pub(super) at: Micros,
    lines: &'a [u8],
    keys: &'a [u8],
}

impl<'a> Page<'a> {
    pub(super) fn read(shard: u32, group: u16, last_seq: u64, stored: &'a [u8]) -> Result<Page<'a>, String> {
        let mut rest = framing::unframed(stored)?;
        let written = rest.try_get_u32().map_err(short)?;
        framing::compare(written, framing::checksum(shard, last_seq, u64::from(group), rest))?;
        let at = Micros::new(rest.try_get_u64().map_err(short)?);
        let bytes = usize::from(rest.try_get_u16().map_err(short)?) * LINE_BYTES;
        let (lines, keys) = rest.split_at_checked(bytes).ok_or("it is cut off")?;
        Ok(Page { at, lines, keys })
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len() / LINE_BYTES
    }

    /// Those of one account, or all, in their order.
    pub(super) fn lines(&self, account: Option<u64>) -> Result<Vec<Line>, String> {
        let mut keys = self.keys;
        let mut found = Vec::new();
        for line in self.lines.chunks_exact(LINE_BYTES) {
            let length = line.last().copied().map_or(0, usize::from);
            let (key, later) = keys.split_at_checked(length).ok_or("a key is cut off")?;
            keys = later;
            if account.is_none_or(|account| line.starts_with(&account.to_be_bytes())) {
                found.push(parse(line, key)?);
            }
        }
        Ok(found)
    }
}

fn parse(mut line: &[u8], key: &[u8]) -> Result<Line, String> {
    let rest = &mut line;
    let id = rest.try_get_u64().map_err(short)?;
    let seq = rest.try_get_u64().map_err(short)?;
    let position = rest.try_get_u32().map_err(short)?;
    let kind = rest.try_get_u8().map_err(short)?;
    let kind = LineKind::from_code(kind).ok_or_else(|| format!("kind {kind} is not known here"))?;
    let stage = rest.try_get_u8().map_err(short)?;
    let at = Micros::new(rest.try_get_u64().map_err(short)?);
    let amount = Money::new(rest.try_get_i64().map_err(short)?);
    let charged = Money::new(rest.try_get_i64().map_err(short)?);
    let velocity = Velocity::new(rest.try_get_i64().map_err(short)?);
    let version = rest.try_get_u32().map_err(short)?;
    let since = Micros::new(rest.try_get_u64().map_err(short)?);
    let figure = rest.try_get_i64().map_err(short)?;
    let remainder = rest.try_get_u32().map_err(short)?;
    let stage = match stage {
        OPEN => Stage::Open { balance: Money::new(figure), remainder },
        STOPPED => Stage::Stopped { velocity: Velocity::new(figure) },
        DELIVERED => Stage::Delivered { overrun: Money::new(figure) },
        other => return Err(format!("stage {other} is not known here")),
    };
    let after = Row { id, velocity, version, since, stage };
    Ok(Line { seq, position, kind, at, amount, charged, after, key: Key::new(key) })
}

fn short(error: bytes::TryGetError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_page_is_told_and_no_panic() {
        let stage = Stage::Open { balance: Money::new(5), remainder: 6 };
        let row = |id| Row { id, velocity: Velocity::ZERO, version: 1, since: Micros::ZERO, stage };
        let lines = [1, 2, 1].map(|id| Line {
            key: Key::new(b"a key"),
            ..Line::of_row(9, 3, LineKind::Carried, Micros::new(4), row(id))
        });
        let page = encode(3, 1, Micros::new(8), &lines.each_ref());
        let read = Page::read(3, 1, 9, &page).unwrap();
        assert_eq!((read.at, read.len()), (Micros::new(8), 3));
        assert_eq!(read.lines(Some(1)).unwrap(), [lines[0], lines[2]]);
        assert_eq!(read.lines(None).unwrap(), lines);
        for place in [(4, 1, 9), (3, 2, 9), (3, 1, 8)] {
            assert!(Page::read(place.0, place.1, place.2, &page).is_err(), "{place:?}");
        }
        for at in 0..page.len() {
            assert!(Page::read(3, 1, 9, &page[..at]).is_err(), "cut at {at}");
            let mut damaged = page.clone();
            damaged[at] ^= 1;
            assert!(Page::read(3, 1, 9, &damaged).is_err(), "changed at {at}");
        }
    }
}

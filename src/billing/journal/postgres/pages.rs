//! Rows of `ledger_page` and `account_page`, as COPY takes them.
//!
//! A row holds an array for each field, uncompressed, and so must fit a page of the database: 8160 bytes with its header.
//! Where every element would be what is most common, the whole column is null: an element costs the server 25 ns.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::Type;

use super::ledger::bounded;
use crate::billing::domain::{Key, Row, Stage};
use crate::billing::journal::pages::Grouped;
use crate::billing::journal::{GROUPS, Line, Offers, group_of};

pub(super) const COPY_LINES: &str = "copy ledger_page (shard, grp, last_seq, last_position, page, last_at,
    accounts, seqs, positions, kinds, ats, amounts, balances,
    charged, velocities, versions, sinces, remainders, stopped_velocities, overruns, keys) from stdin binary";
const LINE_FIELDS: i16 = 21;

pub(super) const COPY_ACCOUNTS: &str =
    "copy account_page (shard, grp, page, seq, ids, balances, velocities, versions,
    sinces, remainders, stopped_velocities, overruns) from stdin binary";
const ACCOUNT_FIELDS: i16 = 12;

/// Elements of a row in all, as they are stored. The rest of the 8160 is for headers, of 24 bytes for each array.
const ROW_BYTES: usize = 7400;
/// Of accounts, with every array.
const ROW_ACCOUNTS: usize = ROW_BYTES / (8 * 8);

/// What is handed to the connection at once: far below a millisecond of work.
const PIECE_BYTES: usize = 64 << 10;

/// Arrays of numbers that are always there.
const FIXED: usize = 7;

/// Which others are, in a page.
const CHARGED: u8 = 1;
const VELOCITY: u8 = 2;
const VERSION: u8 = 4;
const SINCE: u8 = 8;
const REMAINDER: u8 = 16;
const STOPPED: u8 = 32;
const OVERRUN: u8 = 64;
const KEY: u8 = 128;

/// Chunks of lines, as rows, some at a time.
pub(super) struct LinePages<C> {
    shard: i64,
    at: i64,
    chunks: C,
    chunk: Option<Grouped>,
    group: u16,
    /// So many rows each group has by now. It tells apart what ends at the same place, as carried lines do.
    pages: Vec<i64>,
}

impl<C: Iterator<Item = Arc<Offers>>> LinePages<C> {
    pub(super) fn new(shard: i64, at: i64, chunks: C) -> LinePages<C> {
        LinePages { shard, at, chunks, chunk: None, group: 0, pages: vec![0; usize::from(GROUPS)] }
    }
}

impl<C: Iterator<Item = Arc<Offers>>> Iterator for LinePages<C> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::with_capacity(PIECE_BYTES + (PIECE_BYTES >> 2));
        while out.len() < PIECE_BYTES {
            if self.group == GROUPS {
                self.chunk = None;
                self.group = 0;
            }
            if self.chunk.is_none() {
                self.chunk = self.chunks.next().map(Grouped::new);
            }
            let Some(chunk) = &self.chunk else { break };
            let lines: Vec<&Line> = chunk.lines_of(self.group).collect();
            let mut rest = &lines[..];
            while !rest.is_empty() {
                let (count, uses) = fitting(rest);
                let (row, later) = rest.split_at(count);
                let page = &mut self.pages[usize::from(self.group)];
                put_lines(&mut out, [self.shard, i64::from(self.group), *page, self.at], row, uses);
                *page += 1;
                rest = later;
            }
            self.group += 1;
        }
        (!out.is_empty()).then(|| out.freeze())
    }
}

/// How many of these lines one row can hold, at least one, and which arrays it needs for them.
fn fitting(lines: &[&Line]) -> (usize, u8) {
    let (mut uses, mut key_bytes) = (0, 0);
    for (count, line) in lines.iter().enumerate() {
        let wider = uses | uses_of(line);
        let numbers = FIXED + (wider & !KEY).count_ones() as usize;
        key_bytes += line.key.as_ref().map_or(0, |key| (4 + key.as_bytes().len()).next_multiple_of(4));
        if count > 0 && (count + 1) * numbers * 8 + key_bytes > ROW_BYTES {
            return (count, uses);
        }
        uses = wider;
    }
    (lines.len(), uses)
}

fn uses_of(line: &Line) -> u8 {
    let Row { id: _, velocity, version, since, stage } = &line.after;
    let when = |condition: bool, flag: u8| if condition { flag } else { 0 };
    let stage = match stage {
        Stage::Open { remainder, .. } => when(*remainder != 0, REMAINDER),
        Stage::Stopped { .. } => STOPPED,
        Stage::Delivered { .. } => OVERRUN,
    };
    stage
        | when(line.charged.get() != 0, CHARGED)
        | when(velocity.get() != 0, VELOCITY)
        | when(*version != 1, VERSION)
        | when(*since != line.at, SINCE)
        | when(line.key.is_some(), KEY)
}

fn put_lines(out: &mut BytesMut, [shard, group, page, at]: [i64; 4], lines: &[&Line], uses: u8) {
    let Some(last) = lines.last() else { return };
    out.put_i16(LINE_FIELDS);
    for number in [shard, group, bounded(last.seq), i64::from(last.position), page, at] {
        put_number(out, number);
    }
    put_numbers(out, lines, |line| line.after.id as i64);
    put_numbers(out, lines, |line| bounded(line.seq));
    put_numbers(out, lines, |line| i64::from(line.position));
    put_numbers(out, lines, |line| i64::from(line.kind.code()));
    put_numbers(out, lines, |line| bounded(line.at.get()));
    put_numbers(out, lines, |line| line.amount.get());
    put_numbers(out, lines, |line| line.after.balance().get());
    let uses = |flag: u8| uses & flag != 0;
    put_if(out, uses(CHARGED), |out| put_numbers(out, lines, |line| line.charged.get()));
    put_if(out, uses(VELOCITY), |out| put_numbers(out, lines, |line| line.after.velocity.get()));
    put_if(out, uses(VERSION), |out| put_numbers(out, lines, |line| i64::from(line.after.version)));
    put_if(out, uses(SINCE), |out| put_numbers(out, lines, |line| bounded(line.after.since.get())));
    put_if(out, uses(REMAINDER), |out| put_numbers(out, lines, |line| remainder(&line.after)));
    put_if(out, uses(STOPPED), |out| put_some(out, lines, |line| stopped_velocity(&line.after)));
    put_if(out, uses(OVERRUN), |out| put_some(out, lines, |line| overrun(&line.after)));
    put_if(out, uses(KEY), |out| put_keys(out, lines));
}

/// Accounts in the order of their groups, as rows, at least one for each of these groups.
pub(super) fn account_pages(
    shard: i64,
    seq: i64,
    groups: std::ops::RangeInclusive<u16>,
    rows: &[Row],
) -> impl Iterator<Item = Bytes> {
    let (mut groups, mut rest) = (groups, rows);
    std::iter::from_fn(move || {
        let mut out = BytesMut::new();
        while out.len() < PIECE_BYTES
            && let Some(group) = groups.next()
        {
            let (own, later) = rest.split_at(rest.partition_point(|row| group_of(row.id) <= group));
            rest = later;
            for (page, row) in own.chunks(ROW_ACCOUNTS).enumerate() {
                put_accounts(&mut out, [shard, i64::from(group), page as i64, seq], row);
            }
            if own.is_empty() {
                put_accounts(&mut out, [shard, i64::from(group), 0, seq], &[]);
            }
        }
        (!out.is_empty()).then(|| out.freeze())
    })
}

fn put_accounts(out: &mut BytesMut, place: [i64; 4], rows: &[Row]) {
    let has = |number: fn(&Row) -> Option<i64>| rows.iter().any(|row| number(row).is_some());
    out.put_i16(ACCOUNT_FIELDS);
    for number in place {
        put_number(out, number);
    }
    put_numbers(out, rows, |row| row.id as i64);
    put_numbers(out, rows, |row| row.balance().get());
    put_numbers(out, rows, |row| row.velocity.get());
    put_numbers(out, rows, |row| i64::from(row.version));
    put_numbers(out, rows, |row| bounded(row.since.get()));
    put_if(out, rows.iter().any(|row| remainder(row) != 0), |out| put_numbers(out, rows, remainder));
    put_if(out, has(stopped_velocity), |out| put_some(out, rows, stopped_velocity));
    put_if(out, has(overrun), |out| put_some(out, rows, overrun));
}

fn remainder(row: &Row) -> i64 {
    match row.stage {
        Stage::Open { remainder, .. } => i64::from(remainder),
        Stage::Stopped { .. } | Stage::Delivered { .. } => 0,
    }
}

fn stopped_velocity(row: &Row) -> Option<i64> {
    match row.stage {
        Stage::Stopped { velocity } => Some(velocity.get()),
        Stage::Open { .. } | Stage::Delivered { .. } => None,
    }
}

fn overrun(row: &Row) -> Option<i64> {
    match row.stage {
        Stage::Delivered { overrun } => Some(overrun.get()),
        Stage::Open { .. } | Stage::Stopped { .. } => None,
    }
}

// --------------------------------------------------------------------------------------------------- PostgreSQL's format

const NULL: i32 = -1;

fn put_number(out: &mut BytesMut, number: i64) {
    out.put_i32(8);
    out.put_i64(number);
}

fn put_if(out: &mut BytesMut, there: bool, put: impl FnOnce(&mut BytesMut)) {
    if there { put(out) } else { out.put_i32(NULL) }
}

/// One dimension, from 1; or none, if there is nothing.
fn put_array(out: &mut BytesMut, kind: &Type, count: usize, nulls: bool, bytes: usize) {
    let dimensions = usize::from(count > 0);
    out.put_i32((12 + dimensions * 8 + bytes) as i32);
    out.put_i32(dimensions as i32);
    out.put_i32(i32::from(nulls));
    out.put_u32(kind.oid());
    if count > 0 {
        out.put_i32(count as i32);
        out.put_i32(1);
    }
}

/// As they lie in the message: the length, the number.
const ELEMENT: usize = 12;

fn put_numbers<T>(out: &mut BytesMut, items: &[T], number: impl Fn(&T) -> i64) {
    put_array(out, &Type::INT8, items.len(), false, items.len() * ELEMENT);
    let start = out.len();
    out.resize(start + items.len() * ELEMENT, 0);
    for (element, item) in out[start..].chunks_exact_mut(ELEMENT).zip(items) {
        element[..4].copy_from_slice(&8i32.to_be_bytes());
        element[4..].copy_from_slice(&number(item).to_be_bytes());
    }
}

fn put_some<T>(out: &mut BytesMut, items: &[T], number: impl Fn(&T) -> Option<i64>) {
    let there = items.iter().filter(|item| number(item).is_some()).count();
    let bytes = there * ELEMENT + (items.len() - there) * 4;
    put_array(out, &Type::INT8, items.len(), there < items.len(), bytes);
    for item in items {
        match number(item) {
            Some(number) => put_number(out, number),
            None => out.put_i32(NULL),
        }
    }
}

fn put_keys(out: &mut BytesMut, lines: &[&Line]) {
    let keys = || lines.iter().map(|line| line.key.as_ref().map(Key::as_bytes));
    let bytes = keys().map(|key| 4 + key.map_or(0, <[u8]>::len)).sum();
    put_array(out, &Type::BYTEA, lines.len(), keys().any(|key| key.is_none()), bytes);
    for key in keys() {
        match key {
            Some(key) => {
                out.put_i32(key.len() as i32);
                out.put_slice(key);
            }
            None => out.put_i32(NULL),
        }
    }
}

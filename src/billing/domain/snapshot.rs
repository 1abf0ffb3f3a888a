//! A state, and one bucket, as bytes; and their digests.
//!
//! Everything is in one order (buckets and accounts by number, keys by time and hash), so equal states are equal bytes,
//! however they came about.
//!
//! ```text
//! state    = "ffbs" version:u8 last horizon count (number content)* generation*1000 count outgoing* assigned
//! outgoing = number shard generation last horizon content
//! assigned = 0 | length:u8 node at
//! bucket   = "ffbb" version:u8 last horizon number content
//! content  = count account* count key*
//! account  = id (less the last one's, less 1, but for the first) velocity version since stage
//! stage    = 0 balance remainder | 1 velocity | 2 overrun
//! key      = hash:16 body:8 at amount velocity version bits
//! ```
//! Numbers are varints. As with batches, whoever stores these puts a checksum around them.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use super::account::{Parts, Record, Row, Stage};
use super::bucket::{BUCKETS, Bucket, bucket_of};
use super::codec::{CodecError, NUMBER_BYTES_MAX, Reader, put, put_node};
use super::idempotency::{Entry, Kept, KeyHash};
use super::money::{Micros, Money, Velocity};
use super::moving::{Assignment, Outgoing};
use super::state::State;

const STATE_MAGIC: &[u8; 4] = b"ffbs";
const BUCKET_MAGIC: &[u8; 4] = b"ffbb";
const VERSION: u8 = 1;

/// What they mostly take at most.
const ACCOUNT_BYTES: usize = 24;
const KEY_BYTES: usize = 48;

/// A bucket on its way.
pub struct Image {
    pub last: Micros,
    pub content: Bucket,
}

impl State {
    /// All of it. 1M accounts are 16 MB and 25 ms, with 2M keys 92 MB and half a second: do it on a clone.
    pub fn encode(&self) -> Vec<u8> {
        // Where it grows, all of it is copied. What stays unused is never touched.
        let mut whole =
            Vec::with_capacity(4096 + self.accounts_len() * ACCOUNT_BYTES + self.keys_len() * KEY_BYTES);
        self.encode_parts(|part| whole.extend_from_slice(part));
        whole
    }

    /// All of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<State, CodecError> {
        let mut reader = Reader(bytes);
        let (last, horizon) = header(&mut reader, STATE_MAGIC)?;
        let mut state = State { last, horizon, ..State::new([]) };
        let mut first = 0;
        for _ in 0..reader.number()? {
            let bucket = number_of_bucket(&mut reader)?;
            if bucket < first {
                return Err(CodecError::Malformed("order of buckets"));
            }
            first = bucket + 1;
            let content = content(&mut reader, bucket, last, horizon)?;
            state.buckets[usize::from(bucket)] = Some(Arc::new(content));
        }
        for (seen, bucket) in state.generations.iter_mut().zip(&state.buckets) {
            *seen = reader.number()?;
            if bucket.is_some() && *seen == 0 {
                return Err(CodecError::Malformed("generation"));
            }
        }
        first = 0;
        for _ in 0..reader.number()? {
            let outgoing = outgoing(&mut reader, &state)?;
            if outgoing.bucket < first {
                return Err(CodecError::Malformed("order of buckets"));
            }
            first = outgoing.bucket + 1;
            state.outgoing.insert(outgoing.bucket, outgoing);
        }
        state.assignment = assignment(&mut reader, last)?;
        reader.end()?;
        Ok(state)
    }

    /// SHA-256 of [`State::encode`], without holding it.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        self.encode_parts(|part| context.update(part));
        finish(context)
    }

    /// SHA-256 of all accounts by id, as [`AccountsDigest`] takes them: what a projection is compared by, which has no
    /// keys.
    pub fn accounts_digest(&self) -> [u8; 32] {
        let mut rows: Vec<Row> =
            self.buckets().filter_map(|bucket| self.accounts_of(bucket)).flatten().collect();
        rows.sort_unstable_by_key(|row| row.id);
        let mut digest = AccountsDigest::new();
        rows.iter().for_each(|row| digest.add(row));
        digest.finish()
    }

    fn encode_parts(&self, mut take: impl FnMut(&[u8])) {
        let State { buckets: _, last, horizon, generations, outgoing, assignment } = self;
        let mut part = start(STATE_MAGIC, *last, *horizon);
        let mut entries = Vec::new();
        put(&mut part, self.buckets().count() as u64);
        take(&part);
        for (bucket, content) in self.buckets().filter_map(|bucket| Some((bucket, self.bucket(bucket)?))) {
            part.clear();
            put(&mut part, u64::from(bucket));
            put_content(&mut part, content, &mut entries);
            take(&part);
        }
        part.clear();
        generations.iter().for_each(|seen| put(&mut part, *seen));
        put(&mut part, outgoing.len() as u64);
        take(&part);
        for outgoing in outgoing.values() {
            part.clear();
            put_outgoing(&mut part, outgoing);
            take(&part);
        }
        part.clear();
        match assignment {
            None => part.push(0),
            Some(Assignment { node, at }) => {
                put_node(&mut part, node);
                put(&mut part, at.get());
            }
        }
        take(&part);
    }
}

/// The digest of accounts, for whoever has them from elsewhere, such as the SQL projection.
pub struct AccountsDigest(Context);

impl Default for AccountsDigest {
    fn default() -> AccountsDigest {
        AccountsDigest::new()
    }
}

impl AccountsDigest {
    pub fn new() -> AccountsDigest {
        AccountsDigest(Context::new(&SHA256))
    }

    /// In the order of ids (unsigned).
    pub fn add(&mut self, row: &Row) {
        let mut line = Vec::with_capacity(48);
        put_row(&mut line, row, row.id);
        self.0.update(&line);
    }

    pub fn finish(self) -> [u8; 32] {
        finish(self.0)
    }
}

/// All of `bytes`.
pub fn decode_image(bytes: &[u8]) -> Result<Image, CodecError> {
    let mut reader = Reader(bytes);
    let (last, horizon) = header(&mut reader, BUCKET_MAGIC)?;
    let bucket = number_of_bucket(&mut reader)?;
    let content = content(&mut reader, bucket, last, horizon)?;
    reader.end()?;
    Ok(Image { last, content })
}

/// Which bucket it says it is of; the rest is not looked at.
pub fn bucket_of_image(bytes: &[u8]) -> Result<u16, CodecError> {
    let mut reader = Reader(bytes);
    header(&mut reader, BUCKET_MAGIC)?;
    number_of_bucket(&mut reader)
}

/// The time it says it is of; the rest is not looked at.
pub fn last_of_image(bytes: &[u8]) -> Result<Micros, CodecError> {
    header(&mut Reader(bytes), BUCKET_MAGIC).map(|(last, _)| last)
}

pub fn put_image(bucket: u16, last: Micros, horizon: Micros, content: &Bucket) -> Vec<u8> {
    let mut out = start(BUCKET_MAGIC, last, horizon);
    put(&mut out, u64::from(bucket));
    put_content(&mut out, content, &mut Vec::new());
    out
}

/// What an image of so many accounts and keys takes at most: every number at its longest.
pub fn image_bound(accounts: usize, keys: usize) -> usize {
    const BEGIN: usize = 4 + 1 + 2 * NUMBER_BYTES_MAX + 3 + 2 * NUMBER_BYTES_MAX;
    const ACCOUNT: usize = 3 * NUMBER_BYTES_MAX + 5 + 1 + NUMBER_BYTES_MAX + 5;
    const KEY: usize = 16 + 8 + 3 * NUMBER_BYTES_MAX + 2 * 5;
    BEGIN.saturating_add(accounts.saturating_mul(ACCOUNT)).saturating_add(keys.saturating_mul(KEY))
}

fn start(magic: &[u8; 4], last: Micros, horizon: Micros) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.push(VERSION);
    put(&mut out, last.get());
    put(&mut out, horizon.get());
    out
}

fn put_outgoing(out: &mut Vec<u8>, outgoing: &Outgoing) {
    let Outgoing { bucket, to, generation, last, horizon, content } = outgoing;
    put(out, u64::from(*bucket));
    put(out, u64::from(*to));
    put(out, *generation);
    put(out, last.get());
    put(out, horizon.get());
    put_content(out, content, &mut Vec::new());
}

/// Released at the last generation that was seen, so it is not held.
fn outgoing(reader: &mut Reader, state: &State) -> Result<Outgoing, CodecError> {
    let bucket = number_of_bucket(reader)?;
    let (to, generation) = (reader.number_u32()?, reader.number()?);
    let (last, horizon) = (reader.micros()?, reader.micros()?);
    let in_time = horizon <= last && last <= state.last;
    if !in_time || state.bucket(bucket).is_some() || state.seen(bucket) != generation || generation == 0 {
        return Err(CodecError::Malformed("outgoing bucket"));
    }
    let content = Arc::new(content(reader, bucket, last, horizon)?);
    Ok(Outgoing { bucket, to, generation, last, horizon, content })
}

fn assignment(reader: &mut Reader, last: Micros) -> Result<Option<Assignment>, CodecError> {
    if reader.0.first() == Some(&0) {
        reader.byte()?;
        return Ok(None);
    }
    let (node, at) = (reader.node()?, reader.micros()?);
    if at <= last { Ok(Some(Assignment { node, at })) } else { Err(CodecError::Malformed("time")) }
}

/// `entries` is room for keys, which are many: whoever puts one bucket after the other gives the same.
fn put_content(out: &mut Vec<u8>, content: &Bucket, entries: &mut Vec<Entry>) {
    let rows = content.rows();
    put(out, rows.len() as u64);
    let mut next = 0;
    for row in &rows {
        put_row(out, row, row.id - next);
        next = row.id.wrapping_add(1);
    }
    content.keys.sort_into(entries);
    put(out, entries.len() as u64);
    entries.iter().for_each(|entry| put_entry(out, entry));
}

fn put_row(out: &mut Vec<u8>, row: &Row, id: u64) {
    let Row { id: _, velocity, version, since, stage } = row;
    put(out, id);
    put(out, velocity.get() as u64);
    put(out, u64::from(*version));
    put(out, since.get());
    match stage {
        Stage::Open { balance, remainder } => {
            out.push(0);
            put(out, balance.get() as u64);
            put(out, u64::from(*remainder));
        }
        Stage::Stopped { velocity } => {
            out.push(1);
            put(out, velocity.get() as u64);
        }
        Stage::Delivered { overrun } => {
            out.push(2);
            put(out, overrun.get() as u64);
        }
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let Entry { hash, body, at, kept: Kept(Parts { amount, velocity, version, bits }) } = entry;
    out.extend_from_slice(&hash.0);
    out.extend_from_slice(&body.to_le_bytes());
    put(out, at.get());
    put(out, *amount as u64);
    put(out, velocity.get() as u64);
    put(out, u64::from(*version));
    put(out, u64::from(*bits));
}

fn header(reader: &mut Reader, magic: &[u8; 4]) -> Result<(Micros, Micros), CodecError> {
    if reader.bytes(magic.len())? != magic {
        return Err(CodecError::Malformed("beginning"));
    }
    match reader.byte()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    let (last, horizon) = (reader.micros()?, reader.micros()?);
    if horizon > last {
        return Err(CodecError::Malformed("horizon"));
    }
    Ok((last, horizon))
}

fn number_of_bucket(reader: &mut Reader) -> Result<u16, CodecError> {
    let number = u16::try_from(reader.number()?).ok().filter(|bucket| *bucket < BUCKETS);
    number.ok_or(CodecError::Malformed("bucket"))
}

fn content(reader: &mut Reader, bucket: u16, last: Micros, horizon: Micros) -> Result<Bucket, CodecError> {
    let mut content = Bucket::default();
    let mut next = Some(0u64);
    for _ in 0..reader.number()? {
        let step = reader.number()?;
        let id = next.and_then(|next| next.checked_add(step));
        let id = id.filter(|id| bucket_of(*id) == bucket).ok_or(CodecError::Malformed("account"))?;
        next = id.checked_add(1);
        let record = account(reader, id)?;
        if record.row().since > last {
            return Err(CodecError::Malformed("account"));
        }
        content.insert(record).map_err(|_| CodecError::Malformed("bucket"))?;
    }
    let mut before: Option<Entry> = None;
    for _ in 0..reader.number()? {
        let entry = entry(reader)?;
        let ordered = before.is_none_or(|before| (before.at, before.hash) < (entry.at, entry.hash));
        if !ordered || entry.at > last || entry.at < horizon {
            return Err(CodecError::Malformed("key"));
        }
        content.keys.insert(entry);
        before = Some(entry);
    }
    Ok(content)
}

fn account(reader: &mut Reader, id: u64) -> Result<Record, CodecError> {
    let velocity = Velocity::new(magnitude(reader)?);
    let version = reader.number_u32()?;
    let since = reader.micros()?;
    let stage = match reader.byte()? {
        0 => Stage::Open { balance: Money::new(magnitude(reader)?), remainder: reader.number_u32()? },
        1 => Stage::Stopped { velocity: Velocity::new(magnitude(reader)?) },
        2 => Stage::Delivered { overrun: Money::new(magnitude(reader)?) },
        _ => return Err(CodecError::Malformed("account")),
    };
    Record::from_row(&Row { id, velocity, version, since, stage }).ok_or(CodecError::Malformed("account"))
}

fn entry(reader: &mut Reader) -> Result<Entry, CodecError> {
    let fixed = |_| CodecError::Truncated;
    let hash = KeyHash(reader.bytes(16)?.try_into().map_err(fixed)?);
    let body = u64::from_le_bytes(reader.bytes(8)?.try_into().map_err(fixed)?);
    let at = reader.micros()?;
    let kept = Kept(Parts {
        amount: magnitude(reader)?,
        velocity: Velocity::new(magnitude(reader)?),
        version: reader.number_u32()?,
        bits: reader.number_u32()?,
    });
    if kept.is_sound() { Ok(Entry { hash, body, at, kept }) } else { Err(CodecError::Malformed("key")) }
}

/// An `i64` that is not below zero.
fn magnitude(reader: &mut Reader) -> Result<i64, CodecError> {
    i64::try_from(reader.number()?).map_err(|_| CodecError::Malformed("number"))
}

fn finish(context: Context) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

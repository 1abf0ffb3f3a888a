//! Bytes out and in: LEB128 varints, zigzag where a sign is possible, and a batch as the journal holds it.
//!
//! Written by hand and not by serde, because these bytes are kept for years and compared bit for bit: each value has
//! exactly one encoding, and anything else is an error. There is no checksum here: the journal puts one around every
//! payload, with its length. What passes that is still not trusted: decoding never panics, and takes no memory beyond a small
//! multiple of what it was given.
//!
//! ```text
//! batch    = version:u8 at count command*
//! command  = 1 key account balance velocity      create
//!          | 2 key account amount                add_money
//!          | 3 key account amount                withdraw
//!          | 4 key account velocity              update_spending_velocity
//!          | 5 account version                   deplete
//!          | 6 account version at                delivered
//!          | 7 before                            forget
//!          | 8 bucket shard generation           release
//!          | 9 generation length bytes           adopt
//!          | 10 bucket generation                sent
//!          | 11 node                             assign
//! key      = length:u8 bytes
//! node     = length:u8 UTF-8
//! ```

use super::command::{Batch, Command, Key, Operation};
use super::money::{Micros, Money, Velocity};
use super::moving::Assignment;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("it ends too early")]
    Truncated,
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    #[error("format version {0} is not known here")]
    Version(u8),
    #[error("no {0} looks like this")]
    Malformed(&'static str),
}

const BATCH_VERSION: u8 = 1;
/// Of the longest varint.
pub(super) const NUMBER_BYTES_MAX: usize = 10;

impl Batch {
    /// Appends the batch. A usual command takes about 8 bytes and its key.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Batch { at, commands } = self;
        out.push(BATCH_VERSION);
        put(out, at.get());
        put(out, commands.len() as u64);
        commands.iter().for_each(|command| command.encode(out));
    }

    /// All of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Batch, CodecError> {
        let mut reader = Reader(bytes);
        match reader.byte()? {
            BATCH_VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        let at = reader.micros()?;
        let count = reader.number()?;
        // Each command takes two bytes or more, so this is no more than a multiple of what is there.
        let mut commands = Vec::with_capacity(count.min(reader.0.len() as u64 / 2) as usize);
        for _ in 0..count {
            commands.push(Command::decode(&mut reader)?);
        }
        reader.end()?;
        Ok(Batch { at, commands })
    }
}

impl Command {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Command::Operate { key, account, operation } => {
                let (tag, first, second) = match operation {
                    Operation::Create { balance, velocity } => (1, balance.get(), Some(velocity.get())),
                    Operation::AddMoney { amount } => (2, amount.get(), None),
                    Operation::Withdraw { amount } => (3, amount.get(), None),
                    Operation::UpdateSpendingVelocity { velocity } => (4, velocity.get(), None),
                };
                out.push(tag);
                out.push(key.as_bytes().len() as u8);
                out.extend_from_slice(key.as_bytes());
                put(out, *account);
                put_signed(out, first);
                second.into_iter().for_each(|second| put_signed(out, second));
            }
            Command::Deplete { account, version } => {
                out.push(5);
                put(out, *account);
                put(out, u64::from(*version));
            }
            Command::Delivered { account, version, at } => {
                out.push(6);
                put(out, *account);
                put(out, u64::from(*version));
                put(out, at.get());
            }
            Command::Forget { before } => {
                out.push(7);
                put(out, before.get());
            }
            Command::Release { bucket, to, generation } => {
                out.push(8);
                put(out, u64::from(*bucket));
                put(out, u64::from(*to));
                put(out, *generation);
            }
            Command::Adopt { generation, image } => {
                out.push(9);
                put(out, *generation);
                put(out, image.len() as u64);
                out.extend_from_slice(image);
            }
            Command::Sent { bucket, generation } => {
                out.push(10);
                put(out, u64::from(*bucket));
                put(out, *generation);
            }
            Command::Assign { node } => {
                out.push(11);
                put_node(out, node);
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<Command, CodecError> {
        match reader.byte()? {
            tag @ 1..=4 => {
                let length = usize::from(reader.byte()?);
                let key = Key::new(reader.bytes(length)?).ok_or(CodecError::Malformed("key"))?;
                let account = reader.number()?;
                let first = reader.signed()?;
                let operation = match tag {
                    1 => Operation::Create {
                        balance: Money::new(first),
                        velocity: Velocity::new(reader.signed()?),
                    },
                    2 => Operation::AddMoney { amount: Money::new(first) },
                    3 => Operation::Withdraw { amount: Money::new(first) },
                    _ => Operation::UpdateSpendingVelocity { velocity: Velocity::new(first) },
                };
                Ok(Command::Operate { key, account, operation })
            }
            5 => Ok(Command::Deplete { account: reader.number()?, version: reader.number_u32()? }),
            6 => Ok(Command::Delivered {
                account: reader.number()?,
                version: reader.number_u32()?,
                at: reader.micros()?,
            }),
            7 => Ok(Command::Forget { before: reader.micros()? }),
            8 => Ok(Command::Release {
                bucket: reader.number_u16()?,
                to: reader.number_u32()?,
                generation: reader.number()?,
            }),
            9 => {
                let generation = reader.number()?;
                let length = usize::try_from(reader.number()?).map_err(|_| CodecError::Truncated)?;
                Ok(Command::Adopt { generation, image: reader.bytes(length)?.into() })
            }
            10 => Ok(Command::Sent { bucket: reader.number_u16()?, generation: reader.number()? }),
            11 => Ok(Command::Assign { node: reader.node()? }),
            _ => Err(CodecError::Malformed("command")),
        }
    }
}

pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, (value << 1 ^ value >> 63) as u64);
}

/// A name that is too long is cut, so that what is written can be read; whoever takes names has bounded them.
pub(super) fn put_node(out: &mut Vec<u8>, node: &str) {
    let end = (0..=Assignment::NODE_BYTES_MAX.min(node.len())).rev().find(|at| node.is_char_boundary(*at));
    let node = &node[..end.unwrap_or_default()];
    out.push(node.len() as u8);
    out.extend_from_slice(node.as_bytes());
}

/// What is left to read.
pub(super) struct Reader<'b>(pub &'b [u8]);

impl<'b> Reader<'b> {
    pub fn byte(&mut self) -> Result<u8, CodecError> {
        let (byte, rest) = self.0.split_first().ok_or(CodecError::Truncated)?;
        self.0 = rest;
        Ok(*byte)
    }

    pub fn bytes(&mut self, length: usize) -> Result<&'b [u8], CodecError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(CodecError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Refuses more than 64 bits, and more bytes than the number needs.
    pub fn number(&mut self) -> Result<u64, CodecError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                break;
            }
            value |= part << shift;
            if byte < 0x80 {
                let minimal = byte != 0 || shift == 0;
                return if minimal { Ok(value) } else { Err(CodecError::Malformed("number")) };
            }
        }
        Err(CodecError::Malformed("number"))
    }

    pub fn number_u16(&mut self) -> Result<u16, CodecError> {
        u16::try_from(self.number()?).map_err(|_| CodecError::Malformed("number"))
    }

    pub fn number_u32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.number()?).map_err(|_| CodecError::Malformed("number"))
    }

    pub fn signed(&mut self) -> Result<i64, CodecError> {
        let folded = self.number()?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    pub fn micros(&mut self) -> Result<Micros, CodecError> {
        let micros = self.number()?;
        let at = Micros::new(micros);
        if at.get() == micros { Ok(at) } else { Err(CodecError::Malformed("time")) }
    }

    pub fn node(&mut self) -> Result<Box<str>, CodecError> {
        let length = usize::from(self.byte()?);
        let node = std::str::from_utf8(self.bytes(length)?).ok();
        let node = node.filter(|_| (1..=Assignment::NODE_BYTES_MAX).contains(&length));
        node.map(Box::from).ok_or(CodecError::Malformed("node"))
    }

    pub fn end(self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Trailing(self.0.len())) }
    }
}

//! Messages: bytes to requests, answers to bytes. Pure.
//!
//! A message is its length, a header and a body; both are maps with numbers for keys
//! (<https://www.tarantool.io/en/doc/latest/reference/internals/box_protocol/>).

use rmp::encode;

use super::msgpack::{Malformed, Reader, Value};
use crate::billing::domain::Account;

/// Longer messages end the connection: as much as a request of the HTTP door.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// No procedure takes more.
pub const ARGUMENTS_MAX: usize = 4;
/// The schema never changes, so it has the version it began with.
const SCHEMA_VERSION: u64 = 1;

mod key {
    pub const CODE: u64 = 0x00;
    pub const SYNC: u64 = 0x01;
    pub const SCHEMA_VERSION: u64 = 0x05;
    pub const SPACE_ID: u64 = 0x10;
    pub const INDEX_ID: u64 = 0x11;
    pub const LIMIT: u64 = 0x12;
    pub const OFFSET: u64 = 0x13;
    pub const ITERATOR: u64 = 0x14;
    pub const KEY: u64 = 0x20;
    pub const TUPLE: u64 = 0x21;
    pub const FUNCTION: u64 = 0x22;
    pub const USER: u64 = 0x23;
    pub const DATA: u64 = 0x30;
    pub const ERROR: u64 = 0x31;
    pub const VERSION: u64 = 0x54;
    pub const FEATURES: u64 = 0x55;
    pub const AUTH_TYPE: u64 = 0x5b;
}

/// Tarantool's codes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    IllegalParams = 1,
    TupleFound = 3,
    Unsupported = 5,
    InvalidMsgpack = 20,
    Procedure = 32,
    NoSuchProcedure = 33,
    NoSuchIndex = 35,
    NoSuchSpace = 36,
    AccessDenied = 42,
    WrongCredentials = 47,
    UnknownRequest = 48,
    ReadOnly = 7,
    Timeout = 78,
    Busy = 116,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    pub code: u64,
    pub sync: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Request<'a> {
    Ping,
    Id,
    Auth {
        user: &'a [u8],
        scramble: Option<&'a [u8]>,
    },
    /// `old`: each returned value is wrapped in a tuple.
    Call {
        old: bool,
        function: &'a [u8],
        arguments: Arguments<'a>,
    },
    Select(Select<'a>),
    Insert {
        space: u64,
        tuple: Arguments<'a>,
    },
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Select<'a> {
    pub space: u64,
    pub index: u64,
    pub limit: u64,
    pub offset: u64,
    pub iterator: u64,
    pub key: Arguments<'a>,
}

/// The first few values of an array.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arguments<'a> {
    values: [Value<'a>; ARGUMENTS_MAX],
    /// Of the whole array.
    length: usize,
}

impl<'a> Arguments<'a> {
    const NONE: Arguments<'static> = Arguments { values: [Value::Nil; ARGUMENTS_MAX], length: 0 };

    fn read(reader: &mut Reader<'a>) -> Result<Arguments<'a>, Malformed> {
        let length = reader.array()?;
        let mut arguments = Arguments { length, ..Arguments::NONE };
        for place in 0..length {
            let value = reader.shallow()?;
            if let Some(kept) = arguments.values.get_mut(place) {
                *kept = value;
            }
        }
        Ok(arguments)
    }

    /// None if there are more than are kept.
    pub fn get(&self) -> Option<&[Value<'a>]> {
        self.values.get(..self.length)
    }
}

/// How many bytes the first message has, its length included; None if that is not known yet. Error: no connector sends
/// such a length.
pub fn message_length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut reader = Reader::new(bytes);
    match reader.value() {
        Ok(Value::Integer(length)) => match usize::try_from(length) {
            Ok(length) if length <= MESSAGE_BYTES_MAX => Ok(Some(bytes.len() - reader.left() + length)),
            _ => Err(Malformed),
        },
        Ok(_) => Err(Malformed),
        // The longest length takes nine bytes.
        Err(_) if bytes.len() < 9 && bytes.first().is_none_or(|first| (0xcc..=0xcf).contains(first)) => {
            Ok(None)
        }
        Err(Malformed) => Err(Malformed),
    }
}

/// A whole message as [`message_length`] measured it. The outer error: where the next one begins can be told, but whom to
/// answer cannot.
pub fn read(message: &[u8]) -> Result<(Header, Result<Request<'_>, Malformed>), Malformed> {
    let mut reader = Reader::new(message);
    reader.integer()?;
    let mut header = Header { code: u64::MAX, sync: 0 };
    for _ in 0..reader.map()? {
        match reader.number::<u64>()? {
            key::CODE => header.code = reader.number()?,
            key::SYNC => header.sync = reader.number()?,
            _ => reader.skip()?,
        }
    }
    Ok((header, body(header.code, reader)))
}

fn body(code: u64, mut reader: Reader<'_>) -> Result<Request<'_>, Malformed> {
    let (mut function, mut user, mut tuple, mut space) = (None, None, Arguments::NONE, None);
    let mut select = Select {
        space: 0,
        index: 0,
        limit: u64::from(u32::MAX),
        offset: 0,
        iterator: 0,
        key: Arguments::NONE,
    };
    // A ping may be without a body.
    let fields = if reader.is_empty() { 0 } else { reader.map()? };
    for _ in 0..fields {
        match reader.number::<u64>()? {
            key::SPACE_ID => space = Some(reader.number()?),
            key::INDEX_ID => select.index = reader.number()?,
            key::LIMIT => select.limit = reader.number()?,
            key::OFFSET => select.offset = reader.number()?,
            key::ITERATOR => select.iterator = reader.number()?,
            key::KEY => select.key = Arguments::read(&mut reader)?,
            key::TUPLE => tuple = Arguments::read(&mut reader)?,
            key::FUNCTION => function = Some(reader.text()?),
            key::USER => user = Some(reader.text()?),
            _ => reader.skip()?,
        }
    }
    if !reader.is_empty() {
        return Err(Malformed);
    }
    Ok(match code {
        64 => Request::Ping,
        73 => Request::Id,
        7 => {
            let scramble = match tuple.get() {
                Some([Value::Text(b"chap-sha1"), Value::Text(scramble)]) => Some(*scramble),
                Some([]) => None,
                _ => return Err(Malformed),
            };
            Request::Auth { user: user.ok_or(Malformed)?, scramble }
        }
        6 | 10 => Request::Call { old: code == 6, function: function.ok_or(Malformed)?, arguments: tuple },
        1 => Request::Select(Select { space: space.ok_or(Malformed)?, ..select }),
        2 => Request::Insert { space: space.ok_or(Malformed)?, tuple },
        _ => Request::Unknown,
    })
}

// ------------------------------------------------------------------------------------------------------------ answers

/// Appends one answer: `body` writes what is under `DATA`.
pub fn data(out: &mut Vec<u8>, sync: u64, body: impl FnOnce(&mut Vec<u8>)) {
    message(out, sync, 0, |out| {
        map(out, 1);
        number(out, key::DATA);
        body(out);
    });
}

pub fn error(out: &mut Vec<u8>, sync: u64, code: Code, text: &str) {
    message(out, sync, 0x8000 | code as u64, |out| {
        map(out, 1);
        number(out, key::ERROR);
        string(out, text);
    });
}

pub fn pong(out: &mut Vec<u8>, sync: u64) {
    message(out, sync, 0, |out| map(out, 0));
}

/// No streams, no watchers, no extensions: protocol version 0.
pub fn id(out: &mut Vec<u8>, sync: u64) {
    message(out, sync, 0, |out| {
        map(out, 3);
        number(out, key::VERSION);
        number(out, 0);
        number(out, key::FEATURES);
        array(out, 0);
        number(out, key::AUTH_TYPE);
        string(out, "chap-sha1");
    });
}

/// An account as a tuple of its space.
pub fn tuple(out: &mut Vec<u8>, account: &Account) {
    array(out, 3);
    number(out, account.id);
    integer(out, account.balance.get());
    integer(out, account.velocity.get());
}

fn message(out: &mut Vec<u8>, sync: u64, code: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0xce, 0, 0, 0, 0]);
    map(out, 3);
    for (key, value) in [(key::CODE, code), (key::SYNC, sync), (key::SCHEMA_VERSION, SCHEMA_VERSION)] {
        number(out, key);
        number(out, value);
    }
    body(out);
    let length = (out.len() - start - 5) as u32;
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

// Writing to a Vec cannot fail.

pub fn array(out: &mut Vec<u8>, length: usize) {
    let _ = encode::write_array_len(out, length as u32);
}

fn map(out: &mut Vec<u8>, length: u32) {
    let _ = encode::write_map_len(out, length);
}

fn number(out: &mut Vec<u8>, number: u64) {
    let _ = encode::write_uint(out, number);
}

fn integer(out: &mut Vec<u8>, number: i64) {
    let _ = encode::write_sint(out, number);
}

pub fn string(out: &mut Vec<u8>, text: &str) {
    let _ = encode::write_str(out, text);
}

pub fn boolean(out: &mut Vec<u8>, flag: bool) {
    let _ = encode::write_bool(out, flag);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value as Other;

    use super::*;

    fn encoded(header: Vec<(u64, Other)>, body: Vec<(u64, Other)>) -> Vec<u8> {
        let mut content = Vec::new();
        for fields in [header, body] {
            let fields = fields.into_iter().map(|(key, value)| (Other::from(key), value)).collect();
            rmpv::encode::write_value(&mut content, &Other::Map(fields)).unwrap();
        }
        let mut message = vec![0xce];
        message.extend((content.len() as u32).to_be_bytes());
        message.extend(content);
        message
    }

    fn header(code: u64, sync: u64) -> Vec<(u64, Other)> {
        vec![(key::CODE, Other::from(code)), (key::SYNC, Other::from(sync))]
    }

    proptest! {
        #[test]
        fn a_call_is_read_as_it_was_written(
            sync: u64,
            function in "[a-z_]{0,40}",
            numbers in prop::collection::vec(any::<i64>(), 0..6),
            old: bool,
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let tuple = numbers.iter().map(|number| Other::from(*number)).collect();
            let body = vec![(key::FUNCTION, Other::from(function.as_str())), (key::TUPLE, Other::Array(tuple))];
            let message = encoded(header(if old { 6 } else { 10 }, sync), body);
            let mut bytes = message.clone();
            bytes.extend(rest);
            prop_assert_eq!(message_length(&bytes), Ok(Some(message.len())));
            let (read, request) = read(&message).unwrap();
            prop_assert_eq!(read.sync, sync);
            let Ok(Request::Call { old: read_old, function: read_function, arguments }) = request else {
                return Err(TestCaseError::fail("no call"));
            };
            prop_assert_eq!((read_old, read_function), (old, function.as_bytes()));
            let expected: Vec<Value> = numbers.iter().map(|number| Value::Integer(i128::from(*number))).collect();
            prop_assert_eq!(arguments.get(), (numbers.len() <= ARGUMENTS_MAX).then_some(&expected[..]));
        }

        /// Whatever comes is a message, waited for, or refused; and a message is read or refused.
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), code in 0..80_u64, cut in 0..60_usize) {
            if let Ok(Some(length)) = message_length(&bytes)
                && let Some(message) = bytes.get(..length)
            {
                let _ = read(message);
            }
            let mut whole = encoded(header(code, 1), vec![(key::TUPLE, Other::Binary(bytes))]);
            whole.truncate(whole.len().saturating_sub(cut));
            let _ = read(&whole);
        }

        #[test]
        fn answers_are_messages(sync: u64, text in ".{0,300}", id: u64, balance: i64) {
            let account = Account {
                id,
                balance: crate::billing::domain::Money::new(balance),
                velocity: crate::billing::domain::Velocity::ZERO,
                state: crate::billing::domain::AccountState::Active,
                version: 1,
                depletes_at: None,
                overrun: None,
            };
            let mut out = Vec::new();
            error(&mut out, sync, Code::Procedure, &text);
            let first = out.len();
            data(&mut out, sync, |out| {
                array(out, 1);
                tuple(out, &account);
            });
            prop_assert_eq!(message_length(&out), Ok(Some(first)));
            let mut bytes = &out[first + 5..];
            let head = rmpv::decode::read_value(&mut bytes).unwrap();
            let body = rmpv::decode::read_value(&mut bytes).unwrap();
            prop_assert!(bytes.is_empty());
            prop_assert_eq!(&head[1], &Other::Nil);
            let tuple = Other::Array(vec![Other::from(id), Other::from(balance), Other::from(0)]);
            prop_assert_eq!(body, Other::Map(vec![(Other::from(key::DATA), Other::Array(vec![tuple]))]));
        }
    }

    #[test]
    fn lengths_that_no_connector_sends() {
        for bytes in [&[0xce, 0xff, 0xff, 0xff, 0xff][..], &[0xff], &[0xc0], &[0xcf; 20]] {
            assert_eq!(message_length(bytes), Err(Malformed), "{bytes:?}");
        }
        for bytes in [&[][..], &[0xce], &[0xce, 0, 0, 0], &[0xcf, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(message_length(bytes), Ok(None), "{bytes:?}");
        }
    }
}

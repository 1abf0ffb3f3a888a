//! HTTP/3 frame by frame on a QUIC connection, so that a test can say what no library would.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ReadError, RecvStream, SendStream, VarInt};

use super::heard::{Heard, digits};
use super::{PATIENCE, Quic, within};

/// Frame types (RFC 9114, 7.2).
pub const DATA: u64 = 0x0;
pub const HEADERS: u64 = 0x1;
pub const CANCEL_PUSH: u64 = 0x3;
pub const SETTINGS: u64 = 0x4;
pub const PUSH_PROMISE: u64 = 0x5;
pub const GOAWAY: u64 = 0x7;
pub const MAX_PUSH_ID: u64 = 0xd;

/// Types of one-way streams.
pub const CONTROL: u64 = 0x0;
pub const PUSH: u64 = 0x1;
pub const QPACK_ENCODER: u64 = 0x2;

/// How long a connection that was answered on is watched for its close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// A QUIC integer (RFC 9000, 16).
pub fn integer(number: u64) -> Vec<u8> {
    match number {
        0..0x40 => vec![number as u8],
        0x40..0x4000 => (number as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (number as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (number | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

/// The bytes of a frame, sensible or not.
pub fn frame(kind: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    [&integer(kind)[..], &integer(payload.len() as u64), payload].concat()
}

/// SETTINGS with these names and values.
pub fn settings(pairs: &[(u64, u64)]) -> Vec<u8> {
    let payload = pairs.iter().flat_map(|(name, value)| [integer(*name), integer(*value)]);
    frame(SETTINGS, payload.collect::<Vec<_>>().concat())
}

/// A field section of literals with literal names: no table, no Huffman code (RFC 9204, 4.5.6).
pub fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    for (name, value) in fields {
        prefixed(0x20, 7, name, &mut bytes);
        prefixed(0, 127, value, &mut bytes);
    }
    bytes
}

/// A string after its length, whose prefix can hold `max` and has `bits` before it.
fn prefixed(bits: u8, max: usize, text: &str, bytes: &mut Vec<u8>) {
    if text.len() < max {
        bytes.push(bits | text.len() as u8);
    } else {
        bytes.push(bits | max as u8);
        let mut rest = text.len() - max;
        while rest >= 128 {
            bytes.push((rest % 128 + 128) as u8);
            rest /= 128;
        }
        bytes.push(rest as u8);
    }
    bytes.extend_from_slice(text.as_bytes());
}

pub fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, section(fields))
}

/// The pseudo-header fields of a good request.
pub fn good<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "https"), (":authority", "bed.example"), (":path", path)]
}

/// A good GET.
pub fn get(path: &str) -> Vec<u8> {
    headers(&good("GET", path))
}

/// A connection. What it opened stays open as long as it.
pub struct RawH3 {
    pub quic: Quic,
    kept: Vec<SendStream>,
}

impl RawH3 {
    /// Nothing is said yet, not even SETTINGS.
    pub async fn bare(address: SocketAddr) -> RawH3 {
        RawH3 { quic: Quic::connect(address).await, kept: Vec::new() }
    }

    /// The control stream is there, with empty SETTINGS on it.
    pub async fn connect(address: SocketAddr) -> RawH3 {
        let mut raw = RawH3::bare(address).await;
        raw.one_way(CONTROL, settings(&[])).await;
        raw
    }

    /// Opens a one-way stream of this type and says this on it; it stays open.
    pub async fn one_way(&mut self, kind: u64, bytes: impl AsRef<[u8]>) -> &mut SendStream {
        let opened = within(PATIENCE, "a one-way stream", self.quic.connection.open_uni()).await;
        if let Ok(mut stream) = opened {
            say(&mut stream, [&integer(kind)[..], bytes.as_ref()].concat()).await;
            self.kept.push(stream);
        }
        self.kept.last_mut().expect("the first stream could be opened")
    }

    /// Says more on the one-way stream opened last.
    pub async fn one_way_again(&mut self, bytes: impl AsRef<[u8]>) {
        say(self.kept.last_mut().expect("one was opened"), bytes).await;
    }

    /// Opens a request stream and says this on it.
    pub async fn stream(&self, bytes: impl AsRef<[u8]>) -> Option<(SendStream, RecvStream)> {
        let opened = within(PATIENCE, "a stream", self.quic.connection.open_bi()).await;
        let (mut send, receive) = opened.ok()?;
        say(&mut send, bytes).await;
        Some((send, receive))
    }

    /// Says this on a request stream, ends it, and tells what became of it.
    pub async fn ask(&self, bytes: impl AsRef<[u8]>) -> Heard {
        let Some((mut send, mut receive)) = self.stream(bytes).await else { return self.farewell().await };
        let _ = send.finish();
        self.heard(&mut receive).await
    }

    /// Reads until it is known what became of the request on this stream.
    pub async fn heard(&self, receive: &mut RecvStream) -> Heard {
        let (mut input, mut status, mut content) = (Vec::new(), 0, 0);
        loop {
            match within(PATIENCE, "an HTTP/3 answer", receive.read_chunk(64 * 1024, true)).await {
                Ok(Some(chunk)) => input.extend_from_slice(&chunk.bytes),
                Ok(None) if status == 0 => return Heard::Nothing,
                Ok(None) => return Heard::Answer(status, content),
                Err(ReadError::Reset(code)) => return Heard::Reset(code.into_inner()),
                Err(_) => return self.farewell().await,
            }
            while let Some((kind, payload)) = take_frame(&mut input) {
                match kind {
                    HEADERS if status < 200 => status = status_of(&payload),
                    DATA => content += payload.len(),
                    _ => {}
                }
            }
        }
    }

    /// Waits for the end of the connection.
    pub async fn farewell(&self) -> Heard {
        match self.quic.closed().await {
            super::End::Closed(code) => Heard::Closed(code),
            _ => Heard::Nothing,
        }
    }

    /// For faults beside requests, which QUIC may deliver after a request that was sent later: is the connection closed
    /// soon? `otherwise` is what was heard on a stream.
    pub async fn closed_soon_or(&self, otherwise: Heard) -> Heard {
        let closed = tokio::time::timeout(CLOSE_MAX, self.quic.closed()).await;
        if closed.is_ok() { self.farewell().await } else { otherwise }
    }

    /// Takes the node's control stream, of which the GOAWAYs can then be read.
    pub async fn control(&self) -> Control {
        loop {
            let accepted = within(PATIENCE, "the control stream", self.quic.connection.accept_uni()).await;
            let mut control =
                Control { stream: accepted.expect("the connection is open"), input: Vec::new() };
            if control.integer().await == Some(CONTROL) {
                return control;
            }
        }
    }
}

/// The node's control stream.
pub struct Control {
    stream: RecvStream,
    input: Vec<u8>,
}

impl Control {
    async fn more(&mut self) -> Option<()> {
        let chunk = within(PATIENCE, "the control stream", self.stream.read_chunk(4096, true)).await;
        self.input.extend_from_slice(&chunk.ok()??.bytes);
        Some(())
    }

    async fn integer(&mut self) -> Option<u64> {
        loop {
            if let Some((number, length)) = read_integer(&self.input) {
                self.input.drain(..length);
                return Some(number);
            }
            self.more().await?;
        }
    }

    /// The id in the next GOAWAY; `None` at the end of the connection.
    pub async fn goaway(&mut self) -> Option<u64> {
        loop {
            match take_frame(&mut self.input) {
                Some((GOAWAY, payload)) => return read_integer(&payload).map(|(id, _)| id),
                Some(_) => {}
                None => self.more().await?,
            }
        }
    }
}

/// A peer that refuses to listen is seen by who reads.
async fn say(stream: &mut SendStream, bytes: impl AsRef<[u8]>) {
    let _ = within(PATIENCE, "sending over QUIC", stream.write_all(bytes.as_ref())).await;
}

pub fn reset(mut stream: SendStream, code: u32) {
    let _ = stream.reset(VarInt::from_u32(code));
}

fn read_integer(bytes: &[u8]) -> Option<(u64, usize)> {
    let length = 1 << (bytes.first()? >> 6);
    let first = u64::from(bytes[0] & 0x3f);
    let rest = bytes.get(1..length)?;
    Some((rest.iter().fold(first, |number, byte| number << 8 | u64::from(*byte)), length))
}

fn take_frame(input: &mut Vec<u8>) -> Option<(u64, Vec<u8>)> {
    let (kind, at) = read_integer(input)?;
    let (length, more) = read_integer(&input[at..])?;
    let begins = at + more;
    let ends = begins + length as usize;
    let payload = input.get(begins..ends)?.to_vec();
    input.drain(..ends);
    Some((kind, payload))
}

/// The status that a field section begins with.
fn status_of(section: &[u8]) -> u16 {
    // RFC 9204, appendix A, 24 to 28 and 63 to 71.
    const LOW: [u16; 5] = [103, 200, 304, 404, 503];
    const HIGH: [u16; 9] = [100, 204, 206, 302, 400, 403, 421, 425, 500];
    let field = &section[2..];
    match field[0] {
        indexed @ 0xd8..=0xdc => LOW[usize::from(indexed - 0xd8)],
        0xff => HIGH[usize::from(field[1])],
        // A literal with a name of the static table.
        literal @ 0x50..=0x7f => {
            let at = if literal & 0x0f == 0x0f { 2 } else { 1 };
            let length = usize::from(field[at] & 0x7f);
            digits(&field[at + 1..at + 1 + length], field[at] & 0x80 != 0)
        }
        other => panic!("an answer that begins with the field {other:#x}"),
    }
}

//! HTTP/2 frame by frame over a plain connection, so that a test can say what no library would.

use std::net::SocketAddr;
use std::time::Duration;

use super::heard::{Heard, digits};
use super::{End, Wire};

/// Frame types (RFC 9113, 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags.
pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADER_TABLE_SIZE: u16 = 1;

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// The bytes of a frame, sensible or not.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A field block of literals: no table, no Huffman code (RFC 7541, 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(text.len(), 127, &mut bytes);
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// An integer after a prefix whose bits can hold `max` (RFC 7541, 5.1); the bits before the prefix are zero.
fn integer(number: usize, max: usize, bytes: &mut Vec<u8>) {
    if number < max {
        return bytes.push(number as u8);
    }
    bytes.push(max as u8);
    let mut rest = number - max;
    while rest >= 128 {
        bytes.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    bytes.push(rest as u8);
}

/// A HEADERS frame with a whole field block.
pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block(fields))
}

/// The pseudo-header fields of a good request.
pub fn good<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "http"), (":authority", "bed.example"), (":path", path)]
}

/// A good GET.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    headers(stream, END_STREAM, &good("GET", path))
}

pub struct RawH2 {
    wire: Wire,
}

impl RawH2 {
    /// Nothing is said yet, not even the preface.
    pub async fn bare(address: SocketAddr) -> RawH2 {
        RawH2 { wire: Wire::connect(address).await }
    }

    /// The preface is sent, and SETTINGS that forbid the dynamic table, which this reader does not know.
    pub async fn connect(address: SocketAddr) -> RawH2 {
        let mut raw = RawH2::bare(address).await;
        raw.send(PREFACE).await;
        raw.send(frame(SETTINGS, 0, 0, setting(HEADER_TABLE_SIZE, 0))).await;
        raw
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes).await;
    }

    /// Sends unless the node takes nothing for so long, or has closed.
    pub async fn try_send(&mut self, bytes: &[u8], patience: Duration) -> bool {
        let sending = tokio::io::AsyncWriteExt::write_all(&mut self.wire.stream, bytes);
        tokio::time::timeout(patience, sending).await.is_ok_and(|sent| sent.is_ok())
    }

    /// Does the connection end soon, read on as fast as frames come? What its end was, if so.
    pub async fn ends_soon(&mut self) -> Option<Heard> {
        tokio::time::timeout(Duration::from_secs(1), self.farewell()).await.ok()
    }

    /// The next frame.
    pub async fn next(&mut self) -> Result<Frame, End> {
        let head = self.wire.take(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Ok(Frame { kind: head[3], flags: head[4], stream, payload: self.wire.take(length).await? })
    }

    /// The next frame of this type; others are passed over, and acknowledged where that is due.
    pub async fn next_of(&mut self, kind: u8) -> Result<Frame, End> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind && !(frame.kind == SETTINGS && frame.flags & ACK != 0) {
                return Ok(frame);
            }
            self.acknowledge(&frame).await;
        }
    }

    async fn acknowledge(&mut self, got: &Frame) {
        if matches!(got.kind, SETTINGS | PING) && got.flags & ACK == 0 {
            let payload = if got.kind == PING { &got.payload[..] } else { &[] };
            self.send(frame(got.kind, ACK, 0, payload)).await;
        }
    }

    /// Reads until it is known what became of the request on this stream.
    pub async fn heard(&mut self, stream: u32) -> Heard {
        let (mut status, mut bytes, mut farewell) = (0, 0, None);
        loop {
            let Ok(frame) = self.next().await else {
                // A connection may end gracefully without having served all its streams.
                return farewell.map_or(Heard::Nothing, Heard::Closed);
            };
            self.acknowledge(&frame).await;
            let of_stream = frame.stream == stream;
            match frame.kind {
                GOAWAY => match code_at(&frame.payload, 4) {
                    0 => farewell = Some(0),
                    code => return Heard::Closed(code),
                },
                RST_STREAM if of_stream => return Heard::Reset(code_at(&frame.payload, 0)),
                HEADERS if of_stream && status < 200 => status = status_of(&frame.payload),
                DATA if of_stream => bytes += frame.payload.len(),
                _ => {}
            }
            if of_stream && matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
                return Heard::Answer(status, bytes);
            }
        }
    }

    /// Waits for the end of the connection: the code of the last GOAWAY before it.
    pub async fn farewell(&mut self) -> Heard {
        self.heard(u32::MAX).await
    }
}

fn code_at(payload: &[u8], at: usize) -> u64 {
    let code = payload.get(at..at + 4).and_then(|code| code.try_into().ok());
    u32::from_be_bytes(code.expect("an error code has four bytes")).into()
}

/// The status that a field block begins with; a change of the table's size may be before it.
fn status_of(block: &[u8]) -> u16 {
    const TABLE: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let at = block.iter().position(|byte| byte & 0xe0 != 0x20).expect("an answer has fields");
    match block[at] {
        indexed @ 0x88..=0x8e => TABLE[usize::from(indexed - 0x88)],
        // A literal with the name `:status`, whatever is to be done with it.
        0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e => {
            let length = usize::from(block[at + 1] & 0x7f);
            digits(&block[at + 2..at + 2 + length], block[at + 1] & 0x80 != 0)
        }
        other => panic!("an answer that begins with the field {other:#x}"),
    }
}

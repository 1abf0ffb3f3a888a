//! Body framing (RFC 9112, 6 and 7): bytes of the connection in, content out, and the other way round.

use bytes::{Bytes, BytesMut};

use super::FIELDS_MAX;

/// Longest chunk-size line, extensions included; a longer one is an attack on the parser, not a body.
const CHUNK_LINE_MAX: usize = 256;
/// Longest trailer section.
const TRAILERS_MAX: usize = 16 * 1024;

/// The body cannot be decoded; the connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed body: {0}")]
pub struct MalformedBody(pub &'static str);

/// What `Decoder::decode` found.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Content, never empty.
    Data(Bytes),
    /// More bytes of the connection are needed.
    Starved,
    /// The body is whole. Trailer field lines as they came, without the empty line; empty when there are none.
    End(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    ChunkLine,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

/// Takes a body off a buffer. Call `decode` until it is starved, read more into the buffer, call again.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    state: State,
}

impl Decoder {
    pub fn none() -> Decoder {
        Decoder { state: State::Done }
    }

    pub fn length(bytes: u64) -> Decoder {
        Decoder { state: if bytes == 0 { State::Done } else { State::Length(bytes) } }
    }

    pub fn chunked() -> Decoder {
        Decoder { state: State::ChunkLine }
    }

    pub fn until_close() -> Decoder {
        Decoder { state: State::UntilClose }
    }

    /// Is the body known to be whole?
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// May the sender end this body by closing the connection?
    pub fn ends_by_close(&self) -> bool {
        self.state == State::UntilClose
    }

    /// The connection ended. `Ok`: that was the body's end; `Err`: it is cut short.
    pub fn closed(&mut self) -> Result<(), MalformedBody> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(MalformedBody("cut short")),
        }
    }

    /// Decodes the next piece of `buf`.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, MalformedBody> {
        loop {
            match self.state {
                State::Done => return Ok(Decoded::End(Bytes::new())),
                State::Length(left) => {
                    return Ok(self.data(buf, left, |left| match left {
                        0 => State::Done,
                        _ => State::Length(left),
                    }));
                }
                State::ChunkData(left) => {
                    return Ok(self.data(buf, left, |left| match left {
                        0 => State::ChunkEnd,
                        _ => State::ChunkData(left),
                    }));
                }
                State::UntilClose => {
                    return Ok(if buf.is_empty() {
                        Decoded::Starved
                    } else {
                        Decoded::Data(buf.split().freeze())
                    });
                }
                State::ChunkEnd => {
                    if buf.len() < 2 {
                        return Ok(Decoded::Starved);
                    }
                    if buf[..2] != *b"\r\n" {
                        return Err(MalformedBody("no line end after a chunk"));
                    }
                    let _ = buf.split_to(2);
                    self.state = State::ChunkLine;
                }
                State::ChunkLine => match chunk_line(buf)? {
                    None => return Ok(Decoded::Starved),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::ChunkData(size),
                },
                State::Trailers => {
                    return Ok(match trailers(buf)? {
                        None => Decoded::Starved,
                        Some(lines) => {
                            self.state = State::Done;
                            Decoded::End(lines)
                        }
                    });
                }
            }
        }
    }

    fn data(&mut self, buf: &mut BytesMut, left: u64, next: fn(u64) -> State) -> Decoded {
        if buf.is_empty() {
            return Decoded::Starved;
        }
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        self.state = next(left - take as u64);
        Decoded::Data(buf.split_to(take).freeze())
    }
}

/// Takes a chunk-size line; `None` when it is not all there. Bare LF is refused: parsers differ on it.
fn chunk_line(buf: &mut BytesMut) -> Result<Option<u64>, MalformedBody> {
    let window = &buf[..buf.len().min(CHUNK_LINE_MAX)];
    let Some(end) = window.iter().position(|b| *b == b'\n') else {
        return if buf.len() >= CHUNK_LINE_MAX {
            Err(MalformedBody("chunk line too long"))
        } else {
            Ok(None)
        };
    };
    if end == 0 || window[end - 1] != b'\r' {
        return Err(MalformedBody("bare line feed in a chunk line"));
    }
    let line = &window[..end - 1];
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let extension = line[digits..].trim_ascii_start();
    if digits == 0
        || digits > 15
        || !(extension.is_empty() || extension[0] == b';')
        || extension.contains(&b'\r')
    {
        return Err(MalformedBody("malformed chunk size"));
    }
    let size =
        line[..digits].iter().fold(0u64, |n, b| n * 16 + u64::from((*b as char).to_digit(16).unwrap_or(0)));
    let _ = buf.split_to(end + 1);
    Ok(Some(size))
}

/// Takes the trailer section with its empty line; `None` when it is not all there. Gives the lines anew, without
/// fields that have no business there: what frames, routes or authorises a message is decided by its head
/// (RFC 9110, 6.5.1).
fn trailers(buf: &mut BytesMut) -> Result<Option<Bytes>, MalformedBody> {
    if buf.starts_with(b"\r\n") {
        let _ = buf.split_to(2);
        return Ok(Some(Bytes::new()));
    }
    let Some(end) = buf.windows(4).position(|four| four == b"\r\n\r\n") else {
        // What begins as an empty line of another kind will never end in the right one.
        return match buf.len() {
            length if length > TRAILERS_MAX || buf.starts_with(b"\n") => {
                Err(MalformedBody("malformed trailers"))
            }
            _ => Ok(None),
        };
    };
    let section = buf.split_to(end + 4);
    let bare = |at: usize| section[at] == b'\n' && (at == 0 || section[at - 1] != b'\r');
    if (0..section.len()).any(bare) {
        return Err(MalformedBody("bare line feed in the trailers"));
    }
    let mut headers = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(httparse::Status::Complete((length, fields))) = httparse::parse_headers(&section, &mut headers)
    else {
        return Err(MalformedBody("malformed trailers"));
    };
    if length != section.len() {
        return Err(MalformedBody("malformed trailers"));
    }
    let mut lines = BytesMut::with_capacity(section.len());
    for field in fields.iter().filter(|field| may_be_trailer(field.name)) {
        for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    Ok(Some(lines.freeze()))
}

/// May a field of this name come after the content?
pub fn may_be_trailer(name: &str) -> bool {
    const NEVER: [&str; 26] = [
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "keep-alive",
        "location",
        "max-forwards",
        "proxy-authorization",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "via",
        "x-request-id",
    ];
    let forwarding = name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded-"));
    !forwarding && !NEVER.iter().any(|n| n.eq_ignore_ascii_case(name))
}

/// Frames a body for sending. The caller appends head and frames to one buffer and sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// No body may follow the head.
    None,
    Length(u64),
    Chunked,
    /// Ends with the connection.
    UntilClose,
}

impl Encoder {
    /// Appends what comes before `bytes` of content; an error when that is more than was promised, and then nothing of it
    /// may be sent.
    pub fn before(&mut self, bytes: usize, out: &mut BytesMut) -> Result<(), MalformedBody> {
        match self {
            Encoder::Chunked => {
                use std::fmt::Write;
                // Writing to a BytesMut fails only at usize::MAX bytes.
                let _ = write!(out, "{bytes:x}\r\n");
            }
            Encoder::Length(left) => {
                *left =
                    left.checked_sub(bytes as u64).ok_or(MalformedBody("longer than its Content-Length"))?;
            }
            Encoder::UntilClose => {}
            Encoder::None => return Err(MalformedBody("content where none may be")),
        }
        Ok(())
    }

    /// Appends what comes after the content announced by `before`.
    pub fn after(&self, out: &mut BytesMut) {
        if *self == Encoder::Chunked {
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Appends the end; an error when less was given than promised, and then the connection must be cut.
    pub fn end(&self, trailers: &[u8], out: &mut BytesMut) -> Result<(), MalformedBody> {
        match self {
            Encoder::Chunked => {
                out.extend_from_slice(b"0\r\n");
                out.extend_from_slice(trailers);
                out.extend_from_slice(b"\r\n");
                Ok(())
            }
            Encoder::Length(left) if *left > 0 => Err(MalformedBody("shorter than its Content-Length")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(decoder: &mut Decoder, buf: &mut BytesMut) -> Result<(Vec<u8>, Option<Bytes>), MalformedBody> {
        let mut content = Vec::new();
        loop {
            match decoder.decode(buf)? {
                Decoded::Data(data) => content.extend_from_slice(&data),
                Decoded::Starved => return Ok((content, None)),
                Decoded::End(trailers) => return Ok((content, Some(trailers))),
            }
        }
    }

    #[test]
    fn a_length_takes_no_byte_more() {
        let mut buf = BytesMut::from("hello!GET");
        assert_eq!(all(&mut Decoder::length(6), &mut buf).unwrap(), (b"hello!".to_vec(), Some(Bytes::new())));
        assert_eq!(&buf[..], b"GET");
    }

    #[test]
    fn trailers_come_through() {
        let mut buf = BytesMut::from("3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\nrest");
        let (content, trailers) = all(&mut Decoder::chunked(), &mut buf).unwrap();
        assert_eq!(
            (&content[..], &trailers.unwrap()[..], &buf[..]),
            (&b"abc"[..], &b"A: b\r\n"[..], &b"rest"[..])
        );
    }

    #[test]
    fn trailers_cannot_say_what_the_head_decides() {
        let mut buf = BytesMut::from("0\r\nHost: x\r\nX-Forwarded-For: y\r\nDigest: z\r\n\r\n");
        let (_, trailers) = all(&mut Decoder::chunked(), &mut buf).unwrap();
        assert_eq!(&trailers.unwrap()[..], b"Digest: z\r\n");
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let long = format!("1;{}\r\n", "x".repeat(300));
        for text in [
            "g\r\n",
            "\r\n",
            "3\nabc",
            "-1\r\n",
            "1 2\r\n",
            "1\r\nab\r\n",
            "ffffffffffffffff\r\n",
            &long,
            "0\r\n: x\r\n\r\n",
            "0\r\nA: b\n\r\n\r\n",
            "0\r\n\nA: b\n\n",
            "0\r\nA: b\n\nB: c\r\n\r\n",
        ] {
            assert!(all(&mut Decoder::chunked(), &mut BytesMut::from(text)).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_early_end_is_told_from_a_whole_body() {
        assert!(Decoder::length(1).closed().is_err());
        assert!(Decoder::chunked().closed().is_err());
        assert!(Decoder::until_close().closed().is_ok());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8), cut in 1usize..20,
        ) {
            let mut encoder = Encoder::Chunked;
            let mut wire = BytesMut::new();
            for part in &parts {
                encoder.before(part.len(), &mut wire).unwrap();
                wire.extend_from_slice(part);
                encoder.after(&mut wire);
            }
            encoder.end(b"", &mut wire).unwrap();
            let (mut decoder, mut buf, mut content, mut ended) =
                (Decoder::chunked(), BytesMut::new(), Vec::new(), false);
            for piece in wire.chunks(cut) {
                buf.extend_from_slice(piece);
                let (more, end) = all(&mut decoder, &mut buf).unwrap();
                content.extend(more);
                ended = end.is_some();
            }
            prop_assert!(ended);
            prop_assert_eq!(content, parts.concat());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(&mut Decoder::chunked(), &mut BytesMut::from(&bytes[..]));
        }
    }
}

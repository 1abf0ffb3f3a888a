//! The frames of a stream as they pass by (RFC 9114, 7.1): what `h3` neither tells nor bounds.

use h3::error::Code;

/// DATA and HEADERS (RFC 9114, 11.2.1), and the type of a control stream (11.2.4).
const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
const CONTROL: u64 = 0x0;

/// Frames of DATA without content that one request may have.
const EMPTY_DATA_MAX: u64 = 1000;

/// What kind of stream is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    /// Unidirectional; its type is still to come.
    Unknown,
    Control,
    /// No frames of HTTP/3.
    Other,
}

/// Looks at the bytes of one stream, in order and in whatever pieces they come.
#[derive(Debug)]
pub struct Scanner {
    kind: Kind,
    /// Bytes of frames but DATA that `h3` may have to hold: of one frame, on a request also of all together.
    held_max: u64,
    held: u64,
    /// A frame's type, once it is read.
    frame: Option<u64>,
    /// Bytes left of a frame's payload.
    payload: u64,
    in_data: bool,
    /// An integer of which not all bytes have come.
    integer: Vec<u8>,
    /// DATA frames without content, which `h3` takes for the end of content.
    pub empty_data: u64,
    /// Content that has passed.
    pub content: u64,
    heads: u32,
    violation: Option<Code>,
}

impl Scanner {
    /// Of a stream that carries a request.
    pub fn of_request(held_max: u64) -> Scanner {
        Scanner {
            kind: Kind::Request,
            held_max,
            held: 0,
            frame: None,
            payload: 0,
            in_data: false,
            integer: Vec::new(),
            empty_data: 0,
            content: 0,
            heads: 0,
            violation: None,
        }
    }

    /// Of a unidirectional stream.
    pub fn of_unidirectional(held_max: u64) -> Scanner {
        Scanner { kind: Kind::Unknown, ..Scanner::of_request(held_max) }
    }

    /// `Err`: the connection is to end with this code.
    pub fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Code> {
        while !bytes.is_empty() && self.kind != Kind::Other {
            if self.payload > 0 {
                let skipped = bytes.len().min(usize::try_from(self.payload).unwrap_or(usize::MAX));
                self.payload -= skipped as u64;
                if self.in_data {
                    self.content += skipped as u64;
                }
                bytes = &bytes[skipped..];
                continue;
            }
            self.integer.push(bytes[0]);
            bytes = &bytes[1..];
            // The first two bits tell how many bytes the integer has (RFC 9000, 16).
            if self.integer.len() < 1 << (self.integer[0] >> 6) {
                continue;
            }
            let first = u64::from(self.integer[0] & 0x3f);
            let integer = self.integer[1..].iter().fold(first, |sum, byte| sum << 8 | u64::from(*byte));
            self.integer.clear();
            match (self.kind, self.frame.take()) {
                (Kind::Unknown, _) => {
                    self.kind = if integer == CONTROL { Kind::Control } else { Kind::Other };
                }
                (_, None) => self.frame = Some(integer),
                (_, Some(frame)) => self.begin(frame, integer),
            }
        }
        self.violation.map_or(Ok(()), Err)
    }

    /// The stream ends here: in the middle of a frame, that is an error of the connection (RFC 9114, 7.1).
    pub fn end(&self) -> Result<(), Code> {
        let within = self.payload > 0 || self.frame.is_some() || !self.integer.is_empty();
        if self.kind == Kind::Request && within { Err(Code::H3_FRAME_ERROR) } else { Ok(()) }
    }

    fn begin(&mut self, frame: u64, length: u64) {
        self.payload = length;
        self.in_data = frame == DATA;
        if frame != DATA {
            self.held = if self.kind == Kind::Request { self.held.saturating_add(length) } else { length };
            if self.held > self.held_max {
                self.violation = Some(Code::H3_EXCESSIVE_LOAD);
            }
        }
        if self.kind != Kind::Request {
            return;
        }
        match frame {
            DATA => {
                self.empty_data += u64::from(length == 0);
                if self.empty_data > EMPTY_DATA_MAX {
                    self.violation = Some(Code::H3_EXCESSIVE_LOAD);
                }
                // Nothing but odd frames may follow trailers (RFC 9114, 4.1).
                if self.heads > 1 {
                    self.violation = Some(Code::H3_FRAME_UNEXPECTED);
                }
            }
            HEADERS => {
                self.heads += 1;
                if self.heads > 2 {
                    self.violation = Some(Code::H3_FRAME_UNEXPECTED);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD_MAX: u64 = 200;

    /// A length in two bytes, though one would do.
    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = 0x4000 | u16::try_from(payload.len()).unwrap();
        [&[kind], &length.to_be_bytes()[..], payload].concat()
    }

    fn looked_at(mut scanner: Scanner, bytes: &[u8], size: usize) -> (Result<(), Code>, Scanner) {
        let passed = bytes.chunks(size).try_for_each(|piece| scanner.pass(piece));
        (passed, scanner)
    }

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let head = frame(1, b"head");
        let stream = |frames: &[Vec<u8>]| [head.clone(), frames.concat()].concat();
        let unexpected = Err(Code::H3_FRAME_UNEXPECTED);
        let load = Err(Code::H3_EXCESSIVE_LOAD);
        let cases = [
            (stream(&[frame(0, b"a"), frame(0, b"b")]), 0, Ok(())),
            (stream(&[frame(0, b"a"), frame(0, b""), frame(0x21, b"\0\0\0"), frame(0, b"")]), 2, Ok(())),
            (stream(&[frame(0, b"a"), frame(1, b"trailers"), frame(0x21, b"x")]), 0, Ok(())),
            (stream(&[frame(0, &[b'a'; 1000])]), 0, Ok(())),
            (stream(&[frame(1, b"trailers"), frame(0, b"a")]), 0, unexpected),
            (stream(&[frame(1, b"trailers"), frame(1, b"more")]), 0, unexpected),
            (stream(&[frame(0x21, &[0; 150]), frame(0x21, &[0; 150])]), 0, load),
            (stream(&vec![frame(0, b""); 1001]), 1001, load),
        ];
        for (bytes, empty, expected) in cases {
            for size in (1..=20).chain([bytes.len()]) {
                let (passed, scanner) = looked_at(Scanner::of_request(HELD_MAX), &bytes, size);
                assert_eq!(passed, expected, "{bytes:?} by {size}");
                if passed.is_ok() {
                    assert_eq!((scanner.empty_data, scanner.end()), (empty, Ok(())), "{bytes:?} by {size}");
                }
            }
        }
    }

    #[test]
    fn an_end_within_a_frame_is_seen() {
        let bytes = [frame(1, b"head"), frame(0, b"abc")].concat();
        for cut in 1..bytes.len() {
            let (passed, scanner) = looked_at(Scanner::of_request(HELD_MAX), &bytes[..cut], 3);
            assert!(passed.is_ok());
            let between_frames = cut == frame(1, b"head").len();
            assert_eq!(scanner.end().is_ok(), between_frames, "{cut}");
        }
    }

    #[test]
    fn only_frames_of_the_control_stream_are_bounded_one_by_one() {
        let many = [vec![0], frame(0x21, &[0; 150]).repeat(9)].concat();
        assert!(looked_at(Scanner::of_unidirectional(HELD_MAX), &many, 7).0.is_ok());
        let long = [&[0][..], &frame(0x21, &[0; 201])].concat();
        assert_eq!(looked_at(Scanner::of_unidirectional(HELD_MAX), &long, 7).0, Err(Code::H3_EXCESSIVE_LOAD));
        let of_qpack = [&[2][..], &[0xff; 1000]].concat();
        assert!(looked_at(Scanner::of_unidirectional(HELD_MAX), &of_qpack, 7).0.is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = Scanner::of_request(HELD_MAX).pass(&bytes);
            let _ = Scanner::of_unidirectional(HELD_MAX).pass(&bytes);
        }
    }
}

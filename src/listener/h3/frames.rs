//! The frames of a request stream as they pass by (RFC 9114, 7.1): what `h3` does not tell of them.

/// DATA and HEADERS (RFC 9114, 11.2.1).
const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;

/// Looks at the bytes of one request stream, in order and in whatever pieces they come.
#[derive(Debug, Default)]
pub struct Scanner {
    /// A frame's type, once it is read.
    kind: Option<u64>,
    /// Bytes left of a frame's payload.
    payload: u64,
    /// An integer of which not all bytes have come.
    integer: Vec<u8>,
    /// DATA frames without content, which `h3` takes for the end of content.
    pub empty_data: u64,
    heads: u32,
    /// Content after trailers, or a third head (RFC 9114, 4.1).
    pub disordered: bool,
}

impl Scanner {
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = bytes.len().min(usize::try_from(self.payload).unwrap_or(usize::MAX));
                self.payload -= skipped as u64;
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
            match self.kind.take() {
                None => self.kind = Some(integer),
                Some(kind) => self.begin(kind, integer),
            }
        }
    }

    fn begin(&mut self, kind: u64, length: u64) {
        self.payload = length;
        match kind {
            DATA => {
                self.empty_data += u64::from(length == 0);
                self.disordered |= self.heads > 1;
            }
            HEADERS => {
                self.heads += 1;
                self.disordered |= self.heads > 2;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        // A length in two bytes, though one would do.
        let mut frame = vec![kind, 0x40, payload.len() as u8];
        frame.extend(payload);
        frame
    }

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let head = frame(1, b"head");
        let stream = |frames: &[Vec<u8>]| [head.clone(), frames.concat()].concat();
        let cases = [
            (stream(&[frame(0, b"a"), frame(0, b"b")]), 0, false),
            (stream(&[frame(0, b"a"), frame(0, b""), frame(0x21, b"\0\0\0"), frame(0, b"")]), 2, false),
            (stream(&[frame(0, b"a"), frame(1, b"trailers"), frame(0x21, b"x")]), 0, false),
            (stream(&[frame(1, b"trailers"), frame(0, b"a")]), 0, true),
            (stream(&[frame(1, b"trailers"), frame(1, b"more")]), 0, true),
        ];
        for (bytes, empty, disordered) in cases {
            for size in 1..=bytes.len() {
                let mut scanner = Scanner::default();
                bytes.chunks(size).for_each(|piece| scanner.pass(piece));
                assert_eq!(
                    (scanner.empty_data, scanner.disordered),
                    (empty, disordered),
                    "{bytes:?} by {size}"
                );
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            Scanner::default().pass(&bytes);
        }
    }
}

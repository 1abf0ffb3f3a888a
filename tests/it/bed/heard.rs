//! What a client of raw frames hears for an answer, and the little of HPACK and QPACK it needs for that: both begin an answer
//! with its `:status`, and write digits alike.

use std::fmt;

/// What became of a request made of raw frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A whole answer: status, bytes of content.
    Answer(u16, usize),
    /// The stream was reset with this code.
    Reset(u64),
    /// The connection was closed with this code.
    Closed(u64),
    /// The stream, or the connection, ended without a word.
    Nothing,
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Heard::Answer(status, bytes) => write!(f, "{status} with {bytes} bytes"),
            Heard::Reset(code) => write!(f, "stream reset {code:#x}"),
            Heard::Closed(code) => write!(f, "connection closed {code:#x}"),
            Heard::Nothing => write!(f, "ended without a word"),
        }
    }
}

/// Three digits of a literal: as they are, or in the Huffman code of RFC 7541, appendix B.
pub(super) fn digits(literal: &[u8], is_huffman: bool) -> u16 {
    let mut number = 0;
    if !is_huffman {
        for digit in literal {
            number = number * 10 + u16::from(digit - b'0');
        }
        return number;
    }
    let bits = literal.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let mut left = literal.len() * 8;
    for _ in 0..3 {
        let take = |bits_wanted: usize| bits >> (left - bits_wanted) & ((1 << bits_wanted) - 1);
        // 0 to 2 have five bits, the other digits six.
        let (digit, used) = match take(5) {
            short @ 0..3 => (short, 5),
            _ => (take(6) - 0b01_1001 + 3, 6),
        };
        number = number * 10 + digit as u16;
        left -= used;
    }
    number
}

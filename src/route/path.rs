//! Can an origin read another path than the one that was sent?

/// How far a request's path may be from the path its origin acts upon.
///
/// Origins decode `%2F` and `%2E`, merge `//`, turn `\` into `/`, resolve dot segments, or do none of it. A route
/// narrower than what the origin sees would lend its cache or its limits to a foreign resource, so exact and
/// `{param}` routes take plain paths only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Means the same to every origin, as far as segments go.
    Plain,
    /// Has `//`, `.`, an encoded dot, or a separator other than a plain `/`. It may name another resource, but one
    /// below the same leading segments.
    Indirect,
    /// May have a `..` segment, and so mean any path at all. Only `/*` can hold it.
    Climbing,
}

impl Shape {
    /// Classifies a path without its query. One pass, no allocation.
    pub fn of(path: &str) -> Shape {
        let bytes = path.as_bytes();
        if is_surely_plain(bytes) { Shape::Plain } else { classify(bytes) }
    }
}

fn is_surely_plain(bytes: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in bytes {
        if byte == b'%' || byte == b'\\' || (previous == b'/' && (byte == b'/' || byte == b'.')) {
            return false;
        }
        previous = byte;
    }
    true
}

/// What a segment has been so far.
#[derive(Clone, Copy, PartialEq)]
enum Segment {
    Empty,
    Dot,
    DotDot,
    Other,
}

fn classify(bytes: &[u8]) -> Shape {
    let mut shape = Shape::Plain;
    let mut segment = Segment::Other; // What precedes the first slash is no segment.
    let mut in_parameters = false;
    let mut at = 0;
    while at < bytes.len() {
        let (byte, width) = decode(&bytes[at..]);
        at += width;
        if width > 1 && matches!(byte, b'/' | b'\\' | b'.') || byte == b'\\' {
            shape = shape.max(Shape::Indirect);
        }
        match byte {
            b'/' | b'\\' => {
                shape = shape.max(shape_of_ended(segment, false));
                segment = Segment::Empty;
                in_parameters = false;
            }
            // Java servers cut `;name=value` off a segment before they resolve dots: `..;x` climbs there.
            b';' => in_parameters = true,
            _ if in_parameters => {}
            b'.' => {
                segment = match segment {
                    Segment::Empty => Segment::Dot,
                    Segment::Dot => Segment::DotDot,
                    Segment::DotDot | Segment::Other => Segment::Other,
                }
            }
            _ => segment = Segment::Other,
        }
    }
    shape.max(shape_of_ended(segment, true))
}

fn shape_of_ended(segment: Segment, last: bool) -> Shape {
    match segment {
        Segment::Empty if last => Shape::Plain,
        Segment::Empty | Segment::Dot => Shape::Indirect,
        Segment::DotDot => Shape::Climbing,
        Segment::Other => Shape::Plain,
    }
}

/// The first byte, percent-decoded once, and how many bytes it took. A malformed escape stands for itself.
fn decode(bytes: &[u8]) -> (u8, usize) {
    if let [b'%', high, low, ..] = *bytes
        && let (Some(high), Some(low)) = (digit(high), digit(low))
    {
        return (high * 16 + low, 3);
    }
    (bytes[0], 1)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_paths() {
        let cases = [
            ("/", Shape::Plain),
            ("/ping", Shape::Plain),
            ("/a/b/", Shape::Plain),
            ("/a.b/.../x", Shape::Plain),
            ("/.well-known/x", Shape::Plain),
            ("/caf%C3%A9/%6cong", Shape::Plain),
            ("/100%", Shape::Plain),
            ("/%zz%2", Shape::Plain),
            ("/a;b=../c", Shape::Plain),
            ("*", Shape::Plain),
            ("", Shape::Plain),
            ("//", Shape::Indirect),
            ("//long_dummy", Shape::Indirect),
            ("/a//b", Shape::Indirect),
            ("/a/.", Shape::Indirect),
            ("/./a", Shape::Indirect),
            ("/a%2Fb", Shape::Indirect),
            ("/a%2fb", Shape::Indirect),
            ("/a%5Cb", Shape::Indirect),
            ("/a\\b", Shape::Indirect),
            ("/a%2Ehtml", Shape::Indirect),
            ("/a/..", Shape::Climbing),
            ("/..", Shape::Climbing),
            ("/../a", Shape::Climbing),
            ("/a/%2e%2E/b", Shape::Climbing),
            ("/a/.%2e/b", Shape::Climbing),
            ("/a/..%2Fb", Shape::Climbing),
            ("/a/..\\b", Shape::Climbing),
            ("/a%5c..%5cb", Shape::Climbing),
            ("/a/..;x=1/b", Shape::Climbing),
            ("/a/..%3bx/b", Shape::Climbing),
            ("/a//../b", Shape::Climbing),
        ];
        for (path, shape) in cases {
            assert_eq!(Shape::of(path), shape, "{path}");
        }
    }
}

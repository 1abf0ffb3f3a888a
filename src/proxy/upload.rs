//! The content of a request on its way up: held as far as it is held at all, framed for the connection it goes to.

use bytes::{Bytes, BytesMut};

use super::rescue::Rescue;
use crate::http1::{Encoder, Framing, RequestHead};
use crate::listener::Piece;

/// Content that is read before an endpoint is picked, so that a client that sends slowly keeps none waiting, and that is
/// held, so that the request can be sent again. A longer body is passed on as it comes, once.
pub const HELD_BYTES_MAX: usize = 64 * 1024;

/// The content of the request on its way to an origin.
pub struct Upload {
    /// The beginning of the content, to be sent, and sent again to another endpoint.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// The trailers, once the content is whole.
    trailers: Bytes,
    pub ended: bool,
    /// Read from the client, so no longer to be had from it.
    pub received: u64,
    limit: u64,
    encoder: Encoder,
    /// Framed and not yet written.
    pub pending: BytesMut,
    /// The origin took no more of it: the connection can carry nothing after this.
    pub broken: bool,
}

impl Upload {
    pub fn new(request: &RequestHead, limit: u64) -> Upload {
        Upload {
            held: Vec::new(),
            held_bytes: 0,
            trailers: Bytes::new(),
            ended: request.framing == Framing::None,
            received: 0,
            limit,
            encoder: encoder(request.framing),
            pending: BytesMut::new(),
            broken: false,
        }
    }

    /// Can the request be sent from its beginning?
    pub fn repeatable(&self) -> bool {
        self.received == self.held_bytes as u64
    }

    /// Does the proxy hold as much of it as it holds at all?
    pub fn is_full(&self) -> bool {
        self.held_bytes >= HELD_BYTES_MAX
    }

    /// Starts over on a connection: lays the head and what is held ready.
    pub fn restart(&mut self, request: &RequestHead, head: BytesMut) {
        self.pending = head;
        self.broken = false;
        self.encoder = encoder(request.framing);
        for piece in std::mem::take(&mut self.held) {
            self.frame(&piece);
            self.held.push(piece);
        }
        if self.ended {
            let _ = self.encoder.end(&self.trailers, &mut self.pending);
        }
    }

    /// The origin takes no more: what is left is of no use to it, nor is the connection afterwards.
    pub fn give_up(&mut self) {
        self.pending.clear();
        self.ended = true;
        self.broken = true;
    }

    fn frame(&mut self, data: &Bytes) {
        // The decoder of the request lets no byte more through than its framing announces.
        if self.encoder.before(data.len(), &mut self.pending).is_ok() {
            self.pending.extend_from_slice(data);
            self.encoder.after(&mut self.pending);
        }
    }

    /// Takes a piece over from the client. `sending`: it goes to the origin at once, else it is only held.
    pub fn take(&mut self, piece: Piece, sending: bool) -> Result<(), Rescue> {
        match piece {
            Piece::Data(data) => {
                self.received += data.len() as u64;
                if self.received > self.limit {
                    return Err(Rescue::BodyTooLarge);
                }
                if sending {
                    self.frame(&data);
                }
                // A gap makes the request unrepeatable, so nothing after one is held.
                if self.received == (self.held_bytes + data.len()) as u64 && !(sending && self.is_full()) {
                    self.held_bytes += data.len();
                    self.held.push(data);
                }
            }
            Piece::End(trailers) => {
                self.ended = true;
                if sending {
                    let _ = self.encoder.end(&trailers, &mut self.pending);
                }
                self.trailers = trailers;
            }
        }
        Ok(())
    }
}

fn encoder(framing: Framing) -> Encoder {
    match framing {
        Framing::None => Encoder::None,
        Framing::Length(bytes) => Encoder::Length(bytes),
        Framing::Chunked => Encoder::Chunked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunked() -> RequestHead {
        let text = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        RequestHead::take(&mut BytesMut::from(text)).unwrap().unwrap()
    }

    fn data(bytes: usize) -> Piece {
        Piece::Data(Bytes::from(vec![b'x'; bytes]))
    }

    #[test]
    fn what_is_held_is_sent_again_with_its_trailers() {
        let head = chunked();
        let mut upload = Upload::new(&head, u64::MAX);
        upload.take(data(3), false).unwrap();
        upload.take(Piece::End(Bytes::from_static(b"A: b\r\n")), false).unwrap();
        for _ in 0..2 {
            upload.restart(&head, BytesMut::from("head"));
            assert_eq!(&upload.pending[..], b"head3\r\nxxx\r\n0\r\nA: b\r\n\r\n");
            assert!(upload.repeatable());
        }
    }

    #[test]
    fn what_is_longer_is_sent_once() {
        let head = chunked();
        let mut upload = Upload::new(&head, u64::MAX);
        while !upload.is_full() {
            upload.take(data(30_000), false).unwrap();
        }
        upload.restart(&head, BytesMut::new());
        assert!(upload.repeatable(), "nothing but what is held was taken from the client");
        upload.take(data(1), true).unwrap();
        assert!(!upload.repeatable());
        upload.take(data(1), true).unwrap();
        assert!(!upload.repeatable());
    }

    #[test]
    fn content_beyond_the_limit_is_refused() {
        let mut upload = Upload::new(&chunked(), 5);
        upload.take(data(5), false).unwrap();
        assert_eq!(upload.take(data(1), false), Err(Rescue::BodyTooLarge));
    }
}

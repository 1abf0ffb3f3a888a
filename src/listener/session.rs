//! One request and its answer, whatever the protocol beneath.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::http1::RequestHead;

/// The client is of no more use: it left, or it broke the protocol in its body.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    #[error("the client closed the connection")]
    Closed,
    #[error("the client's connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the client sent a malformed body: {0}")]
    Malformed(#[from] crate::http1::MalformedBody),
}

/// A piece of request content.
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    /// The body is whole. Trailer field lines as they came, empty when there are none.
    End(Bytes),
}

/// How the content of an answer is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodySize {
    /// No content follows: HEAD, 204, 304. Fields that describe it are left as they are.
    None,
    Length(u64),
    Unknown,
}

/// The head of an answer: status and ready field lines (`name: value CRLF` each), without framing and connection
/// fields, which the session adds as its protocol wants them.
#[derive(Clone, Copy, Debug)]
pub struct AnswerHead<'a> {
    pub status: StatusCode,
    pub lines: &'a [u8],
    pub body: BodySize,
}

/// Order of calls: `read_body` until its end, as the handler likes; meanwhile `send_interim` any number of times, then
/// `send_head` once, `send` any number of times, `finish` once. A session dropped before `finish` cuts its answer short in
/// a way the client can see.
pub trait Session: Send {
    fn request(&self) -> &RequestHead;

    /// The next piece of the request's content. Safe to drop between calls: nothing is lost. After `End` it says `End` again.
    fn read_body(&mut self) -> impl Future<Output = Result<Piece, Gone>> + Send;

    /// Resolves when the client leaves. To be awaited only once the request is read whole.
    fn left(&mut self) -> impl Future<Output = Gone> + Send;

    /// An informational answer (1xx), sent at once.
    fn send_interim(
        &mut self,
        status: StatusCode,
        lines: &[u8],
    ) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Lays the head ready; it leaves with the first content, or with `flush` or `finish`.
    fn send_head(&mut self, head: AnswerHead<'_>);

    /// Sends content, and the head before it.
    fn send(&mut self, data: Bytes) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Sends what was laid ready, the head say, when its content is not there yet.
    fn flush(&mut self) -> impl Future<Output = Result<(), Gone>> + Send;

    /// Ends the answer with these trailer field lines.
    fn finish(&mut self, trailers: &[u8]) -> impl Future<Output = Result<(), Gone>> + Send;

    /// How long the client may take no byte of an answer before it is given up.
    fn set_write_timeout(&mut self, timeout: Duration);

    /// The connection shall not outlive this exchange.
    fn close_after(&mut self);

    /// The bare connection, after a 101: what was read too early, and the two directions. `None` where the protocol knows
    /// no upgrade.
    fn raw(&mut self) -> Option<(&mut BytesMut, &mut dyn Duplex)>;
}

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

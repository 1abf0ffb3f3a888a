//! The QUIC transport beneath HTTP/3: quinn's streams as the `h3` crate wants them.
//!
//! Unlike the adapter that comes with `h3`, a stream that is dropped before its end is reset, for quinn would finish it and a
//! cut answer would look whole; reading may be stopped at any time; and what the session must know of the streams beneath it
//! (their true end, that the peer stopped reading) is told by [`Facts`].

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::Stream;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use h3::error::Code;
use h3::quic::{ConnectionErrorIncoming, OpenStreams, StreamErrorIncoming, StreamId, WriteBuf};
use parking_lot::Mutex;
use quinn::VarInt;

use super::frames::Scanner;

/// Content that may wait in `h3` before more is read.
const CONTENT_AHEAD_MAX: u64 = 64 * 1024;

/// What is true of one request's streams, whatever `h3` says of it.
#[derive(Debug, Default)]
pub struct Facts {
    /// Stream id.
    pub id: u64,
    /// The peer has sent everything (FIN), and it was read.
    ended: AtomicBool,
    /// DATA frames without content, read so far: `h3` takes each for the end.
    empty_data: AtomicU64,
    /// Content that the session has taken out of `h3`.
    taken: AtomicU64,
    /// The code a stream dropped before its end is reset with; 0: it is finished, as `h3` expects for answers of its own.
    on_drop: AtomicU64,
}

impl Facts {
    /// Has the peer sent everything?
    pub fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// DATA frames without content that were read so far.
    pub fn empty_data(&self) -> u64 {
        self.empty_data.load(Relaxed)
    }

    /// So much content was taken out of `h3`: as much may be read into it.
    pub fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Relaxed);
    }

    /// From now on the streams are reset with this code when they are dropped before their end.
    pub fn reset_on_drop(&self, code: Code) {
        self.on_drop.store(code.value(), Relaxed);
    }
}

/// A request's streams as they were accepted: their facts, and what resolves when the peer reads no further.
pub struct Accepted {
    pub facts: Arc<Facts>,
    /// `true`: it gave up; `false`: it has everything.
    pub stopped: BoxFuture<'static, bool>,
}

/// Where the transport leaves what it knows of the request stream accepted last, for whoever called `accept`.
pub type Newest = Arc<Mutex<Option<Accepted>>>;

/// What all streams of a connection share.
struct Ground {
    quic: quinn::Connection,
    /// Bytes of a frame other than DATA that may have to be held.
    held_max: u64,
}

impl Ground {
    /// Ends the connection; the error for whoever was reading.
    fn violated(&self, code: Code) -> StreamErrorIncoming {
        self.quic.close(varint(code.value()), b"");
        let connection_error = ConnectionErrorIncoming::ApplicationClose { error_code: code.value() };
        StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
    }
}

type Accepting<S> = BoxStream<'static, Result<S, quinn::ConnectionError>>;

/// One QUIC connection.
pub struct Connection {
    opener: Opener,
    bidirectional: Accepting<(quinn::SendStream, quinn::RecvStream)>,
    unidirectional: Accepting<quinn::RecvStream>,
    newest: Newest,
    ground: Arc<Ground>,
}

impl Connection {
    /// `held_max`: the bytes of a frame other than DATA above which the connection is ended.
    pub fn new(connection: quinn::Connection, newest: Newest, held_max: u64) -> Connection {
        let ground = Arc::new(Ground { quic: connection.clone(), held_max });
        let bidirectional = stream::unfold(connection.clone(), |connection| async {
            Some((connection.accept_bi().await, connection))
        });
        let unidirectional = stream::unfold(connection.clone(), |connection| async {
            Some((connection.accept_uni().await, connection))
        });
        Connection {
            bidirectional: bidirectional.boxed(),
            unidirectional: unidirectional.boxed(),
            opener: Opener { connection, opening: None },
            newest,
            ground,
        }
    }
}

/// The next of an endless stream.
fn poll_next<S>(
    accepting: &mut Accepting<S>,
    cx: &mut Context<'_>,
) -> Poll<Result<S, ConnectionErrorIncoming>> {
    match ready!(Pin::new(accepting).poll_next(cx)) {
        Some(accepted) => Poll::Ready(accepted.map_err(connection_error)),
        None => Poll::Ready(Err(ConnectionErrorIncoming::InternalError("nothing to accept from".to_owned()))),
    }
}

impl h3::quic::Connection<Bytes> for Connection {
    type RecvStream = RecvStream;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        let stream = ready!(poll_next(&mut self.unidirectional, cx))?;
        let frames = Scanner::of_unidirectional(self.ground.held_max);
        Poll::Ready(Ok(RecvStream { stream, facts: Arc::default(), frames, ground: self.ground.clone() }))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BidiStream, ConnectionErrorIncoming>> {
        let (send, recv) = ready!(poll_next(&mut self.bidirectional, cx))?;
        let facts = Arc::new(Facts { id: VarInt::from(send.id()).into_inner(), ..Facts::default() });
        let stopped = send.stopped();
        let stopped = Box::pin(async move { !matches!(stopped.await, Ok(None)) });
        *self.newest.lock() = Some(Accepted { facts: facts.clone(), stopped });
        Poll::Ready(Ok(BidiStream {
            send: SendStream { stream: send, writing: None, ended: false, facts: facts.clone() },
            recv: RecvStream {
                stream: recv,
                facts,
                frames: Scanner::of_request(self.ground.held_max),
                ground: self.ground.clone(),
            },
        }))
    }

    fn opener(&self) -> Opener {
        Opener { connection: self.opener.connection.clone(), opening: None }
    }
}

impl OpenStreams<Bytes> for Connection {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        OpenStreams::<Bytes>::close(&mut self.opener, code, reason);
    }
}

type Opening = BoxFuture<'static, Result<quinn::SendStream, quinn::ConnectionError>>;

/// Opens the streams of a server: unidirectional ones.
pub struct Opener {
    connection: quinn::Connection,
    opening: Option<Opening>,
}

impl OpenStreams<Bytes> for Opener {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, _cx: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        Poll::Ready(Err(StreamErrorIncoming::Unknown("a server opens no request".into())))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        let opening = self.opening.get_or_insert_with(|| {
            let connection = self.connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(cx));
        self.opening = None;
        let stream = opened.map_err(|error| StreamErrorIncoming::ConnectionErrorIncoming {
            connection_error: connection_error(error),
        })?;
        Poll::Ready(Ok(SendStream { stream, writing: None, ended: false, facts: Arc::default() }))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(varint(code.value()), reason);
    }
}

/// Both directions of a request.
pub struct BidiStream {
    send: SendStream,
    recv: RecvStream,
}

impl h3::quic::BidiStream<Bytes> for BidiStream {
    type SendStream = SendStream;
    type RecvStream = RecvStream;

    fn split(self) -> (SendStream, RecvStream) {
        (self.send, self.recv)
    }
}

impl h3::quic::RecvStream for BidiStream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl h3::quic::SendStream<Bytes> for BidiStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.send.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// What the peer sends on one stream.
pub struct RecvStream {
    stream: quinn::RecvStream,
    facts: Arc<Facts>,
    frames: Scanner,
    ground: Arc<Ground>,
}

impl h3::quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        // `h3` reads on however much it holds. It holds content now, so there is progress without more of it.
        if self.frames.content.saturating_sub(self.facts.taken.load(Relaxed)) > CONTENT_AHEAD_MAX {
            return Poll::Pending;
        }
        // Dropped while it is pending, the read loses nothing: quinn keeps the waker with the stream.
        let reading = pin!(self.stream.read_chunk(usize::MAX, true));
        let chunk = ready!(reading.poll(cx)).map_err(read_error)?;
        let looked = match &chunk {
            Some(chunk) => self.frames.pass(&chunk.bytes),
            None => self.frames.end(),
        };
        looked.map_err(|code| self.ground.violated(code))?;
        self.facts.empty_data.store(self.frames.empty_data, Relaxed);
        if chunk.is_none() {
            self.facts.ended.store(true, Relaxed);
        }
        Poll::Ready(Ok(chunk.map(|chunk| chunk.bytes)))
    }

    fn stop_sending(&mut self, error_code: u64) {
        // Fails only when there is nothing left to stop.
        let _ = self.stream.stop(varint(error_code));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if !self.facts.ended() {
            let code = match self.facts.on_drop.load(Relaxed) {
                rejected if rejected == Code::H3_REQUEST_REJECTED.value() => rejected,
                // quinn would say 0, which is no code of HTTP/3.
                _ => Code::H3_NO_ERROR.value(),
            };
            let _ = self.stream.stop(varint(code));
        }
    }
}

/// What is sent on one stream.
pub struct SendStream {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    /// Finished or reset.
    ended: bool,
    facts: Arc<Facts>,
}

impl h3::quic::SendStream<Bytes> for SendStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(data) = &mut self.writing {
            while data.has_remaining() {
                let written =
                    ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())).map_err(write_error)?;
                data.advance(written);
            }
            self.writing = None;
        }
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            let error = ConnectionErrorIncoming::InternalError("written to while not ready".to_owned());
            return Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error: error });
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(self.poll_ready(cx))?;
        self.ended = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, reset_code: u64) {
        self.ended = true;
        let _ = self.stream.reset(varint(reset_code));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        let code = self.facts.on_drop.load(Relaxed);
        if !self.ended && code != 0 {
            let _ = self.stream.reset(varint(code));
        }
    }
}

/// Codes are constants of HTTP/3, all within 62 bits.
fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

fn stream_id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(VarInt::from(id).into_inner()).expect("an id of a stream has at most 62 bits")
}

fn connection_error(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        quinn::ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn read_error(error: quinn::ReadError) -> StreamErrorIncoming {
    match error {
        quinn::ReadError::Reset(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        quinn::ReadError::ConnectionLost(error) => {
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
        }
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn write_error(error: quinn::WriteError) -> StreamErrorIncoming {
    match error {
        quinn::WriteError::Stopped(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        quinn::WriteError::ConnectionLost(error) => {
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
        }
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

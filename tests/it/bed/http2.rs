//! HTTP/2 by the `h2` crate, over TLS and by prior knowledge.

use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::client::{Ask, fields_of, head_of};
use super::{Answer, End, PATIENCE, Tls, Wire, within};

/// A connection; requests may be made from several tasks at once by clones.
#[derive(Clone)]
pub struct H2 {
    send: SendRequest<Bytes>,
    scheme: &'static str,
    _driver: std::sync::Arc<Driver>,
}

/// An answer whose head came and whose content is not read, unless it is asked to be.
pub struct H2Answer {
    answer: Answer,
    content: RecvStream,
}

/// Of one stream, and of the whole connection, in bytes.
pub struct Windows(pub u32, pub u32);

impl Windows {
    const WIDE: Windows = Windows(1 << 20, 8 << 20);
}

impl H2 {
    pub async fn plain(address: SocketAddr) -> H2 {
        H2::over(Wire::connect(address).await.stream, "http", Windows::WIDE).await
    }

    pub async fn secured(address: SocketAddr) -> H2 {
        H2::secured_with(address, Windows::WIDE).await
    }

    pub async fn secured_with(address: SocketAddr, windows: Windows) -> H2 {
        let wire = Tls::new(&["h2"]).connect(address).await;
        assert_eq!(wire.protocol(), "h2", "ALPN");
        H2::over(wire.stream, "https", windows).await
    }

    async fn over(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        scheme: &'static str,
        Windows(stream, connection): Windows,
    ) -> H2 {
        let mut builder = Builder::new();
        builder.initial_window_size(stream).initial_connection_window_size(connection);
        let handshake = within(PATIENCE, "the preface of HTTP/2", builder.handshake(io)).await;
        let (send, connection) = handshake.expect("the preface goes into the socket");
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        H2 { send, scheme, _driver: std::sync::Arc::new(Driver(driver)) }
    }

    /// Sends a request and reads its answer whole.
    pub async fn ask(&self, ask: &Ask) -> Answer {
        match self.begin(ask).await {
            Ok(begun) => begun.whole().await,
            Err(end) => Answer { end, ..Answer::default() },
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&Ask::get(path)).await
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn begin(&self, ask: &Ask) -> Result<H2Answer, End> {
        let (response, content) = self.send(ask).await?;
        if let Some(content) = content {
            // An answer may come before the content is sent, and instead of it.
            tokio::spawn(send_content(content, ask.clone()));
        }
        let response = within(PATIENCE, "an HTTP/2 answer", response).await.map_err(end_of)?;
        let (parts, content) = response.into_parts();
        Ok(H2Answer { answer: Answer { head: head_of("HTTP/2", &parts), ..Answer::default() }, content })
    }

    async fn send(&self, ask: &Ask) -> Result<(ResponseFuture, Option<SendStream<Bytes>>), End> {
        let ready = within(PATIENCE, "a free stream", self.send.clone().ready()).await;
        let mut send = ready.map_err(end_of)?;
        let request = ask.request(self.scheme);
        let ends = ask.body.is_none();
        let (response, content) = send.send_request(request, ends).map_err(end_of)?;
        Ok((response, (!ends).then_some(content)))
    }
}

impl H2Answer {
    pub fn status(&self) -> u16 {
        self.answer.status()
    }

    /// Reads the rest.
    pub async fn whole(mut self) -> Answer {
        while let Some(piece) = within(PATIENCE, "content over HTTP/2", self.content.data()).await {
            match piece {
                Ok(piece) => {
                    let _ = self.content.flow_control().release_capacity(piece.len());
                    self.answer.body.extend_from_slice(&piece);
                }
                Err(error) => return Answer { end: end_of(error), ..self.answer },
            }
        }
        match within(PATIENCE, "trailers over HTTP/2", self.content.trailers()).await {
            Ok(trailers) => self.answer.trailers = trailers.as_ref().map(fields_of).unwrap_or_default(),
            Err(error) => self.answer.end = end_of(error),
        }
        self.answer
    }
}

async fn send_content(mut stream: SendStream<Bytes>, ask: Ask) -> Result<(), h2::Error> {
    let mut rest = ask.body.clone().unwrap_or_default();
    let trailers = ask.trailer_map();
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let Some(capacity) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return Ok(()) };
        let piece = rest.split_to(capacity?.min(rest.len()));
        stream.send_data(piece, rest.is_empty() && trailers.is_empty())?;
    }
    match (trailers.is_empty(), ask.body.is_some_and(|body| body.is_empty())) {
        (false, _) => stream.send_trailers(trailers),
        (true, true) => stream.send_data(Bytes::new(), true),
        (true, false) => Ok(()),
    }
}

fn end_of(error: h2::Error) -> End {
    match error.reason() {
        // What the client's own library refuses is a fault of the answer, not the node's way to tell of one.
        _ if error.is_library() => End::Broken,
        Some(reason) if error.is_reset() => End::Stream(u32::from(reason).into()),
        Some(reason) if error.is_go_away() => End::Closed(u32::from(reason).into()),
        _ if error.is_io() => End::Cut,
        _ => End::Broken,
    }
}

/// Ends the connection's task with the last clone.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

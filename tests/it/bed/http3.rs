//! HTTP/3 by the `h3` crate on quinn.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::StreamError;
use quinn::TransportConfig;
use tokio::task::JoinHandle;

use super::client::{Ask, fields_of, head_of};
use super::{Answer, End, PATIENCE, Quic, Tls, within};

type Sending = RequestStream<h3_quinn::SendStream<Bytes>, Bytes>;
type Receiving = RequestStream<h3_quinn::RecvStream, Bytes>;

/// A connection; requests may be made from several tasks at once by clones.
#[derive(Clone)]
pub struct H3 {
    pub quic: Arc<Quic>,
    send: SendRequest<h3_quinn::OpenStreams, Bytes>,
    _driver: Arc<Driver>,
}

/// An answer whose head came and whose content is not read, unless it is asked to be.
pub struct H3Answer {
    answer: Answer,
    content: Receiving,
    connection: quinn::Connection,
}

impl H3 {
    pub async fn connect(address: SocketAddr) -> H3 {
        H3::over(Quic::connect(address).await).await
    }

    /// Resumes a session of this client's, if it has one.
    pub async fn connect_with(address: SocketAddr, tls: &Tls) -> H3 {
        H3::over(Quic::connect_with(address, tls, TransportConfig::default()).await).await
    }

    pub async fn over(quic: Quic) -> H3 {
        let made = h3::client::new(h3_quinn::Connection::new(quic.connection.clone()));
        let (mut connection, send) =
            within(PATIENCE, "HTTP/3 settings", made).await.expect("the connection is open");
        let driver = tokio::spawn(async move {
            connection.wait_idle().await;
        });
        H3 { quic: Arc::new(quic), send, _driver: Arc::new(Driver(driver)) }
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
    pub async fn begin(&self, ask: &Ask) -> Result<H3Answer, End> {
        let connection = &self.quic.connection;
        let mut send = self.send.clone();
        let opened = within(PATIENCE, "a free stream", send.send_request(ask.request("https"))).await;
        let (sending, mut content) = opened.map_err(|error| end_of(&error, connection))?.split();
        // An answer may come before the content is sent, and instead of it.
        tokio::spawn(send_content(sending, ask.clone()));
        let response = within(PATIENCE, "an HTTP/3 answer", content.recv_response()).await;
        let (parts, ()) = response.map_err(|error| end_of(&error, connection))?.into_parts();
        let answer = Answer { head: head_of("HTTP/3", &parts), ..Answer::default() };
        Ok(H3Answer { answer, content, connection: connection.clone() })
    }
}

impl H3Answer {
    pub fn status(&self) -> u16 {
        self.answer.status()
    }

    /// Reads at least so many bytes of content.
    pub async fn read(&mut self, bytes: usize) {
        while self.answer.body.len() < bytes {
            assert!(self.piece().await.expect("the answer goes on"), "the answer ends early");
        }
    }

    async fn piece(&mut self) -> Result<bool, End> {
        let piece = within(PATIENCE, "content over HTTP/3", self.content.recv_data()).await;
        let Some(mut piece) = piece.map_err(|error| end_of(&error, &self.connection))? else {
            return Ok(false);
        };
        while piece.has_remaining() {
            self.answer.body.extend_from_slice(piece.chunk());
            piece.advance(piece.chunk().len());
        }
        Ok(true)
    }

    /// Reads the rest.
    pub async fn whole(mut self) -> Answer {
        loop {
            match self.piece().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(end) => return Answer { end, ..self.answer },
            }
        }
        match within(PATIENCE, "trailers over HTTP/3", self.content.recv_trailers()).await {
            Ok(trailers) => self.answer.trailers = trailers.as_ref().map(fields_of).unwrap_or_default(),
            Err(error) => self.answer.end = end_of(&error, &self.connection),
        }
        self.answer
    }
}

async fn send_content(mut stream: Sending, ask: Ask) -> Result<(), StreamError> {
    let mut rest = ask.body.clone().unwrap_or_default();
    while !rest.is_empty() {
        stream.send_data(rest.split_to(rest.len().min(64 * 1024))).await?;
    }
    let trailers = ask.trailer_map();
    if !trailers.is_empty() {
        stream.send_trailers(trailers).await?;
    }
    stream.finish().await
}

fn end_of(error: &StreamError, connection: &quinn::Connection) -> End {
    match (error, connection.close_reason()) {
        (StreamError::RemoteTerminate { code, .. }, _) => End::Stream(code.value()),
        (_, Some(reason)) => super::quic::end_of(&reason),
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

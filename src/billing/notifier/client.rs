//! HTTP/1.1 to one host, over connections that are kept. Knows neither orders nor retries.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::settings::Webhook;
use super::{Config, Error};

/// What is read of an answer's content to keep its connection. More than that is not worth the wait.
const CONTENT_BYTES_MAX: usize = 16 * 1024;

/// Where distributions keep the system's authorities: Debian and its kin, Red Hat and its kin, SUSE, Alpine.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

type Sender = SendRequest<Empty<Bytes>>;

/// Bounds nothing itself: the courier says how many requests there are at once, and so how many connections.
pub(super) struct Client {
    host: String,
    port: u16,
    tls: Option<(ServerName<'static>, TlsConnector)>,
    idle: Mutex<Vec<Sender>>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("the exchange failed")]
    Exchange(#[source] hyper::Error),
    /// The request did not leave.
    #[error("it is not to be sent any more")]
    Unwanted,
}

/// An answer's head has come.
pub(super) struct Answer {
    response: Response<Incoming>,
    sender: Sender,
}

impl Client {
    pub(super) fn new(webhook: &Webhook, config: &Config) -> Result<Client, Error> {
        let tls = match webhook.tls {
            false => None,
            true => Some(tls(webhook, config.ca_file.as_deref())?),
        };
        Ok(Client { host: webhook.host.clone(), port: webhook.port, tls, idle: Mutex::default() })
    }

    /// Waits for the head of the answer; how long is the caller's to decide. Redirects are answers like others. A connection may
    /// take its time, so `may` is asked right before the request leaves; `unwanted` ends the wait for one.
    pub(super) async fn send(
        &self,
        request: &Request<()>,
        may: impl Fn() -> bool,
        unwanted: impl Future<Output = ()>,
    ) -> Result<Answer, Failure> {
        let rebuilt = || {
            let mut fresh = Request::new(Empty::new());
            *fresh.uri_mut() = request.uri().clone();
            *fresh.headers_mut() = request.headers().clone();
            fresh
        };
        let mut unwanted = std::pin::pin!(unwanted);
        loop {
            let kept = self.idle.lock().pop();
            let was_kept = kept.is_some();
            let mut sender = match kept {
                Some(sender) if sender.is_closed() => continue,
                Some(sender) => sender,
                None => tokio::select! {
                    biased;
                    () = &mut unwanted => return Err(Failure::Unwanted),
                    sender = self.connect() => sender?,
                },
            };
            if !may() {
                self.idle.lock().push(sender);
                return Err(Failure::Unwanted);
            }
            match sender.send_request(rebuilt()).await {
                Ok(response) => return Ok(Answer { response, sender }),
                // Closed while it was idle, so the request did not leave: another connection at once.
                Err(error) if was_kept && (error.is_canceled() || error.is_closed()) => {}
                Err(error) => return Err(Failure::Exchange(error)),
            }
        }
    }

    /// Reads the content, up to a bound, so that the connection can be used again.
    pub(super) async fn finish(&self, answer: Answer) {
        let Answer { response, sender } = answer;
        let mut content = response.into_body();
        let mut left = CONTENT_BYTES_MAX;
        while let Some(frame) = content.frame().await {
            let Ok(frame) = frame else { return };
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(length) else { return };
            left = rest;
        }
        if !sender.is_closed() {
            self.idle.lock().push(sender);
        }
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(Failure::Connect)?;
        // One small request at a time: there is nothing to wait for.
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        match &self.tls {
            None => start(stream).await,
            Some((name, connector)) => {
                let stream = connector.connect(name.clone(), stream).await.map_err(Failure::Connect)?;
                start(stream).await
            }
        }
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }
}

async fn start<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Sender, Failure> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(Failure::Exchange)?;
    // It ends with its sender, or when the host closes; its error is also the request's.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

fn tls(webhook: &Webhook, ca_file: Option<&Path>) -> Result<(ServerName<'static>, TlsConnector), Error> {
    let name = ServerName::try_from(webhook.host.clone()).map_err(|_| Error::Webhook {
        url: webhook.authority.clone(),
        problem: "no certificate can be of this host",
    })?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_root_certificates(authorities(ca_file)?)
        .with_no_client_auth();
    Ok((name, TlsConnector::from(Arc::new(config))))
}

fn authorities(file: Option<&Path>) -> Result<RootCertStore, Error> {
    let system = || SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
    let path = file.map(Path::to_owned).or_else(system).ok_or(Error::NoSystemAuthorities)?;
    let pem = std::fs::read(&path).map_err(|source| Error::ReadAuthorities { path: path.clone(), source })?;
    let mut store = RootCertStore::empty();
    // Bundles may hold a few that rustls cannot use; only a bundle without any usable one is a mistake.
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    if store.is_empty() { Err(Error::NoAuthorities(path)) } else { Ok(store) }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::super::receiver::{Manner, Receiver};
    use super::*;

    /// Money came, or the lease ended, while the connection was made.
    #[tokio::test]
    async fn a_request_that_is_not_wanted_any_more_does_not_leave() {
        let receiver = Receiver::start(Manner::Answer(200)).await;
        let client = Client::new(&receiver.webhook, &Config::default()).unwrap();
        let request = |account| {
            let request = Request::get(receiver.webhook.path_and_query(account));
            let request = request.header("host", &receiver.webhook.authority).header("idempotency-key", "k");
            request.header(super::super::TIMESTAMP, "1").body(()).unwrap()
        };
        for _ in 0..2 {
            let sent = client.send(&request(1), || false, pending()).await;
            assert!(matches!(sent, Err(Failure::Unwanted)));
        }
        // Over the connection that was made for it.
        let sent = client.send(&request(2), || true, pending()).await;
        assert_eq!(sent.map(|answer| answer.status()).ok(), Some(StatusCode::OK));
        let heard: Vec<String> = receiver.heard().into_iter().map(|heard| heard.target).collect();
        assert_eq!(heard, [receiver.webhook.path_and_query(2)]);
        let sent = client.send(&request(3), || true, std::future::ready(())).await;
        assert!(matches!(sent, Err(Failure::Unwanted)), "there was no connection yet");
    }
}

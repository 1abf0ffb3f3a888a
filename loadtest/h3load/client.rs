//! One HTTP/3 connection that trusts whom it meets, and a request on it.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3::error::{Code, StreamError};
use http::{Method, Request, Uri, header};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Endpoint, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

pub type Sender = SendRequest<h3_quinn::OpenStreams, Bytes>;
pub type Stream = RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

/// Longer than anything of the mix may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// A server that is being restarted answers a later try of the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a request has no whole answer.
#[derive(Debug)]
pub enum Failure {
    /// GOAWAY was heard before anything of it was sent.
    Unsent,
    /// H3_REQUEST_REJECTED: none of it was processed, so it may be sent again, a POST as well (RFC 9114, 4.1.1 and 5.2).
    Rejected,
    Other(String),
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Failure {
        match error {
            StreamError::RemoteClosing { .. } => Failure::Unsent,
            StreamError::RemoteTerminate { code: Code::H3_REQUEST_REJECTED, .. } => Failure::Rejected,
            other => Failure::Other(format!("{other:?}").chars().take(160).collect()),
        }
    }
}

/// A connection. It ends with the last clone of `send`.
pub struct Link {
    pub send: Sender,
    pub quic: quinn::Connection,
}

impl Link {
    pub async fn open(endpoint: &Endpoint, node: &Uri) -> anyhow::Result<Link> {
        let opening = async {
            let quic = endpoint.connect(address_of(node)?, "localhost")?.await?;
            let (mut driver, send) = h3::client::new(h3_quinn::Connection::new(quic.clone())).await?;
            tokio::spawn(async move { driver.wait_idle().await });
            Ok(Link { send, quic })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, opening).await.context("no answer to the handshake")?
    }
}

/// Sends a request, reads its answer to the end, and gives the status.
pub async fn ask(send: &mut Sender, method: Method, uri: &Uri, body: Bytes) -> Result<u16, Failure> {
    let asking = async {
        let mut stream = begin(send, method, uri, body).await?;
        let status = stream.recv_response().await?.status().as_u16();
        while let Some(mut piece) = stream.recv_data().await? {
            piece.advance(piece.remaining());
        }
        Ok(status)
    };
    let late = |_| Err(Failure::Other("no whole answer in time".to_owned()));
    tokio::time::timeout(REQUEST_TIMEOUT, asking).await.unwrap_or_else(late)
}

/// Sends a request.
pub async fn begin(send: &mut Sender, method: Method, uri: &Uri, body: Bytes) -> Result<Stream, Failure> {
    let mut request = Request::builder().method(method).uri(uri.clone());
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
        request = request.header(header::CONTENT_LENGTH, body.len());
    }
    let request = request.body(()).map_err(|error| Failure::Other(error.to_string()))?;
    let mut stream = send.send_request(request).await?;
    // A server may answer, or reject, before it has all of the content: the receiving side tells.
    if body.is_empty() || stream.send_data(body).await.is_ok() {
        let _ = stream.finish().await;
    }
    Ok(stream)
}

fn address_of(uri: &Uri) -> anyhow::Result<SocketAddr> {
    let (host, port) = (uri.host().context("no host")?, uri.port_u16().unwrap_or(443));
    let mut found = (host.trim_matches(['[', ']']), port).to_socket_addrs()?;
    found.find(SocketAddr::is_ipv4).with_context(|| format!("{host} has no IPv4 address"))
}

/// The UDP socket of any number of connections.
pub fn endpoint(transport: TransportConfig) -> anyhow::Result<Endpoint> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?.dangerous();
    let mut tls =
        builder.with_custom_certificate_verifier(Arc::new(Trusting(provider))).with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    let mut endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// Tells the servers that the connections, whose handles are gone, have ended. Else they would wait for them.
pub async fn leave(endpoint: &Endpoint) {
    endpoint.close(VarInt::from_u32(Code::H3_NO_ERROR.value() as u32), b"");
    let _ = tokio::time::timeout(LEAVE_TIMEOUT, endpoint.wait_idle()).await;
}

/// Accepts any certificate, but not one whose key the server does not have.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

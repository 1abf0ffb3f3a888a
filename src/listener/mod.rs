//! Sockets in, exchanges out: accepts connections, speaks HTTP/1.1 to the client and hands each request to whoever
//! handles it, as a [`Session`].
//!
//! Never here: routes, caches, upstreams, status codes of failures. The handler decides; this room carries out.

pub mod h1;
pub mod h2;
pub mod h3;
pub mod multiplexed;
pub mod proxied;
pub mod quic;
pub mod rewound;
mod session;
mod settings;
pub mod tcp;
pub mod tls;

pub use session::{AnswerHead, BodySize, Duplex, Gone, Piece, Session};
pub use settings::{CertificateFiles, CertificateSource, ProxyProtocol, QuicReset, TlsConfig};

//! Sockets in, exchanges out: accepts connections, speaks HTTP/1.1 to the client and hands each request to whoever
//! handles it, as a [`Session`].
//!
//! Never here: routes, caches, upstreams, status codes of failures. The handler decides; this room carries out.

pub mod h1;
mod session;
pub mod tcp;

pub use session::{AnswerHead, BodySize, Duplex, Gone, Piece, Session};

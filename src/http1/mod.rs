//! HTTP/1.1 messages, sans sockets: heads in and out, body framing in and out (RFC 9112). Both sides of the proxy
//! use it: the listener to read requests and write answers, the forwarder to write requests and read answers.
//!
//! Never here: a socket, a clock, a policy. It refuses what is malformed or ambiguous, and says why.

mod body;
mod fields;
mod request;
mod response;

pub use body::{Decoded, Decoder, Encoder, MalformedBody, may_be_trailer};
pub use fields::{Fields, tokens};
pub use request::{Framing, RefusedRequest, RequestHead, Target, Version, host_of, valid_origin_form};
pub use response::{MalformedResponse, ResponseHead};

/// Most fields one head may have; more is refused (431 towards clients).
pub const FIELDS_MAX: usize = 100;

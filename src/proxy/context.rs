//! The facts of one request that every phase shares.

use std::net::SocketAddr;
use std::time::Instant;

use crate::headers::RequestId;
use crate::http1::RequestHead;

/// What the cache had to do with a request: the words of metrics and logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheResult {
    /// The route has no cache, or the request does not use it.
    #[default]
    Bypass,
    Hit,
    Miss,
    /// What was there had expired; fetched anew.
    Stale,
    /// Waited for a fetch that another request began.
    Collapsed,
}

impl CacheResult {
    pub fn as_str(self) -> &'static str {
        match self {
            CacheResult::Bypass => "bypass",
            CacheResult::Hit => "hit",
            CacheResult::Miss => "miss",
            CacheResult::Stale => "stale",
            CacheResult::Collapsed => "collapsed",
        }
    }
}

/// The connection a request came on.
#[derive(Clone, Copy, Debug)]
pub struct Downstream {
    /// The client's address: the peer's, or the one a balancer told by the PROXY protocol.
    pub peer: SocketAddr,
    pub scheme: &'static str,
    /// `h1`, `h2`, `h3`.
    pub protocol: &'static str,
    /// The field line that offers HTTP/3; empty where it is not offered.
    pub alt_svc: &'static [u8],
}

impl Downstream {
    /// HTTP/1.1 without TLS.
    pub fn plain(peer: SocketAddr) -> Downstream {
        Downstream { peer, scheme: "http", protocol: "h1", alt_svc: b"" }
    }
}

/// One request, as seen so far.
#[derive(Debug)]
pub struct Context {
    pub id: RequestId,
    /// The id a trusted peer gave the request; goes before `id`.
    given_id: Option<Box<[u8]>>,
    pub started: Instant,
    pub downstream: Downstream,
    /// A peer of `limits.trusted`.
    pub trusted: bool,
    pub cache: CacheResult,
    /// The endpoint that answered, or was tried last.
    pub endpoint: Option<Box<str>>,
    /// Requests sent to origins for this one, beyond the first.
    pub retries: u32,
    /// Status of the answer; 0 before there is one.
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// What went wrong, in the words of RFC 9209; for the log.
    pub failure: Option<&'static str>,
}

impl Context {
    pub fn new(started: Instant, downstream: Downstream, trusted: bool) -> Context {
        Context {
            id: RequestId::next(),
            given_id: None,
            started,
            downstream,
            trusted,
            cache: CacheResult::Bypass,
            endpoint: None,
            retries: 0,
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            failure: None,
        }
    }

    /// Takes over the id a trusted peer gave the request, so that one id follows it through every hop.
    pub fn adopt_id(&mut self, request: &RequestHead) {
        if self.trusted
            && let Some(id) = request.fields.get("x-request-id")
            && RequestId::is_acceptable(id)
        {
            self.given_id = Some(id.into());
        }
    }

    /// The id as it goes into fields and logs.
    pub fn id_bytes(&self) -> &[u8] {
        self.given_id.as_deref().unwrap_or(self.id.as_bytes())
    }
}

//! One request, whatever the protocol beneath.

use bytes::Bytes;
use http::{HeaderMap, Request};

use super::wire::Head;
use super::{Answer, H2, H3, Node, Secured, Tls, Wire};

/// What a client may speak to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    H1,
    H1Tls,
    /// HTTP/2 by prior knowledge on the plain port.
    H2c,
    H2,
    H3,
}

impl Protocol {
    pub const ALL: [Protocol; 5] = [Protocol::H1, Protocol::H1Tls, Protocol::H2c, Protocol::H2, Protocol::H3];
}

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub fields: Vec<(&'static str, String)>,
    pub body: Option<Bytes>,
    pub trailers: Vec<(&'static str, String)>,
}

impl Ask {
    pub fn new(method: &'static str, path: &str) -> Ask {
        Ask { method, path: path.to_owned(), fields: Vec::new(), body: None, trailers: Vec::new() }
    }

    pub fn get(path: &str) -> Ask {
        Ask::new("GET", path)
    }

    pub fn field(mut self, name: &'static str, value: &str) -> Ask {
        self.fields.push((name, value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Ask {
        self.body = Some(body.into());
        self
    }

    pub fn trailer(mut self, name: &'static str, value: &str) -> Ask {
        self.trailers.push((name, value.to_owned()));
        self
    }

    /// For HTTP/2 and HTTP/3; `scheme` is https where the connection is secured.
    pub(super) fn request(&self, scheme: &str) -> Request<()> {
        let mut request =
            Request::builder().method(self.method).uri(format!("{scheme}://bed.example{}", self.path));
        for (name, value) in &self.fields {
            request = request.header(*name, value);
        }
        if let Some(body) = &self.body
            && self.trailers.is_empty()
        {
            request = request.header("content-length", body.len());
        }
        request.body(()).expect("the test gives a valid request")
    }

    pub(super) fn trailer_map(&self) -> HeaderMap {
        let fields = self.trailers.iter().map(|(name, value)| {
            let value = value.parse().expect("the test gives a valid value");
            (http::HeaderName::from_static(name), value)
        });
        fields.collect()
    }

    /// For HTTP/1.1: content with trailers goes in chunks, other content with its length.
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: bed.example\r\n", self.method, self.path);
        for (name, value) in &self.fields {
            head += &format!("{name}: {value}\r\n");
        }
        let body = self.body.clone().unwrap_or_default();
        if self.body.is_none() {
            return (head + "\r\n").into_bytes();
        }
        if self.trailers.is_empty() {
            let mut bytes = format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
            bytes.extend_from_slice(&body);
            return bytes;
        }
        let mut bytes = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(b"\r\n0\r\n");
        for (name, value) in &self.trailers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }
}

/// A head as those of HTTP/1.1 are shown.
pub(super) fn head_of(version: &str, response: &http::response::Parts) -> Head {
    let start = format!("{version} {}", response.status.as_u16());
    Head { start, fields: fields_of(&response.headers) }
}

pub(super) fn fields_of(map: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// A connection of a client that speaks this protocol.
pub enum Client {
    H1(Wire),
    H1Tls(Box<Secured>),
    H2(H2),
    H3(Box<H3>),
}

impl Client {
    pub async fn connect(node: &Node, protocol: Protocol) -> Client {
        match protocol {
            Protocol::H1 => Client::H1(node.connect().await),
            Protocol::H1Tls => Client::H1Tls(Box::new(Tls::new(&["http/1.1"]).connect(node.https).await)),
            Protocol::H2c => Client::H2(H2::plain(node.http).await),
            Protocol::H2 => Client::H2(H2::secured(node.https).await),
            Protocol::H3 => Client::H3(Box::new(H3::connect(node.https).await)),
        }
    }

    pub async fn ask(&mut self, ask: &Ask) -> Answer {
        match self {
            Client::H1(wire) => {
                wire.send(ask.bytes()).await;
                wire.answer_to(ask.method).await
            }
            Client::H1Tls(wire) => {
                wire.send(ask.bytes()).await;
                wire.answer_to(ask.method).await
            }
            Client::H2(client) => client.ask(ask).await,
            Client::H3(client) => client.ask(ask).await,
        }
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.ask(&Ask::get(path)).await
    }
}

/// One request on a connection of its own.
pub async fn ask(node: &Node, protocol: Protocol, ask: &Ask) -> Answer {
    Client::connect(node, protocol).await.ask(ask).await
}

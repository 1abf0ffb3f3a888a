//! An origin inside the test: it does what its script says, odd or not, and remembers what it was asked.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;

use super::wire::{Head, Wire};

/// One request as the origin saw it.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: Head,
    /// Which connection brought it, from 0.
    pub connection: usize,
}

impl Request {
    pub fn method(&self) -> &str {
        self.head.start.split(' ').next().unwrap_or_default()
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.head.start.split(' ').nth(1).unwrap_or_default()
    }
}

/// A listening origin. `GET /ping` is answered with 200 by itself and not remembered.
pub struct Origin {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Origin {
    /// `script` gets each request's head and the connection, which still holds the request's content. It gives the connection
    /// back to keep it, or drops it to close it.
    pub async fn scripted<S, F>(script: S) -> Origin
    where
        S: Fn(Request, Wire) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Wire>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Origin::on(listener, script)
    }

    /// The same on a listener the test made.
    pub fn on<S, F>(listener: TcpListener, script: S) -> Origin
    where
        S: Fn(Request, Wire) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Wire>> + Send,
    {
        let address = listener.local_addr().expect("it is bound");
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (script, kept, connections) = (Arc::new(script), seen.clone(), AtomicUsize::new(0));
        let accepting = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen, connection) =
                    (script.clone(), kept.clone(), connections.fetch_add(1, Relaxed));
                open.spawn(async move { serve(Wire::over(stream), connection, &*script, &seen).await });
            }
        });
        Origin { address, seen, accepting }
    }

    /// Reads each request whole and answers with what `answer` makes of it: a whole message in bytes.
    pub async fn answering(answer: impl Fn(&Request, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> Origin {
        let answer = Arc::new(answer);
        Origin::scripted(move |request, mut wire| {
            let answer = answer.clone();
            async move {
                let mut body = Vec::new();
                wire.content(&request.head, &mut body, &mut Vec::new()).await.ok()?;
                wire.send(answer(&request, &body)).await;
                Some(wire)
            }
        })
        .await
    }

    /// The requests so far, in the order of their coming.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no holder panics").clone()
    }

    /// The latest request.
    pub fn last(&self) -> Request {
        self.seen().pop().expect("there was a request")
    }

    pub fn count(&self) -> usize {
        self.seen.lock().expect("no holder panics").len()
    }

    /// Closes the port and every connection.
    pub async fn stop(mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve<S, F>(mut wire: Wire, connection: usize, script: &S, seen: &Mutex<Vec<Request>>)
where
    S: Fn(Request, Wire) -> F + Send + Sync,
    F: Future<Output = Option<Wire>> + Send,
{
    // A client that is silent for longer than the bed's patience is gone, not idle; the read panics in its own task only.
    while let Ok(head) = wire.head().await {
        let request = Request { head, connection };
        if request.target() == "/ping" {
            wire.send(ok("pong")).await;
            continue;
        }
        seen.lock().expect("no holder panics").push(request.clone());
        match script(request, wire).await {
            Some(kept) => wire = kept,
            None => return,
        }
    }
}

/// A plain 200 with this text.
pub fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}", text.len())
        .into_bytes()
}

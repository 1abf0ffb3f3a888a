//! A webhook for tests, on a real socket, which does what it is told: answer, fail, hang, or talk nonsense.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Webhook;

/// Longer than any step of a test takes; only a hang ends by it.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    Answer(u16),
    /// Takes the request and says nothing.
    Hang,
    /// Takes the request and closes.
    Close,
    Garbage,
}

/// One request as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    pub target: String,
    pub key: String,
    pub signature: Option<String>,
    pub timestamp: String,
    pub manner: Manner,
}

pub struct Receiver {
    pub webhook: Webhook,
    manner: watch::Sender<Manner>,
    heard: watch::Sender<Vec<Heard>>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    pub async fn start(manner: Manner) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/off?userID={{user_id}}", listener.local_addr().unwrap());
        let (manner, heard) = (watch::Sender::new(manner), watch::Sender::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (manners, hears) = (manner.clone(), heard.clone());
        tasks.spawn(async move {
            let connections = Arc::new(Mutex::new(JoinSet::new()));
            while let Ok((stream, _)) = listener.accept().await {
                connections.lock().spawn(serve(stream, manners.clone(), hears.clone()));
            }
        });
        Receiver { webhook: Webhook::parse(&url).unwrap(), manner, heard, _tasks: tasks }
    }

    pub fn set(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.borrow().clone()
    }

    /// Everything heard, once it is what is asked for.
    pub async fn wait_for(&self, is: impl Fn(&[Heard]) -> bool) -> Vec<Heard> {
        let mut heard = self.heard.subscribe();
        let waited = tokio::time::timeout(PATIENCE, heard.wait_for(|heard| is(heard))).await;
        match waited {
            Ok(heard) => heard.unwrap().clone(),
            Err(_) => panic!("still waiting, heard {:?}", self.heard()),
        }
    }
}

async fn serve(mut stream: TcpStream, manner: watch::Sender<Manner>, heard: watch::Sender<Vec<Heard>>) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let head = String::from_utf8(buffer.drain(..end + 4).collect()).unwrap();
        let manner = *manner.borrow();
        heard.send_modify(|all| all.push(read(&head, manner)));
        let answer = match manner {
            Manner::Answer(status) => {
                format!("HTTP/1.1 {status} Told\r\nlocation: /elsewhere\r\ncontent-length: 2\r\n\r\nok")
            }
            Manner::Hang => return std::future::pending().await,
            Manner::Close => return,
            Manner::Garbage => "\0\x01 this is no HTTP at all\r\n\r\n".to_owned(),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn read(head: &str, manner: Manner) -> Heard {
    let mut lines = head.lines();
    let target =
        lines.next().unwrap().strip_prefix("GET ").unwrap().strip_suffix(" HTTP/1.1").unwrap().to_owned();
    let fields: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
    assert!(field("host").is_some_and(|host| host.starts_with("127.0.0.1:")));
    Heard {
        target,
        key: field("idempotency-key").unwrap(),
        signature: field(super::SIGNATURE),
        timestamp: field(super::TIMESTAMP).unwrap(),
        manner,
    }
}

//! A constant arrival rate of users who go to another node when they are told to, and only then. Whatever else goes wrong
//! is a failed request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use h3::error::Code;
use http::{Method, Uri};
use quinn::{ConnectionError, Endpoint, TransportConfig};
use serde_json::{Value, json};

use crate::client::{Failure, Link, ask, endpoint, leave};

/// Connections one request may go through; each of them said GOAWAY.
const MOVES_MAX: usize = 5;

#[derive(clap::Args)]
pub struct Args {
    /// In the order in which users go to them; after the last comes the first
    #[arg(long = "node", required = true)]
    nodes: Vec<Uri>,
    /// Requests a second
    #[arg(long, default_value_t = 120)]
    rate: u32,
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Users, each with one connection at a time
    #[arg(long, default_value_t = 20)]
    connections: usize,
    /// GETs of this instead of the mix
    #[arg(long)]
    path: Option<String>,
}

/// What became of one request.
struct Outcome {
    name: &'static str,
    method: Method,
    began: Instant,
    took: Duration,
    /// Status, or what went wrong.
    answer: Result<u16, String>,
    /// Sent again after H3_REQUEST_REJECTED.
    repeated: usize,
}

pub async fn run(args: Args) -> anyhow::Result<Value> {
    let endpoint = endpoint(TransportConfig::default())?;
    let users: Vec<_> = (0..args.connections.max(1)).map(|_| User::new(&args.nodes, &endpoint)).collect();
    for user in &users {
        user.link().await.map_err(|error| anyhow::anyhow!("before the load: {error}"))?;
    }
    let outcomes: Arc<Mutex<Vec<Outcome>>> = Arc::default();
    let (start, epoch) = (Instant::now(), SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?);
    let mut running = tokio::task::JoinSet::new();
    for number in 0..args.rate * args.seconds {
        let due = start + Duration::from_secs(number.into()) / args.rate;
        tokio::time::sleep_until(due.into()).await;
        let user = users[number as usize % users.len()].clone();
        let (wanted, outcomes) = (Wanted::of(number as usize, args.path.as_deref()), outcomes.clone());
        running.spawn(async move {
            let outcome = user.ask(wanted, due).await;
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        });
        while running.try_join_next().is_some() {}
    }
    running.join_all().await;
    let mut moves = 0;
    for user in &users {
        moves += user.place.lock().await.0;
    }
    leave(&endpoint).await;
    let outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(report(&outcomes, moves, start, epoch))
}

struct Wanted {
    name: &'static str,
    method: Method,
    path: String,
    body: Bytes,
}

impl Wanted {
    /// The shares of the mix: 30 % POST /operation, 15 % /db_dummy, 30 % /api/movie/{id}, 25 % /long_dummy.
    fn of(number: usize, path: Option<&str>) -> Wanted {
        const MIX: &[u8; 20] = b"olmodlmomlomdlommlod";
        let get =
            |name, path: &str| Wanted { name, method: Method::GET, path: path.into(), body: Bytes::new() };
        match (path, MIX[number % MIX.len()]) {
            (Some(path), _) => get("path", path),
            (None, b'd') => get("db_dummy", "/db_dummy"),
            (None, b'm') => get("movie", "/api/movie/1"),
            (None, b'l') => get("long_dummy", "/long_dummy"),
            (None, _) => {
                let body = Bytes::from_static(br#"{"operation": 1}"#);
                Wanted { name: "operation", method: Method::POST, path: "/operation".into(), body }
            }
        }
    }
}

/// One connection at a time, to one node at a time.
struct User {
    nodes: Vec<Uri>,
    endpoint: Endpoint,
    /// How often it moved, and the connection it has now.
    place: tokio::sync::Mutex<(usize, Option<Arc<Place>>)>,
}

struct Place {
    node: Uri,
    link: Link,
}

impl User {
    fn new(nodes: &[Uri], endpoint: &Endpoint) -> Arc<User> {
        Arc::new(User { nodes: nodes.to_vec(), endpoint: endpoint.clone(), place: Default::default() })
    }

    async fn link(&self) -> Result<Arc<Place>, String> {
        let mut place = self.place.lock().await;
        if let (_, Some(link)) = &*place {
            return Ok(link.clone());
        }
        let node = self.nodes[place.0 % self.nodes.len()].clone();
        let link = Link::open(&self.endpoint, &node).await.map_err(|error| format!("connect: {error:#}"))?;
        Ok(place.1.insert(Arc::new(Place { node, link })).clone())
    }

    /// To the next node, unless another request of this user has gone there already.
    async fn leave(&self, left: &Arc<Place>) {
        let mut place = self.place.lock().await;
        if place.1.as_ref().is_some_and(|now| Arc::ptr_eq(now, left)) {
            *place = (place.0 + 1, None);
        }
    }

    async fn ask(&self, wanted: Wanted, began: Instant) -> Outcome {
        let Wanted { name, method, path, body } = wanted;
        let mut repeated = 0;
        let answer = 'answer: {
            for _ in 0..MOVES_MAX {
                let place = match self.link().await {
                    Ok(place) => place,
                    Err(error) => break 'answer Err(error),
                };
                if let Some(reason) = place.link.quic.close_reason() {
                    self.leave(&place).await;
                    // Whatever was under way on it has failed on its own account; this request was not.
                    if is_no_error(&reason) {
                        continue;
                    }
                    break 'answer Err(format!("the connection was lost: {reason}"));
                }
                // The clone outlives a `leave`: the connection ends with its last sender.
                let mut send = place.link.send.clone();
                match ask(&mut send, method.clone(), &at(&place.node, &path), body.clone()).await {
                    Ok(status) => break 'answer Ok(status),
                    Err(Failure::Unsent) => {}
                    Err(Failure::Rejected) => repeated += 1,
                    Err(Failure::Other(error)) => break 'answer Err(error),
                }
                self.leave(&place).await;
            }
            Err("told to go elsewhere too often".to_owned())
        };
        Outcome { name, method, began, took: began.elapsed(), answer, repeated }
    }
}

fn at(node: &Uri, path: &str) -> Uri {
    let mut parts = node.clone().into_parts();
    parts.path_and_query = path.parse().ok();
    Uri::from_parts(parts).unwrap_or_else(|_| node.clone())
}

fn is_no_error(reason: &ConnectionError) -> bool {
    let no_error = Code::H3_NO_ERROR.value();
    matches!(reason, ConnectionError::ApplicationClosed(close) if close.error_code.into_inner() == no_error)
}

fn report(outcomes: &[Outcome], moves: usize, start: Instant, epoch: Duration) -> Value {
    let since = |at: Instant| at.duration_since(start);
    let is_good = |one: &&Outcome| one.answer == Ok(200);
    let mut per_second = BTreeMap::<u64, u64>::new();
    for one in outcomes.iter().filter(is_good) {
        *per_second.entry(since(one.began + one.took).as_secs()).or_default() += 1;
    }
    let requests: Vec<Value> = outcomes
        .iter()
        .map(|one| {
            let (status, error) = match &one.answer {
                Ok(status) => (*status, ""),
                Err(error) => (0, error.as_str()),
            };
            json!({
                "name": one.name, "method": one.method.as_str(), "status": status, "error": error,
                "start": (epoch + since(one.began)).as_secs_f64(), "seconds": one.took.as_secs_f64(),
            })
        })
        .collect();
    let good = outcomes.iter().filter(is_good).count();
    json!({
        "sent": outcomes.len(),
        "good": good,
        "failed": outcomes.len() - good,
        "repeated_after_goaway": outcomes.iter().map(|one| one.repeated).sum::<usize>(),
        "moves": moves,
        "good_per_second": per_second,
        "slowest_seconds": outcomes.iter().map(|one| one.took.as_secs_f64()).fold(0.0, f64::max),
        "requests": requests,
    })
}

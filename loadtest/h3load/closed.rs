//! A closed loop: each stream asks again as soon as it has its answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Uri};
use quinn::TransportConfig;
use serde_json::{Value, json};

use crate::client::{Failure, Link, Sender, ask, endpoint, leave};
use crate::runtime;

const ERRORS_TOLD: usize = 10;

#[derive(clap::Args, Clone)]
pub struct Args {
    uri: Uri,
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Requests at once on each connection
    #[arg(long, default_value_t = 1)]
    streams: usize,
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

pub fn run(args: &Args) -> anyhow::Result<Value> {
    let threads = args.threads.clamp(1, args.connections.max(1));
    let share = |number: usize| {
        let (args, connections) = (args.clone(), (args.connections + number) / threads);
        std::thread::spawn(move || runtime()?.block_on(run_share(&args, connections)))
    };
    let running: Vec<_> = (0..threads).map(share).collect();
    let mut all = Tally::default();
    for thread in running {
        all.add(thread.join().expect("a thread of the load does not panic")?);
    }
    Ok(all.report(args.seconds))
}

/// One thread's connections. All are open before the first request, so that no time of an answer has a handshake in it.
async fn run_share(args: &Args, connections: usize) -> anyhow::Result<Tally> {
    let endpoint = endpoint(TransportConfig::default())?;
    let mut links = Vec::with_capacity(connections);
    for _ in 0..connections {
        links.push(Link::open(&endpoint, &args.uri).await?);
    }
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let streams = links.iter().flat_map(|link| (0..args.streams).map(|_| link.send.clone()));
    let running: Vec<_> = streams.map(|send| tokio::spawn(ask_until(end, send, args.uri.clone()))).collect();
    let mut all = Tally::default();
    for one in running {
        all.add(one.await?);
    }
    leave(&endpoint).await;
    Ok(all)
}

async fn ask_until(end: Instant, mut send: Sender, uri: Uri) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        let began = Instant::now();
        match ask(&mut send, Method::GET, &uri, Bytes::new()).await {
            Ok(status) => tally.answered(status, began.elapsed()),
            Err(failure) => {
                tally.failures.push(failure);
                break;
            }
        }
    }
    tally
}

#[derive(Default)]
struct Tally {
    /// In microseconds.
    times: Vec<u32>,
    statuses: BTreeMap<u16, u64>,
    failures: Vec<Failure>,
}

impl Tally {
    fn answered(&mut self, status: u16, took: Duration) {
        *self.statuses.entry(status).or_default() += 1;
        self.times.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    fn add(&mut self, other: Tally) {
        let Tally { times, statuses, failures } = other;
        self.times.extend(times);
        self.failures.extend(failures);
        for (status, count) in statuses {
            *self.statuses.entry(status).or_default() += count;
        }
    }

    fn report(mut self, seconds: f64) -> Value {
        self.times.sort_unstable();
        let last = self.times.len().saturating_sub(1);
        let at = |share: f64| self.times.get((last as f64 * share).round() as usize).copied();
        let told: Vec<_> = self.failures.iter().take(ERRORS_TOLD).map(|one| format!("{one:?}")).collect();
        json!({
            "requests": self.times.len(),
            "per_second": (self.times.len() as f64 / seconds).round(),
            "statuses": self.statuses,
            "errors": self.failures.len(),
            "errors_told": told,
            "micros": { "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0) },
        })
    }
}

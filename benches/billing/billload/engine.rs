//! Requests out and answers in over a few connections, from one thread.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::histogram::Histogram;
use crate::wire;

/// For what is under way when nothing more is to be asked. Longer than either server's own patience.
const LAST_ANSWERS: Duration = Duration::from_secs(30);
/// Of one connection; more than all of its answers at once.
const INCOMING_BYTES: usize = 256 << 10;

/// What is asked.
pub trait Source {
    /// Appends the next request; false when there is none any more.
    fn next(&mut self, out: &mut Vec<u8>, sync: u32) -> bool;
}

pub struct Plan {
    pub address: SocketAddr,
    pub connections: usize,
    /// Requests under way at once, over all connections.
    pub outstanding: usize,
    /// Requests a second; None: as many as are answered.
    pub rate: Option<f64>,
    /// What is asked before this is not in the latencies.
    pub warm_up: Duration,
    /// None: until the source ends.
    pub duration: Option<Duration>,
}

struct Link {
    stream: TcpStream,
    incoming: Box<[u8]>,
    /// Of `incoming`.
    filled: usize,
    outgoing: Vec<u8>,
    /// Syncs that no request under way has.
    free: Vec<u32>,
}

struct Engine<'a> {
    links: Vec<Link>,
    /// By sync: since when its answer is waited for. At a given rate from when it was due, so that a server that stalls is
    /// charged for what it kept from being asked.
    since: Vec<Instant>,
    plan: &'a Plan,
    began: Instant,
    issued: u64,
    answered: u64,
    latencies: Histogram,
    measured_until: Instant,
    errors: u64,
    first_error: Option<String>,
}

/// Runs until all is answered.
pub fn run(plan: &Plan, source: &mut impl Source) -> anyhow::Result<Value> {
    ensure!(plan.connections > 0 && plan.outstanding >= plan.connections, "a connection needs a request");
    let mut links = Vec::new();
    for number in 0..plan.connections {
        let mut stream = TcpStream::connect(plan.address)
            .with_context(|| format!("cannot connect to {}", plan.address))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        wire::greeting(&mut stream)?;
        stream.set_nonblocking(true)?;
        let free = (0..plan.outstanding).filter(|sync| sync % plan.connections == number);
        let free = free.map(|sync| sync as u32).collect();
        let incoming = vec![0; INCOMING_BYTES].into_boxed_slice();
        links.push(Link { stream, incoming, filled: 0, outgoing: Vec::new(), free });
    }
    let began = Instant::now();
    let engine = Engine {
        links,
        since: vec![began; plan.outstanding],
        plan,
        began,
        issued: 0,
        answered: 0,
        latencies: Histogram::new(),
        measured_until: began,
        errors: 0,
        first_error: None,
    };
    engine.run(source)
}

impl Engine<'_> {
    fn run(mut self, source: &mut impl Source) -> anyhow::Result<Value> {
        let mut asking = true;
        let mut asked_until = self.began;
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            asking = asking && self.plan.duration.is_none_or(|duration| now < self.began + duration);
            if asking {
                asking = self.ask(source, now);
                asked_until = now;
            } else if self.answered == self.issued {
                break;
            } else if now > asked_until + LAST_ANSWERS {
                bail!("{} requests are not answered", self.issued - self.answered);
            }
            self.wait(asking, &mut ready)?;
            for number in ready.drain(..) {
                self.take(number)?;
            }
        }
        Ok(self.report())
    }

    /// As much as may be under way, or as is due.
    fn ask(&mut self, source: &mut impl Source, now: Instant) -> bool {
        let due = match self.plan.rate {
            None => u64::MAX,
            Some(rate) => ((now - self.began).as_secs_f64() * rate) as u64,
        };
        let mut more = true;
        // A connection after the other gets one, so that all have as much to do.
        while more && self.issued < due {
            let mut full = true;
            for link in &mut self.links {
                if self.issued >= due {
                    break;
                }
                let Some(sync) = link.free.pop() else { continue };
                if !source.next(&mut link.outgoing, sync) {
                    link.free.push(sync);
                    more = false;
                    break;
                }
                self.since[sync as usize] = match self.plan.rate {
                    None => now,
                    Some(rate) => self.began + Duration::from_secs_f64(self.issued as f64 / rate),
                };
                self.issued += 1;
                full = false;
            }
            if full {
                break;
            }
        }
        more
    }

    /// Until a socket is ready, or the next request is due, within a millisecond.
    fn wait(&mut self, asking: bool, ready: &mut Vec<usize>) -> anyhow::Result<()> {
        let mut sockets: Vec<PollFd> = Vec::with_capacity(self.links.len());
        for link in &mut self.links {
            send(link)?;
            let write = if link.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            sockets.push(PollFd::new(link.stream.as_fd(), PollFlags::POLLIN | write));
        }
        let timeout = if asking && self.plan.rate.is_some() { 1_u8 } else { 100 };
        poll(&mut sockets, PollTimeout::from(timeout)).context("cannot wait for answers")?;
        let readable = |socket: &PollFd| socket.revents().is_some_and(|events| events != PollFlags::POLLOUT);
        let readable =
            sockets.iter().enumerate().filter(|(_, socket)| readable(socket) && socket.any() == Some(true));
        ready.extend(readable.map(|(number, _)| number));
        Ok(())
    }

    fn take(&mut self, number: usize) -> anyhow::Result<()> {
        let link = &mut self.links[number];
        match link.stream.read(&mut link.incoming[link.filled..]) {
            Ok(0) => bail!("the server has closed a connection"),
            Ok(read) => link.filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("cannot read answers"),
        }
        let now = Instant::now();
        let mut at = 0;
        while let Some((answer, bytes)) = wire::answer(&link.incoming[at..link.filled])? {
            at += bytes;
            let since = *self.since.get(answer.sync as usize).context("an answer to nothing")?;
            link.free.push(answer.sync);
            self.answered += 1;
            if answer.code != 0 {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| answer.text());
            }
            if since >= self.began + self.plan.warm_up {
                self.latencies.add(now.saturating_duration_since(since).as_nanos() as u64);
                self.measured_until = now;
            }
        }
        link.incoming.copy_within(at..link.filled, 0);
        link.filled -= at;
        Ok(())
    }

    fn report(self) -> Value {
        let measured =
            self.measured_until.saturating_duration_since(self.began + self.plan.warm_up).as_secs_f64();
        let mut report = self.latencies.report();
        report["operations"] = json!(self.answered);
        report["errors"] = json!(self.errors);
        report["first_error"] = json!(self.first_error);
        report["seconds"] = json!(self.began.elapsed().as_secs_f64());
        report["per_second"] =
            json!(if measured > 0.0 { self.latencies.count() as f64 / measured } else { 0.0 });
        report
    }
}

/// As much as the socket takes.
fn send(link: &mut Link) -> anyhow::Result<()> {
    let mut sent = 0;
    while sent < link.outgoing.len() {
        match link.stream.write(&link.outgoing[sent..]) {
            Ok(0) => bail!("the server takes no more"),
            Ok(bytes) => sent += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("cannot send requests"),
        }
    }
    link.outgoing.drain(..sent);
    Ok(())
}

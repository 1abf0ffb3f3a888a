//! One connection: requests in as they come, answers out as they are ready, in one task.
//!
//! What was read together is begun together, and what is ready together is written together, so a client with much
//! outstanding costs few system calls. A client that does not read its answers is not read from, so what is kept for it is
//! bounded; see [`Limits`].

use std::time::Instant;

use bytes::{Buf, BytesMut};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use slab::Slab;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::codec::{self, Code, Request};
use super::login::Salt;
use super::metrics::Kind;
use super::procedures::{self, Keys, Refused, Work};
use super::{Inner, Limits, schema};
use crate::billing::api::Shards;
use crate::billing::shard::Postbox;
use crate::clock;
use crate::drain::InFlight;

const READ_BYTES: usize = 16 << 10;
/// Passwords tried on one connection.
const LOGINS_MAX: usize = 3;

/// Who is at the other end, as the door sees it.
pub(super) struct Guest {
    pub salt: Salt,
    pub keys: Keys,
}

/// A request that waits for the desk.
#[derive(Clone, Copy)]
struct Ticket {
    sync: u64,
    kind: Kind,
    weight: usize,
    began: Instant,
}

/// What becomes of a message.
enum Step {
    /// Its answer is written down.
    Answered(Kind, Option<Code>),
    Work(Ticket, Work),
}

struct Session<'d, S> {
    door: &'d Inner<S>,
    guest: Guest,
    known: bool,
    logins_failed: usize,
    /// Of what waits for the desk, and of its answers until they are written.
    weight: usize,
    /// Of the answers among it.
    told: usize,
    /// While there is something in flight.
    in_flight: Option<InFlight>,
    outgoing: Vec<u8>,
    /// Nothing more is read.
    ended: bool,
    waits: Waits,
}

/// Since when the client lets the door wait.
struct Waits {
    opened: Instant,
    /// The last byte that came or went.
    moved: Instant,
    /// The first byte of a message whose last one has not come.
    begun: Option<Instant>,
}

pub(super) async fn serve<S: Shards>(
    door: &Inner<S>,
    mut stream: TcpStream,
    guest: Guest,
    closing: CancellationToken,
) {
    let greeting = guest.salt.greeting();
    if !matches!(timeout(door.limits.write_timeout, stream.write_all(&greeting)).await, Ok(Ok(()))) {
        return;
    }
    let mut session = Session::new(door, guest);
    let talked = talk(&mut session, &mut stream, closing).await;
    if talked.is_ok() && clock::now() < session.waits.moved + door.limits.linger {
        part(&mut stream, door.limits.linger).await;
    }
}

/// Error: there is nobody to part from.
async fn talk<S: Shards>(
    session: &mut Session<'_, S>,
    stream: &mut TcpStream,
    closing: CancellationToken,
) -> std::io::Result<()> {
    let door = session.door;
    let (mut from, mut to) = stream.split();
    let mut incoming = BytesMut::with_capacity(READ_BYTES);
    // What this node's shards answer at once comes to the postbox; the rest is waited for one by one.
    let (postbox, mut answers, mut asked) = (Postbox::default(), Vec::new(), Slab::new());
    let mut waiting = FuturesUnordered::new();
    let perform =
        |ticket, work| Box::pin(async move { (ticket, procedures::perform(&door.desk, work).await) });
    let closed = closing.cancelled();
    let mut armed = session.due();
    let alarm = sleep_until(armed.into());
    tokio::pin!(closed, alarm);
    loop {
        session.read(&mut incoming, |ticket, work| {
            if let Work::One { order, shape } = work {
                let place = asked.vacant_entry();
                if door.desk.post(&order, postbox.slip(place.key())) {
                    place.insert((ticket, order, shape));
                    return;
                }
            }
            waiting.push(perform(ticket, work));
        });
        // Whatever is ready goes out in one write.
        let now = clock::now();
        while session.may_tell() {
            let Some((place, answer)) = answers.pop() else {
                postbox.empty(&mut answers);
                if answers.is_empty() {
                    break;
                }
                // Those that came first are told first.
                answers.reverse();
                continue;
            };
            let Some((ticket, order, shape)) = asked.try_remove(place) else { continue };
            match door.desk.posted(&order, answer) {
                Some(outcome) => session.tell(ticket, &procedures::done(outcome, shape), now),
                None => waiting.push(perform(ticket, Work::One { order, shape })),
            }
        }
        while session.may_tell()
            && let Some(Some((ticket, done))) = waiting.next().now_or_never()
        {
            session.tell(ticket, &done, now);
        }
        if !session.outgoing.is_empty() {
            timeout(door.limits.write_timeout, to.write_all(&session.outgoing)).await??;
            session.written();
            continue;
        }
        if session.ended && waiting.is_empty() && asked.is_empty() {
            return Ok(());
        }
        let due = session.due();
        if due < armed {
            alarm.as_mut().reset(due.into());
            armed = due;
        }
        let reads = !session.ended && session.has_room();
        tokio::select! {
            biased;
            () = &mut closed, if !session.ended => session.ended = true,
            Some((ticket, done)) = waiting.next() => session.tell(ticket, &done, clock::now()),
            () = postbox.filled(), if !asked.is_empty() => {}
            read = from.read_buf(&mut incoming), if reads => match read? {
                // Whoever closes its half may still want its answers.
                0 => session.ended = true,
                _ => session.waits.moved = clock::now(),
            },
            () = &mut alarm, if !session.ended => {
                // It is late already where it was put off.
                session.ended = session.due() <= clock::now();
                armed = session.due();
                alarm.as_mut().reset(armed.into());
            }
        }
        incoming.reserve(READ_BYTES);
    }
}

/// A socket that is closed with something unread in it is reset, and the last answers may be lost with it.
async fn part(stream: &mut TcpStream, linger: std::time::Duration) {
    let mut unread = [0; 4096];
    let gone = async {
        let _ = stream.shutdown().await;
        while matches!(stream.read(&mut unread).await, Ok(1..)) {}
    };
    let _ = timeout(linger, gone).await;
}

impl<'d, S: Shards> Session<'d, S> {
    fn new(door: &'d Inner<S>, guest: Guest) -> Session<'d, S> {
        let now = clock::now();
        Session {
            door,
            guest,
            known: door.users.guests_may(),
            logins_failed: 0,
            weight: 0,
            told: 0,
            in_flight: None,
            outgoing: Vec::new(),
            ended: false,
            waits: Waits { opened: now, moved: now, begun: None },
        }
    }

    fn has_room(&self) -> bool {
        self.weight < self.door.limits.in_flight_per_connection
    }

    fn may_tell(&self) -> bool {
        self.outgoing.len() < self.door.limits.out_bytes
    }

    /// Takes the messages that came, as far as there is room for them.
    fn read(&mut self, incoming: &mut BytesMut, mut begin: impl FnMut(Ticket, Work)) {
        let (mut at, mut starved) = (0, false);
        let (before, now) = (self.weight, clock::now());
        let room = self.door.room();
        while !self.ended && self.has_room() && self.may_tell() && !starved {
            let left = &incoming[at..];
            let step = match codec::message_length(left) {
                Ok(Some(length)) if length <= left.len() => {
                    at += length;
                    self.step(&left[..length], now)
                }
                Ok(_) => {
                    starved = true;
                    continue;
                }
                Err(_) => self.nonsense("packet length"),
            };
            match step {
                Step::Answered(kind, code) => self.door.metrics.answered(kind, code),
                Step::Work(ticket, _) if self.weight - before + ticket.weight > room => {
                    let text = "busy: nothing was done; the same request may be sent again";
                    codec::error(&mut self.outgoing, ticket.sync, Code::Busy, text);
                    self.door.metrics.answered(ticket.kind, Some(Code::Busy));
                }
                Step::Work(ticket, work) => {
                    self.weight += ticket.weight;
                    begin(ticket, work);
                }
            }
        }
        incoming.advance(at);
        let begun = if at > 0 { now } else { self.waits.begun.unwrap_or(now) };
        self.waits.begun = (starved && !incoming.is_empty()).then_some(begun);
        if self.weight > before {
            self.door.metrics.in_flight.add((self.weight - before) as i64);
            self.in_flight.get_or_insert_with(|| self.door.drain.guard());
        }
    }

    fn step(&mut self, message: &[u8], now: Instant) -> Step {
        let Ok((header, request)) = codec::read(message) else { return self.nonsense("packet header") };
        let sync = header.sync;
        let Ok(request) = request else {
            let text = "Invalid MsgPack - packet body".to_owned();
            return self.refuse(sync, Kind::Other, Refused(Code::InvalidMsgpack, text));
        };
        let out = &mut self.outgoing;
        match request {
            Request::Ping => codec::pong(out, sync),
            Request::Id => codec::id(out, sync),
            Request::Auth { user, scramble } => return self.log_in(sync, user, scramble),
            Request::Select(select) if schema::is_schema(select.space) => match schema::select(&select) {
                Ok(tuples) => codec::data(out, sync, |out| {
                    codec::array(out, tuples.len());
                    // Writing to a Vec cannot fail.
                    tuples.iter().for_each(|tuple| drop(rmpv::encode::write_value(out, tuple)));
                }),
                Err(missing) => return self.refuse(sync, Kind::Schema, procedures::missing(missing)),
            },
            Request::Unknown => {
                let text = format!("Unknown request type {}", header.code);
                return self.refuse(sync, Kind::Other, Refused(Code::UnknownRequest, text));
            }
            _ if !self.known => {
                let text = "access is denied for user 'guest'; log in".to_owned();
                return self.refuse(sync, Kind::Other, Refused(Code::AccessDenied, text));
            }
            Request::Call { .. } | Request::Select(_) | Request::Insert { .. } => {
                return match procedures::work(&request, &mut self.guest.keys) {
                    Ok(work) => {
                        let (kind, weight) = (work.kind(), work.weight());
                        Step::Work(Ticket { sync, kind, weight, began: now }, work)
                    }
                    Err(refused) => self.refuse(sync, Kind::Other, refused),
                };
            }
        }
        Step::Answered(kind_of(&request), None)
    }

    fn log_in(&mut self, sync: u64, user: &[u8], scramble: Option<&[u8]>) -> Step {
        if self.door.users.know(user, scramble, &self.guest.salt) {
            self.known = true;
            codec::pong(&mut self.outgoing, sync);
            return Step::Answered(Kind::Auth, None);
        }
        self.logins_failed += 1;
        self.ended = self.logins_failed >= LOGINS_MAX;
        let text = "User not found or supplied credentials are invalid".to_owned();
        self.refuse(sync, Kind::Auth, Refused(Code::WrongCredentials, text))
    }

    fn refuse(&mut self, sync: u64, kind: Kind, Refused(code, text): Refused) -> Step {
        codec::error(&mut self.outgoing, sync, code, &text);
        Step::Answered(kind, Some(code))
    }

    /// Where the next message begins cannot be told.
    fn nonsense(&mut self, what: &str) -> Step {
        self.ended = true;
        self.refuse(0, Kind::Other, Refused(Code::InvalidMsgpack, format!("Invalid MsgPack - {what}")))
    }

    fn tell(&mut self, ticket: Ticket, done: &procedures::Done, now: Instant) {
        procedures::tell(&mut self.outgoing, ticket.sync, done);
        self.door.metrics.answered(ticket.kind, done.code());
        self.door.metrics.took(ticket.kind, now.saturating_duration_since(ticket.began));
        self.told += ticket.weight;
    }

    /// The client's system has taken all that was to be told.
    fn written(&mut self) {
        self.outgoing.clear();
        // A listing made it large.
        self.outgoing.shrink_to(2 * self.door.limits.out_bytes);
        self.door.metrics.in_flight.sub(self.told as i64);
        self.weight -= self.told;
        self.told = 0;
        if self.weight == 0 {
            self.in_flight = None;
        }
        self.waits.moved = clock::now();
    }

    /// When the client has let the door wait for too long, as it looks now.
    fn due(&self) -> Instant {
        let Limits { login_timeout, message_timeout, idle_timeout, .. } = self.door.limits;
        let Waits { opened, moved, begun } = self.waits;
        let due = match begun {
            Some(begun) => begun + message_timeout,
            None if self.weight == 0 => moved + idle_timeout,
            // The client waits for the door.
            None => clock::now() + idle_timeout,
        };
        if self.known { due } else { due.min(opened + login_timeout) }
    }
}

impl<S> Drop for Session<'_, S> {
    fn drop(&mut self) {
        self.door.metrics.in_flight.sub(self.weight as i64);
    }
}

/// Of what is answered without the desk.
fn kind_of(request: &Request) -> Kind {
    match request {
        Request::Ping => Kind::Ping,
        Request::Id => Kind::Id,
        Request::Auth { .. } => Kind::Auth,
        Request::Select(_) => Kind::Schema,
        Request::Call { .. } | Request::Insert { .. } | Request::Unknown => Kind::Other,
    }
}

//! One connection: requests in as they come, answers out as they are ready, in one task.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::codec::{self, Code, Request};
use super::login::Salt;
use super::procedures::{self, Done, Refused};
use super::{Iproto, schema};
use crate::billing::api::Shards;

/// Requests of one connection that wait for the desk; more are read once some of them are answered.
const IN_FLIGHT_MAX: usize = 4096;
/// Answers that a client has not read; beyond it nothing more is read of it.
const OUT_BYTES_MAX: usize = 1 << 20;
/// For a client to take what is written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 16 << 10;

/// What one message asks for.
enum Step {
    /// It is answered.
    Answered,
    Work(u64, procedures::Work),
    /// What comes after it cannot be understood.
    End,
}

struct Session {
    salt: Salt,
    known: bool,
}

pub(super) async fn serve<S: Shards>(
    iproto: Iproto<S>,
    mut stream: TcpStream,
    salt: Salt,
    closing: CancellationToken,
) {
    if stream.write_all(&salt.greeting()).await.is_err() {
        return;
    }
    let (mut from, mut to) = stream.split();
    let mut session = Session { salt, known: iproto.0.users.guests_may() };
    let (mut incoming, mut outgoing) = (BytesMut::with_capacity(READ_BYTES), Vec::new());
    let mut waiting = FuturesUnordered::new();
    let mut ended = false;
    loop {
        while !ended && waiting.len() < IN_FLIGHT_MAX && outgoing.len() < OUT_BYTES_MAX {
            let Some(message) = next(&mut incoming) else { break };
            match message.map(|message| session.step(&iproto, &message, &mut outgoing)) {
                Ok(Step::Answered) => {}
                Ok(Step::Work(sync, work)) => {
                    let guard = iproto.0.drain.guard();
                    let desk = &iproto.0.desk;
                    let patience = iproto.0.answer_timeout;
                    waiting.push(async move {
                        let _guard = guard;
                        let late = || {
                            Done::Refused(Refused(
                                Code::Timeout,
                                "unknown-outcome: no answer in time".to_owned(),
                            ))
                        };
                        let done = tokio::time::timeout(patience, procedures::perform(desk, work)).await;
                        (sync, done.unwrap_or_else(|_| late()))
                    });
                }
                Ok(Step::End) | Err(_) => ended = true,
            }
        }
        // Whatever is ready goes out in one write.
        while let Some(Some((sync, done))) = futures::FutureExt::now_or_never(waiting.next()) {
            procedures::tell(&mut outgoing, sync, &done);
            if outgoing.len() >= OUT_BYTES_MAX {
                break;
            }
        }
        if !outgoing.is_empty() {
            match tokio::time::timeout(WRITE_TIMEOUT, to.write_all(&outgoing)).await {
                Ok(Ok(())) => outgoing.clear(),
                Ok(Err(_)) | Err(_) => return,
            }
            continue;
        }
        if ended && waiting.is_empty() {
            return;
        }
        incoming.reserve(READ_BYTES);
        tokio::select! {
            Some((sync, done)) = waiting.next() => procedures::tell(&mut outgoing, sync, &done),
            read = from.read_buf(&mut incoming), if !ended && waiting.len() < IN_FLIGHT_MAX => {
                // Whoever closes its half may still want its answers.
                ended = !matches!(read, Ok(1..));
            }
            () = closing.cancelled(), if !ended => ended = true,
        }
    }
}

/// The next whole message, if it is there. Error: what comes is none.
fn next(incoming: &mut BytesMut) -> Option<Result<BytesMut, super::msgpack::Malformed>> {
    match codec::message_length(incoming) {
        Ok(Some(length)) if length <= incoming.len() => Some(Ok(incoming.split_to(length))),
        Ok(_) => None,
        Err(malformed) => {
            incoming.advance(incoming.len());
            Some(Err(malformed))
        }
    }
}

impl Session {
    fn step<S: Shards>(&mut self, iproto: &Iproto<S>, message: &[u8], out: &mut Vec<u8>) -> Step {
        iproto.0.requests.inc();
        let Ok((header, request)) = codec::read(message) else {
            codec::error(out, 0, Code::InvalidMsgpack, "Invalid MsgPack - packet header");
            return Step::End;
        };
        let sync = header.sync;
        let mut refuse = |Refused(code, text): Refused| {
            codec::error(out, sync, code, &text);
            Step::Answered
        };
        let request = match request {
            Ok(request) => request,
            Err(_) => {
                return refuse(Refused(Code::InvalidMsgpack, "Invalid MsgPack - packet body".to_owned()));
            }
        };
        match request {
            Request::Ping => codec::pong(out, sync),
            Request::Id => codec::id(out, sync),
            Request::Auth { user, scramble } => return self.log_in(iproto, out, sync, user, scramble),
            Request::Select(select) if schema::is_schema(select.space) => match schema::select(&select) {
                Ok(tuples) => codec::data(out, sync, |out| {
                    codec::array(out, tuples.len());
                    // Writing to a Vec cannot fail.
                    tuples.iter().for_each(|tuple| drop(rmpv::encode::write_value(out, tuple)));
                }),
                Err(missing) => return refuse(procedures::missing(missing)),
            },
            Request::Unknown => {
                let text = format!("Unknown request type {}", header.code);
                return refuse(Refused(Code::UnknownRequest, text));
            }
            _ if !self.known => {
                let text = "access is denied for user 'guest'; log in".to_owned();
                return refuse(Refused(Code::AccessDenied, text));
            }
            request => {
                return match procedures::work(&request) {
                    Ok(work) => Step::Work(sync, work),
                    Err(refused) => refuse(refused),
                };
            }
        }
        Step::Answered
    }

    fn log_in<S: Shards>(
        &mut self,
        iproto: &Iproto<S>,
        out: &mut Vec<u8>,
        sync: u64,
        user: &[u8],
        scramble: Option<&[u8]>,
    ) -> Step {
        if iproto.0.users.know(user, scramble, &self.salt) {
            self.known = true;
            codec::pong(out, sync);
        } else {
            let text = "User not found or supplied credentials are invalid";
            codec::error(out, sync, Code::WrongCredentials, text);
        }
        Step::Answered
    }
}

//! After a 101: both directions are passed through until either side ends or nothing moves for the route's idle timeout.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::forwarding::Forwarded;
use super::origin::{Reader, Writer};
use super::outgoing;
use crate::http1::ResponseHead;
use crate::listener::{AnswerHead, BodySize, Session};

/// What one direction holds at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// A tunnel in which nothing moved for so long is at rest.
const QUIET: Duration = Duration::from_secs(1);

/// Sends the 101 and runs the tunnel to its end. The session's connection is of no further use.
pub async fn run<S: Session>(
    session: &mut S,
    head: &ResponseHead,
    mut lines: BytesMut,
    reader: Reader,
    writer: Writer,
    idle: Duration,
    closing: &CancellationToken,
) -> Forwarded {
    outgoing::line("connection", b"upgrade", &mut lines);
    if let Some(protocol) = head.fields.get("upgrade") {
        outgoing::line("upgrade", protocol, &mut lines);
    }
    session.send_head(AnswerHead { status: head.status, lines: &lines, body: BodySize::None });
    if session.finish(b"").await.is_err() {
        return Forwarded::ClientGone;
    }
    let Some((input, client)) = session.raw() else { return Forwarded::Cut("the protocol knows no upgrade") };
    let early = input.split();
    let (client_reader, client_writer) = tokio::io::split(client);
    let begun = Instant::now();
    let moved_at = AtomicU64::new(0);
    let up = copy(client_reader, writer.half, early, begun, &moved_at);
    let down = copy(reader.half, client_writer, reader.input, begun, &moved_at);
    tokio::select! {
        _ = async { tokio::try_join!(up, down) } => {}
        () = still_for(idle, begun, &moved_at) => {}
        // A node that leaves ends its tunnels in the next quiet moment; the grace period ends the others.
        () = async {
            closing.cancelled().await;
            still_for(QUIET, begun, &moved_at).await;
        } => {}
    }
    Forwarded::Answered
}

/// Copies one direction, `early` first, and ends the other side's reading when this side ends.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    early: BytesMut,
    begun: Instant,
    moved_at: &AtomicU64,
) -> std::io::Result<()> {
    let mut buffer = early;
    loop {
        if !buffer.is_empty() {
            to.write_all(&buffer).await?;
            to.flush().await?;
            buffer.clear();
        }
        buffer.reserve(BUFFER_BYTES);
        if from.read_buf(&mut buffer).await? == 0 {
            return to.shutdown().await;
        }
        moved_at.store(begun.elapsed().as_millis() as u64, Relaxed);
    }
}

/// Resolves once nothing moved in either direction for `idle`.
async fn still_for(idle: Duration, begun: Instant, moved_at: &AtomicU64) {
    loop {
        let until = begun + Duration::from_millis(moved_at.load(Relaxed)) + idle;
        if Instant::now() >= until {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

//! An HTTP/3 client for the bench and the load tests: `cargo build --release --example h3load`. The result is JSON on stdout.
//! It accepts whatever certificate it is shown, and sends nothing twice but what the protocol allows.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::{Method, Uri};
use quinn::{TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use client::{Link, begin, endpoint, leave};

#[path = "h3load/client.rs"]
mod client;
#[path = "h3load/closed.rs"]
mod closed;
#[path = "h3load/rate.rs"]
mod rate;

/// Content that a client takes who reads none of it.
const STALLED_WINDOW_BYTES: u32 = 256 * 1024;

#[derive(Parser)]
#[command(about = "An HTTP/3 client for benches and load tests; prints JSON")]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// A closed loop: each stream asks again as soon as it has its answer
    Closed(closed::Args),
    /// A constant arrival rate of the mix; users go to the next node when they are told to, and only then
    Rate(rate::Args),
    /// Asks, takes the head of the answer, and reads nothing of its content
    Stall(StallArgs),
    /// The SHA-256 of the certificate that a node shows
    Certificate { node: Uri },
}

#[derive(clap::Args)]
struct StallArgs {
    uri: Uri,
    #[arg(long, default_value_t = 10)]
    connections: usize,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

fn main() -> anyhow::Result<()> {
    let result = match Cli::parse().mode {
        Mode::Closed(args) => closed::run(&args)?,
        Mode::Rate(args) => runtime()?.block_on(rate::run(args))?,
        Mode::Stall(args) => runtime()?.block_on(stall(&args))?,
        Mode::Certificate { node } => runtime()?.block_on(certificate(&node))?,
    };
    println!("{result}");
    Ok(())
}

/// A client that shares the machine with what it measures must be cheap: nothing wakes another thread.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Prints a line once all clients have the head of their answer, and another at the end, which SIGTERM may bring sooner.
async fn stall(args: &StallArgs) -> anyhow::Result<Value> {
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(STALLED_WINDOW_BYTES));
    transport.keep_alive_interval(Some(Duration::from_secs(2)));
    let endpoint = endpoint(transport)?;
    let mut held = Vec::new();
    for _ in 0..args.connections {
        let mut link = Link::open(&endpoint, &args.uri).await?;
        let begun = begin(&mut link.send, Method::GET, &args.uri, Bytes::new()).await;
        let mut stream = begun.map_err(|failure| anyhow!("{failure:?}"))?;
        let status = stream.recv_response().await?.status();
        ensure!(status == 200, "the answer is {status}");
        held.push((link, stream));
    }
    println!("{}", json!({ "stalled": held.len() }));
    let mut told_to_end = signal(SignalKind::terminate())?;
    let _ = tokio::time::timeout(Duration::from_secs(args.seconds), told_to_end.recv()).await;
    let received = held.iter().map(|(link, _)| link.quic.stats().udp_rx.bytes).max();
    let open = held.iter().filter(|(link, _)| link.quic.close_reason().is_none()).count();
    drop(held);
    leave(&endpoint).await;
    Ok(json!({ "open": open, "received_bytes_max": received }))
}

async fn certificate(node: &Uri) -> anyhow::Result<Value> {
    let link = Link::open(&endpoint(TransportConfig::default())?, node).await?;
    let shown = link.quic.peer_identity().context("the node shows no certificate")?;
    let Ok(chain) = shown.downcast::<Vec<CertificateDer>>() else {
        bail!("the certificate is of a kind not known here")
    };
    let leaf = chain.first().context("the chain is empty")?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    Ok(json!({ "certificate_sha256": hex::encode(digest) }))
}

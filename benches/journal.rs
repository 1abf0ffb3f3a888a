//! Appends to the journal, durable each: `cargo bench --bench journal`. One shard, one append at a time, as a shard's owner
//! does it. With `JOURNAL_CONNECTION="host=… user=… dbname=…"` in the environment PostgreSQL as well, in an empty database.

use std::time::{Duration, Instant};

use forefront::billing::journal::{Acquisition, Batch, Config, Engine, Journal, Node, Snapshot, Timeouts};

/// 64 and 512 operations of about 40 bytes.
const PAYLOADS_BYTES: [usize; 2] = [64 * 40, 512 * 40];
const WARM_UP: u64 = 200;
const APPENDS: u64 = 3000;
const READ_BYTES: usize = 4 << 20;

#[tokio::main]
async fn main() {
    println!("| engine | payload | appends/s | p50 ms | p99 ms | max ms | CPU µs | read back MB/s |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let directory = tempfile::tempdir().expect("a directory can be made");
    measure("embedded", Engine::Embedded { path: directory.path().to_owned() }).await;
    if let Ok(connection) = std::env::var("JOURNAL_CONNECTION") {
        measure(
            "postgres",
            Engine::Postgres { connections: vec![connection], ca_file: None, password_file: None },
        )
        .await;
    }
}

async fn measure(name: &str, engine: Engine) {
    let config = Config { engine, shards: 2, timeouts: Timeouts::default() };
    let journal = Journal::open(&config).await.expect("the journal opens");
    for (shard, bytes) in (0..).zip(PAYLOADS_BYTES) {
        let node = Node { name: "bench".to_owned(), advertise: "http://bench".to_owned() };
        let lease = match journal.acquire(shard, &node, Duration::from_secs(600)).await {
            Ok(Acquisition::Acquired(lease)) => lease,
            outcome => panic!("{outcome:?}"),
        };
        // Nothing for a compression to find.
        let payload: bytes::Bytes = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
        let mut latencies = Vec::new();
        let mut cpu = cpu_time();
        for at in 0..WARM_UP + APPENDS {
            if at == WARM_UP {
                cpu = cpu_time();
                latencies.clear();
            }
            let payload = payload.clone();
            let batch = Batch { shard, seq: lease.seq + 1 + at, epoch: lease.epoch, payload };
            let sent = Instant::now();
            journal.append(&batch).await.expect("an append succeeds");
            latencies.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        let (took, cpu) = (latencies.iter().sum::<f64>() / 1e3, cpu_time() - cpu);
        latencies.sort_by(f64::total_cmp);
        let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize];
        println!(
            "| {name} | {bytes} | {:.0} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} |",
            APPENDS as f64 / took,
            at(0.5),
            at(0.99),
            latencies[latencies.len() - 1],
            cpu.as_secs_f64() * 1e6 / APPENDS as f64,
            read_back(&journal, shard, lease.seq).await / 1e6,
        );
        let last = lease.seq + WARM_UP + APPENDS;
        let snapshot = Snapshot { shard, seq: last, epoch: lease.epoch, payload: bytes::Bytes::new() };
        journal.put_snapshot(&snapshot).await.expect("a snapshot is written");
        journal.truncate(shard, last).await.expect("the journal is truncated");
    }
}

/// Bytes a second.
async fn read_back(journal: &Journal, shard: u32, mut after: u64) -> f64 {
    let (start, mut bytes) = (Instant::now(), 0);
    loop {
        let batches = journal.read(shard, after, READ_BYTES).await.expect("the journal is read");
        let Some(last) = batches.last() else { return bytes as f64 / start.elapsed().as_secs_f64() };
        after = last.seq;
        bytes += batches.iter().map(|batch| batch.payload.len()).sum::<usize>();
    }
}

/// Of this process; PostgreSQL's own comes on top.
fn cpu_time() -> Duration {
    let usage =
        nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("it is known");
    let time =
        |value: nix::sys::time::TimeVal| Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

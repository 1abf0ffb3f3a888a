//! Guards of the hot path: allocations and system calls per request of the thread that serves them. Counts are steady where
//! timings are not, so a change that adds one shows on any machine, in a debug build too.
//!
//! One core of a real proxy runs here as `app` runs it: a thread with a current-thread runtime and an accept loop. Its origin
//! is on a second thread, the client on the test's own. Only what the core's thread does is counted, so that neither
//! they nor other tests disturb. When an allocation guard fails it says where the allocations are made.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use forefront::cache::Cache;
use forefront::drain::Drain;
use forefront::listener::tcp::{self, ConnectionLimits};
use forefront::proxy::{Core, Door, Pools, Proxy};
use forefront::upstream::{self, Pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Requests before counting: buffers reach their size, connections are made, metrics resolved.
const WARM_UP: u32 = 500;
const REQUESTS: u32 = 2_000;
/// The content of every answer.
const CONTENT_BYTES: usize = 1024;

/// Allocations per request of a plain hit. It makes none; the store's housekeeping comes to a hundredth of one.
const HIT_ALLOCATIONS_MAX: f64 = 1.0;
/// Of a pass-through GET on kept connections: 21 when this was written, of which 12 are how pingora keeps a connection
/// while it is idle. The bound leaves 15 %.
const PASS_ALLOCATIONS_MAX: f64 = 24.0;

#[test]
fn a_plain_hit_allocates_little() {
    let rig = Rig::start();
    let per_request = rig.allocations_per_request("/hit");
    assert_eq!(rig.origin_requests("/hit"), 1, "all but the first were to be hits");
    rig.judge("/hit", per_request, HIT_ALLOCATIONS_MAX);
}

#[test]
fn a_pass_through_allocates_no_more_than_it_did() {
    let rig = Rig::start();
    let per_request = rig.allocations_per_request("/pass");
    assert_eq!(rig.origin_requests("/pass"), u64::from(WARM_UP + REQUESTS), "each was to go to the origin");
    rig.judge("/pass", per_request, PASS_ALLOCATIONS_MAX);
}

#[test]
fn a_plain_hit_is_one_recv_and_one_send() {
    let rig = Rig::start();
    let calls = rig.calls_per_request("/hit");
    println!("system calls per hit: {calls:?}");
    assert_eq!(rig.origin_requests("/hit"), 1, "all but the first were to be hits");
    judge_calls(&calls, &[("recvfrom", 1.0), ("sendto", 1.0), ("epoll_wait", 1.0)]);
}

#[test]
fn a_pass_through_is_two_recvs_and_two_sends() {
    const ALLOWED: [(&str, f64); 5] = [
        ("recvfrom", 2.0),
        ("sendto", 1.0),
        // The request to the origin.
        ("writev", 1.0),
        ("epoll_wait", 2.0),
        // pingora's check that an idle connection is still the one it was.
        ("getpeername", 1.0),
    ];
    let rig = Rig::start();
    let calls = rig.calls_per_request("/pass");
    println!("system calls per pass-through: {calls:?}");
    assert_eq!(rig.origin_requests("/pass"), u64::from(WARM_UP + REQUESTS), "each was to go to the origin");
    judge_calls(&calls, &ALLOWED);
}

/// A tally counts; an allocation that is not on a tallied thread is not.
#[test]
fn the_tally_counts_its_own_thread_only() {
    let tally = Tally::leak();
    std::thread::spawn(move || {
        tally.watch_this_thread();
        drop(std::hint::black_box(vec![0u8; 100]));
    })
    .join()
    .expect("the thread only allocates");
    let counted = tally.count.load(SeqCst);
    drop(std::hint::black_box(vec![0u8; 100]));
    assert!(counted >= 1);
    assert_eq!(tally.count.load(SeqCst), counted);
}

/// Bounds on calls of a kind. A tenth is left for what is not of a request: the clock's timers, a try in vain.
fn judge_calls(calls: &BTreeMap<String, f64>, allowed: &[(&str, f64)]) {
    let bound = |name: &str| allowed.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, max)| *max);
    let over: Vec<_> = calls.iter().filter(|(name, count)| **count > bound(name) + 0.1).collect();
    assert!(
        over.is_empty(),
        "more calls per request than allowed: {over:?}; all: {calls:?}; allowed: {allowed:?}"
    );
    assert!(calls.get("recvfrom").is_some_and(|count| *count > 0.9), "strace missed the requests: {calls:?}");
}

// ---------------------------------------------------------------------------------------------------- the allocator

/// What one thread allocates.
struct Tally {
    count: AtomicU64,
    records: AtomicBool,
    sites: Mutex<Vec<Backtrace>>,
}

impl Tally {
    /// A thread may allocate to its very end, so a tally lives for ever.
    fn leak() -> &'static Tally {
        Box::leak(Box::new(Tally {
            count: AtomicU64::new(0),
            records: AtomicBool::new(false),
            sites: Mutex::default(),
        }))
    }

    fn watch_this_thread(&'static self) {
        TALLY.set(Some(self));
    }

    fn add(&'static self) {
        self.count.fetch_add(1, SeqCst);
        if self.records.load(SeqCst) {
            // Taking a backtrace allocates: that is not to be counted, nor recorded in its turn.
            TALLY.set(None);
            if let Ok(mut sites) = self.sites.lock() {
                sites.push(Backtrace::force_capture());
            }
            TALLY.set(Some(self));
        }
    }
}

thread_local! {
    static TALLY: Cell<Option<&'static Tally>> = const { Cell::new(None) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    if let Ok(Some(tally)) = TALLY.try_with(Cell::get) {
        tally.add();
    }
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

// ---------------------------------------------------------------------------------------------------------- the rig

/// One core of a proxy before one origin.
struct Rig {
    address: SocketAddr,
    core_id: nix::unistd::Pid,
    tally: &'static Tally,
    asked: Arc<Mutex<HashMap<String, u64>>>,
    stopped: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    fn start() -> Rig {
        let stopped = CancellationToken::new();
        let asked = Arc::default();
        let (origin, origin_thread) = start_origin(Arc::clone(&asked), stopped.clone());
        let tally = Tally::leak();
        let (address, core_id, core_thread) = start_core(&configuration(origin), tally, stopped.clone());
        Rig { address, core_id, tally, asked, stopped, threads: vec![origin_thread, core_thread] }
    }

    fn allocations_per_request(&self, path: &str) -> f64 {
        let mut client = Client::connect(self.address, path);
        client.ask(WARM_UP);
        let before = self.tally.count.load(SeqCst);
        client.ask(REQUESTS);
        (self.tally.count.load(SeqCst) - before) as f64 / f64::from(REQUESTS)
    }

    fn judge(&self, path: &str, per_request: f64, max: f64) {
        println!("allocations per request of {path}: {per_request:.2}");
        if per_request > max + 0.05 {
            panic!(
                "{path}: {per_request:.2} allocations per request, allowed are {max}\n{}",
                self.sites(path)
            );
        }
    }

    /// Where the allocations of a request are made, most frequent first.
    fn sites(&self, path: &str) -> String {
        let mut client = Client::connect(self.address, path);
        client.ask(50);
        self.tally.records.store(true, SeqCst);
        client.ask(10);
        self.tally.records.store(false, SeqCst);
        let mut by_site: HashMap<String, u32> = HashMap::new();
        for site in &*self.tally.sites.lock().expect("no holder of the lock panics") {
            *by_site.entry(own_frames(&site.to_string())).or_default() += 1;
        }
        let mut sites: Vec<_> = by_site.into_iter().collect();
        sites.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        sites.iter().map(|(site, count)| format!("{count:4} in 10 requests:\n{site}")).collect()
    }

    /// System calls of the core's thread by name.
    fn calls_per_request(&self, path: &str) -> BTreeMap<String, f64> {
        let mut client = Client::connect(self.address, path);
        client.ask(WARM_UP);
        let summary = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let mut strace = trace(self.core_id, summary.path());
        client.ask(REQUESTS);
        let pid = nix::unistd::Pid::from_raw(strace.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("strace is still running");
        strace.wait().expect("strace is a child of this process");
        let text = std::fs::read_to_string(summary.path()).expect("strace wrote its summary");
        std::fs::copy(summary.path(), "/tmp/strace-pass.txt").unwrap();
        calls_of(&text).into_iter().map(|(name, calls)| (name, calls as f64 / f64::from(REQUESTS))).collect()
    }

    fn origin_requests(&self, path: &str) -> u64 {
        self.asked.lock().expect("no holder of the lock panics").get(path).copied().unwrap_or_default()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stopped.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn configuration(origin: SocketAddr) -> String {
    format!(
        r#"
        [node]
        name = "counted"
        threads = 1
        [listen]
        http = ["127.0.0.1:0"]
        [[upstream]]
        name = "origin"
        endpoints = ["{origin}"]
        [[route]]
        name = "hit"
        path = "/hit"
        methods = ["GET"]
        upstream = "origin"
        timeout = "10s"
        cache = {{ max_age = "1h" }}
        [[route]]
        name = "rest"
        path = "/*"
        upstream = "origin"
        timeout = "10s"
        "#
    )
}

/// Starts an accept loop as `app::proxy` does, on a thread that is counted.
fn start_core(
    configuration: &str,
    tally: &'static Tally,
    stopped: CancellationToken,
) -> (SocketAddr, nix::unistd::Pid, JoinHandle<()>) {
    let settings = forefront::config::proxy::parse(Path::new("counts.toml"), configuration)
        .unwrap_or_else(|problems| panic!("{problems}"));
    let registry = prometheus::Registry::new();
    let metrics = upstream::Metrics::register(&registry).expect("the registry is new");
    let pools: Pools = settings
        .upstreams
        .iter()
        .map(|config| {
            (config.name.clone(), Pool::new(config.clone(), metrics.clone()).expect("a sound upstream"))
        })
        .collect();
    let cache = Cache::new(settings.cache.clone(), &registry).expect("the registry is new");
    let drain = Drain::new();
    let proxy =
        Proxy::new(&settings.proxy, &settings.cache, &pools, cache, &registry, drain, stopped.clone(), None)
            .expect("the configuration was checked");
    let limits = ConnectionLimits::new(100, 100, &registry).expect("the registry is new");
    let listener = tcp::bind(settings.proxy.listen_http[0]).expect("a port is free");
    tcp::open(&listener).expect("a bound socket can listen");
    let address = listener.local_addr().expect("a listener has an address");
    let (started, id) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        tally.watch_this_thread();
        started.send(nix::unistd::gettid()).expect("the test waits for it");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime
            .block_on(tcp::accept(listener, limits, Core { proxy, door: Door::Http }, stopped))
            .expect("accepting goes on");
        runtime.shutdown_background();
    });
    (address, id.recv().expect("the thread says its id"), thread)
}

/// An origin that answers every request with the same kilobyte, and counts by path.
fn start_origin(
    asked: Arc<Mutex<HashMap<String, u64>>>,
    stopped: CancellationToken,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("a socket can be made so");
    let address = listener.local_addr().expect("a listener has an address");
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime is there");
        while let Some(Ok((stream, _))) = stopped.run_until_cancelled(listener.accept()).await {
            tokio::spawn(answer_all(stream, Arc::clone(&asked)));
        }
    };
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(serve);
    });
    (address, thread)
}

async fn answer_all(mut stream: tokio::net::TcpStream, asked: Arc<Mutex<HashMap<String, u64>>>) {
    let _ = stream.set_nodelay(true);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nserver: origin\r\ncontent-type: application/json\r\ncontent-length: {CONTENT_BYTES}\r\n\r\n{}",
        "x".repeat(CONTENT_BYTES)
    );
    let mut input = Vec::new();
    loop {
        while let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&input[..end]);
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            *asked.lock().expect("no holder of the lock panics").entry(path).or_default() += 1;
            input.drain(..end + 4);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut input).await {
            Ok(1..) => {}
            _ => return,
        }
    }
}

/// One keep-alive connection that sends one request at a time, with a browser's few fields.
struct Client {
    stream: TcpStream,
    request: String,
}

impl Client {
    fn connect(address: SocketAddr, path: &str) -> Client {
        let stream = TcpStream::connect(address).expect("the core listens");
        stream.set_nodelay(true).expect("a socket can be made so");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("the timeout is not zero");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: example.test\r\nUser-Agent: counts\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n"
        );
        Client { stream, request }
    }

    fn ask(&mut self, times: u32) {
        let mut input = [0u8; 4096];
        for _ in 0..times {
            self.stream.write_all(self.request.as_bytes()).expect("the connection is kept");
            let mut length = 0;
            loop {
                let read = self.stream.read(&mut input[length..]).expect("an answer comes in time");
                assert!(read > 0, "the connection is kept");
                length += read;
                let head_end = input[..length].windows(4).position(|four| four == b"\r\n\r\n");
                if head_end.is_some_and(|end| length >= end + 4 + CONTENT_BYTES) {
                    break;
                }
            }
            assert!(input.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&input[..length]));
        }
    }
}

// ----------------------------------------------------------------------------------------------------- the tracing

/// Attaches strace to one thread; back when it is attached.
fn trace(thread: nix::unistd::Pid, summary: &Path) -> std::process::Child {
    // Where only ancestors may trace (Yama), this process lets its child.
    // SAFETY: prctl with these arguments changes a flag of this process and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let mut strace = Command::new("strace")
        .args(["-c", "-U", "calls,name", "-p", &thread.to_string(), "-o"])
        .arg(summary)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("strace cannot be started ({error}): install the package `strace`"));
    let mut says = BufReader::new(strace.stderr.take().expect("stderr is a pipe"));
    let mut line = String::new();
    says.read_line(&mut line).expect("stderr is a pipe");
    assert!(line.contains("attached"), "strace cannot trace here (a container needs CAP_SYS_PTRACE): {line}");
    // What it says when it lets go fits into the pipe, so nobody needs to read on.
    strace.stderr = Some(says.into_inner());
    strace
}

/// Calls by name from strace's summary of two columns.
fn calls_of(summary: &str) -> BTreeMap<String, u64> {
    summary
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let calls = words.next()?.parse().ok()?;
            let name = words.next()?;
            (name != "total").then(|| (name.to_owned(), calls))
        })
        .collect()
}

#[test]
fn a_summary_of_strace_is_understood() {
    let text = "    calls syscall\n--------- ----------------\n     2000 recvfrom\n       12 futex\n------- ---\n 2012 total\n";
    let expected = BTreeMap::from([("futex".to_owned(), 12), ("recvfrom".to_owned(), 2000)]);
    assert_eq!(calls_of(text), expected);
}

/// The innermost frames that are not of the standard library, nor of this file: one a line.
fn own_frames(backtrace: &str) -> String {
    let mut frames = Vec::new();
    let mut lines = backtrace.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((_, name)) = line.trim().split_once(": ") else { continue };
        let place = lines.next_if(|next| next.trim().starts_with("at ")).unwrap_or_default().trim();
        let foreign = ["/rustc/", "tests/it/counts.rs"].iter().any(|part| place.contains(part));
        if !foreign && !place.is_empty() {
            let place = place.rsplit_once("/index.").map_or(place, |(_, crates)| crates);
            frames.push(format!("       {name} {place}\n"));
        }
    }
    frames.truncate(3);
    frames.concat()
}

//! The cache as its callers see it, with an origin made of a script and time that is paused.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use proptest::prelude::*;

use super::*;
use crate::clock;

const KEY: &str = "long_dummy\0/long_dummy";

/// One answer of the scripted origin.
#[derive(Clone, Debug)]
enum Reply {
    /// A body of as many bytes as the second figure says, or the number of the request.
    Ok(Option<usize>),
    Fields(&'static [(&'static str, &'static str)]),
    Status(u16),
    Error(FetchError),
    Panic,
    Hang,
}

/// An origin that takes `delay` for each request, answers by script, then plainly; and counts.
struct Origin {
    delay: Duration,
    script: Mutex<VecDeque<Reply>>,
    asked: Mutex<Vec<(Instant, String)>>,
}

impl Origin {
    fn new(delay_s: u64, script: impl IntoIterator<Item = Reply>) -> Arc<Origin> {
        let script = Mutex::new(script.into_iter().collect());
        Arc::new(Origin { delay: Duration::from_secs(delay_s), script, asked: Mutex::default() })
    }

    fn requests(&self) -> usize {
        self.asked.lock().len()
    }
}

impl Fetch for Origin {
    fn fetch(&self, key: &str) -> BoxFuture<'static, Result<Fetched, FetchError>> {
        let sent_at = clock::now();
        let number = {
            let mut asked = self.asked.lock();
            asked.push((sent_at, key.to_owned()));
            asked.len()
        };
        let reply = self.script.lock().pop_front().unwrap_or(Reply::Ok(None));
        let delay = self.delay;
        async move {
            tokio::time::sleep(delay).await;
            let mut answer =
                Fetched { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::new(), sent_at };
            match reply {
                Reply::Ok(None) => answer.body = number.to_string().into(),
                Reply::Ok(Some(bytes)) => answer.body = vec![b'x'; bytes].into(),
                Reply::Fields(fields) => {
                    for (name, value) in fields {
                        answer.headers.append(*name, HeaderValue::from_static(value));
                    }
                }
                Reply::Status(status) => {
                    answer.status = StatusCode::from_u16(status).expect("a valid status")
                }
                Reply::Error(error) => return Err(error),
                Reply::Panic => panic!("the script says so"),
                Reply::Hang => std::future::pending().await,
            }
            Ok(answer)
        }
        .boxed()
    }
}

struct Bench {
    cache: Arc<Cache>,
    origin: Arc<Origin>,
    policy: Arc<Policy>,
    fetch: Arc<dyn Fetch>,
    stop: tokio_util::sync::CancellationToken,
    start: Instant,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bench {
    /// A cache with a lifetime of 60 s, renewed at 30 s.
    fn new(origin: Arc<Origin>) -> Bench {
        Bench::with(origin, Config { capacity_bytes: 1 << 20, object_bytes_max: 1 << 16, fills: 2 })
    }

    fn with(origin: Arc<Origin>, config: Config) -> Bench {
        let cache = Cache::new(config, &prometheus::Registry::new()).expect("a fresh registry");
        let policy = Arc::new(Policy {
            max_age: Some(Duration::from_secs(60)),
            refresh_at: Some(Duration::from_secs(30)),
            query: QueryKey::None,
        });
        let stop = tokio_util::sync::CancellationToken::new();
        cache.spawn_refresher(&tokio::runtime::Handle::current(), stop.clone());
        Bench { cache, fetch: origin.clone(), origin, policy, stop, start: clock::now() }
    }

    async fn get(&self, key: &str) -> Answer {
        self.cache.get(key, &self.policy, &self.fetch).await
    }

    /// A `get` of its own task, which has begun.
    async fn begin(&self, key: &'static str) -> tokio::task::JoinHandle<Answer> {
        let (cache, policy, fetch) = (self.cache.clone(), self.policy.clone(), self.fetch.clone());
        let task = tokio::spawn(async move { cache.get(key, &policy, &fetch).await });
        settle().await;
        task
    }

    /// Goes to a second counted from the start.
    async fn at(&self, second: f64) {
        let then = self.start + Duration::from_secs_f64(second);
        tokio::time::sleep_until(then.into()).await;
        settle().await;
    }

    fn looked_up(&self) -> Option<String> {
        let entry = self.cache.lookup(KEY, clock::now())?;
        Some(String::from_utf8_lossy(&entry.body).into_owned())
    }
}

/// Lets every task run that can, without moving the time.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn kind(answer: &Answer) -> &'static str {
    match answer {
        Answer::Hit(_) => "hit",
        Answer::Miss(_) => "miss",
        Answer::Stale(_) => "stale",
        Answer::Collapsed(_) => "collapsed",
        Answer::Pass(reason) => reason.as_str(),
        Answer::Failed(FetchError::Status(_)) => "failed: status",
        Answer::Failed(FetchError::Aborted) => "failed: aborted",
        Answer::Failed(_) => "failed",
        Answer::Busy => "busy",
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_requests_are_one_fetch() {
    let bench = Bench::new(Origin::new(5, []));
    let all: FuturesUnordered<_> = (0..200).map(|_| bench.get(KEY)).collect();
    let answers: Vec<_> = all.map(|answer| kind(&answer)).collect().await;
    assert_eq!(bench.origin.requests(), 1);
    assert_eq!(answers.iter().filter(|&&kind| kind == "miss").count(), 1);
    assert_eq!(answers.iter().filter(|&&kind| kind == "collapsed").count(), 199);
    assert_eq!(kind(&bench.get(KEY).await), "hit");
    assert_eq!(bench.origin.asked.lock()[0].1, KEY);
    let lookups = &bench.cache.metrics.lookups;
    assert_eq!((lookups.miss.get(), lookups.collapsed.get(), lookups.hit.get()), (1, 199, 1));
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_ready_to_send() {
    let fields = &[
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("age", "7"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("x-kept", "a"),
        ("x-kept", "b"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ];
    let bench = Bench::new(Origin::new(1, [Reply::Fields(fields)]));
    let Answer::Miss(entry) = bench.get(KEY).await else { panic!("no miss") };
    let expected = "HTTP/1.1 200 OK\r\nx-kept: a\r\nx-kept: b\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: 0\r\n";
    assert_eq!(String::from_utf8_lossy(&entry.head), expected);
    assert_eq!(entry.headers.len(), 4);
    assert_eq!(
        entry.times.age(clock::now()),
        Duration::from_secs(8),
        "the origin's Age and the time it took"
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_does_not_stop_the_fetch() {
    let bench = Bench::new(Origin::new(5, []));
    let leader = bench.begin(KEY).await;
    let waiter = bench.begin(KEY).await;
    leader.abort();
    assert_eq!(kind(&waiter.await.expect("an answer")), "collapsed");
    assert_eq!(bench.origin.requests(), 1);
    assert_eq!(bench.looked_up().as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_fetch_in_flight_at_a_purge_is_neither_stored_nor_joined() {
    for prefix in [false, true] {
        let bench = Bench::new(Origin::new(5, []));
        let before = bench.begin(KEY).await;
        if prefix {
            bench.cache.purge_prefix("long_dummy\0")
        } else {
            bench.cache.purge_exact(KEY)
        };
        bench.at(2.0).await;
        let after = bench.begin(KEY).await;
        assert_eq!(bench.origin.requests(), 2);
        assert_eq!(kind(&before.await.expect("an answer")), "miss");
        assert_eq!(bench.looked_up(), None, "the purged answer was stored");
        let Answer::Miss(entry) = after.await.expect("an answer") else { panic!("no miss") };
        assert_eq!(&entry.body[..], b"2");
        assert_eq!(bench.looked_up().as_deref(), Some("2"));
    }
}

#[tokio::test(start_paused = true)]
async fn purges_count_what_they_remove_and_start_no_renewal() {
    let bench = Bench::new(Origin::new(0, []));
    for key in ["a\0/x", "a\0/x?1", "a\0/y", "b\0/x"] {
        bench.get(key).await;
    }
    assert_eq!(bench.cache.purge_exact("a\0/x"), 1);
    assert_eq!(bench.cache.purge_exact("a\0/x"), 0);
    assert_eq!(bench.cache.purge_prefix("a\0/x"), 1);
    assert_eq!(bench.cache.purge_where(|scope, _| scope != "a"), 1);
    assert_eq!(bench.cache.entries(), 1);
    assert_eq!(bench.cache.purge_prefix(""), 1);
    assert_eq!((bench.cache.entries(), bench.cache.bytes()), (0, 0));
    bench.at(120.0).await;
    assert_eq!(bench.origin.requests(), 4);
    assert_eq!(bench.cache.store.plan.lock().next(), None);
}

#[tokio::test(start_paused = true)]
async fn errors_are_shared_and_not_stored() {
    let timed_out = Reply::Error(FetchError::TimedOut);
    for (reply, expected) in
        [(timed_out, "failed"), (Reply::Status(500), "failed: status"), (Reply::Panic, "failed: aborted")]
    {
        let bench = Bench::new(Origin::new(1, [reply]));
        let all: FuturesUnordered<_> = (0..20).map(|_| bench.get(KEY)).collect();
        let answers: Vec<_> = all.map(|answer| kind(&answer)).collect().await;
        assert_eq!(answers, [expected; 20]);
        assert_eq!((bench.origin.requests(), bench.cache.entries()), (1, 0));
        assert_eq!(kind(&bench.get(KEY).await), "miss");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_never_ends_is_given_up() {
    let bench = Bench::new(Origin::new(1, [Reply::Hang]));
    assert_eq!(kind(&bench.get(KEY).await), "failed");
    assert_eq!(kind(&bench.get(KEY).await), "miss");
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_stored_is_passed_for_a_while() {
    let bench = Bench::new(Origin::new(1, [Reply::Fields(&[("cache-control", "no-store")])]));
    let all: FuturesUnordered<_> = (0..20).map(|_| bench.get(KEY)).collect();
    assert_eq!(all.map(|answer| kind(&answer)).collect::<Vec<_>>().await, ["no-store"; 20]);
    assert_eq!(kind(&bench.get(KEY).await), "no-store");
    assert_eq!(bench.origin.requests(), 1);
    bench.at(7.0).await;
    assert_eq!(kind(&bench.get(KEY).await), "miss");
}

#[tokio::test(start_paused = true)]
async fn a_large_body_is_not_stored() {
    let replies = [Reply::Ok(Some((1 << 16) + 1)), Reply::Error(FetchError::TooLarge)];
    let bench = Bench::new(Origin::new(1, replies));
    assert_eq!(kind(&bench.get(KEY).await), "too-large");
    bench.cache.purge_exact(KEY);
    assert_eq!(kind(&bench.get(KEY).await), "too-large");
    assert_eq!(bench.cache.entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn fills_are_bounded() {
    let bench = Bench::new(Origin::new(5, []));
    let first = bench.begin("a").await;
    let second = bench.begin("b").await;
    assert_eq!(kind(&bench.get("c").await), "busy");
    let joined = bench.begin("a").await;
    for (task, expected) in [(first, "miss"), (second, "miss"), (joined, "collapsed")] {
        assert_eq!(kind(&task.await.expect("an answer")), expected);
    }
    assert_eq!(kind(&bench.get("c").await), "miss");
    assert_eq!(bench.origin.requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_store_keeps_to_its_capacity() {
    let script = (0..100).map(|_| Reply::Ok(Some(10_000)));
    let bench = Bench::with(
        Origin::new(0, script),
        Config { capacity_bytes: 100_000, object_bytes_max: 1 << 16, fills: 2 },
    );
    for number in 0..100 {
        bench.get(&format!("r\0/{number}")).await;
        assert!(bench.cache.bytes() <= 100_000, "{} bytes after {number}", bench.cache.bytes());
    }
    let entries = bench.cache.entries();
    assert!((1..10).contains(&entries), "{entries} entries");
    assert_eq!(bench.cache.metrics.evictions.get(), 100 - entries);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_while_in_demand() {
    let bench = Bench::new(Origin::new(6, []));
    assert_eq!(kind(&bench.get(KEY).await), "miss");
    for tenth in 61..3000 {
        bench.at(f64::from(tenth) / 10.0).await;
        let entry = bench.cache.lookup(KEY, clock::now()).expect("a hit at all times");
        assert!(entry.times.age(clock::now()) < Duration::from_secs(37));
    }
    assert_eq!(bench.origin.requests(), 10, "one renewal in 30 s");
    assert_eq!(bench.cache.metrics.lookups.miss.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_takes_almost_half_of_the_lifetime_is_in_time() {
    let bench = Bench::new(Origin::new(29, []));
    bench.get(KEY).await;
    for tenth in 291..6000 {
        bench.at(f64::from(tenth) / 10.0).await;
        assert!(bench.cache.lookup(KEY, clock::now()).is_some(), "{tenth}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_request_a_minute_is_demand_enough() {
    let bench = Bench::new(Origin::new(6, []));
    assert_eq!(kind(&bench.get(KEY).await), "miss");
    for minute in 1..20 {
        bench.at(f64::from(minute) * 60.0).await;
        assert_eq!(kind(&bench.get(KEY).await), "hit", "minute {minute}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_demand_it_is_let_go() {
    let bench = Bench::new(Origin::new(3, []));
    bench.get(KEY).await;
    bench.at(600.0).await;
    let requests = bench.origin.requests();
    assert!((2..=4).contains(&requests), "{requests} requests");
    assert_eq!((bench.cache.entries(), bench.cache.bytes()), (0, 0));
    assert_eq!(bench.cache.metrics.refreshes.idle.get(), 1);
    assert_eq!(kind(&bench.get(KEY).await), "miss");
}

#[tokio::test(start_paused = true)]
async fn failed_renewals_keep_the_old_answer_until_its_end_and_no_longer() {
    let failures = std::iter::repeat_n(Reply::Status(500), 50);
    let bench = Bench::new(Origin::new(1, std::iter::once(Reply::Ok(None)).chain(failures)));
    bench.get(KEY).await;
    bench.at(59.99).await;
    assert_eq!(bench.looked_up().as_deref(), Some("1"));
    let requests = bench.origin.requests();
    assert!((4..=8).contains(&requests), "{requests} requests");
    bench.at(60.0).await;
    assert_eq!(bench.looked_up(), None);
    assert_eq!(kind(&bench.get(KEY).await), "failed: status");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_or_may_not_be_stored_is_a_failed_one() {
    let replies =
        [Reply::Ok(None), Reply::Panic, Reply::Fields(&[("cache-control", "private")]), Reply::Ok(None)];
    let bench = Bench::new(Origin::new(1, replies));
    bench.get(KEY).await;
    bench.at(33.5).await;
    assert_eq!(bench.looked_up().as_deref(), Some("1"));
    bench.at(40.0).await;
    assert_eq!(bench.looked_up().as_deref(), Some("4"));
    assert_eq!(bench.cache.metrics.refreshes.failed.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn more_renewals_than_places_wait_for_each_other() {
    let bench = Bench::new(Origin::new(2, []));
    let keys = ["a", "b", "c", "d", "e", "f"];
    for key in keys {
        bench.get(key).await;
    }
    for second in 13..300 {
        bench.at(f64::from(second)).await;
        for key in keys {
            assert!(bench.cache.lookup(key, clock::now()).is_some(), "{key} at {second}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_entry_is_stale() {
    let bench = Bench::new(Origin::new(1, []));
    bench.stop.cancel();
    bench.get(KEY).await;
    bench.at(60.0).await;
    assert_eq!(kind(&bench.get(KEY).await), "stale");
}

#[tokio::test(start_paused = true)]
async fn an_origin_whose_answers_come_old_is_not_asked_without_a_pause() {
    let replies = (0..500).map(|_| Reply::Fields(&[("age", "45")]));
    let bench = Bench::new(Origin::new(0, replies));
    for second in 0..60 {
        bench.at(f64::from(second)).await;
        bench.get(KEY).await;
    }
    assert!(bench.origin.requests() <= 61, "{} requests", bench.origin.requests());
}

#[tokio::test(start_paused = true)]
async fn preconditions_of_a_stored_answer() {
    let bench = Bench::new(Origin::new(1, [Reply::Fields(&[("etag", "\"a\""), ("vary", "accept")])]));
    let Answer::Miss(entry) = bench.get(KEY).await else { panic!("no miss") };
    assert!(entry.not_modified(Some(b"W/\"a\""), None) && !entry.not_modified(None, None));
    let mut request = HeaderMap::new();
    assert!(entry.selected_by(&request));
    request.insert(header::ACCEPT, HeaderValue::from_static("text/html"));
    assert!(!entry.selected_by(&request));
}

/// Real threads, real time: everything that changes the store at once, in a small one. Catches deadlocks and lost
/// accounting.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_may_do_everything_at_once() {
    let script = (0..1000).map(|number| Reply::Ok(Some(number * 7 % 5000)));
    let config = Config { capacity_bytes: 30_000, object_bytes_max: 1 << 16, fills: 3 };
    let bench = Arc::new(Bench::with(Origin::new(0, script), config));
    let tasks = (0..4u64).map(|task| {
        let bench = Arc::clone(&bench);
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(task);
            for _ in 0..500 {
                let key = format!("{}\0/{}", random.u8(..2), random.u8(..12));
                match random.u8(..20) {
                    0 => bench.cache.purge_exact(&key),
                    1 => bench.cache.purge_prefix(&key[..2]),
                    _ => u64::from(matches!(bench.get(&key).await, Answer::Hit(_))),
                };
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    settle_flights(&bench).await;
    bench.cache.purge_prefix("");
    bench.cache.store.make_room();
    assert_eq!((bench.cache.entries(), bench.cache.bytes()), (0, 0));
    assert_eq!(bench.cache.store.plan.lock().next(), None);
    assert_eq!(bench.cache.fills.available_permits(), 3);
}

/// Until no fetch is under way.
async fn settle_flights(bench: &Bench) {
    while bench.cache.fills.available_permits() < 3 {
        tokio::task::yield_now().await;
    }
}

#[derive(Clone, Debug)]
enum Act {
    Get,
    Lookup,
    Wait(u64),
    Purge,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => Just(Act::Get),
        2 => Just(Act::Lookup),
        6 => (0u64..40_000).prop_map(Act::Wait),
        1 => Just(Act::Purge),
    ];
    proptest::collection::vec(act, 1..40)
}

fn replies() -> impl Strategy<Value = Vec<Reply>> {
    let reply = prop_oneof![
        4 => Just(Reply::Ok(None)),
        1 => Just(Reply::Status(503)),
        1 => Just(Reply::Error(FetchError::TimedOut)),
        1 => Just(Reply::Fields(&[("age", "50")])),
        1 => Just(Reply::Fields(&[("cache-control", "no-store")])),
        1 => Just(Reply::Panic),
    ];
    proptest::collection::vec(reply, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever clients and origin do: no answer is served at the age of its lifetime or beyond.
    #[test]
    fn nothing_is_ever_served_too_old(acts in acts(), replies in replies(), delay in 0u64..70) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let bench = Bench::new(Origin::new(delay, replies));
            for act in acts {
                let served = match act {
                    Act::Wait(ms) => {
                        tokio::time::sleep(Duration::from_millis(ms)).await;
                        None
                    }
                    Act::Purge => {
                        bench.cache.purge_prefix("");
                        assert_eq!(bench.cache.entries(), 0);
                        None
                    }
                    Act::Lookup => bench.cache.lookup(KEY, clock::now()),
                    Act::Get => match bench.get(KEY).await {
                        Answer::Hit(entry) | Answer::Miss(entry) => Some(entry),
                        Answer::Stale(entry) | Answer::Collapsed(entry) => Some(entry),
                        Answer::Pass(_) | Answer::Failed(_) | Answer::Busy => None,
                    },
                };
                if let Some(entry) = served {
                    assert!(entry.times.age(clock::now()) < Duration::from_secs(60));
                    assert_eq!(entry.status, StatusCode::OK);
                }
            }
        });
    }
}

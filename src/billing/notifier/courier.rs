//! Sends orders until they are answered.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, header};
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{Answer, Client, Failure};
use super::health::Health;
use super::metrics::Metrics;
use super::outbox::{Letter, Outbox};
use super::settings::Webhook;
use super::{Config, Error, SIGNATURE, TIMESTAMP, signature, signed_text};
use crate::billing::domain::Micros;
use crate::clock;

/// How long an answered order waits for the rest of the answer, to keep the connection.
const CONTENT_TIMEOUT: Duration = Duration::from_millis(200);
/// Once a receiver is well again, what waits is sent within this: thousands at once would be no kindness.
const CATCH_UP: Duration = Duration::from_secs(1);

/// What the owner of a shard is to do after a dispatcher's work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FollowUp {
    /// Journal it: there was a 2xx.
    Delivered { account: u64, version: u32, at: Micros },
    /// Give the outbox the orders it had no room for.
    Refill,
}

/// May this node still send in the name of the shard? Asked right before each request.
pub type MaySend = Arc<dyn Fn() -> bool + Send + Sync>;

/// The way to the webhook; one for all shards of a node. Cheap to clone.
#[derive(Clone)]
pub struct Courier(Arc<Inner>);

struct Inner {
    config: Config,
    way: Option<Way>,
    places: Arc<Semaphore>,
    health: Mutex<Health>,
    /// How often the host was well again.
    recoveries: watch::Sender<u64>,
    metrics: Metrics,
    now: Box<dyn Fn() -> Micros + Send + Sync>,
}

struct Way {
    webhook: Webhook,
    host: HeaderValue,
    client: Client,
}

/// What came of one request.
enum Outcome {
    /// A 2xx.
    Taken(Answer),
    NotTaken,
    /// It did not leave: money came, or the lease ended.
    Unwanted,
}

impl Courier {
    /// `now` is the wall clock that billing counts by.
    ///
    /// # Errors
    /// Unusable authorities, or metrics that are registered already.
    pub fn new(
        config: Config,
        registry: &Registry,
        now: impl Fn() -> Micros + Send + Sync + 'static,
    ) -> Result<Courier, Error> {
        let way = match &config.webhook {
            None => None,
            Some(webhook) => {
                let wrong = |_| Error::Webhook {
                    url: webhook.authority.clone(),
                    problem: "no Host field looks like this",
                };
                let host = HeaderValue::from_str(&webhook.authority).map_err(wrong)?;
                Some(Way { webhook: webhook.clone(), host, client: Client::new(webhook, &config)? })
            }
        };
        let metrics = Metrics::new(registry).map_err(Error::Register)?;
        let places = Arc::new(Semaphore::new(config.per_host.clamp(1, Semaphore::MAX_PERMITS)));
        let health = Mutex::new(Health::new(config.illness, clock::now()));
        let (recoveries, now) = (watch::Sender::new(0), Box::new(now));
        Ok(Courier(Arc::new(Inner { config, way, places, health, recoveries, metrics, now })))
    }

    /// The outbox of a new owner; None without a webhook, when nobody is told.
    pub fn outbox(&self) -> Option<Outbox> {
        self.0.way.as_ref()?;
        Some(Outbox::new(self.0.config.queue, self.0.metrics.outstanding.clone()))
    }

    /// So many orders were cancelled by their owner.
    pub fn cancelled(&self, count: u64) {
        self.0.metrics.cancelled.inc_by(count);
    }

    /// Sends what comes into the outbox, for as long as it is polled; dropped, it cuts what is under way.
    pub async fn dispatch(self, outbox: Outbox, may_send: MaySend, done: mpsc::Sender<FollowUp>) {
        let mut sending = JoinSet::new();
        let mut recoveries = self.0.recoveries.subscribe();
        loop {
            if outbox.wants_refill() && done.send(FollowUp::Refill).await.is_err() {
                return;
            }
            let due = outbox.next_due();
            let until_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(_) = sending.join_next() => continue,
                () = outbox.changed() => continue,
                Ok(()) = recoveries.changed() => {
                    outbox.hasten(clock::now(), CATCH_UP);
                    continue;
                }
                () = until_due => {}
            }
            let Ok(place) = Arc::clone(&self.0.places).acquire_owned().await else { return };
            if !may_send() {
                return;
            }
            // Money may have come for it while there was no place.
            if let Some(letter) = outbox.take(clock::now()) {
                let (courier, outbox, may_send, done) =
                    (self.clone(), outbox.clone(), Arc::clone(&may_send), done.clone());
                sending.spawn(async move { courier.deliver(letter, place, &outbox, &may_send, &done).await });
            }
        }
    }

    async fn deliver(
        &self,
        letter: Letter,
        _place: OwnedSemaphorePermit,
        outbox: &Outbox,
        may_send: &MaySend,
        done: &mpsc::Sender<FollowUp>,
    ) {
        let Some(way) = &self.0.way else { return };
        if !may_send() || !outbox.is_wanted(&letter) {
            return;
        }
        let recoveries = *self.0.recoveries.borrow();
        match self.ask(way, &letter, outbox, may_send).await {
            Outcome::Unwanted => {}
            Outcome::Taken(answer) => {
                if self.0.health.lock().succeeded(clock::now()) {
                    tracing::info!("the webhook answers again, what waits for it is sent");
                    self.0.recoveries.send_modify(|count| *count += 1);
                }
                let at = (self.0.now)();
                let delay_us = at.since(letter.depleted_at);
                self.0.metrics.delay.observe(Duration::from_micros(delay_us).as_secs_f64());
                let Letter { account, version, .. } = letter;
                // Whoever takes over sends it again, if nobody is there to journal this.
                let _ = done.send(FollowUp::Delivered { account, version, at }).await;
                drop(timeout(CONTENT_TIMEOUT, way.client.finish(answer)).await);
            }
            Outcome::NotTaken => {
                self.0.health.lock().failed();
                let wait = match *self.0.recoveries.borrow() == recoveries {
                    true => self.0.config.retry.delay(letter.tries, fastrand::f64()),
                    // It was asked when it was ill.
                    false => CATCH_UP.mul_f64(fastrand::f64()),
                };
                outbox.failed(&letter, clock::now() + wait);
            }
        }
    }

    async fn ask(&self, way: &Way, letter: &Letter, outbox: &Outbox, may_send: &MaySend) -> Outcome {
        let metrics = &self.0.metrics;
        let Some(request) = self.request(way, letter) else { return Outcome::NotTaken };
        let log = |why: &dyn std::fmt::Display| {
            let Letter { account, version, tries, .. } = letter;
            tracing::debug!(account, version, tries, %why, "an order was not taken and will be sent again");
        };
        let may = || may_send() && outbox.is_wanted(letter);
        let sent = way.client.send(&request, may, outbox.unwanted(letter));
        let sent = timeout(self.0.config.timeout, sent).await;
        if matches!(sent, Ok(Err(Failure::Unwanted))) {
            return Outcome::Unwanted;
        }
        if letter.tries > 0 {
            metrics.retries.inc();
        }
        match sent {
            Ok(Ok(answer)) if answer.status().is_success() => {
                metrics.answered.inc();
                return Outcome::Taken(answer);
            }
            Ok(Ok(answer)) => {
                metrics.refused.inc();
                log(&answer.status());
                drop(timeout(CONTENT_TIMEOUT, way.client.finish(answer)).await);
            }
            Ok(Err(failure)) => {
                metrics.failed.inc();
                log(&causes(&failure));
            }
            Err(_) => {
                metrics.timed_out.inc();
                log(&"no answer in time");
            }
        }
        Outcome::NotTaken
    }

    /// None never happens: every part is made of digits, or was checked as a URL.
    fn request(&self, way: &Way, letter: &Letter) -> Option<Request<()>> {
        let path = way.webhook.path_and_query(letter.account);
        let key = format!("{}-{}", letter.account, letter.version);
        let timestamp = ((self.0.now)().get() / 1_000_000).to_string();
        let mut request = Request::get(&path)
            .header(header::HOST, &way.host)
            .header(header::USER_AGENT, "forefront-billing")
            .header("idempotency-key", &key)
            .header(TIMESTAMP, &timestamp);
        if let Some(secret) = &self.0.config.secret {
            request = request.header(SIGNATURE, signature(secret, &signed_text(&path, &key, &timestamp)));
        }
        request.body(()).ok()
    }
}

fn causes(failure: &Failure) -> String {
    let mut text = failure.to_string();
    let mut error: &dyn std::error::Error = failure;
    while let Some(source) = error.source() {
        text = format!("{text}: {source}");
        error = source;
    }
    text
}

//! Sends orders until they are answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
use crate::telemetry::causes;

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
    /// What was tried before needs one of these as well, so that some places are always left for what was not.
    again: Arc<Semaphore>,
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
        let places = config.per_host.clamp(1, Semaphore::MAX_PERMITS);
        let again = Arc::new(Semaphore::new((places - places / 4).min(places - 1).max(1)));
        let places = Arc::new(Semaphore::new(places));
        let health = Mutex::new(Health::new(config.illness, clock::now()));
        let (recoveries, now) = (watch::Sender::new(0), Box::new(now));
        Ok(Courier(Arc::new(Inner { config, way, places, again, health, recoveries, metrics, now })))
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
        let mut again: Option<OwnedSemaphorePermit> = None;
        loop {
            if outbox.wants_refill(clock::now()) && done.send(FollowUp::Refill).await.is_err() {
                return;
            }
            let due = outbox.next_due();
            again = again.filter(|_| due.again.is_some_and(|due| due <= clock::now()));
            let needs_place = again.is_none();
            let until_again = async {
                until(due.again).await;
                match needs_place {
                    true => Arc::clone(&self.0.again).acquire_owned().await.ok(),
                    false => None,
                }
            };
            tokio::select! {
                Some(_) = sending.join_next() => continue,
                () = outbox.changed() => continue,
                Ok(()) = recoveries.changed() => {
                    outbox.hasten(clock::now(), CATCH_UP);
                    continue;
                }
                () = until(due.refill) => continue,
                () = until(due.first) => {}
                place = until_again => again = again.or(place),
            }
            let Ok(place) = Arc::clone(&self.0.places).acquire_owned().await else { return };
            if !may_send() {
                return;
            }
            // Money may have come for it while there was no place.
            if let Some(letter) = outbox.take(clock::now(), again.is_some()) {
                let places = (place, again.take_if(|_| letter.tries > 0));
                let (courier, outbox, may_send, done) =
                    (self.clone(), outbox.clone(), Arc::clone(&may_send), done.clone());
                sending
                    .spawn(async move { courier.deliver(letter, places, &outbox, &may_send, &done).await });
            }
        }
    }

    async fn deliver(
        &self,
        letter: Letter,
        _places: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
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

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::super::receiver::{Manner, Receiver};
    use super::*;
    use crate::billing::domain::{Order, Velocity};

    /// Orders that are refused for ever and hang do not hold every place.
    #[tokio::test]
    async fn a_first_try_finds_a_place_among_many_others() {
        let receiver = Receiver::start(Manner::Hang).await;
        let config = Config {
            webhook: Some(receiver.webhook.clone()),
            per_host: 4,
            timeout: Duration::from_secs(3600),
            ..Config::default()
        };
        let courier = Courier::new(config, &Registry::new(), || Micros::ZERO).unwrap();
        let outbox = courier.outbox().unwrap();
        let order = |account| {
            let depleted_at = Micros::new(account);
            Order { account, version: 1, depleted_at, velocity: Velocity::ZERO }
        };
        outbox.refill((1..=9).map(order), clock::now());
        let (done, _follow_ups) = mpsc::channel(1);
        let dispatcher = tokio::spawn(courier.dispatch(outbox.clone(), Arc::new(|| true), done));
        receiver.wait_for(|heard| heard.len() == 3).await;
        outbox.add([order(10)], clock::now());
        let heard = receiver.wait_for(|heard| heard.len() > 3).await;
        assert_eq!(heard[3].key, "10-1");
        dispatcher.abort();
    }
}

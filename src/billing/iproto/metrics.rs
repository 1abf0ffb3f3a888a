//! What is counted of the IPROTO door. The words are those of the HTTP door's metrics.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};

use super::codec::Code;

/// From a batch on an own disk to the patience of clients.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0, 20.0];

/// What a message asks for. Those that go to the shards come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    AddMoney,
    Withdraw,
    UpdateSpendingVelocity,
    Create,
    List,
    InsertData,
    Ping,
    Id,
    Auth,
    Schema,
    /// What is not served here, or cannot be read.
    Other,
}

const AT_THE_DESK: usize = Kind::InsertData as usize + 1;

const KINDS: [&str; 12] = [
    "get",
    "add_money",
    "withdraw",
    "update_spending_velocity",
    "create",
    "list",
    "insert_data",
    "ping",
    "id",
    "auth",
    "schema",
    "other",
];

/// Every series of a message that went well is resolved once.
pub struct Metrics {
    served: [IntCounter; KINDS.len()],
    seconds: [Histogram; AT_THE_DESK],
    requests: IntCounterVec,
    /// Requests that wait for the desk, of all connections.
    pub in_flight: IntGauge,
    pub connections: IntGauge,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new(
                "forefront_billing_iproto_requests_total",
                "Messages of IPROTO clients by what was asked and code, 0 where it went well",
            ),
            &["operation", "code"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "forefront_billing_iproto_request_seconds",
                "From a message read to its answer made, of those that go to the shards",
            )
            .buckets(SECONDS.to_vec()),
            &["operation"],
        )?;
        let in_flight =
            IntGauge::new("forefront_billing_iproto_in_flight", "Requests of IPROTO clients being served")?;
        let connections =
            IntGauge::new("forefront_billing_iproto_connections", "Open connections of the IPROTO door")?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        Ok(Metrics {
            served: KINDS.map(|kind| requests.with_label_values(&[kind, "0"])),
            seconds: std::array::from_fn(|place| seconds.with_label_values(&[KINDS[place]])),
            requests,
            in_flight,
            connections,
        })
    }

    /// `code`: why not, if it was refused.
    pub fn answered(&self, kind: Kind, code: Option<Code>) {
        match code {
            None => self.served[kind as usize].inc(),
            Some(code) => {
                let code = (code as u64).to_string();
                self.requests.with_label_values(&[KINDS[kind as usize], code.as_str()]).inc();
            }
        }
    }

    pub fn took(&self, kind: Kind, took: Duration) {
        if let Some(seconds) = self.seconds.get(kind as usize) {
            seconds.observe(took.as_secs_f64());
        }
    }
}

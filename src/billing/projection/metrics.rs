//! What is counted of the projection.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

#[derive(Clone)]
pub struct Metrics {
    pub(super) events: IntCounter,
    pub(super) write: Histogram,
    pub(super) retries: IntCounter,
    pub(super) overflows: IntCounter,
    pub(super) catch_ups: IntCounter,
    pub(super) carried: IntCounter,
    pub(super) forgotten: IntCounter,
    pub(super) accounts: IntCounter,
    lag: IntGaugeVec,
}

/// Upper bounds in seconds: a chunk on a local disk, one on a replicated database, trouble.
const WRITE_BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

impl Metrics {
    /// Fails if a metric of the same name is registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |thing: &str, help: &str| {
            let name = format!("forefront_billing_projection_{thing}_total");
            register(registry, IntCounter::new(name, help)?)
        };
        let write = HistogramOpts::new(
            "forefront_billing_projection_write_seconds",
            "Until lines were in the ledger, tries included",
        );
        let lag = Opts::new(
            "forefront_billing_projection_lag_batches",
            "Batches of a shard this node owns that are durable and not in the ledger",
        );
        Ok(Metrics {
            events: counter("events", "Lines written to the ledger")?,
            write: register(registry, Histogram::with_opts(write.buckets(WRITE_BUCKETS.to_vec()))?)?,
            retries: counter("retries", "Calls of the ledger made again")?,
            overflows: counter("overflows", "Times that the ledger was too slow and the queue was dropped")?,
            catch_ups: counter("catch_ups", "Times that lines were derived from the journal")?,
            carried: counter("carried", "Times that the ledger began anew with a snapshot")?,
            forgotten: counter("forgotten", "Lines forgotten for their age")?,
            accounts: counter("accounts", "Accounts written whole, for reports to begin with")?,
            lag: register(registry, IntGaugeVec::new(lag, &["shard"])?)?,
        })
    }

    pub(super) fn lag(&self, shard: u32) -> IntGauge {
        self.lag.with_label_values(&[&shard.to_string()])
    }
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

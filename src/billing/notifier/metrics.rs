//! What is counted of orders.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Clone)]
pub(super) struct Metrics {
    pub answered: IntCounter,
    pub refused: IntCounter,
    pub failed: IntCounter,
    pub timed_out: IntCounter,
    pub retries: IntCounter,
    pub cancelled: IntCounter,
    /// From the depletion instant to the 2xx.
    pub delay: Histogram,
    pub outstanding: IntGauge,
}

/// Upper bounds in seconds: the target is 10 ms; above 1 s only retries and outages are told apart.
const DELAY_BUCKETS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let attempts = IntCounterVec::new(
            Opts::new(
                "forefront_billing_order_attempts_total",
                "Requests to the webhook by what came of them",
            ),
            &["result"],
        )?;
        registry.register(Box::new(attempts.clone()))?;
        let retries = IntCounter::new(
            "forefront_billing_order_retries_total",
            "Requests to the webhook that were not the first, or may not be after a change of owner",
        )?;
        registry.register(Box::new(retries.clone()))?;
        let cancelled = IntCounter::new(
            "forefront_billing_orders_cancelled_total",
            "Orders that money came for before a 2xx",
        )?;
        registry.register(Box::new(cancelled.clone()))?;
        let delay = HistogramOpts::new(
            "forefront_billing_delivery_delay_seconds",
            "From the depletion instant to the first 2xx of its order",
        );
        let delay = Histogram::with_opts(delay.buckets(DELAY_BUCKETS.to_vec()))?;
        registry.register(Box::new(delay.clone()))?;
        let outstanding = IntGauge::new(
            "forefront_billing_orders_outstanding",
            "Orders without a 2xx that this node has in memory",
        )?;
        registry.register(Box::new(outstanding.clone()))?;
        Ok(Metrics {
            answered: attempts.with_label_values(&["answered"]),
            refused: attempts.with_label_values(&["refused"]),
            failed: attempts.with_label_values(&["failed"]),
            timed_out: attempts.with_label_values(&["timeout"]),
            retries,
            cancelled,
            delay,
            outstanding,
        })
    }
}

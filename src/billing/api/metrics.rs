//! What is counted of the HTTP door.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

/// From a batch on an own disk to the patience of clients.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 5.0, 20.0];

#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    pub in_flight: IntGauge,
    pub connections: IntGauge,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let metrics = Metrics {
            requests: IntCounterVec::new(
                Opts::new(
                    "forefront_billing_http_requests_total",
                    "Requests of clients and other nodes by what was asked and status",
                ),
                &["operation", "status"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "forefront_billing_http_request_seconds",
                    "From the head of a request read to the answer made",
                )
                .buckets(SECONDS.to_vec()),
                &["operation"],
            )?,
            in_flight: IntGauge::new("forefront_billing_http_in_flight", "Requests being served")?,
            connections: IntGauge::new(
                "forefront_billing_http_connections",
                "Open connections of the HTTP door",
            )?,
        };
        let Metrics { requests, seconds, in_flight, connections } = &metrics;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(connections.clone()))?;
        Ok(metrics)
    }

    pub fn answered(&self, operation: &str, status: u16, took: Duration) {
        self.requests.with_label_values(&[operation, word(status)]).inc();
        self.seconds.with_label_values(&[operation]).observe(took.as_secs_f64());
    }
}

/// The statuses there are, as labels.
fn word(status: u16) -> &'static str {
    match status {
        200 => "200",
        201 => "201",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        409 => "409",
        413 => "413",
        415 => "415",
        422 => "422",
        503 => "503",
        504 => "504",
        508 => "508",
        _ => "other",
    }
}

//! What the request path counts.

use std::time::Duration;

use parking_lot::RwLock;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use http::Method;

/// Seconds. Fine where the service answers (5 to 400 ms), coarse up to the longest timeout.
const DURATION_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The families of the room; a [`RouteMetrics`] holds one route's share with its labels resolved.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    in_flight: IntGaugeVec,
    bytes: IntCounterVec,
    retries: IntCounterVec,
    shed: IntCounterVec,
    pub handshakes: Handshakes,
    /// Connections whose first bytes were no request at all.
    pub unrouted: std::sync::Arc<RouteMetrics>,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("forefront_proxy_requests_total", "Requests by route, protocol, method and status."),
            &["route", "protocol", "method", "code"],
        )?;
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "forefront_proxy_request_duration_seconds",
                "From the head of a request to the end of its answer.",
            )
            .buckets(DURATION_BUCKETS.to_vec()),
            &["route"],
        )?;
        let in_flight = IntGaugeVec::new(
            Opts::new("forefront_proxy_requests_in_flight", "Requests under way."),
            &["route"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new("forefront_proxy_content_bytes_total", "Content received from and sent to clients."),
            &["route", "direction"],
        )?;
        let retries = IntCounterVec::new(
            Opts::new("forefront_proxy_retries_total", "Requests sent again, beyond the first try."),
            &["route"],
        )?;
        let shed = IntCounterVec::new(
            Opts::new(
                "forefront_proxy_shed_total",
                "Requests answered by the proxy itself, by reason (RFC 9209).",
            ),
            &["route", "reason"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(durations.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(retries.clone()))?;
        registry.register(Box::new(shed.clone()))?;
        let handshakes = Handshakes::new(registry)?;
        let unrouted = std::sync::Arc::new(RouteMetrics::resolve(
            "none", &requests, &durations, &in_flight, &bytes, &retries, &shed,
        ));
        Ok(Metrics { requests, durations, in_flight, bytes, retries, shed, handshakes, unrouted })
    }

    /// The share of one route. The same name gives the same counters, so a reload loses nothing.
    pub fn route(&self, name: &str) -> RouteMetrics {
        RouteMetrics::resolve(
            name,
            &self.requests,
            &self.durations,
            &self.in_flight,
            &self.bytes,
            &self.retries,
            &self.shed,
        )
    }
}

/// TLS over TCP.
#[derive(Clone)]
pub struct Handshakes {
    failed: IntCounter,
    /// By version (1.2, 1.3), then in full or resumed.
    completed: [[IntCounter; 2]; 2],
}

impl Handshakes {
    fn new(registry: &Registry) -> Result<Handshakes, prometheus::Error> {
        let family = IntCounterVec::new(
            Opts::new(
                "forefront_proxy_tls_handshakes_total",
                "TLS handshakes over TCP by version and result: full, resumed, failed.",
            ),
            &["version", "result"],
        )?;
        registry.register(Box::new(family.clone()))?;
        let of =
            |version: &str| ["full", "resumed"].map(|result| family.with_label_values(&[version, result]));
        Ok(Handshakes {
            failed: family.with_label_values(&["none", "failed"]),
            completed: [of("1.2"), of("1.3")],
        })
    }

    pub fn failed(&self) {
        self.failed.inc();
    }

    pub fn completed(&self, session: &rustls::ServerConnection) {
        let version = usize::from(session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3));
        let resumed = usize::from(session.handshake_kind() == Some(rustls::HandshakeKind::Resumed));
        self.completed[version][resumed].inc();
    }
}

/// The counters of one route.
pub struct RouteMetrics {
    name: String,
    requests: IntCounterVec,
    shed: IntCounterVec,
    resolved: RwLock<ahash::AHashMap<(u8, u8, u16), IntCounter>>,
    duration: Histogram,
    pub in_flight: IntGauge,
    bytes_in: IntCounter,
    bytes_out: IntCounter,
    retries: IntCounter,
    /// All requests, and those that ended in 5xx or with a cut answer, for the status page.
    pub total: std::sync::atomic::AtomicU64,
    pub errors: std::sync::atomic::AtomicU64,
}

/// The methods that have a label of their own.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];

impl RouteMetrics {
    fn resolve(
        name: &str,
        requests: &IntCounterVec,
        durations: &HistogramVec,
        in_flight: &IntGaugeVec,
        bytes: &IntCounterVec,
        retries: &IntCounterVec,
        shed: &IntCounterVec,
    ) -> RouteMetrics {
        RouteMetrics {
            name: name.to_owned(),
            requests: requests.clone(),
            shed: shed.clone(),
            resolved: RwLock::default(),
            duration: durations.with_label_values(&[name]),
            in_flight: in_flight.with_label_values(&[name]),
            bytes_in: bytes.with_label_values(&[name, "in"]),
            bytes_out: bytes.with_label_values(&[name, "out"]),
            retries: retries.with_label_values(&[name]),
            total: Default::default(),
            errors: Default::default(),
        }
    }

    /// Counts a request that has ended. `cut`: its answer is not whole.
    pub fn ended(&self, protocol: &'static str, method: &Method, status: u16, cut: bool, took: Duration) {
        use std::sync::atomic::Ordering::Relaxed;
        self.total.fetch_add(1, Relaxed);
        if status >= 500 || cut {
            self.errors.fetch_add(1, Relaxed);
        }
        self.duration.observe(took.as_secs_f64());
        let method_index = METHODS.iter().position(|m| m == method).unwrap_or(METHODS.len());
        let key = (protocol.as_bytes()[1], method_index as u8, status);
        if let Some(counter) = self.resolved.read().get(&key) {
            counter.inc();
            return;
        }
        let method = METHODS.get(method_index).map_or("other", Method::as_str);
        let mut number = [0u8; 3];
        for (place, digit) in number.iter_mut().enumerate() {
            *digit = b'0' + ((status / [100, 10, 1][place]) % 10) as u8;
        }
        let code = std::str::from_utf8(&number).unwrap_or("000");
        let counter = self.requests.with_label_values(&[&self.name, protocol, method, code]);
        counter.inc();
        self.resolved.write().insert(key, counter);
    }

    /// Adds content bytes and retries of a request that has ended.
    pub fn moved(&self, bytes_in: u64, bytes_out: u64, retries: u32) {
        if bytes_in > 0 {
            self.bytes_in.inc_by(bytes_in);
        }
        if bytes_out > 0 {
            self.bytes_out.inc_by(bytes_out);
        }
        if retries > 0 {
            self.retries.inc_by(u64::from(retries));
        }
    }

    /// Counts an answer of our own. `reason` comes from a closed set.
    pub fn rescued(&self, reason: &'static str) {
        self.shed.with_label_values(&[&self.name, reason]).inc();
    }
}

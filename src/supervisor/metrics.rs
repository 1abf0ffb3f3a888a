//! What the keeper counts. The label `process` is an instance's name, so as many values as the configuration has.

use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::lifecycle::Reason;

/// The families, registered once per keeper.
#[derive(Clone)]
pub struct Metrics {
    restarts: IntCounterVec,
    up: IntGaugeVec,
    uptime: IntGaugeVec,
    probe_failures: IntCounterVec,
    memory: IntGaugeVec,
    dropped: IntCounterVec,
}

impl Metrics {
    /// Registers the families. Error: another keeper has registered them there.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let family = IntGaugeVec::new(Opts::new(name, help), &["process"])?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        Ok(Metrics {
            restarts: counter(
                "forefront_supervise_restarts_total",
                "Restarts of a kept process, by reason.",
                &["process", "reason"],
            )?,
            up: gauge("forefront_supervise_up", "1 while the process lives and its last probe succeeded.")?,
            uptime: gauge("forefront_supervise_uptime_seconds", "Since the process was last started.")?,
            probe_failures: counter(
                "forefront_supervise_probe_failures_total",
                "Failed health probes, those of the start-up included.",
                &["process"],
            )?,
            memory: gauge(
                "forefront_supervise_memory_bytes",
                "Resident bytes of the process and its descendants; pages they share count more than once.",
            )?,
            dropped: counter(
                "forefront_supervise_log_lines_dropped_total",
                "Lines of output dropped because they could not be written fast enough, or at all.",
                &["process"],
            )?,
        })
    }

    /// The series of one instance, all present from the start, at zero.
    pub fn of(&self, process: &str) -> InstanceMetrics {
        let Metrics { restarts, up, uptime, probe_failures, memory, dropped } = self;
        InstanceMetrics {
            restarts: Reason::ALL.map(|reason| restarts.with_label_values(&[process, reason.as_str()])),
            up: up.with_label_values(&[process]),
            uptime: uptime.with_label_values(&[process]),
            probe_failures: probe_failures.with_label_values(&[process]),
            memory: memory.with_label_values(&[process]),
            dropped: dropped.with_label_values(&[process]),
        }
    }
}

/// One instance's series.
#[derive(Clone)]
pub struct InstanceMetrics {
    restarts: [IntCounter; Reason::ALL.len()],
    pub up: IntGauge,
    uptime: IntGauge,
    pub probe_failures: IntCounter,
    memory: IntGauge,
    pub dropped: IntCounter,
}

impl InstanceMetrics {
    pub fn restarted(&self, reason: Reason) {
        // `ALL` lists the variants in the order of their declaration.
        self.restarts[reason as usize].inc();
    }

    pub fn set_uptime(&self, uptime: Option<Duration>) {
        let seconds = uptime.map_or(0, |uptime| uptime.as_secs());
        self.uptime.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub fn set_memory(&self, bytes: u64) {
        self.memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_series() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap().of("x");
        for (count, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(Reason::ALL[reason as usize], reason);
            for _ in 0..count {
                metrics.restarted(reason);
            }
        }
        let family = registry
            .gather()
            .into_iter()
            .find(|family| family.name() == "forefront_supervise_restarts_total")
            .unwrap();
        assert_eq!(family.get_metric().len(), Reason::ALL.len());
        assert!(Metrics::new(&registry).is_err(), "registered twice");
    }
}

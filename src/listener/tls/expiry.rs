//! When certificates end, as a metric and as a warning.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntGaugeVec, Opts, Registry};

use super::Error;
use super::certificate::Certificate;

/// Seconds since 1970; before it, 0.
pub(super) fn unix_secs(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[derive(Debug)]
pub(super) struct Expiry {
    not_after: IntGaugeVec,
}

impl Expiry {
    pub(super) fn new(registry: &Registry) -> Result<Expiry, Error> {
        let not_after = IntGaugeVec::new(
            Opts::new(
                "forefront_listener_certificate_not_after_timestamp_seconds",
                "When a certificate in use ends, by its first name or its file.",
            ),
            &["certificate"],
        )
        .map_err(Error::Register)?;
        registry.register(Box::new(not_after.clone())).map_err(Error::Register)?;
        Ok(Expiry { not_after })
    }

    /// A new set is in use. One that is not valid now is still shown to clients, since a clock may be wrong and some
    /// clients do not mind, but someone must know.
    pub(super) fn show(&self, before: &[Certificate], current: &[Certificate], now: SystemTime) {
        let ends = ends(current);
        for (label, not_after) in &ends {
            self.not_after.with_label_values(&[label]).set(*not_after);
        }
        for certificate in before.iter().filter(|certificate| !ends.contains_key(&certificate.label())) {
            // Fails only for a label that is gone already, as one of two certificates of the same label is.
            let _ = self.not_after.remove_label_values(&[&certificate.label()]);
        }
        for certificate in current {
            warn_if_invalid(certificate, unix_secs(now));
        }
    }
}

/// Of two with the same label the one that ends first is worth telling.
fn ends(certificates: &[Certificate]) -> BTreeMap<String, i64> {
    let mut ends = BTreeMap::new();
    for certificate in certificates {
        let end = ends.entry(certificate.label()).or_insert(certificate.not_after);
        *end = certificate.not_after.min(*end);
    }
    ends
}

fn warn_if_invalid(certificate: &Certificate, now_secs: i64) {
    let Certificate { path, not_before, not_after, .. } = certificate;
    let name = certificate.label();
    if *not_after < now_secs {
        tracing::warn!(certificate = name, file = ?path, not_after, "the certificate has expired");
    }
    if *not_before > now_secs {
        tracing::warn!(certificate = name, file = ?path, not_before, "the certificate is not valid yet");
    }
}

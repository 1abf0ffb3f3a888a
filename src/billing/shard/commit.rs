//! Makes one batch durable, whatever the journal answers, as long as the tenure lasts.

use std::time::Duration;

use super::backend::Backend;
use super::metrics::Metrics;
use super::tenure::Tenure;
use crate::billing::journal::{Batch, Confirmation, Error};
use crate::resilience::backoff::Backoff;

/// A failover of the database takes seconds; a lost connection is back in milliseconds.
const RETRY: Backoff = Backoff { min: Duration::from_millis(10), max: Duration::from_millis(500) };

/// Why a batch is given up. Whether it is durable nobody here knows.
#[derive(Debug)]
pub enum Stopped {
    /// Fenced, or the lease ran out.
    TenureOver,
    /// No retry helps.
    Broken(Error),
}

/// Returns when the batch is durable. Appends it again only if it surely is not.
pub async fn commit<B: Backend>(
    backend: &B,
    batch: &Batch,
    tenure: &Tenure,
    metrics: &Metrics,
) -> Result<(), Stopped> {
    tokio::select! {
        biased;
        () = tenure.ended() => Err(Stopped::TenureOver),
        result = until_durable(backend, batch, tenure, metrics) => result,
    }
}

async fn until_durable<B: Backend>(
    backend: &B,
    batch: &Batch,
    tenure: &Tenure,
    metrics: &Metrics,
) -> Result<(), Stopped> {
    let Batch { shard, seq, epoch, .. } = *batch;
    let checksum = batch.checksum();
    let mut tries = 0;
    loop {
        if !tenure.holds() {
            return Err(Stopped::TenureOver);
        }
        match backend.append(batch).await {
            Ok(()) => return Ok(()),
            Err(Error::Unavailable { step, source }) => {
                metrics.retries_append.inc();
                tracing::debug!(shard, seq, step, %source, "a batch could not be written yet");
                pause(&mut tries).await;
            }
            Err(Error::Unknown { step, source }) => {
                tracing::warn!(shard, seq, step, %source, "the answer to a batch was lost, its fate is looked up");
                let confirmed = loop {
                    metrics.retries_confirm.inc();
                    match backend.confirm(shard, epoch, seq, checksum).await {
                        Ok(confirmed) => break confirmed,
                        Err(Error::Unavailable { .. } | Error::Unknown { .. }) => pause(&mut tries).await,
                        Err(error) => return Err(stopped(error)),
                    }
                };
                if confirmed == Confirmation::Applied {
                    return Ok(());
                }
                metrics.retries_append.inc();
            }
            Err(error) => return Err(stopped(error)),
        }
    }
}

fn stopped(error: Error) -> Stopped {
    match error {
        Error::Fenced { .. } => Stopped::TenureOver,
        error => Stopped::Broken(error),
    }
}

async fn pause(tries: &mut u32) {
    tokio::time::sleep(RETRY.delay(*tries, fastrand::f64())).await;
    *tries = tries.saturating_add(1);
}

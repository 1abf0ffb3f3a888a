//! What can go wrong, cut by what a caller may do next.

/// Whatever lies below: an engine's, the driver's, the system's.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The epoch of the call is not the shard's: another owner took over, or this one gave the shard away. Stop at once
    /// and answer nothing more; only [`acquire`](super::Journal::acquire) helps.
    #[error("shard {shard} is at epoch {epoch}: this owner's time is over")]
    Fenced { shard: u32, epoch: u64 },
    /// The batch does not follow the last one. Nothing was written.
    #[error("shard {shard} expects batch {expected}")]
    OutOfOrder { shard: u32, expected: u64 },
    /// Surely nothing was written (for a read: nothing was read). The same call may be made again.
    #[error("{step} failed, nothing was written")]
    Unavailable { step: &'static str, source: Cause },
    /// It may have been written or not, or be written yet. For an append:
    /// [`confirm`](super::Journal::confirm) tells, and only after it the shard may go on. Every other call may be
    /// made again.
    #[error("{step}: the answer was lost")]
    Unknown { step: &'static str, source: Cause },
    /// What was read is not what was written: someone must act (restore a backup, or take the shard from a replica).
    /// `seq` is the first batch that is not whole; for a snapshot, the snapshot's.
    #[error("shard {shard} is corrupt at batch {seq}: {what}")]
    Corrupt { shard: u32, seq: u64, what: String },
    /// The engine cannot make sense of its own files: someone must act.
    #[error("the journal in {place} is damaged")]
    Damaged { place: String, source: Cause },
    /// The batches asked for are gone because a snapshot stands for them: read the snapshot.
    #[error("shard {shard}: batches up to {through} were replaced by a snapshot")]
    Truncated { shard: u32, through: u64 },
    /// The settings are wrong, or do not fit what is stored. Trying again does not help.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// For `map_err`, where surely nothing was written.
    pub(super) fn unavailable<E: Into<Cause>>(step: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Unavailable { step, source: source.into() }
    }

    /// For `map_err`, where nobody knows.
    pub(super) fn unknown<E: Into<Cause>>(step: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Unknown { step, source: source.into() }
    }
}

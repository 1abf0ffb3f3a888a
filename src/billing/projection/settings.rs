//! How the ledger is written. Every bound of the room stands here.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Lines older than this are forgotten, but for the newest of each account. Default: none are.
    pub keep: Option<Duration>,
    /// Lines that wait for the ledger, for each shard; beyond it they are derived from the journal later. Default 65,536:
    /// about 10 MB, and half a second at full speed.
    pub queue_lines: usize,
    /// Lines written at once, but for a batch that has more. Default 8192: a transaction costs little beside them.
    pub chunk_lines: usize,
    /// How long lines wait for others to be written with. Default 100 ms; nothing, if somebody asks for a history.
    pub linger: Duration,
    /// How long the owner that leaves waits for what is queued. Default 500 ms: the next owner then need not derive it.
    pub drain: Duration,
    /// How long a history waits for what was acknowledged before it was asked for. Default 1 s.
    pub patience: Duration,
    /// How often all accounts are looked through for old lines. Default 1 h.
    pub sweep_every: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            keep: None,
            queue_lines: 65_536,
            chunk_lines: 8192,
            linger: Duration::from_millis(100),
            drain: Duration::from_millis(500),
            patience: Duration::from_secs(1),
            sweep_every: Duration::from_secs(3600),
        }
    }
}

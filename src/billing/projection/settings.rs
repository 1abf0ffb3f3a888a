//! How the ledger is written. Every bound of the room stands here.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Lines older than this are forgotten, by pages that are so as a whole. Default: none are.
    pub keep: Option<Duration>,
    /// Lines that wait for the ledger, for each shard; beyond it they are derived from the journal later. Default 262,144:
    /// 40 to 80 MB, and more than a second at full speed.
    pub queue_lines: usize,
    /// Lines written at once, but for a batch that has more. Default 65,536, about 10 MB: the 64 of each group fill a page.
    pub chunk_lines: usize,
    /// How long lines wait for others to be written with. Default 1 s; nothing, if somebody asks for a history.
    pub linger: Duration,
    /// And this much longer as long as there are fewer: a page is not worth its place for one line. Default 8192 and 4 s.
    pub few_lines: usize,
    pub linger_few: Duration,
    /// How long the owner that leaves waits for what is queued. Default 500 ms: the next owner then need not derive it.
    pub drain: Duration,
    /// How long a history waits for what was acknowledged before it was asked for. Default 1 s.
    pub patience: Duration,
    /// How often all groups are looked through for old lines. Default 1 h.
    pub sweep_every: Duration,
    /// How often, at most, all accounts are written where reports are read. Default 10 min; and only after 4 lines for each.
    pub base_every: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            keep: None,
            queue_lines: 262_144,
            chunk_lines: 65_536,
            linger: Duration::from_secs(1),
            few_lines: 8192,
            linger_few: Duration::from_secs(4),
            drain: Duration::from_millis(500),
            patience: Duration::from_secs(1),
            sweep_every: Duration::from_secs(3600),
            base_every: Duration::from_secs(600),
        }
    }
}

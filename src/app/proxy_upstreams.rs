//! The upstreams of a running node: their pools, the probers of these, and how a reload changes them all or not at all.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::proxy::Pools;
use crate::upstream::{self, Pool, Prepared};

/// Shared by the admin listener, the status page and whoever reloads: all see the upstreams of now.
pub struct Upstreams {
    pools: ArcSwap<Pools>,
    probers: Mutex<HashMap<String, CancellationToken>>,
    metrics: upstream::Metrics,
    /// Ends all probers.
    stopped: CancellationToken,
}

/// A change that was found sound and is not made yet.
pub struct Change {
    /// The upstreams there will be. Kept ones are in it as they are shared already, with their old configuration.
    pub pools: Pools,
    kept: Vec<(Arc<Pool>, Prepared)>,
}

impl Upstreams {
    /// Makes the pools and starts their probers, which run on this runtime until `stopped`.
    pub fn start(
        configs: &[upstream::Config],
        metrics: upstream::Metrics,
        stopped: CancellationToken,
    ) -> anyhow::Result<Arc<Upstreams>> {
        let upstreams =
            Arc::new(Upstreams { pools: ArcSwap::default(), probers: Mutex::default(), metrics, stopped });
        let change = upstreams.prepare(configs)?;
        upstreams.apply(change);
        Ok(upstreams)
    }

    /// The pools of now, by name.
    pub fn pools(&self) -> Arc<Pools> {
        self.pools.load_full()
    }

    /// Checks what the upstreams are to be. Changes nothing and starts nothing.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn prepare(&self, configs: &[upstream::Config]) -> anyhow::Result<Change> {
        let current = self.pools.load();
        let mut change = Change { pools: HashMap::new(), kept: Vec::new() };
        for config in configs {
            let cannot = || format!("upstream {} cannot be used", config.name);
            let pool = match current.get(&config.name) {
                Some(pool) => {
                    let prepared = pool.prepare(config.clone()).with_context(cannot)?;
                    change.kept.push((pool.clone(), prepared));
                    pool.clone()
                }
                None => Pool::new(config.clone(), self.metrics.clone()).with_context(cannot)?,
            };
            change.pools.insert(config.name.clone(), pool);
        }
        Ok(change)
    }

    /// Makes the change: kept pools take their new configuration, new ones are probed from now on and removed ones no more.
    pub fn apply(&self, change: Change) {
        let Change { pools, kept } = change;
        for (pool, prepared) in kept {
            pool.apply(prepared);
        }
        let mut probers = self.probers.lock();
        probers.retain(|name, prober| {
            let stays = pools.contains_key(name);
            if !stays {
                prober.cancel();
            }
            stays
        });
        for (name, pool) in &pools {
            probers.entry(name.clone()).or_insert_with(|| {
                let prober = self.stopped.child_token();
                upstream::spawn_prober(pool.clone(), prober.clone());
                prober
            });
        }
        self.pools.store(Arc::new(pools));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;
    use tokio::net::TcpListener;

    /// Counts connections and closes them.
    async fn listener() -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                counted.fetch_add(1, Relaxed);
            }
        });
        (address, count)
    }

    fn config(name: &str, address: &str) -> upstream::Config {
        let mut config = upstream::Config::new(name, [address.parse().expect("an address")]);
        config.health =
            Some(upstream::HealthConfig { interval: Duration::from_millis(10), ..Default::default() });
        config
    }

    fn start(configs: &[upstream::Config]) -> (Arc<Upstreams>, prometheus::Registry) {
        let registry = prometheus::Registry::new();
        let metrics = upstream::Metrics::register(&registry).expect("an empty registry");
        (Upstreams::start(configs, metrics, CancellationToken::new()).expect("good"), registry)
    }

    async fn grows(count: &AtomicUsize) {
        let before = count.load(Relaxed);
        let more = async {
            while count.load(Relaxed) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), more).await.expect("it is probed");
    }

    fn series_of(registry: &prometheus::Registry, name: &str) -> usize {
        let families = registry.gather();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics.filter(|metric| metric.get_label().iter().any(|label| label.value() == name)).count()
    }

    #[tokio::test]
    async fn removed_upstreams_are_probed_no_more_and_added_ones_are() {
        let ((old, probes_of_old), (new, probes_of_new)) = (listener().await, listener().await);
        let (upstreams, registry) = start(&[config("old", &old)]);
        grows(&probes_of_old).await;
        let pool = Arc::downgrade(&upstreams.pools()["old"]);
        upstreams.apply(upstreams.prepare(&[config("new", &new)]).expect("good"));
        grows(&probes_of_new).await;
        assert_eq!(upstreams.pools().keys().collect::<Vec<_>>(), ["new"]);
        let gone = async {
            while pool.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("nobody holds the old pool");
        assert_eq!(series_of(&registry, "old"), 0);
        assert!(series_of(&registry, "new") > 0);
    }

    #[tokio::test]
    async fn one_bad_upstream_changes_nothing() {
        let ((kept, _), (added, probes_of_added)) = (listener().await, listener().await);
        let (upstreams, registry) = start(&[config("kept", &kept)]);
        let mut changed = config("kept", &kept);
        changed.connect_timeout = Duration::from_secs(9);
        let mut bad = config("bad", "localhost:1");
        let ca_file = Some(PathBuf::from("/nonexistent"));
        bad.tls = Some(upstream::TlsConfig { ca_file, ..Default::default() });
        assert!(upstreams.prepare(&[changed, config("added", &added), bad]).is_err());
        assert_eq!(upstreams.pools().keys().collect::<Vec<_>>(), ["kept"]);
        assert_eq!(upstreams.pools()["kept"].config().connect_timeout, Duration::from_secs(1));
        assert_eq!(series_of(&registry, "added"), 0, "the pool that came to nothing left nothing");
        assert_eq!(probes_of_added.load(Relaxed), 0);
    }
}

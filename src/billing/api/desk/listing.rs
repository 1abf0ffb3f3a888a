//! The accounts of all shards in one list: which shard is asked of whom is settled first, and each is asked for by name. Whoever
//! does not own one he is asked for says so, and nothing is left out without a word.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::Instant;

use super::{Desk, Shards};
use crate::billing::api::error::{Kind, Problem};
use crate::billing::domain::Account;
use crate::billing::shard::{Failure, Owners};

/// How long a shard without an owner is waited for: a hand-over takes some ten milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between looks for the owners.
const PAUSE: Duration = Duration::from_millis(100);

/// The shards of this node, and those of others by where these are.
struct Asked {
    own: Vec<u32>,
    others: BTreeMap<String, Vec<u32>>,
}

impl<S: Shards> Desk<S> {
    /// The accounts of all nodes with ids beyond `after`, by id. Fails if some cannot be told, rather than leave them out.
    pub async fn list(&self, after: Option<u64>, limit: usize) -> Result<Vec<Account>, Problem> {
        let version = self.shards.map_version().await?;
        let Asked { own, others } = self.asked().await?;
        let pages = others.iter().map(|(advertise, shards)| self.peers.list(advertise, shards, after, limit));
        let (own, others) = tokio::try_join!(self.list_of(&own, after, limit), try_join_all(pages))?;
        // What moved meanwhile may have been asked for where it was not yet, and then where it was no more.
        if self.shards.map_version().await? != version {
            return Err(busy("buckets are being moved"));
        }
        let mut accounts: Vec<Account> = own.into_iter().chain(others.into_iter().flatten()).collect();
        accounts.sort_unstable_by_key(|account| account.id);
        // A shard that changes hands meanwhile may be told by both.
        accounts.dedup_by_key(|account| account.id);
        accounts.truncate(limit);
        Ok(accounts)
    }

    /// Those of some shards, which must be this node's.
    pub async fn list_of(
        &self,
        shards: &[u32],
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Account>, Problem> {
        self.shards.list(shards, after, limit).await.map_err(|failure| match failure {
            Failure::Elsewhere { .. } => busy("a shard is changing hands"),
            other => other.into(),
        })
    }

    async fn asked(&self) -> Result<Asked, Problem> {
        let until = Instant::now() + PATIENCE;
        loop {
            match asked(self.shards.owners().await) {
                Some(asked) => return Ok(asked),
                None if Instant::now() + PAUSE < until => tokio::time::sleep(PAUSE).await,
                None => return Err(busy("a shard has no owner at the moment")),
            }
        }
    }
}

/// None while a shard has none.
fn asked(owners: Owners) -> Option<Asked> {
    let Owners { node, shards } = owners;
    let mut asked = Asked { own: Vec::new(), others: BTreeMap::new() };
    for shard in shards {
        if shard.node.is_empty() || shard.advertise.is_empty() {
            return None;
        }
        let theirs = match shard.node == node {
            true => &mut asked.own,
            false => asked.others.entry(shard.advertise).or_default(),
        };
        theirs.push(shard.shard);
    }
    Some(asked)
}

fn busy(detail: &str) -> Problem {
    Problem { detail: detail.to_owned(), ..Kind::Busy.into() }
}

//! What `GET cluster` shows: the state of every shard and replica, in the words of `vshard.router.info()`. Pure.

use std::cmp::Ordering;

use serde::Serialize;

use crate::billing::domain::BUCKETS;
use crate::billing::journal::{MemberState, MemberStatus, ReplicaSetStatus};
use crate::billing::shard::{Astray, Cluster, ShardStatus};

#[derive(Debug, Serialize)]
pub struct ClusterBody {
    /// Which node tells this.
    node: String,
    status: Light,
    alerts: Vec<Alert>,
    buckets: Buckets,
    shards: Vec<ShardBody>,
    replica_sets: Vec<ReplicaSetBody>,
}

/// vshard's four colours, the worst alert's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Light {
    /// All is well.
    Green,
    /// All is served, with less in reserve than there should be.
    Yellow,
    /// Some buckets can be read only.
    Orange,
    /// Some buckets cannot be reached.
    Red,
}

#[derive(Debug, Serialize)]
struct Alert {
    code: &'static str,
    message: String,
    #[serde(skip)]
    light: Light,
}

/// How many of all buckets are in which state; together [`BUCKETS`].
#[derive(Debug, Default, PartialEq, Serialize)]
struct Buckets {
    available_rw: u32,
    available_ro: u32,
    unreachable: u32,
    unknown: u32,
}

#[derive(Debug, Serialize)]
struct ShardBody {
    shard: u32,
    state: Availability,
    /// The owner; null if there is none.
    node: Option<String>,
    advertise: Option<String>,
    epoch: u64,
    seq: u64,
    buckets: u32,
    accounts: Option<u64>,
    replica_set: Option<usize>,
    #[serde(skip)]
    astray: Astray,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Availability {
    AvailableRw,
    AvailableRo,
    Unreachable,
}

#[derive(Debug, Serialize)]
struct ReplicaSetBody {
    index: usize,
    shards: Vec<u32>,
    replicas: Vec<ReplicaBody>,
}

#[derive(Debug, Serialize)]
struct ReplicaBody {
    uri: String,
    state: &'static str,
    replication: Option<String>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<f64>,
    problem: Option<String>,
}

impl ClusterBody {
    pub fn new(cluster: Cluster) -> ClusterBody {
        let Cluster { node, shards, replica_sets } = cluster;
        let mut alerts = Vec::new();
        let mut buckets = Buckets::default();
        for set in &replica_sets {
            tell_replicas(set, &mut alerts);
        }
        let shards: Vec<ShardBody> =
            shards.into_iter().map(|shard| shard_body(shard, &replica_sets)).collect();
        for shard in &shards {
            buckets.add(shard);
            tell_shard(shard, &mut alerts);
            tell_astray(shard, &mut alerts);
        }
        let known = buckets.available_rw + buckets.available_ro + buckets.unreachable;
        buckets.unknown = u32::from(BUCKETS).saturating_sub(known);
        if buckets.unknown > 0 {
            let message = format!("nobody knows whose {} buckets are", buckets.unknown);
            alerts.push(Alert { code: "UNKNOWN_BUCKETS", message, light: Light::Red });
        }
        alerts.sort_by(|one, other| other.light.partial_cmp(&one.light).unwrap_or(Ordering::Equal));
        let status = alerts.first().map_or(Light::Green, |alert| alert.light);
        let replica_sets = replica_sets.into_iter().map(replica_set).collect();
        ClusterBody { node, status, alerts, buckets, shards, replica_sets }
    }
}

impl Buckets {
    fn add(&mut self, shard: &ShardBody) {
        let of_state = match shard.state {
            Availability::AvailableRw => &mut self.available_rw,
            Availability::AvailableRo => &mut self.available_ro,
            Availability::Unreachable => &mut self.unreachable,
        };
        let missing = u32::try_from(shard.astray.missing.len()).unwrap_or(u32::MAX).min(shard.buckets);
        *of_state += shard.buckets - missing;
        self.unreachable += missing;
    }
}

fn shard_body(status: ShardStatus, sets: &[ReplicaSetStatus]) -> ShardBody {
    let ShardStatus { shard, node, advertise, epoch, seq, buckets, accounts, astray, writable } = status;
    let set = sets.iter().find(|set| set.shards.contains(&shard));
    // An owner answers reads from memory for as long as it has the lease, which outlives a master by a little.
    let readable = !node.is_empty() && set.is_some_and(|set| set.reachable() && !set.writable());
    let state = match (writable, readable) {
        (true, _) => Availability::AvailableRw,
        (false, true) => Availability::AvailableRo,
        (false, false) => Availability::Unreachable,
    };
    let known = |text: String| (!text.is_empty()).then_some(text);
    ShardBody {
        shard,
        state,
        node: known(node),
        advertise: known(advertise),
        epoch,
        seq,
        buckets,
        accounts,
        replica_set: set.map(|set| set.index),
        astray,
    }
}

fn tell_shard(shard: &ShardBody, alerts: &mut Vec<Alert>) {
    let number = shard.shard;
    let (code, message, light) = match (shard.state, &shard.node) {
        (Availability::AvailableRw, _) => return,
        (_, None) => ("MISSING_OWNER", format!("shard {number} has no owner"), Light::Red),
        (Availability::AvailableRo, Some(node)) => {
            ("READ_ONLY_SHARD", format!("shard {number} of node {node} can be read only"), Light::Orange)
        }
        (Availability::Unreachable, Some(node)) => {
            ("UNREACHABLE_OWNER", format!("shard {number} of node {node} takes no commands"), Light::Red)
        }
    };
    alerts.push(Alert { code, message, light });
}

/// Of buckets of different kinds as many are named.
const NAMED_MAX: usize = 20;

fn tell_astray(shard: &ShardBody, alerts: &mut Vec<Alert>) {
    let Astray { missing, surplus } = &shard.astray;
    for (buckets, what) in [(missing, "lacks"), (surplus, "has against the map")] {
        if !buckets.is_empty() {
            let named: Vec<String> = buckets.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let more = if buckets.len() > NAMED_MAX { ", ..." } else { "" };
            let message = format!(
                "shard {} {what} {} buckets: {}{more}; see docs/billing-operations.md",
                shard.shard,
                buckets.len(),
                named.join(", ")
            );
            alerts.push(Alert { code: "ASTRAY_BUCKETS", message, light: Light::Red });
        }
    }
}

fn tell_replicas(set: &ReplicaSetStatus, alerts: &mut Vec<Alert>) {
    let ReplicaSetStatus { index, shards: _, members } = set;
    let mut alert = |code, message, light| alerts.push(Alert { code, message, light });
    if !set.reachable() {
        alert("UNREACHABLE_REPLICASET", format!("no replica of set {index} can be reached"), Light::Red);
        return;
    }
    if !set.writable() {
        alert("MISSING_MASTER", format!("no replica of set {index} takes writes"), Light::Orange);
    }
    for member in members.iter().filter(|member| member.state == MemberState::Unreachable) {
        let why = member.problem.as_deref().unwrap_or("no answer");
        let message = format!("replica {} of set {index} cannot be reached: {why}", member.uri);
        alert("UNREACHABLE_REPLICA", message, Light::Yellow);
    }
    let reachable = members.iter().filter(|member| member.state != MemberState::Unreachable).count();
    if reachable < 2 {
        let message = format!("set {index} has one replica: what is acknowledged is on one machine only");
        alert("LOW_REDUNDANCY", message, Light::Yellow);
    }
}

fn replica_set(status: ReplicaSetStatus) -> ReplicaSetBody {
    let ReplicaSetStatus { index, shards, members } = status;
    ReplicaSetBody { index, shards, replicas: members.into_iter().map(replica).collect() }
}

fn replica(status: MemberStatus) -> ReplicaBody {
    let MemberStatus { uri, state, replication, lag_bytes, lag, problem } = status;
    let state = match state {
        MemberState::Writable => "writable",
        MemberState::ReadOnly => "read_only",
        MemberState::Unreachable => "unreachable",
    };
    ReplicaBody { uri, state, replication, lag_bytes, lag_seconds: lag.map(|lag| lag.as_secs_f64()), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(shard: u32, node: &str, writable: bool) -> ShardStatus {
        ShardStatus {
            shard,
            node: node.into(),
            advertise: if node.is_empty() { String::new() } else { format!("{node}:8200") },
            epoch: 3,
            seq: 9,
            buckets: 500,
            accounts: None,
            astray: Astray::default(),
            writable,
        }
    }

    fn set(index: usize, shards: &[u32], states: &[MemberState]) -> ReplicaSetStatus {
        let member = |state: &MemberState| MemberStatus {
            uri: format!("db{index}:5432"),
            state: *state,
            replication: None,
            lag_bytes: None,
            lag: None,
            problem: None,
        };
        ReplicaSetStatus { index, shards: shards.to_vec(), members: states.iter().map(member).collect() }
    }

    fn astray(missing: &[u16], surplus: &[u16]) -> Astray {
        Astray { missing: missing.to_vec(), surplus: surplus.to_vec() }
    }

    #[test]
    fn colours_alerts_and_buckets() {
        use MemberState::{ReadOnly, Unreachable, Writable};
        let buckets = |available_rw, available_ro, unreachable, unknown| Buckets {
            available_rw,
            available_ro,
            unreachable,
            unknown,
        };
        let healthy = || set(0, &[0, 1], &[Writable, ReadOnly]);
        for (shards, sets, light, codes, expected) in [
            (
                vec![shard(0, "a", true), shard(1, "b", true)],
                vec![healthy()],
                Light::Green,
                "",
                buckets(1000, 0, 0, 0),
            ),
            (
                vec![shard(0, "a", true), shard(1, "b", true)],
                vec![set(0, &[0, 1], &[Writable, Unreachable])],
                Light::Yellow,
                "UNREACHABLE_REPLICA LOW_REDUNDANCY",
                buckets(1000, 0, 0, 0),
            ),
            (
                vec![shard(0, "a", true), shard(1, "b", false)],
                vec![set(0, &[0], &[Writable, ReadOnly]), set(1, &[1], &[ReadOnly, ReadOnly])],
                Light::Orange,
                "MISSING_MASTER READ_ONLY_SHARD",
                buckets(500, 500, 0, 0),
            ),
            (
                vec![shard(0, "a", true), shard(1, "", false)],
                vec![healthy()],
                Light::Red,
                "MISSING_OWNER",
                buckets(500, 0, 500, 0),
            ),
            (
                vec![shard(0, "a", true), shard(1, "b", false)],
                vec![healthy()],
                Light::Red,
                "UNREACHABLE_OWNER",
                buckets(500, 0, 500, 0),
            ),
            (
                vec![shard(0, "a", true), shard(1, "b", false)],
                vec![set(0, &[0], &[Writable, ReadOnly]), set(1, &[1], &[Unreachable])],
                Light::Red,
                "UNREACHABLE_REPLICASET UNREACHABLE_OWNER",
                buckets(500, 0, 500, 0),
            ),
            (
                vec![
                    ShardStatus { astray: astray(&[1, 2], &[]), ..shard(0, "a", true) },
                    ShardStatus { astray: astray(&[], &[7]), ..shard(1, "b", true) },
                ],
                vec![healthy()],
                Light::Red,
                "ASTRAY_BUCKETS ASTRAY_BUCKETS",
                buckets(998, 0, 2, 0),
            ),
            (
                vec![shard(0, "a", true)],
                vec![healthy()],
                Light::Red,
                "UNKNOWN_BUCKETS",
                buckets(500, 0, 0, 500),
            ),
        ] {
            let body = ClusterBody::new(Cluster { node: "a".into(), shards, replica_sets: sets });
            let told: Vec<&str> = body.alerts.iter().map(|alert| alert.code).collect();
            assert_eq!((body.status, told.join(" ").as_str(), body.buckets), (light, codes, expected));
        }
    }
}

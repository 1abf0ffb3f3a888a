//! What a billing node says of its cluster, as tables. What is not there (another version) is shown as nothing.

use serde::Deserialize;

use super::table::{Table, none, render_all};

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Cluster {
    node: String,
    status: String,
    alerts: Vec<Alert>,
    buckets: Buckets,
    shards: Vec<Shard>,
    replica_sets: Vec<ReplicaSet>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Alert {
    code: String,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Buckets {
    available_rw: u32,
    available_ro: u32,
    unreachable: u32,
    unknown: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Shard {
    shard: u32,
    state: String,
    node: Option<String>,
    advertise: Option<String>,
    epoch: u64,
    seq: u64,
    buckets: u32,
    accounts: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReplicaSet {
    index: usize,
    replicas: Vec<Replica>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Replica {
    uri: String,
    state: String,
    replication: Option<String>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<f64>,
    problem: Option<String>,
}

pub fn render(cluster: &Cluster) -> String {
    let Cluster { node, status, alerts: told, buckets, shards: all, replica_sets } = cluster;
    let Buckets { available_rw, available_ro, unreachable, unknown } = buckets;
    let heads = ["NODE", "STATUS", ">BUCKETS RW", ">READ-ONLY", ">UNREACHABLE", ">UNKNOWN"];
    let mut table = Table::new(&heads);
    let counts = [available_rw, available_ro, unreachable, unknown].map(u32::to_string);
    let [rw, ro, away, lost] = counts;
    table.row([node.clone(), status.clone(), rw, ro, away, lost]);
    render_all([table, alerts(told), shards(all), replicas(replica_sets)])
}

fn alerts(alerts: &[Alert]) -> Table {
    let mut table = Table::new(&["ALERT", "MESSAGE"]);
    for Alert { code, message } in alerts {
        table.row([code.clone(), message.clone()]);
    }
    table
}

fn shards(shards: &[Shard]) -> Table {
    let heads = [">SHARD", "STATE", "OWNER", "AT", ">EPOCH", ">SEQ", ">BUCKETS", ">ACCOUNTS"];
    let mut table = Table::new(&heads);
    for Shard { shard, state, node, advertise, epoch, seq, buckets, accounts } in shards {
        table.row([
            shard.to_string(),
            state.clone(),
            node.clone().unwrap_or_else(none),
            advertise.clone().unwrap_or_else(none),
            epoch.to_string(),
            seq.to_string(),
            buckets.to_string(),
            accounts.map_or_else(none, |accounts| accounts.to_string()),
        ]);
    }
    table
}

fn replicas(sets: &[ReplicaSet]) -> Table {
    let heads = [">SET", "REPLICA", "STATE", "REPLICATION", ">LAG BYTES", ">LAG", "PROBLEM"];
    let mut table = Table::new(&heads);
    for (index, replica) in
        sets.iter().flat_map(|set| set.replicas.iter().map(|replica| (set.index, replica)))
    {
        let Replica { uri, state, replication, lag_bytes, lag_seconds, problem } = replica;
        table.row([
            index.to_string(),
            uri.clone(),
            state.clone(),
            replication.clone().unwrap_or_else(none),
            lag_bytes.map_or_else(none, |bytes| bytes.to_string()),
            lag_seconds.map_or_else(none, |seconds| format!("{seconds:.1} s")),
            problem.clone().unwrap_or_else(none),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shards_replicas_and_alerts_are_told() {
        let cluster = json!({
            "node": "a", "status": "red", "from_a_newer_version": true,
            "alerts": [{ "code": "MISSING_OWNER", "message": "shard 1 has no owner" }],
            "buckets": { "available_rw": 500, "available_ro": 0, "unreachable": 500, "unknown": 0 },
            "shards": [
                { "shard": 0, "state": "available_rw", "node": "a", "advertise": "10.0.0.1:8200", "epoch": 12, "seq": 345,
                  "buckets": 500, "accounts": 6, "replica_set": 0 },
                { "shard": 1, "state": "unreachable", "node": null, "advertise": null, "epoch": 3, "seq": 9,
                  "buckets": 500, "accounts": null, "replica_set": 0 },
            ],
            "replica_sets": [{ "index": 0, "shards": [0, 1], "replicas": [
                { "uri": "db-a:5432", "state": "writable", "replication": null, "lag_bytes": null, "lag_seconds": null,
                  "problem": null },
                { "uri": "db-b:5432", "state": "read_only", "replication": "sync", "lag_bytes": 120, "lag_seconds": 0.04,
                  "problem": null },
            ]}],
        });
        let expected = "\
NODE  STATUS  BUCKETS RW  READ-ONLY  UNREACHABLE  UNKNOWN
a     red            500          0          500        0

ALERT          MESSAGE
MISSING_OWNER  shard 1 has no owner

SHARD  STATE         OWNER  AT             EPOCH  SEQ  BUCKETS  ACCOUNTS
    0  available_rw  a      10.0.0.1:8200     12  345      500         6
    1  unreachable   -      -                  3    9      500         -

SET  REPLICA    STATE      REPLICATION  LAG BYTES    LAG  PROBLEM
  0  db-a:5432  writable   -                    -      -  -
  0  db-b:5432  read_only  sync               120  0.0 s  -
";
        assert_eq!(render(&serde_json::from_value(cluster).unwrap()), expected);
    }
}

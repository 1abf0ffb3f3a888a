//! What the journal can tell about the health of its replicas.

use std::time::Duration;

/// One replica set: a group of servers that hold the same shards.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaSetStatus {
    /// Its place in the configuration.
    pub index: usize,
    /// The shards it holds.
    pub shards: Vec<u32>,
    pub members: Vec<MemberStatus>,
}

impl ReplicaSetStatus {
    pub fn reachable(&self) -> bool {
        self.members.iter().any(|member| member.state != MemberState::Unreachable)
    }

    pub fn writable(&self) -> bool {
        self.members.iter().any(|member| matches!(member.state, MemberState::Writable))
    }
}

/// One server, or one directory.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberStatus {
    /// Without a password.
    pub uri: String,
    pub state: MemberState,
    /// As the master says of this replica: `sync`, `quorum`, `potential`, `async`; None for the master, or if it
    /// cannot be seen.
    pub replication: Option<String>,
    /// What the replica has yet to replay.
    pub lag_bytes: Option<u64>,
    pub lag: Option<Duration>,
    /// Why it is unreachable.
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemberState {
    Writable,
    ReadOnly,
    Unreachable,
}

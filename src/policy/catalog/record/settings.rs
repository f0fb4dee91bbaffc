//! What holds for the whole cluster.

use std::sync::Arc;

use shardhost_proto::shard_map::ShardMap;
use shardhost_proto::version::ClusterVersion;
use shardhost_storage::NodeId;

use super::{ReplicaRule, Revision};

/// Whether leadership is moved for balance and preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlannerMode {
    #[default]
    Off,
    /// Plans are made and shown; nothing moves.
    Shadow,
    On,
}

/// The kill switch. It stops planned moves, not refusals and not drains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlannedMoves {
    /// According to the planner's mode.
    #[default]
    Allowed,
    Stopped,
}

/// What holds for the whole cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Of the last change; 0: never changed.
    pub revision: Revision,
    pub mode: PlannerMode,
    pub moves: PlannedMoves,
    /// Why the kill switch was set, and by which operator; at most
    /// [`MAX_TEXT_BYTES`](super::super::MAX_TEXT_BYTES).
    pub reason: Box<str>,
    /// When the kill switch was set, in milliseconds since 1970; 0: never.
    pub since_ms: u64,
    /// Which shards there are; `None`: that was not founded.
    pub shard_map: Option<Arc<ShardMap>>,
    /// What may be used. It never goes back.
    pub cluster_version: ClusterVersion,
    /// Nodes that were removed, in ascending order: their numbers are never given again. At most
    /// [`MAX_REMOVED_NODES`](super::super::MAX_REMOVED_NODES). From version 2 of the cluster on.
    pub removed_nodes: Arc<[NodeId]>,
    /// Whether replicas are moved automatically; `None`: that was never set, and nothing is moved. From
    /// version 2 of the cluster on.
    pub replicas: Option<ReplicaSettings>,
    /// Rules for replicas, in the order of their names. At most [`MAX_RULES`](super::super::MAX_RULES). From
    /// version 3 of the cluster on.
    pub rules: Arc<[ReplicaRule]>,
}

/// Whether replicas are moved automatically, and when a node counts as gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaSettings {
    pub mode: PlannerMode,
    /// A node that does not answer for so long is replaced, in milliseconds: 1 s to 7 days.
    pub replace_after_ms: u64,
}

impl ReplicaSettings {
    /// Ten minutes: longer than a restart, shorter than a person takes to come.
    pub const DEFAULT_REPLACE_AFTER_MS: u64 = 600_000;
}

//! The input of a pass, and its result. Data only.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shardhost_storage::NodeId;

use super::hold::Hold;
use super::record::Recorded;
use crate::planner::{Snapshot, SnapshotError};

/// Whether plans are made and carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Off,
    /// Plans are made and shown; nothing moves.
    Shadow,
    On,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Shadow => "shadow",
            Self::On => "on",
        })
    }
}

/// A kill switch that is set: nothing planned starts, moves in flight end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub scope: StopScope,
    /// Why it was set, and by which operator.
    pub reason: String,
}

/// Whose kill switch is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopScope {
    /// The cluster's, in the catalog.
    Cluster,
    Host,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self.scope {
            StopScope::Cluster => "for the whole cluster",
            StopScope::Host => "on this host",
        };
        let reason = if self.reason.is_empty() { "no reason was given" } else { &self.reason };
        write!(f, "{whose} ({reason}); release the kill switch to continue")
    }
}

/// The known state of the cluster at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The planner's clock, in milliseconds.
    pub now_ms: u64,
    /// Whether plans are made and carried out.
    pub mode: Mode,
    /// A kill switch that is set.
    pub stopped: Option<Stop>,
    /// Nodes and groups, merged from the reports of all hosts. A group's load is in operations
    /// per second as its leader measured; where no voter's lag is known, no leader reported, and
    /// the load counts as not measured. Its `moved_at_ms` is when the present leadership began, if it began
    /// by a transfer. Time, moves, back_offs and settings are filled in by the executor.
    pub snapshot: Snapshot,
    /// Of each node the time of its newest report that is part of the snapshot, on the planner's
    /// clock: when it was asked for, not when it came.
    pub reported_ms: BTreeMap<NodeId, u64>,
}

/// The result of a pass.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Round {
    /// When it was planned, on the planner's clock.
    pub planned_at_ms: u64,
    /// What was planned, with the snapshot that it was planned from.
    pub made: Result<Arc<Recorded>, NoPlan>,
    /// Moves that wait to start, now that the plan is known.
    pub queued: usize,
    /// Why none of them starts, if so.
    pub hold: Option<Hold>,
}

/// Why a round has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoPlan {
    /// The mode is off.
    #[error("the planner is off; switch its mode to shadow or on")]
    Off,
    /// The snapshot of the cluster is invalid. Inspect the reports.
    #[error("the picture of the cluster cannot be planned: {0}")]
    Snapshot(#[from] SnapshotError),
}

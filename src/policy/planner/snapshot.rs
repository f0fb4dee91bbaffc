//! The input of the planner: one immutable snapshot of the cluster, time and seed included. It must
//! not depend on where its numbers come from. Canonical order (`canon`) makes equal snapshots equal
//! bytes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shardhost_storage::{GroupId, NodeId};

/// Nodes that a snapshot may hold. The planner keeps some bytes per pair of nodes.
pub const MAX_NODES: usize = 1_000;
/// Groups that a snapshot may hold. Keeps every score within 64 bits.
pub const MAX_GROUPS: usize = 1_000_000;
/// The largest capacity weight. Keeps shares of leaders comparable without rounding.
pub const MAX_WEIGHT: u32 = 1_000;
/// The largest load of one group, in buckets. Keeps sums of loads within 64 bits.
pub const MAX_LOAD: u32 = 1_000_000_000;

/// Everything that a plan depends on. The same snapshot gives the same plan on any machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// The planner's clock, in milliseconds. All times of a snapshot are of this clock.
    pub now_ms: u64,
    /// Decides between nodes that are otherwise equal.
    pub seed: u64,
    pub settings: Settings,
    /// All nodes that are known, by rising id.
    pub nodes: Vec<Node>,
    /// All groups, by rising id.
    pub groups: Vec<Group>,
    /// Moves under way or not yet confirmed, by rising group; at most one per group.
    pub moves: Vec<LedgerMove>,
    /// Targets that are not to be asked, by rising group and target.
    pub back_offs: Vec<BackOff>,
}

/// Limits and tolerances of planning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A group that moved less than this ago is moved only for a violation or a drain.
    pub cool_down_ms: u64,
    /// A node that is live for less than this takes leaders only from those who must go.
    pub warm_up_ms: u64,
    /// A target may lack at most so many entries. Zero: fully caught up.
    pub max_lag_entries: u64,
    /// Moves of one round at most, those under way included.
    pub moves_per_round: u32,
    /// Leaders that one node gives away in a round at most, those under way included.
    pub out_per_node: u32,
    /// Leaders that one node receives in a round at most, those under way included.
    pub in_per_node: u32,
    pub load_tier: bool,
    /// How far above its fair share a node's load may be, in percent, before load moves a leader.
    /// Once it acts, it continues until a quarter of this is reached.
    pub load_tolerance_percent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cool_down_ms: 300_000,
            warm_up_ms: 30_000,
            max_lag_entries: 0,
            moves_per_round: 512,
            out_per_node: 128,
            in_per_node: 128,
            load_tier: false,
            load_tolerance_percent: 50,
        }
    }
}

/// A host as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    #[serde(with = "super::ids::node")]
    pub id: NodeId,
    /// Its capacity relative to other nodes, up to [`MAX_WEIGHT`]. Zero: it takes no leaders, and
    /// those it has should go.
    pub weight: u32,
    pub zone: String,
    /// Advertised capabilities. `None`: unknown, which is not the same as none.
    pub capabilities: Option<BTreeSet<String>>,
    /// It is to be emptied.
    pub draining: bool,
    /// False: an operator or its health excludes it from leading.
    pub fit: bool,
    pub live: bool,
    /// The life of its process that all this is about.
    pub incarnation: u64,
    /// Since when it is live.
    pub live_since_ms: u64,
}

/// A group as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    #[serde(with = "super::ids::group")]
    pub id: GroupId,
    /// Who leads it. `None`: unknown; then it is not moved.
    #[serde(with = "super::ids::node_option")]
    pub leader: Option<NodeId>,
    /// Who led it when that was last known. It counts there while the leader is unknown.
    #[serde(with = "super::ids::node_option")]
    pub last_leader: Option<NodeId>,
    /// The term of that leader: what fences a move.
    pub term: u64,
    /// Who may lead it, by rising node.
    pub voters: Vec<Voter>,
    /// What it asks of its leader.
    pub requirement: Requirement,
    /// Preferred places: earlier is better, unlisted ones come last.
    pub preference: Vec<Place>,
    /// The one node where it should lead: stronger than any preference.
    #[serde(with = "super::ids::node_option")]
    pub pin: Option<NodeId>,
    /// Groups with the same label should have their leaders in different zones.
    pub label: Option<String>,
    /// Operations per second, in buckets; 0: idle. At most [`MAX_LOAD`].
    pub load: u32,
    /// When a planned move of it last ended.
    pub moved_at_ms: Option<u64>,
}

/// A voter of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voter {
    #[serde(with = "super::ids::node")]
    pub node: NodeId,
    /// Entries that it lacks. `None`: unknown; then it is no target.
    pub lag: Option<u64>,
}

/// What a group asks of its leader's node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// Names that must all be advertised.
    pub capabilities: BTreeSet<String>,
    /// What it means when they are not.
    pub mode: RequirementMode,
}

/// How strict a requirement is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequirementMode {
    /// Without the capabilities no user is served.
    #[default]
    Hard,
    /// Without the capabilities it serves anyway.
    Soft,
}

/// A place that a preference names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Node(#[serde(with = "super::ids::node")] NodeId),
    /// Every node of a failure domain.
    Zone(String),
}

/// An ordered move. It counts as done until both ends reported after its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerMove {
    #[serde(with = "super::ids::group")]
    pub group: GroupId,
    /// Who gives the leadership away.
    #[serde(with = "super::ids::node")]
    pub from: NodeId,
    #[serde(with = "super::ids::node")]
    pub to: NodeId,
    /// The executor's number of the move.
    pub ticket: u64,
    pub since_ms: u64,
    /// When it was reported as done. `None`: under way.
    pub completed_at_ms: Option<u64>,
    /// Time of the newest report of the giving node.
    pub from_reported_ms: Option<u64>,
    /// Time of the newest report of the receiving node.
    pub to_reported_ms: Option<u64>,
}

impl LedgerMove {
    /// Whether the reports of both ends are newer than the move's end, so that they, and no
    /// longer the ledger, say where the group is led.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        let newer = |report: Option<u64>| report > self.completed_at_ms;
        self.completed_at_ms.is_some() && newer(self.from_reported_ms) && newer(self.to_reported_ms)
    }
}

/// A target that a group's leadership failed to reach and is not sent to for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackOff {
    #[serde(with = "super::ids::group")]
    pub group: GroupId,
    #[serde(with = "super::ids::node")]
    pub target: NodeId,
    /// It may be asked again from this time on.
    pub until_ms: u64,
}

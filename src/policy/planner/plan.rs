//! What planning answers: which leaderships move, in which order and why, which wait, which are
//! stuck, and the proof that no better balance exists. Data only.

use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_storage::{GroupId, NodeId};

use super::explain::Stay;

/// What a move improves. Earlier tiers come first: none is ever worsened for a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tier {
    /// The leader's node lacks what the group requires.
    Capability,
    /// The leader's node is draining, unfit, or has no weight.
    Displaced,
    /// A node that the group prefers can lead it.
    Preference,
    /// Leaders of groups with one label share a zone.
    Spread,
    /// A node's load is beyond the tolerance.
    Load,
    /// A node has more leaders than its share.
    Count,
}

impl Tier {
    /// One word, as metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capability => "capability",
            Self::Displaced => "displaced",
            Self::Preference => "preference",
            Self::Spread => "spread",
            Self::Load => "load",
            Self::Count => "count",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capability => "capability",
            Self::Displaced => "drain or fitness",
            Self::Preference => "preference",
            Self::Spread => "spread over zones",
            Self::Load => "load",
            Self::Count => "number of leaders",
        })
    }
}

/// How bad a placement of all leaders is. Compared from the first field to the last; less is
/// better. Leaders on nodes that are not live count nowhere: they are not ours to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Leaders on nodes that are known to lack a Hard requirement.
    pub hard: u64,
    /// Leaders on nodes that are known to lack a Soft requirement.
    pub soft: u64,
    /// Leaders on nodes that are draining, unfit or without weight.
    pub displaced: u64,
    /// Sum over groups of the place of the leader's node in the group's preference, from 0. A
    /// pinned group has 0 at the pin, and one more than else everywhere else.
    pub rank: u64,
    /// Pairs of groups with the same label whose leaders are in one zone.
    pub pairs: u64,
    /// Sum over nodes of the load, in buckets, above what a node is comfortable with: its fair
    /// share and a quarter of the tolerance. Zero when load is not balanced.
    pub load: u64,
    /// Sum over nodes of the cost of their leaders. The k-th leader of a node of weight w costs
    /// `(2k - 1) * 2^20 / w`, rounded down: the sum is, up to rounding, n * n / w for n leaders.
    /// Rounding never changes which of two leaders is the cheaper one.
    pub count: u64,
}

/// One leadership that is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    #[serde(with = "super::ids::group")]
    pub group: GroupId,
    #[serde(with = "super::ids::node")]
    pub from: NodeId,
    #[serde(with = "super::ids::node")]
    pub to: NodeId,
    /// The life of the target that the plan was made for.
    pub to_incarnation: u64,
    /// The term in which `from` leads. In another term the move is void.
    pub term: u64,
    pub tier: Tier,
    /// Moves of one bundle improve the score together and not alone. Bundles rise from 0, and
    /// the score falls with each.
    pub bundle: u32,
}

/// A move of the full plan that is not for this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deferred {
    #[serde(with = "super::ids::group")]
    pub group: GroupId,
    #[serde(with = "super::ids::node")]
    pub from: NodeId,
    #[serde(with = "super::ids::node")]
    pub to: NodeId,
    pub tier: Tier,
    /// Why not in this round.
    pub reason: DeferReason,
}

/// Why a move waits for a later round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DeferReason {
    /// The round has as many moves as it may.
    RoundBudget,
    /// The giving node gives away as many leaders as it may in a round.
    OutBudget,
    /// The receiving node gets as many leaders as it may in a round.
    InBudget,
    /// It improves nothing before other moves, which wait themselves, are done.
    WaitsForOthers,
}

impl fmt::Display for DeferReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoundBudget => "the round's budget of moves is spent",
            Self::OutBudget => "the giving node's budget of this round is spent",
            Self::InBudget => "the receiving node's budget of this round is spent",
            Self::WaitsForOthers => "it helps only together with moves that wait themselves",
        })
    }
}

/// A group that should leave its leader's node and cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stuck {
    #[serde(with = "super::ids::group")]
    pub group: GroupId,
    /// The node that it should leave.
    #[serde(with = "super::ids::node")]
    pub node: NodeId,
    /// The violated tier: [`Tier::Capability`] or [`Tier::Displaced`].
    pub tier: Tier,
    pub reason: Stay,
}

/// Something in the snapshot that an operator should look at. The plan is made in spite of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// The pin names a node that is no voter of the group. The pin is ignored.
    PinToNonVoter {
        #[serde(with = "super::ids::group")]
        group: GroupId,
        #[serde(with = "super::ids::node")]
        node: NodeId,
    },
    /// The preference names one place twice. The preference is ignored.
    PreferenceContradicts {
        #[serde(with = "super::ids::group")]
        group: GroupId,
    },
    /// No voter of the group is known to have what it requires.
    NoCapableVoter {
        #[serde(with = "super::ids::group")]
        group: GroupId,
    },
    /// The leader is a node that the snapshot does not know, or that is not live.
    LeaderNotLive {
        #[serde(with = "super::ids::group")]
        group: GroupId,
        #[serde(with = "super::ids::node")]
        node: NodeId,
    },
    /// The ledger has a move of a group that the snapshot does not know.
    MoveOfUnknownGroup {
        #[serde(with = "super::ids::group")]
        group: GroupId,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PinToNonVoter { group, node } => write!(
                f,
                "group {group} is pinned to node {node}, which is none of its voters; the pin is \
                 ignored: change the pin or add a voter there"
            ),
            Self::PreferenceContradicts { group } => write!(
                f,
                "the preference of group {group} names one place twice; it is ignored until it \
                 is set again"
            ),
            Self::NoCapableVoter { group } => write!(
                f,
                "no voter of group {group} is known to have what it requires; add one that has"
            ),
            Self::LeaderNotLive { group, node } => write!(
                f,
                "group {group} is said to be led by node {node}, which is not live; an election \
                 decides, not the planner"
            ),
            Self::MoveOfUnknownGroup { group } => {
                write!(f, "the ledger moves group {group}, which is not in the snapshot")
            }
        }
    }
}

/// Leaders of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeCount {
    #[serde(with = "super::ids::node")]
    pub node: NodeId,
    /// Leaders that it has, moves under way counted as done.
    pub before: u64,
    /// Leaders after the moves of this round.
    pub after_round: u64,
    /// Leaders after the full plan.
    pub after: u64,
}

/// The plan in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    pub before: Score,
    /// Score after the moves of this round.
    pub after_round: Score,
    /// Score after the full plan.
    pub after: Score,
    /// Leaders per node, by rising id.
    pub nodes: Vec<NodeCount>,
    /// What an operator should look at.
    pub findings: Vec<Finding>,
}

/// What one more leader costs on a node when it may be passed on: the cost of the cheapest place
/// that it can end up at, and the moves that passing it on adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    #[serde(with = "super::ids::node")]
    pub node: NodeId,
    /// Cost of the cheapest end, in the units of [`Score::count`].
    pub cost: u64,
    /// Moves on the way there: a leadership that goes home counts -1, one that moved already 0.
    pub moves: i64,
}

/// Proof that the full plan's counts cannot be improved by groups that are free to move, and that
/// no plan with the same counts needs fewer moves of them.
///
/// Groups that share a label, and groups with load while load is balanced, are fixed in this proof:
/// of them it is only shown that none improves the counts by moving alone.
///
/// With prices p it suffices to check each group and each node: the last leader of a node costs no
/// more than p(node), one more costs no less, and p(u) is at most p(v) plus the moves that shifting
/// a group from u to v adds. Then no chain of shifts can save anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// A price for each node that can lead a free group, by rising id.
    pub prices: Vec<Price>,
}

/// The moves, and why the rest stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Moves of this round in the order in which they should start.
    pub moves: Vec<Move>,
    /// The rest of the full plan, by rising group.
    pub deferred: Vec<Deferred>,
    /// Groups that should leave and cannot, by rising group.
    pub stuck: Vec<Stuck>,
    pub summary: Summary,
    /// Proof that the counts are optimal.
    pub certificate: Certificate,
}

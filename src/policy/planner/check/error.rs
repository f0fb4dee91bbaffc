//! What can be wrong with a plan.

use std::fmt;

use shardhost_storage::{GroupId, NodeId};

use super::super::plan::{Price, Score};

/// An error of a plan. It must not be executed; its snapshot belongs into a test.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckError {
    /// A move of a group that the snapshot does not know.
    UnknownGroup { group: GroupId },
    /// Two moves of one group.
    MovedTwice { group: GroupId },
    /// The group is not where the move begins.
    NotThere { group: GroupId, planned: NodeId, actual: Option<NodeId> },
    /// The group may not be moved, or not there.
    NotAllowed { group: GroupId, from: NodeId, to: NodeId },
    /// The move carries another term or incarnation than the snapshot.
    WrongFence { group: GroupId },
    /// Bundles are not numbered from 0 without gaps.
    BundleNumber {
        /// The expected number.
        expected: usize,
        actual: u32,
    },
    /// A bundle, or at last the deferred rest, does not lower the score.
    NoBetter { bundle: usize, before: Box<Score>, after: Box<Score> },
    /// The summary has another score than the placement.
    WrongScore {
        /// Which of the summary's scores.
        when: &'static str,
        planned: Box<Score>,
        actual: Box<Score>,
    },
    /// The summary has other numbers of leaders than the placement.
    WrongCounts {
        node: NodeId,
        /// The summary's numbers: before, after the pass, after the full plan.
        planned: [u64; 3],
        actual: [u64; 3],
    },
    /// A group that has to move is not moved.
    LeftBehind { group: GroupId, node: NodeId },
    /// The certificate has no price for a node that a free group may be on.
    NoPrice { node: NodeId },
    /// A node's price is below the cost of its last leader or above that of its next: leaders are
    /// left on it that are cheaper elsewhere, or the price is wrong.
    PriceOffCost {
        price: Price,
        /// Cost of the last leader.
        last: u64,
        next: u64,
    },
    /// Shifting a group leads to a lower price than the certificate admits.
    PriceGap {
        group: GroupId,
        /// The price where it is.
        from: Price,
        /// The price where it may go.
        to: Price,
    },
    /// A group that is not free could lower the counts by moving alone, at no one's expense.
    SingleStep { group: GroupId, from: NodeId, to: NodeId },
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownGroup { group } => write!(f, "group {group} is not in the snapshot"),
            Self::MovedTwice { group } => write!(f, "group {group} has two moves"),
            Self::NotThere { group, planned, actual } => {
                write!(f, "group {group} is to leave node {planned}, and counts at {actual:?}")
            }
            Self::NotAllowed { group, from, to } => {
                write!(f, "group {group} may not move from node {from} to node {to}")
            }
            Self::WrongFence { group } => {
                write!(f, "the move of group {group} has another term or life than the snapshot")
            }
            Self::BundleNumber { expected, actual } => {
                write!(f, "bundle {actual} stands where bundle {expected} should")
            }
            Self::NoBetter { bundle, before, after } => {
                write!(f, "bundle {bundle} does not lower the score: {before:?}, then {after:?}")
            }
            Self::WrongScore { when, planned, actual } => {
                write!(f, "the score {when} is {actual:?}, the plan says {planned:?}")
            }
            Self::WrongCounts { node, planned, actual } => {
                write!(f, "node {node} leads {actual:?}, the plan says {planned:?}")
            }
            Self::LeftBehind { group, node } => {
                write!(f, "group {group} is left on node {node}, where it may not stay")
            }
            Self::NoPrice { node } => write!(f, "the certificate has no price for node {node}"),
            Self::PriceOffCost { price, last, next } => write!(
                f,
                "the price {price:?} is not between {last} (its last leader) and {next} (one more)"
            ),
            Self::PriceGap { group, from, to } => {
                write!(f, "group {group} leads from price {from:?} to {to:?}")
            }
            Self::SingleStep { group, from, to } => {
                write!(f, "group {group} could still improve counts from node {from} to node {to}")
            }
        }
    }
}

impl std::error::Error for CheckError {}

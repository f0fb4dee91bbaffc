//! Why nothing starts, and why one move waits, readable by an operator at night. Data only.

use std::fmt;

use serde::{Deserialize, Serialize};
use shardhost_storage::NodeId;

use super::breaker::BreakerState;
use super::observation::Stop;
use crate::planner::{Tier, ids};
use crate::utc::Utc;

/// Why no planned move starts at all. Refusals and drains, which are the hosts', continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Hold {
    /// No round was planned yet.
    NoRound,
    /// The planner's mode is off.
    Off,
    /// The kill switch is set.
    Stopped(Stop),
    /// The planner's mode is shadow: it plans, and moves nothing.
    Shadow,
    /// The last round could not be planned.
    Unplannable {
        /// The error in the snapshot of the cluster.
        error: String,
    },
    WarmUp {
        /// It moves nothing before this time.
        until_ms: u64,
        /// It continues at this time in any case.
        longest_ms: u64,
        /// Live nodes that did not report to it yet.
        #[serde(with = "node_list")]
        silent: Vec<NodeId>,
    },
    /// The last plan is too old to be carried out.
    PlanTooOld { made_at_ms: u64 },
    /// Too many moves went badly.
    Breaker(BreakerState),
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRound => f.write_str("nothing was planned yet; wait for the first round"),
            Self::Off => f.write_str("the planner is off; switch its mode to on to move leaders"),
            Self::Stopped(stop) => write!(f, "planned moves are stopped: {stop}"),
            Self::Shadow => {
                f.write_str("the planner is in shadow mode: it plans and moves nothing")
            }
            Self::Unplannable { error } => {
                write!(f, "the last round could not be planned: {error}")
            }
            Self::WarmUp { until_ms, longest_ms, silent } if !silent.is_empty() => write!(
                f,
                "the planner is new and warms up: it waits for reports of {}, and continues at \
                 {} in any case",
                nodes(silent),
                Utc(*longest_ms.max(until_ms))
            ),
            Self::WarmUp { until_ms, .. } => {
                write!(
                    f,
                    "the planner began a short time ago; it moves nothing until {}",
                    Utc(*until_ms)
                )
            }
            Self::PlanTooOld { made_at_ms } => write!(
                f,
                "the last plan is of {}, too old to be carried out; look why no round follows",
                Utc(*made_at_ms)
            ),
            Self::Breaker(state) => write!(f, "the circuit breaker is {state}"),
        }
    }
}

fn nodes(ids: &[NodeId]) -> String {
    let names: Vec<String> = ids.iter().map(|id| format!("node {id}")).collect();
    names.join(", ")
}

/// Why a move that is planned does not start yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Wait {
    Hold(Hold),
    /// As many moves are under way as may be.
    Window {
        size: u32,
    },
    /// As many moves from, or to, the node are under way as may be.
    NodeWindow {
        #[serde(with = "ids::node")]
        node: NodeId,
        size: u32,
    },
    /// Too many moves from, or to, the node went badly.
    NodeBreaker {
        #[serde(with = "ids::node")]
        node: NodeId,
        state: BreakerState,
    },
    /// Moves of its tier started as fast as they may.
    Rate {
        tier: Tier,
    },
    /// As many moves are under way or not yet confirmed as the ledger holds.
    Ledger,
    /// A move of its bundle comes first.
    Bundle {
        /// The ticket's number of that one.
        after: u64,
    },
    /// It is queued behind other moves.
    Turn,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hold(hold) => hold.fmt(f),
            Self::Window { size } => write!(f, "{size} moves are under way, as many as may be"),
            Self::NodeWindow { node, size } => {
                write!(f, "{size} moves of node {node} are under way, as many as may be")
            }
            Self::NodeBreaker { node, state } => {
                write!(f, "the circuit breaker of node {node} is {state}")
            }
            Self::Rate { tier } => {
                write!(f, "moves of its tier ({tier}) start one after the other")
            }
            Self::Ledger => f.write_str("too many moves have yet to be confirmed"),
            Self::Bundle { after } => {
                write!(f, "it helps only together with a move before it (number {after})")
            }
            Self::Turn => f.write_str("queued behind other moves"),
        }
    }
}

/// Node ids as a list of plain numbers.
mod node_list {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use shardhost_storage::NodeId;

    pub(super) fn serialize<S: Serializer>(ids: &[NodeId], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(ids.iter().map(|id| id.get()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NodeId>, D::Error> {
        let numbers = Vec::<u64>::deserialize(from)?;
        let checked = |number| {
            NodeId::new(number)
                .ok_or_else(|| D::Error::custom("a node id is never zero; the list has 0"))
        };
        numbers.into_iter().map(checked).collect()
    }
}

//! The executor at a glance, for operators and metrics. Data, and how it is gathered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shardhost_storage::NodeId;

use super::Executor;
use super::breaker::BreakerState;
use super::hold::Hold;
use super::observation::{Mode, Stop};
use super::order::PlannerTerm;
use super::pace::End;
use crate::planner::{Summary, Tier, ids};

/// The state of the executor, and its outcomes since it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecutorStatus {
    pub planner_term: PlannerTerm,
    /// When it began, in milliseconds of the planner's clock.
    pub began_ms: u64,
    /// Whether plans are made and carried out.
    pub mode: Mode,
    /// The kill switch, if it is set.
    pub stopped: Option<Stop>,
    /// Why nothing starts, if so; also during the warm-up.
    pub hold: Option<Hold>,
    /// What the circuit breaker allows.
    pub breaker: BreakerState,
    /// Nodes whose own breakers are not closed, by rising node.
    pub troubled: Vec<TroubledNode>,
    /// Moves that may be under way.
    pub window: u32,
    pub in_flight: u64,
    /// Moves that ended, and are not yet confirmed by both ends.
    pub unconfirmed: u64,
    /// Moves that are planned and did not start.
    pub queued: u64,
    /// Targets that are left alone for a while, or were a short time ago.
    pub back_offs: u64,
    pub ordered: BTreeMap<Tier, u64>,
    /// Orders that ended with the target leading, by tier.
    pub moved: BTreeMap<Tier, u64>,
    /// Orders that did not, by tier and name of the reason.
    pub failed: BTreeMap<Tier, BTreeMap<String, u64>>,
    /// Answers to orders that had been given up.
    pub late_answers: u64,
    /// Different moves that were planned while nothing was to be carried out.
    pub would_move: u64,
    /// The longest that a moved group took no writes, in milliseconds.
    pub longest_stall_ms: u64,
    pub rounds: u64,
    /// When the last round was, in milliseconds of the planner's clock.
    pub last_round_ms: Option<u64>,
    /// The last plan in numbers. `None`: the last round had none.
    pub plan: Option<PlanStatus>,
}

/// A node that fails so often that it is spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubledNode {
    #[serde(with = "ids::node")]
    pub node: NodeId,
    /// As which end of a move.
    pub end: End,
    pub state: BreakerState,
}

/// A plan in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    pub moves: u64,
    /// Moves that wait for a later one.
    pub deferred: u64,
    /// Groups that should leave their node and cannot.
    pub stuck: u64,
    /// Scores, leaders per node, and what an operator should look at.
    pub summary: Summary,
}

impl Executor {
    /// What it is at, at this time of the planner's clock.
    #[must_use]
    pub fn status(&self, now_ms: u64) -> ExecutorStatus {
        let now = self.now_ms.max(now_ms);
        let running = self.ledger.running();
        let last = self.last.as_ref();
        let counts = &self.counts;
        ExecutorStatus {
            planner_term: self.planner_term,
            began_ms: self.warm_up.began_ms,
            mode: self.mode,
            stopped: self.stopped.clone(),
            hold: self.hold(now),
            breaker: self.pace.all.breaker.state(now),
            troubled: self.troubled(now),
            window: self.pace.all.window.size(),
            in_flight: running as u64,
            unconfirmed: (self.ledger.len() - running) as u64,
            queued: self.queue.len() as u64,
            back_offs: self.back_offs.len() as u64,
            ordered: counts.ordered.clone(),
            moved: counts.moved.clone(),
            failed: counts.failed_by_name(),
            late_answers: counts.late_answers,
            would_move: counts.would_move,
            longest_stall_ms: counts.longest_stall_ms,
            rounds: counts.rounds,
            last_round_ms: last.map(|last| last.at_ms),
            plan: last.and_then(|last| last.made.as_ref().ok()).map(|made| PlanStatus {
                moves: made.plan.moves.len() as u64,
                deferred: made.plan.deferred.len() as u64,
                stuck: made.plan.stuck.len() as u64,
                summary: made.plan.summary.clone(),
            }),
        }
    }

    pub(super) fn troubled(&self, now_ms: u64) -> Vec<TroubledNode> {
        let troubled = self.pace.troubled(now_ms).into_iter();
        troubled.map(|(node, end, state)| TroubledNode { node, end, state }).collect()
    }
}

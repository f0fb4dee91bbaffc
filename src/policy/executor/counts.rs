//! Outcomes of all orders since the executor began. Counts only.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_groups::RejectReason;
use shardhost_storage::{GroupId, NodeId};

use crate::planner::{Plan, Tier};

/// Numbers since the executor began.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) ordered: BTreeMap<Tier, u64>,
    pub(super) moved: BTreeMap<Tier, u64>,
    pub(super) failed: BTreeMap<Tier, BTreeMap<RejectReason, u64>>,
    /// Answers to orders that were given up already.
    pub(super) late_answers: u64,
    pub(super) longest_stall_ms: u64,
    pub(super) rounds: u64,
    pub(super) would_move: u64,
    /// What the last round would have moved.
    would: BTreeSet<(GroupId, NodeId)>,
}

impl Counts {
    pub(super) fn ordered(&mut self, tier: Tier) {
        *self.ordered.entry(tier).or_default() += 1;
    }

    pub(super) fn moved(&mut self, tier: Tier, stalled_ms: u64) {
        *self.moved.entry(tier).or_default() += 1;
        self.longest_stall_ms = self.longest_stall_ms.max(stalled_ms);
    }

    pub(super) fn failed(&mut self, tier: Tier, reason: RejectReason) {
        *self.failed.entry(tier).or_default().entry(reason).or_default() += 1;
    }

    /// Failures, as they are reported.
    pub(super) fn failed_by_name(&self) -> BTreeMap<Tier, BTreeMap<String, u64>> {
        let named = |counts: &BTreeMap<RejectReason, u64>| {
            counts.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect()
        };
        self.failed.iter().map(|(tier, counts)| (*tier, named(counts))).collect()
    }

    /// A plan that is not carried out. What one after the other plans alike is counted once.
    pub(super) fn would(&mut self, plan: Option<&Plan>) {
        let moves = plan.into_iter().flat_map(|plan| &plan.moves);
        let would: BTreeSet<_> = moves.map(|step| (step.group, step.to)).collect();
        self.would_move += would.difference(&self.would).count() as u64;
        self.would = would;
    }
}

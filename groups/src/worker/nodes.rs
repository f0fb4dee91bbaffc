//! What all groups of a worker learn at once: which nodes answer, and a doubt about the log.

use std::sync::Arc;

use shardhost_storage::{Doubt, GroupId, NodeId};

use super::WorkerCore;
use super::wakes::NodeChange;
use crate::core::GroupCore;
use crate::nodes::LiveNodes;
use crate::spread::spread;

/// Whether a replica that is awake must learn of a change, too.
fn concerns_awake(core: &GroupCore, change: NodeChange) -> bool {
    matches!(change, NodeChange::Live(node) if core.counts_on_learner_of(node))
}

impl WorkerCore {
    pub(super) fn raise_doubt(&mut self, group: Option<GroupId>, doubt: Doubt) {
        let all = || self.groups.keys().copied().collect();
        let groups: Vec<GroupId> = group.map_or_else(all, |group| vec![group]);
        for group in groups {
            self.with(group, |core, effects| core.raise_doubt(doubt, effects));
        }
    }

    pub(super) fn node_live(&mut self, node: NodeId, incarnation: u64) {
        if self.change_nodes(|nodes| nodes.insert(node, incarnation)) {
            self.count_learners_anew(node);
            self.queue_wakes(NodeChange::Live(node));
        }
    }

    /// From here on the node counts as one that answers, so earlier reports of its learners must
    /// not count: the groups learn of the node in portions, and a learner may be about to get a
    /// vote.
    pub(super) fn count_learners_anew(&mut self, node: NodeId) {
        let counting = self.groups.iter().filter(|(_, slot)| slot.core.counts_on_learner_of(node));
        let groups: Vec<GroupId> = counting.map(|(group, _)| *group).collect();
        for group in groups {
            self.with(group, |core, _| core.count_anew(node));
        }
    }

    pub(super) fn node_lost(&mut self, node: NodeId) {
        if self.change_nodes(|nodes| nodes.remove(node)) {
            self.queue_wakes(NodeChange::Lost(node));
        }
    }

    /// Changes the knowledge of nodes, for the present step on; returns whether it was news.
    pub(super) fn change_nodes(&mut self, change: impl FnOnce(&mut LiveNodes) -> bool) -> bool {
        let news = change(Arc::make_mut(&mut self.live));
        self.effects.nodes = Arc::clone(&self.live);
        self.effects.facts = self.live.revision() + self.policies.revision();
        news
    }

    /// Leaders that hibernate have their replicas compared.
    pub(super) fn check_hibernating(&mut self, part: u64, of: u64) {
        let groups = self.groups.iter();
        let due: Vec<GroupId> = groups
            .filter(|(group, slot)| {
                spread(**group) % of.max(1) == part && slot.core.is_hibernating()
            })
            .map(|(group, _)| *group)
            .collect();
        for group in due {
            self.with(group, |core, effects| core.check_hibernating(effects));
        }
    }

    /// Hibernating groups learn of a change in portions: woken all at once they would starve those
    /// that work.
    pub(super) fn queue_wakes(&mut self, change: NodeChange) {
        let mut hibernating: Vec<GroupId> = self
            .groups
            .iter()
            .filter(|(_, slot)| slot.core.is_hibernating() || concerns_awake(&slot.core, change))
            .map(|(group, _)| *group)
            .collect();
        hibernating.sort_unstable();
        hibernating.into_iter().for_each(|group| self.to_wake.push(group, change));
    }
}

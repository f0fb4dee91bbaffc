//! Groups that are to look at what changed about nodes, in portions.
//!
//! A node may come and go faster than its groups are woken. So a group stands here once, with each
//! change once, however often it happened: what waits is bounded by the groups and the nodes.

use std::collections::{HashMap, VecDeque};

use shardhost_storage::{GroupId, NodeId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeChange {
    Live(NodeId),
    Lost(NodeId),
    /// What is known of nodes, or of policies, changed.
    Facts,
}

/// The groups that wait, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    order: VecDeque<GroupId>,
    /// Of every group in `order`; empty: it ended.
    changes: HashMap<GroupId, Vec<NodeChange>>,
}

impl Wakes {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The group is to be notified of a change. An earlier notice moves to the new place.
    pub(super) fn push(&mut self, group: GroupId, change: NodeChange) {
        let changes = self.changes.entry(group).or_insert_with(|| {
            self.order.push_back(group);
            Vec::new()
        });
        changes.retain(|known| *known != change);
        changes.push(change);
    }

    /// The next group, and its notice.
    pub(super) fn pop(&mut self) -> Option<(GroupId, Vec<NodeChange>)> {
        let group = self.order.pop_front()?;
        let changes = self.changes.remove(&group).unwrap_or_default();
        if self.order.is_empty() {
            *self = Self::default();
        }
        Some((group, changes))
    }

    /// The replica ended: the next one of its group is not woken for it.
    pub(super) fn forget(&mut self, group: GroupId) {
        if let Some(changes) = self.changes.get_mut(&group) {
            changes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use NodeChange::{Facts, Live, Lost};

    const ONE: GroupId = GroupId::new(1);
    const TWO: GroupId = GroupId::new(2);

    #[test]
    fn what_waits_is_bounded_however_often_a_node_comes_and_goes() {
        let node = NodeId::must(3);
        let mut wakes = Wakes::default();
        for _ in 0..1_000 {
            for group in [ONE, TWO] {
                wakes.push(group, Live(node));
                wakes.push(group, Facts);
                wakes.push(group, Lost(node));
            }
        }
        assert_eq!(wakes.order.len(), 2);
        // The last is notified last.
        assert_eq!(wakes.pop(), Some((ONE, vec![Live(node), Facts, Lost(node)])));
        assert_eq!(wakes.pop(), Some((TWO, vec![Live(node), Facts, Lost(node)])));
        assert_eq!(wakes.pop(), None);
    }

    #[test]
    fn a_replica_that_comes_later_is_not_told_what_its_predecessor_was_to_hear() {
        let mut wakes = Wakes::default();
        wakes.push(ONE, Facts);
        wakes.forget(ONE);
        assert_eq!(wakes.pop(), Some((ONE, vec![])));
        wakes.push(ONE, Facts);
        wakes.forget(ONE);
        wakes.push(ONE, Lost(NodeId::must(2)));
        assert_eq!(wakes.pop(), Some((ONE, vec![Lost(NodeId::must(2))])));
        assert!(wakes.is_empty());
    }
}

//! Moves of the last plan that have not started. A bundle is placed where its next move would
//! start, so that moves that wait for one node, or one tier, never block others.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use crate::planner::{Move, Tier};

/// What moves have in common that wait for the same things.
pub(super) type Lane = (NodeId, NodeId, Tier);

/// What of a bundle has not started; never empty. Steps start from the first to the last.
#[derive(Clone, Debug)]
pub(super) struct Bundle {
    /// Its place in the plan.
    pub(super) place: u32,
    pub(super) steps: Vec<Move>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    lanes: BTreeMap<Lane, BTreeMap<u32, Vec<Move>>>,
    /// The lane and the place of each group.
    of_group: BTreeMap<GroupId, (Lane, u32)>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.of_group.len()
    }

    pub(super) fn clear(&mut self) {
        self.lanes.clear();
        self.of_group.clear();
    }

    /// Replaces everything by the bundles of a plan, so many moves at most, bundles whole.
    pub(super) fn fill(&mut self, moves: &[Move], limit: usize) {
        self.clear();
        for bundle in moves.chunk_by(|one, other| one.bundle == other.bundle) {
            if self.len() + bundle.len() > limit {
                return;
            }
            self.push(bundle[0].bundle, bundle.to_vec());
        }
    }

    /// Adds the rest of a bundle.
    pub(super) fn push(&mut self, place: u32, steps: Vec<Move>) {
        let Some(first) = steps.first() else { return };
        let lane = (first.from, first.to, first.tier);
        for step in &steps {
            self.of_group.insert(step.group, (lane, place));
        }
        self.lanes.entry(lane).or_default().insert(place, steps);
    }

    /// The first bundle of each lane, by place in the plan.
    pub(super) fn heads(&self) -> BTreeSet<(u32, Lane)> {
        let head = |(lane, bundles): (&Lane, &BTreeMap<u32, Vec<Move>>)| {
            bundles.first_key_value().map(|(place, _)| (*place, *lane))
        };
        self.lanes.iter().filter_map(head).collect()
    }

    /// The place of the first bundle of a lane.
    pub(super) fn head(&self, lane: Lane) -> Option<u32> {
        self.lanes.get(&lane)?.first_key_value().map(|(place, _)| *place)
    }

    /// Takes the first bundle of a lane out.
    pub(super) fn pop(&mut self, lane: Lane) -> Option<Bundle> {
        let bundles = self.lanes.get_mut(&lane)?;
        let (place, steps) = bundles.pop_first()?;
        if bundles.is_empty() {
            self.lanes.remove(&lane);
        }
        for step in &steps {
            self.of_group.remove(&step.group);
        }
        Some(Bundle { place, steps })
    }

    /// The move of a group that waits, and its lane.
    pub(super) fn find(&self, group: GroupId) -> Option<(Lane, &Move)> {
        let (lane, place) = self.of_group.get(&group)?;
        let steps = self.lanes.get(lane)?.get(place)?;
        steps.iter().find(|step| step.group == group).map(|step| (*lane, step))
    }
}

//! Targets that a group failed to reach: left alone for a time that grows with each failure, until
//! there is something new. Others never wait for them.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::settings::BackOffSettings;
use crate::planner::{BackOff, Group, Requirement, Snapshot};

/// What could be the cause of a failure. When it is different, the target is asked again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannerInputs {
    target_incarnation: Option<u64>,
    target_capabilities: Option<BTreeSet<String>>,
    leader: Option<(NodeId, Option<u64>)>,
    voters: Vec<NodeId>,
    requirement: Requirement,
}

impl PlannerInputs {
    fn of(snapshot: &Snapshot, group: &Group, target: NodeId) -> Self {
        let node = |id: NodeId| {
            let at = snapshot.nodes.binary_search_by_key(&id, |node| node.id).ok();
            at.map(|at| &snapshot.nodes[at])
        };
        let known = node(target);
        let life = |leader| (leader, node(leader).map(|node| node.incarnation));
        Self {
            target_incarnation: known.map(|node| node.incarnation),
            target_capabilities: known.and_then(|node| node.capabilities.clone()),
            leader: group.leader.map(life),
            voters: group.voters.iter().map(|voter| voter.node).collect(),
            requirement: group.requirement.clone(),
        }
    }

    /// Another leader alone is nothing new: a transfer that fails may itself cause an election. The
    /// same leader in another life is.
    fn still_hold(&self, then: &Self) -> bool {
        let other_life = |(now, then): ((NodeId, Option<u64>), (NodeId, Option<u64>))| {
            now.0 == then.0 && now.1 != then.1
        };
        let same_life = !self.leader.zip(then.leader).is_some_and(other_life);
        same_life && *self == Self { leader: self.leader, ..then.clone() }
    }
}

#[derive(Clone, Debug)]
struct Running {
    until_ms: u64,
    lasts_ms: u64,
    /// Of the last round before the failure; `None`: the group was in no round.
    planner_inputs: Option<PlannerInputs>,
}

type Key = (GroupId, NodeId);

#[derive(Clone, Debug)]
pub(super) struct BackOffs {
    backoff: BackOffSettings,
    limit: usize,
    backed_off: BTreeMap<Key, Running>,
    /// The same by end, to forget the one that ends first.
    by_end: BTreeSet<(u64, Key)>,
}

impl BackOffs {
    pub(super) const fn new(backoff: BackOffSettings, limit: usize) -> Self {
        Self { backoff, limit, backed_off: BTreeMap::new(), by_end: BTreeSet::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.backed_off.len()
    }

    /// A group failed to reach a target.
    pub(super) fn add(&mut self, key: Key, last: Option<&Snapshot>, now_ms: u64) {
        let lasts_ms = self.backoff.after(self.remove(key).unwrap_or(0));
        let until_ms = now_ms.saturating_add(lasts_ms);
        let planner_inputs = last.and_then(|snapshot| {
            let at = snapshot.groups.binary_search_by_key(&key.0, |group| group.id).ok()?;
            Some(PlannerInputs::of(snapshot, &snapshot.groups[at], key.1))
        });
        if self.backed_off.len() >= self.limit
            && let Some((_, first)) = self.by_end.first().copied()
        {
            self.remove(first);
        }
        if self.limit > 0 {
            self.backed_off.insert(key, Running { until_ms, lasts_ms, planner_inputs });
            self.by_end.insert((until_ms, key));
        }
    }

    /// A group reached a target. Returns how long that one was to be left alone.
    pub(super) fn remove(&mut self, key: Key) -> Option<u64> {
        let backed_off = self.backed_off.remove(&key)?;
        self.by_end.remove(&(backed_off.until_ms, key));
        Some(backed_off.lasts_ms)
    }

    /// Drops entries that have been over for as long as they lasted, and those with news about
    /// their target. The snapshot is in canonical order.
    pub(super) fn refresh(&mut self, snapshot: &Snapshot, now_ms: u64) {
        let over = |backed_off: &Running| {
            now_ms >= backed_off.until_ms.saturating_add(backed_off.lasts_ms)
        };
        let news = |key: &Key, backed_off: &Running| {
            let at = snapshot.groups.binary_search_by_key(&key.0, |group| group.id);
            match (at, &backed_off.planner_inputs) {
                (Ok(at), Some(then)) => {
                    !PlannerInputs::of(snapshot, &snapshot.groups[at], key.1).still_hold(then)
                }
                _ => false,
            }
        };
        let gone = self
            .backed_off
            .iter()
            .filter(|(key, backed_off)| over(backed_off) || news(key, backed_off));
        let gone: Vec<Key> = gone.map(|(key, _)| *key).collect();
        for key in gone {
            self.remove(key);
        }
    }

    /// Those that are in force, as the planner wants them.
    pub(super) fn in_force(&self, now_ms: u64) -> Vec<BackOff> {
        let back_offs =
            self.backed_off.iter().filter(|(_, backed_off)| backed_off.until_ms > now_ms);
        let back_off = |(&(group, target), backed_off): (&Key, &Running)| BackOff {
            group,
            target,
            until_ms: backed_off.until_ms,
        };
        back_offs.map(back_off).collect()
    }
}

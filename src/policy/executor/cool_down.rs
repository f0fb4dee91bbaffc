//! When groups moved, as far as this executor saw it. Reports forget with a leadership; this does
//! not.
//!
//! **Invariant:** in any period the planned moves of a group are at most one more than the rests
//! that fit into it, not counting moves for a violation or a drain. Two things can hide a move,
//! each only together with an election right after it, so that no leader reports it any more: an
//! earlier planner ordered it, or its order arrived after it had been given up.

use std::collections::BTreeMap;

use shardhost_storage::GroupId;

use crate::planner::Group;

#[derive(Clone, Debug)]
pub(super) struct CoolDown {
    moved_at_ms: BTreeMap<GroupId, u64>,
    limit: usize,
}

impl CoolDown {
    pub(super) const fn new(limit: usize) -> Self {
        Self { moved_at_ms: BTreeMap::new(), limit }
    }

    pub(super) fn note(&mut self, group: GroupId, at_ms: u64) {
        let known = self.moved_at_ms.entry(group).or_insert(at_ms);
        *known = at_ms.max(*known);
        if self.moved_at_ms.len() > self.limit
            && let Some((oldest, _)) = self.moved_at_ms.iter().min_by_key(|(_, at)| **at)
        {
            let oldest = *oldest;
            self.moved_at_ms.remove(&oldest);
        }
    }

    /// Takes over the reports, forgets moves that are longer ago than groups rest, and adds the
    /// rest to the groups of the snapshot.
    pub(super) fn exchange(&mut self, groups: &mut [Group], now_ms: u64, cool_down_ms: u64) {
        let rests = |at: u64| at.saturating_add(cool_down_ms) > now_ms;
        self.moved_at_ms.retain(|_, at| rests(*at));
        for group in groups {
            if let Some(at) = group.moved_at_ms.filter(|at| rests(*at)) {
                self.note(group.id, at);
            }
            group.moved_at_ms = group.moved_at_ms.max(self.moved_at_ms.get(&group.id).copied());
        }
    }
}

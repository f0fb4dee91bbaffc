//! Ordered moves, until reports show how they ended. For the planner these moves count as done, so
//! that no old report orders anything twice. Decides nothing.

use std::collections::BTreeMap;

use shardhost_storage::{GroupId, NodeId};

use super::order::Order;
use crate::planner::{Group, LedgerMove, Move};

/// A move that was ordered.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) order: Order,
    pub(super) since_ms: u64,
    /// When it ended, or when it can no longer take place. `None`: under way.
    completed_at_ms: Option<u64>,
    from_reported_ms: Option<u64>,
    to_reported_ms: Option<u64>,
    /// It ended without an answer.
    unanswered: bool,
    /// Place of its bundle in the plan, and what of the bundle follows it.
    pub(super) place: u32,
    pub(super) rest: Vec<Move>,
}

impl Entry {
    pub(super) const fn new(order: Order, since_ms: u64, place: u32, rest: Vec<Move>) -> Self {
        Self {
            order,
            since_ms,
            completed_at_ms: None,
            from_reported_ms: None,
            to_reported_ms: None,
            unanswered: false,
            place,
            rest,
        }
    }

    pub(super) const fn is_running(&self) -> bool {
        self.completed_at_ms.is_none()
    }

    fn as_move(&self) -> LedgerMove {
        LedgerMove {
            group: self.order.group,
            from: self.order.from,
            to: self.order.to,
            ticket: self.order.ticket.number,
            since_ms: self.since_ms,
            completed_at_ms: self.completed_at_ms,
            from_reported_ms: self.from_reported_ms,
            to_reported_ms: self.to_reported_ms,
        }
    }

    /// Whether the term that the order was good for is over.
    fn is_past(&self, group: Option<&Group>) -> bool {
        group.is_some_and(|group| group.term > self.order.term)
    }

    /// Whether reports, and no longer this entry, determine where the group is led: both ends
    /// reported after the end, or there is a leader in a later term. For moves that ended.
    fn is_settled(&self, group: Option<&Group>) -> bool {
        let led = group.is_some_and(|group| group.leader.is_some());
        self.as_move().is_confirmed() || (led && self.is_past(group))
    }
}

/// At most one move per group.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<GroupId, Entry>,
    /// Moves under way, by the number of their ticket, which is the order in which they began.
    running: BTreeMap<u64, GroupId>,
}

impl Ledger {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn get(&self, group: GroupId) -> Option<&Entry> {
        self.entries.get(&group)
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.running.insert(entry.order.ticket.number, entry.order.group);
        self.entries.insert(entry.order.group, entry);
    }

    /// Moves under way that began at this time or before.
    pub(super) fn begun_until(&self, since_ms: u64) -> Vec<Order> {
        let entries = self.running.values().filter_map(|group| self.entries.get(group));
        entries.take_while(|entry| entry.since_ms <= since_ms).map(|entry| entry.order).collect()
    }

    /// A move under way ended at this time. `None`: it is not under way.
    pub(super) fn complete(&mut self, number: u64, at_ms: u64) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&self.running.remove(&number)?)?;
        entry.completed_at_ms = Some(at_ms.max(entry.since_ms));
        Some(entry)
    }

    /// When a move under way began. `None`: it is not under way.
    pub(super) fn since(&self, number: u64) -> Option<u64> {
        self.entries.get(self.running.get(&number)?).map(|entry| entry.since_ms)
    }

    /// A move under way got no answer, and may take place until this time.
    pub(super) fn give_up(&mut self, number: u64, until_ms: u64) -> Option<Order> {
        let entry = self.complete(number, until_ms)?;
        entry.unanswered = true;
        Some(entry.order)
    }

    /// A move under way did not take place. `None`: it is not under way.
    pub(super) fn remove(&mut self, number: u64) -> Option<Entry> {
        self.entries.remove(&self.running.remove(&number)?)
    }

    /// The number of the move under way after which a group follows in its bundle.
    pub(super) fn precedes(&self, group: GroupId) -> Option<u64> {
        let entries = self
            .running
            .iter()
            .filter_map(|(number, id)| self.entries.get(id).map(|entry| (*number, &entry.rest)));
        let mut before = entries.filter(|(_, rest)| rest.iter().any(|step| step.group == group));
        before.next().map(|(number, _)| number)
    }

    /// Nothing of the bundles under way is to follow.
    pub(super) fn drop_rests(&mut self) {
        for group in self.running.values() {
            if let Some(entry) = self.entries.get_mut(group) {
                entry.rest.clear();
            }
        }
    }

    /// Takes over the reports, and drops entries that are settled, and those that no report
    /// confirmed for the maximum time after their end. Returns groups without an answer that may
    /// have moved, with the last time at which they may have. Groups are in ascending order.
    pub(super) fn settle(
        &mut self,
        groups: &[Group],
        reported_ms: &BTreeMap<NodeId, u64>,
        now_ms: u64,
        expiry_ms: u64,
    ) -> Vec<(GroupId, u64)> {
        let mut may_have_moved = Vec::new();
        self.entries.retain(|id, entry| {
            let newest = |known: Option<u64>, node| known.max(reported_ms.get(&node).copied());
            entry.from_reported_ms = newest(entry.from_reported_ms, entry.order.from);
            entry.to_reported_ms = newest(entry.to_reported_ms, entry.order.to);
            let at = groups.binary_search_by_key(id, |group| group.id).ok();
            let group = at.map(|at| &groups[at]);
            let Some(end) = entry.completed_at_ms else { return true };
            let expired = now_ms >= end.saturating_add(expiry_ms);
            if entry.unanswered && (expired || entry.is_past(group)) {
                may_have_moved.push((*id, end));
            }
            !expired && !entry.is_settled(group)
        });
        may_have_moved
    }

    pub(super) fn moves(&self) -> Vec<LedgerMove> {
        self.entries.values().map(Entry::as_move).collect()
    }
}

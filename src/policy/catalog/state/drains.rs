//! Drains: who wants which node to lead nothing, until when, and what happens then.
//!
//! There is at most one drain of a node. A command that changes it names it, so two operators who
//! drain the same node do not undo each other's work. The check of which node could lead without
//! this one counts every other drain as begun, so two operators who drain different nodes do not
//! strand a group.

use std::sync::Arc;

use shardhost_storage::{NodeId, RequirementMode};

use super::super::command::{NewDrain, Stranding};
use super::super::error::{MAX_NAMED_GROUPS, Refusal, StrandedCause, StrandedGroup, Subject};
use super::super::record::{
    DrainFallback, DrainIntent, DrainState, GroupRecord, GroupState, IntentId, NodeRecord, Record,
    RecordKey, Revision,
};
use super::super::reply::{Done, Reply};
use super::super::{MAX_DRAIN_MS, MAX_TIME_MS};
use super::Catalog;

impl Catalog {
    pub(super) fn begin_drain(&mut self, new: &NewDrain, now_ms: u64) -> Reply {
        let node = new.node;
        self.node(node)?;
        // A drain that was given up keeps no leader away, and makes room.
        let known = self.view.drains().get(&node);
        if let Some(known) = known.filter(|known| known.keeps_leaders_away()) {
            let owner = known.owner.as_ref().to_owned();
            return Err(Refusal::AlreadyDraining { node, intent: known.id, owner });
        }
        check_times(now_ms, new.deadline_ms, new.expires_ms)?;
        if new.stranding == Stranding::Refuse {
            self.check_stranded(node)?;
        }
        let intent = DrainIntent {
            node,
            revision: Revision::default(),
            id: IntentId::new(self.view.revision().next()),
            owner: new.owner.as_str().into(),
            state: DrainState::Draining,
            fallback: new.fallback,
            begun_ms: now_ms,
            deadline_ms: new.deadline_ms,
            expires_ms: new.expires_ms,
            clock_ms: now_ms,
        };
        self.store(Record::Drain(Arc::new(intent)))
    }

    pub(super) fn extend_drain(
        &mut self,
        node: NodeId,
        intent: IntentId,
        now_ms: u64,
        deadline_ms: u64,
        expires_ms: u64,
    ) -> Reply {
        let known = self.drain(node, intent)?;
        check_not_over(known)?;
        check_times(now_ms, deadline_ms, expires_ms)?;
        // The new times are of the clock of the one who extends it: so is what has passed. Programs of the
        // first version left the clock of the first command there while no time was passed.
        let untold = known.clock_ms == known.begun_ms && !self.extends_drains_by_their_clock();
        let clock_ms = if untold { known.clock_ms } else { now_ms };
        let intent = DrainIntent { deadline_ms, expires_ms, clock_ms, ..known.clone() };
        self.store(Record::Drain(Arc::new(intent)))
    }

    pub(super) fn finish_drain(&mut self, node: NodeId, intent: IntentId) -> Reply {
        let known = self.drain(node, intent)?;
        if known.state == DrainState::GivenUp {
            return Err(Refusal::DrainOver { node, state: known.state });
        }
        let intent = DrainIntent { state: DrainState::Drained, ..known.clone() };
        self.store(Record::Drain(Arc::new(intent)))
    }

    pub(super) fn end_drain(&mut self, node: NodeId, intent: IntentId) -> Reply {
        self.drain(node, intent)?;
        Ok(Done::changed(self.remove(RecordKey::Drain(node))))
    }

    /// It is so late, for every drain. At time 0 nothing is due.
    pub(super) fn tick(&mut self, now_ms: u64) -> Done {
        let before = self.view.revision();
        let drains: Vec<_> = self.view.drains().values().map(Arc::clone).collect();
        for drain in drains {
            self.end_if_due(&drain, now_ms);
        }
        match self.view.revision() {
            after if after == before => Done::unchanged(after),
            after => Done::changed(after),
        }
    }

    /// So much time has passed for a drain.
    pub(super) fn pass_time(&mut self, node: NodeId, intent: IntentId, passed_ms: u64) -> Reply {
        let known = self.drain(node, intent)?;
        if passed_ms == 0 {
            return Ok(Done::unchanged(known.revision));
        }
        let clock_ms = known.clock_ms.saturating_add(passed_ms).min(known.expires_ms);
        let drain = DrainIntent { clock_ms, ..known.clone() };
        if !self.end_if_due(&drain, clock_ms) {
            self.put(Record::Drain(Arc::new(drain)));
        }
        Ok(Done::changed(self.view.revision()))
    }

    /// Ends a drain, or applies its fallback, if that is due; returns whether it was.
    fn end_if_due(&mut self, drain: &DrainIntent, now_ms: u64) -> bool {
        if drain.expires_ms <= now_ms {
            self.remove(RecordKey::Drain(drain.node));
        } else if drain.state == DrainState::Draining && drain.deadline_ms <= now_ms {
            let state = match drain.fallback {
                DrainFallback::GiveUp => DrainState::GivenUp,
                DrainFallback::Proceed => DrainState::Partial,
            };
            self.put(Record::Drain(Arc::new(DrainIntent { state, ..drain.clone() })));
        } else {
            return false;
        }
        true
    }

    /// The drain of a node, if it is the one that is meant.
    fn drain(&self, node: NodeId, given: IntentId) -> Result<&DrainIntent, Refusal> {
        match self.view.drains().get(&node) {
            None => Err(Refusal::NotDraining { node, intent: given }),
            Some(known) if known.id != given => {
                let owner = known.owner.as_ref().to_owned();
                Err(Refusal::WrongIntent { node, given, actual: known.id, owner })
            }
            Some(known) => Ok(known),
        }
    }

    fn check_stranded(&self, node: NodeId) -> Result<(), Refusal> {
        let one = |group: &Arc<GroupRecord>| {
            let cause = self.stranded_by(group, node)?;
            Some(StrandedGroup { group: group.id, cause })
        };
        let stranded: Vec<_> = self.view.groups().values().filter_map(one).collect();
        if stranded.is_empty() {
            return Ok(());
        }
        let total = stranded.len();
        let groups = stranded.into_iter().take(MAX_NAMED_GROUPS).collect();
        Err(Refusal::Stranded { node, groups, total })
    }

    /// Why no node would be eligible to lead a group without this node. A group that this node
    /// cannot lead either is left out.
    fn stranded_by(&self, group: &GroupRecord, node: NodeId) -> Option<StrandedCause> {
        if group.state == GroupState::Destroying || !group.has_member(node) {
            return None;
        }
        let capable =
            |node: &NodeRecord| group.mode == RequirementMode::Soft || !lacks(node, group);
        let known = self.view.nodes().get(&node)?;
        if known.weight == 0 || !capable(known) {
            return None;
        }
        let others: Vec<&NodeRecord> = self.others(group, node).collect();
        StrandedCause::of(&others, |other| capable(other), |other| self.is_drained(other.id))
    }

    /// The other members that take leaders, when they are not drained.
    fn others<'a>(
        &'a self,
        group: &'a GroupRecord,
        node: NodeId,
    ) -> impl Iterator<Item = &'a NodeRecord> {
        let registered = group.members().iter().filter_map(|id| self.view.nodes().get(id));
        let others = registered.map(AsRef::as_ref);
        others.filter(move |other| other.id != node && other.weight > 0)
    }

    fn is_drained(&self, node: NodeId) -> bool {
        self.view.drains().get(&node).is_some_and(|drain| drain.keeps_leaders_away())
    }
}

/// Whether a node is known to lack a required capability. A node that did not report may have it.
fn lacks(node: &NodeRecord, group: &GroupRecord) -> bool {
    node.advertisement.as_ref().is_some_and(|advertisement| {
        group
            .capabilities
            .iter()
            .any(|name| advertisement.capabilities.binary_search(name).is_err())
    })
}

fn check_not_over(drain: &DrainIntent) -> Result<(), Refusal> {
    match drain.state {
        DrainState::Draining | DrainState::Drained => Ok(()),
        state => Err(Refusal::DrainOver { node: drain.node, state }),
    }
}

fn check_times(now_ms: u64, deadline_ms: u64, expires_ms: u64) -> Result<(), Refusal> {
    let last = now_ms.saturating_add(MAX_DRAIN_MS).min(MAX_TIME_MS);
    check_time(Subject::Expiry, expires_ms, now_ms + 1, last)?;
    check_time(Subject::Deadline, deadline_ms, now_ms + 1, expires_ms)
}

fn check_time(subject: Subject, given: u64, from: u64, to: u64) -> Result<(), Refusal> {
    if (from..=to).contains(&given) {
        return Ok(());
    }
    Err(Refusal::BadTime { subject, given, from, to })
}

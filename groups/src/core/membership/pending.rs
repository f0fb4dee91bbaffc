//! Changes that a leader proposed and that are not over, and who waits for one.

use shardhost_storage::NodeId;

use super::{MembershipCompletion, MembershipRequest};
use crate::core::lease::Round;

/// A change with a caller that waits. Forgotten with the leadership.
#[derive(Debug)]
pub(super) struct PendingChange {
    pub index: u64,
    pub since: u64,
    /// The node that is to get a vote, if the completion waits for that.
    pub awaits_vote: Option<NodeId>,
    pub completion: MembershipCompletion,
}

/// A change that is not proposed yet: members that it depends on were asked, and have to answer.
#[derive(Debug)]
pub(super) struct HeldChange {
    pub request: MembershipRequest,
    /// When they were.
    pub round: Round,
}

/// Changes in progress.
#[derive(Debug, Default)]
pub(in crate::core) struct Changes {
    waiting: Option<Box<PendingChange>>,
    held: Option<Box<HeldChange>>,
    /// Where a change of the requirement stands that this leader proposed; 0: there is none.
    requirement: u64,
}

impl Changes {
    pub(in crate::core) const fn has_completion(&self) -> bool {
        self.waiting.is_some()
    }

    pub(in crate::core) const fn has_held(&self) -> bool {
        self.held.is_some()
    }

    /// Holds a change. There is none before it.
    pub(super) fn hold(&mut self, held: HeldChange) {
        self.held = Some(Box::new(held));
    }

    pub(super) fn take_held(&mut self) -> Option<HeldChange> {
        self.held.take().map(|held| *held)
    }

    /// A caller waits for this change; gives the one that waited before.
    pub(super) fn wait(&mut self, pending: PendingChange) -> Option<PendingChange> {
        self.waiting.replace(Box::new(pending)).map(|earlier| *earlier)
    }

    /// The entry at `index` is applied: the caller whose change is over by it. A joint one is when
    /// the joint configuration is left, the addition of a voter when that has its vote.
    pub(super) fn take_over(
        &mut self,
        index: u64,
        joint: bool,
        incoming: bool,
    ) -> Option<PendingChange> {
        let over = |pending: &mut Box<PendingChange>| {
            let unfinished = joint || (incoming && pending.awaits_vote.is_some());
            index >= pending.index && !unfinished
        };
        self.waiting.take_if(over).map(|pending| *pending)
    }

    /// The caller whose change stands at `index`.
    pub(super) fn take_at(&mut self, index: u64) -> Option<Box<PendingChange>> {
        self.waiting.take_if(|pending| pending.index == index)
    }

    /// A caller that waited for so many ticks.
    pub(super) fn take_expired(&mut self, now: u64, limit: u64) -> Option<Box<PendingChange>> {
        self.waiting.take_if(|pending| now - pending.since >= limit)
    }

    /// The caller that waits.
    pub(super) const fn take(&mut self) -> Option<Box<PendingChange>> {
        self.waiting.take()
    }

    /// A change of the requirement stands here.
    pub(in crate::core) const fn require_at(&mut self, index: u64) {
        self.requirement = index;
    }

    /// The change of the requirement is applied, or the leadership that proposed it is over.
    pub(in crate::core) const fn forget_requirement(&mut self) {
        self.requirement = 0;
    }

    /// Where a change of the requirement stands; 0: there is none.
    pub(in crate::core) const fn requirement(&self) -> u64 {
        self.requirement
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn waiting(awaits_vote: Option<u64>) -> Changes {
        let (index, since) = (10, 100);
        let awaits_vote = awaits_vote.map(NodeId::must);
        let mut changes = Changes::default();
        let completion = crate::completion::answer().0;
        assert!(changes.wait(PendingChange { index, since, awaits_vote, completion }).is_none());
        changes
    }

    #[test]
    fn a_change_is_over_when_nothing_of_it_is_left_to_do() {
        for (index, joint, incoming, vote, over) in [
            (10, false, false, None, true),
            (9, false, false, None, false),
            (10, true, false, None, false),
            (11, false, false, None, true),
            (10, false, true, Some(4), false),
            (10, false, true, None, true),
            (12, false, false, Some(4), true),
        ] {
            let taken = waiting(vote).take_over(index, joint, incoming).is_some();
            assert_eq!(taken, over, "{index} {joint} {incoming} {vote:?}");
        }
    }

    #[test]
    fn a_caller_waits_for_so_long_and_for_its_own_entry() {
        let mut changes = waiting(None);
        assert!(changes.take_expired(149, 50).is_none() && changes.take_at(11).is_none());
        assert!(changes.has_completion());
        assert!(changes.take_expired(150, 50).is_some() && !changes.has_completion());
        assert!(waiting(None).take_at(10).is_some());
    }
}

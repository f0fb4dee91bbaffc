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
    /// The addition of a voter, which continues beside changes of the requirement, and until it is cancelled.
    adding: Option<Box<PendingChange>>,
    held: Option<Box<HeldChange>>,
    /// Where a change of the requirement stands that this leader proposed; 0: there is none.
    requirement: u64,
}

impl Changes {
    pub(in crate::core) const fn has_completion(&self) -> bool {
        self.waiting.is_some() || self.adding.is_some()
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

    /// A caller waits for this change; gives the one that waited before for another of its kind.
    pub(super) fn wait(&mut self, pending: PendingChange) -> Option<PendingChange> {
        let place = match pending.awaits_vote {
            Some(_) => &mut self.adding,
            None => &mut self.waiting,
        };
        place.replace(Box::new(pending)).map(|earlier| *earlier)
    }

    /// The entry at `index` is applied: the callers whose change is over by it. A joint one is when
    /// the joint configuration is left, the addition of a voter when that has its vote, or is given up.
    pub(super) fn take_over(
        &mut self,
        index: u64,
        joint: bool,
        incoming: bool,
    ) -> Vec<PendingChange> {
        self.take_where(|pending| {
            let unfinished = joint || (incoming && pending.awaits_vote.is_some());
            index >= pending.index && !unfinished
        })
    }

    /// The caller whose change stands at `index`.
    pub(super) fn take_at(&mut self, index: u64) -> Vec<PendingChange> {
        self.take_where(|pending| pending.index == index)
    }

    /// Callers that waited for so many ticks.
    pub(super) fn take_expired(&mut self, now: u64, limit: u64) -> Vec<PendingChange> {
        self.take_where(|pending| now - pending.since >= limit)
    }

    /// All callers that wait.
    pub(super) fn take_all(&mut self) -> Vec<PendingChange> {
        self.take_where(|_| true)
    }

    fn take_where(&mut self, is_wanted: impl Fn(&PendingChange) -> bool) -> Vec<PendingChange> {
        let places = [&mut self.adding, &mut self.waiting];
        let taken = places.map(|place| place.take_if(|pending| is_wanted(pending)));
        taken.into_iter().flatten().map(|pending| *pending).collect()
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
            let taken = waiting(vote).take_over(index, joint, incoming).len();
            assert_eq!(taken == 1, over, "{index} {joint} {incoming} {vote:?}");
        }
    }

    #[test]
    fn a_caller_waits_for_so_long_and_for_its_own_entry() {
        let mut changes = waiting(None);
        assert_eq!(changes.take_expired(149, 50).len() + changes.take_at(11).len(), 0);
        assert!(changes.has_completion());
        assert_eq!(changes.take_expired(150, 50).len(), 1);
        assert!(!changes.has_completion());
        assert_eq!(waiting(None).take_at(10).len(), 1);
    }

    fn indices(changes: Vec<PendingChange>) -> Vec<u64> {
        changes.into_iter().map(|change| change.index).collect()
    }

    #[test]
    fn an_addition_goes_on_beside_another_change() {
        let mut changes = waiting(Some(4));
        let (index, since, awaits_vote) = (12, 110, None);
        let completion = crate::completion::answer().0;
        assert!(changes.wait(PendingChange { index, since, awaits_vote, completion }).is_none());
        let over = indices(changes.take_over(12, false, true));
        assert_eq!((over, changes.has_completion()), (vec![12], true));
        let over = indices(changes.take_over(14, false, false));
        assert_eq!((over, changes.has_completion()), (vec![10], false));
    }
}

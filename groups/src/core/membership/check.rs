//! What a change of members would lead to: pure.

use shardhost_storage::{GroupId, Member, Membership, NodeId, ReplicaId};

use crate::core::lease::PeerState;
use crate::membership::{ConfigEntry, MembershipError, voters_after};

/// A change, and what the leader knows of those that it concerns.
pub(super) struct Consequences<'a, A, S> {
    pub group: GroupId,
    pub membership: &'a Membership,
    pub entry: &'a ConfigEntry,
    /// Whether a node answers, this one included.
    pub answers: A,
    /// Whether a replica is known to have the group's state.
    pub has_state: S,
}

impl<A: Fn(NodeId) -> bool, S: Fn(ReplicaId) -> bool> Consequences<'_, A, S> {
    /// A change must be committed by a quorum that answers.
    pub(super) fn check_quorum(&self) -> Result<(), MembershipError> {
        let voters = self.membership.voters().count();
        let answering = self.membership.voters().filter(|(_, node)| (self.answers)(*node));
        let (live, needed) = (answering.count(), voters / 2 + 1);
        match live >= needed {
            true => Ok(()),
            false => Err(MembershipError::NoQuorum { group: self.group, live, needed }),
        }
    }

    /// A change that leaves too few voters that answer could not be taken back: nothing is committed any
    /// more before one of the others is there again.
    pub(super) fn check_quorum_after(&self) -> Result<(), MembershipError> {
        if self.entry.changes.is_empty() {
            return Ok(());
        }
        let voters = voters_after(self.membership, self.entry);
        let node_of = |id: &ReplicaId| {
            let known = self.membership.node_of(*id);
            known.or_else(|| self.entry.placements.get(id).copied())
        };
        let answers = |id: &&ReplicaId| node_of(id).is_some_and(&self.answers);
        let (live, needed) = (voters.iter().filter(answers).count(), voters.len() / 2 + 1);
        match live >= needed {
            true => Ok(()),
            false => Err(MembershipError::NoQuorumAfter { group: self.group, live, needed }),
        }
    }

    /// A leader that leaves destroys its state. If all others are without, or do not answer, no replica
    /// would have it, and that could not be taken back.
    pub(super) fn check_state_after(&self, leader: ReplicaId) -> Result<(), MembershipError> {
        let voters = voters_after(self.membership, self.entry);
        if self.entry.changes.is_empty() || voters.contains(&leader) {
            return Ok(());
        }
        let keeps = |id: &ReplicaId| {
            let node = self.membership.node_of(*id);
            node.is_some_and(&self.answers) && (self.has_state)(*id)
        };
        match voters.iter().any(keeps) {
            true => Ok(()),
            false => Err(MembershipError::NoStateAfter { group: self.group }),
        }
    }
}

/// Whether the last state may go when the joint configuration is left: no member that stays and answers
/// is known to have one, and one that goes may.
pub(super) fn may_lose_last_state(
    membership: &Membership,
    state_of: impl Fn(ReplicaId) -> PeerState,
    answers: impl Fn(NodeId) -> bool,
) -> bool {
    let goes = |member: &Member| member.outgoing_voter && !member.voter && !member.learner;
    let has_one = |(id, member): (&ReplicaId, &Member)| {
        !goes(member) && answers(member.node) && state_of(*id) == PeerState::There
    };
    let may_have_one =
        |(id, member): (&ReplicaId, &Member)| goes(member) && state_of(*id) != PeerState::Lost;
    !membership.members.iter().any(has_one) && membership.members.iter().any(may_have_one)
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::config_change::Kind;

    use super::*;

    /// Five voters of which these nodes answer, and a change that removes these replicas.
    fn check<T>(
        live: &[u64],
        removed: &[u64],
        look: impl FnOnce(&Consequences<'_, &dyn Fn(NodeId) -> bool, &dyn Fn(ReplicaId) -> bool>) -> T,
    ) -> T {
        let membership = Membership::initial((1..=5).map(NodeId::must));
        let mut entry = ConfigEntry::default();
        let removals = removed.iter().map(|id| (Kind::Remove, ReplicaId::must(*id)));
        entry.changes.extend(removals);
        let answers: &dyn Fn(NodeId) -> bool = &|node| live.contains(&node.get());
        // Replica 3 lost its state.
        let has_state: &dyn Fn(ReplicaId) -> bool = &|id| id.get() != 3;
        let (group, membership, entry) = (GroupId::new(1), &membership, &entry);
        look(&Consequences { group, membership, entry, answers, has_state })
    }

    #[test]
    fn a_quorum_must_answer_before_the_change() {
        for (live, able) in [(vec![1, 2, 3], true), (vec![1, 2], false)] {
            assert_eq!(check(&live, &[5], |one| one.check_quorum().is_ok()), able, "{live:?}");
        }
    }

    #[test]
    fn a_quorum_must_answer_after_it() {
        let cases = [
            (vec![1, 2, 3], vec![3], false),
            (vec![1, 2, 3], vec![5], true),
            (vec![1, 2, 3], vec![], true),
            (vec![1, 2, 3, 4], vec![4], true),
            (vec![1, 2], vec![], true),
        ];
        for (live, removed, able) in cases {
            let after = check(&live, &removed, |one| one.check_quorum_after().is_ok());
            assert_eq!(after, able, "{live:?} without {removed:?}");
        }
    }

    #[test]
    fn a_leader_that_leaves_leaves_its_state_to_one_that_answers() {
        let leader = ReplicaId::must(1);
        let cases = [
            (vec![1, 2, 3], vec![1], true),
            (vec![1, 3], vec![1], false),
            (vec![1, 3], vec![2], true),
            (vec![1, 3, 4], vec![1, 4], false),
        ];
        for (live, removed, able) in cases {
            let after = check(&live, &removed, |one| one.check_state_after(leader).is_ok());
            assert_eq!(after, able, "{live:?} without {removed:?}");
        }
    }

    #[test]
    fn the_last_state_does_not_go_with_a_joint_configuration() {
        use PeerState::{Lost, There, Unknown};
        // Replica 1 leads without a state, 2 stays, 3 goes.
        let mut membership = Membership::initial((1..=3).map(NodeId::must));
        membership.members.values_mut().for_each(|member| member.outgoing_voter = true);
        membership.members.get_mut(&ReplicaId::must(3)).map(|member| member.voter = false).unwrap();
        let cases = [
            (Lost, There, true, true),
            (Lost, Unknown, true, true),
            (Lost, Lost, true, false),
            (There, There, true, false),
            (There, There, false, true),
            (Unknown, Lost, true, false),
        ];
        for (stays, goes, answers, waits) in cases {
            let state_of = |id: ReplicaId| [Lost, stays, goes][id.get() as usize - 1];
            let found = may_lose_last_state(&membership, state_of, |_| answers);
            assert_eq!(found, waits, "{stays:?} stays, {goes:?} goes, {answers}");
        }
        let learner = membership.members.get_mut(&ReplicaId::must(3));
        learner.map(|member| member.learner = true).unwrap();
        assert!(!may_lose_last_state(&membership, |_| Unknown, |_| true), "it becomes a learner");
    }
}

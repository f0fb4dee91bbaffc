//! What a change of members would lead to: pure.

use shardhost_storage::{GroupId, Member, Membership, NodeId, ReplicaId};

use crate::core::lease::{PeerState, Presence};
use crate::membership::{ConfigEntry, MembershipError, voters_after};

/// Why a change is not proposed now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hindrance {
    Refused(MembershipError),
    /// It depends on replicas that had no time to answer yet.
    Unheard,
}

impl From<MembershipError> for Hindrance {
    fn from(error: MembershipError) -> Self {
        Self::Refused(error)
    }
}

/// A change, and what the leader knows of those that it concerns.
pub(super) struct Consequences<'a, P, S> {
    pub group: GroupId,
    pub membership: &'a Membership,
    pub entry: &'a ConfigEntry,
    /// Whether a replica on a node takes part, this one included.
    pub presence: P,
    /// Whether a replica is known to have the group's state.
    pub has_state: S,
}

impl<P, S> Consequences<'_, P, S>
where
    P: Fn(ReplicaId, NodeId) -> Presence,
    S: Fn(ReplicaId) -> bool,
{
    /// A change must be committed by a quorum that takes part.
    pub(super) fn check_quorum(&self) -> Result<(), Hindrance> {
        let voters = self.membership.voters().map(|(id, node)| (id, Some(node)));
        self.check(voters, |live, needed| MembershipError::NoQuorum {
            group: self.group,
            live,
            needed,
        })
    }

    /// A change that leaves too few voters that take part could not be taken back: nothing is committed any
    /// more before one of the others is there again.
    pub(super) fn check_quorum_after(&self) -> Result<(), Hindrance> {
        if self.entry.changes.is_empty() {
            return Ok(());
        }
        let node_of = |id: ReplicaId| {
            let known = self.membership.node_of(id);
            known.or_else(|| self.entry.placements.get(&id).copied())
        };
        let voters = voters_after(self.membership, self.entry).into_iter();
        self.check(voters.map(|id| (id, node_of(id))), |live, needed| {
            MembershipError::NoQuorumAfter { group: self.group, live, needed }
        })
    }

    /// Whether a majority of voters takes part. As long as those that had no time to answer decide it, that
    /// is not known.
    fn check(
        &self,
        voters: impl Iterator<Item = (ReplicaId, Option<NodeId>)>,
        too_few: impl FnOnce(usize, usize) -> MembershipError,
    ) -> Result<(), Hindrance> {
        let (mut all, mut answering, mut unknown) = (0, 0, 0);
        for (id, node) in voters {
            all += 1;
            match node.map_or(Presence::Silent, |node| (self.presence)(id, node)) {
                Presence::Answers => answering += 1,
                Presence::Unknown => unknown += 1,
                Presence::Silent => {}
            }
        }
        let needed = all / 2 + 1;
        match (answering >= needed, answering + unknown >= needed) {
            (true, _) => Ok(()),
            (false, true) => Err(Hindrance::Unheard),
            (false, false) => Err(too_few(answering, needed).into()),
        }
    }

    /// A leader that leaves destroys its state. If all others are without, or take no part, no replica
    /// would have it, and that could not be taken back.
    pub(super) fn check_state_after(&self, leader: ReplicaId) -> Result<(), Hindrance> {
        let voters = voters_after(self.membership, self.entry);
        if self.entry.changes.is_empty() || voters.contains(&leader) {
            return Ok(());
        }
        let presence = |id: &ReplicaId| {
            let node = self.membership.node_of(*id);
            node.map_or(Presence::Silent, |node| (self.presence)(*id, node))
        };
        let keeps = |id: &ReplicaId| presence(id) == Presence::Answers && (self.has_state)(*id);
        if voters.iter().any(keeps) {
            return Ok(());
        }
        match voters.iter().any(|id| presence(id) == Presence::Unknown) {
            true => Err(Hindrance::Unheard),
            false => Err(MembershipError::NoStateAfter { group: self.group }.into()),
        }
    }
}

/// Whether the last state may go when the joint configuration is left: no member that stays and answers
/// is known to have one, and one that goes may.
pub(super) fn may_lose_last_state(
    membership: &Membership,
    state_of: impl Fn(ReplicaId) -> PeerState,
    answers: impl Fn(ReplicaId, NodeId) -> bool,
) -> bool {
    let goes = |member: &Member| member.outgoing_voter && !member.voter && !member.learner;
    let has_one = |(id, member): (&ReplicaId, &Member)| {
        !goes(member) && answers(*id, member.node) && state_of(*id) == PeerState::There
    };
    let may_have_one =
        |(id, member): (&ReplicaId, &Member)| goes(member) && state_of(*id) != PeerState::Lost;
    !membership.members.iter().any(has_one) && membership.members.iter().any(may_have_one)
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::config_change::Kind;

    use super::*;

    type Look<'a> =
        Consequences<'a, &'a dyn Fn(ReplicaId, NodeId) -> Presence, &'a dyn Fn(ReplicaId) -> bool>;

    /// Five voters of which these nodes answer, and a change that removes these replicas.
    fn check<T>(live: &[u64], removed: &[u64], look: impl FnOnce(&Look<'_>) -> T) -> T {
        let membership = Membership::initial((1..=5).map(NodeId::must));
        let mut entry = ConfigEntry::default();
        let removals = removed.iter().map(|id| (Kind::Remove, ReplicaId::must(*id)));
        entry.changes.extend(removals);
        let presence: &dyn Fn(ReplicaId, NodeId) -> Presence =
            &|_, node| match live.contains(&node.get()) {
                true => Presence::Answers,
                false => Presence::Silent,
            };
        // Replica 3 lost its state.
        let has_state: &dyn Fn(ReplicaId) -> bool = &|id| id.get() != 3;
        let (group, membership, entry) = (GroupId::new(1), &membership, &entry);
        look(&Consequences { group, membership, entry, presence, has_state })
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
    fn what_depends_on_a_replica_that_had_no_time_to_answer_waits() {
        let membership = Membership::initial((1..=3).map(NodeId::must));
        let mut entry = ConfigEntry::default();
        entry.changes.push((Kind::Remove, ReplicaId::must(2)));
        let check = |third: Presence| {
            let presence = |id: ReplicaId, _| match id.get() {
                3 => third,
                _ => Presence::Answers,
            };
            let (group, has_state) = (GroupId::new(1), |_| true);
            let (membership, entry) = (&membership, &entry);
            Consequences { group, membership, entry, presence, has_state }.check_quorum_after()
        };
        assert_eq!(check(Presence::Answers), Ok(()));
        assert_eq!(check(Presence::Unknown), Err(Hindrance::Unheard));
        let (group, live, needed) = (GroupId::new(1), 1, 2);
        let too_few = MembershipError::NoQuorumAfter { group, live, needed };
        assert_eq!(check(Presence::Silent), Err(Hindrance::Refused(too_few)));
    }

    /// Four voters without the leader, of which three answer that they have no state.
    #[test]
    fn a_state_that_may_be_with_one_that_had_no_time_to_answer_is_waited_for() {
        let membership = Membership::initial((1..=5).map(NodeId::must));
        let mut entry = ConfigEntry::default();
        entry.changes.push((Kind::Remove, ReplicaId::must(1)));
        let check = |fifth: Presence| {
            let presence = |id: ReplicaId, _| match id.get() {
                5 => fifth,
                _ => Presence::Answers,
            };
            let has_state = |id: ReplicaId| id.get() == 5;
            let (group, membership, entry) = (GroupId::new(1), &membership, &entry);
            Consequences { group, membership, entry, presence, has_state }
                .check_state_after(ReplicaId::must(1))
        };
        assert_eq!(check(Presence::Answers), Ok(()));
        assert_eq!(check(Presence::Unknown), Err(Hindrance::Unheard));
        let none = MembershipError::NoStateAfter { group: GroupId::new(1) };
        assert_eq!(check(Presence::Silent), Err(Hindrance::Refused(none)));
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
            let found = may_lose_last_state(&membership, state_of, |_, _| answers);
            assert_eq!(found, waits, "{stays:?} stays, {goes:?} goes, {answers}");
        }
        let learner = membership.members.get_mut(&ReplicaId::must(3));
        learner.map(|member| member.learner = true).unwrap();
        assert!(
            !may_lose_last_state(&membership, |_| Unknown, |_, _| true),
            "it becomes a learner"
        );
    }
}

//! Whether a change can be made, and which entry makes it.

use std::collections::BTreeSet;

use shardhost_proto::log::config_change::Kind;
use shardhost_storage::{GroupId, Incoming, LogIndex, Member, Membership, NodeId, ReplicaId};

use super::{CaughtUp, ConfigEntry, MAX_STEPS, MembershipChange, MembershipError, Step};

/// What the leader knows of the replicas' logs.
pub(crate) struct Progress<'a> {
    /// The last index of the leader.
    pub last: LogIndex,
    /// What a replica is known to hold.
    pub matched: &'a dyn Fn(ReplicaId) -> LogIndex,
    /// Whether a replica said that it is without a state, whatever its log holds.
    pub lacks_state: &'a dyn Fn(ReplicaId) -> bool,
}

/// The entry that makes `change`, if it can be made.
pub(crate) fn plan(
    group: GroupId,
    membership: &Membership,
    change: &MembershipChange,
    progress: &Progress<'_>,
) -> Result<ConfigEntry, MembershipError> {
    check_expected(group, membership, change.expecting)?;
    check_steps(group, change)?;
    let (alone, entry) = (change.steps.len() == 1, ConfigEntry::default());
    let mut planner = Planner { group, membership, progress, alone, entry };
    for step in &change.steps {
        planner.add(*step)?;
    }
    if voters_after(membership, &planner.entry).is_empty() {
        return Err(MembershipError::LastVoter { group });
    }
    Ok(planner.entry)
}

/// The first entry of an addition, or of the replacement of the member on `old`: a learner on
/// `new`, and the record of what it is for. When `new` holds a learner already, that one is meant,
/// and the entry only records it.
pub(crate) fn plan_addition(
    group: GroupId,
    membership: &Membership,
    old: Option<NodeId>,
    new: NodeId,
    expecting: Option<LogIndex>,
) -> Result<ConfigEntry, MembershipError> {
    check_expected(group, membership, expecting)?;
    let replica_on =
        |node| membership.replica_on(node).ok_or(MembershipError::NotMember { group, node });
    let replaces = old.map(replica_on).transpose()?;
    let mut entry = ConfigEntry::default();
    let replica = match member_on(membership, new) {
        None => next_replica(group, membership, &entry)?,
        Some((id, member)) if member.learner && replaces.is_some_and(|old| old != id) => id,
        Some(_) => return Err(MembershipError::AlreadyMember { group, node: new }),
    };
    entry.changes.push((Kind::AddLearner, replica));
    entry.placements.insert(replica, new);
    entry.incoming = Some(Incoming { replica, replaces });
    Ok(entry)
}

pub(crate) fn check_expected(
    group: GroupId,
    membership: &Membership,
    expecting: Option<LogIndex>,
) -> Result<(), MembershipError> {
    let actual = membership.config_index;
    match expecting {
        Some(expected) if expected != actual => {
            Err(MembershipError::WrongConfig { group, expected, actual })
        }
        _ => Ok(()),
    }
}

fn check_steps(group: GroupId, change: &MembershipChange) -> Result<(), MembershipError> {
    let impossible = |reason: String| Err(MembershipError::Impossible { group, reason });
    if change.steps.is_empty() {
        return impossible("it has no step".to_owned());
    }
    if change.steps.len() > MAX_STEPS {
        return impossible(format!("it has {} steps, {MAX_STEPS} are allowed", change.steps.len()));
    }
    let mut seen = BTreeSet::new();
    for step in &change.steps {
        let (Step::AddVoter(node)
        | Step::AddLearner(node)
        | Step::Promote(node, _)
        | Step::Demote(node)
        | Step::Remove(node)) = *step;
        if !seen.insert(node) {
            return impossible(format!("node {node} is named twice"));
        }
    }
    Ok(())
}

/// Who has a vote when the change is made.
pub(crate) fn voters_after(membership: &Membership, entry: &ConfigEntry) -> BTreeSet<ReplicaId> {
    let mut voters: BTreeSet<ReplicaId> = membership.voters().map(|(id, _)| id).collect();
    for (kind, id) in &entry.changes {
        match kind {
            Kind::AddVoter => voters.insert(*id),
            Kind::Remove | Kind::AddLearner => voters.remove(id),
        };
    }
    voters
}

fn member_on(membership: &Membership, node: NodeId) -> Option<(ReplicaId, Member)> {
    let id = membership.replica_on(node)?;
    Some((id, *membership.members.get(&id)?))
}

fn next_replica(
    group: GroupId,
    membership: &Membership,
    entry: &ConfigEntry,
) -> Result<ReplicaId, MembershipError> {
    let newest = entry.placements.keys().next_back().copied();
    let next = membership.next_replica().map(ReplicaId::get);
    let id = match newest {
        Some(newest) if Some(newest.get()) >= next => newest.get().checked_add(1),
        _ => next,
    };
    id.and_then(ReplicaId::new).ok_or_else(|| MembershipError::Impossible {
        group,
        reason: "all replica ids are used up".to_owned(),
    })
}

struct Planner<'a> {
    group: GroupId,
    membership: &'a Membership,
    progress: &'a Progress<'a>,
    /// The change has one step.
    alone: bool,
    entry: ConfigEntry,
}

impl Planner<'_> {
    fn add(&mut self, step: Step) -> Result<(), MembershipError> {
        let group = self.group;
        match step {
            Step::AddVoter(node) => match member_on(self.membership, node) {
                None => self.add_voter(node),
                Some((_, member)) if member.learner => {
                    Err(MembershipError::IsLearner { group, node })
                }
                Some(_) => Err(MembershipError::AlreadyMember { group, node }),
            },
            Step::AddLearner(node) => match member_on(self.membership, node) {
                None => self.place(Kind::AddLearner, node),
                Some((_, member)) if member.learner => {
                    Err(MembershipError::AlreadyMember { group, node })
                }
                Some(_) => Err(MembershipError::IsVoter { group, node }),
            },
            Step::Promote(node, when) => {
                let (id, member) = self.member(node)?;
                if !member.learner {
                    return Err(MembershipError::NotLearner { group, node });
                }
                self.check_caught_up(node, id, when)?;
                self.change(Kind::AddVoter, id, node)
            }
            Step::Demote(node) => {
                let (id, member) = self.member(node)?;
                if !member.voter {
                    return Err(MembershipError::NotVoter { group, node });
                }
                self.change(Kind::AddLearner, id, node)
            }
            Step::Remove(node) => {
                let (id, _) = self.member(node)?;
                self.entry.changes.push((Kind::Remove, id));
                Ok(())
            }
        }
    }

    fn add_voter(&mut self, node: NodeId) -> Result<(), MembershipError> {
        if self.alone {
            self.entry = plan_addition(self.group, self.membership, None, node, None)?;
            return Ok(());
        }
        let reason = format!(
            "node {node} is to get a voter together with other steps; add it as a learner first, \
             and promote it when it has caught up"
        );
        Err(MembershipError::Impossible { group: self.group, reason })
    }

    fn member(&self, node: NodeId) -> Result<(ReplicaId, Member), MembershipError> {
        let group = self.group;
        member_on(self.membership, node).ok_or(MembershipError::NotMember { group, node })
    }

    fn place(&mut self, kind: Kind, node: NodeId) -> Result<(), MembershipError> {
        let id = next_replica(self.group, self.membership, &self.entry)?;
        self.change(kind, id, node)
    }

    fn change(&mut self, kind: Kind, id: ReplicaId, node: NodeId) -> Result<(), MembershipError> {
        self.entry.changes.push((kind, id));
        self.entry.placements.insert(id, node);
        Ok(())
    }

    fn check_caught_up(
        &self,
        node: NodeId,
        id: ReplicaId,
        when: CaughtUp,
    ) -> Result<(), MembershipError> {
        let group = self.group;
        let needed = match when {
            CaughtUp::Unchecked => LogIndex::default(),
            CaughtUp::AtLeast(index) if index == LogIndex::default() => {
                return Err(MembershipError::NoMinimum { group });
            }
            CaughtUp::AtLeast(index) => index,
            CaughtUp::MaxLag(lag) => LogIndex::new(self.progress.last.get().saturating_sub(lag)),
        };
        // A voter must exist, for none is created, and take part: one of which nothing is heard holds nothing, however
        // short the log is.
        let needed = needed.max(LogIndex::new(1));
        let matched = (self.progress.matched)(id);
        if matched < needed {
            return Err(MembershipError::Behind { group, node, needed, matched });
        }
        match when != CaughtUp::Unchecked && (self.progress.lacks_state)(id) {
            true => Err(MembershipError::LacksState { group, node }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::new(7);

    fn node(id: u64) -> NodeId {
        NodeId::must(id)
    }

    /// Voters on nodes 1 to 3, a learner (replica 5) on node 5 that holds index 90 of 100.
    fn members() -> Membership {
        let mut members = Membership::initial([1, 2, 3].map(NodeId::must));
        members.config_index = LogIndex::new(40);
        members.members.insert(ReplicaId::must(5), Member::learner(node(5)));
        members
    }

    fn planned(change: &MembershipChange) -> Result<ConfigEntry, MembershipError> {
        planned_with(change, &[])
    }

    #[test]
    fn a_learner_of_which_nothing_is_heard_gets_no_vote_in_a_short_log_either() {
        let (members, group, learner) = (members(), GROUP, node(5));
        let nothing: &dyn Fn(ReplicaId) -> LogIndex = &|_| LogIndex::default();
        let lacks_state: &dyn Fn(ReplicaId) -> bool = &|_| false;
        let progress = Progress { last: LogIndex::new(4), matched: nothing, lacks_state };
        for when in [CaughtUp::MaxLag(1_024), CaughtUp::Unchecked] {
            let change = MembershipChange::new().promote(learner, when);
            let refused = plan(group, &members, &change, &progress).unwrap_err();
            assert!(matches!(refused, MembershipError::Behind { .. }), "{when:?}: {refused:?}");
        }
    }

    /// The replicas of `lost` are without their state.
    fn planned_with(
        change: &MembershipChange,
        lost: &[u64],
    ) -> Result<ConfigEntry, MembershipError> {
        let matched = |id: ReplicaId| LogIndex::new(if id.get() == 5 { 90 } else { 100 });
        let lacks_state = |id: ReplicaId| lost.contains(&id.get());
        let last = LogIndex::new(100);
        let progress = Progress { last, matched: &matched, lacks_state: &lacks_state };
        plan(GROUP, &members(), change, &progress)
    }

    fn change() -> MembershipChange {
        MembershipChange::new()
    }

    #[test]
    fn additions_get_replica_ids_that_were_never_used() {
        let entry = planned(&change().add_learner(node(8)).add_learner(node(9))).unwrap();
        let ids: Vec<u64> = entry.changes.iter().map(|(_, id)| id.get()).collect();
        assert_eq!(ids, [6, 7]);
        assert_eq!(entry.placements[&ReplicaId::must(7)], node(9));
        assert!(entry.is_joint());
    }

    #[test]
    fn one_step_is_not_joint() {
        for one in [
            change().remove(node(3)),
            change().demote(node(3)),
            change().promote(node(5), CaughtUp::MaxLag(10)),
            change().promote(node(5), CaughtUp::AtLeast(LogIndex::new(90))),
            change().promote(node(5), CaughtUp::Unchecked),
        ] {
            assert!(!planned(&one.expecting(LogIndex::new(40))).unwrap().is_joint());
        }
    }

    #[test]
    fn a_learner_without_its_state_gets_a_vote_only_unchecked() {
        let lacks = MembershipError::LacksState { group: GROUP, node: node(5) };
        for when in [CaughtUp::MaxLag(10), CaughtUp::AtLeast(LogIndex::new(90))] {
            assert_eq!(planned_with(&change().promote(node(5), when), &[5]), Err(lacks.clone()));
        }
        let unchecked = change().promote(node(5), CaughtUp::Unchecked);
        assert_eq!(planned_with(&unchecked, &[5]), planned(&unchecked));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let (group, at) = (GROUP, LogIndex::new);
        let behind = |needed| MembershipError::Behind {
            group,
            node: node(5),
            needed: at(needed),
            matched: at(90),
        };
        for (asked, error) in [
            (change().add_voter(node(1)), MembershipError::AlreadyMember { group, node: node(1) }),
            (change().add_voter(node(5)), MembershipError::IsLearner { group, node: node(5) }),
            (change().add_learner(node(2)), MembershipError::IsVoter { group, node: node(2) }),
            (
                change().add_learner(node(5)),
                MembershipError::AlreadyMember { group, node: node(5) },
            ),
            (change().remove(node(9)), MembershipError::NotMember { group, node: node(9) }),
            (change().demote(node(5)), MembershipError::NotVoter { group, node: node(5) }),
            (
                change().promote(node(2), CaughtUp::Unchecked),
                MembershipError::NotLearner { group, node: node(2) },
            ),
            (change().promote(node(5), CaughtUp::MaxLag(9)), behind(91)),
            (change().promote(node(5), CaughtUp::AtLeast(at(95))), behind(95)),
            (
                change().promote(node(5), CaughtUp::AtLeast(at(0))),
                MembershipError::NoMinimum { group },
            ),
            (
                change().remove(node(1)).remove(node(2)).remove(node(3)),
                MembershipError::LastVoter { group },
            ),
            (
                change().remove(node(1)).expecting(at(41)),
                MembershipError::WrongConfig { group, expected: at(41), actual: at(40) },
            ),
        ] {
            assert_eq!(planned(&asked), Err(error), "{asked:?}");
        }
        let together = change().add_voter(node(8)).remove(node(1));
        for asked in [change(), change().remove(node(1)).demote(node(1)), together] {
            let refused = planned(&asked);
            assert!(matches!(refused, Err(MembershipError::Impossible { .. })), "{refused:?}");
        }
    }

    #[test]
    fn additions_and_replacements_begin_with_a_learner() {
        let replica = ReplicaId::must(6);
        for (old, replaces) in [(None, None), (Some(node(1)), ReplicaId::new(1))] {
            let entry = plan_addition(GROUP, &members(), old, node(8), None).unwrap();
            assert_eq!(entry.changes, [(Kind::AddLearner, replica)]);
            assert_eq!(entry.incoming, Some(Incoming { replica, replaces }));
        }
        let voter = planned(&change().add_voter(node(8))).unwrap();
        assert_eq!(voter.incoming, Some(Incoming { replica, replaces: None }));
        let known = plan_addition(GROUP, &members(), Some(node(1)), node(5), None).unwrap();
        assert_eq!(known.changes, [(Kind::AddLearner, ReplicaId::must(5))]);
    }

    #[test]
    fn a_replacement_of_nobody_or_by_a_voter_is_refused() {
        let refused = |old, new| plan_addition(GROUP, &members(), Some(node(old)), node(new), None);
        let group = GROUP;
        assert_eq!(refused(8, 9), Err(MembershipError::NotMember { group, node: node(8) }));
        assert_eq!(refused(1, 2), Err(MembershipError::AlreadyMember { group, node: node(2) }));
        let stale = Some(LogIndex::new(1));
        let error = plan_addition(GROUP, &members(), Some(node(1)), node(8), stale);
        assert!(matches!(error, Err(MembershipError::WrongConfig { .. })));
    }
}

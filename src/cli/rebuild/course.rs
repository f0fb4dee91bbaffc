//! How far this command is with each group: between the removal of a replica and the addition of its
//! successor nothing is recorded anywhere but here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_proto::admin::GroupStatus;
use tokio::time::Instant;

use super::survey::{Old, learns, member_on, voters_of};

/// How much longer it is tried to add a replica whose predecessor may have been removed.
pub const GRACE: Duration = Duration::from_secs(30);

/// What comes next in one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Remove,
    Add,
    Wait,
    /// The new one has its place.
    Done,
}

impl Next {
    /// The leader's status of replica `old` on `node`.
    pub fn of(status: &GroupStatus, node: u64, old: u64) -> Self {
        let Some(membership) = &status.membership else { return Self::Wait };
        let busy = membership.incoming.is_some()
            || membership.members.iter().any(|member| member.outgoing_voter);
        match member_on(status, node) {
            _ if busy => Self::Wait,
            Some(member) if member.replica == old => Self::Remove,
            // Nothing is recorded that is still to be done with it.
            Some(_) => Self::Done,
            None => Self::Add,
        }
    }
}

/// The groups that may be, or come to be, without a replica on the node, and when no more is begun.
#[derive(Debug)]
pub struct Course {
    node: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The replica may have been removed, and the addition of its successor is not confirmed yet.
    between: BTreeMap<u64, Old>,
    /// Something was sent that was not refused: what became of it may not be known.
    begun: BTreeSet<u64>,
    /// Whether the replica had no vote when it was seen last: an operator may have promoted it since the
    /// survey.
    learned: BTreeMap<u64, bool>,
    /// This command is to end.
    interrupted: Option<Instant>,
}

impl Course {
    /// Nothing was begun.
    pub fn new(node: u64) -> Self {
        Self { node, state: Mutex::default() }
    }

    /// The command is to end; returns whether this is the first notice.
    pub fn interrupt(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let first = state.interrupted.is_none();
        state.interrupted.get_or_insert(now);
        first
    }

    /// Whether the command is to end.
    pub fn is_interrupted(&self) -> bool {
        self.state.lock().interrupted.is_some()
    }

    /// Whether the replica of a group that was tried until `deadline` is not removed any more.
    pub fn is_due(&self, deadline: Instant, now: Instant) -> bool {
        now > self.state.lock().last_beginning(deadline)
    }

    /// Whether a group that was tried until `deadline` is left as it is.
    pub fn is_over(&self, group: u64, deadline: Instant, now: Instant) -> bool {
        let state = self.state.lock();
        let grace = if state.between.contains_key(&group) { GRACE } else { Duration::ZERO };
        now > state.last_beginning(deadline) + grace
    }

    /// A removal, or an addition, is about to be sent. Whether that was so before.
    pub fn enter(&self, group: u64, old: Old) -> bool {
        let mut state = self.state.lock();
        state.begun.insert(group);
        state.between.insert(group, old).is_some()
    }

    /// The first removal was refused: the group is as it was.
    pub fn refused(&self, group: u64) {
        let mut state = self.state.lock();
        state.between.remove(&group);
        state.begun.remove(&group);
    }

    /// Whether something was sent that was not refused.
    pub fn has_begun(&self, group: u64) -> bool {
        self.state.lock().begun.contains(&group)
    }

    /// The group has its new replica.
    pub fn leave(&self, group: u64) {
        self.state.lock().between.remove(&group);
    }

    /// The replica with the role that it has, or had when it was seen last.
    pub fn as_it_is(&self, status: &GroupStatus, old: Old) -> Old {
        let mut state = self.state.lock();
        let member = member_on(status, self.node).filter(|member| member.replica == old.replica);
        if let Some(member) = member {
            state.learned.insert(status.group, learns(status, member));
        }
        let learns = state.learned.get(&status.group).copied().unwrap_or(old.learns);
        Old { learns, ..old }
    }

    /// Takes over a leader's status of a group, and returns the next step.
    ///
    /// A replica that this command did not remove is not added: another command moved it, or rebuilds
    /// it. Nor is one whose place another voter took meanwhile.
    pub fn next(&self, status: &GroupStatus, old: Old) -> Next {
        let next = match Next::of(status, self.node, old.replica) {
            Next::Add if !self.state.lock().between.contains_key(&status.group) => Next::Wait,
            Next::Add if !old.learns && voters_of(status) >= old.voters => {
                self.leave(status.group);
                Next::Done
            }
            next => next,
        };
        if member_on(status, self.node).is_some_and(|member| member.replica != old.replica) {
            self.leave(status.group);
        }
        next
    }

    /// What an operator does where a group is left between the two steps.
    pub fn addition(&self, group: u64) -> Option<String> {
        let old = self.state.lock().between.get(&group).copied()?;
        Some(old.addition(group, self.node))
    }
}

impl State {
    fn last_beginning(&self, deadline: Instant) -> Instant {
        self.interrupted.map_or(deadline, |at| at.min(deadline))
    }
}

#[cfg(test)]
mod tests {
    use shardhost_proto::log::{Incoming, Member, MemberRole, Membership};

    use super::*;

    const OLD: Old = Old { replica: 3, learns: false, voters: 3 };

    fn member(node: u64, replica: u64, role: MemberRole) -> Member {
        Member { node, replica, role: role.into(), ..Member::default() }
    }

    /// Node `n` has replica `n`.
    fn status(nodes: &[u64]) -> GroupStatus {
        let members = nodes.iter().map(|node| member(*node, *node, MemberRole::Voter)).collect();
        let membership = Some(Membership { members, ..Membership::default() });
        GroupStatus { group: 7, membership, ..GroupStatus::default() }
    }

    /// Its new replica catches up.
    fn incoming() -> GroupStatus {
        let mut now = status(&[1, 2, 3]);
        let membership = now.membership.as_mut().unwrap();
        membership.members[2] = member(3, 4, MemberRole::Learner);
        membership.incoming = Some(Incoming { replica: 4, replaces: 0 });
        now
    }

    #[test]
    fn a_replica_is_removed_then_added_then_waited_for() {
        assert_eq!(Next::of(&status(&[1, 2, 3]), 3, 3), Next::Remove);
        assert_eq!(Next::of(&status(&[1, 2]), 3, 3), Next::Add);
        let mut now = incoming();
        assert_eq!(Next::of(&now, 3, 3), Next::Wait);
        let membership = now.membership.as_mut().unwrap();
        membership.incoming = None;
        membership.members[2] = member(3, 4, MemberRole::Voter);
        assert_eq!(Next::of(&now, 3, 3), Next::Done);
    }

    /// The outcome of the removal is unknown at the deadline, and it is committed later.
    #[tokio::test(start_paused = true)]
    async fn a_group_whose_replica_may_be_gone_is_not_left_before_the_new_one_is_taken() {
        let deadline = Instant::now();
        let (course, late) = (Course::new(3), deadline + Duration::from_millis(1));
        let is_over = |group, now| course.is_over(group, deadline, now);
        assert!(!is_over(7, deadline) && is_over(7, late));
        assert_eq!(course.next(&status(&[1, 2, 3]), OLD), Next::Remove);
        assert!(!course.enter(7, OLD));
        assert!(!is_over(7, late), "the removal may come");
        assert!(is_over(8, late) && course.is_due(deadline, late), "nothing is begun any more");
        assert_eq!(course.next(&status(&[1, 2]), OLD), Next::Add);
        let eighth = GroupStatus { group: 8, ..status(&[1, 2]) };
        assert_eq!(course.next(&eighth, OLD), Next::Wait, "another command removed it");
        assert!(course.enter(7, OLD));
        assert!(!is_over(7, late));
        assert_eq!(course.next(&incoming(), OLD), Next::Wait);
        assert!(is_over(7, late), "a recorded change continues");
        assert_eq!(course.addition(7), None);
        assert!(course.has_begun(7) && !course.has_begun(8));
        course.refused(7);
        assert!(!course.has_begun(7));
    }

    /// As by `node decommission`.
    #[test]
    fn a_replica_whose_place_another_voter_took_is_not_added() {
        let course = Course::new(3);
        course.enter(7, OLD);
        assert_eq!(course.next(&status(&[1, 2, 4]), OLD), Next::Done);
        assert_eq!(course.addition(7), None);
    }

    #[test]
    fn a_learner_that_was_promoted_meanwhile_is_replaced_by_a_voter() {
        let course = Course::new(3);
        let learner = Old { learns: true, ..OLD };
        let mut now = status(&[1, 2, 3]);
        now.membership.as_mut().unwrap().members[2].role = MemberRole::Learner.into();
        assert!(course.as_it_is(&now, learner).learns);
        assert!(!course.as_it_is(&status(&[1, 2, 3]), learner).learns);
        assert!(!course.as_it_is(&status(&[1, 2]), learner).learns, "as it was seen last");
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_is_left_between_the_two_steps_is_told_what_to_do() {
        let deadline = Instant::now();
        let course = Course::new(3);
        course.enter(7, OLD);
        course.enter(8, Old { learns: true, ..OLD });
        let later = deadline + GRACE + Duration::from_millis(1);
        assert!(course.is_over(7, deadline, later), "it ends some time");
        assert_eq!(course.addition(7).unwrap(), "shardhost member add 7 3");
        assert_eq!(course.addition(8).unwrap(), "shardhost member add 8 3 --learner");
    }

    #[tokio::test(start_paused = true)]
    async fn an_interruption_waits_for_groups_between_the_two_steps_and_begins_no_other() {
        let now = Instant::now();
        let (course, deadline) = (Course::new(3), now + Duration::from_secs(3_600));
        let is_over = |group, now| course.is_over(group, deadline, now);
        course.enter(7, OLD);
        assert!(course.interrupt(now) && !course.interrupt(now + GRACE));
        let later = now + Duration::from_millis(1);
        assert!(course.is_interrupted() && course.is_due(deadline, later));
        assert!(is_over(8, later) && !is_over(7, later));
        assert!(is_over(7, later + GRACE));
        course.leave(7);
        assert!(is_over(7, later));
    }
}

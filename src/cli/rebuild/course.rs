//! How far this command is with each group: between the removal of a replica and the addition of its
//! successor nothing is recorded anywhere but here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_proto::admin::GroupStatus;
use tokio::time::Instant;

use super::BETWEEN;
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
    /// The replica when it was last seen ready to be removed: an operator may have promoted it since the
    /// survey, and the group may have got another voter.
    seen: BTreeMap<u64, Old>,
    /// Groups without a replica on the node, of which this command did not remove it.
    gone: BTreeMap<u64, Gone>,
    /// Groups that were left between the two steps.
    unfinished: usize,
    /// So many were left that no more is removed.
    full: Option<Instant>,
    /// This command is to end.
    interrupted: Option<Instant>,
}

/// A replica that another command removed.
#[derive(Clone, Copy, Debug)]
struct Gone {
    old: Old,
    since: Instant,
    /// Another voter has its place.
    moved: bool,
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

    /// A group is left as it is; returns whether it counts among the few that may be without their replica.
    pub fn end(&self, group: u64, now: Instant) -> bool {
        let mut state = self.state.lock();
        if !state.between.contains_key(&group) {
            return false;
        }
        state.unfinished += 1;
        if state.unfinished >= BETWEEN {
            state.full.get_or_insert(now);
        }
        true
    }

    /// Whether as many groups were left without their replica as may be.
    pub fn is_full(&self) -> bool {
        self.state.lock().full.is_some()
    }

    /// Whether the replica of a group that was tried until `deadline` is not removed any more.
    pub fn is_due(&self, deadline: Instant, now: Instant) -> bool {
        now > self.state.lock().last_beginning(deadline)
    }

    /// Whether a group that was tried until `deadline` is left as it is.
    pub fn is_over(&self, group: u64, deadline: Instant, now: Instant) -> bool {
        let state = self.state.lock();
        // The other command has so long to add it.
        let is_given_up = |gone: &Gone| gone.moved || now > gone.since + GRACE;
        if state.gone.get(&group).is_some_and(is_given_up) {
            return true;
        }
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

    /// Whether the group may be without its replica until this command adds one.
    pub fn is_between(&self, group: u64) -> bool {
        self.state.lock().between.contains_key(&group)
    }

    /// Whether another command removed the replica of a group.
    pub fn is_gone(&self, group: u64) -> bool {
        self.state.lock().gone.contains_key(&group)
    }

    /// The group has its new replica.
    pub fn leave(&self, group: u64) {
        self.state.lock().between.remove(&group);
    }

    /// The replica with the role that it has, or had when it was last seen ready to be removed.
    pub fn as_it_is(&self, status: &GroupStatus, old: Old) -> Old {
        let mut state = self.state.lock();
        if Next::of(status, self.node, old.replica) == Next::Remove
            && let Some(member) = member_on(status, self.node)
        {
            let seen = Old { learns: learns(status, member), voters: voters_of(status), ..old };
            state.seen.insert(status.group, seen);
        }
        let learns = state.seen.get(&status.group).map_or(old.learns, |seen| seen.learns);
        Old { learns, ..old }
    }

    /// Takes over a leader's status of a group, and returns the next step.
    pub fn next(&self, status: &GroupStatus, old: Old) -> Next {
        let next = Next::of(status, self.node, old.replica);
        if next == Next::Add {
            return self.next_without(status, old);
        }
        self.state.lock().gone.remove(&status.group);
        if member_on(status, self.node).is_some_and(|member| member.replica != old.replica) {
            self.leave(status.group);
        }
        next
    }

    /// The same of a group without a replica on the node.
    ///
    /// A replica that this command did not remove is not added: another command moved it, or rebuilds
    /// it. Nor is one whose place another voter took meanwhile: the group has as many as when the removal
    /// was sent.
    fn next_without(&self, status: &GroupStatus, old: Old) -> Next {
        let (mut state, group) = (self.state.lock(), status.group);
        let before = state.seen.get(&group).map_or(old.voters, |seen| seen.voters);
        let moved = !old.learns && voters_of(status) >= before;
        if !state.between.contains_key(&group) {
            let since = state.gone.get(&group).map_or_else(Instant::now, |gone| gone.since);
            state.gone.insert(group, Gone { old, since, moved });
            return Next::Wait;
        }
        if moved {
            state.between.remove(&group);
            return Next::Done;
        }
        Next::Add
    }

    /// Why nothing is done in a group now.
    pub fn why(&self, status: &GroupStatus) -> String {
        let node = self.node;
        match self.state.lock().gone.get(&status.group) {
            Some(Gone { moved: true, .. }) => {
                return format!(
                    "it has no replica on node {node} any more: a voter on another node has its place"
                );
            }
            Some(_) => {
                return format!(
                    "it has no replica on node {node}: another command removed it, and has not added the                      next one"
                );
            }
            None => {}
        }
        let incoming = status.membership.as_ref().and_then(|members| members.incoming.as_ref());
        let here = member_on(status, node).map(|member| member.replica);
        match incoming.is_some_and(|incoming| Some(incoming.replica) == here) {
            true => "it catches up".to_owned(),
            false => "another change of its members is under way".to_owned(),
        }
    }

    /// What an operator does where a group is left between the two steps.
    pub fn addition(&self, group: u64) -> Option<String> {
        let state = self.state.lock();
        let gone = state.gone.get(&group).filter(|gone| !gone.moved).map(|gone| gone.old);
        let old = state.between.get(&group).copied().or(gone)?;
        Some(old.addition(group, self.node))
    }
}

impl State {
    fn last_beginning(&self, deadline: Instant) -> Instant {
        [self.full, self.interrupted].into_iter().flatten().fold(deadline, Instant::min)
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

    /// A group whose replica on node 2 is another one, which catches up or votes.
    fn beside_another_new_one(role: MemberRole) -> GroupStatus {
        let mut now = status(&[1, 2, 3]);
        let membership = now.membership.as_mut().unwrap();
        membership.members[1] = member(2, 4, role);
        let catches_up = role == MemberRole::Learner;
        membership.incoming = catches_up.then_some(Incoming { replica: 4, replaces: 0 });
        now
    }

    /// Another replica of the group caught up at the survey, and votes at the removal.
    #[test]
    fn second_rebuild_adds_what_it_removed() {
        let voters = voters_of(&beside_another_new_one(MemberRole::Learner));
        let old = Old { voters, ..OLD };
        assert_eq!(old.voters, 2);
        let course = Course::new(3);
        let whole = beside_another_new_one(MemberRole::Voter);
        assert_eq!(course.next(&whole, course.as_it_is(&whole, old)), Next::Remove);
        course.enter(7, old);
        // It is removed, and the immediate addition failed.
        let mut between = whole;
        between.membership.as_mut().unwrap().members.pop();
        assert_eq!(course.next(&between, course.as_it_is(&between, old)), Next::Add);
    }

    /// The same node, again while its replica of the first run catches up.
    #[test]
    fn rebuild_run_again_adds_what_it_removed() {
        let seen = incoming();
        let old = Old { replica: 4, learns: false, voters: voters_of(&seen) };
        let course = Course::new(3);
        let mut whole = status(&[1, 2, 3]);
        whole.membership.as_mut().unwrap().members[2].replica = 4;
        assert_eq!(course.next(&seen, course.as_it_is(&seen, old)), Next::Wait);
        assert_eq!(course.next(&whole, course.as_it_is(&whole, old)), Next::Remove);
        course.enter(7, old);
        // The removal is a joint change that is under way: one voter less, and the replica is there.
        let mut leaves = whole.clone();
        let leaving = &mut leaves.membership.as_mut().unwrap().members[2];
        (leaving.role, leaving.outgoing_voter) = (MemberRole::Unspecified.into(), true);
        assert_eq!(course.next(&leaves, course.as_it_is(&leaves, old)), Next::Wait);
        let between = status(&[1, 2]);
        assert_eq!(course.next(&between, course.as_it_is(&between, old)), Next::Add);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_removed_when_as_many_groups_as_may_be_were_left_unfinished() {
        let now = Instant::now();
        let (course, deadline) = (Course::new(3), now + Duration::from_secs(3_600));
        let later = now + Duration::from_millis(1);
        course.enter(7, OLD);
        course.enter(8, OLD);
        assert!(course.end(7, now) && !course.end(9, now) && !course.is_full());
        assert!(!course.is_over(10, deadline, later) && !course.is_due(deadline, later));
        assert!(course.end(8, now) && course.is_full());
        assert!(course.is_over(10, deadline, later) && course.is_due(deadline, later));
    }

    #[test]
    fn a_group_keeps_its_place_in_the_window_while_it_is_between_the_two_steps() {
        let course = Course::new(3);
        assert!(!course.is_between(7));
        course.enter(7, OLD);
        let mut leaves = status(&[1, 2, 3]);
        leaves.membership.as_mut().unwrap().members[2].outgoing_voter = true;
        assert_eq!(course.next(&leaves, OLD), Next::Wait);
        assert!(course.is_between(7), "its removal is under way");
        assert_eq!(course.next(&incoming(), OLD), Next::Wait);
        assert!(!course.is_between(7), "the new one is recorded");
    }

    /// As by a second run that was killed between the two steps.
    #[tokio::test(start_paused = true)]
    async fn a_group_whose_replica_another_command_removed_is_named_with_what_adds_one() {
        let now = Instant::now();
        let (course, deadline) = (Course::new(3), now + Duration::from_secs(3_600));
        assert_eq!(course.next(&status(&[1, 2, 3]), OLD), Next::Remove);
        assert_eq!(course.next(&status(&[1, 2]), OLD), Next::Wait);
        let why = course.why(&status(&[1, 2]));
        assert!(why.contains("another command removed"), "{why}");
        assert_eq!(course.addition(7).unwrap(), "shardhost member add 7 3");
        assert!(!course.is_over(7, deadline, now + GRACE), "the other one may add it");
        let later = now + GRACE + Duration::from_millis(1);
        assert!(course.is_over(7, deadline, later) && !course.is_over(8, deadline, later));
        // It did.
        assert_eq!(course.next(&incoming(), OLD), Next::Wait);
        let why = course.why(&incoming());
        assert!(why.contains("catches up"), "{why}");
        assert!(!course.is_over(7, deadline, later) && course.addition(7).is_none());
    }

    /// As by `node decommission`.
    #[tokio::test(start_paused = true)]
    async fn a_group_whose_replica_moved_is_not_waited_for() {
        let now = Instant::now();
        let (course, deadline) = (Course::new(3), now + Duration::from_secs(3_600));
        let moved = status(&[1, 2, 4]);
        assert_eq!(course.next(&moved, OLD), Next::Wait);
        assert!(course.is_over(7, deadline, now) && course.is_gone(7));
        assert_eq!(course.addition(7), None);
        assert!(course.why(&moved).contains("has its place"), "{}", course.why(&moved));
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

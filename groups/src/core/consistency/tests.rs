//! What comparing comes to, by who holds what.

use shardhost_storage::NodeId;

use super::*;

fn voters(count: u64) -> Membership {
    Membership::initial((1..=count).map(NodeId::must))
}

fn sum(value: u64) -> StateSum {
    StateSum { format: 1, bytes: 8, sum: value }
}

fn sums(held: &[(u64, u64)]) -> BTreeMap<u64, StateSum> {
    held.iter().map(|(replica, value)| (*replica, sum(*value))).collect()
}

fn outcome(count: u64, held: &[(u64, u64)], waiting: Waiting) -> Judgement {
    judge(&voters(count), &sums(held), waiting)
}

#[test]
fn what_a_majority_holds_is_right_whoever_leads_and_whoever_is_missing() {
    for waiting in [Waiting::Yes, Waiting::No] {
        let equal = [(1, 7), (2, 7), (3, 7)];
        assert_eq!(outcome(3, &equal, waiting), Judgement::Majority(sum(7)));
        assert_eq!(outcome(3, &[(1, 9), (2, 7), (3, 7)], waiting), Judgement::Majority(sum(7)));
        assert_eq!(outcome(3, &[(2, 7), (3, 7)], waiting), Judgement::Majority(sum(7)));
        assert_eq!(outcome(1, &[(1, 7)], waiting), Judgement::Majority(sum(7)));
        let five = [(1, 1), (2, 7), (3, 2), (4, 7), (5, 7)];
        assert_eq!(outcome(5, &five, waiting), Judgement::Majority(sum(7)));
    }
}

#[test]
fn without_a_majority_nobody_is_right() {
    for waiting in [Waiting::Yes, Waiting::No] {
        assert_eq!(outcome(2, &[(1, 7), (2, 8)], waiting), Judgement::Split);
        assert_eq!(outcome(3, &[(1, 7), (2, 8), (3, 9)], waiting), Judgement::Split);
        let halves = [(1, 7), (2, 7), (3, 8), (4, 8)];
        assert_eq!(outcome(4, &halves, waiting), Judgement::Split);
    }
}

#[test]
fn a_missing_checksum_that_could_decide_is_waited_for_and_then_not() {
    let two = [(1, 7), (2, 8)];
    assert_eq!(outcome(3, &two, Waiting::Yes), Judgement::Open);
    assert_eq!(outcome(3, &two, Waiting::No), Judgement::Split);
    // One of four could not make three of two that differ.
    let three = [(1, 7), (2, 8), (3, 9)];
    assert_eq!(outcome(4, &three, Waiting::Yes), Judgement::Split);
}

#[test]
fn too_few_checksums_that_agree_say_nothing() {
    for waiting in [Waiting::Yes, Waiting::No] {
        assert_eq!(outcome(3, &[], waiting), Judgement::Open);
        assert_eq!(outcome(3, &[(1, 7)], waiting), Judgement::Open);
        assert_eq!(outcome(5, &[(1, 7), (5, 7)], waiting), Judgement::Open);
    }
}

/// Two versions that write the same state in two ways are no two states.
#[test]
fn other_formats_are_not_compared() {
    let mut held = sums(&[(1, 7)]);
    held.insert(2, StateSum { format: 2, ..sum(8) });
    assert_eq!(judge(&voters(2), &held, Waiting::No), Judgement::Open);
    held.insert(3, sum(7));
    assert_eq!(judge(&voters(3), &held, Waiting::No), Judgement::Majority(sum(7)));
}

#[test]
fn learners_do_not_count_and_a_joint_configuration_needs_both_halves() {
    let mut membership = voters(4);
    for (id, member) in &mut membership.members {
        // From 1, 2, 3 to 2, 3, 4.
        member.voter = id.get() != 1;
        member.outgoing_voter = id.get() != 4;
    }
    assert!(is_majority(&membership, |id| id == 2 || id == 3));
    assert!(!is_majority(&membership, |id| id == 3 || id == 4), "one of three that leave");
    let mut membership = voters(3);
    for (id, member) in &mut membership.members {
        member.voter = id.get() == 1;
        member.learner = id.get() != 1;
    }
    let held = sums(&[(1, 7), (2, 8), (3, 8)]);
    assert_eq!(judge(&membership, &held, Waiting::Yes), Judgement::Majority(sum(7)));
}

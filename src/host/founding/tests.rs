//! The agreement, step by step.

use std::collections::BTreeSet;

use shardhost_storage::NodeId;

use super::decide::{Agreement, Cause, Phase, Record, Report, StoreId, Verdict};

fn nodes(numbers: &[u64]) -> BTreeSet<NodeId> {
    numbers.iter().map(|node| NodeId::must(*node)).collect()
}

/// One of three initial members, with a disk and its durable state.
fn founder(node: u64, store: u64, stored: Option<Record>) -> Agreement {
    let founders = nodes(&[1, 2, 3]);
    Agreement::new(NodeId::must(node), StoreId::new(store), founders, nodes(&[]), stored)
}

fn fresh(node: u64) -> Agreement {
    founder(node, node * 11, None)
}

/// Each receives the reports of all, until nothing changes.
fn exchange(all: &mut [&mut Agreement]) {
    for _ in 0..3 {
        let reports: Vec<Report> = all.iter().map(|one| one.report()).collect();
        for one in all.iter_mut() {
            reports.iter().for_each(|report| one.receive(report.clone()));
        }
    }
}

#[track_caller]
fn causes(agreement: &Agreement) -> Vec<Cause> {
    match agreement.verdict() {
        Verdict::Wait(causes) => causes,
        Verdict::Found => panic!("it founds: {agreement:?}"),
    }
}

#[test]
fn three_new_founders_found_once_each_has_recorded_all() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two]);
    // The third is not there yet.
    assert!(causes(&one).contains(&Cause::NoAnswer { node: NodeId::must(3) }));
    one.receive(three.report());
    assert_eq!(one.record().phase, Phase::Recorded);
    assert_ne!(one.verdict(), Verdict::Found);
    exchange(&mut [&mut one, &mut two, &mut three]);
    for founder in [&one, &two, &three] {
        assert_eq!((founder.verdict(), founder.record().phase), (Verdict::Found, Phase::Decided));
    }
}

#[test]
fn a_cluster_of_one_founds_at_once() {
    let own = nodes(&[1]);
    let alone = Agreement::new(NodeId::must(1), StoreId::new(1), own, nodes(&[]), None);
    assert_eq!(alone.verdict(), Verdict::Found);
}

/// The fault that this module is there for.
#[test]
fn a_founder_that_lost_its_disk_waits_and_is_refused_by_each_of_the_others() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two, &mut three]);
    for known_by in [&two, &three] {
        let mut empty = founder(1, 99, None);
        let absent = [2, 3].map(|node| Cause::NoAnswer { node: NodeId::must(node) });
        assert_eq!(causes(&empty), absent);
        empty.receive(known_by.report());
        let by = known_by.report().node;
        let expected = Cause::AlreadyFounded { by, own: Some(StoreId::new(11)) };
        assert!(causes(&empty).contains(&expected), "{:?}", causes(&empty));
        assert!(expected.needs_operator() && expected.to_string().contains("member rebuild"));
        assert_eq!(empty.record().phase, Phase::Gathering);
    }
}

#[test]
fn a_disk_lost_before_it_was_recorded_is_replaced() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two]);
    let mut empty = founder(1, 99, None);
    exchange(&mut [&mut empty, &mut two, &mut three]);
    for founder in [&empty, &two, &three] {
        assert_eq!(founder.verdict(), Verdict::Found);
    }
}

#[test]
fn a_disk_lost_after_it_was_recorded_is_noticed_on_both_sides() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two]);
    two.receive(three.report());
    assert_eq!(two.record().phase, Phase::Recorded);
    let mut empty = founder(1, 99, None);
    exchange(&mut [&mut empty, &mut two, &mut three]);
    let (node, own) = (NodeId::must(1), StoreId::new(99));
    let known = StoreId::new(11);
    assert!(causes(&two).contains(&Cause::DiskReplaced { node, known, now: own }));
    let by = NodeId::must(2);
    assert!(causes(&empty).contains(&Cause::OwnDiskReplaced { by, known, own }));
    assert_ne!(three.verdict(), Verdict::Found);
}

#[test]
fn a_crash_at_any_step_is_taken_up_from_what_is_durable() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two]);
    for _ in 0..6 {
        let mut again = founder(1, 11, Some(one.record().clone()));
        assert_eq!(again.record(), one.record());
        exchange(&mut [&mut again, &mut two]);
        two = founder(2, 22, Some(two.record().clone()));
        three.receive(again.report());
        again.receive(three.report());
        one = again;
    }
    exchange(&mut [&mut one, &mut two, &mut three]);
    assert_eq!(one.verdict(), Verdict::Found);
    // A decision needs no other node any more.
    let alone = founder(1, 11, Some(one.record().clone()));
    assert_eq!(alone.verdict(), Verdict::Found);
}

#[test]
fn one_that_decided_is_enough_for_a_founder_whose_disk_took_part() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two, &mut three]);
    let recorded = Record { phase: Phase::Recorded, ..three.record().clone() };
    let mut late = founder(3, 33, Some(recorded));
    assert_ne!(late.verdict(), Verdict::Found);
    late.receive(one.report());
    assert_eq!(late.verdict(), Verdict::Found);
}

#[test]
fn a_node_that_was_added_later_is_no_founder() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two, &mut three]);
    let (own, founders) = (NodeId::must(4), nodes(&[1, 2, 3, 4]));
    let mut four = Agreement::new(own, StoreId::new(44), founders, nodes(&[]), None);
    four.receive(one.report());
    let by = NodeId::must(1);
    assert!(causes(&four).contains(&Cause::AlreadyFounded { by, own: None }));
}

#[test]
fn a_directory_of_an_earlier_version_is_known_to_be_founded() {
    let mut older = fresh(2);
    older.holds_groups();
    assert_eq!(older.record().phase, Phase::Holds);
    let mut empty = fresh(1);
    empty.receive(older.report());
    let by = NodeId::must(2);
    assert!(causes(&empty).contains(&Cause::AlreadyFounded { by, own: None }));
}

#[test]
fn what_an_operator_leaves_out_is_left_out_only_where_he_said_so() {
    let without = |node: u64, stored| {
        let founders = nodes(&[1, 2, 3]);
        Agreement::new(NodeId::must(node), StoreId::new(node * 11), founders, nodes(&[3]), stored)
    };
    let (mut one, mut two) = (without(1, None), fresh(2));
    exchange(&mut [&mut one, &mut two]);
    assert_ne!(one.verdict(), Verdict::Found);
    let mut two = without(2, Some(two.record().clone()));
    exchange(&mut [&mut one, &mut two]);
    assert_eq!((one.verdict(), two.verdict()), (Verdict::Found, Verdict::Found));
    // The one that was left out comes too late.
    let mut three = fresh(3);
    three.receive(one.report());
    let by = NodeId::must(1);
    assert!(causes(&three).contains(&Cause::AlreadyFounded { by, own: None }));
}

#[test]
fn an_operator_does_not_found_what_somebody_who_answers_holds() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two, &mut three]);
    let founders = nodes(&[1, 2, 3]);
    let own = (NodeId::must(1), StoreId::new(99));
    let mut empty = Agreement::new(own.0, own.1, founders, nodes(&[2]), None);
    empty.receive(two.report());
    empty.receive(fresh(3).report());
    let by = NodeId::must(2);
    let expected = Cause::AlreadyFounded { by, own: Some(StoreId::new(11)) };
    assert!(causes(&empty).contains(&expected));
}

#[test]
fn a_log_that_is_not_the_one_of_the_record_founds_nothing() {
    let (mut one, mut two, mut three) = (fresh(1), fresh(2), fresh(3));
    exchange(&mut [&mut one, &mut two, &mut three]);
    let (recorded, own) = (StoreId::new(11), StoreId::new(99));
    let emptied = founder(1, own.get(), Some(one.record().clone()));
    assert_eq!(causes(&emptied), [Cause::LogReplaced { recorded, own }]);
}

#[test]
fn founders_that_are_not_the_same_everywhere_are_named() {
    let founders = nodes(&[1, 2]);
    let two = NodeId::must(2);
    let mut other = Agreement::new(two, StoreId::new(22), founders.clone(), nodes(&[]), None);
    let mut one = fresh(1);
    exchange(&mut [&mut one, &mut other]);
    assert!(causes(&one).contains(&Cause::OtherFounders { node: two, theirs: founders }));
    // Corrected, it continues.
    let (mut two, mut three) = (founder(2, 22, Some(other.record().clone())), fresh(3));
    exchange(&mut [&mut one, &mut two, &mut three]);
    assert_eq!(one.verdict(), Verdict::Found);
}

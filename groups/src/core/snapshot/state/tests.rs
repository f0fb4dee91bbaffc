use shardhost_storage::NodeId;

use super::*;

fn config() -> GroupsConfig {
    GroupsConfig {
        snapshot_entries: 1_000,
        log_keep_entries: 500,
        log_trail_entries: 100,
        ..GroupsConfig::new(NodeId::must(1))
    }
}

fn at(index: u64) -> LogPosition {
    LogPosition::new(2, index)
}

/// A log from 1000 to 3000 that is applied, and a snapshot near its end.
const VIEW: LogView = LogView {
    base: 1_000,
    last: 3_000,
    persisted: 3_000,
    applied: 3_000,
    durable: None,
    snapshot: Some(2_900),
};

fn target(snapshots: &Snapshots, view: LogView, peers: &[u64], now: u64) -> Option<u64> {
    snapshots.truncation_target(&view, peers.iter().copied(), now, &config())
}

#[test]
fn the_log_keeps_what_is_needed() {
    let idle = Snapshots::default();
    let cases: [(LogView, &[u64], Option<u64>); 9] = [
        (VIEW, &[], Some(2_800)),
        (LogView { snapshot: None, ..VIEW }, &[], None),
        (LogView { durable: Some(2_000), ..VIEW }, &[], Some(1_900)),
        (LogView { applied: 1_500, ..VIEW }, &[], Some(1_400)),
        (LogView { persisted: 1_500, ..VIEW }, &[], Some(1_400)),
        (VIEW, &[2_700, 2_999], Some(2_700)),
        (VIEW, &[5], Some(2_500)),
        (LogView { base: 2_750, ..VIEW }, &[], Some(2_800)),
        (LogView { base: 2_751, ..VIEW }, &[], None),
    ];
    for (view, peers, expected) in cases {
        assert_eq!(target(&idle, view, peers, 0), expected, "{view:?} {peers:?}");
    }
}

#[test]
fn the_log_stays_behind_snapshots_in_progress() {
    let mut snapshots = Snapshots::default();
    snapshots.ship(2, 2_000);
    assert_eq!(target(&snapshots, VIEW, &[], 0), Some(2_000));
    snapshots.shipped(2, ShipmentOutcome::Delivered, Some(at(2_900)), 10);
    assert_eq!(target(&snapshots, VIEW, &[], 9 + HOLD_TICKS), Some(2_000), "it is held");
    assert_eq!(target(&snapshots, VIEW, &[], 10 + HOLD_TICKS), Some(2_800));
    snapshots.want();
    assert!(snapshots.begin_making(1_700, true, 100));
    assert_eq!(target(&snapshots, VIEW, &[], 100), Some(1_700));
}

#[test]
fn a_snapshot_is_due_when_the_log_grew_and_a_flush_when_the_machine_keeps_its_state() {
    let cases = [
        (LogView { snapshot: Some(2_001), ..VIEW }, false, false),
        (LogView { snapshot: Some(2_000), ..VIEW }, true, false),
        (LogView { snapshot: None, ..VIEW }, true, false),
        (LogView { durable: Some(2_501), ..VIEW }, false, false),
        (LogView { durable: Some(2_500), snapshot: None, ..VIEW }, false, true),
    ];
    for (view, snapshot, flush) in cases {
        let mut snapshots = Snapshots::default();
        snapshots.look_at_log(&view, &config());
        assert_eq!(snapshots.begin_making(3_000, true, 0), snapshot, "{view:?}");
        assert_eq!(snapshots.begin_flush(), flush, "{view:?}");
        assert!(!snapshots.begin_flush(), "once");
    }
}

#[test]
fn none_is_made_where_none_can_be() {
    let mut snapshots = Snapshots::default();
    snapshots.want();
    assert!(!snapshots.begin_making(5, false, 0), "without a state");
    snapshots.install_state(at(4));
    assert!(!snapshots.begin_making(5, true, 0), "while one is installed");
    snapshots.end_install();
    assert!(snapshots.begin_making(5, true, 0));
    snapshots.want();
    assert!(!snapshots.begin_making(5, true, 0), "while one is made");
}

#[test]
fn after_failures_only_users_get_another_try_for_a_while() {
    let mut snapshots = Snapshots::default();
    for pause in [10, 20, 40] {
        snapshots.want();
        assert!(snapshots.begin_making(5, true, 1_000));
        assert!(snapshots.end_making(None, 1_000).is_empty());
        snapshots.want();
        assert!(!snapshots.begin_making(5, true, 999 + pause));
        let (completion, _answer) = crate::completion::answer();
        snapshots.ask(completion);
        assert!(snapshots.begin_making(5, true, 999 + pause), "a user asks");
        snapshots.making = None;
        assert_eq!(std::mem::take(&mut snapshots.asked).len(), 1);
        snapshots.paused_until = 0;
    }
    snapshots.failures = 40;
    snapshots.end_making(None, 1_000);
    assert_eq!(snapshots.paused_until, 1_000 + MAX_FAILURE_TICKS);
    snapshots.end_making(Some(at(5)), 1_000);
    assert_eq!(snapshots.failures, 0);
}

#[test]
fn a_replica_without_a_state_gets_one_from_which_its_log_continues() {
    let mut snapshots = Snapshots::default();
    assert_eq!(snapshots.answer_request(2, 50, Some(at(60))), Answer::Ship(at(60)));
    assert_eq!(snapshots.answer_request(2, 61, Some(at(60))), Answer::Later);
    assert!(snapshots.begin_making(80, true, 0), "one is made for it");
    assert_eq!(snapshots.answer_request(2, 0, Some(at(0))), Answer::Later);
    snapshots.ship(2, 60);
    assert_eq!(snapshots.answer_request(2, 50, Some(at(60))), Answer::Later, "it is on its way");
}

#[test]
fn the_machine_is_restored_when_the_new_log_is_durable() {
    let none = KnownBugs::none();
    let mut snapshots = Snapshots::default();
    snapshots.install(at(9), 3);
    assert!(snapshots.replaces_log(none));
    assert_eq!(snapshots.restore_from(2), None);
    assert_eq!(snapshots.restore_from(3), Some(at(9)));
    assert!(!snapshots.replaces_log(none) && snapshots.is_installing());
    assert_eq!(snapshots.restore_from(4), None, "once");
    snapshots.install_state(at(12));
    assert!(!snapshots.replaces_log(none), "the log stays");
    assert_eq!(snapshots.restore_from(4), None);
}

#[test]
fn one_that_is_unusable_is_replaced_if_there_is_no_newer_one() {
    for (newest, outcome, wanted) in [
        (9, ShipmentOutcome::Unusable, true),
        (10, ShipmentOutcome::Unusable, false),
        (9, ShipmentOutcome::Failed, false),
    ] {
        let mut snapshots = Snapshots::default();
        snapshots.ship(2, 9);
        snapshots.shipped(2, outcome, Some(at(newest)), 0);
        assert_eq!(snapshots.begin_making(20, true, 0), wanted, "{newest} {outcome:?}");
    }
}

//! Rounds that can be planned again.

use std::path::{Path, PathBuf};

use super::super::{Recorded, ReplayError, replay};
use super::build::{Desk, all_on_one, group, id};
use shardhost_groups::RejectReason;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("executor/golden/round.json")
}

/// A pass with some of each addition of the executor to a snapshot.
fn scene() -> Desk {
    let mut groups = all_on_one(7, &[1, 2, 3]);
    groups.push(group(8, 2, &[2, 3]));
    let mut desk = Desk::new(3, groups);
    desk.group(2).load = 700;
    desk.group(3).load = 100;
    desk.plan();
    let orders = desk.orders();
    desk.fail(&orders[0], RejectReason::Silent);
    desk.obey(&orders[1]);
    desk.node(3).draining = true;
    desk.silent.insert(id(2), desk.now);
    desk.plan();
    desk
}

#[test]
fn a_recorded_round_is_what_it_was() {
    let desk = scene();
    let last = desk.executor.recorded().last().expect("a round");
    assert!(!last.snapshot.back_offs.is_empty() && !last.snapshot.moves.is_empty());
    let text = serde_json::to_string_pretty(last).expect("plain data is JSON") + "\n";
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(file(), &text).expect("a file that can be written");
        return;
    }
    let recorded = std::fs::read_to_string(file()).expect("a recorded file");
    assert!(text == recorded, "the round differs; see what REWRITE=1 changes");
    let recorded: Recorded = serde_json::from_str(&recorded).expect("a record");
    replay(&recorded).expect("the same plan");
}

#[test]
fn every_recorded_round_can_be_planned_again() {
    let desk = scene();
    assert_eq!(desk.executor.recorded().count(), 2);
    for recorded in desk.executor.recorded() {
        replay(recorded).expect("the same plan");
    }
}

#[test]
fn a_round_that_changes_nothing_is_not_recorded() {
    let mut desk = scene();
    desk.truth.groups.iter_mut().for_each(|group| group.pin = group.leader);
    desk.node(3).draining = false;
    desk.round_after(100_000);
    let before = desk.executor.recorded().count();
    for _ in 0..10 {
        desk.plan();
    }
    assert_eq!(desk.executor.recorded().count(), before);
}

#[test]
fn a_record_that_was_changed_is_noticed() {
    let desk = scene();
    let mut changed = desk.executor.recorded().last().expect("a round").clone();
    changed.plan.summary.after.count += 1;
    let error = replay(&changed).expect_err("it was changed");
    assert!(matches!(error, ReplayError::Differs { .. }), "{error}");
    changed.snapshot.groups.reverse();
    let error = replay(&changed).expect_err("it cannot be planned");
    assert!(matches!(error, ReplayError::Snapshot(_)), "{error}");
}

//! Causes by name: the prediction for a target equals the answer of the eligibility check when it
//! is tried.

use std::collections::BTreeSet;

use shardhost_groups::policy::{CapabilityPolicy, RejectReason, Unfit};
use shardhost_groups::{GroupId, TransferError};

use super::super::super::{BackOff, LedgerMove, Plan, Snapshot, TargetVerdict, plan, why};
use super::super::build::{NOW, group, names, node, snapshot};
use super::id;

/// Group 1, led by node 1, with a voter on node 2, after `change`.
fn with(change: impl FnOnce(&mut Snapshot)) -> Snapshot {
    let mut one = snapshot(vec![node(1), node(2)], vec![group(1, 1, &[1, 2])]);
    change(&mut one);
    one
}

/// The planner's verdict on node 2 as the target of group 1.
fn predicted(change: impl FnOnce(&mut Snapshot)) -> RejectReason {
    let answer = why(&with(change), &Plan::default(), GroupId::new(1)).expect("a sound snapshot");
    let voters = answer.expect("a known group").voters;
    let verdict = voters.into_iter().find(|voter| voter.node == id(2)).expect("a voter").verdict;
    verdict.reason().expect("something speaks against it")
}

/// Why group 1 is not moved.
fn stays(change: impl FnOnce(&mut Snapshot)) -> RejectReason {
    let snapshot = with(change);
    let plan = plan(&snapshot).expect("a sound snapshot");
    let answer = why(&snapshot, &plan, GroupId::new(1)).expect("a sound snapshot");
    answer.expect("a known group").outcome.reason().expect("it stays")
}

fn require_fifo(snapshot: &mut Snapshot) {
    snapshot.groups[0].requirement.capabilities = names(&["fifo"]);
}

#[test]
fn what_is_predicted_of_a_target_is_what_the_gate_says() {
    let (group, node) = (GroupId::new(1), id(2));
    let unfit = Unfit {
        policy: CapabilityPolicy::NAME,
        mode: Default::default(),
        reason: "node 2 lacks fifo".into(),
    };
    let gate = TransferError::TargetUnfit { group, node, unfit };
    assert_eq!(predicted(require_fifo), gate.reason());
    let gate = TransferError::TargetNotLive { group, node };
    assert_eq!(predicted(|snapshot| snapshot.nodes[1].live = false), gate.reason());
    let gate = TransferError::TargetDraining { group, node };
    assert_eq!(predicted(|snapshot| snapshot.nodes[1].draining = true), gate.reason());
    let gate = TransferError::TargetNotCaughtUp { group, node, lag: 4, max_lag: 3 };
    let lags = |snapshot: &mut Snapshot| snapshot.groups[0].voters[1].lag = Some(4);
    assert_eq!(predicted(lags), gate.reason());
}

#[test]
fn why_a_group_stays_is_what_the_gate_says() {
    let (group, to) = (GroupId::new(1), id(2));
    let gate = TransferError::InProgress { group, to };
    let in_flight = |snapshot: &mut Snapshot| {
        let now = Some(NOW);
        snapshot.moves.push(LedgerMove {
            group,
            from: id(1),
            to,
            ticket: 1,
            since_ms: NOW,
            completed_at_ms: None,
            from_reported_ms: now,
            to_reported_ms: now,
        });
    };
    assert_eq!(stays(in_flight), gate.reason());
    let gate = TransferError::NoHealthyTarget { group };
    assert_eq!(stays(|snapshot| snapshot.nodes[1].live = false), gate.reason());
}

#[test]
fn what_only_the_planner_knows_has_names_too() {
    let backed_off = |until_ms| BackOff { group: GroupId::new(1), target: id(2), until_ms };
    let back_off = |snapshot: &mut Snapshot| snapshot.back_offs.push(backed_off(NOW + 1));
    assert_eq!(predicted(back_off), RejectReason::BackedOff);
    assert_eq!(stays(back_off), RejectReason::BackedOff);
    assert_eq!(predicted(|snapshot| snapshot.nodes[1].fit = false), RejectReason::Unfit);
    assert_eq!(predicted(|snapshot| snapshot.nodes[1].weight = 0), RejectReason::NoWeight);
    assert_eq!(predicted(|one| one.nodes[1].live_since_ms = NOW), RejectReason::Warming);
    let unsaid = |snapshot: &mut Snapshot| {
        require_fifo(snapshot);
        snapshot.nodes[1].capabilities = None;
    };
    assert_eq!(predicted(unsaid), RejectReason::UnknownCapabilities);
    assert_eq!(predicted(|one| one.groups[0].voters[1].lag = None), RejectReason::LagUnknown);
    assert_eq!(stays(|_| ()), RejectReason::Optimal);
    assert_eq!(stays(|one| one.groups[0].leader = None), RejectReason::UnknownLeader);
    assert_eq!(stays(|one| one.nodes[0].live = false), RejectReason::LeaderNotLive);
    assert_eq!(stays(|one| one.groups[0].pin = Some(id(1))), RejectReason::Pinned);
    assert_eq!(stays(|one| one.groups[0].moved_at_ms = Some(NOW)), RejectReason::Dwell);
}

#[test]
fn verdicts_have_different_names() {
    use TargetVerdict as V;
    let verdicts = [
        V::Warming,
        V::UnknownCapabilities,
        V::NotLive,
        V::Incapable,
        V::Draining,
        V::Unfit,
        V::NoWeight,
        V::LagUnknown,
        V::Lags { entries: 1 },
        V::BackedOff { until_ms: 1 },
    ];
    let found: BTreeSet<_> = verdicts.iter().filter_map(V::reason).collect();
    assert_eq!(found.len(), verdicts.len());
    assert_eq!(V::Eligible.reason(), None);
}

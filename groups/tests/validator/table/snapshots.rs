//! Snapshots, and states from replicas that do not lead.

use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::validate::{MAX_NUMBER, Refusal};
use shardhost_groups::{Membership, NodeId};
use shardhost_proto::log::LogPosition;
use shardhost_proto::peer::{GroupMessage, MessageKind, SnapshotMeta};

use super::{COMMITTED, State, assert_rows, members, position, row};

#[test]
fn impossible_snapshots_are_refused() {
    use MessageKind::{Heartbeat, Snapshot};
    use State::Follows;
    let refused = Err(Refusal::Snapshot);
    assert_rows(&[
        row("none", Follows, Snapshot, |m| m.snapshot = None, refused),
        row(
            "with a heartbeat",
            Follows,
            Heartbeat,
            |m| {
                m.snapshot = Some(SnapshotMeta::default());
            },
            refused,
        ),
        row(
            "no position",
            Follows,
            Snapshot,
            |m| {
                m.snapshot.as_mut().unwrap().position = None;
            },
            refused,
        ),
        row("index zero", Follows, Snapshot, |m| position(m).index = 0, refused),
        row("term zero", Follows, Snapshot, |m| position(m).term = 0, refused),
        row("a later term", Follows, Snapshot, |m| position(m).term = 6, refused),
        row("absurd index", Follows, Snapshot, |m| position(m).index = MAX_NUMBER, refused),
        row(
            "no membership",
            Follows,
            Snapshot,
            |m| {
                m.snapshot.as_mut().unwrap().membership = None;
            },
            refused,
        ),
        row("no members", Follows, Snapshot, |m| members(m).members.clear(), refused),
        row("a zero id", Follows, Snapshot, |m| members(m).members[1].replica = 0, refused),
        row("a zero node", Follows, Snapshot, |m| members(m).members[1].node = 0, refused),
        row(
            "twice the same id",
            Follows,
            Snapshot,
            |m| {
                members(m).members[1].replica = 3;
            },
            refused,
        ),
        row("an unknown role", Follows, Snapshot, |m| members(m).members[1].role = 9, refused),
        row("no role", Follows, Snapshot, |m| members(m).members[1].role = 0, refused),
        row(
            "learners only",
            Follows,
            Snapshot,
            |m| {
                members(m).members.iter_mut().for_each(|member| member.role = 2);
            },
            refused,
        ),
        row(
            "without this replica",
            Follows,
            Snapshot,
            |m| {
                members(m).members.remove(0);
            },
            refused,
        ),
        row(
            "with this replica elsewhere",
            Follows,
            Snapshot,
            |m| {
                members(m).members[0].node = 9;
            },
            refused,
        ),
        row(
            "leaving a joint configuration that is none",
            Follows,
            Snapshot,
            |m| {
                members(m).auto_leave = true;
            },
            refused,
        ),
        row(
            "a joint configuration",
            Follows,
            Snapshot,
            |m| {
                members(m).members[1].role = 2;
                members(m).members.iter_mut().for_each(|member| member.outgoing_voter = true);
                members(m).auto_leave = true;
            },
            Ok(()),
        ),
        row(
            "another term at a committed index",
            Follows,
            Snapshot,
            |m| {
                *position(m) = LogPosition { term: 5, index: COMMITTED };
            },
            Err(Refusal::CommittedConflict),
        ),
        row(
            "committed already",
            Follows,
            Snapshot,
            |m| {
                *position(m) = LogPosition { term: 2, index: 4 };
            },
            Ok(()),
        ),
    ]);
}

#[test]
fn a_state_may_come_from_any_replica_of_the_group() {
    use MessageKind::Snapshot;
    use State::{Follows, Leads};
    let refused = Err(Refusal::Snapshot);
    let from_follower: fn(&mut GroupMessage) = |m| (m.from_replica, m.any_giver) = (3, true);
    assert_rows(&[
        row("to a follower", Follows, Snapshot, from_follower, Ok(())),
        row("to a leader", Leads, Snapshot, from_follower, Ok(())),
        row(
            "by one that knows neither this replica nor a later term",
            Follows,
            Snapshot,
            |m| {
                (m.from_replica, m.any_giver, m.term) = (3, true, 4);
                *position(m) = LogPosition { term: 4, index: COMMITTED };
                members(m).members.remove(0);
            },
            Ok(()),
        ),
        row(
            "one of another history is for the log to drop",
            Follows,
            Snapshot,
            |m| {
                m.any_giver = true;
                *position(m) = LogPosition { term: 5, index: COMMITTED };
            },
            Ok(()),
        ),
        row(
            "index zero",
            Follows,
            Snapshot,
            |m| (m.any_giver, position(m).index) = (true, 0),
            refused,
        ),
        row(
            "a later term than its sender knows",
            Follows,
            Snapshot,
            |m| (m.any_giver, position(m).term) = (true, 6),
            refused,
        ),
        row(
            "absurd index",
            Follows,
            Snapshot,
            |m| (m.any_giver, position(m).index) = (true, MAX_NUMBER),
            refused,
        ),
        row(
            "a group with other first members",
            Follows,
            Snapshot,
            |m| {
                m.any_giver = true;
                let others = Membership::initial([1, 2, 4].map(NodeId::must));
                m.snapshot.as_mut().unwrap().membership = Some(membership_to_message(&others));
            },
            Err(Refusal::OtherGenesis),
        ),
    ]);
}

//! Two snapshots of a group arrive while the worker is busy, and are looked at in one step. Raft
//! takes the first; the second is no news. The membership of the second must not be taken for that
//! of the first: then the replica votes and counts by one configuration and sends by another.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::storage::Member;
use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::worker::Input;
use shardhost_groups::{LogIndex, LogPosition, Membership, NodeId, ReplicaId};

use crate::garbage::{membership, snapshot};
use crate::victim::Victim;

/// Four members, as of the entry at 8.
fn with_a_fourth() -> Membership {
    let mut grown = Membership::initial((1..=3).map(NodeId::must));
    grown.members.insert(ReplicaId::must(4), Member::learner(NodeId::must(4)));
    grown.newest_replica = ReplicaId::must(4).into();
    grown.config_index = LogIndex::new(8);
    grown
}

#[test]
fn the_membership_is_that_of_the_snapshot_that_raft_took() {
    let mut victim = Victim::new();
    victim.open(1, LogPosition::default());
    victim.follow(1, 2, 3, 6, 4);
    victim.settle();

    let taken = snapshot(1, 3, 9, membership_to_message(&with_a_fourth()));
    let stale = snapshot(1, 3, 7, membership());
    victim.core.handle(Input::Peer { from: NodeId::must(2), messages: vec![taken] });
    victim.deliver(stale);
    victim.settle();

    let status = victim.status(1);
    assert_eq!(status.applied.get(), 9, "restored from the first");
    assert_eq!(victim.failures(), 0);
    let members: Vec<u64> = status.membership.members.keys().map(|id| id.get()).collect();
    assert_eq!(members, [1, 2, 3, 4], "the membership of the snapshot at 9");
}

/// Writes that a replica still hands to the log in the step in which it finds that it cannot
/// install the snapshot that raft took.
fn writes_of_the_last_round(bugs: KnownBugs) -> usize {
    let mut victim = Victim::with_bugs(bugs);
    victim.open(1, LogPosition::default());
    victim.follow(1, 2, 3, 6, 4);
    victim.settle();
    let arrived = snapshot(1, 3, 9, membership_to_message(&with_a_fourth()));
    victim.core.handle(Input::Peer { from: NodeId::must(2), messages: vec![arrived] });
    let effects = victim.core.finish_step(None);
    assert_eq!(victim.failures(), 1);
    effects.log.batch.writes.len()
}

#[test]
fn a_replica_that_cannot_install_a_snapshot_writes_nothing_more() {
    let lost = KnownBugs::from([KnownBug::LoseSnapshotMembership]);
    assert_eq!(writes_of_the_last_round(lost), 0);
    assert_ne!(writes_of_the_last_round(lost.and(KnownBug::GoOnAfterFault)), 0);
}

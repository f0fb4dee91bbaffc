//! A replica that installs a snapshot has a log that starts behind the state of its machine. Raft
//! would panic if it campaigned, so it does not, whatever messages come or do not come.

use shardhost_groups::{LogPosition, Role};

use crate::garbage::{membership, snapshot};
use crate::victim::Victim;

/// A follower whose snapshot is durable, while its state machine still restores it.
fn installing() -> Victim {
    let mut victim = Victim::new();
    victim.open(1, LogPosition::default());
    victim.follow(1, 2, 3, 6, 4);
    victim.settle();
    victim.deliver(snapshot(1, 3, 9, membership()));
    victim.persist();
    assert_eq!(victim.status(1).applied.get(), 4, "not restored yet");
    victim
}

#[test]
fn an_installing_replica_does_not_campaign_when_its_leader_falls_silent() {
    let mut victim = installing();
    (0..100).for_each(|_| victim.tick());
    assert_eq!(victim.failures(), 0);
    assert_eq!(victim.status(1).role, Role::Follower);

    victim.apply();
    (0..30).for_each(|_| victim.tick());
    assert_eq!(victim.status(1).role, Role::PreCandidate, "it campaigns when it is restored");
}

#[test]
fn an_installing_replica_does_not_campaign_when_leadership_is_handed_to_it() {
    let mut victim = installing();
    victim.campaign(1, 2, 3);
    assert_eq!(victim.failures(), 0);
    assert_eq!(victim.status(1).role, Role::Follower);

    victim.apply();
    victim.campaign(1, 2, 3);
    assert_eq!(victim.status(1).role, Role::Candidate, "it campaigns when it is restored");
}

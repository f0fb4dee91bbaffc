//! A replica whose log is being replaced by a snapshot does not campaign: raft would look for entries that
//! go, and panic. When the new start of the log is durable and the state is not restored yet, it does, as
//! the last resort, and takes no leadership that is handed to it.

use shardhost_groups::{LogPosition, Role};

use crate::garbage::{membership, snapshot};
use crate::victim::Victim;

/// A follower whose log a snapshot replaces, which is not durable.
fn replacing() -> Victim {
    let mut victim = Victim::new();
    victim.open(1, LogPosition::default());
    victim.follow(1, 2, 3, 6, 4);
    victim.settle();
    victim.deliver(snapshot(1, 3, 9, membership()));
    victim
}

/// A follower whose snapshot is durable, while its state machine still restores it.
fn installing() -> Victim {
    let mut victim = replacing();
    victim.persist();
    assert_eq!(victim.status(1).applied.get(), 4, "not restored yet");
    victim
}

#[test]
fn a_replica_whose_log_is_replaced_does_not_campaign_when_its_leader_falls_silent() {
    let mut victim = replacing();
    (0..200).for_each(|_| victim.tick());
    assert_eq!(victim.failures(), 0);
    assert_eq!(victim.status(1).role, Role::Follower);
}

/// Ticks without a leader after which the replica campaigns.
fn patience(victim: &mut Victim) -> usize {
    let campaigns = |victim: &Victim| victim.status(1).role == Role::PreCandidate;
    let found = (1..500).find(|_| {
        victim.tick();
        campaigns(victim)
    });
    assert_eq!(victim.failures(), 0);
    found.expect("it campaigns")
}

#[test]
fn an_installing_replica_campaigns_last_when_its_leader_falls_silent() {
    let late = patience(&mut installing());
    let mut restored = installing();
    restored.apply();
    let soon = patience(&mut restored);
    assert!(late >= 2 * soon, "after {late} ticks, and {soon} when it is restored");
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

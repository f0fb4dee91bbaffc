//! A replica that panics all the same is parked alone, with its data, and says why.

use shardhost_groups::storage::{LogError, LogStore, StoreFault};
use shardhost_groups::worker::Input;
use shardhost_groups::{GroupFault, GroupId, LogIndex, LogPosition, Role};
use shardhost_proto::peer::{GroupMessage, MessageKind};

use crate::victim::{Victim, message};

/// Two groups that follow node 2 with three entries each, whose entries left the memory.
fn two_followers() -> Victim {
    let mut victim = Victim::new();
    for group in [1, 2] {
        victim.open(group, LogPosition::default());
        victim.follow(group, 2, 2, 3, 0);
        victim.settle();
        // A second life: what was written is not in memory any more.
        victim.reopen(group);
    }
    victim
}

/// The leader says that everything is committed, so that the entries are read for applying.
fn commit(victim: &mut Victim, group: u64) {
    let heartbeat = GroupMessage { commit: 3, ..message(group, 2, 2) };
    victim.deliver(GroupMessage { kind: MessageKind::Heartbeat.into(), ..heartbeat });
    victim.settle();
}

#[test]
fn a_replica_whose_log_cannot_be_read_is_parked_and_the_other_goes_on() {
    let mut victim = two_followers();
    victim.store.inject(StoreFault::Reads(GroupId::new(1)));

    commit(&mut victim, 1);
    commit(&mut victim, 2);

    assert_eq!(victim.failures(), 1);
    assert!(victim.core.group(GroupId::new(1)).is_none(), "the failed one is parked");
    assert_eq!(victim.status(2).applied, LogIndex::new(3), "the other applies");
    let kept = victim.store.load(GroupId::new(1));
    assert!(matches!(kept, Ok(Some(_)) | Err(_)), "nothing was deleted: {kept:?}");
}

#[test]
fn a_damaged_entry_parks_its_replica_with_the_error_of_the_log() {
    let mut victim = two_followers();
    victim.store.inject(StoreFault::DamagedEntry(GroupId::new(1), LogIndex::new(2)));

    let heartbeat = GroupMessage { commit: 3, ..message(1, 2, 2) };
    let messages = vec![GroupMessage { kind: MessageKind::Heartbeat.into(), ..heartbeat }];
    victim.core.handle(Input::Peer { from: shardhost_groups::NodeId::must(2), messages });
    let effects = victim.core.finish_step(None);

    let (group, _, status) = effects.statuses.last().expect("the end of the replica is told");
    assert_eq!(*group, GroupId::new(1));
    let Role::Failed(GroupFault::Log(LogError::Corrupt { .. })) = &status.role else {
        panic!("the role names the damage: {:?}", status.role);
    };
    assert!(!status.serving);
}

#[test]
fn a_healed_replica_can_be_opened_again() {
    let mut victim = two_followers();
    victim.store.inject(StoreFault::Reads(GroupId::new(1)));
    commit(&mut victim, 1);
    assert_eq!(victim.failures(), 1);

    victim.store.heal();
    victim.reopen(1);
    commit(&mut victim, 1);

    assert_eq!(victim.failures(), 1, "it does not fail again");
    assert_eq!(victim.status(1).applied, LogIndex::new(3));
}

#[test]
fn a_heartbeat_that_shows_a_lost_tail_fails_the_replica_and_no_other() {
    let mut victim = two_followers();
    let heartbeat = GroupMessage { commit: 4, ..message(1, 2, 2) };
    victim.deliver(GroupMessage { kind: MessageKind::Heartbeat.into(), ..heartbeat });

    assert_eq!(victim.failures(), 1);
    commit(&mut victim, 2);
    assert_eq!(victim.status(2).applied, LogIndex::new(3));
}

#[test]
fn a_parked_leader_tells_its_followers_to_look_for_another() {
    let mut victim = Victim::new();
    victim.open(1, LogPosition::default());
    victim.lead(1, 2);
    assert!(victim.status(1).serving);

    let event = shardhost_groups::worker::GroupEvent::Failed(GroupFault::Panic("test".into()));
    victim.core.handle(Input::Group { group: GroupId::new(1), open_id: 1, event });
    let effects = victim.core.finish_step(None);

    let woken: Vec<u64> = effects
        .messages
        .iter()
        .filter(|outgoing| outgoing.message.kind() == MessageKind::Wake)
        .map(|outgoing| outgoing.to.get())
        .collect();
    assert_eq!(woken, [2, 3]);
    assert_eq!(effects.edges.len(), 1, "the loss of leadership is announced: {:?}", effects.edges);
}

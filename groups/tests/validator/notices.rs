//! A replica ends when members report that the group continues without it. What they show must be
//! news, or what it knows itself: no single message removes it from its group.

use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::{GroupId, LogPosition, Membership, NodeId, ReplicaId};
use shardhost_proto::peer::{CreateRequest, GroupMessage, MessageKind};

use crate::victim::{Victim, message};

/// Node 2 reports that the group continues with itself alone, since the change at `config_index`.
fn notice(config_index: u64) -> GroupMessage {
    let mut membership = Membership::initial((1..=3).map(NodeId::must));
    membership.members.retain(|id, _| *id == ReplicaId::must(2));
    membership.newest_replica = ReplicaId::new(3);
    membership.config_index = config_index.into();
    let membership = Some(membership_to_message(&membership));
    let create_request = Some(CreateRequest { membership, ..CreateRequest::default() });
    GroupMessage { kind: MessageKind::Removed.into(), create_request, ..message(1, 2, 3) }
}

fn runs_after(config_index: u64) -> bool {
    let mut victim = Victim::new();
    victim.open(1, LogPosition::default());
    victim.follow(1, 2, 3, 6, 4);
    victim.deliver(notice(config_index));
    victim.settle();
    assert_eq!(victim.failures(), 0);
    victim.core.group(GroupId::new(1)).is_some()
}

#[test]
fn other_members_since_the_same_change_are_not_believed() {
    assert!(runs_after(0));
}

#[test]
fn a_later_change_that_a_quorum_of_its_voters_shows_ends_the_replica() {
    assert!(!runs_after(5));
}

//! Which notices end a replica that does not run.

use shardhost_proto::peer::{GroupMessage, Invitation, MessageKind};
use shardhost_storage::LogIndex;
use shardhost_storage::convert::membership_to_message;

use super::*;

const FROM: NodeId = NodeId::must(2);

/// The replica of node 1 of a group on three nodes.
fn meta() -> GroupMeta {
    GroupMeta {
        group: GroupId::new(7),
        replica: ReplicaId::must(1),
        membership: Membership::initial([1, 2, 3].map(NodeId::must)),
        snapshot: None,
        labels: BTreeMap::new(),
        kind: "table".to_owned(),
    }
}

/// What node 2 says after node 1 was removed.
fn notice() -> (Membership, GroupMessage) {
    let mut membership = meta().membership;
    membership.newest_replica = Some(ReplicaId::must(3));
    membership.members.remove(&ReplicaId::must(1));
    membership.config_index = LogIndex::new(9);
    let mut message =
        GroupMessage { group: 7, from_replica: 2, to_replica: 1, ..Default::default() };
    message.kind = MessageKind::Removed.into();
    message.genesis = membership.genesis.map_or(0, Genesis::get);
    (membership, message)
}

fn counts(membership: &Membership, mut message: GroupMessage, from: NodeId) -> bool {
    let membership = Some(membership_to_message(membership));
    message.invitation = Some(Invitation { membership, ..Invitation::default() });
    is_dismissal(&meta(), from, &message)
}

#[test]
fn a_member_of_the_group_that_goes_on_lets_the_replica_go() {
    let (membership, message) = notice();
    assert!(counts(&membership, message, FROM));
}

#[test]
fn a_notice_of_others_for_others_or_from_before_does_not_count() {
    let (membership, message) = notice();
    assert!(!counts(&membership, message.clone(), NodeId::must(3)), "another node sent it");
    let stranger = GroupMessage { from_replica: 9, ..message.clone() };
    assert!(!counts(&membership, stranger, FROM), "it comes from no member");
    let for_another = GroupMessage { to_replica: 3, ..message.clone() };
    assert!(!counts(&membership, for_another, FROM), "it is for another replica");
    let other_group = GroupMessage { genesis: message.genesis.wrapping_add(1).max(1), ..message };
    assert!(!counts(&membership, other_group, FROM), "it is of another group of that number");
    let (_, message) = notice();
    assert!(!counts(&meta().membership, message.clone(), FROM), "the replica is still a member");
    assert!(!is_dismissal(&meta(), FROM, &message), "it shows no configuration");
}

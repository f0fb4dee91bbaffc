//! Which notices end a replica that does not run.

use shardhost_proto::peer::{CreateRequest, GroupMessage, MessageKind};
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
        skipping: None,
    }
}

/// The notice of node 2 after node 1 was removed.
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
    message.create_request = Some(CreateRequest { membership, ..CreateRequest::default() });
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

/// Node 2 asks node 1 to hold replica 4 in the place of replica 1.
fn create_request() -> (Membership, GroupMessage) {
    let (mut membership, mut message) = notice();
    let asked = ReplicaId::must(4);
    membership.members.insert(asked, shardhost_storage::Member::learner(NodeId::must(1)));
    membership.newest_replica = Some(asked);
    message.kind = MessageKind::CreateReplica.into();
    message.to_replica = 4;
    (membership, message)
}

fn supersedes(membership: &Membership, mut message: GroupMessage, from: NodeId) -> bool {
    let membership = Some(membership_to_message(membership));
    message.create_request = Some(CreateRequest { membership, ..CreateRequest::default() });
    is_successor(&meta(), from, &message)
}

#[test]
fn an_create_request_for_another_replica_ends_the_one_that_was_removed() {
    let (membership, message) = create_request();
    assert!(supersedes(&membership, message, FROM));
}

#[test]
fn an_create_request_ends_nothing_that_is_a_member_or_of_another_group_or_node() {
    let (membership, message) = create_request();
    assert!(!supersedes(&membership, message.clone(), NodeId::must(3)), "another node sent it");
    let for_itself = GroupMessage { to_replica: 1, ..message.clone() };
    assert!(!supersedes(&membership, for_itself, FROM), "it is for the replica itself");
    let for_another = GroupMessage { to_replica: 3, ..message.clone() };
    assert!(!supersedes(&membership, for_another, FROM), "it is for another node");
    let other = GroupMessage { genesis: message.genesis.wrapping_add(1).max(1), ..message.clone() };
    assert!(!supersedes(&membership, other, FROM), "it is of another group of that number");
    let mut still = membership.clone();
    still.members.insert(ReplicaId::must(1), shardhost_storage::Member::voter(NodeId::must(1)));
    assert!(!supersedes(&still, message.clone(), FROM), "the replica is still a member");
    let mut earlier = membership;
    let mut known = meta();
    known.membership.config_index = LogIndex::new(20);
    earlier.config_index = LogIndex::new(9);
    let shown = Some(membership_to_message(&earlier));
    let create_request = Some(CreateRequest { membership: shown, ..CreateRequest::default() });
    let message = GroupMessage { create_request, ..message };
    assert!(!is_successor(&known, FROM, &message), "it is of an earlier configuration");
}

//! What a status of a group says of its members, and the status for programs.

use serde_json::{Value, json};
use shardhost_proto::admin::GroupStatus;
use shardhost_proto::log::{Member, MemberRole};

use super::requirement::requirement_json;

/// The members that a status shows.
pub fn members(group: &GroupStatus) -> &[Member] {
    group.membership.as_ref().map_or(&[], |membership| &membership.members)
}

/// The index of the configuration that a status shows.
pub fn config_index(group: &GroupStatus) -> Option<u64> {
    group.membership.as_ref().map(|membership| membership.config_index)
}

pub fn role_of(member: &Member) -> &'static str {
    match member.role() {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Unspecified => "leaving",
    }
}

/// A group, for programs.
pub fn group_json(group: &GroupStatus) -> Value {
    let members: Vec<Value> = members(group)
        .iter()
        .map(|member| {
            json!({ "node": member.node, "replica": member.replica, "role": role_of(member) })
        })
        .collect();
    let peers: Vec<Value> = group
        .peers
        .iter()
        .map(|peer| {
            json!({
                "replica": peer.replica,
                "node": peer.node,
                "matched": peer.matched,
                "next": peer.next,
                "state": peer.state,
                "recently_active": peer.recently_active,
            })
        })
        .collect();
    json!({
        "group": group.group,
        "kind": group.kind,
        "role": group.role,
        "replica": group.replica,
        "leader_node": group.leader_node,
        "term": group.term,
        "first_index": group.first_index,
        "last_index": group.last_index,
        "committed": group.committed,
        "applied": group.applied,
        "closed": group.closed,
        "hibernating": group.hibernating,
        "fault": group.fault,
        "transferring_to_node": group.transferring_to_node,
        "serving": group.serving,
        "caretaker": Some(&group.caretaker).filter(|why| !why.is_empty()),
        "requirement": requirement_json(group.membership.as_ref()),
        "lease": group.lease,
        "doubt": Some(&group.doubt).filter(|why| !why.is_empty()),
        "paused": group.paused,
        "conflicting_node": group.conflicting_node,
        "checked": group.checked,
        "differs": group.differs,
        "leader_contact_ms": group.leader_contact_ms,
        "config_index": group.membership.as_ref().map_or(0, |m| m.config_index),
        "pending_change": group.pending_change,
        "members": members,
        "peers": peers,
    })
}

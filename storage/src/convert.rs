//! Between the plain types and the messages on disk and wire.
//!
//! Every value fits into a message. Out of a message everything is checked, because its bytes come
//! from outside: a [`Malformed`] names the impossible value.

use std::collections::BTreeMap;

use shardhost_proto::log;

use crate::ids::{GroupId, LogIndex, LogPosition, NodeId, ReplicaId, Term};
use crate::requirement::{Requirement, RequirementMode, capability_names};
use crate::types::{
    Entry, EntryKind, Genesis, GroupMeta, HardState, Incoming, Member, Membership, SkipNote,
};

/// A message that no correct host writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {message}")]
pub struct Malformed {
    pub what: &'static str,
    /// The error in it.
    pub message: String,
}

impl Malformed {
    pub(crate) fn new(what: &'static str, message: impl Into<String>) -> Self {
        Self { what, message: message.into() }
    }
}

/// The message of an entry. Its index is not part of it.
#[must_use]
pub fn entry_to_message(entry: &Entry) -> log::Entry {
    let kind = match entry.kind {
        EntryKind::Command => log::EntryKind::Command,
        EntryKind::Config => log::EntryKind::Config,
        EntryKind::Requirement => log::EntryKind::Requirement,
    };
    log::Entry {
        kind: kind.into(),
        term: entry.term.get(),
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}

/// The entry at `index` from its message. Its bytes are not copied.
///
/// # Errors
/// [`Malformed`] when the kind is none that this version knows.
pub fn entry_from_message(index: LogIndex, entry: log::Entry) -> Result<Entry, Malformed> {
    let kind = match entry.kind() {
        log::EntryKind::Command => EntryKind::Command,
        log::EntryKind::Config => EntryKind::Config,
        log::EntryKind::Requirement => EntryKind::Requirement,
        log::EntryKind::Unspecified => {
            let message = format!("entry {index} is of the unknown kind {}", entry.kind);
            return Err(Malformed::new("entry", message));
        }
    };
    let term = Term::new(entry.term);
    Ok(Entry { term, index, kind, data: entry.data, context: entry.context })
}

/// The message of a hard state.
#[must_use]
pub fn hard_state_to_message(state: &HardState) -> log::HardState {
    log::HardState {
        term: state.term.get(),
        vote: state.vote.map_or(0, ReplicaId::get),
        commit: state.commit.get(),
    }
}

/// The hard state of a message: every one is a valid one.
#[must_use]
pub fn hard_state_from_message(state: &log::HardState) -> HardState {
    HardState {
        term: Term::new(state.term),
        vote: ReplicaId::new(state.vote),
        commit: LogIndex::new(state.commit),
    }
}

/// The message of a position.
#[must_use]
pub fn position_to_message(position: LogPosition) -> log::LogPosition {
    log::LogPosition { term: position.term.get(), index: position.index.get() }
}

/// The position of a message: every one is a valid one.
#[must_use]
pub fn position_from_message(position: &log::LogPosition) -> LogPosition {
    LogPosition::new(position.term, position.index)
}

/// The message of a membership.
#[must_use]
pub fn membership_to_message(membership: &Membership) -> log::Membership {
    let members = membership.members.iter().map(|(id, member)| member_to_message(*id, member));
    log::Membership {
        config_index: membership.config_index.get(),
        members: members.collect(),
        auto_leave: membership.auto_leave,
        newest_replica: membership.newest_replica.map_or(0, ReplicaId::get),
        incoming: membership.incoming.map(incoming_to_message),
        genesis: membership.genesis.map_or(0, Genesis::get),
        requirement: requirement_to_message(&membership.requirement),
    }
}

/// The message of what a group asks of its leader; `None`: nothing.
#[must_use]
pub fn requirement_to_message(requirement: &Requirement) -> Option<log::Requirement> {
    (*requirement != Requirement::default()).then(|| log::Requirement {
        capabilities: requirement.capabilities.iter().cloned().collect(),
        soft: requirement.mode == RequirementMode::Soft,
    })
}

/// What a group asks of its leader, from a message.
///
/// # Errors
/// [`Malformed`] when a name is not well formed, or there are too many.
pub fn requirement_from_message(
    message: Option<&log::Requirement>,
) -> Result<Requirement, Malformed> {
    let Some(message) = message else { return Ok(Requirement::default()) };
    let capabilities = capability_names(message.capabilities.iter().cloned())
        .map_err(|error| Malformed::new("requirement", error.to_string()))?;
    let mode = if message.soft { RequirementMode::Soft } else { RequirementMode::Hard };
    Ok(Requirement { capabilities, mode })
}

/// The message of an addition that is under way.
#[must_use]
pub fn incoming_to_message(incoming: Incoming) -> log::Incoming {
    let replaces = incoming.replaces.map_or(0, ReplicaId::get);
    log::Incoming { replica: incoming.replica.get(), replaces }
}

/// The addition that a message names as pending.
///
/// # Errors
/// [`Malformed`] when the replica is zero, or replaces itself.
pub fn incoming_from_message(message: &log::Incoming) -> Result<Incoming, Malformed> {
    let replaces = ReplicaId::new(message.replaces);
    match ReplicaId::new(message.replica) {
        Some(replica) if replaces != Some(replica) => Ok(Incoming { replica, replaces }),
        _ => {
            let text = format!("replica {} for {}", message.replica, message.replaces);
            Err(Malformed::new("addition under way", text))
        }
    }
}

/// The membership of a message.
///
/// # Errors
/// [`Malformed`] when an id is zero or occurs twice, or a member has no part in the group.
pub fn membership_from_message(message: &log::Membership) -> Result<Membership, Malformed> {
    let mut members = BTreeMap::new();
    for member in &message.members {
        let (id, plain) = member_from_message(member)?;
        if members.insert(id, plain).is_some() {
            return Err(Malformed::new("membership", format!("replica {id} occurs twice")));
        }
    }
    let config_index = LogIndex::new(message.config_index);
    let incoming = message.incoming.as_ref().map(incoming_from_message).transpose()?;
    Ok(Membership {
        config_index,
        members,
        auto_leave: message.auto_leave,
        newest_replica: ReplicaId::new(message.newest_replica),
        incoming,
        genesis: Genesis::new(message.genesis),
        requirement: requirement_from_message(message.requirement.as_ref())?,
    })
}

/// The message of what a replica knows of itself.
#[must_use]
pub fn meta_to_message(meta: &GroupMeta) -> log::GroupMeta {
    log::GroupMeta {
        group: meta.group.get(),
        replica: meta.replica.get(),
        membership: Some(membership_to_message(&meta.membership)),
        snapshot: meta.snapshot.map(position_to_message),
        labels: meta.labels.clone().into_iter().collect(),
        kind: meta.kind.clone(),
        skipping: meta.skipping.map(|note| position_to_message(note.entry)),
        skip_entered: meta.skipping.is_some_and(|note| note.entered),
    }
}

/// What a replica knows of itself, from a message.
///
/// # Errors
/// [`Malformed`] when the replica is zero, or the membership missing or malformed.
pub fn meta_from_message(message: log::GroupMeta) -> Result<GroupMeta, Malformed> {
    let replica = ReplicaId::new(message.replica)
        .ok_or_else(|| Malformed::new("group meta", "the replica id is zero"))?;
    let membership = message
        .membership
        .as_ref()
        .ok_or_else(|| Malformed::new("group meta", "the membership is missing"))?;
    let entered = message.skip_entered;
    let skipping = message.skipping.as_ref().map(position_from_message);
    Ok(GroupMeta {
        group: GroupId::new(message.group),
        replica,
        membership: membership_from_message(membership)?,
        snapshot: message.snapshot.as_ref().map(position_from_message),
        labels: message.labels.into_iter().collect(),
        kind: message.kind,
        skipping: skipping.map(|entry| SkipNote { entry, entered }),
    })
}

fn member_to_message(id: ReplicaId, member: &Member) -> log::Member {
    let role = match (member.voter, member.learner) {
        (true, _) => log::MemberRole::Voter,
        (false, true) => log::MemberRole::Learner,
        (false, false) => log::MemberRole::Unspecified,
    };
    log::Member {
        replica: id.get(),
        node: member.node.get(),
        role: role.into(),
        outgoing_voter: member.outgoing_voter,
        never_voted: member.never_voted,
    }
}

fn member_from_message(message: &log::Member) -> Result<(ReplicaId, Member), Malformed> {
    let (Some(id), Some(node)) = (ReplicaId::new(message.replica), NodeId::new(message.node))
    else {
        let message = format!("replica {} on node {}", message.replica, message.node);
        return Err(Malformed::new("member with a zero id", message));
    };
    let role = log::MemberRole::try_from(message.role)
        .map_err(|_| Malformed::new("member", format!("replica {id} has an unknown role")))?;
    if role == log::MemberRole::Unspecified && !message.outgoing_voter {
        return Err(Malformed::new("member", format!("replica {id} has no part in the group")));
    }
    let voter = role == log::MemberRole::Voter;
    let learner = role == log::MemberRole::Learner;
    let (outgoing_voter, never_voted) = (message.outgoing_voter, message.never_voted);
    if never_voted && (voter || outgoing_voter) {
        return Err(Malformed::new("member", format!("replica {id} votes and never voted")));
    }
    Ok((id, Member { node, voter, learner, outgoing_voter, never_voted }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint_meta() -> GroupMeta {
        let node = NodeId::must;
        let members = [
            (ReplicaId::must(1), Member::voter(node(1))),
            (
                ReplicaId::must(2),
                Member { outgoing_voter: true, never_voted: false, ..Member::learner(node(2)) },
            ),
            (
                ReplicaId::must(u64::MAX),
                Member { voter: false, outgoing_voter: true, ..Member::voter(node(3)) },
            ),
        ];
        GroupMeta {
            group: GroupId::new(u64::MAX),
            replica: ReplicaId::must(2),
            membership: Membership {
                config_index: LogIndex::new(9),
                members: members.into(),
                auto_leave: true,
                newest_replica: ReplicaId::new(u64::MAX),
                incoming: Some(Incoming {
                    replica: ReplicaId::must(u64::MAX),
                    replaces: ReplicaId::new(1),
                }),
                genesis: Genesis::new(u64::MAX),
                requirement: Requirement::soft(["fifo", "ssd"]).unwrap(),
            },
            snapshot: Some(LogPosition::new(3, 8)),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            kind: "table".to_owned(),
            skipping: Some(SkipNote { entry: LogPosition::new(3, 9), entered: true }),
        }
    }

    #[test]
    fn a_meta_survives_the_round_trip() {
        let meta = joint_meta();
        assert_eq!(meta_from_message(meta_to_message(&meta)), Ok(meta));
    }

    #[test]
    fn a_hard_state_survives_the_round_trip() {
        for vote in [None, ReplicaId::new(4)] {
            let state = HardState { term: Term::new(5), vote, commit: LogIndex::new(6) };
            assert_eq!(hard_state_from_message(&hard_state_to_message(&state)), state);
        }
    }

    #[test]
    fn a_meta_without_replica_or_membership_is_malformed() {
        let message = meta_to_message(&joint_meta());
        assert!(meta_from_message(log::GroupMeta { replica: 0, ..message.clone() }).is_err());
        assert!(meta_from_message(log::GroupMeta { membership: None, ..message }).is_err());
    }

    #[test]
    fn a_malformed_member_is_refused() {
        let refused = |change: fn(&mut Vec<log::Member>)| {
            let mut message = membership_to_message(&joint_meta().membership);
            change(&mut message.members);
            membership_from_message(&message).is_err()
        };
        assert!(!refused(|_| ()), "the unchanged one is fine");
        assert!(refused(|members| members[0].replica = 0), "zero replica");
        assert!(refused(|members| members[0].node = 0), "zero node");
        assert!(refused(|members| members[0].role = 7), "unknown role");
        assert!(refused(|members| members[0].role = 0), "no role at all");
        assert!(refused(|members| members[1].replica = 1), "the same replica twice");
    }
}

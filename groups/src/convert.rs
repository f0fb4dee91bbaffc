//! Between the three shapes of the same things: raft's structs, the log's types, the wire's
//! messages. Pure; what comes from the wire was validated before it gets here.

use bytes::Bytes;
use raft::eraftpb;
use shardhost_proto::{log, peer};
use shardhost_storage::convert::membership_from_message;
use shardhost_storage::{
    Entry, EntryKind, GroupId, HardState, LogIndex, LogPosition, Membership, ReplicaId, Term,
};

use crate::transport::Lane;

/// A raft message on its way to the wire. `None` for messages that never leave a node, and for an
/// append whose entries do not follow its index: the wire keeps the index of the first entry only,
/// so such a message would put entries in the wrong place.
pub(crate) fn to_wire(group: GroupId, message: eraftpb::Message) -> Option<peer::GroupMessage> {
    let kind = wire_kind(message.msg_type)?;
    if !entries_follow(&message) {
        tracing::error!(%group, to = message.to, index = message.index,
            "raft made an append whose entries do not follow its index; it is not sent");
        return None;
    }
    let mut wire = peer::GroupMessage {
        group: group.get(),
        from_replica: message.from,
        to_replica: message.to,
        kind: kind.into(),
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        request_snapshot: message.request_snapshot,
        priority: message.priority,
        context: message.context,
        ..peer::GroupMessage::default()
    };
    wire.entries = message.entries.into_iter().map(entry_to_wire).collect();
    if let Some(snapshot) = message.snapshot.into_option() {
        let metadata = snapshot.get_metadata();
        let position = log::LogPosition { term: metadata.term, index: metadata.index };
        wire.snapshot = Some(peer::SnapshotMeta { position: Some(position), membership: None });
    }
    Some(wire)
}

/// A validated message from the wire for raft. `None` for kinds that are not raft's.
pub(crate) fn from_wire(wire: peer::GroupMessage) -> Option<eraftpb::Message> {
    let mut message = eraftpb::Message::default();
    message.set_msg_type(raft_kind(wire.kind())?);
    message.from = wire.from_replica;
    message.to = wire.to_replica;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.request_snapshot = wire.request_snapshot;
    message.priority = wire.priority;
    message.context = wire.context;
    let first = wire.index + 1;
    let entries = wire.entries.into_iter().zip(first..);
    message.entries = entries.map(|(entry, index)| entry_from_wire(entry, index)).collect();
    if let Some(meta) = wire.snapshot {
        message.set_snapshot(snapshot_from_wire(meta));
    }
    Some(message)
}

/// Distinguishes an entry with a requirement from a command while raft has it: commands have no
/// context.
pub(crate) const REQUIREMENT_MARK: Bytes = Bytes::from_static(b"requirement");

/// Whether the entry sets the requirement of the group.
pub(crate) fn is_requirement(entry: &eraftpb::Entry) -> bool {
    entry.entry_type == eraftpb::EntryType::EntryNormal && entry.context == REQUIREMENT_MARK
}

/// Distinguishes the check entry, at which replicas are compared, from the entry that a leader
/// starts its term with. It travels and is not written: an earlier version takes the entry for an
/// empty one, and a replica that reads it from its log does not take part in the comparison.
pub(crate) const CHECK_MARK: Bytes = Bytes::from_static(b"check");

/// Whether replicas are compared at this entry.
pub(crate) fn is_check(entry: &eraftpb::Entry) -> bool {
    entry.entry_type == eraftpb::EntryType::EntryNormal
        && entry.data.is_empty()
        && entry.context == CHECK_MARK
}

/// Whether the entries are contiguous and begin right behind the message's index.
fn entries_follow(message: &eraftpb::Message) -> bool {
    message.entries.iter().zip(message.index + 1..).all(|(entry, index)| entry.index == index)
}

fn entry_to_wire(entry: eraftpb::Entry) -> log::Entry {
    let kind = match entry.entry_type {
        eraftpb::EntryType::EntryNormal if is_requirement(&entry) => log::EntryKind::Requirement,
        eraftpb::EntryType::EntryNormal => log::EntryKind::Command,
        _ => log::EntryKind::Config,
    };
    let travels = kind == log::EntryKind::Config || is_check(&entry);
    let context = if travels { entry.context } else { Bytes::new() };
    log::Entry { kind: kind.into(), term: entry.term, data: entry.data, context }
}

fn entry_from_wire(wire: log::Entry, index: u64) -> eraftpb::Entry {
    let entry_type = match wire.kind() {
        log::EntryKind::Config => eraftpb::EntryType::EntryConfChangeV2,
        _ => eraftpb::EntryType::EntryNormal,
    };
    let context = match wire.kind() {
        log::EntryKind::Requirement => REQUIREMENT_MARK,
        log::EntryKind::Config => wire.context,
        _ if wire.data.is_empty() && wire.context == CHECK_MARK => CHECK_MARK,
        _ => Bytes::new(),
    };
    let log::Entry { term, data, .. } = wire;
    eraftpb::Entry { entry_type, term, index, data, context, ..eraftpb::Entry::default() }
}

fn snapshot_from_wire(meta: peer::SnapshotMeta) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot::default();
    let metadata = snapshot.mut_metadata();
    if let Some(position) = meta.position {
        metadata.term = position.term;
        metadata.index = position.index;
    }
    if let Some(membership) = meta.membership.as_ref().and_then(membership_from_wire) {
        metadata.set_conf_state(conf_state(&membership));
    }
    snapshot
}

/// Raft's view of a membership.
pub(crate) fn conf_state(membership: &Membership) -> eraftpb::ConfState {
    let mut state = eraftpb::ConfState::default();
    for (id, member) in &membership.members {
        if member.voter {
            state.voters.push(id.get());
        }
        if member.learner && !member.outgoing_voter {
            state.learners.push(id.get());
        }
        if member.learner && member.outgoing_voter {
            state.learners_next.push(id.get());
        }
        if member.outgoing_voter {
            state.voters_outgoing.push(id.get());
        }
    }
    state.auto_leave = membership.auto_leave;
    state
}

/// A membership from the wire; `None` when it makes no sense.
pub(crate) fn membership_from_wire(wire: &log::Membership) -> Option<Membership> {
    membership_from_message(wire).ok()
}

/// An entry for the log. Shares the payload.
pub(crate) fn entry_to_log(entry: &eraftpb::Entry) -> Entry {
    Entry {
        term: Term::new(entry.term),
        index: LogIndex::new(entry.index),
        kind: match entry.entry_type {
            eraftpb::EntryType::EntryNormal if is_requirement(entry) => EntryKind::Requirement,
            eraftpb::EntryType::EntryNormal => EntryKind::Command,
            _ => EntryKind::Config,
        },
        data: entry.data.clone(),
        context: match entry.entry_type {
            eraftpb::EntryType::EntryNormal => Bytes::new(),
            _ => entry.context.clone(),
        },
    }
}

/// An entry from the log.
pub(crate) fn entry_from_log(entry: Entry) -> eraftpb::Entry {
    let entry_type = match entry.kind {
        EntryKind::Command | EntryKind::Requirement => eraftpb::EntryType::EntryNormal,
        EntryKind::Config => eraftpb::EntryType::EntryConfChangeV2,
    };
    let (term, index) = (entry.term.get(), entry.index.get());
    let mark = entry.kind == EntryKind::Requirement;
    let Entry { data, context, .. } = entry;
    let context = if mark { REQUIREMENT_MARK } else { context };
    eraftpb::Entry { entry_type, term, index, data, context, ..eraftpb::Entry::default() }
}

/// Hard state for the log.
pub(crate) fn hard_state_to_log(state: &eraftpb::HardState) -> HardState {
    HardState {
        term: Term::new(state.term),
        vote: ReplicaId::new(state.vote),
        commit: LogIndex::new(state.commit),
    }
}

/// Hard state from the log.
pub(crate) fn hard_state_from_log(state: &HardState) -> eraftpb::HardState {
    eraftpb::HardState {
        term: state.term.get(),
        vote: state.vote.map_or(0, ReplicaId::get),
        commit: state.commit.get(),
        ..eraftpb::HardState::default()
    }
}

/// The position that a wire message names, if it does.
pub(crate) fn position_from_wire(wire: Option<&log::LogPosition>) -> Option<LogPosition> {
    wire.map(|position| LogPosition::new(position.term, position.index))
}

pub(crate) const fn lane(kind: peer::MessageKind) -> Lane {
    use peer::MessageKind as Kind;
    match kind {
        Kind::Append | Kind::AppendResponse | Kind::Snapshot => Lane::Bulk,
        _ => Lane::Urgent,
    }
}

const fn wire_kind(kind: eraftpb::MessageType) -> Option<peer::MessageKind> {
    use eraftpb::MessageType as Raft;
    use peer::MessageKind as Wire;
    Some(match kind {
        Raft::MsgAppend => Wire::Append,
        Raft::MsgAppendResponse => Wire::AppendResponse,
        Raft::MsgHeartbeat => Wire::Heartbeat,
        Raft::MsgHeartbeatResponse => Wire::HeartbeatResponse,
        Raft::MsgRequestVote => Wire::Vote,
        Raft::MsgRequestVoteResponse => Wire::VoteResponse,
        Raft::MsgRequestPreVote => Wire::PreVote,
        Raft::MsgRequestPreVoteResponse => Wire::PreVoteResponse,
        Raft::MsgSnapshot => Wire::Snapshot,
        Raft::MsgTimeoutNow => Wire::TimeoutNow,
        Raft::MsgReadIndex => Wire::ReadIndex,
        Raft::MsgReadIndexResp => Wire::ReadIndexResponse,
        _ => return None,
    })
}

const fn raft_kind(kind: peer::MessageKind) -> Option<eraftpb::MessageType> {
    use eraftpb::MessageType as Raft;
    use peer::MessageKind as Wire;
    Some(match kind {
        Wire::Append => Raft::MsgAppend,
        Wire::AppendResponse => Raft::MsgAppendResponse,
        Wire::Heartbeat => Raft::MsgHeartbeat,
        Wire::HeartbeatResponse => Raft::MsgHeartbeatResponse,
        Wire::Vote => Raft::MsgRequestVote,
        Wire::VoteResponse => Raft::MsgRequestVoteResponse,
        Wire::PreVote => Raft::MsgRequestPreVote,
        Wire::PreVoteResponse => Raft::MsgRequestPreVoteResponse,
        Wire::Snapshot => Raft::MsgSnapshot,
        Wire::TimeoutNow => Raft::MsgTimeoutNow,
        Wire::ReadIndex => Raft::MsgReadIndex,
        Wire::ReadIndexResponse => Raft::MsgReadIndexResp,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(index: u64, entries: &[u64]) -> eraftpb::Message {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgAppend);
        message.index = index;
        let entry = |index: &u64| eraftpb::Entry { index: *index, ..Default::default() };
        message.entries = entries.iter().map(entry).collect();
        message
    }

    #[test]
    fn an_append_travels_only_when_its_entries_follow_its_index() {
        let group = GroupId::new(1);
        for (index, entries) in [(0, vec![]), (5, vec![]), (5, vec![6, 7, 8]), (0, vec![1])] {
            assert!(to_wire(group, append(index, &entries)).is_some(), "{index} {entries:?}");
        }
        for (index, entries) in [(216, vec![214, 215, 216]), (5, vec![7]), (5, vec![6, 8])] {
            assert!(to_wire(group, append(index, &entries)).is_none(), "{index} {entries:?}");
        }
    }

    #[test]
    fn entries_keep_their_places_over_the_wire() {
        let wire = to_wire(GroupId::new(1), append(5, &[6, 7, 8])).unwrap();
        let back = from_wire(wire).unwrap();
        let places: Vec<u64> = back.entries.iter().map(|entry| entry.index).collect();
        assert_eq!(places, [6, 7, 8]);
    }
}

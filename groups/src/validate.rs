//! What a message from the wire must be before raft sees it.
//!
//! Raft 0.7 panics on, or is silently misled by, many messages that a correct peer never sends.
//! This module decides, from the message and a small view of the replica alone, whether a message
//! is one that a correct peer could have sent. It knows nothing of connections: cluster, node and
//! incarnation were checked before.
//!
//! Numbers are compared with what the sender can know: an index with the end of its log, a term
//! with that of the message, and all of them with how far a peer can be ahead. A number beyond is
//! refused and not remembered, because a number that only grows is never taken back.

use std::fmt;

use shardhost_proto::log::EntryKind;
use shardhost_proto::peer::{ChecksumVerdict, GroupMessage, MessageKind, SnapshotMeta};
use shardhost_storage::{Genesis, Membership, NodeId, ReplicaId};

use crate::convert;
use crate::membership::{ConfigEntry, decode_requirement};

/// A term may be ahead of ours by this much at most; more is damage, not progress.
pub const MAX_TERM_JUMP: u64 = 1 << 32;
/// Indexes and terms stay below this, and so do moments: nanoseconds of a clock that began when the
/// machine did.
pub const MAX_NUMBER: u64 = 1 << 62;
/// A log may be ahead of ours by this many entries at most: more than a group commits in years.
pub const MAX_INDEX_JUMP: u64 = 1 << 44;
/// A membership may know replicas with numbers ahead of ours by this much at most.
pub const MAX_REPLICA_JUMP: u64 = 1 << 32;
/// Payload bytes of all entries of one message.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Bytes of a message's context.
pub const MAX_CONTEXT_BYTES: usize = 64;

/// What the validator needs to know of the replica that a message is for.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaView<'a> {
    pub replica: ReplicaId,
    pub term: u64,
    /// Who leads that term, 0: unknown.
    pub leader: u64,
    pub leads: bool,
    pub last_index: u64,
    /// Up to where its log is durable.
    pub persisted: u64,
    pub committed: u64,
    /// Who belongs to the group, as far as this replica has applied.
    pub membership: &'a Membership,
    /// The nodes of replicas that the membership does not know yet, from their messages.
    pub contacts: &'a [(ReplicaId, NodeId)],
}

/// Why a message was refused. The names double as those of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refusal {
    /// The kind is unknown or never travels between nodes.
    Kind,
    WrongReplica,
    /// The sender is no member, or lives on another node.
    Stranger,
    /// The term is zero, absurdly large, or far ahead.
    Term,
    /// An index is absurdly large, or one that the sender's log cannot have.
    Index,
    /// A moment of the sender's clock is absurdly late.
    Moment,
    /// The entry that an append continues, or that a candidate's log ends with, has a term but no
    /// index, the other way round, or a term that it cannot have.
    PreviousEntry,
    /// An appended entry has a wrong term.
    EntryTerm,
    /// An appended entry has an unknown kind.
    EntryKind,
    /// A membership change or a requirement in an entry does not parse.
    EntryConfig,
    /// The message is too large.
    TooLarge,
    /// Entries where none belong, or none where one belongs.
    Entries,
    /// An append or a snapshot would overwrite committed entries.
    CommittedConflict,
    /// A heartbeat names a commit index beyond this replica's log: it lost its tail.
    LostTail,
    /// A response acknowledges more than was ever sent.
    AckBeyondLog,
    /// A snapshot without a position, or with an invalid membership, or that was not asked for.
    Snapshot,
    /// A message of a leader from a replica that does not lead.
    NotFromLeader,
    /// A vote for a replica that cannot have asked for it yet.
    Unasked,
    /// From a replica that was removed from the group. It gets a notice.
    Removed,
    /// An election while the vote is locked for the leader that was heard.
    VoteLocked,
    /// An order to campaign that came too late.
    StaleOrder,
    /// A create request or a notice without a membership that makes sense.
    CreateRequest,
    /// An answer about what was lost without memberships that make sense, or one where none
    /// belongs.
    Recovery,
    /// A comparison of replicas without a checksum or a verdict, or one where none belongs.
    Checksum,
    /// From a group of the same id that was created with other members.
    OtherGenesis,
    /// The log of this replica may have lost something, and the message would have it take part as
    /// if it had not.
    InDoubt,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kind => "unknown kind",
            Self::WrongReplica => "wrong replica",
            Self::Stranger => "stranger",
            Self::Term => "impossible term",
            Self::Index => "impossible index",
            Self::Moment => "impossible moment",
            Self::PreviousEntry => "impossible previous entry",
            Self::EntryTerm => "impossible term of an entry",
            Self::EntryKind => "unknown kind of entry",
            Self::EntryConfig => "unreadable membership change",
            Self::TooLarge => "too large",
            Self::Entries => "misplaced entries",
            Self::CommittedConflict => "conflict with committed entries",
            Self::LostTail => "committed beyond the log",
            Self::AckBeyondLog => "acknowledged beyond the log",
            Self::Snapshot => "impossible snapshot",
            Self::NotFromLeader => "not from the leader",
            Self::Unasked => "a vote that was not asked for",
            Self::Removed => "from a removed replica",
            Self::VoteLocked => "its vote is locked for the leader",
            Self::StaleOrder => "an order to campaign that came too late",
            Self::CreateRequest => "impossible create request",
            Self::Recovery => "impossible answer about what was lost",
            Self::Checksum => "impossible comparison of replicas",
            Self::OtherGenesis => "from a group that was created with other members",
            Self::InDoubt => "the log of the replica may have lost something",
        })
    }
}

/// Checks a message from `node`. `term_at` returns the term of an index of this replica's log,
/// `None` where it is unknown.
///
/// # Errors
/// The first reason to refuse it.
pub fn validate(
    view: &ReplicaView<'_>,
    node: NodeId,
    message: &GroupMessage,
    term_at: impl Fn(u64) -> Option<u64>,
) -> Result<(), Refusal> {
    let kind = MessageKind::try_from(message.kind).map_err(|_| Refusal::Kind)?;
    // Groups of one id that were created with other members number their replicas in other ways.
    check_genesis(view, Genesis::new(message.genesis))?;
    if message.to_replica != view.replica.get() {
        return Err(Refusal::WrongReplica);
    }
    check_sender(view, node, kind, message)?;
    check_numbers(view, message)?;
    check_placement(kind, message)?;
    match kind {
        MessageKind::Unspecified => Err(Refusal::Kind),
        MessageKind::Append => check_append(view, message, term_at),
        MessageKind::Heartbeat => check_heartbeat(view, message),
        MessageKind::AppendResponse => check_response(view, message),
        MessageKind::Snapshot if message.any_giver => check_given_state(view, message),
        MessageKind::Snapshot => check_snapshot(view, message, term_at),
        MessageKind::Vote | MessageKind::PreVote => check_candidate(message),
        MessageKind::VoteResponse => check_vote(view, message),
        MessageKind::TimeoutNow | MessageKind::Hibernate => check_from_leader(view, message),
        MessageKind::ReadIndexResponse => check_from_leader(view, message),
        MessageKind::CreateReplica | MessageKind::Removed => {
            check_create_request(view.membership, message)
        }
        MessageKind::RecoveryResponse => check_recovery(view, message),
        MessageKind::StateRequest => check_state_request(view, message),
        MessageKind::Checksum => check_checksum(view, message),
        MessageKind::ChecksumVerdict => {
            check_checksum(view, message)?;
            check_from_leader(view, message)
        }
        _ => Ok(()),
    }
}

fn check_sender(
    view: &ReplicaView<'_>,
    node: NodeId,
    kind: MessageKind,
    message: &GroupMessage,
) -> Result<(), Refusal> {
    let from = ReplicaId::new(message.from_replica).ok_or(Refusal::Stranger)?;
    if from == view.replica {
        return Err(Refusal::Stranger);
    }
    match view.membership.node_of(from) {
        Some(known) if known == node => Ok(()),
        Some(_) => Err(Refusal::Stranger),
        None if view.membership.was_removed(from) => Err(Refusal::Removed),
        None => check_first_contact(view, from, node, kind),
    }
}

/// A replica that was added by a change that is not applied here yet may lead or campaign, or have lost
/// its state.
fn check_first_contact(
    view: &ReplicaView<'_>,
    from: ReplicaId,
    node: NodeId,
    kind: MessageKind,
) -> Result<(), Refusal> {
    let may_come_first = matches!(
        kind,
        MessageKind::Append
            | MessageKind::Heartbeat
            | MessageKind::Snapshot
            | MessageKind::Vote
            | MessageKind::PreVote
            | MessageKind::TimeoutNow
            | MessageKind::Hibernate
            | MessageKind::ReadIndexResponse
            | MessageKind::Wake
            | MessageKind::Removed
            | MessageKind::CreateReplica
            | MessageKind::RecoveryRequest
            | MessageKind::RecoveryResponse
            | MessageKind::StateRequest
    );
    let elsewhere = view.contacts.iter().any(|(id, known)| *id == from && *known != node);
    if may_come_first && !elsewhere { Ok(()) } else { Err(Refusal::Stranger) }
}

/// Whether the configuration of a create-replica request, or of a notice of removal, is one of this
/// group. Indexes of configurations of two groups cannot be compared, and a replica may end because
/// of one, so here a sender without its first members is refused.
///
/// # Errors
/// It is not one that can be read, or one of another group.
pub(crate) fn check_create_request(
    ours: &Membership,
    message: &GroupMessage,
) -> Result<(), Refusal> {
    let membership = message.create_request.as_ref().and_then(|one| one.membership.as_ref());
    let membership = membership.and_then(convert::membership_from_wire);
    let membership = membership.ok_or(Refusal::CreateRequest)?;
    let same = ours.genesis.is_none() || ours.genesis == membership.genesis;
    if !same {
        return Err(Refusal::OtherGenesis);
    }
    let known = newest_of(ours);
    let plausible = has_plausible_numbers(&membership, told_end(message), known);
    if plausible { Ok(()) } else { Err(Refusal::CreateRequest) }
}

/// The commit index of the sender of a membership; an older version does not have it.
pub(crate) const fn told_end(message: &GroupMessage) -> u64 {
    if message.commit == 0 { MAX_NUMBER - 1 } else { message.commit }
}

/// Whether a membership can be that of a replica whose log ends at `end`, and its replicas can have
/// these numbers where the newest known one is `newest`.
pub(crate) fn has_plausible_numbers(membership: &Membership, end: u64, newest: u64) -> bool {
    let config = membership.config_index.get();
    config <= end
        && config < MAX_NUMBER
        && newest_of(membership) <= newest.saturating_add(MAX_REPLICA_JUMP)
}

/// The number below those of all replicas of the generation that a membership is of. Where the
/// group is unknown, its members determine which generation that is.
pub(crate) fn floor_of_generation(membership: &Membership) -> u64 {
    let lowest = membership.members.first_key_value().map_or(0, |(id, _)| id.get());
    lowest & !(MAX_REPLICA_JUMP - 1)
}

/// Whether a replica has a number of the generation that a membership is of.
pub(crate) fn is_of_generation(replica: u64, membership: &Membership) -> bool {
    replica & !(MAX_REPLICA_JUMP - 1) == floor_of_generation(membership)
}

/// The highest number of a replica that a membership knows, of those that were removed too.
fn newest_of(membership: &Membership) -> u64 {
    let member = membership.members.last_key_value().map_or(0, |(id, _)| id.get());
    let incoming = membership.incoming.map_or(0, |incoming| incoming.replica.get());
    membership.newest_replica.map_or(0, ReplicaId::get).max(member).max(incoming)
}

/// Two groups of one id have nothing to say to each other: their votes must not mix.
fn check_genesis(view: &ReplicaView<'_>, genesis: Option<Genesis>) -> Result<(), Refusal> {
    if view.membership.may_be(genesis) { Ok(()) } else { Err(Refusal::OtherGenesis) }
}

fn check_numbers(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    let term = message.term;
    if term == 0 || term >= MAX_NUMBER || term > view.term.saturating_add(MAX_TERM_JUMP) {
        return Err(Refusal::Term);
    }
    let terms = [message.log_term, message.commit_term];
    if terms.iter().any(|&number| number >= MAX_NUMBER) {
        return Err(Refusal::Term);
    }
    let indexes = [message.index, message.commit, message.reject_hint, message.request_snapshot];
    let furthest = view.last_index.saturating_add(MAX_INDEX_JUMP).min(MAX_NUMBER - 1);
    if indexes.iter().any(|&number| number > furthest) {
        return Err(Refusal::Index);
    }
    // The stamps of other kinds are names, not moments.
    let kind = message.kind();
    let timed = matches!(
        kind,
        MessageKind::Heartbeat | MessageKind::HeartbeatResponse | MessageKind::TimeoutNow
    );
    if timed && message.stamp >= MAX_NUMBER {
        return Err(Refusal::Moment);
    }
    let payload: usize = message.entries.iter().map(|e| e.data.len() + e.context.len()).sum();
    if payload > MAX_MESSAGE_BYTES || message.context.len() > MAX_CONTEXT_BYTES {
        return Err(Refusal::TooLarge);
    }
    Ok(())
}

fn check_placement(kind: MessageKind, message: &GroupMessage) -> Result<(), Refusal> {
    if kind != MessageKind::Append && !message.entries.is_empty() {
        return Err(Refusal::Entries);
    }
    if (kind == MessageKind::Snapshot) != message.snapshot.is_some() {
        return Err(Refusal::Snapshot);
    }
    let shows = matches!(kind, MessageKind::CreateReplica | MessageKind::Removed);
    if shows != message.create_request.is_some() {
        return Err(Refusal::CreateRequest);
    }
    if (kind == MessageKind::RecoveryResponse) != message.recovery.is_some() {
        return Err(Refusal::Recovery);
    }
    let compares = matches!(kind, MessageKind::Checksum | MessageKind::ChecksumVerdict);
    let judges = kind == MessageKind::ChecksumVerdict;
    if compares != message.checksum.is_some() || judges != (message.verdict != 0) {
        return Err(Refusal::Checksum);
    }
    Ok(())
}

/// A log begins where its group has committed something, which a leader's log has.
fn check_state_request(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    let current = view.leads && message.term == view.term;
    if current && message.index > view.last_index {
        return Err(Refusal::AckBeyondLog);
    }
    Ok(())
}

/// A checksum, or what became of it, is about an entry that both can have.
fn check_checksum(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    if message.index == 0 || message.log_term == 0 || message.log_term > message.term {
        return Err(Refusal::PreviousEntry);
    }
    if message.index > view.last_index {
        return Err(Refusal::AckBeyondLog);
    }
    ChecksumVerdict::try_from(message.verdict).map(|_| ()).map_err(|_| Refusal::Checksum)
}

/// The memberships of an answer about what was lost are those of this group.
fn check_recovery(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return Err(Refusal::PreviousEntry);
    }
    let furthest = view.last_index.saturating_add(MAX_INDEX_JUMP).min(MAX_NUMBER - 1);
    let answer = message.recovery.as_ref().ok_or(Refusal::Recovery)?;
    if answer.committed_term > message.term {
        return Err(Refusal::Term);
    }
    if answer.committed > furthest || answer.matched > furthest {
        return Err(Refusal::Index);
    }
    let applied = answer.applied.as_ref().ok_or(Refusal::Recovery)?;
    for wire in std::iter::once(applied).chain(&answer.unapplied) {
        let membership = convert::membership_from_wire(wire).ok_or(Refusal::Recovery)?;
        check_genesis(view, membership.genesis)?;
        if membership.config_index.get() > furthest {
            return Err(Refusal::Index);
        }
    }
    Ok(())
}

fn check_append(
    view: &ReplicaView<'_>,
    message: &GroupMessage,
    term_at: impl Fn(u64) -> Option<u64>,
) -> Result<(), Refusal> {
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return Err(Refusal::PreviousEntry);
    }
    let mut term = message.log_term;
    for entry in &message.entries {
        if entry.term == 0 || entry.term < term || entry.term > message.term {
            return Err(Refusal::EntryTerm);
        }
        term = entry.term;
        match EntryKind::try_from(entry.kind) {
            Ok(EntryKind::Command) => {}
            // Raft would panic on what it cannot read, and so would every restart.
            Ok(EntryKind::Config) => {
                let config = ConfigEntry::decode(&entry.data, &entry.context);
                let config = config.ok_or(Refusal::EntryConfig)?;
                let newest = config.placements.keys().next_back().map_or(0, |id| id.get());
                if newest > newest_of(view.membership).saturating_add(MAX_REPLICA_JUMP) {
                    return Err(Refusal::EntryConfig);
                }
            }
            Ok(EntryKind::Requirement) => {
                decode_requirement(&entry.data).ok_or(Refusal::EntryConfig)?;
            }
            _ => return Err(Refusal::EntryKind),
        }
    }
    if message.term >= view.term {
        check_two_leaders(view, message)?;
        check_no_committed_conflict(view, message, term_at)?;
    }
    Ok(())
}

/// An append that fits here (its previous entry matches) must agree with the committed entries.
fn check_no_committed_conflict(
    view: &ReplicaView<'_>,
    message: &GroupMessage,
    term_at: impl Fn(u64) -> Option<u64>,
) -> Result<(), Refusal> {
    if message.index <= view.committed && message.index > 0 {
        let known = term_at(message.index);
        if known.is_some_and(|term| term != message.log_term) {
            return Err(Refusal::CommittedConflict);
        }
    }
    for (entry, index) in message.entries.iter().zip(message.index + 1..=view.committed) {
        if term_at(index).is_some_and(|term| term != entry.term) {
            return Err(Refusal::CommittedConflict);
        }
    }
    Ok(())
}

/// Two replicas that both lead one term: one of them lies.
fn check_two_leaders(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    let same_term = message.term == view.term;
    if same_term && view.leader != 0 && view.leader != message.from_replica {
        return Err(Refusal::NotFromLeader);
    }
    Ok(())
}

fn check_heartbeat(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    // Only the leader may show a replica that it cannot continue.
    check_two_leaders(view, message)?;
    if message.term >= view.term && message.commit > view.last_index {
        return Err(Refusal::LostTail);
    }
    Ok(())
}

fn check_response(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    let current = view.leads && message.term == view.term;
    // Raft would try for ever to make one that reaches far enough.
    let asks = message.request_snapshot != 0;
    let sound = message.reject
        && message.kind() == MessageKind::AppendResponse
        && (!current || message.request_snapshot <= view.last_index);
    if asks && !sound {
        return Err(Refusal::Snapshot);
    }
    if current && message.index > view.last_index {
        return Err(Refusal::AckBeyondLog);
    }
    Ok(())
}

/// A candidate's log ends in an earlier term than the one it campaigns in.
fn check_candidate(message: &GroupMessage) -> Result<(), Refusal> {
    let empty = message.index == 0;
    if empty != (message.log_term == 0) || message.log_term >= message.term {
        return Err(Refusal::PreviousEntry);
    }
    Ok(())
}

/// A candidate (which knows no leader) asks for votes when its log is durable; raft panics when it
/// wins before.
fn check_vote(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    let early = message.term == view.term && view.persisted < view.last_index;
    if early && view.leader == 0 && !message.reject {
        return Err(Refusal::Unasked);
    }
    Ok(())
}

fn check_snapshot(
    view: &ReplicaView<'_>,
    message: &GroupMessage,
    term_at: impl Fn(u64) -> Option<u64>,
) -> Result<(), Refusal> {
    let meta = message.snapshot.as_ref().ok_or(Refusal::Snapshot)?;
    let position = meta.position.as_ref().ok_or(Refusal::Snapshot)?;
    check_position(view, message, meta)?;
    let wire = meta.membership.as_ref().ok_or(Refusal::Snapshot)?;
    let membership = convert::membership_from_wire(wire).ok_or(Refusal::Snapshot)?;
    check_genesis(view, membership.genesis)?;
    // The membership is the present one of the leader, which may be later than the snapshot.
    let (end, known) = (told_end(message), newest_of(view.membership));
    if !is_sound(&membership, view) || !has_plausible_numbers(&membership, end, known) {
        return Err(Refusal::Snapshot);
    }
    check_two_leaders(view, message)?;
    let committed = message.term >= view.term && position.index <= view.committed;
    if committed && term_at(position.index).is_some_and(|term| term != position.term) {
        return Err(Refusal::CommittedConflict);
    }
    Ok(())
}

/// A state for a replica that lost its own: its sender need not lead, and may know other members. Its
/// membership is not taken over, and the log decides whether it continues it.
fn check_given_state(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    let meta = message.snapshot.as_ref().ok_or(Refusal::Snapshot)?;
    check_position(view, message, meta)?;
    let wire = meta.membership.as_ref().ok_or(Refusal::Snapshot)?;
    let membership = convert::membership_from_wire(wire).ok_or(Refusal::Snapshot)?;
    check_genesis(view, membership.genesis)
}

/// Where a snapshot stands, as far as its sender can know.
fn check_position(
    view: &ReplicaView<'_>,
    message: &GroupMessage,
    meta: &SnapshotMeta,
) -> Result<(), Refusal> {
    let position = meta.position.as_ref().ok_or(Refusal::Snapshot)?;
    let furthest = view.last_index.saturating_add(MAX_INDEX_JUMP).min(MAX_NUMBER - 1);
    let in_bounds = position.index > 0 && position.index <= furthest;
    match in_bounds && position.term > 0 && position.term <= message.term {
        true => Ok(()),
        false => Err(Refusal::Snapshot),
    }
}

/// Whether raft can restore a membership, and this replica has the same role in it as now.
fn is_sound(membership: &Membership, view: &ReplicaView<'_>) -> bool {
    let voters = membership.members.values().any(|member| member.voter);
    let joint = membership.members.values().any(|member| member.outgoing_voter);
    let place = membership.node_of(view.replica);
    voters
        && (joint || !membership.auto_leave)
        && place.is_some()
        && place == view.membership.node_of(view.replica)
}

fn check_from_leader(view: &ReplicaView<'_>, message: &GroupMessage) -> Result<(), Refusal> {
    let current = message.term == view.term && view.leader == message.from_replica;
    if current { Ok(()) } else { Err(Refusal::NotFromLeader) }
}

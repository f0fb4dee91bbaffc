//! Every known trap of raft 0.7, as one mutation of a message that a correct peer could send.

use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::validate::{
    MAX_CONTEXT_BYTES, MAX_INDEX_JUMP, MAX_MESSAGE_BYTES, MAX_NUMBER, MAX_REPLICA_JUMP,
    MAX_TERM_JUMP, Refusal, ReplicaView, validate,
};
use shardhost_groups::{Membership, NodeId, ReplicaId};
use shardhost_proto::log::{EntryKind, LogPosition};
use shardhost_proto::peer::{
    ChecksumVerdict, CreateRequest, GroupMessage, MessageKind, RecoveryAnswer, SnapshotMeta,
    StateChecksum,
};

use crate::victim::{command, message};

/// The terms of the entries 1 to 8 of the replica under test. It is in term 5, entries up to 6
/// are committed.
const TERMS: [u64; 8] = [1, 1, 2, 2, 4, 4, 5, 5];
const TERM: u64 = 5;
const LAST: u64 = 8;
const COMMITTED: u64 = 6;

/// The state of the replica under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Follows,
    /// No leader is known.
    Leaderless,
    Leads,
    /// It stands for election, and what it asked its voters with is not durable yet.
    AsksTooEarly,
    Stands,
}

fn membership() -> Membership {
    Membership::initial((1..=3).map(NodeId::must))
}

fn check(state: State, node: u64, message: &GroupMessage) -> Result<(), Refusal> {
    let membership = membership();
    let view = ReplicaView {
        replica: ReplicaId::must(1),
        term: TERM,
        leader: match state {
            State::Follows => 2,
            State::Leads => 1,
            State::Leaderless | State::Stands | State::AsksTooEarly => 0,
        },
        leads: state == State::Leads,
        last_index: LAST,
        persisted: if state == State::AsksTooEarly { LAST - 1 } else { LAST },
        committed: COMMITTED,
        contacts: &[],
        membership: &membership,
    };
    let term_at = |index: u64| match index {
        0 => Some(0),
        _ => TERMS.get(usize::try_from(index).unwrap() - 1).copied(),
    };
    validate(&view, NodeId::must(node), message, term_at)
}

/// A message from replica 2 that a correct peer could send, of each kind.
fn sound(kind: MessageKind) -> GroupMessage {
    let mut sound = message(7, 2, TERM);
    sound.kind = kind.into();
    match kind {
        MessageKind::Append => {
            sound.index = LAST;
            sound.log_term = 5;
            sound.commit = LAST;
            sound.entries = vec![command(5, b"a"), command(5, b"b")];
        }
        MessageKind::Heartbeat => sound.commit = LAST,
        MessageKind::AppendResponse => sound.index = LAST,
        MessageKind::Vote | MessageKind::PreVote => {
            sound.term = TERM + 1;
            sound.index = LAST;
            sound.log_term = TERM;
            sound.commit = COMMITTED;
            sound.commit_term = 4;
        }
        MessageKind::Snapshot => {
            sound.snapshot = Some(SnapshotMeta {
                position: Some(LogPosition { term: 5, index: 20 }),
                membership: Some(membership_to_message(&membership())),
            });
        }
        MessageKind::RecoveryResponse => {
            sound.recovery = Some(Box::new(RecoveryAnswer {
                applied: Some(membership_to_message(&membership())),
                committed: COMMITTED,
                committed_term: 4,
                ..RecoveryAnswer::default()
            }));
        }
        MessageKind::Checksum | MessageKind::ChecksumVerdict => {
            (sound.index, sound.log_term) = (COMMITTED, 4);
            sound.checksum = Some(StateChecksum { format: 1, bytes: 3, sum: 7 });
            if kind == MessageKind::ChecksumVerdict {
                sound.set_verdict(ChecksumVerdict::Majority);
            }
        }
        _ => {}
    }
    sound
}

fn position(message: &mut GroupMessage) -> &mut LogPosition {
    message.snapshot.as_mut().unwrap().position.as_mut().unwrap()
}

fn recovery(message: &mut GroupMessage) -> &mut RecoveryAnswer {
    message.recovery.as_mut().unwrap()
}

fn members(message: &mut GroupMessage) -> &mut shardhost_proto::log::Membership {
    message.snapshot.as_mut().unwrap().membership.as_mut().unwrap()
}

struct Row {
    name: &'static str,
    state: State,
    kind: MessageKind,
    mutate: fn(&mut GroupMessage),
    expected: Result<(), Refusal>,
}

fn row(
    name: &'static str,
    state: State,
    kind: MessageKind,
    mutate: fn(&mut GroupMessage),
    expected: Result<(), Refusal>,
) -> Row {
    Row { name, state, kind, mutate, expected }
}

fn assert_rows(rows: &[Row]) {
    for row in rows {
        let mut message = sound(row.kind);
        (row.mutate)(&mut message);
        let verdict = check(row.state, message.from_replica.clamp(2, 3), &message);
        assert_eq!(verdict, row.expected, "{} ({:?}, {:?})", row.name, row.kind, row.state);
    }
}

#[test]
fn a_sound_message_of_every_kind_that_travels_is_accepted() {
    use MessageKind as Kind;
    let from_anyone = [
        Kind::Append,
        Kind::AppendResponse,
        Kind::Heartbeat,
        Kind::HeartbeatResponse,
        Kind::Vote,
        Kind::VoteResponse,
        Kind::PreVote,
        Kind::PreVoteResponse,
        Kind::Snapshot,
        Kind::TimeoutNow,
        Kind::ReadIndex,
        Kind::ReadIndexResponse,
        Kind::Hibernate,
        Kind::HibernateResponse,
        Kind::Wake,
    ];
    for kind in from_anyone {
        assert_eq!(check(State::Follows, 2, &sound(kind)), Ok(()), "{kind:?}");
    }
}

#[test]
fn what_never_travels_is_refused() {
    use MessageKind as Kind;
    let refused = Err(Refusal::Kind);
    assert_rows(&[
        row("no kind", State::Follows, Kind::Unspecified, |_| (), refused),
        row("unknown kind", State::Follows, Kind::Heartbeat, |m| m.kind = 99, refused),
        row("negative kind", State::Follows, Kind::Heartbeat, |m| m.kind = -1, refused),
    ]);
}

#[test]
fn a_group_that_was_created_with_other_members_is_told_apart() {
    use MessageKind as Kind;
    let other = Membership::initial([1, 2, 4].map(NodeId::must));
    for kind in [Kind::Append, Kind::Heartbeat, Kind::Vote, Kind::PreVote] {
        for (membership, verdict) in [(&membership(), Ok(())), (&other, Err(Refusal::OtherGenesis))]
        {
            let genesis = membership.genesis.unwrap().get();
            let message = GroupMessage { genesis, ..sound(kind) };
            assert_eq!(check(State::Follows, 2, &message), verdict, "{kind:?}");
        }
    }
    for kind in [Kind::CreateReplica, Kind::Removed] {
        let membership = Some(membership_to_message(&other));
        let create_request = Some(CreateRequest { membership, ..CreateRequest::default() });
        let message = GroupMessage { create_request, ..sound(kind) };
        assert_eq!(check(State::Follows, 2, &message), Err(Refusal::OtherGenesis), "{kind:?}");
    }
    let mut snapshot = sound(Kind::Snapshot);
    members(&mut snapshot).genesis = other.genesis.unwrap().get();
    assert_eq!(check(State::Follows, 2, &snapshot), Err(Refusal::OtherGenesis));
    members(&mut snapshot).genesis = 0;
    assert_eq!(check(State::Follows, 2, &snapshot), Ok(()), "an older version does not say");
}

#[test]
fn messages_of_strangers_and_for_others_are_refused() {
    use MessageKind as Kind;
    let stranger = Err(Refusal::Stranger);
    let wrong = Err(Refusal::WrongReplica);
    assert_rows(&[
        row("other replica", State::Follows, Kind::Heartbeat, |m| m.to_replica = 3, wrong),
        row("no replica", State::Follows, Kind::Heartbeat, |m| m.to_replica = 0, wrong),
        row("no sender", State::Follows, Kind::Vote, |m| m.from_replica = 0, stranger),
        row("one yet to come", State::Follows, Kind::Vote, |m| m.from_replica = 4, Ok(())),
        row(
            "one that cannot ask",
            State::Leads,
            Kind::VoteResponse,
            |m| m.from_replica = 4,
            stranger,
        ),
        row("itself", State::Follows, Kind::Vote, |m| m.from_replica = 1, stranger),
    ]);
    let elsewhere = sound(Kind::Vote);
    assert_eq!(check(State::Follows, 3, &elsewhere), stranger, "a member on another node");
}

#[test]
fn impossible_terms_are_refused() {
    use MessageKind as Kind;
    let term = Err(Refusal::Term);
    let zero: fn(&mut GroupMessage) = |m| m.term = 0;
    assert_rows(&[
        row("append of term 0", State::Follows, Kind::Append, zero, term),
        row("heartbeat of term 0", State::Follows, Kind::Heartbeat, zero, term),
        row("vote of term 0", State::Follows, Kind::Vote, zero, term),
        row("pre-vote of term 0", State::Follows, Kind::PreVote, zero, term),
        row("snapshot of term 0", State::Follows, Kind::Snapshot, zero, term),
        row("the last term", State::Follows, Kind::Vote, |m| m.term = u64::MAX, term),
        row("too large a term", State::Follows, Kind::Vote, |m| m.term = MAX_NUMBER, term),
        row("a jump", State::Follows, Kind::Vote, |m| m.term = TERM + MAX_TERM_JUMP + 1, term),
        row("a step", State::Follows, Kind::Vote, |m| m.term = TERM + MAX_TERM_JUMP, Ok(())),
        row("commit term", State::Follows, Kind::Vote, |m| m.commit_term = u64::MAX, term),
        row("log term", State::Leads, Kind::AppendResponse, |m| m.log_term = u64::MAX, term),
    ]);
}

#[test]
fn impossible_indexes_are_refused() {
    use MessageKind as Kind;
    let index = Err(Refusal::Index);
    assert_rows(&[
        row("append", State::Follows, Kind::Append, |m| m.index = u64::MAX, index),
        row("commit", State::Follows, Kind::Append, |m| m.commit = u64::MAX, index),
        row("hint", State::Leads, Kind::AppendResponse, |m| m.reject_hint = u64::MAX, index),
        row("vote", State::Follows, Kind::Vote, |m| m.index = MAX_NUMBER, index),
    ]);
}

#[test]
fn appends_that_raft_would_panic_on_are_refused() {
    use MessageKind::Append;
    use State::Follows;
    let previous = Err(Refusal::PreviousEntry);
    let conflict = Err(Refusal::CommittedConflict);
    assert_rows(&[
        row(
            "behind the end without a term",
            Follows,
            Append,
            |m| {
                m.index = LAST + 5;
                m.log_term = 0;
            },
            previous,
        ),
        row("a term without an index", Follows, Append, |m| m.index = 0, previous),
        row(
            "the start of the log",
            Follows,
            Append,
            |m| {
                m.index = 0;
                m.log_term = 0;
                m.entries = vec![command(1, b""), command(1, b"")];
            },
            Ok(()),
        ),
        row("behind the end, as after a lost append", Follows, Append, |m| m.index = 50, Ok(())),
        row("previous entry of a later term", Follows, Append, |m| m.log_term = 6, previous),
        row(
            "conflict with a committed entry",
            Follows,
            Append,
            |m| {
                m.index = 3;
                m.log_term = 2;
                m.entries = vec![command(3, b""), command(3, b"")];
            },
            conflict,
        ),
        row(
            "conflict with the last committed one",
            Follows,
            Append,
            |m| {
                m.index = 5;
                m.log_term = 4;
                m.entries = vec![command(5, b"")];
            },
            conflict,
        ),
        row(
            "previous entry conflicts below commit",
            Follows,
            Append,
            |m| {
                m.index = 4;
                m.log_term = 3;
                m.entries.clear();
            },
            conflict,
        ),
        row(
            "previous entry conflicts at commit",
            Follows,
            Append,
            |m| {
                m.index = COMMITTED;
                m.log_term = 3;
                m.entries.clear();
            },
            conflict,
        ),
        row(
            "conflict with an uncommitted entry",
            Follows,
            Append,
            |m| {
                m.index = COMMITTED;
                m.log_term = 4;
                m.term = 6;
                m.entries = vec![command(6, b"")];
            },
            Ok(()),
        ),
        row(
            "old and committed already",
            Follows,
            Append,
            |m| {
                m.index = 2;
                m.log_term = 1;
                m.entries = vec![command(2, b"")];
            },
            Ok(()),
        ),
    ]);
}

#[test]
fn appends_with_wrong_entries_are_refused() {
    use MessageKind::Append;
    use State::Follows;
    let term = Err(Refusal::EntryTerm);
    let kind = Err(Refusal::EntryKind);
    let config = Err(Refusal::EntryConfig);
    let large = Err(Refusal::TooLarge);
    assert_rows(&[
        row("term zero", Follows, Append, |m| m.entries[0].term = 0, term),
        row("falling terms", Follows, Append, |m| m.entries[1].term = 4, term),
        row("below the previous entry", Follows, Append, |m| m.entries[0].term = 4, term),
        row("above the message", Follows, Append, |m| m.entries[1].term = 6, term),
        row("no kind", Follows, Append, |m| m.entries[0].kind = 0, kind),
        row("unknown kind", Follows, Append, |m| m.entries[0].kind = 77, kind),
        row(
            "membership change",
            Follows,
            Append,
            |m| {
                m.entries[0].kind = EntryKind::Config.into();
            },
            config,
        ),
        row(
            "unreadable membership change",
            Follows,
            Append,
            |m| {
                m.entries[0].kind = EntryKind::Config.into();
                m.entries[0].data = vec![0xff; 9].into();
            },
            config,
        ),
        row(
            "too much payload",
            Follows,
            Append,
            |m| {
                m.entries[0].data = vec![0; MAX_MESSAGE_BYTES + 1].into();
            },
            large,
        ),
        row(
            "too large a context",
            Follows,
            MessageKind::Heartbeat,
            |m| {
                m.context = vec![0; MAX_CONTEXT_BYTES + 1].into();
            },
            large,
        ),
        row(
            "entries of a heartbeat",
            Follows,
            MessageKind::Heartbeat,
            |m| {
                m.entries = vec![command(5, b"")];
            },
            Err(Refusal::Entries),
        ),
        row(
            "entries of a response",
            State::Leads,
            MessageKind::AppendResponse,
            |m| {
                m.entries = vec![command(5, b"")];
            },
            Err(Refusal::Entries),
        ),
    ]);
}

#[test]
fn two_leaders_of_one_term_are_not_believed() {
    use MessageKind as Kind;
    let liar: fn(&mut GroupMessage) = |m| m.from_replica = 3;
    let refused = Err(Refusal::NotFromLeader);
    for kind in [Kind::Append, Kind::Heartbeat, Kind::Snapshot, Kind::TimeoutNow, Kind::Hibernate] {
        assert_rows(&[
            row("another one", State::Follows, kind, liar, refused),
            row("at the leader itself", State::Leads, kind, |_| (), refused),
        ]);
    }
    for kind in [Kind::Append, Kind::Heartbeat, Kind::Snapshot] {
        assert_rows(&[
            row("the first to be heard", State::Leaderless, kind, liar, Ok(())),
            row(
                "a newer one",
                State::Follows,
                kind,
                |m| {
                    m.from_replica = 3;
                    m.term = 6;
                },
                Ok(()),
            ),
        ]);
    }
}

#[test]
fn only_the_present_leader_orders_a_campaign_or_hibernation() {
    let refused = Err(Refusal::NotFromLeader);
    for kind in [MessageKind::TimeoutNow, MessageKind::Hibernate] {
        assert_rows(&[
            row("no leader known", State::Leaderless, kind, |_| (), refused),
            row("an earlier term", State::Follows, kind, |m| m.term = 4, refused),
            row("a later term", State::Follows, kind, |m| m.term = 6, refused),
        ]);
    }
}

#[test]
fn a_heartbeat_beyond_the_log_shows_a_lost_tail() {
    use MessageKind::Heartbeat;
    let lost = Err(Refusal::LostTail);
    assert_rows(&[
        row("beyond", State::Follows, Heartbeat, |m| m.commit = LAST + 1, lost),
        row(
            "of an old leader, which raft ignores",
            State::Follows,
            Heartbeat,
            |m| {
                m.commit = LAST + 1;
                m.term = 4;
            },
            Ok(()),
        ),
        // A liar must not be able to fail the replica of another one's group.
        row(
            "of one who does not lead",
            State::Follows,
            Heartbeat,
            |m| {
                m.commit = LAST + 1;
                m.from_replica = 3;
            },
            Err(Refusal::NotFromLeader),
        ),
    ]);
}

#[test]
fn responses_that_would_poison_the_progress_are_refused() {
    use MessageKind::AppendResponse;
    let beyond = Err(Refusal::AckBeyondLog);
    assert_rows(&[
        row("acknowledged beyond", State::Leads, AppendResponse, |m| m.index = LAST + 1, beyond),
        row(
            "rejected beyond",
            State::Leads,
            AppendResponse,
            |m| {
                m.index = LAST + 1;
                m.reject = true;
            },
            beyond,
        ),
        row(
            "rejected within",
            State::Leads,
            AppendResponse,
            |m| {
                m.reject = true;
                m.reject_hint = 3;
            },
            Ok(()),
        ),
        row(
            "of another term, which raft ignores",
            State::Leads,
            AppendResponse,
            |m| {
                m.index = LAST + 1;
                m.term = 4;
            },
            Ok(()),
        ),
        row(
            "a replica asks for a snapshot of what is in the log",
            State::Leads,
            AppendResponse,
            |m| {
                m.reject = true;
                m.request_snapshot = 3;
            },
            Ok(()),
        ),
        row(
            "a replica asks for a snapshot of what is not",
            State::Leads,
            AppendResponse,
            |m| {
                m.reject = true;
                m.request_snapshot = 1_000;
            },
            Err(Refusal::Snapshot),
        ),
        row(
            "a replica asks for a snapshot and acknowledges",
            State::Leads,
            AppendResponse,
            |m| m.request_snapshot = 3,
            Err(Refusal::Snapshot),
        ),
    ]);
}

#[test]
fn votes_that_no_candidate_asks_for_are_refused() {
    use MessageKind::{PreVote, PreVoteResponse, Vote, VoteResponse};
    let previous = Err(Refusal::PreviousEntry);
    let unasked = Err(Refusal::Unasked);
    for kind in [Vote, PreVote] {
        assert_rows(&[
            row("a log of its own term", State::Follows, kind, |m| m.log_term = m.term, previous),
            row("a term without an index", State::Follows, kind, |m| m.index = 0, previous),
            row("an index without a term", State::Follows, kind, |m| m.log_term = 0, previous),
            row(
                "an empty log",
                State::Follows,
                kind,
                |m| {
                    m.index = 0;
                    m.log_term = 0;
                },
                Ok(()),
            ),
        ]);
    }
    assert_rows(&[
        row("before it was asked for", State::AsksTooEarly, VoteResponse, |_| (), unasked),
        row(
            "refused before it was asked for",
            State::AsksTooEarly,
            VoteResponse,
            |m| {
                m.reject = true;
            },
            Ok(()),
        ),
        row("after it was asked for", State::Stands, VoteResponse, |_| (), Ok(())),
        row("a pre-vote in advance", State::AsksTooEarly, PreVoteResponse, |_| (), Ok(())),
    ]);
}

#[test]
fn impossible_snapshots_are_refused() {
    use MessageKind::{Heartbeat, Snapshot};
    use State::Follows;
    let refused = Err(Refusal::Snapshot);
    assert_rows(&[
        row("none", Follows, Snapshot, |m| m.snapshot = None, refused),
        row(
            "with a heartbeat",
            Follows,
            Heartbeat,
            |m| {
                m.snapshot = Some(SnapshotMeta::default());
            },
            refused,
        ),
        row(
            "no position",
            Follows,
            Snapshot,
            |m| {
                m.snapshot.as_mut().unwrap().position = None;
            },
            refused,
        ),
        row("index zero", Follows, Snapshot, |m| position(m).index = 0, refused),
        row("term zero", Follows, Snapshot, |m| position(m).term = 0, refused),
        row("a later term", Follows, Snapshot, |m| position(m).term = 6, refused),
        row("absurd index", Follows, Snapshot, |m| position(m).index = MAX_NUMBER, refused),
        row(
            "no membership",
            Follows,
            Snapshot,
            |m| {
                m.snapshot.as_mut().unwrap().membership = None;
            },
            refused,
        ),
        row("no members", Follows, Snapshot, |m| members(m).members.clear(), refused),
        row("a zero id", Follows, Snapshot, |m| members(m).members[1].replica = 0, refused),
        row("a zero node", Follows, Snapshot, |m| members(m).members[1].node = 0, refused),
        row(
            "twice the same id",
            Follows,
            Snapshot,
            |m| {
                members(m).members[1].replica = 3;
            },
            refused,
        ),
        row("an unknown role", Follows, Snapshot, |m| members(m).members[1].role = 9, refused),
        row("no role", Follows, Snapshot, |m| members(m).members[1].role = 0, refused),
        row(
            "learners only",
            Follows,
            Snapshot,
            |m| {
                members(m).members.iter_mut().for_each(|member| member.role = 2);
            },
            refused,
        ),
        row(
            "without this replica",
            Follows,
            Snapshot,
            |m| {
                members(m).members.remove(0);
            },
            refused,
        ),
        row(
            "with this replica elsewhere",
            Follows,
            Snapshot,
            |m| {
                members(m).members[0].node = 9;
            },
            refused,
        ),
        row(
            "leaving a joint configuration that is none",
            Follows,
            Snapshot,
            |m| {
                members(m).auto_leave = true;
            },
            refused,
        ),
        row(
            "a joint configuration",
            Follows,
            Snapshot,
            |m| {
                members(m).members[1].role = 2;
                members(m).members.iter_mut().for_each(|member| member.outgoing_voter = true);
                members(m).auto_leave = true;
            },
            Ok(()),
        ),
        row(
            "another term at a committed index",
            Follows,
            Snapshot,
            |m| {
                *position(m) = LogPosition { term: 5, index: COMMITTED };
            },
            Err(Refusal::CommittedConflict),
        ),
        row(
            "committed already",
            Follows,
            Snapshot,
            |m| {
                *position(m) = LogPosition { term: 2, index: 4 };
            },
            Ok(()),
        ),
    ]);
}

#[test]
fn a_state_may_come_from_any_replica_of_the_group() {
    use MessageKind::Snapshot;
    use State::{Follows, Leads};
    let refused = Err(Refusal::Snapshot);
    let from_follower: fn(&mut GroupMessage) = |m| (m.from_replica, m.any_giver) = (3, true);
    assert_rows(&[
        row("to a follower", Follows, Snapshot, from_follower, Ok(())),
        row("to a leader", Leads, Snapshot, from_follower, Ok(())),
        row(
            "by one that knows neither this replica nor a later term",
            Follows,
            Snapshot,
            |m| {
                (m.from_replica, m.any_giver, m.term) = (3, true, 4);
                *position(m) = LogPosition { term: 4, index: COMMITTED };
                members(m).members.remove(0);
            },
            Ok(()),
        ),
        row(
            "one of another history is for the log to drop",
            Follows,
            Snapshot,
            |m| {
                m.any_giver = true;
                *position(m) = LogPosition { term: 5, index: COMMITTED };
            },
            Ok(()),
        ),
        row(
            "index zero",
            Follows,
            Snapshot,
            |m| (m.any_giver, position(m).index) = (true, 0),
            refused,
        ),
        row(
            "a later term than its sender knows",
            Follows,
            Snapshot,
            |m| (m.any_giver, position(m).term) = (true, 6),
            refused,
        ),
        row(
            "absurd index",
            Follows,
            Snapshot,
            |m| (m.any_giver, position(m).index) = (true, MAX_NUMBER),
            refused,
        ),
        row(
            "a group with other first members",
            Follows,
            Snapshot,
            |m| {
                m.any_giver = true;
                let others = Membership::initial([1, 2, 4].map(NodeId::must));
                m.snapshot.as_mut().unwrap().membership = Some(membership_to_message(&others));
            },
            Err(Refusal::OtherGenesis),
        ),
    ]);
}

#[test]
fn numbers_that_their_sender_cannot_know_are_refused() {
    use MessageKind as Kind;
    let (follows, index) = (State::Follows, Err(Refusal::Index));
    let (moment, snapshot) = (Err(Refusal::Moment), Err(Refusal::Snapshot));
    assert_rows(&[
        row("a log in reach", follows, Kind::Append, |m| m.index = LAST + MAX_INDEX_JUMP, Ok(())),
        row("no log", follows, Kind::Append, |m| m.index = LAST + MAX_INDEX_JUMP + 1, index),
        row("no commit", follows, Kind::Append, |m| m.commit = LAST + MAX_INDEX_JUMP + 1, index),
        row("the last moment", follows, Kind::Heartbeat, |m| m.stamp = MAX_NUMBER - 1, Ok(())),
        row("no moment", follows, Kind::Heartbeat, |m| m.stamp = MAX_NUMBER, moment),
        row("no moment", follows, Kind::TimeoutNow, |m| m.stamp = u64::MAX, moment),
        row("a name, no moment", follows, Kind::RecoveryRequest, |m| m.stamp = u64::MAX, Ok(())),
        row("a log begins in it", State::Leads, Kind::StateRequest, |m| m.index = LAST, Ok(())),
        row(
            "a log begins behind it",
            State::Leads,
            Kind::StateRequest,
            |m| m.index = LAST + 1,
            Err(Refusal::AckBeyondLog),
        ),
        row("a request of old", follows, Kind::StateRequest, |m| m.index = LAST + 1, Ok(())),
        row(
            "a snapshot out of reach",
            follows,
            Kind::Snapshot,
            |m| position(m).index = LAST + MAX_INDEX_JUMP + 1,
            snapshot,
        ),
        row(
            "a configuration up to the leader's commit",
            follows,
            Kind::Snapshot,
            |m| (m.commit, members(m).config_index) = (30, 30),
            Ok(()),
        ),
        row(
            "a configuration beyond it",
            follows,
            Kind::Snapshot,
            |m| (m.commit, members(m).config_index) = (30, 31),
            snapshot,
        ),
        row(
            "a configuration beyond every log",
            follows,
            Kind::Snapshot,
            |m| members(m).config_index = u64::MAX,
            snapshot,
        ),
        row(
            "a replica number out of nowhere",
            follows,
            Kind::Snapshot,
            |m| members(m).newest_replica = 4 + MAX_REPLICA_JUMP,
            snapshot,
        ),
        row(
            "a commit out of nowhere",
            follows,
            Kind::RecoveryResponse,
            |m| recovery(m).committed = LAST + MAX_INDEX_JUMP + 1,
            index,
        ),
        row(
            "a configuration out of nowhere",
            follows,
            Kind::RecoveryResponse,
            |m| recovery(m).applied.as_mut().unwrap().config_index = LAST + MAX_INDEX_JUMP + 1,
            index,
        ),
        row(
            "a commit of a term to come",
            follows,
            Kind::RecoveryResponse,
            |m| recovery(m).committed_term = TERM + 1,
            Err(Refusal::Term),
        ),
        row(
            "nothing of what it asks",
            follows,
            Kind::RecoveryResponse,
            |m| m.recovery = None,
            Err(Refusal::Recovery),
        ),
        row(
            "what a voter holds",
            follows,
            Kind::RecoveryResponse,
            |m| (m.index, m.log_term) = (8, 5),
            Ok(()),
        ),
    ]);
}

#[test]
fn comparisons_of_replicas_are_about_entries_that_are_there_and_judged_by_the_leader() {
    use MessageKind as Kind;
    let (leads, follows, bad) = (State::Leads, State::Follows, Err(Refusal::Checksum));
    let (entry, beyond) = (Err(Refusal::PreviousEntry), Err(Refusal::AckBeyondLog));
    assert_rows(&[
        row("a checksum", leads, Kind::Checksum, |_| {}, Ok(())),
        row("of nothing", leads, Kind::Checksum, |m| m.checksum = None, bad),
        row("that judges", leads, Kind::Checksum, |m| m.verdict = 1, bad),
        row("of no entry", leads, Kind::Checksum, |m| m.index = 0, entry),
        row("of no term", leads, Kind::Checksum, |m| m.log_term = 0, entry),
        row("of a later term", leads, Kind::Checksum, |m| m.log_term = TERM + 1, entry),
        row("beyond the log", leads, Kind::Checksum, |m| m.index = LAST + 1, beyond),
        row("a verdict", follows, Kind::ChecksumVerdict, |_| {}, Ok(())),
        row("none", follows, Kind::ChecksumVerdict, |m| m.verdict = 0, bad),
        row("an unknown one", follows, Kind::ChecksumVerdict, |m| m.verdict = 9, bad),
        row("about nothing", follows, Kind::ChecksumVerdict, |m| m.checksum = None, bad),
        row(
            "of a follower",
            follows,
            Kind::ChecksumVerdict,
            |m| m.from_replica = 3,
            Err(Refusal::NotFromLeader),
        ),
        row(
            "of a former leader",
            leads,
            Kind::ChecksumVerdict,
            |_| {},
            Err(Refusal::NotFromLeader),
        ),
        row(
            "a checksum where none belongs",
            follows,
            Kind::Heartbeat,
            |m| m.checksum = Some(StateChecksum::default()),
            bad,
        ),
    ]);
}

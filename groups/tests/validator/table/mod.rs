//! Every known trap of raft 0.7, as one mutation of a message that a correct peer could send.
//!
//! | file | what |
//! |---|---|
//! | `senders` | sender, receiver, and numbers that the sender cannot know |
//! | `appends` | entries, and answers about them |
//! | `leaders` | leaders, candidates and votes |
//! | `snapshots` | snapshots, and states from replicas that do not lead |

mod appends;
mod leaders;
mod senders;
mod snapshots;

use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::validate::{Refusal, ReplicaView, validate};
use shardhost_groups::{Membership, NodeId, ReplicaId};
use shardhost_proto::log::LogPosition;
use shardhost_proto::peer::{
    ChecksumVerdict, GroupMessage, MessageKind, RecoveryAnswer, SnapshotMeta, StateChecksum,
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

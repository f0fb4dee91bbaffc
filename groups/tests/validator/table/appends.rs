//! Entries, answers about them, and checks of what they led to.

use shardhost_groups::validate::{MAX_CONTEXT_BYTES, MAX_MESSAGE_BYTES, Refusal};
use shardhost_proto::log::EntryKind;
use shardhost_proto::peer::{MessageKind, StateChecksum};

use super::{COMMITTED, LAST, State, TERM, assert_rows, row};
use crate::victim::command;

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

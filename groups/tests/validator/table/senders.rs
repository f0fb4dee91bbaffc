//! Senders and receivers of messages, and terms, indexes and numbers that a sender cannot know.

use shardhost_groups::storage::convert::membership_to_message;
use shardhost_groups::validate::{
    MAX_INDEX_JUMP, MAX_NUMBER, MAX_REPLICA_JUMP, MAX_TERM_JUMP, Refusal,
};
use shardhost_groups::{Membership, NodeId};
use shardhost_proto::peer::{CreateRequest, GroupMessage, MessageKind};

use super::{
    LAST, State, TERM, assert_rows, check, members, membership, position, recovery, row, sound,
};

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

//! Messages of leaders and candidates.

use shardhost_groups::validate::Refusal;
use shardhost_proto::peer::{GroupMessage, MessageKind};

use super::{LAST, State, assert_rows, row};

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

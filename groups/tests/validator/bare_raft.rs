//! Why there is a validator: raft 0.7 alone, given the messages that it refuses.

use std::panic::{AssertUnwindSafe, catch_unwind};

use raft::eraftpb::{ConfState, Entry, Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

/// What the replica is when the message comes.
#[derive(Clone, Copy, Debug)]
enum State {
    Follower,
    Leader,
    Candidate,
}

fn logger() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

fn message(kind: MessageType, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.from = 2;
    message.to = 1;
    message.term = term;
    message
}

fn entry(term: u64, index: u64) -> Entry {
    Entry { term, index, ..Entry::default() }
}

/// Replica 1 of 3 in term 2 with the entries 1 to 3 of term 2, of which two are committed.
fn replica(state: State) -> RawNode<MemStorage> {
    let storage = MemStorage::new_with_conf_state(ConfState::from((vec![1, 2, 3], vec![])));
    let config = Config { id: 1, check_quorum: true, pre_vote: true, ..Config::default() };
    let mut raw = RawNode::new(&config, storage, &logger()).unwrap();
    let mut append = message(MessageType::MsgAppend, 2);
    append.entries = (1..=3).map(|index| entry(2, index)).collect::<Vec<_>>().into();
    append.commit = 2;
    raw.step(append).unwrap();
    persist(&mut raw);
    if !matches!(state, State::Follower) {
        raw.step(message(MessageType::MsgTimeoutNow, 2)).unwrap();
        assert_eq!(raw.raft.state, StateRole::Candidate);
    }
    if matches!(state, State::Leader) {
        raw.step(message(MessageType::MsgRequestVoteResponse, 3)).unwrap();
        assert_eq!(raw.raft.state, StateRole::Leader);
        persist(&mut raw);
        let mut response = message(MessageType::MsgAppendResponse, 3);
        response.index = 4;
        raw.step(response).unwrap();
        assert_eq!(raw.raft.raft_log.committed, 4);
    }
    raw
}

fn persist(raw: &mut RawNode<MemStorage>) {
    while raw.has_ready() {
        let mut ready = raw.ready();
        let number = ready.number();
        raw.mut_store().wl().append(&ready.take_entries()).unwrap();
        raw.advance_append_async(ready);
        raw.on_persist_ready(number);
    }
}

/// Whether raft panics on the message, or on what follows from it.
fn panics(state: State, message: Message) -> bool {
    let mut raw = replica(state);
    let stepped = catch_unwind(AssertUnwindSafe(|| {
        // What raft refuses with an error does no harm.
        drop(raw.step(message));
        persist(&mut raw);
    }));
    stepped.is_err()
}

fn snapshot(index: u64, voters: Vec<u64>, learners: Vec<u64>, auto_leave: bool) -> Message {
    let mut message = message(MessageType::MsgSnapshot, 2);
    let metadata = message.mut_snapshot().mut_metadata();
    metadata.index = index;
    metadata.term = 2;
    let mut conf = ConfState::from((voters, learners));
    conf.auto_leave = auto_leave;
    metadata.set_conf_state(conf);
    message
}

fn append(term: u64, index: u64, log_term: u64, entries: Vec<Entry>) -> Message {
    let mut append = message(MessageType::MsgAppend, term);
    append.index = index;
    append.log_term = log_term;
    append.entries = entries.into();
    append
}

fn heartbeat(commit: u64) -> Message {
    let mut heartbeat = message(MessageType::MsgHeartbeat, 2);
    heartbeat.commit = commit;
    heartbeat
}

#[test]
fn raft_alone_panics_on_messages_that_the_validator_refuses() {
    use State::{Follower, Leader};
    let fatal = [
        ("a heartbeat beyond the log", Follower, heartbeat(9)),
        ("an append behind the end without a term", Follower, append(2, 7, 0, vec![entry(2, 8)])),
        ("a gap before the entries", Follower, append(2, 3, 2, vec![entry(2, 6)])),
        ("a conflict with a committed entry", Follower, append(3, 2, 2, vec![entry(3, 1)])),
        ("an empty proposal", Leader, message(MessageType::MsgPropose, 0)),
        ("an empty read index", Leader, message(MessageType::MsgReadIndex, 0)),
        ("a proposal with a term", Follower, message(MessageType::MsgPropose, 2)),
        ("a read index with a term", Follower, message(MessageType::MsgReadIndex, 2)),
        ("a transfer with a term", Follower, message(MessageType::MsgTransferLeader, 2)),
        ("a snapshot with a zero id", Follower, snapshot(9, vec![0, 1, 2], vec![], false)),
        ("a snapshot with an id twice", Follower, snapshot(9, vec![1, 2, 3], vec![3], false)),
        (
            "a snapshot that leaves what is not joint",
            Follower,
            snapshot(9, vec![1, 2], vec![], true),
        ),
    ];
    for (name, state, message) in fatal {
        assert!(panics(state, message), "{name}");
    }
}

#[test]
fn raft_alone_panics_on_a_vote_that_comes_before_its_log_is_durable() {
    let mut raw = replica(State::Follower);
    raw.step(append(2, 3, 2, vec![entry(2, 4)])).unwrap();
    raw.step(message(MessageType::MsgTimeoutNow, 2)).unwrap();
    let vote = message(MessageType::MsgRequestVoteResponse, 3);
    assert!(catch_unwind(AssertUnwindSafe(|| raw.step(vote))).is_err());
}

#[test]
fn raft_alone_commits_alone_after_an_acknowledgement_beyond_its_log() {
    let mut raw = replica(State::Leader);
    let mut response = message(MessageType::MsgAppendResponse, 3);
    response.index = 1_000;
    raw.step(response).unwrap();

    raw.propose(Vec::new(), b"nobody else has this".to_vec()).unwrap();
    persist(&mut raw);
    assert_eq!(raw.raft.raft_log.committed, 5, "committed with only itself");
}

#[test]
fn raft_alone_takes_sound_messages() {
    let rejected = {
        let mut response = message(MessageType::MsgAppendResponse, 3);
        response.reject = true;
        response.reject_hint = 1;
        response
    };
    assert!(!panics(State::Follower, heartbeat(3)));
    assert!(!panics(State::Follower, append(2, 3, 2, vec![entry(2, 4)])));
    assert!(!panics(State::Follower, snapshot(9, vec![1, 2, 3], vec![], false)));
    assert!(!panics(State::Leader, rejected));
    assert!(!panics(State::Candidate, message(MessageType::MsgRequestVoteResponse, 3)));
}

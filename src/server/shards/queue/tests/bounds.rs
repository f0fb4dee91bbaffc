//! Commands that are wrong, and answers that are bounded.

use bytes::Bytes;
use shardhost_groups::machine::StateMachine as _;
use shardhost_groups::machine::{ApplyBatch, Command};
use shardhost_proto::client::Deliveries;
use shardhost_storage::LogPosition;

use super::super::*;
use super::checksum_after;
use crate::shards::testing::{GROUP, Scratch, apply};

#[test]
fn an_invalid_command_is_answered_and_changes_nothing() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let receipts = vec![Receipt::new(1, 1); MAX_ACK + 1];
    let invalid = [
        Bytes::new(),
        Bytes::from_static(b"garbage"),
        QueueCommand::send(0, &[0; MAX_PARTITION_KEY_BYTES + 1], b"", b""),
        QueueCommand::send(0, b"", &[0; MAX_BODY_BYTES + 1], b""),
        QueueCommand::send(0, b"", b"", &[0; MAX_DEDUP_ID_BYTES + 1]),
        QueueCommand::send(MAX_TIME_MS + 1, b"", b"", b""),
        QueueCommand::receive(0, 0, 1, b""),
        QueueCommand::receive(0, MAX_RECEIVE + 1, 1, b""),
        QueueCommand::receive(0, 1, 0, b""),
        QueueCommand::receive(0, 1, MAX_VISIBILITY_MS + 1, b""),
        QueueCommand::ack(0, receipts.into_iter()),
    ];
    let before = checksum_after(&mut queue, 1, &[QueueCommand::send(5, b"a", b"a1", b"")]);
    for answer in apply(&mut queue, 2, &invalid) {
        let answer = QueueResponse::decode(&answer).unwrap();
        assert!(matches!(answer, QueueResponse::Invalid { .. }), "{answer:?}");
    }
    assert_eq!(checksum_after(&mut queue, 99, &[]), before);
}

#[test]
fn an_answer_is_bounded_in_bytes_and_says_that_there_is_more() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let body = vec![7; MAX_BODY_BYTES];
    let sends = [b"a", b"b", b"c"].map(|key| QueueCommand::send(0, key, &body, b""));
    apply(&mut queue, 1, &sends);
    for (index, (expected, expected_more)) in (4..).zip([(2, true), (1, false), (0, false)]) {
        let receive = QueueCommand::receive(0, 10, 100, b"");
        let answer = QueueResponse::decode(&apply(&mut queue, index, &[receive])[0]).unwrap();
        let QueueResponse::Deliveries(Deliveries { messages, more }) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((messages.len(), more), (expected, expected_more));
    }
}

/// Commands of a few bytes whose answers are large are applied in parts.
#[test]
fn a_batch_ends_where_its_answers_would_be_too_large() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let body = vec![1; MAX_BODY_BYTES];
    let sends: Vec<Bytes> =
        (0..40u8).map(|key| QueueCommand::send(0, &[key], &body, b"")).collect();
    apply(&mut queue, 1, &sends);
    let receives = vec![QueueCommand::receive(0, 1, 100, b""); 40];
    let mut commands: Vec<Command> = (41..)
        .zip(&receives)
        .map(|(index, data)| Command::new(LogPosition::new(1, index), data.clone()))
        .collect();
    let mut batch = ApplyBatch::new(GROUP, LogPosition::new(1, 80), &mut commands);
    queue.apply(&mut batch).unwrap();
    let taken = batch.len();
    assert!((8..=10).contains(&taken), "{taken}");
    assert_eq!(queue.applied().unwrap(), Some(LogPosition::new(1, 40 + taken as u64)));
    let rest = apply(&mut queue, 41 + taken as u64, &receives[taken..]);
    let received = commands[..taken].iter().map(|command| command.response()).chain(&rest);
    let sequences = received.map(|answer| match QueueResponse::decode(answer).unwrap() {
        QueueResponse::Deliveries(deliveries) => deliveries.messages[0].sequence,
        other => panic!("{other:?}"),
    });
    assert!(sequences.eq(1..=40));
}

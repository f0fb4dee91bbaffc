//! Queries change nothing, and end.

use bytes::Bytes;
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::StateMachine as _;
use shardhost_proto::client::Peek;

use super::super::*;
use super::takes_nothing;
use crate::shards::state_db::StateDbError;
use crate::shards::testing::{GROUP, Scratch, apply};

fn peek(queue: &QueueMachine, from_sequence: u64, limit: u32) -> (Vec<(u64, u32)>, bool) {
    let query = QueueQuery::Peek(Peek { from_sequence, limit, consistency: 0 });
    let answer = QueueQuery::decode_answer(&queue.query(&query.encode()).unwrap()).unwrap();
    assert!(answer.messages.iter().all(|message| message.receipt == 0));
    let messages = answer.messages.iter().map(|message| (message.sequence, message.attempt));
    (messages.collect(), answer.more)
}

/// A peek does a bounded work however many messages were deleted, and says that there is more.
#[test]
fn a_peek_ends_where_too_many_deleted_messages_are_in_the_way() {
    const DELETED: u64 = 10_000;
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let all = DELETED as usize + 2;
    let send = |number: usize| QueueCommand::send(0, &number.to_be_bytes(), b"x", b"");
    let sends: Vec<Bytes> = (0..all).map(send).collect();
    apply(&mut queue, 1, &sends);
    // All but the first and the last are received and deleted, with their deliveries.
    let mut index = all as u64 + 1;
    let mut receipts = Vec::new();
    while receipts.len() < all {
        let answers = apply(&mut queue, index, &[QueueCommand::receive(0, 1_000, 60_000, b"")]);
        index += 1;
        match QueueResponse::decode(&answers[0]).unwrap() {
            QueueResponse::Deliveries(taken) => {
                assert!(!taken.messages.is_empty());
                let taken =
                    taken.messages.iter().map(|message| Receipt::from_number(message.receipt));
                receipts.extend(taken);
            }
            other => panic!("{other:?}"),
        }
    }
    let deleted = receipts[1..all - 1].iter().copied();
    apply(&mut queue, index, &[QueueCommand::ack(0, deleted)]);
    let peeked = |from_sequence, deleted| {
        let peek = Peek { from_sequence, ..Peek::default() };
        let found = store::peek(queue.state(), &peek, deleted)?;
        Ok::<_, StateDbError>((found.messages.len(), found.more))
    };
    assert_eq!(peeked(0, DELETED / 2), Ok((1, true)));
    let refused = peeked(2, DELETED / 2).unwrap_err();
    assert_eq!(refused, StateDbError::TooManyDeleted { limit: DELETED / 2 });
    assert_eq!(peeked(DELETED + 2, DELETED / 2), Ok((1, false)), "by its sequence");
    assert_eq!(peeked(0, 4 * DELETED), Ok((2, false)));
}

#[test]
fn a_peek_shows_all_messages_in_order_and_receives_none() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let send = |key| QueueCommand::send(0, key, b"body", b"");
    let commands =
        [send(b"a"), send(b"b"), send(b"a"), QueueCommand::receive(0, 1, 100, b"b"), send(b"c")];
    apply(&mut queue, 1, &commands);
    assert_eq!(peek(&queue, 0, 0), (vec![(1, 0), (2, 1), (3, 0), (4, 0)], false));
    assert_eq!(peek(&queue, 2, 2), (vec![(2, 1), (3, 0)], true));
    assert_eq!(peek(&queue, 5, 0), (vec![], false));
}

#[test]
fn an_invalid_query_is_refused() {
    let scratch = Scratch::new();
    let queue = scratch.state.queue(GROUP);
    let too_many = QueueQuery::Peek(Peek { limit: MAX_PEEK_LIMIT + 1, ..Peek::default() });
    for query in [Bytes::from_static(b"??"), Bytes::new(), too_many.encode()] {
        assert!(matches!(queue.query(&query), Err(QueryError::Invalid(_))), "{query:?}");
    }
}

#[test]
fn a_queue_that_is_not_loaded_says_only_that_it_has_no_messages() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    assert!(takes_nothing(&queue, 0, ""));
    assert!(!queue.answers_at_once(&QueueQuery::Receivable(Receivable::default()).encode()));
    let (send, all) =
        (QueueCommand::send(0, b"a", b"body", b""), QueueCommand::receive(0, 1, 100, b""));
    apply(&mut queue, 1, &[send, all]);
    assert!(queue.answers_at_once(&QueueQuery::Receivable(Receivable::default()).encode()));
    assert!(takes_nothing(&queue, 99, "") && !takes_nothing(&queue, 100, ""));
    let reopened = scratch.state.queue(GROUP);
    assert!(!takes_nothing(&reopened, 0, ""), "it is in flight, which is not known yet");
}

use bytes::Bytes;
use proptest::prelude::*;
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{ApplyBatch, Command, Progress, StateMachine};
use shardhost_proto::client::{Acked, Deliveries, Peek};
use shardhost_storage::LogPosition;

use super::*;
use crate::shards::session::SessionTag;
use crate::shards::state_db::StateDbError;
use crate::shards::testing::{GROUP, Scratch, apply, restore, snapshot_of};

/// What a case does at a time, and what must come of it.
enum Step {
    /// Key and body are one: partition, then number.
    Send(&'static str),
    SendWithId(&'static str, &'static str, Outcome),
    /// At most so many, of any key.
    Receive(u32, &'static [&'static str]),
    ReceiveOf(&'static str, u32, &'static [&'static str]),
    /// The n-th delivery of the whole case, and whether its receipt is good.
    Ack(usize, Good),
}
use Step::{Ack, Receive, ReceiveOf, Send, SendWithId};

#[derive(Debug, PartialEq)]
enum Outcome {
    Stored,
    DuplicateOf(u64),
}

#[derive(Clone, Copy)]
enum Good {
    Yes,
    Stale,
}

const VISIBILITY_MS: u64 = 100;

/// A queue and what it delivered so far.
struct Case {
    name: &'static str,
    machine: QueueMachine,
    index: u64,
    receipts: Vec<Receipt>,
}

impl Case {
    fn run(name: &'static str, steps: impl IntoIterator<Item = (u64, Step)>) {
        let scratch = Scratch::new();
        let machine = scratch.state.queue(GROUP);
        let mut case = Self { name, machine, index: 0, receipts: Vec::new() };
        for (now_ms, step) in steps {
            case.step(now_ms, step);
        }
    }

    fn step(&mut self, now_ms: u64, step: Step) {
        match step {
            Send(message) => {
                self.send(now_ms, message, "");
            }
            SendWithId(message, id, expected) => {
                assert_eq!(self.send(now_ms, message, id), expected, "{}", self.place());
            }
            Receive(max, expected) => self.receive(now_ms, max, "", expected),
            ReceiveOf(key, max, expected) => self.receive(now_ms, max, key, expected),
            Ack(delivery, good) => self.ack(now_ms, delivery, good),
        }
    }

    fn place(&self) -> String {
        format!("{}, step {}", self.name, self.index)
    }

    fn answer(&mut self, command: Bytes) -> QueueResponse {
        self.index += 1;
        QueueResponse::decode(&apply(&mut self.machine, self.index, &[command])[0]).unwrap()
    }

    fn send(&mut self, now_ms: u64, message: &str, id: &str) -> Outcome {
        let key = &message[..1];
        let command = QueueCommand::send(now_ms, key.as_bytes(), message.as_bytes(), id.as_bytes());
        match self.answer(command) {
            QueueResponse::Sent { duplicate: false, .. } => Outcome::Stored,
            QueueResponse::Sent { sequence, .. } => Outcome::DuplicateOf(sequence),
            other => panic!("{}: {other:?}", self.place()),
        }
    }

    fn receive(&mut self, now_ms: u64, max: u32, key: &str, expected: &[&str]) {
        let foreseen = takes_nothing(&self.machine, now_ms, key);
        assert_eq!(foreseen, expected.is_empty(), "{}", self.place());
        let command = QueueCommand::receive(now_ms, max, VISIBILITY_MS, key.as_bytes());
        let QueueResponse::Deliveries(Deliveries { messages, .. }) = self.answer(command) else {
            panic!("{}", self.place());
        };
        // The attempt stands behind the body when it is not the first.
        let bodies: Vec<String> = messages
            .iter()
            .map(|message| {
                let body = String::from_utf8_lossy(&message.body);
                match message.attempt {
                    1 => body.into_owned(),
                    attempt => format!("{body}*{attempt}"),
                }
            })
            .collect();
        assert_eq!(bodies, expected, "{}", self.place());
        self.receipts.extend(messages.iter().map(|message| Receipt::from_number(message.receipt)));
    }

    fn ack(&mut self, now_ms: u64, delivery: usize, good: Good) {
        let receipt = self.receipts[delivery];
        let expected = match good {
            Good::Yes => Acked { acked: 1, stale: 0 },
            Good::Stale => Acked { acked: 0, stale: 1 },
        };
        let answer = self.answer(QueueCommand::ack(now_ms, [receipt].into_iter()));
        assert_eq!(answer, QueueResponse::Acked(expected), "{}", self.place());
    }
}

#[test]
fn messages_of_a_key_come_in_the_order_they_were_sent() {
    Case::run(
        "in order",
        [
            (0, Send("a1")),
            (0, Send("a2")),
            (0, Send("a3")),
            (0, Receive(2, &["a1", "a2"])),
            (0, Receive(9, &[])),
            (1, Ack(0, Good::Yes)),
            (1, Receive(9, &[])),
            (1, Ack(1, Good::Yes)),
            (1, Receive(9, &["a3"])),
        ],
    );
}

#[test]
fn a_key_with_a_message_in_flight_holds_up_no_other_key() {
    Case::run(
        "keys are apart",
        [
            (0, Send("a1")),
            (0, Send("b1")),
            (0, Send("a2")),
            (0, Send("b2")),
            (0, Receive(1, &["a1"])),
            (0, Receive(9, &["b1", "b2"])),
            (0, Ack(0, Good::Yes)),
            (0, Receive(9, &["a2"])),
        ],
    );
}

#[test]
fn over_all_keys_the_oldest_message_goes_first() {
    Case::run(
        "oldest first",
        [
            (0, Send("a1")),
            (0, Send("b1")),
            (0, Send("a2")),
            (0, Send("c1")),
            (0, Receive(3, &["a1", "b1", "a2"])),
        ],
    );
}

#[test]
fn a_receive_of_one_key_leaves_the_others() {
    Case::run(
        "one key",
        [
            (0, Send("a1")),
            (0, Send("b1")),
            (0, Send("b2")),
            (0, ReceiveOf("b", 9, &["b1", "b2"])),
            (0, ReceiveOf("b", 9, &[])),
            (0, ReceiveOf("x", 9, &[])),
            (0, Receive(9, &["a1"])),
        ],
    );
}

#[test]
fn a_message_comes_back_when_its_visibility_ends() {
    Case::run(
        "visibility",
        [
            (0, Send("a1")),
            (0, Send("a2")),
            (10, Receive(1, &["a1"])),
            (109, Receive(9, &[])),
            (110, Receive(9, &["a1*2", "a2"])),
            (111, Ack(0, Good::Stale)),
            (111, Ack(1, Good::Yes)),
            (111, Ack(1, Good::Stale)),
            (111, Ack(2, Good::Yes)),
            (999, Receive(9, &[])),
        ],
    );
}

#[test]
fn a_late_receipt_is_good_until_the_message_is_delivered_again() {
    Case::run(
        "late receipt",
        [
            (0, Send("a1")),
            (0, Send("a2")),
            (0, Send("a3")),
            (0, Receive(2, &["a1", "a2"])),
            (100, Receive(1, &["a1*2"])),
            (101, Ack(1, Good::Yes)),
            (101, Ack(0, Good::Stale)),
            (101, Receive(9, &[])),
            (102, Ack(2, Good::Yes)),
            (102, Receive(9, &["a3"])),
        ],
    );
}

#[test]
fn a_late_ack_of_an_unlocked_key_lets_the_next_message_lead() {
    Case::run(
        "late ack",
        [
            (0, Send("a1")),
            (0, Send("b1")),
            (0, Send("a2")),
            (0, Receive(1, &["a1"])),
            (200, Ack(0, Good::Yes)),
            (200, Receive(9, &["b1", "a2"])),
        ],
    );
}

#[test]
fn an_unacked_message_comes_again_before_later_ones_of_its_key() {
    Case::run(
        "gap",
        [
            (0, Send("a1")),
            (0, Send("a2")),
            (0, Send("a3")),
            (0, Receive(2, &["a1", "a2"])),
            (0, Ack(1, Good::Yes)),
            (50, Receive(9, &[])),
            (100, Receive(9, &["a1*2", "a3"])),
        ],
    );
}

#[test]
fn time_never_runs_backwards() {
    Case::run(
        "backwards",
        [
            (500, Send("a1")),
            (0, Receive(1, &["a1"])),
            (599, Receive(1, &[])),
            (0, Send("b1")),
            (600, Receive(1, &["a1*2"])),
            (10, Receive(1, &["b1"])),
        ],
    );
}

#[test]
fn a_message_with_a_known_id_is_not_stored_again() {
    const END: u64 = DEDUP_WINDOW_MS;
    Case::run(
        "ids",
        [
            (0, SendWithId("a1", "x", Outcome::Stored)),
            (0, SendWithId("a2", "x", Outcome::DuplicateOf(1))),
            // An id is of its partition key.
            (0, SendWithId("b1", "x", Outcome::Stored)),
            (0, SendWithId("b2", "x", Outcome::DuplicateOf(2))),
            (0, SendWithId("a3", "y", Outcome::Stored)),
            (0, SendWithId("a4", "", Outcome::Stored)),
            (0, SendWithId("a5", "", Outcome::Stored)),
            (0, Receive(1, &["a1"])),
            (0, Ack(0, Good::Yes)),
            (END - 1, SendWithId("a6", "x", Outcome::DuplicateOf(1))),
            (END, SendWithId("a7", "x", Outcome::Stored)),
            (END, SendWithId("a8", "x", Outcome::DuplicateOf(6))),
            (END, Receive(9, &["b1", "a3", "a4", "a5", "a7"])),
        ],
    );
}

#[test]
fn unknown_receipts_are_stale() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let receipts = [0, 1, u64::MAX, Receipt::new(1, 0).number(), Receipt::new(1, 1).number()];
    let commands = [
        QueueCommand::send(0, b"a", b"a1", b""),
        QueueCommand::ack(0, receipts.map(Receipt::from_number).into_iter()),
    ];
    let answer = QueueResponse::decode(&apply(&mut queue, 1, &commands)[1]).unwrap();
    assert_eq!(answer, QueueResponse::Acked(Acked { acked: 0, stale: 5 }));
}

#[test]
fn messages_sent_received_and_acked_in_one_batch_leave_nothing() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let commands = [
        QueueCommand::send(0, b"a", b"a1", b""),
        QueueCommand::receive(0, 10, 100, b""),
        QueueCommand::ack(0, [Receipt::new(1, 1)].into_iter()),
    ];
    let answers = apply(&mut queue, 1, &commands);
    let QueueResponse::Deliveries(delivered) = QueueResponse::decode(&answers[1]).unwrap() else {
        panic!("{answers:?}");
    };
    assert_eq!(&delivered.messages[0].body[..], b"a1");
    let acked = QueueResponse::Acked(Acked { acked: 1, stale: 0 });
    assert_eq!(QueueResponse::decode(&answers[2]), Ok(acked));
    assert_eq!(queue.checksum(&Progress::default()).unwrap().items, 0);
}

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

fn checksum_after(queue: &mut QueueMachine, first: u64, commands: &[Bytes]) -> (u64, u64) {
    apply(queue, first, commands);
    let sum = queue.checksum(&Progress::default()).unwrap();
    (sum.items, sum.checksum)
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
fn what_is_in_flight_and_what_ids_are_known_survive_a_crash() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let commands = [
        QueueCommand::send(0, b"a", b"a1", b"id"),
        QueueCommand::send(0, b"a", b"a2", b""),
        QueueCommand::receive(0, 1, 100, b""),
    ];
    apply(&mut queue, 1, &commands);
    scratch.state.flush_now().unwrap();
    let crashed = scratch.crashed();
    let mut queue = crashed.state.queue(GROUP);
    let commands = [
        QueueCommand::send(50, b"a", b"a1", b"id"),
        QueueCommand::receive(99, 9, 100, b""),
        QueueCommand::receive(100, 9, 100, b""),
    ];
    let answers = apply(&mut queue, 4, &commands);
    let answers: Vec<_> =
        answers.iter().map(|answer| QueueResponse::decode(answer).unwrap()).collect();
    assert_eq!(answers[0], QueueResponse::Sent { sequence: 1, duplicate: true });
    assert_eq!(answers[1], QueueResponse::Deliveries(Deliveries::default()));
    let QueueResponse::Deliveries(delivered) = &answers[2] else { panic!("{answers:?}") };
    let attempts = delivered.messages.iter().map(|message| (message.sequence, message.attempt));
    assert_eq!(attempts.collect::<Vec<_>>(), [(1, 2), (2, 1)]);
}

#[test]
fn ids_that_left_the_window_and_acked_messages_leave_the_disk() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let commands = [
        QueueCommand::send(0, b"a", b"acked body", b"left id"),
        QueueCommand::receive(0, 1, 100, b""),
        QueueCommand::ack(0, [Receipt::new(1, 1)].into_iter()),
        QueueCommand::send(DEDUP_WINDOW_MS, b"a", b"kept body", b"kept id"),
    ];
    apply(&mut queue, 1, &commands);
    let stored = String::from_utf8_lossy(&snapshot_of(&mut queue)).into_owned();
    assert!(stored.contains("kept body") && stored.contains("kept id"), "{stored:?}");
    assert!(!stored.contains("acked body") && !stored.contains("left id"), "{stored:?}");
}

#[test]
fn a_restored_queue_goes_on_where_the_other_stood() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let commands = [
        QueueCommand::send(0, b"a", b"a1", b"id"),
        QueueCommand::send(0, b"b", b"b1", b""),
        QueueCommand::receive(0, 1, 100, b""),
    ];
    apply(&mut queue, 1, &commands);
    let snapshot = snapshot_of(&mut queue);
    let other = Scratch::new();
    let mut copy = other.state.queue(GROUP);
    // An index of the state before the restore must not outlive it.
    apply(&mut copy, 1, &[QueueCommand::send(0, b"z", b"z1", b"")]);
    restore(&mut copy, 3, &snapshot);
    let next = [QueueCommand::receive(1, 9, 100, b""), QueueCommand::send(1, b"a", b"x", b"id")];
    assert_eq!(apply(&mut queue, 4, &next), apply(&mut copy, 4, &next));
    assert_eq!(
        queue.checksum(&Progress::default()).unwrap(),
        copy.checksum(&Progress::default()).unwrap()
    );
}

proptest! {
    #[test]
    fn commands_are_read_as_they_were_written(
        now_ms in 0..=MAX_TIME_MS,
        key in prop::collection::vec(any::<u8>(), 0..20),
        body: Vec<u8>,
        id in prop::collection::vec(any::<u8>(), 0..20),
        max_messages in 1..=MAX_RECEIVE,
        visibility_ms in 1..=MAX_VISIBILITY_MS,
        receipts: Vec<u64>,
    ) {
        let operation = |data: &Bytes| {
            let command = QueueCommand::decode(data).unwrap();
            assert_eq!(command.now_ms, now_ms);
            format!("{:?}", command.operation)
        };
        let send = QueueOperation::Send { partition_key: &key, body: &body, dedup_id: &id };
        prop_assert_eq!(
            operation(&QueueCommand::send(now_ms, &key, &body, &id)),
            format!("{send:?}")
        );
        let receive =
            QueueOperation::Receive { max_messages, visibility_ms, partition_key: &key };
        prop_assert_eq!(
            operation(&QueueCommand::receive(now_ms, max_messages, visibility_ms, &key)),
            format!("{receive:?}")
        );
        let ack = QueueCommand::ack(now_ms, receipts.iter().map(|n| Receipt::from_number(*n)));
        match QueueCommand::decode(&ack).unwrap().operation {
            QueueOperation::Ack { receipts: read } => {
                let read: Vec<u64> = read.iter().map(Receipt::number).collect();
                prop_assert_eq!(read, receipts);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn garbage_is_refused_and_panics_nowhere(mut data: Vec<u8>) {
        for kind in 0..7 {
            data.splice(0..0, [1, kind]);
            let bytes = Bytes::copy_from_slice(&data);
            drop((QueueCommand::decode(&data), QueueResponse::decode(&bytes)));
            drop((QueueQuery::decode(&bytes), QueueQuery::decode_answer(&bytes)));
            for stored in 0..0x40 {
                drop(record::check(stored, &data, &data));
            }
            data.drain(..2);
        }
    }
}

fn in_session(sequence: u64, command: &Bytes) -> Bytes {
    let tag = SessionTag { id: 77, start: 1, sequence, lowest_unanswered: 1, now_ms: 1_000 };
    tag.wrap(command)
}

#[test]
fn a_send_and_an_ack_of_a_session_take_effect_once() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let send = in_session(1, &QueueCommand::send(1_000, b"key", b"body", b""));
    let ack = QueueCommand::ack(1_000, [Receipt::new(1, 1)].into_iter());
    let receive = QueueCommand::receive(1_000, 10, 60_000, b"");
    let commands = [&send, &send, &receive, &in_session(2, &ack), &in_session(2, &ack), &send]
        .map(Bytes::clone);
    let answers: Vec<_> = apply(&mut queue, 1, &commands)
        .iter()
        .map(|answer| QueueResponse::decode(answer).unwrap())
        .collect();
    let sent = QueueResponse::Sent { sequence: 1, duplicate: false };
    let acked = QueueResponse::Acked(Acked { acked: 1, stale: 0 });
    assert_eq!([&answers[0], &answers[1], &answers[5]], [&sent; 3]);
    assert_eq!([&answers[3], &answers[4]], [&acked; 2]);
    assert_eq!(queue.checksum(&Progress::default()).unwrap().items, 0);

    let refused = &apply(&mut queue, 7, &[in_session(3, &receive)])[0];
    let refused = QueueResponse::decode(refused).unwrap();
    assert!(matches!(refused, QueueResponse::Invalid { .. }), "{refused:?}");
}

#[test]
fn the_sessions_of_a_queue_survive_a_crash_and_travel_with_a_snapshot() {
    let scratch = Scratch::new();
    let mut queue = scratch.state.queue(GROUP);
    let send = in_session(1, &QueueCommand::send(1_000, b"key", b"body", b""));
    let first = apply(&mut queue, 1, std::slice::from_ref(&send));
    let sum = queue.checksum(&Progress::default()).unwrap();
    scratch.state.flush_now().unwrap();
    let crashed = scratch.crashed();
    let other = Scratch::new();
    let mut restored = other.state.queue(GROUP);
    restore(&mut restored, 1, &snapshot_of(&mut queue));
    for machine in [&mut crashed.state.queue(GROUP), &mut restored] {
        assert_eq!(machine.checksum(&Progress::default()).unwrap(), sum);
        assert_eq!(apply(machine, 2, std::slice::from_ref(&send)), first);
        assert_eq!(machine.checksum(&Progress::default()).unwrap().items, 1);
    }
}

/// Whether the machine says that a receive would take nothing.
fn takes_nothing(queue: &QueueMachine, now_ms: u64, key: &str) -> bool {
    let partition_key = Bytes::copy_from_slice(key.as_bytes());
    let query = QueueQuery::Receivable(Receivable { now_ms, partition_key });
    let answer = queue.query(&query.encode()).unwrap();
    if answer.is_empty() {
        return false;
    }
    assert_eq!(QueueQuery::decode_answer(&answer).unwrap(), Deliveries::default());
    true
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

//! What a queue knows beside its messages, ids and sessions, and what survives a crash and travels in a snapshot.

use super::Step::{Ack, Receive, SendWithId};
use bytes::Bytes;
use shardhost_groups::machine::Progress;
use shardhost_groups::machine::StateMachine as _;
use shardhost_proto::client::{Acked, Deliveries};

use super::super::*;
use super::{Case, Good, Outcome};
use crate::shards::session::SessionTag;
use crate::shards::testing::{GROUP, Scratch, apply, restore, snapshot_of};

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

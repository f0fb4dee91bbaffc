//! Messages in flight: when they come back, and which receipts are good.

use super::Step::{Ack, Receive, Send};
use shardhost_groups::machine::Progress;
use shardhost_groups::machine::StateMachine as _;
use shardhost_proto::client::Acked;

use super::super::*;
use super::{Case, Good};
use crate::shards::testing::{GROUP, Scratch, apply};

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

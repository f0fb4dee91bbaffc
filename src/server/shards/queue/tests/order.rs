//! Which message comes next: in order per key, the oldest first over all keys.

use super::Step::{Ack, Receive, ReceiveOf, Send};
use bytes::Bytes;
use proptest::prelude::*;

use super::super::*;
use super::{Case, Good};

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

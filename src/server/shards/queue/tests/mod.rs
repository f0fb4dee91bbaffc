//! Queues, by what is sent to them and what they answer.
//!
//! | file | what |
//! |---|---|
//! | `order` | which message comes next |
//! | `receipts` | messages in flight: visibility, acks, time |
//! | `queries` | peeks, and what a queue says that is not loaded |
//! | `bounds` | commands that are wrong, and answers that would be too large |
//! | `kept` | ids, sessions and what is in flight, over a crash and in a snapshot |

mod bounds;
mod kept;
mod order;
mod queries;
mod receipts;

use Step::{Ack, Receive, ReceiveOf, Send, SendWithId};
use bytes::Bytes;
use shardhost_groups::machine::{Progress, StateMachine};
use shardhost_proto::client::{Acked, Deliveries};

use super::*;
use crate::shards::testing::{GROUP, Scratch, apply};

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

fn checksum_after(queue: &mut QueueMachine, first: u64, commands: &[Bytes]) -> (u64, u64) {
    apply(queue, first, commands);
    let sum = queue.checksum(&Progress::default()).unwrap();
    (sum.items, sum.checksum)
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

//! Bytes from a client: batches of requests, up to what is proposed to a group or asked of it. The first
//! byte of an input says whether it is a table's or a queue's; one bit more, that the rest is what a
//! state machine answered.

use bytes::Bytes;
use prost::Message;
use shardhost_groups::{Applied, LogIndex, Term};
use shardhost_proto::client::queue_request::Operation as QueueOperation;
use shardhost_proto::client::table_request::Operation as TableOperation;
use shardhost_proto::client::{
    Ack, CompareAndSet, Delete, Get, Peek, Put, QueueBatch, QueueRequest, Receive, Scan, Send,
    Session, TableBatch, TableRequest,
};
use shardhost_storage::testing::fuzz::{Seed, Target, names_what_is_wrong};

use super::pipeline::{Plan, Protocol, decode};
use super::{QueueProtocol, TableProtocol};
use crate::shards::queue::{QueueCommand, QueueQuery};
use crate::shards::session::SessionTag;
use crate::shards::table::{TableCommand, TableQuery};
use crate::shards::time::ShardTimes;
use shardhost_proto::limits::MAX_BATCH_REQUESTS;

const TABLE: u8 = 0;
const QUEUE: u8 = 1;
/// The rest is what a machine answered.
const ANSWER: u8 = 2;

/// The target.
#[must_use]
pub fn client_batches() -> Target {
    // A request of two bytes takes 170 in memory, and the list of them half as much more while it grows.
    // How many there may be, a test of the decoder says.
    Target { name: "client_batches", run: check, seeds, memory_factor: 192 }
}

fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let rest = Bytes::copy_from_slice(rest);
    match (kind & QUEUE, kind & ANSWER) {
        (TABLE, 0) => check_batch::<TableProtocol>(rest, is_table_command, |query| {
            TableQuery::decode(query).is_ok()
        }),
        (TABLE, _) => check_answers::<TableProtocol>(&rest),
        (_, 0) => check_batch::<QueueProtocol>(rest, is_queue_command, |query| {
            QueueQuery::decode(query).is_ok()
        }),
        _ => check_answers::<QueueProtocol>(&rest),
    }
}

/// Whatever a client sends is refused by name, or becomes what every replica takes.
fn check_batch<P: Protocol>(
    bytes: Bytes,
    is_command: fn(&[u8]) -> bool,
    is_query: fn(&Bytes) -> bool,
) {
    let batch = match decode::<P::Batch>(bytes) {
        Ok(batch) => batch,
        Err(status) => return names_what_is_wrong(status.message()),
    };
    let requests = P::requests(batch);
    assert!(requests.len() <= MAX_BATCH_REQUESTS);
    let times = ShardTimes::default();
    let stamps = times.stamps();
    for request in requests {
        let planned = P::plan(request, &stamps);
        let asks = matches!(planned.plan, Plan::Get(..) | Plan::Range(..));
        match planned.plan {
            Plan::Write(command) => assert!(is_command(&command), "no replica takes {command:?}"),
            Plan::WriteUnless { command, query } => {
                assert!(is_command(&command), "no replica takes {command:?}");
                assert!(is_query(&query), "no replica answers {query:?}");
            }
            Plan::Get(_, query) | Plan::Range(_, query) => assert!(asks && is_query(&query)),
            Plan::Invalid(message) => names_what_is_wrong(&message),
        }
    }
}

/// What a machine answered becomes a reply, whatever it is.
fn check_answers<P: Protocol>(answer: &Bytes) {
    let applied = Applied::new(LogIndex::new(5), Term::new(1), answer.clone());
    for reply in [P::written(7, &applied), P::answered(7, answer)] {
        assert!(!P::replies(vec![reply]).encode_to_vec().is_empty());
    }
}

fn is_table_command(data: &[u8]) -> bool {
    SessionTag::split(data).is_ok_and(|(_, command)| TableCommand::decode(command).is_ok())
}

fn is_queue_command(data: &[u8]) -> bool {
    SessionTag::split(data).is_ok_and(|(_, command)| QueueCommand::decode(command).is_ok())
}

fn table_requests() -> Vec<TableOperation> {
    let bytes = Bytes::from_static;
    vec![
        TableOperation::Put(Put { key: bytes(b"apple"), value: bytes(b"red") }),
        TableOperation::Delete(Delete { key: bytes(b"apple") }),
        TableOperation::CompareAndSet(CompareAndSet {
            key: bytes(b"pear"),
            expect: Some(bytes(b"green")),
            value: None,
        }),
        TableOperation::Get(Get { key: bytes(b"apple"), consistency: 1 }),
        TableOperation::Scan(Scan {
            from: bytes(b"a"),
            to: bytes(b"b"),
            limit: 10,
            consistency: 0,
        }),
    ]
}

fn queue_requests() -> Vec<QueueOperation> {
    let bytes = Bytes::from_static;
    let (partition_key, body, dedup_id) = (bytes(b"anna"), bytes(b"hello"), bytes(b"1"));
    vec![
        QueueOperation::Send(Send { partition_key, body, dedup_id }),
        QueueOperation::Receive(Receive {
            max_messages: 3,
            visibility_ms: 30_000,
            partition_key: Some(Bytes::new()),
        }),
        QueueOperation::Ack(Ack { receipts: vec![1, 1 << 40, u64::MAX] }),
        QueueOperation::Peek(Peek { from_sequence: 1, limit: 10, consistency: 2 }),
    ]
}

fn seeds() -> Vec<Seed> {
    let session = Some(Session { id: 9, start: 4, sequence: 3, lowest_unanswered: 2 });
    let table: Vec<TableRequest> = (0u64..)
        .zip(table_requests())
        .map(|(id, operation)| TableRequest {
            id,
            group: 1_000_000 + id,
            operation: Some(operation),
            map: 5,
            session: session.filter(|_| id % 2 == 0),
        })
        .collect();
    let queue: Vec<QueueRequest> = (0u64..)
        .zip(queue_requests())
        .map(|(id, operation)| QueueRequest {
            id,
            group: 2_000_000 + id,
            operation: Some(operation),
            map: 5,
            session: session.filter(|_| id % 2 == 0),
        })
        .collect();
    let of_table = |requests: Vec<TableRequest>| {
        [&[TABLE][..], &TableBatch { requests }.encode_to_vec()].concat()
    };
    let of_queue = |requests: Vec<QueueRequest>| {
        [&[QUEUE][..], &QueueBatch { requests }.encode_to_vec()].concat()
    };
    let mut seeds = vec![
        Seed::new("table", of_table(table.clone())),
        Seed::new("table-bomb", of_table(vec![TableRequest::default(); 20_000])),
        Seed::new("queue", of_queue(queue.clone())),
        Seed::new("queue-bomb", of_queue(vec![QueueRequest::default(); 20_000])),
        Seed::new("queue-many-receipts", {
            let ack = QueueOperation::Ack(Ack { receipts: vec![0; 20_000] });
            of_queue(vec![QueueRequest { operation: Some(ack), ..QueueRequest::default() }])
        }),
        Seed::new("answer-table", vec![TABLE | ANSWER, 1, 1, 1]),
        Seed::new("answer-queue", vec![QUEUE | ANSWER, 1, 1, 1]),
    ];
    for (at, request) in table.into_iter().enumerate() {
        seeds.push(Seed::new(format!("table-{at}"), of_table(vec![request])));
    }
    for (at, request) in queue.into_iter().enumerate() {
        seeds.push(Seed::new(format!("queue-{at}"), of_queue(vec![request])));
    }
    seeds
}

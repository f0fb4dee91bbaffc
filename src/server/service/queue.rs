//! The queue service: client messages to commands and queries, and their answers back.
//!
//! The commands of a queue carry the time; it is this host's, at the arrival of the batch.

use bytes::Bytes;
use shardhost_groups::Applied;
use shardhost_proto::client::queue_reply::Result as Answer;
use shardhost_proto::client::queue_request::Operation;
use shardhost_proto::client::queue_server::Queue;
use shardhost_proto::client::{
    Failure, FailureReason, QueueBatch, QueueReplies, QueueReply, QueueRequest, Receive, Sent,
};
use shardhost_proto::grants::Grant;
use shardhost_storage::GroupId;
use tonic::{Request, Response, Status, Streaming};

use super::failure::failure;
use super::pipeline::{PipelineService, Plan, Planned, Protocol, ReplyStream};
use super::session;
use super::table::read_mode;
use crate::shards::queue::{QueueCommand, QueueQuery, QueueResponse, Receipt, Receivable};
use crate::shards::time::Stamps;
use shardhost_proto::shard_map::QUEUE_KIND;

/// How queues are spoken to.
pub struct QueueProtocol;

#[tonic::async_trait]
impl Queue for PipelineService<QueueProtocol> {
    type PipelineStream = ReplyStream<QueueProtocol>;

    async fn pipeline(
        &self,
        request: Request<Streaming<QueueBatch>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        self.serve(request)
    }
}

impl Protocol for QueueProtocol {
    const KIND: &'static str = QUEUE_KIND;
    const READ: Grant = Grant::QueueRead;
    const WRITE: Grant = Grant::QueueWrite;
    // Only a receive has a long answer: its messages are hidden until its visibility ends.
    const UNANSWERED: FailureReason = FailureReason::OutcomeUnknown;
    type Batch = QueueBatch;
    type Request = QueueRequest;
    type Reply = QueueReply;
    type Replies = QueueReplies;

    fn requests(batch: QueueBatch) -> Vec<QueueRequest> {
        batch.requests
    }

    fn plan(request: QueueRequest, stamps: &Stamps<'_>) -> Planned {
        let group = GroupId::new(request.group);
        let now_ms = stamps.now_ms(group);
        let plan = match request.operation {
            None => Plan::Invalid("the request names no operation".into()),
            Some(Operation::Receive(_)) if request.session.is_some() => {
                Plan::Invalid("a receive cannot be part of a session".into())
            }
            Some(operation) => session::join(plan(operation, now_ms), request.session, || now_ms),
        };
        Planned { id: request.id, map: request.map, group, plan }
    }

    fn written(id: u64, applied: &Applied) -> QueueReply {
        let result = match QueueResponse::decode(&applied.response) {
            Ok(QueueResponse::Sent { sequence, duplicate }) => {
                Answer::Sent(Sent { sequence, duplicate, index: applied.index.get() })
            }
            Ok(QueueResponse::Deliveries(deliveries)) => Answer::Deliveries(deliveries),
            Ok(QueueResponse::Acked(acked)) => Answer::Acked(acked),
            Ok(QueueResponse::Invalid { message }) => {
                Answer::Failure(failure(FailureReason::Invalid, message))
            }
            Ok(QueueResponse::Full) => {
                Answer::Failure(failure(FailureReason::Overloaded, "the queue shard is full"))
            }
            Ok(QueueResponse::Refused(refusal)) => Answer::Failure(session::refused(refusal)),
            Err(error) => Answer::Failure(failure(FailureReason::GroupFailed, error)),
        };
        QueueReply { id, result: Some(result) }
    }

    fn answered(id: u64, answer: &Bytes) -> QueueReply {
        let result = match QueueQuery::decode_answer(answer) {
            Ok(deliveries) => Answer::Deliveries(deliveries),
            Err(error) => Answer::Failure(failure(FailureReason::GroupFailed, error)),
        };
        QueueReply { id, result: Some(result) }
    }

    fn failed(id: u64, failure: Failure) -> QueueReply {
        QueueReply { id, result: Some(Answer::Failure(failure)) }
    }

    fn replies(replies: Vec<QueueReply>) -> QueueReplies {
        QueueReplies { replies }
    }
}

fn plan(operation: Operation, now_ms: u64) -> Plan {
    match operation {
        // It could not be received by its key: in a receive an empty one means any.
        Operation::Send(send) if send.partition_key.is_empty() => {
            Plan::Invalid("the partition key is empty".into())
        }
        Operation::Send(send) => {
            write(QueueCommand::send(now_ms, &send.partition_key, &send.body, &send.dedup_id))
        }
        // One that takes nothing is not worth a write to the log.
        Operation::Receive(receive) => match write(QueueCommand::receive(
            now_ms,
            receive.max_messages,
            receive.visibility_ms,
            &receive.partition_key,
        )) {
            Plan::Write(command) => {
                let Receive { partition_key, .. } = receive;
                let query = QueueQuery::Receivable(Receivable { now_ms, partition_key }).encode();
                Plan::WriteUnless { command, query }
            }
            other => other,
        },
        Operation::Ack(ack) => {
            let receipts = ack.receipts.into_iter().map(Receipt::from_number);
            write(QueueCommand::ack(now_ms, receipts))
        }
        Operation::Peek(peek) => {
            let mode = read_mode(peek.consistency());
            let query = QueueQuery::Peek(peek);
            match query.check() {
                Ok(()) => Plan::Range(mode, query.encode()),
                Err(error) => Plan::Invalid(error.to_string()),
            }
        }
    }
}

/// Refuses here what every replica would refuse, before it is in a log.
fn write(command: Bytes) -> Plan {
    match QueueCommand::decode(&command) {
        Ok(_) => Plan::Write(command),
        Err(error) => Plan::Invalid(error.to_string()),
    }
}

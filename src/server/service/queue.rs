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
use super::requests::Access;
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
        let reads = matches!(request.operation, Some(Operation::Peek(_)));
        let access = if reads { Access::Read } else { Access::Write };
        let now_ms = stamps.now_ms(group);
        let plan = match request.operation {
            None => Plan::Invalid("the request names no operation".into()),
            Some(Operation::Receive(_)) if request.session.is_some() => {
                Plan::Invalid("a receive cannot be part of a session".into())
            }
            Some(operation) => session::join(plan(operation, now_ms), request.session, || now_ms),
        };
        Planned { id: request.id, map: request.map, group, access, plan }
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

    fn failure_of(reply: &QueueReply) -> Option<&Failure> {
        match &reply.result {
            Some(Answer::Failure(failure)) => Some(failure),
            _ => None,
        }
    }

    fn replies(replies: Vec<QueueReply>) -> QueueReplies {
        QueueReplies { replies }
    }
}

fn plan(operation: Operation, now_ms: u64) -> Plan {
    match operation {
        Operation::Send(send) if send.partition_key.is_empty() => {
            Plan::Invalid("the partition key is empty".into())
        }
        Operation::Send(send) => {
            write(QueueCommand::send(now_ms, &send.partition_key, &send.body, &send.dedup_id))
        }
        Operation::Receive(receive) => {
            let Receive { max_messages, visibility_ms, partition_key } = receive;
            if partition_key.as_ref().is_some_and(Bytes::is_empty) {
                return Plan::Invalid(
                    "the partition key is empty; leave it out to receive of any".into(),
                );
            }
            // In the log an empty one means any.
            let partition_key = partition_key.unwrap_or_default();
            // One that takes nothing is not worth a write to the log.
            match write(QueueCommand::receive(now_ms, max_messages, visibility_ms, &partition_key))
            {
                Plan::Write(command) => {
                    let query = QueueQuery::Receivable(Receivable { now_ms, partition_key });
                    Plan::WriteUnless { command, query: query.encode() }
                }
                other => other,
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(partition_key: Option<&'static [u8]>) -> Plan {
        let partition_key = partition_key.map(Bytes::from_static);
        plan(
            Operation::Receive(Receive { max_messages: 1, visibility_ms: 1_000, partition_key }),
            1,
        )
    }

    #[test]
    fn an_empty_partition_key_is_no_word_for_any() {
        assert!(matches!(receive(None), Plan::WriteUnless { .. }));
        assert!(matches!(receive(Some(b"anna")), Plan::WriteUnless { .. }));
        let Plan::Invalid(why) = receive(Some(b"")) else { panic!("an empty key was taken") };
        assert!(why.contains("leave it out"), "{why}");
    }
}

//! The table service: client messages to commands and queries, and their answers back.

use bytes::Bytes;
use shardhost_groups::{Applied, ReadMode};
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::table_server::Table;
use shardhost_proto::client::{
    Consistency, Failure, FailureReason, TableBatch, TableReplies, TableReply, TableRequest,
    Written,
};
use shardhost_proto::grants::Grant;
use shardhost_storage::GroupId;
use tonic::{Request, Response, Status, Streaming};

use super::failure::failure;
use super::pipeline::{PipelineService, Plan, Planned, Protocol, ReplyStream};
use super::requests::Access;
use super::session;
use crate::shards::table::{TableAnswer, TableCommand, TableQuery, TableResponse};
use crate::shards::time::Stamps;
use shardhost_proto::shard_map::TABLE_KIND;

/// How tables are spoken to.
pub struct TableProtocol;

#[tonic::async_trait]
impl Table for PipelineService<TableProtocol> {
    type PipelineStream = ReplyStream<TableProtocol>;

    async fn pipeline(
        &self,
        request: Request<Streaming<TableBatch>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        self.serve(request)
    }
}

impl Protocol for TableProtocol {
    const KIND: &'static str = TABLE_KIND;
    const READ: Grant = Grant::TableRead;
    const WRITE: Grant = Grant::TableWrite;
    // Only a failed expectation has a long answer: nothing changed.
    const UNANSWERED: FailureReason = FailureReason::Overloaded;
    type Batch = TableBatch;
    type Request = TableRequest;
    type Reply = TableReply;
    type Replies = TableReplies;

    fn requests(batch: TableBatch) -> Vec<TableRequest> {
        batch.requests
    }

    fn plan(request: TableRequest, stamps: &Stamps<'_>) -> Planned {
        let group = GroupId::new(request.group);
        let reads = matches!(request.operation, Some(Operation::Get(_) | Operation::Scan(_)));
        let access = if reads { Access::Read } else { Access::Write };
        let plan = match request.operation {
            None => Plan::Invalid("the request names no operation".into()),
            Some(operation) => {
                session::join(plan(operation), request.session, || stamps.now_ms(group))
            }
        };
        Planned { id: request.id, map: request.map, group, access, plan }
    }

    fn written(id: u64, applied: &Applied) -> TableReply {
        let result = match TableResponse::decode(&applied.response) {
            Ok(TableResponse::Written { done, existed, actual }) => {
                Answer::Written(Written { done, existed, index: applied.index.get(), actual })
            }
            Ok(TableResponse::Invalid { message }) => {
                Answer::Failure(failure(FailureReason::Invalid, message))
            }
            Ok(TableResponse::Refused(refusal)) => Answer::Failure(session::refused(refusal)),
            Err(error) => Answer::Failure(failure(FailureReason::GroupFailed, error)),
        };
        TableReply { id, result: Some(result) }
    }

    fn answered(id: u64, answer: &Bytes) -> TableReply {
        let result = match TableAnswer::decode(answer) {
            Ok(TableAnswer::Value(value)) => Answer::Value(value),
            Ok(TableAnswer::Pairs(pairs)) => Answer::Pairs(pairs),
            Err(error) => Answer::Failure(failure(FailureReason::GroupFailed, error)),
        };
        TableReply { id, result: Some(result) }
    }

    fn failed(id: u64, failure: Failure) -> TableReply {
        TableReply { id, result: Some(Answer::Failure(failure)) }
    }

    fn failure_of(reply: &TableReply) -> Option<&Failure> {
        match &reply.result {
            Some(Answer::Failure(failure)) => Some(failure),
            _ => None,
        }
    }

    fn replies(replies: Vec<TableReply>) -> TableReplies {
        TableReplies { replies }
    }
}

fn plan(operation: Operation) -> Plan {
    match operation {
        Operation::Put(put) => write(TableCommand::Put { key: &put.key, value: &put.value }),
        Operation::Delete(delete) => write(TableCommand::Delete { key: &delete.key }),
        Operation::CompareAndSet(compare) => write(TableCommand::CompareAndSet {
            key: &compare.key,
            expect: compare.expect.as_deref(),
            value: compare.value.as_deref(),
        }),
        Operation::Get(get) => {
            let mode = read_mode(get.consistency());
            read(TableQuery::Get(get), |query| Plan::Get(mode, query))
        }
        Operation::Scan(scan) => {
            let mode = read_mode(scan.consistency());
            read(TableQuery::Scan(scan), |query| Plan::Range(mode, query))
        }
    }
}

/// Refuses here what every replica would refuse, before it is in a log.
fn write(command: TableCommand<'_>) -> Plan {
    match command.check() {
        Ok(()) => Plan::Write(command.encode()),
        Err(error) => Plan::Invalid(error.to_string()),
    }
}

fn read(query: TableQuery, plan: impl FnOnce(Bytes) -> Plan) -> Plan {
    match query.check() {
        Ok(()) => plan(query.encode()),
        Err(error) => Plan::Invalid(error.to_string()),
    }
}

/// How fresh a read must be. A consistency this version does not know is taken for the strongest,
/// which a lease gives as well as a quorum does.
pub(super) const fn read_mode(consistency: Consistency) -> ReadMode {
    match consistency {
        Consistency::Linearizable => ReadMode::Lease,
        Consistency::Quorum => ReadMode::Linearizable,
        Consistency::Follower => ReadMode::Follower,
        Consistency::Stale => ReadMode::Stale,
    }
}

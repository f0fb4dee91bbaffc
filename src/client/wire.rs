//! Differences between the streams of tables and of queues.

use std::future::Future;

use shardhost_proto::client::queue_client::QueueClient;
use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::{
    Failure, QueueBatch, QueueReplies, QueueRequest, Session, TableBatch, TableReplies,
    TableRequest, queue_reply, queue_request, table_reply, table_request,
};
use shardhost_security::channel::Channel;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::session::AnswerReceipt;
use shardhost_proto::limits::MAX_BATCH_BYTES;
use shardhost_proto::shard_map::{QUEUE_KIND, TABLE_KIND};

/// An answer by the id of its request; `None` when the node sent an empty one.
pub(super) type Answered<A> = (u64, Option<Result<A, Failure>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) group: u64,
    /// Fingerprint of the map of shards that the group follows from; 0: a node of an older version.
    pub(super) map: u64,
}

/// An operation as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Outgoing<O> {
    pub(super) place: Place,
    /// Of a write that may be sent again.
    pub(super) session: Option<Session>,
    /// Where its answer is noted.
    pub(super) receipt: Option<AnswerReceipt>,
    pub(super) operation: O,
}

/// One kind of shard, as it is spoken to.
pub(super) trait Wire: Send + Sync + 'static {
    const KIND: &'static str;
    /// The operation.
    type Operation: Clone + Send + Sync + 'static;
    type Answer: Send + 'static;
    type Batch: Send + 'static;
    type Replies: Send + 'static;

    /// Bytes of an operation on the wire.
    fn size(operation: &Self::Operation) -> usize;
    /// A batch of operations, each with its id.
    fn batch(operations: impl Iterator<Item = (u64, Outgoing<Self::Operation>)>) -> Self::Batch;
    /// The answers of a batch of replies.
    fn answers(replies: Self::Replies) -> impl Iterator<Item = Answered<Self::Answer>> + Send;
    /// Opens the stream to a node.
    fn open(
        channel: Channel,
        batches: mpsc::Receiver<Self::Batch>,
    ) -> impl Future<Output = Result<Streaming<Self::Replies>, Status>> + Send;
}

pub(super) struct TableWire;

impl Wire for TableWire {
    const KIND: &'static str = TABLE_KIND;
    type Operation = table_request::Operation;
    type Answer = table_reply::Result;
    type Batch = TableBatch;
    type Replies = TableReplies;

    fn size(operation: &Self::Operation) -> usize {
        operation.encoded_len()
    }

    fn batch(operations: impl Iterator<Item = (u64, Outgoing<Self::Operation>)>) -> TableBatch {
        let requests = operations
            .map(|(id, Outgoing { place, session, operation, .. })| {
                let (Place { group, map }, operation) = (place, Some(operation));
                TableRequest { id, group, operation, map, session }
            })
            .collect();
        TableBatch { requests }
    }

    fn answers(replies: TableReplies) -> impl Iterator<Item = Answered<Self::Answer>> + Send {
        replies.replies.into_iter().map(|reply| {
            let result = reply.result.map(|result| match result {
                table_reply::Result::Failure(failure) => Err(failure),
                other => Ok(other),
            });
            (reply.id, result)
        })
    }

    async fn open(
        channel: Channel,
        batches: mpsc::Receiver<TableBatch>,
    ) -> Result<Streaming<TableReplies>, Status> {
        let mut client = TableClient::new(channel).max_decoding_message_size(MAX_BATCH_BYTES);
        Ok(client.pipeline(ReceiverStream::new(batches)).await?.into_inner())
    }
}

pub(super) struct QueueWire;

impl Wire for QueueWire {
    const KIND: &'static str = QUEUE_KIND;
    type Operation = queue_request::Operation;
    type Answer = queue_reply::Result;
    type Batch = QueueBatch;
    type Replies = QueueReplies;

    fn size(operation: &Self::Operation) -> usize {
        operation.encoded_len()
    }

    fn batch(operations: impl Iterator<Item = (u64, Outgoing<Self::Operation>)>) -> QueueBatch {
        let requests = operations
            .map(|(id, Outgoing { place, session, operation, .. })| {
                let (Place { group, map }, operation) = (place, Some(operation));
                QueueRequest { id, group, operation, map, session }
            })
            .collect();
        QueueBatch { requests }
    }

    fn answers(replies: QueueReplies) -> impl Iterator<Item = Answered<Self::Answer>> + Send {
        replies.replies.into_iter().map(|reply| {
            let result = reply.result.map(|result| match result {
                queue_reply::Result::Failure(failure) => Err(failure),
                other => Ok(other),
            });
            (reply.id, result)
        })
    }

    async fn open(
        channel: Channel,
        batches: mpsc::Receiver<QueueBatch>,
    ) -> Result<Streaming<QueueReplies>, Status> {
        let mut client = QueueClient::new(channel).max_decoding_message_size(MAX_BATCH_BYTES);
        Ok(client.pipeline(ReceiverStream::new(batches)).await?.into_inner())
    }
}

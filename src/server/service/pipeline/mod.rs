//! One stream of requests and replies, whatever the kind of shard.
//!
//! Batches [arrive](arrival) one after the other; a [`reader`] takes them and starts what they ask for; a [`writer`] sends what has completed.
//! [Reads](reads) wait for their places without a task each. They share a [`Stream`] with an outbox. A request counts as in flight until its reply was taken by
//! the connection, and a reader with too much in flight reads no further: a client that does not read
//! its replies is soon not read either. What all streams hold together is bounded by the
//! [`ClientBudget`]. When a client goes away, all that it held is let go at once.

mod arrival;
mod counted;
mod reader;
mod reads;
#[cfg(test)]
mod simulation;
mod stream;
mod writer;

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use shardhost_groups::{Applied, ReadMode};
use shardhost_proto::client::{Failure, FailureReason};
use shardhost_proto::grants::Grant;
use shardhost_storage::GroupId;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use self::arrival::Batches;
pub use self::arrival::Unread;
#[cfg(feature = "testing")]
pub(super) use self::counted::decode;
use self::stream::Stream;
pub use self::writer::ReplyStream;
use super::GroupLookup;
use super::budget::ClientBudget;
use super::requests::Access;
use crate::shards::time::Stamps;
use shardhost::transport::{Connection, caller_of};

/// Batches of replies that wait for the connection.
const REPLY_BATCHES: usize = 2;

/// What is different between kinds of shard.
pub trait Protocol: Send + Sync + 'static {
    const KIND: &'static str;
    /// What a client must be granted to read,
    const READ: Grant;
    /// and to write.
    const WRITE: Grant;
    /// What a client may do when the answer to its write was too long to be kept for it.
    const UNANSWERED: FailureReason;
    type Batch: Message + Default + 'static;
    type Request: Send;
    /// The answer to one request.
    type Reply: Message + 'static;
    /// What a client is sent.
    type Replies: Message + 'static;

    /// The requests of a batch.
    fn requests(batch: Self::Batch) -> Vec<Self::Request>;
    /// What is to be done for a request, with the time for commands that carry one.
    fn plan(request: Self::Request, stamps: &Stamps<'_>) -> Planned;
    /// The reply to a write that took effect.
    fn written(id: u64, applied: &Applied) -> Self::Reply;
    /// The reply to a read.
    fn answered(id: u64, answer: &Bytes) -> Self::Reply;
    /// The reply to what failed.
    fn failed(id: u64, failure: Failure) -> Self::Reply;
    /// What a reply says that failed; `None`: nothing did.
    fn failure_of(reply: &Self::Reply) -> Option<&Failure>;
    fn replies(replies: Vec<Self::Reply>) -> Self::Replies;
}

/// A request, understood.
pub struct Planned {
    pub(super) id: u64,
    /// Fingerprint of the map of shards that the group follows from; 0: an older client.
    pub(super) map: u64,
    pub(super) group: GroupId,
    pub(super) access: Access,
    pub(super) plan: Plan,
}

/// What is to be done for a request.
pub enum Plan {
    Write(Bytes),
    /// Propose a command, unless a query, asked first, answers that it would change nothing.
    WriteUnless {
        command: Bytes,
        /// The query. Its answer is sent if it is not empty; an empty one asks for the command.
        query: Bytes,
    },
    Get(ReadMode, Bytes),
    Range(ReadMode, Bytes),
    /// Nothing: it makes no sense, or the client may not.
    Invalid(String),
}

impl Plan {
    fn bytes(&self) -> usize {
        match self {
            Self::Write(data) | Self::Get(_, data) | Self::Range(_, data) => data.len(),
            Self::WriteUnless { command, query } => command.len() + query.len(),
            Self::Invalid(message) => message.len(),
        }
    }
}

/// A pipelined service of one kind of shard.
pub struct PipelineService<P> {
    lookup: Arc<dyn GroupLookup>,
    budget: Arc<ClientBudget>,
    protocol: PhantomData<P>,
}

impl<P: Protocol> PipelineService<P> {
    pub(super) fn new(lookup: Arc<dyn GroupLookup>, budget: &Arc<ClientBudget>) -> Self {
        Self { lookup, budget: Arc::clone(budget), protocol: PhantomData }
    }

    pub(super) fn serve(
        &self,
        mut request: Request<Streaming<P::Batch>>,
    ) -> Result<Response<ReplyStream<P>>, Status> {
        let connection: Option<Connection> = request.extensions().get().cloned();
        let caller = caller_of(&request);
        let place = self.budget.streams.enter(connection.as_ref().map(Connection::id))?;
        let batches = Batches::of(&mut request, &self.budget, &place)?;
        let (replies, receiver) = mpsc::channel(REPLY_BATCHES);
        let (lookup, budget) = (Arc::clone(&self.lookup), Arc::clone(&self.budget));
        let stream = Arc::new(Stream::new(lookup, budget, place, batches.arrival(), caller));
        tokio::spawn(reader::read::<P>(Arc::clone(&stream), batches, replies.clone()));
        tokio::spawn(writer::write::<P>(stream, replies, connection));
        Ok(Response::new(ReplyStream::new(receiver)))
    }
}

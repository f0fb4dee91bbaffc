//! What a client does with queues.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shardhost_proto::client::queue_reply::Result as Answer;
use shardhost_proto::client::queue_request::Operation;
use shardhost_proto::client::{
    Ack, Acked, Consistency, Deliveries, Delivery, Peek, Receive, Send, Sent,
};
use shardhost_proto::ids::{GroupId, NodeId};

use super::caller::{Caller, Nature};
use super::error::ClientError;
use super::routes::Target;
use super::wire::QueueWire;

/// A client of the cluster's queues. Cheap to clone.
#[derive(Clone)]
pub struct QueueClient {
    caller: Arc<Caller<QueueWire>>,
}

/// Messages that were received from a shard, to be acked there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// The shard they came from.
    pub shard: usize,
    pub messages: Vec<Delivery>,
    /// The shard has more that could be received now.
    pub more: bool,
}

impl Received {
    /// The receipts of all messages, for [`QueueClient::ack`].
    pub fn receipts(&self) -> impl Iterator<Item = u64> + '_ {
        self.messages.iter().map(|message| message.receipt)
    }
}

impl QueueClient {
    pub(super) const fn new(caller: Arc<Caller<QueueWire>>) -> Self {
        Self { caller }
    }

    /// How many shards the cluster's queues have.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.caller.routes().len()
    }

    /// The shard that a partition key belongs to.
    ///
    /// # Errors
    /// [`ClientError::NoShards`].
    pub fn shard_of(&self, partition_key: &[u8]) -> Result<usize, ClientError> {
        let target = Target::Key(Bytes::copy_from_slice(partition_key));
        let located = self.caller.routes().locate(&target);
        let none = ClientError::NoShards { kind: shardhost_proto::shard_map::QUEUE_KIND };
        located.map(|located| located.shard).ok_or(none)
    }

    /// The group of a shard.
    #[must_use]
    pub fn group(&self, shard: usize) -> Option<GroupId> {
        let located = self.caller.routes().locate(&Target::Shard(shard))?;
        Some(GroupId::new(located.place.group))
    }

    /// Appends a message. Messages of one partition key keep their order if each is sent after
    /// the one before was acknowledged. With a de-duplication id it is stored once for its partition
    /// key, however often it is sent within the window, by whatever client. Without one (empty) it is
    /// stored once per call, see [`super::Resend`].
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Invalid`] when the partition key is empty.
    pub async fn send(
        &self,
        partition_key: impl Into<Bytes>,
        body: impl Into<Bytes>,
        dedup_id: impl Into<Bytes>,
    ) -> Result<Sent, ClientError> {
        let send = Send {
            partition_key: named(partition_key.into())?,
            body: body.into(),
            dedup_id: dedup_id.into(),
        };
        let target = Target::Key(send.partition_key.clone());
        let nature = if send.dedup_id.is_empty() { Nature::Once } else { Nature::Idempotent };
        match self.caller.call(target, Operation::Send(send), nature).await? {
            Answer::Sent(sent) => Ok(sent),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes up to `max_messages` of a shard and hides them from others for `visibility`.
    ///
    /// # Errors
    /// [`ClientError`]. It is never sent twice; what a receive with an unknown outcome took comes
    /// back when its visibility ends.
    pub async fn receive(
        &self,
        shard: usize,
        max_messages: u32,
        visibility: Duration,
    ) -> Result<Received, ClientError> {
        self.receive_of(shard, max_messages, visibility, None).await
    }

    /// As [`QueueClient::receive`], but messages of one partition key only.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Invalid`] when the key is empty: no message has that one.
    pub async fn receive_partition(
        &self,
        partition_key: impl Into<Bytes>,
        max_messages: u32,
        visibility: Duration,
    ) -> Result<Received, ClientError> {
        let partition_key = named(partition_key.into())?;
        let shard = self.shard_of(&partition_key)?;
        self.receive_of(shard, max_messages, visibility, Some(partition_key)).await
    }

    async fn receive_of(
        &self,
        shard: usize,
        max_messages: u32,
        visibility: Duration,
        partition_key: Option<Bytes>,
    ) -> Result<Received, ClientError> {
        let visibility_ms = u64::try_from(visibility.as_millis()).unwrap_or(u64::MAX);
        let receive = Receive { max_messages, visibility_ms, partition_key };
        let answer = self
            .caller
            .call(Target::Shard(shard), Operation::Receive(receive), Nature::Receive)
            .await?;
        let Deliveries { messages, more } = deliveries(answer)?;
        Ok(Received { shard, messages, more })
    }

    /// Removes messages that were received from `shard`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ack(
        &self,
        shard: usize,
        receipts: impl IntoIterator<Item = u64>,
    ) -> Result<Acked, ClientError> {
        let ack = Ack { receipts: receipts.into_iter().collect() };
        match self
            .caller
            .call(Target::Shard(shard), Operation::Ack(ack), Nature::Idempotent)
            .await?
        {
            Answer::Acked(acked) => Ok(acked),
            other => Err(unexpected(&other)),
        }
    }

    /// The messages of a shard from `from_sequence` on, received or not; receives none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn peek(
        &self,
        shard: usize,
        from_sequence: u64,
        limit: Option<u32>,
    ) -> Result<Deliveries, ClientError> {
        let operation = peek(from_sequence, limit, Consistency::Linearizable);
        deliveries(self.caller.call(Target::Shard(shard), operation, Nature::Read).await?)
    }

    /// As [`QueueClient::peek`], but what the replica on `node` has, however old.
    ///
    /// # Errors
    /// [`ClientError`]; the node is asked once, and no other in its place.
    pub async fn peek_via(
        &self,
        node: NodeId,
        shard: usize,
        from_sequence: u64,
        limit: Option<u32>,
    ) -> Result<Deliveries, ClientError> {
        let operation = peek(from_sequence, limit, Consistency::Stale);
        deliveries(self.caller.call_at(node.get(), Target::Shard(shard), operation).await?)
    }
}

/// On the wire an empty key means any.
fn named(partition_key: Bytes) -> Result<Bytes, ClientError> {
    if partition_key.is_empty() {
        return Err(ClientError::Invalid { message: "the partition key is empty".to_owned() });
    }
    Ok(partition_key)
}

fn peek(from_sequence: u64, limit: Option<u32>, consistency: Consistency) -> Operation {
    let limit = limit.unwrap_or_default();
    Operation::Peek(Peek { from_sequence, limit, consistency: consistency.into() })
}

fn deliveries(answer: Answer) -> Result<Deliveries, ClientError> {
    match answer {
        Answer::Deliveries(deliveries) => Ok(deliveries),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> ClientError {
    let kind = match answer {
        Answer::Sent(_) => "a sent",
        Answer::Deliveries(_) => "deliveries",
        Answer::Acked(_) => "an acked",
        Answer::Failure(_) => "a failure",
    };
    ClientError::Protocol { message: format!("the reply is {kind}") }
}

//! Receiving: nothing is in the snapshot store before size and checksum are verified, nor after the
//! replica that it is for was closed or destroyed.

use std::sync::Arc;

use shardhost_groups::transport::{Inbound, Recipient};
use shardhost_proto::peer::{
    GroupMessage, MessageKind, SnapshotFrame, SnapshotHeader, SnapshotReceipt,
};
use shardhost_storage::{GroupId, LogPosition, NodeId, ReplicaId, SnapshotAnnouncement};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::receptions::Claim;
use super::refusal::ReceiveError;
use super::writer::Writer;
use crate::transport::handshake::Refusal;
use crate::transport::listener::Connection;
use crate::transport::receiver::{
    count_as_peer, is_certified, known_peer, not_serving, note_refusal, within_handshake,
};
use crate::transport::shared::{Shared, TaskKind};
use crate::transport::stats::SnapshotRefusal;

/// The answers to a stream: where to begin, and that all came or why not.
pub(in crate::transport) type Receipts = ReceiverStream<Result<SnapshotReceipt, Status>>;

/// Answers the header of a snapshot and starts to receive the rest.
pub(in crate::transport) async fn receive(
    shared: Arc<Shared>,
    connection: Option<Connection>,
    frames: Streaming<SnapshotFrame>,
) -> Result<Response<Receipts>, Status> {
    let begun = tokio::select! {
        () = shared.stop.cancelled() => Err(ReceiveError::NotServing(not_serving(&shared))),
        begun = Reception::begin(&shared, connection.as_ref(), frames) => begun,
    };
    let reception = begun.map_err(|error| refuse(&shared, error))?;
    count_as_peer(connection.as_ref())?;
    let (answers, receipts) = mpsc::channel(2);
    let first = Ok(SnapshotReceipt { size: reception.received });
    answers.try_send(first).map_err(|error| Status::internal(error.to_string()))?;
    shared.spawn(TaskKind::Other, reception.run(answers));
    Ok(Response::new(ReceiverStream::new(receipts)))
}

/// What the first frame of a stream announces, if it is in order.
#[cfg(feature = "testing")]
pub(in crate::transport) fn announced(
    shared: &Shared,
    first: SnapshotFrame,
) -> Result<SnapshotAnnouncement, Status> {
    Plan::new(shared, first).map(|plan| plan.announced).map_err(Status::from)
}

/// Counts and logs a refusal.
fn refuse(shared: &Shared, error: ReceiveError) -> Status {
    let refusal = error.refusal();
    shared.counters.snapshots.refusals.add(refusal);
    match refusal {
        SnapshotRefusal::NoSpace | SnapshotRefusal::Disk | SnapshotRefusal::Panicked => {
            tracing::error!(%error, "snapshot not received");
        }
        _ => tracing::warn!(%error, "snapshot not received"),
    }
    error.into()
}

/// A snapshot whose header was in order.
struct Reception {
    writer: Writer,
    claim: Claim,
    shared: Arc<Shared>,
    inbound: Arc<dyn Inbound>,
    plan: Plan,
    recipient: Recipient,
    frames: Streaming<SnapshotFrame>,
    /// Bytes that are there, from the first.
    received: u64,
}

impl Reception {
    async fn begin(
        shared: &Arc<Shared>,
        connection: Option<&Connection>,
        mut frames: Streaming<SnapshotFrame>,
    ) -> Result<Self, ReceiveError> {
        let not_serving = || ReceiveError::NotServing(not_serving(shared));
        let inbound = shared.inbound().ok_or_else(not_serving)?;
        let first = within_handshake(shared, frames.message()).await?;
        let first = first.unwrap_or_default();
        let hello = first.header.as_ref().and_then(|header| header.hello.as_ref());
        is_certified(connection, hello.map_or(0, |hello| hello.node))
            .inspect_err(|refusal| note_refusal(shared, None, refusal))?;
        let plan = Plan::new(shared, first)?;
        let recipient = plan.ask(&inbound)?;
        let claim = Claim::new(shared, plan.announced.group, plan.announced.from).await?;
        let (writer, received) =
            Writer::start(Arc::clone(&shared.snapshots), plan.announced).await?;
        let shared = Arc::clone(shared);
        Ok(Self { writer, claim, shared, inbound, plan, recipient, frames, received })
    }

    async fn run(self, answers: mpsc::Sender<Result<SnapshotReceipt, Status>>) {
        let shared = Arc::clone(&self.shared);
        let received = tokio::select! {
            () = shared.stop.cancelled() => Err(ReceiveError::NotServing(not_serving(&shared))),
            received = self.receive() => received,
        };
        let answer = match received {
            Ok(size) => {
                shared.counters.snapshots.received.add(1);
                Ok(SnapshotReceipt { size })
            }
            Err(error) => Err(refuse(&shared, error)),
        };
        if answers.try_send(answer).is_err() {
            tracing::debug!("the sender of a snapshot left before it was answered");
        }
    }

    /// Receives the missing part, notifies the groups, and returns how many bytes are there.
    async fn receive(mut self) -> Result<u64, ReceiveError> {
        let superseded = self.claim.superseded.clone();
        let taken = tokio::select! {
            () = superseded.cancelled() => Err(ReceiveError::Superseded),
            taken = self.take() => taken,
        };
        let Self { writer, claim: _claim, shared, inbound, plan, recipient, .. } = self;
        match taken {
            Ok(()) => {
                writer.finish(recipient).await?;
                inbound.snapshot_arrived(plan.announced.from, plan.message);
                Ok(plan.announced.size)
            }
            Err(error) if error.keeps_what_came() => {
                let kept = writer.pause().await?;
                let SnapshotAnnouncement { group, position, size, .. } = plan.announced;
                tracing::info!(%group, %position, kept, size, "a snapshot can be continued");
                shared.receptions.paused.notify_one();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes chunks until the stream ends.
    async fn take(&mut self) -> Result<(), ReceiveError> {
        let announced = self.plan.announced.size;
        let limit = self.shared.config.snapshot.stall_timeout;
        let mut deadline = Instant::now() + limit;
        while let Some(frame) = tokio::time::timeout_at(deadline, self.frames.message())
            .await
            .map_err(|_| ReceiveError::Stalled(limit))??
        {
            if frame.header.is_some() {
                return Err(ReceiveError::Header("a second header in a snapshot"));
            }
            let bytes = frame.chunk.len();
            if bytes == 0 {
                continue;
            }
            if bytes as u64 > announced - self.received {
                return Err(ReceiveError::TooLong { announced });
            }
            self.writer.append(frame.chunk).await?;
            self.received += bytes as u64;
            self.shared.counters.snapshots.bytes_received.add(bytes);
            deadline = Instant::now() + limit;
        }
        if self.received < announced {
            return Err(ReceiveError::TooShort { announced, received: self.received });
        }
        Ok(())
    }
}

struct Plan {
    announced: SnapshotAnnouncement,
    replica: ReplicaId,
    message: GroupMessage,
}

impl Plan {
    fn new(shared: &Shared, first: SnapshotFrame) -> Result<Self, ReceiveError> {
        if !first.chunk.is_empty() {
            return Err(ReceiveError::Header("a snapshot begins with its header alone"));
        }
        let header = first.header.ok_or(ReceiveError::Header("a snapshot without a header"))?;
        let claimed = header.hello.as_ref().and_then(|hello| NodeId::new(hello.node));
        let from = greeted(shared, &header)
            .inspect_err(|refusal| note_refusal(shared, claimed, refusal))?;
        let message = header.message.ok_or(ReceiveError::Header("a header without a message"))?;
        if message.kind() != MessageKind::Snapshot {
            return Err(ReceiveError::Header("the message of a header is no snapshot message"));
        }
        let replica = ReplicaId::new(message.to_replica)
            .ok_or(ReceiveError::Header("the message addresses no replica"))?;
        let position = position_of(&message)
            .ok_or(ReceiveError::Header("the message names no log position"))?;
        let group = GroupId::new(message.group);
        let (size, crc) = (header.size, header.crc);
        let announced = SnapshotAnnouncement { from, group, position, size, crc };
        Ok(Self { announced, replica, message })
    }

    /// Asks the groups whether they want the snapshot, before its bytes are read.
    fn ask(&self, inbound: &Arc<dyn Inbound>) -> Result<Recipient, ReceiveError> {
        let SnapshotAnnouncement { group, position, .. } = self.announced;
        let replica = self.replica;
        let recipient = inbound.wants_snapshot(group, replica, position);
        recipient.ok_or(ReceiveError::Unwanted { group, replica, position })
    }
}

fn greeted(shared: &Shared, header: &SnapshotHeader) -> Result<NodeId, Refusal> {
    let hello = header.hello.as_ref().ok_or(Refusal::NoHello)?;
    let (peer, greeting) = known_peer(shared, hello)?;
    peer.liveness.visits(&greeting, shared.horizon.latest())?;
    Ok(peer.node)
}

fn position_of(message: &GroupMessage) -> Option<LogPosition> {
    let position = message.snapshot.as_ref()?.position.as_ref()?;
    (position.index > 0).then(|| LogPosition::new(position.term, position.index))
}

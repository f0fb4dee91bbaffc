//! Receiving: nothing stands in the snapshot store before size and checksum are right.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shardhost_groups::transport::Inbound;
use shardhost_proto::peer::{
    GroupMessage, MessageKind, SnapshotFrame, SnapshotHeader, SnapshotReceipt,
};
use shardhost_storage::{
    GroupId, LogPosition, NodeId, ReplicaId, SnapshotError, SnapshotStore, SnapshotWrite,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Response, Status, Streaming};

use super::CHUNKS_BETWEEN;
use crate::transport::handshake::Refusal;
use crate::transport::receiver::{known_peer, not_serving, note_refusal, within_handshake};
use crate::transport::shared::Shared;

/// Why a snapshot is not taken. Nothing of it is kept.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("{0}")]
    Header(&'static str),
    #[error("no snapshot of group {group} at {position} is wanted for replica {replica}")]
    Unwanted { group: GroupId, replica: ReplicaId, position: LogPosition },
    #[error("as many snapshots as allowed are being received; try again")]
    Busy,
    #[error("a snapshot of group {0} is already being received")]
    Duplicate(GroupId),
    #[error("the header announces {announced} bytes, more came")]
    TooLong { announced: u64 },
    #[error("the header announces {announced} bytes, the stream ended after {received}")]
    TooShort { announced: u64, received: u64 },
    #[error("the checksum of the bytes is {found:08x}, the header says {announced:08x}")]
    Checksum { announced: u32, found: u32 },
    #[error("no bytes came for {0:?}")]
    Stalled(Duration),
    #[error("writing it failed: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] SnapshotError),
    #[error("the writing thread panicked")]
    Panicked,
    #[error("{}", .0.message())]
    Stream(#[from] Status),
}

impl From<ReceiveError> for Status {
    fn from(error: ReceiveError) -> Self {
        use ReceiveError as E;
        let text = error.to_string();
        match error {
            E::Header(_) | E::TooLong { .. } | E::TooShort { .. } => Self::invalid_argument(text),
            E::Unwanted { .. } => Self::failed_precondition(text),
            E::Busy | E::Store(SnapshotError::NoSpace { .. }) => Self::resource_exhausted(text),
            E::Write(ref cause) if cause.kind() == io::ErrorKind::StorageFull => {
                Self::resource_exhausted(text)
            }
            E::Duplicate(_) => Self::already_exists(text),
            E::Checksum { .. } => Self::data_loss(text),
            E::Stalled(_) => Self::deadline_exceeded(text),
            E::Stream(status) => status,
            E::Write(_) | E::Store(_) | E::Panicked => Self::internal(text),
        }
    }
}

/// Receives one snapshot.
pub(in crate::transport) async fn receive(
    shared: Arc<Shared>,
    frames: Streaming<SnapshotFrame>,
) -> Result<Response<SnapshotReceipt>, Status> {
    let received = tokio::select! {
        () = shared.stop.cancelled() => Err(not_serving(&shared).into()),
        received = receive_whole(&shared, frames) => received,
    };
    match received {
        Ok(size) => {
            shared.counters.snapshots_received.add(1);
            Ok(Response::new(SnapshotReceipt { size }))
        }
        Err(error) => {
            shared.counters.snapshots_refused.add(1);
            tracing::warn!(%error, "snapshot not received");
            Err(error.into())
        }
    }
}

async fn receive_whole(
    shared: &Arc<Shared>,
    mut frames: Streaming<SnapshotFrame>,
) -> Result<u64, ReceiveError> {
    let inbound = shared.inbound().ok_or_else(|| not_serving(shared))?;
    let first = within_handshake(shared, frames.message()).await?;
    let plan = Plan::new(shared, first.unwrap_or_default())?;
    let _turn = shared.receiving.try_acquire().map_err(|_| ReceiveError::Busy)?;
    let _claim = Claim::new(shared, plan.group).ok_or(ReceiveError::Duplicate(plan.group))?;
    plan.ask(&inbound)?;
    let size = plan.size;
    let (from, message) = plan.write(shared, frames).await?;
    inbound.snapshot_arrived(from, message);
    Ok(size)
}

/// What a header announces.
struct Plan {
    from: NodeId,
    group: GroupId,
    replica: ReplicaId,
    position: LogPosition,
    size: u64,
    crc: u32,
    message: GroupMessage,
}

impl Plan {
    fn new(shared: &Shared, first: SnapshotFrame) -> Result<Self, ReceiveError> {
        if !first.chunk.is_empty() {
            return Err(ReceiveError::Header("a snapshot begins with its header alone"));
        }
        let header = first.header.ok_or(ReceiveError::Header("a snapshot without a header"))?;
        let from = greeted(shared, &header).map_err(|refusal| {
            note_refusal(shared, &refusal);
            Status::from(refusal)
        })?;
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
        Ok(Self { from, group, replica, position, size, crc, message })
    }

    /// Asks the groups whether they want the snapshot, before its bytes are read.
    fn ask(&self, inbound: &Arc<dyn Inbound>) -> Result<(), ReceiveError> {
        let (group, replica, position) = (self.group, self.replica, self.position);
        if inbound.wants_snapshot(group, replica, position) {
            Ok(())
        } else {
            Err(ReceiveError::Unwanted { group, replica, position })
        }
    }

    /// Takes the chunks into the store; returns whom to tell what.
    async fn write(
        self,
        shared: &Shared,
        mut frames: Streaming<SnapshotFrame>,
    ) -> Result<(NodeId, GroupMessage), ReceiveError> {
        let mut writer = Writer::start(Arc::clone(&shared.snapshots), &self);
        let stall_timeout = shared.config.snapshot.stall_timeout;
        let mut received = 0;
        let mut deadline = Instant::now() + stall_timeout;
        while let Some(frame) = tokio::time::timeout_at(deadline, frames.message())
            .await
            .map_err(|_| ReceiveError::Stalled(stall_timeout))??
        {
            if frame.header.is_some() {
                return Err(ReceiveError::Header("a second header in a snapshot"));
            }
            if frame.chunk.is_empty() {
                continue;
            }
            received += frame.chunk.len() as u64;
            if received > self.size {
                return Err(ReceiveError::TooLong { announced: self.size });
            }
            writer.put(Part::Chunk(frame.chunk)).await?;
            deadline = Instant::now() + stall_timeout;
        }
        if received < self.size {
            return Err(ReceiveError::TooShort { announced: self.size, received });
        }
        writer.finish().await?;
        Ok((self.from, self.message))
    }
}

fn greeted(shared: &Shared, header: &SnapshotHeader) -> Result<NodeId, Refusal> {
    let hello = header.hello.as_ref().ok_or(Refusal::NoHello)?;
    let (peer, greeting) = known_peer(shared, hello)?;
    peer.liveness.welcomed(greeting)?;
    Ok(peer.node)
}

fn position_of(message: &GroupMessage) -> Option<LogPosition> {
    let position = message.snapshot.as_ref()?.position.as_ref()?;
    (position.index > 0).then(|| LogPosition::new(position.term, position.index))
}

/// Keeps a second snapshot of the same group out.
struct Claim<'a> {
    shared: &'a Shared,
    group: GroupId,
}

impl<'a> Claim<'a> {
    fn new(shared: &'a Shared, group: GroupId) -> Option<Self> {
        let first = shared.receiving_groups.lock().insert(group);
        first.then_some(Self { shared, group })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.receiving_groups.lock().remove(&self.group);
    }
}

/// What the writing thread is given. Without an end, nothing is kept.
enum Part {
    Chunk(Bytes),
    End,
}

/// The thread that writes, as its feeder sees it.
struct Writer {
    parts: mpsc::Sender<Part>,
    thread: JoinHandle<Result<(), ReceiveError>>,
}

impl Writer {
    fn start(store: Arc<dyn SnapshotStore>, plan: &Plan) -> Self {
        let (parts, receiver) = mpsc::channel(CHUNKS_BETWEEN);
        let (group, position) = (plan.group, plan.position);
        let (size, crc) = (plan.size, plan.crc);
        let thread = tokio::task::spawn_blocking(move || {
            let file = store.create(group, position)?;
            write_parts(file, receiver, size, crc)
        });
        Self { parts, thread }
    }

    async fn put(&mut self, part: Part) -> Result<(), ReceiveError> {
        if self.parts.send(part).await.is_ok() {
            return Ok(());
        }
        match (&mut self.thread).await {
            Ok(Err(error)) => Err(error),
            _ => Err(ReceiveError::Panicked),
        }
    }

    async fn finish(mut self) -> Result<(), ReceiveError> {
        self.put(Part::End).await?;
        self.thread.await.map_err(|_| ReceiveError::Panicked)?
    }
}

/// Writes and sums up until the end; then the sum decides.
fn write_parts(
    mut file: Box<dyn SnapshotWrite>,
    mut parts: mpsc::Receiver<Part>,
    size: u64,
    announced: u32,
) -> Result<(), ReceiveError> {
    let mut hasher = crc32fast::Hasher::new();
    loop {
        match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => {
                hasher.update(&chunk);
                file.write_all(&chunk)?;
            }
            Some(Part::End) => break,
            None => return Ok(()),
        }
    }
    let found = hasher.finalize();
    if found != announced {
        return Err(ReceiveError::Checksum { announced, found });
    }
    let (written, found) = file.finish()?;
    if written != size {
        return Err(ReceiveError::TooShort { announced: size, received: written });
    }
    if found == announced { Ok(()) } else { Err(ReceiveError::Checksum { announced, found }) }
}

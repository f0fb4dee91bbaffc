//! Sending: every shipment ends in exactly one report to the groups.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use shardhost_groups::transport::{ShipmentOutcome, SnapshotShipment};
use shardhost_proto::peer::peer_client::PeerClient;
use shardhost_proto::peer::{SnapshotFrame, SnapshotHeader};
use shardhost_storage::{GroupId, NodeId, ReplicaId, SnapshotError, SnapshotRead};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::CHUNKS_BETWEEN;
use crate::transport::connection;
use crate::transport::sender::LaneError;
use crate::transport::shared::{Shared, TaskKind};

/// Why a snapshot was not delivered. Raft asks again.
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error("too many shipments wait")]
    TooMany,
    #[error("the transport ends")]
    Stopping,
    #[error("{0} is not in the directory")]
    UnknownNode(NodeId),
    #[error(transparent)]
    Store(#[from] SnapshotError),
    #[error("reading it failed: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Connect(#[from] LaneError),
    #[error("the receiver refused it: {:?}: {}", .0.code(), .0.message())]
    Refused(#[from] Status),
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    #[error("the receiver has {received} of {size} bytes")]
    Short { received: u64, size: u64 },
    #[error("the reading thread panicked")]
    Panicked,
}

/// Starts a shipment on a task of its own.
pub(in crate::transport) fn ship(shared: &Arc<Shared>, shipment: SnapshotShipment) {
    let Some(report) = Report::new(shared, &shipment) else {
        tracing::error!(?shipment, "a shipment addresses no replica");
        return;
    };
    let task = Shipping { shared: Arc::clone(shared), shipment };
    let room = Arc::clone(&shared.shipments).try_acquire_owned();
    shared.spawn(TaskKind::Other, async move {
        let shipped = match room {
            Ok(_room) => task.run().await,
            Err(_) => Err(ShipError::TooMany),
        };
        report.finish(&task.shipment, shipped);
    });
}

/// Reports how a shipment ended; failure, if it ended in no other way.
struct Report {
    shared: Arc<Shared>,
    group: GroupId,
    to: ReplicaId,
    outcome: ShipmentOutcome,
}

impl Report {
    fn new(shared: &Arc<Shared>, shipment: &SnapshotShipment) -> Option<Self> {
        Some(Self {
            shared: Arc::clone(shared),
            group: GroupId::new(shipment.message.group),
            to: ReplicaId::new(shipment.message.to_replica)?,
            outcome: ShipmentOutcome::Failed,
        })
    }

    fn finish(mut self, shipment: &SnapshotShipment, shipped: Result<u64, ShipError>) {
        let (group, to, position) = (self.group, shipment.to, shipment.position);
        match shipped {
            Ok(bytes) => {
                tracing::info!(%group, %to, %position, bytes, "snapshot delivered");
                self.outcome = ShipmentOutcome::Delivered;
            }
            Err(error) => tracing::warn!(%group, %to, %position, %error, "snapshot not delivered"),
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let counters = &self.shared.counters;
        match self.outcome {
            ShipmentOutcome::Delivered => counters.snapshots_sent.add(1),
            ShipmentOutcome::Failed => counters.snapshots_failed.add(1),
        }
        if let Some(inbound) = self.shared.inbound() {
            inbound.snapshot_shipped(self.group, self.to, self.outcome);
        }
    }
}

struct Shipping {
    shared: Arc<Shared>,
    shipment: SnapshotShipment,
}

impl Shipping {
    /// Ships the snapshot when its turn comes; returns its size in bytes.
    async fn run(&self) -> Result<u64, ShipError> {
        tokio::select! {
            () = self.shared.stop.cancelled() => Err(ShipError::Stopping),
            shipped = self.ship_in_turn() => shipped,
        }
    }

    async fn ship_in_turn(&self) -> Result<u64, ShipError> {
        let turn = self.shared.sending.acquire().await;
        let _turn = turn.map_err(|_| ShipError::Stopping)?;
        let peer = self.shared.peer(self.shipment.to);
        let peer = peer.ok_or(ShipError::UnknownNode(self.shipment.to))?;
        tokio::select! {
            () = peer.stop.cancelled() => Err(ShipError::UnknownNode(peer.node)),
            shipped = self.ship_to(peer.address.borrow().clone()) => shipped,
        }
    }

    async fn ship_to(&self, address: String) -> Result<u64, ShipError> {
        let reader = self.open().await?;
        let size = reader.size();
        let header = self.header(&*reader);
        let channel = connection::connect(&self.shared.config, &address).await?;
        let (frames, stream) = mpsc::channel(CHUNKS_BETWEEN);
        let pump = Pump::new(reader, self.shared.config.snapshot.chunk_bytes, frames);
        let read = Arc::clone(&pump.read);
        let pump = tokio::task::spawn_blocking(move || pump.run(header));
        let receipt = self.deliver(channel, stream, &read).await;
        // A failed read cuts the stream short, and the receiver complains: the read is the cause.
        pump.await.map_err(|_| ShipError::Panicked)??;
        let received = receipt?;
        if received == size { Ok(size) } else { Err(ShipError::Short { received, size }) }
    }

    /// Opens the snapshot, which checks all of it.
    async fn open(&self) -> Result<Box<dyn SnapshotRead>, ShipError> {
        let store = Arc::clone(&self.shared.snapshots);
        let (group, position) = (GroupId::new(self.shipment.message.group), self.shipment.position);
        let opened = tokio::task::spawn_blocking(move || store.open(group, position));
        Ok(opened.await.map_err(|_| ShipError::Panicked)??)
    }

    fn header(&self, reader: &dyn SnapshotRead) -> SnapshotHeader {
        SnapshotHeader {
            hello: Some(self.shared.identity.hello(self.shipment.to, None)),
            message: Some(self.shipment.message.clone()),
            size: reader.size(),
            crc: reader.crc(),
        }
    }

    /// Streams the frames; returns how many bytes the receiver says it has.
    async fn deliver(
        &self,
        channel: tonic::transport::Channel,
        frames: mpsc::Receiver<SnapshotFrame>,
        read: &AtomicU64,
    ) -> Result<u64, ShipError> {
        let mut client = PeerClient::new(channel);
        let call = client.snapshot(ReceiverStream::new(frames));
        tokio::pin!(call);
        let patience = self.shared.config.snapshot.stall_timeout;
        let mut seen = None;
        loop {
            tokio::select! {
                receipt = &mut call => return Ok(receipt?.into_inner().size),
                () = tokio::time::sleep(patience) => {
                    let now = Some(read.load(Ordering::Relaxed));
                    if now == seen {
                        return Err(ShipError::Stalled(patience));
                    }
                    seen = now;
                }
            }
        }
    }
}

/// Reads a snapshot into frames, on a blocking thread, as fast as they are taken.
struct Pump {
    reader: Box<dyn SnapshotRead>,
    chunk_bytes: usize,
    frames: mpsc::Sender<SnapshotFrame>,
    /// Bytes read, for whoever watches the progress.
    read: Arc<AtomicU64>,
}

impl Pump {
    fn new(
        reader: Box<dyn SnapshotRead>,
        chunk_bytes: usize,
        frames: mpsc::Sender<SnapshotFrame>,
    ) -> Self {
        Self { reader, chunk_bytes, frames, read: Arc::default() }
    }

    /// Ends at the end of the snapshot, or when nobody takes frames any more.
    fn run(mut self, header: SnapshotHeader) -> io::Result<()> {
        let mut frame = SnapshotFrame { header: Some(header), chunk: Bytes::new() };
        while self.frames.blocking_send(frame).is_ok() {
            let mut chunk = Vec::with_capacity(self.chunk_bytes);
            let most = self.chunk_bytes as u64;
            let count = self.reader.by_ref().take(most).read_to_end(&mut chunk)?;
            if count == 0 {
                break;
            }
            self.read.fetch_add(count as u64, Ordering::Relaxed);
            frame = SnapshotFrame { header: None, chunk: chunk.into() };
        }
        Ok(())
    }
}

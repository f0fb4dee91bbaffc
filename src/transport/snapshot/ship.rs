//! Sending one snapshot, and going on when its stream breaks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use shardhost_groups::transport::SnapshotShipment;
use shardhost_proto::peer::peer_client::PeerClient;
use shardhost_proto::peer::{SnapshotFrame, SnapshotHeader, SnapshotReceipt};
use shardhost_security::channel::Channel;
use shardhost_storage::{GroupId, LogPosition, NodeId, SnapshotError, SnapshotRead, SnapshotStore};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};

use super::CHUNKS_BETWEEN;
use super::pump::{Pump, Source};
use super::shipments::{Destination, Ticket};
use crate::transport::connection;
use crate::transport::peer::Peer;
use crate::transport::sender::LaneError;
use crate::transport::shared::{Shared, TaskKind};
use crate::transport::stats::ShipmentFailure;

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
    #[error(transparent)]
    Connect(#[from] LaneError),
    #[error("the receiver refused it: {:?}: {}", .0.code(), .0.message())]
    Refused(Status),
    #[error("the stream broke: {:?}: {}", .0.code(), .0.message())]
    Broken(Status),
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    #[error("the receiver says that it has {received} of {size} bytes")]
    BadReceipt { received: u64, size: u64 },
    #[error("the receiver ended the stream without a receipt")]
    NoReceipt,
    #[error("a thread panicked")]
    Panicked,
}

impl From<Status> for ShipError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::DeadlineExceeded => Self::Broken(status),
            _ => Self::Refused(status),
        }
    }
}

impl ShipError {
    const fn failure(&self) -> ShipmentFailure {
        use ShipmentFailure as F;
        match self {
            Self::TooMany => F::TooMany,
            Self::Stopping => F::Stopping,
            Self::UnknownNode(_) => F::UnknownNode,
            Self::Store(SnapshotError::Missing { .. }) => F::Missing,
            Self::Store(SnapshotError::Corrupt { .. }) => F::Damaged,
            Self::Store(_) => F::Disk,
            Self::Connect(_) => F::Unreachable,
            Self::Refused(_) => F::Refused,
            Self::Broken(_) => F::Broken,
            Self::Stalled(_) => F::Stalled,
            Self::BadReceipt { .. } | Self::NoReceipt => F::BadReceipt,
            Self::Panicked => F::Panicked,
        }
    }

    /// Whether another stream may fare better.
    const fn is_of_the_stream(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::Stalled(_))
    }
}

/// Starts a shipment in a separate task.
pub(in crate::transport) fn ship(shared: &Arc<Shared>, shipment: SnapshotShipment) {
    let Some(destination) = Destination::of(&shipment) else {
        tracing::error!(?shipment, "a shipment addresses no replica");
        return;
    };
    let ticket = Ticket::new(shared, destination);
    let shipping = Shipping { shared: Arc::clone(shared), shipment };
    shared.spawn(TaskKind::Other, shipping.run(ticket));
}

struct Shipping {
    shared: Arc<Shared>,
    shipment: SnapshotShipment,
}

impl Shipping {
    async fn run(self, mut ticket: Ticket) {
        let Some(superseded) = ticket.superseded() else {
            self.fail(&mut ticket, &ShipError::TooMany).await;
            return;
        };
        let shipped = async {
            match self.ship_while_it_makes_sense().await {
                Ok(bytes) => self.succeed(&mut ticket, bytes),
                Err(error) => self.fail(&mut ticket, &error).await,
            }
        };
        tokio::select! {
            () = superseded.cancelled() => {
                let SnapshotShipment { to, position, .. } = &self.shipment;
                tracing::debug!(%to, %position, "a newer shipment of a snapshot took over");
            }
            () = shipped => {}
        }
    }

    fn succeed(&self, ticket: &mut Ticket, bytes: u64) {
        let Destination { group, replica } = ticket.destination();
        let SnapshotShipment { to, position, .. } = &self.shipment;
        tracing::info!(%group, %replica, %to, %position, bytes, "snapshot delivered");
        ticket.end(Ok(()));
    }

    /// The groups learn of a failure a little later: they would try again at once.
    async fn fail(&self, ticket: &mut Ticket, error: &ShipError) {
        let Destination { group, replica } = ticket.destination();
        let SnapshotShipment { to, position, .. } = &self.shipment;
        match error.failure() {
            ShipmentFailure::Damaged | ShipmentFailure::Disk => {
                tracing::error!(%group, %replica, %to, %position, %error, "snapshot not delivered");
            }
            _ => tracing::warn!(%group, %replica, %to, %position, %error, "snapshot not delivered"),
        }
        ticket.end(Err(error.failure()));
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            () = tokio::time::sleep(self.shared.config.snapshot.retry_wait) => {}
        }
    }

    /// Ships the snapshot when its turn comes; returns its size in bytes.
    async fn ship_while_it_makes_sense(&self) -> Result<u64, ShipError> {
        tokio::select! {
            // It also stops every peer.
            biased;
            () = self.shared.stop.cancelled() => Err(ShipError::Stopping),
            shipped = self.ship_in_turn() => shipped,
        }
    }

    async fn ship_in_turn(&self) -> Result<u64, ShipError> {
        let turn = self.shared.shipments.turns().acquire().await;
        let _turn = turn.map_err(|_| ShipError::Stopping)?;
        let peer = self.shared.peer(self.shipment.to);
        let peer = peer.ok_or(ShipError::UnknownNode(self.shipment.to))?;
        tokio::select! {
            () = peer.stop.cancelled() => Err(ShipError::UnknownNode(peer.node)),
            shipped = self.ship_to(&peer) => shipped,
        }
    }

    /// Streams the snapshot. When a stream breaks, another continues, as long as each begins
    /// further on than the one before.
    async fn ship_to(&self, peer: &Peer) -> Result<u64, ShipError> {
        let source = self.open().await?;
        let mut furthest = None;
        loop {
            let address = self.shared.directory.address(peer.node);
            let address = address.ok_or(ShipError::UnknownNode(peer.node))?;
            let mut stream = OneStream::new(self, &source);
            match stream.run(&address).await {
                Err(error) if error.is_of_the_stream() && stream.began_at > furthest => {
                    furthest = stream.began_at;
                    tracing::info!(to = %peer.node, %error, "a snapshot continues over another stream");
                }
                Err(ShipError::Refused(status)) if status.code() == Code::DataLoss => {
                    return Err(self.whose_damage(status).await);
                }
                ended => return ended,
            }
        }
    }

    async fn open(&self) -> Result<Source, ShipError> {
        let (store, group, position) = self.stored();
        let opened = tokio::task::spawn_blocking(move || store.open_unchecked(group, position));
        let source = opened.await.map_err(|_| ShipError::Panicked)??;
        Ok(Arc::new(Mutex::new(source)))
    }

    /// The receiver found other bytes than the header declares: finds out whether they are damaged
    /// here.
    async fn whose_damage(&self, status: Status) -> ShipError {
        let (store, group, position) = self.stored();
        let checked = tokio::task::spawn_blocking(move || store.open(group, position).map(drop));
        match checked.await {
            Ok(Ok(())) => ShipError::Refused(status),
            Ok(Err(error)) => error.into(),
            Err(_) => ShipError::Panicked,
        }
    }

    fn stored(&self) -> (Arc<dyn SnapshotStore>, GroupId, LogPosition) {
        (Arc::clone(&self.shared.snapshots), self.group(), self.shipment.position)
    }

    const fn group(&self) -> GroupId {
        GroupId::new(self.shipment.message.group)
    }

    fn header(&self, source: &dyn SnapshotRead) -> SnapshotFrame {
        let header = SnapshotHeader {
            hello: Some(self.shared.identity.hello(self.shipment.to, None, None, 0)),
            message: Some(self.shipment.message.clone()),
            size: source.size(),
            crc: source.crc(),
        };
        SnapshotFrame { header: Some(header), chunk: Bytes::new() }
    }
}

/// One stream of a shipment, from the connection to the receipt.
struct OneStream<'a> {
    shipping: &'a Shipping,
    source: &'a Source,
    /// The offset that the receiver asked for, once it did.
    began_at: Option<u64>,
    /// Bytes handed to the connection.
    sent: Arc<AtomicU64>,
}

impl<'a> OneStream<'a> {
    fn new(shipping: &'a Shipping, source: &'a Source) -> Self {
        Self { shipping, source, began_at: None, sent: Arc::default() }
    }

    async fn run(&mut self, address: &str) -> Result<u64, ShipError> {
        let shared = &self.shipping.shared;
        let channel =
            connection::connect(&shared.config, self.shipping.shipment.to, address).await?;
        let (frames, stream) = mpsc::channel(CHUNKS_BETWEEN);
        let (header, size) = {
            let source = self.source.lock();
            (self.shipping.header(&**source), source.size())
        };
        frames.try_send(header).map_err(|_| ShipError::Panicked)?;
        let mut receipts = self.call(channel, stream).await?;
        let offset = self.receipt(&mut receipts).await?;
        if offset > size {
            return Err(ShipError::BadReceipt { received: offset, size });
        }
        self.began_at = Some(offset);
        shared.counters.snapshots.resumed.add(usize::from(offset > 0));
        self.pump(receipts, frames, offset, size).await
    }

    /// Sends what the receiver has not, and waits for the receipt.
    async fn pump(
        &self,
        mut receipts: Streaming<SnapshotReceipt>,
        frames: mpsc::Sender<SnapshotFrame>,
        offset: u64,
        size: u64,
    ) -> Result<u64, ShipError> {
        let (over, runtime) = (CancellationToken::new(), Handle::current());
        let ends: DropGuard = over.clone().drop_guard();
        let (source, chunk_bytes) =
            (Arc::clone(self.source), self.shipping.shared.config.snapshot.chunk_bytes);
        let pump = Pump { source, offset, chunk_bytes, frames, over };
        let pump = tokio::task::spawn_blocking(move || pump.run(&runtime));
        let receipt = self.receipt(&mut receipts).await;
        drop((receipts, ends));
        // A failed read cuts the stream short, and the receiver complains: the read is the cause.
        let read: io::Result<()> = pump.await.map_err(|_| ShipError::Panicked)?;
        let group = self.shipping.group();
        read.map_err(|error| SnapshotError::from_io(group, "reading it", &error))?;
        let received = receipt?;
        if received == size { Ok(size) } else { Err(ShipError::BadReceipt { received, size }) }
    }

    /// Makes the call; returns when the receiver has read the header and wants the rest.
    async fn call(
        &self,
        channel: Channel,
        frames: mpsc::Receiver<SnapshotFrame>,
    ) -> Result<Streaming<SnapshotReceipt>, ShipError> {
        let mut client = PeerClient::new(channel).max_decoding_message_size(RECEIPT_MAX_BYTES);
        let limit = self.shipping.shared.config.snapshot.stall_timeout;
        let call = tokio::time::timeout(limit, client.snapshot(self.paced(frames)));
        Ok(call.await.map_err(|_| ShipError::Stalled(limit))??.into_inner())
    }

    fn paced(
        &self,
        frames: mpsc::Receiver<SnapshotFrame>,
    ) -> impl Stream<Item = SnapshotFrame> + Send + 'static {
        let (shared, sent) = (Arc::clone(&self.shipping.shared), Arc::clone(&self.sent));
        ReceiverStream::new(frames).then(move |frame| {
            let (shared, sent) = (Arc::clone(&shared), Arc::clone(&sent));
            async move {
                let bytes = frame.chunk.len();
                let passes = shared.shipments.rate.book(bytes, Instant::now());
                tokio::time::sleep_until(passes.into()).await;
                sent.fetch_add(bytes as u64, Ordering::Relaxed);
                shared.counters.snapshots.bytes_sent.add(bytes);
                frame
            }
        })
    }

    /// The next receipt: how many bytes the receiver has. Waits for as long as bytes move.
    async fn receipt(&self, receipts: &mut Streaming<SnapshotReceipt>) -> Result<u64, ShipError> {
        let limit = self.shipping.shared.config.snapshot.stall_timeout;
        let mut seen = None;
        loop {
            match tokio::time::timeout(limit, receipts.message()).await {
                Ok(receipt) => return receipt?.map(|r| r.size).ok_or(ShipError::NoReceipt),
                Err(_) => {
                    let sent = Some(self.sent.load(Ordering::Relaxed));
                    if sent == seen {
                        return Err(ShipError::Stalled(limit));
                    }
                    seen = sent;
                }
            }
        }
    }
}

/// A receipt is a number.
const RECEIPT_MAX_BYTES: usize = 1 << 10;

//! Carries messages between hosts over gRPC: the host's implementation of the groups'
//! [`Transport`].
//!
//! Per peer there are two lanes, each a bounded queue and a stream on a separate connection: *bulk*
//! for appends, *urgent* for heartbeats and votes, which therefore never wait behind appends. A
//! frame carries all that waits, of many groups. Snapshots have separate streams. One heartbeat per
//! pair of nodes covers the liveness of all groups between them.
//!
//! | where | what |
//! |---|---|
//! | [`config`], [`directory`], [`address`] | settings and bounds; where nodes are reached; what greetings say of that |
//! | `dispatch`, `lane` | the way out: sorting a batch, the bounded queues |
//! | `sender`, `connection`, `progress` | keeping lanes connected; HTTP/2 settings; what stalls |
//! | [`codec`], [`handshake`] | frames as bytes; which nodes may talk to each other |
//! | `listener` | connections: how many of each kind, and for how long they may say nothing |
//! | `service`, `receiver` | the way in |
//! | `liveness`, `heartbeat`, `advertisement` | which peers live, and what they say of themselves |
//! | `clocks` | whether the wall clocks of the nodes agree |
//! | `starts`, `refusals` | which process is a peer; what either side refuses of the other |
//! | [`memory`] | which starts of peers were seen, over restarts; that the own directory is an older copy |
//! | `snapshot` | snapshots, out and in |
//! | [`stats`] | counters |
//!
//! **Invariant:** this module knows nothing of Raft: it reads of a message only its group, the
//! addressed replica and its length. It does not check what messages say; the groups' validator
//! does.

pub mod address;
mod advertisement;
mod clocks;
pub mod codec;
pub mod config;
mod connection;
pub mod directory;
mod dispatch;
mod founded;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
pub mod handshake;
mod heartbeat;
mod lane;
mod listener;
mod liveness;
mod map_tag;
pub mod memory;
mod peer;
mod progress;
mod receiver;
mod refusals;
mod sender;
mod service;
mod shared;
mod snapshot;
mod starts;
pub mod stats;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::transport::{Inbound, Outgoing, SnapshotShipment, Transport};
use shardhost_proto::methods::Audience;
use shardhost_storage::{NodeId, SnapshotStore};
use tokio::runtime::Handle;

pub use clocks::ClockAlarm;
pub use config::{ConfigError, LaneLimits, SnapshotLimits, TransportConfig};
pub(crate) use connection::chain;
pub use connection::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, server};
pub use directory::PeerDirectory;
pub use founded::FoundedBy;
pub use handshake::Rollback;
pub use listener::{
    AUDIT, Accepted, CallRecord, Connection, ConnectionLimits, ConnectionStats, Connections,
    Incoming, KnownTokens, Served, TokenHolder, Tokens, admit_clients, authorize, caller_of,
    incoming, incoming_within, note_asked, only,
};
pub use map_tag::MapTag;
pub(crate) use map_tag::check as check_map;
pub use memory::IncarnationMemory;
pub use service::PeerService;
pub use stats::{LaneStats, PeerStats, ShipmentFailure, SnapshotRefusal, TransportStats};
pub use versions::Versions;

use shared::{Shared, TaskKind};

/// The transport of a host. Clones are handles of the same transport.
///
/// Made in three steps, because the groups need a transport and the transport needs the groups:
/// [`new`](Self::new); [`service`](Self::service) mounted on the host's listener;
/// [`bind`](Self::bind) to the groups, which starts it. Peers that come earlier are asked to try
/// again, and messages sent earlier are dropped and counted.
#[derive(Clone, Debug)]
pub struct GrpcTransport {
    shared: Arc<Shared>,
}

/// Why a transport does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A setting is out of its bounds. Correct it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It was bound outside a tokio runtime. Call `bind` from within one.
    #[error("the transport must be bound within a tokio runtime")]
    NoRuntime,
    /// It was bound before. Make another transport.
    #[error("the transport is already bound")]
    AlreadyBound,
}

impl GrpcTransport {
    /// A transport that does nothing yet.
    ///
    /// # Errors
    /// [`TransportError::Config`].
    pub fn new(
        config: TransportConfig,
        directory: PeerDirectory,
        snapshots: Arc<dyn SnapshotStore>,
    ) -> Result<Self, TransportError> {
        Self::with_memory(config, directory, snapshots, Arc::new(memory::Forgetful))
    }

    /// A transport that knows which starts of its peers were seen before.
    ///
    /// # Errors
    /// [`TransportError::Config`].
    pub fn with_memory(
        config: TransportConfig,
        directory: PeerDirectory,
        snapshots: Arc<dyn SnapshotStore>,
        memory: Arc<dyn IncarnationMemory>,
    ) -> Result<Self, TransportError> {
        config.validate()?;
        Ok(Self { shared: Arc::new(Shared::new(config, directory, snapshots, memory)) })
    }

    /// Starts: connects to all peers of the directory and takes their streams.
    ///
    /// # Errors
    /// [`TransportError::NoRuntime`], [`TransportError::AlreadyBound`].
    pub fn bind(&self, inbound: Arc<dyn Inbound>) -> Result<(), TransportError> {
        let runtime = Handle::try_current().map_err(|_| TransportError::NoRuntime)?;
        if !self.shared.bind(Arc::clone(&inbound), runtime) {
            return Err(TransportError::AlreadyBound);
        }
        let changes = self.shared.directory.changes();
        self.shared.follow_directory(&inbound);
        let follow = follow_changes(Arc::clone(&self.shared), Arc::clone(&inbound), changes);
        self.shared.spawn(TaskKind::Other, follow);
        self.shared.spawn(TaskKind::Other, snapshot::forget_stale(Arc::clone(&self.shared)));
        self.shared.spawn(TaskKind::Other, heartbeat::run(Arc::clone(&self.shared), inbound));
        Ok(())
    }

    /// The service to mount on the host's listener; serve it with [`server`] and [`incoming`],
    /// which have the settings that it needs.
    #[must_use]
    pub fn service(&self) -> PeerService {
        PeerService::new(Arc::clone(&self.shared))
    }

    /// Which founding this node's cluster comes from: peers of another one are refused once it is
    /// set.
    #[must_use]
    pub fn founded(&self) -> FoundedBy {
        self.shared.identity.founded.clone()
    }

    /// Which versions of a cluster this node takes part in, and that of its own.
    #[must_use]
    pub fn versions(&self) -> &Versions {
        &self.shared.identity.versions
    }

    /// Which bootstrap the cluster of a node comes from, as it last reported; 0: it does not know,
    /// or has not reported.
    #[must_use]
    pub fn founding_of(&self, node: shardhost_storage::NodeId) -> u64 {
        self.shared.peer(node).map_or(0, |peer| peer.founding())
    }

    /// Sets the advertisement of this node: connected peers get it with the next heartbeat, others
    /// when they connect. The groups have to be notified beside it.
    pub fn set_advertisement(&self, advertisement: &Advertisement) {
        self.shared.set_advertisement(advertisement);
    }

    /// A node is said to be reached there, by others than itself. That address is tried while the configured
    /// one does not lead to the node, unless the node is heard of.
    pub fn is_said_to_be_at(&self, node: NodeId, address: &str) {
        if let Some(peer) = self.shared.peer(node) {
            peer.is_said_to_be_at(address);
        }
    }

    /// Where clients or operators reach a peer, if its last greeting says that this is not its address.
    #[must_use]
    pub fn address_for(&self, audience: Audience, node: NodeId) -> Option<String> {
        self.shared.peer(node)?.address_for(audience)
    }

    /// Has every lane connect anew.
    pub fn reconnect(&self) {
        for peer in self.shared.peers.load().values() {
            // A change of the address, to the same one.
            peer.address.send_modify(|_| {});
        }
    }

    /// Whether heartbeats of a peer are received. Asked often, as the next three are: of [`Self::stats`] every
    /// peer makes texts and takes locks.
    pub(crate) fn is_live(&self, node: NodeId) -> bool {
        self.shared.peer(node).is_some_and(|peer| peer.liveness.is_live())
    }

    /// The newest incarnation seen of each peer; of the live ones only, if asked.
    pub(crate) fn incarnations(&self, live_only: bool) -> BTreeMap<NodeId, u64> {
        self.shared.incarnations(live_only)
    }

    /// The last advertisement of the newest incarnation of a peer.
    pub(crate) fn advertisement_of(&self, node: NodeId) -> Option<Advertisement> {
        self.shared.peer(node)?.liveness.advertisement()
    }

    /// The peers that say that something is wrong with them.
    pub(crate) fn impaired(&self) -> Vec<NodeId> {
        self.shared.impaired()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        self.shared.stats()
    }

    /// Sends all that waits, within the drain timeout, and ends all streams and tasks. Peers are
    /// reported lost, shipments failed. Call it before the listener is shut down.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        shared.draining.cancel();
        for peer in shared.peers.load().values() {
            peer.bulk.close();
            peer.urgent.close();
        }
        let senders = shared.join(TaskKind::Sender);
        if tokio::time::timeout(shared.config.drain_timeout, senders).await.is_err() {
            tracing::info!("some lanes did not run empty before the transport ended");
        }
        shared.stop.cancel();
        shared.join(TaskKind::Other).await;
        shared.unbind();
    }
}

async fn follow_changes(
    shared: Arc<Shared>,
    inbound: Arc<dyn Inbound>,
    mut changes: tokio::sync::watch::Receiver<u64>,
) {
    loop {
        tokio::select! {
            () = shared.draining.cancelled() => return,
            changed = changes.changed() => match changed {
                Ok(()) => shared.follow_directory(&inbound),
                Err(_) => return,
            },
        }
    }
}

impl Transport for GrpcTransport {
    fn send(&self, messages: Vec<Outgoing>) {
        self.shared.dispatch(messages);
    }

    fn send_snapshot(&self, shipment: SnapshotShipment) {
        snapshot::ship(&self.shared, shipment);
    }

    fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::Relaxed);
    }
}

//! What all tasks of a transport share, and how its peers follow the directory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::transport::{Inbound, Lane};
use shardhost_proto::peer;
use shardhost_storage::{NodeId, SnapshotStore};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::advertisement;
use super::clocks::ClockAlarm;
use super::config::TransportConfig;
use super::directory::PeerDirectory;
use super::founded::FoundedBy;
use super::handshake::Identity;
use super::memory::IncarnationMemory;
use super::peer::Peer;
use super::sender;
use super::snapshot::{Receptions, Shipments};
use super::starts::Horizon;
use super::stats::{Counters, TransportStats};
use super::versions::Versions;

/// The peers of the directory.
pub(super) type Peers = BTreeMap<NodeId, Arc<Peer>>;

/// State shared by the handle, the service and all tasks.
pub(super) struct Shared {
    pub config: TransportConfig,
    pub identity: Identity,
    pub horizon: Horizon,
    pub directory: PeerDirectory,
    pub snapshots: Arc<dyn SnapshotStore>,
    pub memory: Arc<dyn IncarnationMemory>,
    pub peers: ArcSwap<Peers>,
    pub counters: Counters,
    /// No heartbeats are sent to peers.
    pub silent: AtomicBool,
    /// Snapshots on their way out and in.
    pub shipments: Shipments,
    pub receptions: Receptions,
    /// Set when the lanes are to run empty.
    pub draining: CancellationToken,
    /// Set when everything is to end.
    pub stop: CancellationToken,
    /// The advertisement of this node. Held while the lanes get it, so that they get changes in
    /// order.
    advertisement: Mutex<peer::Advertisement>,
    inbound: RwLock<Option<Arc<dyn Inbound>>>,
    runtime: OnceLock<Handle>,
    senders: Mutex<JoinSet<()>>,
    others: Mutex<JoinSet<()>>,
}

/// Which tasks are waited for first when the transport ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskKind {
    /// Sends a lane; ends when the lane has run empty.
    Sender,
    Other,
}

impl Shared {
    pub fn new(
        config: TransportConfig,
        directory: PeerDirectory,
        snapshots: Arc<dyn SnapshotStore>,
        memory: Arc<dyn IncarnationMemory>,
    ) -> Self {
        let identity = Identity {
            cluster: config.cluster.clone(),
            node: config.node,
            incarnation: config.incarnation,
            earlier_starts: config.earlier_starts.clone(),
            address: config.address.clone(),
            client_address: config.client_address.clone(),
            admin_address: config.admin_address.clone(),
            shard_map: config.shard_map.clone(),
            founded: FoundedBy::default(),
            versions: Versions::up_to(config.newest_version),
        };
        let limits = config.snapshot;
        Self {
            horizon: Horizon::new(config.incarnation),
            identity,
            directory,
            snapshots,
            memory,
            peers: ArcSwap::default(),
            counters: Counters::default(),
            silent: AtomicBool::new(false),
            shipments: Shipments::new(&limits),
            receptions: Receptions::new(&limits),
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
            advertisement: Mutex::new(advertisement::to_wire(&config.advertisement)),
            inbound: RwLock::new(None),
            runtime: OnceLock::new(),
            senders: Mutex::default(),
            others: Mutex::default(),
            config,
        }
    }

    /// Remembers where messages go and where tasks run; false if that was done before.
    pub fn bind(&self, inbound: Arc<dyn Inbound>, runtime: Handle) -> bool {
        let first = self.runtime.set(runtime).is_ok();
        if first {
            *self.inbound.write() = Some(inbound);
        }
        first
    }

    /// Where messages go; none before the transport is bound and after it ended.
    pub fn inbound(&self) -> Option<Arc<dyn Inbound>> {
        self.inbound.read().clone()
    }

    /// The advertisement of this node.
    pub fn advertisement(&self) -> peer::Advertisement {
        self.advertisement.lock().clone()
    }

    /// Changes the advertisement, for every peer.
    pub fn set_advertisement(&self, advertisement: &Advertisement) {
        let mut present = self.advertisement.lock();
        *present = advertisement::to_wire(advertisement);
        for peer in self.peers.load().values() {
            peer.urgent.say(present.clone());
        }
    }

    pub fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.load().get(&node).cloned()
    }

    /// The newest incarnation seen of each peer; of the live ones only, if asked.
    pub fn incarnations(&self, live_only: bool) -> BTreeMap<NodeId, u64> {
        let peers = self.peers.load();
        let known = |peer: &Arc<Peer>| Some((peer.node, peer.liveness.incarnation()?));
        let asked = peers.values().filter(|peer| !live_only || peer.liveness.is_live());
        asked.filter_map(known).collect()
    }

    /// The peers that say that something is wrong with them.
    pub fn impaired(&self) -> Vec<NodeId> {
        let peers = self.peers.load();
        let says = |peer: &&Arc<Peer>| {
            peer.liveness.advertisement().is_some_and(|said| said.impaired.is_some())
        };
        peers.values().filter(says).map(|peer| peer.node).collect()
    }

    pub fn stats(&self) -> TransportStats {
        let peers = self.peers.load().values().map(|peer| peer.stats()).collect();
        let mut stats = self.counters.stats(peers);
        stats.snapshots_sending = self.shipments.sending();
        stats.snapshots_waiting = self.shipments.waiting();
        stats.snapshots_receiving = self.receptions.running();
        stats
    }

    /// Runs a task of the transport; does nothing before the transport is bound.
    pub fn spawn(&self, kind: TaskKind, task: impl Future<Output = ()> + Send + 'static) {
        let Some(runtime) = self.runtime.get() else { return };
        let mut tasks = match kind {
            TaskKind::Sender => self.senders.lock(),
            TaskKind::Other => self.others.lock(),
        };
        while let Some(ended) = tasks.try_join_next() {
            log_panic(ended);
        }
        tasks.spawn_on(task, runtime);
    }

    /// Waits for all tasks of a kind. Those that still run when the wait is given up are aborted.
    pub async fn join(&self, kind: TaskKind) {
        let mut tasks = std::mem::take(&mut *match kind {
            TaskKind::Sender => self.senders.lock(),
            TaskKind::Other => self.others.lock(),
        });
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended);
        }
    }

    /// Lets go of the groups' runtime, after telling it that every peer is lost.
    pub fn unbind(&self) {
        let peers = self.peers.swap(Arc::default());
        if let Some(inbound) = self.inbound.write().take() {
            for peer in peers.values() {
                peer.retire(&inbound);
            }
        }
    }

    /// Makes the set of peers equal to the directory. Called by one task at a time.
    pub fn follow_directory(self: &Arc<Self>, inbound: &Arc<dyn Inbound>) {
        let wanted = self.directory.configured();
        let present = self.peers.load_full();
        let mut peers = Peers::new();
        let mut added = Vec::new();
        for (node, address) in wanted.iter().filter(|(node, _)| **node != self.config.node) {
            let peer = present.get(node).cloned().unwrap_or_else(|| {
                let stop = self.stop.child_token();
                let peer = Peer::new(&self.config, *node, address.clone(), stop);
                peer.liveness.remember(self.memory.newest(*node));
                if let Some(address) = self.memory.moved_to(*node) {
                    peer.was_found_at(&address);
                }
                let peer = Arc::new(peer);
                added.push(Arc::clone(&peer));
                peer
            });
            peer.address.send_if_modified(|old| {
                let changed = old != address;
                if changed {
                    old.clone_from(address);
                }
                changed
            });
            peers.insert(*node, peer);
        }
        self.peers.store(Arc::new(peers));
        for peer in added {
            self.start_senders(&peer);
        }
        for (_, peer) in present.iter().filter(|(node, _)| !wanted.contains_key(node)) {
            peer.retire(inbound);
        }
    }

    /// Whether the wall clocks of the live peers agree with this node's.
    pub fn clock_alarm(&self, now: Instant) -> Option<ClockAlarm> {
        let peers = self.peers.load();
        let ahead = |peer: &Arc<Peer>| Some((peer.node, peer.clock.ahead_ms(now)?));
        ClockAlarm::judge(&peers.values().filter_map(ahead).collect::<Vec<_>>())
    }

    fn start_senders(self: &Arc<Self>, peer: &Arc<Peer>) {
        for lane in [Lane::Bulk, Lane::Urgent] {
            let task = sender::run(Arc::clone(self), Arc::clone(peer), lane);
            self.spawn(TaskKind::Sender, task);
        }
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a task of the transport panicked");
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcTransport")
            .field("cluster", &self.config.cluster)
            .field("node", &self.config.node)
            .finish_non_exhaustive()
    }
}

//! Hosts in memory: logs and snapshots of [`MemoryStore`] and [`MemorySnapshots`], connected by a
//! [`Network`]. The quickest way to run the suite, and the one with every kind of trouble.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use shardhost_storage::{
    GroupId, LogBatch, LogError, LogPosition, LogStore, MemorySnapshots, MemoryStore, NodeId,
    SnapshotFault, SnapshotStore, StoreFault,
};

use super::{Accept, Cluster, DiskFault, Disks, Factory, Links, Start};
use crate::network::{Network, Port};
use shardhost_groups::runtime::{Groups, GroupsBuilder};

/// Makes clusters in memory.
#[derive(Clone, Copy, Debug)]
pub struct InMemory {
    tick: Duration,
}

impl Default for InMemory {
    fn default() -> Self {
        Self { tick: Duration::from_millis(20) }
    }
}

impl InMemory {
    /// Clusters with ticks of 20 ms.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets the length of a tick.
    #[must_use]
    pub const fn tick(mut self, tick: Duration) -> Self {
        self.tick = tick;
        self
    }
}

/// Distinguishes the networks of one process.
static SEED: AtomicU64 = AtomicU64::new(1);

impl Factory for InMemory {
    fn tick(&self) -> Duration {
        self.tick
    }

    fn cluster(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Box<dyn Cluster>> {
        let network = Network::new(SEED.fetch_add(1, Ordering::Relaxed));
        network.lost_after(self.tick * 5);
        let nodes = nodes.into_iter().map(|node| (node, Node::default())).collect();
        let cluster = MemoryCluster { network, nodes: Mutex::new(nodes) };
        Box::pin(async move { Box::new(cluster) as Box<dyn Cluster> })
    }
}

/// What is left of a node while it does not run, and what runs.
#[derive(Clone, Debug, Default)]
struct Node {
    store: MemoryStore,
    snapshots: MemorySnapshots,
    starts: u64,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    groups: Groups,
    port: Arc<Port>,
    log: Arc<Plugged>,
    accept: Accept,
}

impl Running {
    async fn shut_down(&self) {
        self.accept.let_go();
        let groups = self.groups.clone();
        let ended = tokio::task::spawn_blocking(move || groups.shutdown()).await;
        ended.expect("the groups of a host did not shut down");
    }
}

struct MemoryCluster {
    network: Network,
    nodes: Mutex<BTreeMap<NodeId, Node>>,
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryCluster")
    }
}

impl MemoryCluster {
    fn start_node(&self, start: Start) -> Result<Groups, String> {
        let Start { node, mut config, machines } = start;
        let mut nodes = self.nodes.lock();
        let place = nodes.get_mut(&node).ok_or_else(|| format!("{node:?} is none of ours"))?;
        if place.running.is_some() {
            return Err(format!("{node:?} runs already"));
        }
        place.starts += 1;
        config.incarnation = place.starts;
        config.seed = node.get() * 1_000 + place.starts;
        let log = Arc::new(Plugged::new(place.store.clone()));
        let port = self.network.port(node);
        let snapshots = Arc::new(place.snapshots.clone());
        let accept = Accept::new(machines);
        let groups = GroupsBuilder::new(config)
            .on_create_request(Arc::new(accept.clone()))
            .start(Arc::clone(&log) as _, Arc::clone(&snapshots) as _, Arc::clone(&port) as _)
            .map_err(|error| error.to_string())?;
        accept.bind(&groups);
        port.attach(groups.inbound(), snapshots, place.starts);
        place.running = Some(Running { groups: groups.clone(), port, log, accept });
        Ok(groups)
    }

    fn take_running(&self, node: NodeId) -> Option<(Running, Node)> {
        let mut nodes = self.nodes.lock();
        let place = nodes.get_mut(&node)?;
        Some((place.running.take()?, place.clone()))
    }
}

impl Cluster for MemoryCluster {
    fn start(&self, start: Start) -> BoxFuture<'_, Result<Groups, String>> {
        Box::pin(async move { self.start_node(start) })
    }

    fn stop(&self, node: NodeId) -> BoxFuture<'_, ()> {
        let running = self.take_running(node);
        Box::pin(async move {
            if let Some((running, _)) = running {
                running.shut_down().await;
                running.port.detach();
            }
        })
    }

    fn kill(&self, node: NodeId) -> Option<BoxFuture<'_, ()>> {
        let running = self.take_running(node);
        Some(Box::pin(async move {
            if let Some((running, place)) = running {
                // From here on it is invisible to all others, and to the disk.
                running.port.detach();
                running.log.unplug();
                running.shut_down().await;
                place.store.crash(0);
                place.snapshots.crash();
            }
        }))
    }

    fn links(&self) -> Option<&dyn Links> {
        Some(&self.network)
    }

    fn network(&self) -> Option<&Network> {
        Some(&self.network)
    }

    fn disks(&self) -> Option<&dyn Disks> {
        Some(self)
    }
}

impl Disks for MemoryCluster {
    fn inject(&self, node: NodeId, fault: DiskFault) -> bool {
        let nodes = self.nodes.lock();
        let Some(place) = nodes.get(&node) else { return false };
        match fault {
            DiskFault::LogWrite => place.store.inject(StoreFault::Write),
            DiskFault::LyingSyncs => place.store.inject(StoreFault::LyingSync),
            DiskFault::NoSpaceForSnapshots => place.snapshots.inject(SnapshotFault::NoSpace),
            DiskFault::DamagedSnapshot(group, at) => return place.snapshots.corrupt(group, at),
        }
        true
    }

    fn heal(&self, node: NodeId) {
        if let Some(place) = self.nodes.lock().get(&node) {
            place.store.heal();
            place.snapshots.heal();
        }
    }

    fn snapshots(&self, node: NodeId, group: GroupId) -> Vec<LogPosition> {
        let snapshots = self.nodes.lock().get(&node).map(|place| place.snapshots.clone());
        snapshots.map_or_else(Vec::new, |snapshots| snapshots.list(group).unwrap_or_default())
    }
}

impl Drop for MemoryCluster {
    fn drop(&mut self) {
        let nodes = std::mem::take(self.nodes.get_mut());
        let running: Vec<_> = nodes.into_values().filter_map(|node| node.running).collect();
        if !running.is_empty() {
            // Not on the thread of a runtime: it blocks.
            std::thread::spawn(|| {
                for one in running {
                    one.accept.let_go();
                    one.groups.shutdown();
                }
            });
        }
    }
}

/// The log of one life of a node. A write is visible before it is synced, and one that is cut
/// short in between is lost.
#[derive(Debug)]
struct Plugged {
    store: MemoryStore,
    unplugged: AtomicBool,
    writing: Mutex<()>,
}

impl Plugged {
    fn new(store: MemoryStore) -> Self {
        Self { store, unplugged: AtomicBool::new(false), writing: Mutex::default() }
    }

    /// From here on nothing is written any more. Waits for no write: one that is under way is
    /// not synced.
    fn unplug(&self) {
        self.unplugged.store(true, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), LogError> {
        match self.unplugged.load(Ordering::SeqCst) {
            true => Err(LogError::Poisoned),
            false => Ok(()),
        }
    }
}

impl shardhost_storage::LogLayer for Plugged {
    fn below(&self) -> &dyn LogStore {
        &self.store
    }
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        let _one_at_a_time = self.writing.lock();
        self.check()?;
        self.store.write_unsynced(batch)?;
        // The moment in which a crash loses what the host has not promised yet.
        std::thread::yield_now();
        self.check()?;
        self.store.sync()
    }
}

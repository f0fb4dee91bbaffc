//! Whole hosts in one process: gRPC over roads that can be cut, RocksDB and files behind gates.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use shardhost::host::ReplicaFactory;
use shardhost::storage::{
    GroupId, Identity, LogPosition, NodeId, RocksOptions, RocksStore, SnapshotFiles, SnapshotStore,
};
use shardhost::{Host, HostConfig, Shutdown, StateMachine};
use shardhost_groups::Groups;
use shardhost_groups::runtime::CreateRequest;
use shardhost_testing::conformance::{
    Cluster, DiskFault, Disks, Factory, Links, MachineMaker, Start,
};
use shardhost_testing::network::Trouble;
use tempfile::TempDir;

use crate::disk::{Gate, GatedLog, GatedSnapshots, damage_snapshot, image};
use crate::road::Road;

/// Makes clusters of whole hosts.
pub struct RealHosts;

impl Factory for RealHosts {
    fn tick(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn cluster(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Box<dyn Cluster>> {
        Box::pin(async move { Box::new(RealCluster::new(&nodes).await) as Box<dyn Cluster> })
    }
}

struct RealCluster {
    directory: TempDir,
    nodes: Mutex<BTreeMap<NodeId, Node>>,
    roads: Mutex<BTreeMap<(NodeId, NodeId), Road>>,
    cuts: Mutex<Vec<(NodeId, NodeId)>>,
}

/// One node, running or not.
struct Node {
    address: SocketAddr,
    lives: u64,
    running: Option<Running>,
}

#[derive(Clone)]
struct Running {
    host: Host,
    gate: Gate,
    snapshots: Arc<dyn SnapshotStore>,
    data: PathBuf,
}

#[derive(Clone)]
struct Machines(MachineMaker);

impl fmt::Debug for Machines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machines")
    }
}

impl ReplicaFactory for Machines {
    fn machine(&self, create_request: &CreateRequest) -> Result<Box<dyn StateMachine>, String> {
        Ok((self.0)(create_request.group))
    }
}

/// An address that is free, and stays so while its host is down: connections leave from 127.0.0.1,
/// so that none of them takes the port of another loopback address in between.
fn free_address() -> SocketAddr {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = (TAKEN.fetch_add(1, Ordering::Relaxed) + 1).to_be_bytes();
    let process = u8::try_from(std::process::id() % 250).unwrap_or(0) + 2;
    let own = Ipv4Addr::new(127, process, high, low);
    TcpListener::bind((own, 0)).and_then(|socket| socket.local_addr()).expect("a port")
}

/// Listens where a host may have listened a moment ago.
async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) if Instant::now() > deadline => return Err(error.to_string()),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

impl RealCluster {
    async fn new(nodes: &[NodeId]) -> Self {
        let node = |id: &NodeId| (*id, Node { address: free_address(), lives: 0, running: None });
        let known: BTreeMap<_, _> = nodes.iter().map(node).collect();
        let mut roads = BTreeMap::new();
        for from in nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                roads.insert((*from, *to), Road::new(known[to].address).await);
            }
        }
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            nodes: Mutex::new(known),
            roads: Mutex::new(roads),
            cuts: Mutex::default(),
        }
    }

    fn data_of(&self, node: NodeId, life: u64) -> PathBuf {
        self.directory.path().join(format!("node-{node}-{life}"))
    }

    fn address_of(&self, node: NodeId) -> SocketAddr {
        self.nodes.lock()[&node].address
    }

    /// The directory of the life that a node is in, or was in when it stopped.
    fn present_data_of(&self, node: NodeId) -> PathBuf {
        self.data_of(node, self.nodes.lock()[&node].lives)
    }

    async fn start_host(&self, start: Start, data: PathBuf) -> Result<Running, String> {
        let Start { node, config: groups, machines, .. } = start;
        let mut config = HostConfig::new(node, &data);
        config.cluster = "conformance".to_owned();
        config.groups = groups;
        config.peers = self.seen_by(node);
        let log = data.join("log");
        let identity = Identity { cluster: config.cluster.clone(), node };
        let open = move || RocksStore::open(&log, identity, small());
        let log = tokio::task::spawn_blocking(open).await.map_err(|error| error.to_string())?;
        let log = log.map_err(|error| error.to_string())?;
        let gate = Gate::default();
        let files = SnapshotFiles::open(&data.join("snapshots"));
        let files = files.map_err(|error| error.to_string())?;
        let snapshots: Arc<dyn SnapshotStore> =
            Arc::new(GatedSnapshots { files, gate: gate.clone() });
        let host = Host::builder(config)
            .log_store(Arc::new(GatedLog { log, gate: gate.clone() }))
            .snapshot_store(Arc::clone(&snapshots))
            .replica_factory(Arc::new(Machines(machines)))
            .listener(listen(self.address_of(node)).await?)
            .start()
            .await
            .map_err(|error| error.to_string())?;
        host.serve(Default::default());
        Ok(Running { host, gate, snapshots, data })
    }

    /// Where a node reaches the others.
    fn seen_by(&self, node: NodeId) -> BTreeMap<NodeId, String> {
        let roads = self.roads.lock();
        let own = roads.iter().filter(|((from, _), _)| *from == node);
        own.map(|((_, to), road)| (*to, road.address().to_string())).collect()
    }

    async fn start_and_keep(&self, start: Start) -> Result<Groups, String> {
        let node = start.node;
        let running = self.start_host(start, self.present_data_of(node)).await?;
        let groups = running.host.runtime().clone();
        self.nodes.lock().get_mut(&node).expect("one of ours").running = Some(running);
        self.apply_cuts();
        Ok(groups)
    }

    fn take_running(&self, node: NodeId) -> Option<Running> {
        self.nodes.lock().get_mut(&node)?.running.take()
    }

    fn running(&self, node: NodeId) -> Option<Running> {
        self.nodes.lock().get(&node)?.running.clone()
    }

    /// Closes the roads that are cut and opens the others.
    fn apply_cuts(&self) {
        let cuts = self.cuts.lock();
        for (ends, road) in self.roads.lock().iter() {
            if cuts.contains(ends) { road.close() } else { road.open() }
        }
    }

    async fn kill_host(&self, node: NodeId) {
        let Some(running) = self.take_running(node) else { return };
        for ((from, to), road) in self.roads.lock().iter() {
            if *from == node || *to == node {
                road.close();
            }
        }
        running.gate.close();
        let life = {
            let mut nodes = self.nodes.lock();
            let place = nodes.get_mut(&node).expect("one of ours");
            place.lives += 1;
            place.lives
        };
        let (from, to) = (running.data.clone(), self.data_of(node, life));
        let copied = tokio::task::spawn_blocking(move || image(&from, &to)).await;
        copied.expect("the image of a killed host");
        running.host.shutdown(Shutdown::Immediate).await;
    }

    async fn move_host(&self, start: Start) -> Result<Groups, String> {
        let node = start.node;
        let address = free_address();
        self.nodes.lock().get_mut(&node).expect("one of ours").address = address;
        let others: Vec<_> = self.nodes.lock().keys().copied().filter(|id| *id != node).collect();
        for other in others {
            let road = Road::new(address).await;
            if let Some(peer) = self.running(other) {
                peer.host.directory().set(node, road.address().to_string());
            }
            self.roads.lock().insert((other, node), road);
        }
        self.start_and_keep(start).await
    }
}

/// Buffers for little work.
fn small() -> RocksOptions {
    RocksOptions { write_buffer_bytes: 4 << 20, block_cache_bytes: 4 << 20, ..Default::default() }
}

impl Cluster for RealCluster {
    fn start(&self, start: Start) -> BoxFuture<'_, Result<Groups, String>> {
        Box::pin(self.start_and_keep(start))
    }

    fn stop(&self, node: NodeId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(running) = self.take_running(node) {
                running.host.shutdown(Shutdown::Immediate).await;
            }
        })
    }

    fn kill(&self, node: NodeId) -> Option<BoxFuture<'_, ()>> {
        Some(Box::pin(self.kill_host(node)))
    }

    fn links(&self) -> Option<&dyn Links> {
        Some(self)
    }

    fn disks(&self) -> Option<&dyn Disks> {
        Some(self)
    }

    fn start_on_data_of(
        &self,
        start: Start,
        owner: NodeId,
    ) -> Option<BoxFuture<'_, Result<(), String>>> {
        let data = self.present_data_of(owner);
        Some(Box::pin(async move {
            let running = self.start_host(start, data).await?;
            running.host.shutdown(Shutdown::Immediate).await;
            Ok(())
        }))
    }

    fn start_elsewhere(&self, start: Start) -> Option<BoxFuture<'_, Result<Groups, String>>> {
        Some(Box::pin(self.move_host(start)))
    }
}

impl Links for RealCluster {
    fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.cuts.lock().push((from, to));
        self.apply_cuts();
    }

    fn heal(&self) {
        self.cuts.lock().clear();
        self.apply_cuts();
    }

    fn trouble(&self, trouble: Trouble) -> bool {
        // A stream loses nothing but what is on it when it breaks.
        if trouble.lost_of_1000 > 0 {
            return false;
        }
        for road in self.roads.lock().values() {
            road.limit(trouble.bulk_bytes_per_second, trouble.late_by);
        }
        true
    }
}

impl Disks for RealCluster {
    fn inject(&self, node: NodeId, fault: DiskFault) -> bool {
        let Some(running) = self.running(node) else { return false };
        match fault {
            DiskFault::LogWrite => running.gate.fail_log(),
            DiskFault::NoSpaceForSnapshots => running.gate.set_full(true),
            DiskFault::DamagedSnapshot(group, at) => {
                return damage_snapshot(&running.data, group, at);
            }
            _ => return false,
        }
        true
    }

    fn heal(&self, node: NodeId) {
        if let Some(running) = self.running(node) {
            running.gate.set_full(false);
        }
    }

    fn snapshots(&self, node: NodeId, group: GroupId) -> Vec<LogPosition> {
        let running = self.running(node);
        running.map_or_else(Vec::new, |one| one.snapshots.list(group).unwrap_or_default())
    }
}

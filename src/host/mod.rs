//! [`Host`]: the groups of this process together with their log, their transport and one listener.
//!
//! The host puts things together and takes them apart in the right order. What a message, a write
//! or a leadership means is the business of the parts.

pub mod founding;
mod joining;
mod leadership;
mod memory;
mod replicas;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::runtime::{AdditionGuard, GroupsStats};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::{Group, Groups, GroupsBuilder, GroupsConfig, HostFault};
use shardhost_proto::version::ClusterVersion;
use shardhost_security::channel::Security;
use shardhost_security::{CredentialError, Credentials};
use shardhost_storage::{
    CapabilityError, GroupId, LogError, LogStore, NodeId, SnapshotFiles, SnapshotFilesOptions,
    SnapshotStore,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use self::founding::{Founding, Foundings, Scope};
pub use self::joining::ReplicaFactory;
use self::joining::{Joining, Mailbox};
use self::memory::HostMemory;
pub use self::versions::PrepareError;
use crate::data_dir::DataDir;
use crate::descriptors::Descriptors;
use crate::transport::{
    ConnectionLimits, ConnectionStats, Connections, FoundedBy, GrpcTransport, IncarnationMemory,
    KnownTokens, MapTag, PeerDirectory, Rollback, SnapshotLimits, TransportConfig, TransportError,
    TransportStats, admit_clients, authorize, incoming_within, server,
};

/// What a host is started from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HostConfig {
    pub node: NodeId,
    /// Name of the cluster; hosts of another one are refused.
    pub cluster: String,
    /// The directory of the log and the snapshots. Created when missing; belongs to this node for
    /// ever.
    pub data_dir: PathBuf,
    /// Where this host listens, for peers and clients. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where the others reach this host; `None`: at the address it listens on.
    pub advertise: Option<String>,
    /// Where all nodes of the cluster are reached, `host:port`. This one may be left out.
    pub peers: BTreeMap<NodeId, String>,
    /// What this node has; groups may require some of their leaders. See
    /// [`Host::set_capabilities`].
    pub capabilities: BTreeSet<String>,
    /// Settings of the groups. Its node, incarnation and capabilities are set by the host.
    pub groups: GroupsConfig,
    #[cfg(feature = "rocksdb")]
    pub log: shardhost_storage::RocksOptions,
    /// Bounds of snapshots on their way to and from other hosts.
    pub snapshots: SnapshotLimits,
    /// Bounds of what snapshots take of the disk.
    pub snapshot_files: SnapshotFilesOptions,
    /// The map of shards, where the cluster has no catalog. Hosts that have another one are
    /// refused. With it the bootstrap of the shards identifies the cluster, without it that of the
    /// catalog.
    pub shard_map: Option<MapTag>,
    /// The latest version of a cluster that this node takes part in. An earlier one than
    /// [`ClusterVersion::NEWEST`] keeps the cluster there, so that its nodes may run an earlier program
    /// again; a data directory that was prepared for a later one is refused.
    pub newest_version: ClusterVersion,
    /// Certificates for TLS, with which peers, clients and operators are recognized. `None`: without TLS,
    /// all who reach the listener may do everything.
    pub credentials: Option<Credentials>,
    /// Bounds of the connections that the listener holds open.
    pub connections: ConnectionLimits,
    pub workers: usize,
    pub apply_threads: usize,
}

impl HostConfig {
    /// A host of the cluster `shardhost` on a free port of this machine, alone.
    #[must_use]
    pub fn new(node: NodeId, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node,
            cluster: "shardhost".to_owned(),
            data_dir: data_dir.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            peers: BTreeMap::new(),
            capabilities: BTreeSet::new(),
            groups: GroupsConfig::new(node),
            #[cfg(feature = "rocksdb")]
            log: shardhost_storage::RocksOptions::default(),
            snapshots: SnapshotLimits::default(),
            snapshot_files: SnapshotFilesOptions::default(),
            shard_map: None,
            newest_version: ClusterVersion::NEWEST,
            credentials: None,
            connections: Descriptors::current().connections,
            workers: 1,
            apply_threads: 2,
        }
    }
    /// Sets the address to listen on.
    #[must_use]
    pub const fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }
    /// Names the other nodes.
    #[must_use]
    pub fn peers(mut self, peers: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        self.peers = peers.into_iter().collect();
        self
    }
    /// Names what this node has, as `fifo` or `disk/ssd`: 1 to 64 of a-z, 0-9, '.', '_', '-', '/'.
    #[must_use]
    pub fn capabilities<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.capabilities = names.into_iter().map(Into::into).collect();
        self
    }
}

/// Why a host does not start. Nothing runs afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The log cannot be opened; the message names the remedy.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A file or directory cannot be used.
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    /// The address cannot be listened on. Choose another, or end who uses it.
    #[error(
        "cannot listen on {address}: {error}; choose another address, or end the process that has it"
    )]
    Listen { address: SocketAddr, error: io::Error },
    /// The data directory was prepared for a later version than this node is to take part in. Leave the
    /// bound away, or start a later program.
    #[error(
        "the data directory is of a cluster at version {prepared}, or prepared for it, and this node is to take \
         part up to version {newest} only"
    )]
    Version { prepared: ClusterVersion, newest: ClusterVersion },
    /// A capability has a name that is none, or there are too many.
    #[error("the capabilities of the node are wrong: {0}")]
    Capabilities(CapabilityError),
    /// The transport's settings are wrong.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The certificate is not one of this node.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// This build has no log store.
    #[error("built without the feature `rocksdb`: give the builder a log store")]
    NoLogStore,
    /// The system refuses a thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// How a host is put together. Everything has a default.
#[derive(Debug)]
#[must_use = "a builder does nothing until `start` is awaited"]
pub struct HostBuilder {
    config: HostConfig,
    log_store: Option<Arc<dyn LogStore>>,
    snapshots: Option<Arc<dyn SnapshotStore>>,
    listener: Option<std::net::TcpListener>,
    factory: Option<Arc<dyn ReplicaFactory>>,
}

impl HostBuilder {
    /// Uses another log than RocksDB in the data directory.
    pub fn log_store(mut self, store: Arc<dyn LogStore>) -> Self {
        self.log_store = Some(store);
        self
    }
    /// Keeps snapshots elsewhere than in the data directory.
    pub fn snapshot_store(mut self, store: Arc<dyn SnapshotStore>) -> Self {
        self.snapshots = Some(store);
        self
    }
    /// Listens on a socket that is bound already; the configured address is not used.
    pub fn listener(mut self, listener: std::net::TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Holds replicas of groups that this node is added to while it runs, with state machines from
    /// this factory. Without one, such groups must be created here by hand, as
    /// [`CreateRequest::spec`](shardhost_groups::runtime::CreateRequest::spec) says.
    pub fn replica_factory(mut self, factory: Arc<dyn ReplicaFactory>) -> Self {
        self.factory = Some(factory);
        self
    }

    /// Starts the host: opens the log, starts the threads, connects to the peers. The listener
    /// answers once [`Host::serve`] was called.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(self) -> Result<Host, StartError> {
        let Self { config, log_store, snapshots, listener, factory } = self;
        if let Some(credentials) = &config.credentials {
            credentials.check_node(&config.cluster, config.node)?;
        }
        let advertisement =
            leadership::first_advertisement(&config).map_err(StartError::Capabilities)?;
        let listener = bind(listener, config.listen)?;
        let address = listener.local_addr().map_err(|error| listen_error(config.listen, error))?;
        let advertise = config.advertise.clone().unwrap_or_else(|| address.to_string());
        let data_dir = open_data_dir(&config.data_dir).await?;
        let incarnation = data_dir.incarnation();
        let store = open_log(log_store, &config).await?;
        let store_id = store.id();
        versions::check(&*store, &config)?;
        let memory = open_memory(&data_dir, &store, &config).map(Arc::new)?;
        let snapshots = open_snapshots(snapshots, &config)?;

        let mut peers = config.peers.clone();
        peers.insert(config.node, advertise.clone());
        let directory = PeerDirectory::new(peers);
        let foundings = open_foundings(&config, store_id, &directory)?;
        let mut transport_config =
            TransportConfig::new(config.cluster.clone(), config.node, incarnation, advertise);
        transport_config.earlier_starts = data_dir.earlier_starts().to_vec();
        transport_config.snapshot = config.snapshots;
        transport_config.advertisement = advertisement.clone();
        transport_config.shard_map.clone_from(&config.shard_map);
        transport_config.newest_version = config.newest_version;
        transport_config.credentials.clone_from(&config.credentials);
        let transport = GrpcTransport::with_memory(
            transport_config,
            directory.clone(),
            Arc::clone(&snapshots),
            Arc::clone(&memory) as Arc<dyn IncarnationMemory>,
        )?;

        // A cluster without a catalog names its map.
        let scope = config.shard_map.as_ref().map_or(Scope::System, |_| Scope::Shards);
        foundings.bind(scope, &transport.founded());
        let mut groups_config = config.groups.clone();
        groups_config.node = config.node;
        groups_config.incarnation = incarnation;
        groups_config.capabilities.clone_from(&advertisement.capabilities);
        if groups_config.seed == 0 {
            groups_config.seed = incarnation;
        }
        let (mailbox, create_requests) = Mailbox::new();
        let groups = GroupsBuilder::new(groups_config)
            .workers(config.workers)
            .apply_threads(config.apply_threads)
            .on_create_request(mailbox)
            .start(Arc::clone(&store), snapshots, Arc::new(transport.clone()))
            .map_err(StartError::Thread)?;
        memory.bind(groups.clone());
        transport.bind(groups.inbound())?;
        let stop = CancellationToken::new();
        if let Some(factory) = factory {
            let joining = Joining::new(groups.clone(), factory, &foundings, &transport);
            let accept = joining::accept(joining, create_requests, stop.clone());
            tokio::spawn(accept);
        }
        let known = directory.clone();
        let additions = groups.before_addition(GroupSelector::All, move |_, node, _| {
            let unknown = || format!("node {node} is not in the directory of this node");
            known.address(node).map(|_| ()).ok_or_else(unknown)
        });
        let connections = Connections::new(config.connections);
        let inner = HostInner {
            config,
            groups,
            transport,
            directory,
            advertisement: parking_lot::Mutex::new(advertisement),
            address,
            incarnation,
            store: Arc::downgrade(&store),
            store_id,
            memory,
            foundings,
            stopping: CancellationToken::new(),
            stop,
            connections,
            tokens: KnownTokens::default(),
            _additions: additions,
        };
        let host = Host {
            inner: Arc::new(inner),
            serving: Arc::new(parking_lot::Mutex::new(Serving {
                listener: Some(listener),
                task: None,
                data_dir: Some(data_dir),
            })),
            ending: Arc::default(),
        };
        tokio::spawn(host.tell_impairments());
        Ok(host)
    }
}

fn bind(
    listener: Option<std::net::TcpListener>,
    address: SocketAddr,
) -> Result<TcpListener, StartError> {
    let listener = match listener {
        Some(listener) => listener,
        None => {
            std::net::TcpListener::bind(address).map_err(|error| listen_error(address, error))?
        }
    };
    listener.set_nonblocking(true).map_err(|error| listen_error(address, error))?;
    TcpListener::from_std(listener).map_err(|error| listen_error(address, error))
}

const fn listen_error(address: SocketAddr, error: io::Error) -> StartError {
    StartError::Listen { address, error }
}

async fn open_data_dir(path: &Path) -> Result<DataDir, StartError> {
    let path = path.to_path_buf();
    let shown = path.display().to_string();
    let opened = tokio::task::spawn_blocking(move || DataDir::open(&path)).await;
    opened
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| StartError::Io { path: shown, error })
}

async fn open_log(
    given: Option<Arc<dyn LogStore>>,
    config: &HostConfig,
) -> Result<Arc<dyn LogStore>, StartError> {
    if let Some(store) = given {
        return Ok(store);
    }
    open_own_log(config).await
}

/// The log in the data directory.
#[cfg(feature = "rocksdb")]
async fn open_own_log(config: &HostConfig) -> Result<Arc<dyn LogStore>, StartError> {
    let directory = config.data_dir.join("log");
    let identity =
        shardhost_storage::Identity { cluster: config.cluster.clone(), node: config.node };
    let mut options = config.log.clone();
    options.version = config.newest_version.min(options.version);
    options.max_open_files = options.max_open_files.min(Descriptors::current().log_files);
    let open = move || shardhost_storage::RocksStore::open(&directory, identity, options);
    let store = tokio::task::spawn_blocking(open).await.map_err(|error| StartError::Io {
        path: config.data_dir.display().to_string(),
        error: io::Error::other(error),
    })??;
    Ok(Arc::new(store))
}

#[cfg(not(feature = "rocksdb"))]
async fn open_own_log(_: &HostConfig) -> Result<Arc<dyn LogStore>, StartError> {
    Err(StartError::NoLogStore)
}

fn open_memory(
    data_dir: &DataDir,
    store: &Arc<dyn LogStore>,
    config: &HostConfig,
) -> Result<HostMemory, StartError> {
    let path = || config.data_dir.display().to_string();
    HostMemory::open(data_dir, &**store).map_err(|error| StartError::Io { path: path(), error })
}

fn open_foundings(
    config: &HostConfig,
    store_id: u64,
    directory: &PeerDirectory,
) -> Result<Foundings, StartError> {
    let (node, cluster) = (config.node, config.cluster.clone());
    let security = Security { credentials: config.credentials.clone(), token: None };
    let identity = founding::Identity { node, cluster, store_id, security };
    let path = || config.data_dir.display().to_string();
    Foundings::open(&config.data_dir, &identity, directory)
        .map_err(|error| StartError::Io { path: path(), error })
}

fn open_snapshots(
    given: Option<Arc<dyn SnapshotStore>>,
    config: &HostConfig,
) -> Result<Arc<dyn SnapshotStore>, StartError> {
    if let Some(store) = given {
        return Ok(store);
    }
    let directory = config.data_dir.join("snapshots");
    let path = directory.display().to_string();
    let files = SnapshotFiles::open_with(&directory, config.snapshot_files)
        .map_err(|error| StartError::Io { path, error })?;
    Ok(Arc::new(files))
}

#[derive(Debug)]
struct HostInner {
    config: HostConfig,
    groups: Groups,
    transport: GrpcTransport,
    directory: PeerDirectory,
    /// The node's advertisement. Held while groups and peers are notified, so that all see changes
    /// in the same order.
    advertisement: parking_lot::Mutex<Advertisement>,
    address: SocketAddr,
    incarnation: u64,
    /// The groups keep it open, and close it when they end: a handle of a host that stopped holds no log.
    store: Weak<dyn LogStore>,
    store_id: u64,
    memory: Arc<HostMemory>,
    foundings: Foundings,
    /// The host begins to stop; work in progress continues for a while.
    stopping: CancellationToken,
    stop: CancellationToken,
    connections: Arc<Connections>,
    tokens: KnownTokens,
    _additions: AdditionGuard,
}

#[derive(Debug, Default)]
struct Serving {
    listener: Option<TcpListener>,
    task: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
    data_dir: Option<DataDir>,
}

/// How a host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// Hands leadership of its groups to others first, for at most this long.
    Graceful { deadline: Duration },
    /// At once. Nothing that was acknowledged is lost.
    Immediate,
}

/// One process of a cluster: replicas of many groups, one log, one listener. Cheap to clone; all
/// clones are the same host. It runs until [`Host::shutdown`].
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<HostInner>,
    serving: Arc<parking_lot::Mutex<Serving>>,
    /// Held by the one call that takes the host apart; the others wait for it.
    ending: Arc<tokio::sync::Mutex<()>>,
}

impl Host {
    /// Begins to put a host together.
    pub const fn builder(config: HostConfig) -> HostBuilder {
        HostBuilder { config, log_store: None, snapshots: None, listener: None, factory: None }
    }

    /// Starts a host from its configuration and lets it listen to its peers.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: HostConfig) -> Result<Self, StartError> {
        let host = Self::builder(config).start().await?;
        host.serve(Routes::default());
        Ok(host)
    }

    /// Begins to answer on the listener: the peers' service, and `services` beside it. Calls
    /// after the first do nothing.
    pub fn serve(&self, services: Routes) {
        let mut serving = self.serving.lock();
        let Some(listener) = serving.listener.take() else { return };
        let stop = self.inner.stop.clone();
        let clients = admit_clients(services.add_service(self.inner.foundings.service()));
        let routes = clients.add_service(self.inner.transport.service());
        let routes = authorize(routes, &self.inner.tokens);
        let credentials = self.inner.config.credentials.clone();
        let incoming = incoming_within(listener, &self.inner.connections, credentials);
        serving.task = Some(tokio::spawn(async move {
            let stopped = async move { stop.cancelled().await };
            server().add_routes(routes).serve_with_incoming_shutdown(incoming, stopped).await
        }));
    }

    /// This process.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.inner.config.node
    }
    /// Grows with every start of the node.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.inner.incarnation
    }
    /// Which log this is: another one after the disk was lost, the same after a restart.
    #[must_use]
    pub fn store_id(&self) -> u64 {
        self.inner.store_id
    }
    /// How this host reaches other nodes.
    pub(crate) fn security(&self) -> Security {
        Security { credentials: self.inner.config.credentials.clone(), token: None }
    }
    /// Ends all connections, so that they are made anew with the certificates that are in use now.
    pub fn renew_connections(&self) {
        self.inner.connections.cut_all();
        self.inner.transport.reconnect();
    }
    /// Where the tokens of users are known to the listener.
    #[must_use]
    pub fn tokens(&self) -> &KnownTokens {
        &self.inner.tokens
    }
    /// Which founding this node's cluster comes from, as far as it knows.
    pub(crate) fn founded(&self) -> FoundedBy {
        self.inner.transport.founded()
    }
    /// Who may create the first replicas of a cluster.
    pub fn founding(&self, scope: Scope) -> &Founding {
        self.inner.foundings.of(scope)
    }
    /// The nodes that this node waits for before the cluster is created, and what an operator can
    /// do; `None`: it does not wait.
    #[must_use]
    pub fn founding_waits_for(&self) -> Option<String> {
        let foundings = &self.inner.foundings;
        foundings.system.waiting().or_else(|| foundings.shards.waiting())
    }
    /// The evidence that the data directory was put back from an older copy, if a peer has it.
    #[must_use]
    pub fn rollback(&self) -> Option<Rollback> {
        self.inner.memory.rollback()
    }
    /// Where this host listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }
    /// What it was started from.
    #[must_use]
    pub fn config(&self) -> &HostConfig {
        &self.inner.config
    }
    /// Where the nodes are reached; may be changed while the host runs.
    #[must_use]
    pub fn directory(&self) -> &PeerDirectory {
        &self.inner.directory
    }

    /// A group that is open here.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<Group> {
        self.inner.groups.group(id)
    }
    /// All groups that are open here, by id.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        self.inner.groups.groups()
    }
    /// The groups' runtime, for its counters.
    #[must_use]
    pub fn runtime(&self) -> &Groups {
        &self.inner.groups
    }
    /// Counters of the groups.
    #[must_use]
    pub fn stats(&self) -> GroupsStats {
        self.inner.groups.stats()
    }
    /// Counters of the transport.
    #[must_use]
    pub fn transport_stats(&self) -> TransportStats {
        self.inner.transport.stats()
    }
    /// The nodes whose heartbeats this host receives, and its own.
    pub(crate) fn live_nodes(&self) -> BTreeSet<NodeId> {
        let peers = self.transport_stats().peers.into_iter().filter(|peer| peer.live);
        peers.map(|peer| peer.node).chain([self.node_id()]).collect()
    }
    /// A node is said to be reached there: see [`GrpcTransport::is_said_to_be_at`].
    pub(crate) fn node_is_said_to_be_at(&self, node: NodeId, address: &str) {
        self.inner.transport.is_said_to_be_at(node, address);
    }
    /// How many connections the listener holds open.
    #[must_use]
    pub fn connections(&self) -> ConnectionStats {
        self.inner.connections.stats()
    }
    /// Whether the host runs and nothing keeps it from going on.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.inner.stopping.is_cancelled() && self.inner.groups.health().borrow().is_none()
    }
    /// Cancelled when the host begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }
    /// Cancelled when the host has transferred its leaderships, and no longer answers.
    #[must_use]
    pub fn stopped(&self) -> CancellationToken {
        self.inner.stop.clone()
    }
    /// What keeps the host from going on, once something does: it must be stopped then.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Option<HostFault>> {
        self.inner.groups.health()
    }

    /// Stops the host. When it returns, the data directory may be opened again, whichever caller
    /// was first. A call that does not transfer leaderships ends the transfers of an earlier one.
    pub async fn shutdown(&self, mode: Shutdown) {
        self.inner.stopping.cancel();
        if let Shutdown::Graceful { deadline } = mode {
            self.hand_everything_over(deadline).await;
        }
        let _ending = self.ending.lock().await;
        // Peers and shipments first: they want the listener to be there.
        self.inner.transport.shutdown().await;
        self.inner.stop.cancel();
        let task = self.serving.lock().task.take();
        if let Some(mut task) = task {
            // Streams of clients and peers do not end otherwise.
            if tokio::time::timeout(Duration::from_millis(200), &mut task).await.is_err() {
                task.abort();
            }
        }
        let groups = self.inner.groups.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || groups.shutdown()).await {
            tracing::error!(%error, "the groups did not stop in order");
        }
        drop(self.serving.lock().data_dir.take());
    }

    /// Transfers every leadership to the most advanced voter, a number at a time.
    async fn hand_everything_over(&self, deadline: Duration) {
        use futures::StreamExt;
        let led = self.groups().into_iter().filter(|group| {
            let status = group.status();
            status.is_leader() && status.membership.members.len() > 1
        });
        let transfers = futures::stream::iter(led).for_each_concurrent(256, |group| async move {
            if let Err(error) = group.transfer_leadership(None).await {
                tracing::debug!(group = %group.id(), %error, "leadership was not handed over");
            }
        });
        if tokio::time::timeout(deadline, transfers).await.is_err() {
            tracing::warn!(?deadline, "stopping before every leadership was handed over");
        }
    }
}

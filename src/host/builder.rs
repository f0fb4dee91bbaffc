//! Putting a host together: what is opened and started, in this order. What fails leaves nothing running.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use shardhost_groups::GroupsBuilder;
use shardhost_groups::selector::GroupSelector;
use shardhost_proto::methods::Audience;
use shardhost_proto::version::ClusterVersion;
use shardhost_security::CredentialError;
use shardhost_security::channel::Security;
use shardhost_storage::{CapabilityError, LogError, LogStore, SnapshotFiles, SnapshotStore};
use tokio_util::sync::CancellationToken;

use super::config::HostConfig;
use super::founding::{self, Foundings, Scope};
use super::joining::{self, Joining, Mailbox, ReplicaFactory};
use super::listener::Listeners;
use super::memory::HostMemory;
use super::{Host, HostInner, Serving, leadership, versions};
use crate::data_dir::DataDir;
#[cfg(feature = "rocksdb")]
use crate::descriptors::Descriptors;
use crate::transport::{
    GrpcTransport, IncarnationMemory, KnownTokens, PeerDirectory, TransportConfig, TransportError,
};

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
    pub(super) const fn new(config: HostConfig) -> Self {
        Self { config, log_store: None, snapshots: None, listener: None, factory: None }
    }

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
    /// Listens on a socket that is bound already; the configured address is not used. Those of operators and of clients are.
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

    /// Starts the host: opens the log, starts the threads, connects to the peers. The listeners
    /// answer once [`Host::serve`] was called.
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
        let Listeners { all: listeners, address, advertise, apart } =
            Listeners::bind(listener, &config)?;
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
        let reached = |audience| apart.get(&audience).map(|apart| apart.reached.clone());
        transport_config.client_address = reached(Audience::Clients);
        transport_config.admin_address = reached(Audience::Operators);
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
        let connections =
            listeners.iter().map(|listener| Arc::clone(&listener.connections)).collect();
        let inner = HostInner {
            config,
            groups,
            transport,
            directory,
            advertisement: parking_lot::Mutex::new(advertisement),
            address,
            apart,
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
                listeners,
                tasks: Vec::new(),
                data_dir: Some(data_dir),
            })),
            ending: Arc::default(),
        };
        tokio::spawn(host.tell_impairments());
        Ok(host)
    }
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
    let security = Security::without_token(config.credentials.clone());
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

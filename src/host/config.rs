//! What a host is started from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

use shardhost_groups::GroupsConfig;
use shardhost_proto::version::ClusterVersion;
use shardhost_security::Credentials;
use shardhost_storage::{NodeId, SnapshotFilesOptions};

use crate::descriptors::Descriptors;
use crate::transport::{ConnectionLimits, MapTag, SnapshotLimits};

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
    /// Where this host listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where the others reach this host; `None`: at the address it listens on.
    pub advertise: Option<String>,
    /// Where it listens for clients of tables and queues, which the other listener refuses then. `None`: one
    /// listener serves all.
    pub client_listen: Option<SocketAddr>,
    /// Where clients reach that listener; `None`: at the address it listens on, and where that is every address
    /// of the machine, at the host of `advertise`.
    pub client_advertise: Option<String>,
    /// The same for operators: where it listens for them, and where they reach that listener.
    pub admin_listen: Option<SocketAddr>,
    pub admin_advertise: Option<String>,
    /// Where all nodes of the cluster are reached, `host:port`. This one may be left out.
    pub peers: BTreeMap<NodeId, String>,
    /// What this node has; groups may require some of their leaders. See
    /// [`Host::set_capabilities`](super::Host::set_capabilities).
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
    /// Bounds of the connections that the listeners hold open together.
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
            client_listen: None,
            client_advertise: None,
            admin_listen: None,
            admin_advertise: None,
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

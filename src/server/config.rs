//! The configuration file of a server.
//!
//! ```toml
//! cluster = "shop"
//! node = 1
//! data-dir = "/var/lib/shardhost"
//! listen = "0.0.0.0:7400"
//! capabilities = ["fifo"]
//!
//! [nodes]
//! 1 = "10.0.0.1:7400"
//! 2 = "10.0.0.2:7400"
//! 3 = "10.0.0.3:7400"
//!
//! [shards]
//! tables = 32
//! queues = 32
//! voters = [1, 2, 3]
//! queues-require = ["fifo"]
//!
//! [tls]
//! ca = "/etc/shardhost/ca.pem"
//! certificate = "/etc/shardhost/node.pem"
//! key = "/etc/shardhost/node.key"
//! ```

mod error;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shardhost_groups::GroupSpec;
use shardhost_security::TlsFiles;
use shardhost_storage::{GroupId, NodeId, Requirement};

use super::{FIRST_QUEUE, FIRST_TABLE, group_of_shard};
use crate::service::DEFAULT_CLIENT_BYTES;
use shardhost::driver::{MAX_FOUNDERS, SystemOptions};
use shardhost::host::HostConfig;
use shardhost::transport::MapTag;
use shardhost_policy::catalog::{Label, Name, NewGroup, PlannerMode, ReplicaSettings, Subject};
use shardhost_proto::shard_map::{KindShards, ShardMap};
use shardhost_proto::shard_map::{QUEUE_KIND as QUEUE, TABLE_KIND as TABLE};
use shardhost_proto::version::ClusterVersion;

pub use self::error::ConfigError;
pub use shardhost::transport::address::{AddressError, check_address, check_reachable};
pub use shardhost_proto::shard_map::MAX_SHARDS;

/// What a server is started from. Equal on all nodes but for `node`, `data-dir`, `capabilities`, and where it
/// listens: `listen`, `client-listen`, `admin-listen`, `http-listen` and what is advertised of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ServerConfig {
    /// Name of the cluster. Hosts of another one are refused.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// Number of this node, from 1.
    #[serde(default)]
    pub node: u64,
    #[serde(default)]
    pub data_dir: PathBuf,
    #[serde(default = "default_listen", deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    /// Where to listen for clients of tables and queues, which `listen` refuses then. Without it, they are
    /// served at `listen`.
    #[serde(default, deserialize_with = "maybe_listen_address")]
    pub client_listen: Option<SocketAddr>,
    /// Where clients reach `client-listen`, if not at that address. Where that is every address of the
    /// machine, it is at the host of this node's own address.
    #[serde(default)]
    pub client_advertise: Option<String>,
    /// Where to listen for operators, which `listen` refuses then. Without it, they are served at `listen`.
    #[serde(default, deserialize_with = "maybe_listen_address")]
    pub admin_listen: Option<SocketAddr>,
    /// Where operators reach `admin-listen`, as `client-advertise` is for clients.
    #[serde(default)]
    pub admin_advertise: Option<String>,
    /// Where to answer requests over HTTP: metrics, and whether the node is well. Without it, nowhere.
    #[serde(default, deserialize_with = "maybe_listen_address")]
    pub http_listen: Option<SocketAddr>,
    /// What this node has; shards may require some of it of their leaders.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Where all nodes are reached, by number.
    #[serde(default)]
    pub nodes: BTreeMap<String, String>,
    /// This node is the whole cluster. Without it, and without `nodes`, a node does not start: it
    /// would begin a cluster of its own beside the one that it belongs to.
    #[serde(default)]
    pub alone: bool,
    /// What fails together with this node, as a rack or a data center.
    #[serde(default)]
    pub zone: Option<String>,
    /// How many leaders this node takes, compared with others; 0: none.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Whether the cluster moves leaderships for balance automatically, when it is new. Later
    /// changes of operators stay.
    #[serde(default)]
    pub planner: Planner,
    /// Whether the cluster replaces replicas on nodes that are gone, and spreads replicas over nodes, when
    /// it is new or was upgraded to a version that can. Later changes of operators stay.
    #[serde(default = "on")]
    pub replicas: Planner,
    /// Seconds after which a node that does not answer is replaced, in a cluster that is new.
    #[serde(default = "default_replace_after")]
    pub replace_after: u64,
    /// Seconds for which a planner that just began moves nothing, and a node that just came up
    /// takes only leaders that have to go somewhere.
    #[serde(default = "default_warm_up")]
    pub planner_warm_up: u64,
    /// Seconds for which a group that was moved for balance rests.
    #[serde(default = "default_rest")]
    pub planner_rest: u64,
    /// Seconds after which the replicas of a shard are compared, each by a checksum of its state at
    /// one applied index; 0: never.
    #[serde(default = "default_consistency_check")]
    pub consistency_check: u64,
    /// Seconds within which a shard that hibernates is woken once to be compared; 0: it hibernates
    /// on.
    #[serde(default = "default_consistency_check_hibernating")]
    pub consistency_check_hibernating: u64,
    /// The latest version of a cluster that this node takes part in; by default the latest that this
    /// program knows. An earlier one keeps the cluster there.
    #[serde(default = "newest_version")]
    pub cluster_version_max: u32,
    /// Whether the cluster keeps a catalog of its intentions, in a separate group. Without it
    /// nothing is planned, drains end with their process, and each node creates its replicas
    /// independently.
    #[serde(default = "yes")]
    pub catalog: bool,
    /// How many shards of each kind there are, and who holds them at first.
    #[serde(default)]
    pub shards: ShardCounts,
    /// Founders that the founding of a new cluster does not wait for: an operator said so when the
    /// node was started, and takes the risk that one of them holds a replica after all. Never in a
    /// file, where it would be forgotten.
    #[serde(skip)]
    pub bootstrap_without: BTreeSet<u64>,
    /// Whether what the disk damaged of the state is recovered without an operator, from what can
    /// be read and from other replicas.
    #[serde(default = "yes")]
    pub repair: bool,
    /// Groups whose replicas here are parked instead of opened. Never in a file, where it would be
    /// forgotten.
    #[serde(skip)]
    pub park: BTreeSet<u64>,
    /// Threads for Raft; the default serves on machines of up to eight cores.
    #[serde(default = "default_workers")]
    pub workers: usize,
    /// Threads for state machines, 1 to 64. One of them is kept free of restores and checksums;
    /// with a single one, all groups of the node wait for those.
    #[serde(default = "default_apply_threads")]
    pub apply_threads: usize,
    /// MiB that requests and answers of all clients may take together.
    #[serde(default = "default_client_memory_mib")]
    pub client_memory_mib: usize,
    /// Certificates. Without them there is no TLS, and all who reach the listener may do everything.
    #[serde(default)]
    pub tls: Option<TlsSettings>,
    /// Whether a node without TLS may listen where other machines reach it.
    #[serde(default)]
    pub insecure: bool,
}

/// Where the certificates of a node are, in PEM. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TlsSettings {
    /// The authority that signs for all nodes and users of the cluster, and for nothing else.
    pub ca: PathBuf,
    /// The certificate of this node, which names the cluster and the number of the node.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl TlsSettings {
    /// Those of these files; `None`: a certificate is not among them.
    #[must_use]
    pub fn of(files: TlsFiles) -> Option<Self> {
        let TlsFiles { ca, own } = files;
        own.map(|(certificate, key)| Self { ca, certificate, key })
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> TlsFiles {
        let Self { ca, certificate, key } = self.clone();
        TlsFiles { ca, own: Some((certificate, key)) }
    }
}

/// How many shards of each kind there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ShardCounts {
    pub tables: u64,
    pub queues: u64,
    /// The nodes that hold the shards when they are created; empty: all. What is changed later
    /// by operators stays changed. A node that joins a running cluster is none of them.
    pub voters: Vec<u64>,
    /// What the leader of a table shard must have, when the shard is created. What is changed later
    /// by operators stays changed.
    pub tables_require: Vec<String>,
    /// The same for the queue.
    pub queues_require: Vec<String>,
}

/// Whether leaderships are moved for balance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Planner {
    Off,
    /// Plans are made and shown; nothing moves.
    Shadow,
    #[default]
    On,
}

impl From<Planner> for PlannerMode {
    fn from(planner: Planner) -> Self {
        match planner {
            Planner::Off => Self::Off,
            Planner::Shadow => Self::Shadow,
            Planner::On => Self::On,
        }
    }
}

const fn yes() -> bool {
    true
}
const fn default_weight() -> u32 {
    1
}
const fn on() -> Planner {
    Planner::On
}
const fn default_replace_after() -> u64 {
    ReplicaSettings::DEFAULT_REPLACE_AFTER_MS / 1_000
}
const fn default_warm_up() -> u64 {
    10
}
const fn default_rest() -> u64 {
    300
}
const fn default_consistency_check() -> u64 {
    60 * 60
}
const fn default_consistency_check_hibernating() -> u64 {
    24 * 60 * 60
}
const fn newest_version() -> u32 {
    ClusterVersion::NEWEST.get()
}
fn default_cluster() -> String {
    "shardhost".to_owned()
}
fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400))
}
fn listen_address<'de, D: serde::Deserializer<'de>>(given: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(given)?;
    parse_listen(&text).map_err(serde::de::Error::custom)
}
fn maybe_listen_address<'de, D: serde::Deserializer<'de>>(
    given: D,
) -> Result<Option<SocketAddr>, D::Error> {
    listen_address(given).map(Some)
}

/// The address to listen on that a text names: an address of this machine, or `localhost`, with a
/// port.
///
/// # Errors
/// What is wrong. A name may have many addresses, of other machines, so only `localhost` is taken.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    port.map(|port| SocketAddr::from(([127, 0, 0, 1], port))).ok_or_else(|| {
        format!(
            "cannot listen on `{text}`; name an IP address of this machine and a port, as in \
             0.0.0.0:7400 for all of its addresses, or localhost:7400"
        )
    })
}

const fn default_workers() -> usize {
    1
}
/// Beyond this the budget of clients bounds nothing.
const MAX_CLIENT_MEMORY_MIB: usize = 4 * 1024;

const fn default_client_memory_mib() -> usize {
    DEFAULT_CLIENT_BYTES / (1024 * 1024)
}

const fn default_apply_threads() -> usize {
    2
}

impl ServerConfig {
    /// A node alone, at the default address.
    #[must_use]
    pub fn alone(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            cluster: default_cluster(),
            node: 1,
            data_dir: data_dir.into(),
            listen: default_listen(),
            client_listen: None,
            client_advertise: None,
            admin_listen: None,
            admin_advertise: None,
            http_listen: None,
            capabilities: Vec::new(),
            nodes: BTreeMap::new(),
            alone: true,
            zone: None,
            weight: default_weight(),
            planner: Planner::default(),
            replicas: on(),
            replace_after: default_replace_after(),
            planner_warm_up: default_warm_up(),
            planner_rest: default_rest(),
            consistency_check: default_consistency_check(),
            consistency_check_hibernating: default_consistency_check_hibernating(),
            cluster_version_max: newest_version(),
            catalog: true,
            shards: ShardCounts::default(),
            bootstrap_without: BTreeSet::new(),
            park: BTreeSet::new(),
            repair: true,
            workers: default_workers(),
            apply_threads: default_apply_threads(),
            client_memory_mib: default_client_memory_mib(),
            tls: None,
            insecure: false,
        }
    }

    /// Reads a configuration file and checks it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::parse(path)?;
        config.validate().map_err(|error| error.in_file(path))?;
        Ok(config)
    }

    /// Reads a configuration file that may be incomplete: validate it once it is not.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn parse(path: &Path) -> Result<Self, ConfigError> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: shown(), error })?;
        Self::from_text(&shown(), &text)
    }

    /// The name of the cluster, if a configuration file names one.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Parse`].
    pub fn named_cluster(path: &Path) -> Result<Option<String>, ConfigError> {
        #[derive(Deserialize)]
        struct Named {
            cluster: Option<String>,
        }
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { path: shown(), error })?;
        let named = toml::from_str::<Named>(&text);
        let named = named
            .map_err(|error| ConfigError::Parse { path: shown(), message: error.to_string() })?;
        Ok(named.cluster)
    }

    /// Reads the text of a configuration file, of which errors name the path.
    pub(crate) fn from_text(path: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })
    }

    /// The configuration of the host. Must be valid.
    #[must_use]
    pub fn host(&self) -> HostConfig {
        let node = NodeId::new(self.node).unwrap_or(NodeId::must(1));
        let mut host = HostConfig::new(node, &self.data_dir).listen(self.listen);
        host.cluster.clone_from(&self.cluster);
        host.peers = self.node_addresses().unwrap_or_default();
        host.advertise = host.peers.get(&node).cloned();
        host.client_listen = self.client_listen;
        host.client_advertise.clone_from(&self.client_advertise);
        host.admin_listen = self.admin_listen;
        host.admin_advertise.clone_from(&self.admin_advertise);
        host.capabilities = self.capabilities.iter().cloned().collect();
        host.newest_version = self.newest_version();
        host.workers = self.workers;
        host.apply_threads = self.apply_threads;
        let ticks = Duration::from_secs(self.consistency_check).as_millis()
            / host.groups.tick.as_millis().max(1);
        host.groups.consistency_ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        let hibernating = Duration::from_secs(self.consistency_check_hibernating);
        host.groups.consistency_hibernating = (!hibernating.is_zero()).then_some(hibernating);
        // With a catalog, that has the map.
        host.shard_map = (!self.catalog).then(|| MapTag::of(&self.shard_map()));
        host
    }

    /// The latest version of a cluster that this node takes part in.
    #[must_use]
    pub const fn newest_version(&self) -> ClusterVersion {
        ClusterVersion::new(self.cluster_version_max)
    }

    /// The nodes that hold the shards when they are created.
    fn founders(&self) -> Vec<NodeId> {
        let own = NodeId::new(self.node).unwrap_or(NodeId::must(1));
        let named = self.shards.voters.iter().filter_map(|node| NodeId::new(*node));
        let mut voters: Vec<NodeId> = named.collect();
        if voters.is_empty() {
            voters.extend(self.node_addresses().unwrap_or_default().into_keys());
        }
        if voters.is_empty() {
            voters.push(own);
        }
        voters
    }

    /// The nodes that found the shards of a cluster without a catalog.
    pub(super) fn shard_founders(&self) -> BTreeSet<NodeId> {
        self.founders().into_iter().collect()
    }

    /// The nodes that found the system group.
    fn system_founders(&self) -> BTreeSet<NodeId> {
        self.shard_founders().into_iter().take(MAX_FOUNDERS).collect()
    }

    /// The founders that are not waited for.
    pub(super) fn left_out(&self) -> BTreeSet<NodeId> {
        self.bootstrap_without.iter().filter_map(|node| NodeId::new(*node)).collect()
    }

    /// The map of shards that the configuration names. Must be valid.
    #[must_use]
    pub fn shard_map(&self) -> ShardMap {
        let kind = |kind: &str, count, first| {
            (kind.to_owned(), KindShards { count, first_group: GroupId::new(first) })
        };
        ShardMap::first([
            kind(TABLE, self.shards.tables, FIRST_TABLE),
            kind(QUEUE, self.shards.queues, FIRST_QUEUE),
        ])
    }

    /// How this node takes part in the system group. Must be valid.
    #[must_use]
    pub fn system(&self) -> SystemOptions {
        let mut options = SystemOptions::new(self.system_founders());
        options.bootstrap_without = self.left_out();
        options.shard_map = Some(self.shard_map());
        options.zone.clone_from(&self.zone);
        options.weight = self.weight;
        options.planner = self.planner.into();
        options.replicas = Some(ReplicaSettings {
            mode: self.replicas.into(),
            replace_after_ms: self.replace_after.saturating_mul(1_000),
        });
        let warm_up_ms = self.planner_warm_up.saturating_mul(1_000);
        options.executor.warm_up_ms = warm_up_ms;
        options.executor.planner.warm_up_ms = warm_up_ms;
        options.executor.planner.cool_down_ms = self.planner_rest.saturating_mul(1_000);
        options.groups = self.group_specs().iter().filter_map(new_group).collect();
        options
    }

    /// The groups that the configuration names. Must be valid.
    #[must_use]
    pub fn group_specs(&self) -> Vec<GroupSpec> {
        let voters = self.founders();
        let of_kind = |kind: &'static str, count: u64, names: &[String]| {
            let voters = voters.clone();
            let requirement = Requirement::hard(names.iter().cloned()).unwrap_or_default();
            (0..count).filter_map(move |shard| {
                let id = group_of_shard(kind, shard)?;
                let mut spec = GroupSpec::new(id, voters.iter().copied()).kind(kind);
                spec.membership.requirement.clone_from(&requirement);
                Some(spec.label("kind", kind).label("shard", shard.to_string()))
            })
        };
        let shards = &self.shards;
        of_kind(TABLE, shards.tables, &shards.tables_require)
            .chain(of_kind(QUEUE, shards.queues, &shards.queues_require))
            .collect()
    }
}

/// A group as the catalog creates it. Kinds and labels of shards are names.
fn new_group(spec: &GroupSpec) -> Option<NewGroup> {
    let kind = Name::new(Subject::Kind, &spec.kind).ok()?;
    let founders = spec.membership.members.values().map(|member| member.node);
    let label = |(key, value): (&String, &String)| {
        let key = Name::new(Subject::Label, key).ok()?;
        Some(Label { key, value: value.as_str().into() })
    };
    let mut new = NewGroup::new(spec.id, kind, founders);
    new.labels = spec.labels.iter().filter_map(label).collect();
    new.requirement.clone_from(&spec.membership.requirement);
    Some(new)
}

#[cfg(test)]
mod tests;

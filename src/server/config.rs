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
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shardhost_groups::GroupSpec;
use shardhost_storage::requirement::capability_names;
use shardhost_storage::{GroupId, NodeId, Requirement};

use super::{FIRST_QUEUE, FIRST_TABLE, group_of_shard};
use crate::service::{DEFAULT_CLIENT_BYTES, MIN_CLIENT_BYTES};
use shardhost::driver::{MAX_FOUNDERS, SYSTEM_GROUP, SystemOptions};
use shardhost::host::HostConfig;
use shardhost::transport::MapTag;
use shardhost_policy::catalog::{Label, Name, NewGroup, PlannerMode, Subject};
use shardhost_policy::planner::snapshot::MAX_WEIGHT;
use shardhost_proto::shard_map::{KindShards, ShardMap};
use shardhost_proto::shard_map::{QUEUE_KIND as QUEUE, TABLE_KIND as TABLE};

pub use shardhost::transport::address::{AddressError, check_address};
pub use shardhost_proto::shard_map::MAX_SHARDS;

/// What a server is started from. Equal on all nodes but for `node`, `data-dir`, `listen` and
/// `capabilities`.
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

/// What is wrong with a configuration, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}; name a file that is there")]
    Read { path: String, error: std::io::Error },
    /// The file is not what it should be; the message names the line.
    #[error("the configuration {path} is wrong: {message}")]
    Parse { path: String, message: String },
    /// A value makes no sense.
    #[error("`{key}` is wrong: {message}")]
    Value {
        key: &'static str,
        /// Why, and what to do.
        message: String,
    },
}

const fn wrong(key: &'static str, message: String) -> ConfigError {
    ConfigError::Value { key, message }
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
            capabilities: Vec::new(),
            nodes: BTreeMap::new(),
            alone: true,
            zone: None,
            weight: default_weight(),
            planner: Planner::default(),
            planner_warm_up: default_warm_up(),
            planner_rest: default_rest(),
            consistency_check: default_consistency_check(),
            consistency_check_hibernating: default_consistency_check_hibernating(),
            catalog: true,
            shards: ShardCounts::default(),
            bootstrap_without: BTreeSet::new(),
            park: BTreeSet::new(),
            repair: true,
            workers: default_workers(),
            apply_threads: default_apply_threads(),
            client_memory_mib: default_client_memory_mib(),
        }
    }

    /// Reads a configuration file and checks it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::parse(path)?;
        config.validate()?;
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

    /// Reads the text of a configuration file, of which errors name the path.
    pub(crate) fn from_text(path: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.cluster.is_empty() || self.cluster.len() > 64 {
            return Err(wrong("cluster", "it must have 1 to 64 bytes".to_owned()));
        }
        let node = NodeId::new(self.node)
            .ok_or_else(|| wrong("node", "nodes are numbered from 1".to_owned()))?;
        if self.data_dir.as_os_str().is_empty() {
            let message = "name the directory of this node; it is created when missing";
            return Err(wrong("data-dir", message.to_owned()));
        }
        let nodes = self.node_addresses()?;
        if !nodes.is_empty() && !nodes.contains_key(&node) {
            let message = format!("this node, {node}, is not among them; add its address");
            return Err(wrong("nodes", message));
        }
        if nodes.is_empty() != self.alone {
            let message = "name the nodes of the cluster, this one too; or say `alone = true`, and \
                           no nodes, for a cluster of this node alone";
            return Err(wrong("nodes", message.to_owned()));
        }
        let mut named = BTreeSet::new();
        for voter in &self.shards.voters {
            if !named.insert(voter) {
                return Err(wrong("voters", format!("node {voter} is named twice")));
            }
            if !NodeId::new(*voter).is_some_and(|voter| nodes.contains_key(&voter)) {
                let message = format!("node {voter} is not among the nodes; add its address");
                return Err(wrong("voters", message));
            }
        }
        let mut seen = BTreeMap::new();
        for (node, address) in &nodes {
            if let Some(other) = seen.insert(address, node) {
                let message = format!("nodes {other} and {node} both have the address {address}");
                return Err(wrong("nodes", message));
            }
        }
        for (key, count) in [("tables", self.shards.tables), ("queues", self.shards.queues)] {
            if count > MAX_SHARDS {
                return Err(wrong(key, format!("{count} shards; at most {MAX_SHARDS}")));
            }
        }
        self.validate_left_out(node)?;
        self.validate_capabilities()?;
        if let Some(zone) = &self.zone {
            Name::new(Subject::Zone, zone).map_err(|error| wrong("zone", error.to_string()))?;
        }
        if self.weight > MAX_WEIGHT {
            return Err(wrong("weight", format!("{}; at most {MAX_WEIGHT}", self.weight)));
        }
        if self.workers == 0 || self.workers > 64 {
            return Err(wrong("workers", "it must be 1 to 64".to_owned()));
        }
        if self.apply_threads == 0 || self.apply_threads > 64 {
            return Err(wrong("apply-threads", "it must be 1 to 64".to_owned()));
        }
        if self.park.contains(&SYSTEM_GROUP.get()) {
            let message = "group 0 is the catalog, without which a host of it does not start";
            return Err(wrong("park", message.to_owned()));
        }
        let least = MIN_CLIENT_BYTES / (1024 * 1024);
        if !(least..=MAX_CLIENT_MEMORY_MIB).contains(&self.client_memory_mib) {
            let bounds = format!("it must be {least} to {MAX_CLIENT_MEMORY_MIB}");
            return Err(wrong("client-memory-mib", bounds));
        }
        Ok(())
    }

    fn validate_left_out(&self, own: NodeId) -> Result<(), ConfigError> {
        let founders = if self.catalog { self.system_founders() } else { self.shard_founders() };
        for node in &self.bootstrap_without {
            let named = NodeId::new(*node).filter(|node| *node != own);
            if !named.is_some_and(|node| founders.contains(&node)) {
                let message = format!("node {node} is not another founder of the cluster");
                return Err(wrong("bootstrap-without", message));
            }
        }
        Ok(())
    }

    fn validate_capabilities(&self) -> Result<(), ConfigError> {
        let lists = [
            ("capabilities", &self.capabilities),
            ("tables-require", &self.shards.tables_require),
            ("queues-require", &self.shards.queues_require),
        ];
        for (key, names) in lists {
            capability_names(names.iter().cloned())
                .map_err(|error| wrong(key, error.to_string()))?;
        }
        Ok(())
    }

    /// The addresses, by node.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn node_addresses(&self) -> Result<BTreeMap<NodeId, String>, ConfigError> {
        let mut nodes = BTreeMap::new();
        for (number, address) in &self.nodes {
            let node = number.parse().ok().and_then(NodeId::new).ok_or_else(|| {
                wrong("nodes", format!("`{number}` is no number of a node; they start at 1"))
            })?;
            check_address(address)
                .map_err(|error| wrong("nodes", format!("that of node {node}: {error}")))?;
            if nodes.insert(node, address.clone()).is_some() {
                return Err(wrong(
                    "nodes",
                    format!("node {node} is named twice, once as `{number}`"),
                ));
            }
        }
        Ok(nodes)
    }

    /// The configuration of the host. Must be valid.
    #[must_use]
    pub fn host(&self) -> HostConfig {
        let node = NodeId::new(self.node).unwrap_or(NodeId::must(1));
        let mut host = HostConfig::new(node, &self.data_dir).listen(self.listen);
        host.cluster.clone_from(&self.cluster);
        host.peers = self.node_addresses().unwrap_or_default();
        host.advertise = host.peers.get(&node).cloned();
        host.capabilities = self.capabilities.iter().cloned().collect();
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
mod tests {
    use super::*;

    fn example() -> ServerConfig {
        let text = r#"
            node = 2
            data-dir = "/var/lib/shardhost"
            listen = "127.0.0.1:7402"
            [nodes]
            1 = "127.0.0.1:7401"
            2 = "127.0.0.1:7402"
            [shards]
            tables = 3
            queues = 2
        "#;
        toml::from_str(text).unwrap()
    }

    #[test]
    fn every_node_derives_the_same_groups() {
        let second = example();
        let first = ServerConfig { node: 1, ..example() };
        first.validate().unwrap();
        assert_eq!(first.group_specs(), second.group_specs());
        assert_eq!(first.group_specs().len(), 5);
    }

    #[test]
    fn replicas_are_compared_unless_that_is_switched_off() {
        let groups = example().host().groups;
        assert_eq!(groups.consistency_ticks, 36_000);
        assert_eq!(groups.consistency_hibernating, Some(Duration::from_secs(86_400)));
        let never =
            ServerConfig { consistency_check: 0, consistency_check_hibernating: 0, ..example() };
        let groups = never.host().groups;
        assert_eq!((groups.consistency_ticks, groups.consistency_hibernating), (0, None));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut ServerConfig)| {
            let mut config = example();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(refused(&|c| c.node = 0).contains("numbered from 1"));
        assert!(refused(&|c| c.node = 9).contains("not among them"));
        assert!(refused(&|c| c.workers = 0).contains("workers"));
        assert!(refused(&|c| c.shards.queues = MAX_SHARDS + 1).contains("queues"));
        let same = refused(&|c| {
            c.nodes.insert("1".to_owned(), "127.0.0.1:7402".to_owned());
        });
        assert!(same.contains("both have the address"), "{same}");
        let twice = refused(&|c| {
            c.nodes.insert("01".to_owned(), "127.0.0.1:7409".to_owned());
        });
        assert!(twice.contains("node 1 is named twice"), "{twice}");
        let twice = refused(&|c| c.shards.voters = vec![1, 1]);
        assert!(twice.contains("voters") && twice.contains("node 1 is named twice"), "{twice}");
        let port = refused(&|c| {
            c.nodes.insert("1".to_owned(), "somewhere".to_owned());
        });
        assert!(port.contains("host:port"), "{port}");
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["10.0.0.1:7400", "host-1.example.org:1", "[::1]:7400", "my_host:65535"] {
            check_address(good).unwrap();
        }
        for (bad, why) in [
            ("http://x", "scheme"),
            ("http://x:7400", "scheme"),
            ("x:7400/path", "path"),
            ("a b:1", "a host has"),
            ("::1:7400", "in brackets"),
            ("[::1:7400", "in brackets"),
            ("[x]:7400", "no IPv6 address"),
            (":7400", "a host has"),
            ("x", "port is missing"),
            ("x:", "1 to 65535"),
            ("x:+7", "1 to 65535"),
            ("x:0", "1 to 65535"),
            ("x:65536", "1 to 65535"),
            ("user@x:1", "a host has"),
        ] {
            let error = check_address(bad).unwrap_err().to_string();
            assert!(error.contains("host:port") && error.contains(why), "{bad}: {error}");
            let mut config = example();
            config.nodes.insert("1".to_owned(), bad.to_owned());
            let refused = config.validate().unwrap_err().to_string();
            assert!(refused.contains("that of node 1"), "{refused}");
        }
    }

    #[test]
    fn shards_are_created_with_what_their_kind_requires() {
        let text = r#"
            node = 1
            data-dir = "x"
            alone = true
            capabilities = ["gpu", "fifo"]
            [shards]
            tables = 1
            queues = 1
            queues-require = ["fifo"]
        "#;
        let config: ServerConfig = toml::from_str(text).unwrap();
        config.validate().unwrap();
        assert!(config.host().capabilities.contains("gpu"));
        let plain = ServerConfig {
            shards: ShardCounts { queues_require: Vec::new(), ..config.shards.clone() },
            ..config.clone()
        };
        let [table, queue] = &config.group_specs()[..] else { panic!("two shards") };
        assert!(table.membership.requirement.is_empty());
        assert_eq!(queue.membership.requirement, Requirement::hard(["fifo"]).unwrap());
        // Nodes with other settings still hold the same group.
        assert!(queue.membership.may_be(plain.group_specs()[1].membership.genesis));
    }

    #[test]
    fn names_of_capabilities_are_checked_wherever_they_stand() {
        type Spoil = fn(&mut ServerConfig, Vec<String>);
        let places: [(&str, Spoil); 3] = [
            ("`capabilities`", |config, names| config.capabilities = names),
            ("`tables-require`", |config, names| config.shards.tables_require = names),
            ("`queues-require`", |config, names| config.shards.queues_require = names),
        ];
        for (key, spoil) in places {
            let mut config = example();
            spoil(&mut config, vec!["fifo".to_owned(), "Fi fo".to_owned()]);
            let refused = config.validate().unwrap_err().to_string();
            assert!(refused.starts_with(key), "{refused}");
            assert!(refused.contains("\"Fi fo\"") && refused.contains("a-z"), "{refused}");
        }
    }

    #[test]
    fn a_misspelt_key_is_refused_with_its_line() {
        let text = "node = 1\ndata-dir = \"x\"\nlisten = \"127.0.0.1:1\"\nlissten = 3\n";
        let error = toml::from_str::<ServerConfig>(text).unwrap_err().to_string();
        assert!(error.contains("lissten") && error.contains("line 4"), "{error}");
    }
}

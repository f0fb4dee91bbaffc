//! The arguments of a host, and the configuration that they make.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use shardhost_proto::version::ClusterVersion;
use shardhost_server::config::{ConfigError, check_address, parse_listen};
use shardhost_server::{ServerConfig, config};

use super::super::ended::senseless;
use super::super::join::{Joining, Membership, join};
use super::super::security::SecurityArguments;
use super::super::shown::shown;

/// How a host is started. Flags win over the file.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Name of the cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Number of this node, from 1.
    #[arg(long)]
    node: Option<u64>,
    /// The data directory.
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
    /// Where to listen for clients of tables and queues, which --listen refuses then, with the address to ask
    /// instead. Without it, --listen serves them.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    client_listen: Option<SocketAddr>,
    /// Where clients reach this node, if not at --client-listen: what other nodes give them, too.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_seed)]
    client_advertise: Option<String>,
    /// Where to listen for operators; --listen refuses them then, with the address to ask instead. Without it,
    /// --listen serves them.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    admin_listen: Option<SocketAddr>,
    /// Where operators reach this node, if not at --admin-listen: what other nodes give them, too.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_seed)]
    admin_advertise: Option<String>,
    /// Where to answer requests over HTTP: /metrics, /healthz, /readyz. Without it, nowhere.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_listen)]
    http_listen: Option<SocketAddr>,
    /// Join the running cluster of these nodes: this node gets a number, and learns where the others are.
    /// The data directory keeps the answer, so that later starts need no seed.
    #[arg(
        long,
        value_name = "ADDRESSES",
        value_delimiter = ',',
        value_parser = parse_seed,
        conflicts_with_all = ["peers", "voters", "tables", "queues", "bootstrap_without", "supervised"],
    )]
    pub(super) join: Vec<String>,
    /// Where the others reach this node, if not where it listens.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_seed)]
    advertise: Option<String>,
    /// Where a node is reached, once for each node.
    #[arg(long = "peer", value_name = "NODE=ADDRESS", value_parser = parse_peer)]
    peers: Vec<(String, String)>,
    /// Shards of the table.
    #[arg(long, value_name = "COUNT")]
    tables: Option<u64>,
    /// Shards of the queue.
    #[arg(long, value_name = "COUNT")]
    queues: Option<u64>,
    /// Threads for Raft.
    #[arg(long, value_name = "COUNT")]
    workers: Option<usize>,
    /// Threads for state machines.
    #[arg(long, value_name = "COUNT")]
    apply_threads: Option<usize>,
    /// Seconds that handing over leadership may take when stopping.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub(super) shutdown_timeout: u64,
    /// The nodes that hold the shards when they are created; by default all. A node that joins a
    /// running cluster is none of them.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    pub(super) voters: Vec<u64>,
    /// Something that this node has, beside what the file names; once for each.
    #[arg(long = "capability", value_name = "NAME")]
    capabilities: Vec<String>,
    /// What the leaders of table shards must have, when the shards are created.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    tables_require: Vec<String>,
    /// What the leaders of queue shards must have, when the shards are created.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    queues_require: Vec<String>,
    /// What fails together with this node, as a rack.
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Whether a new cluster moves leaderships for balance automatically.
    #[arg(long, value_enum)]
    planner: Option<Planner>,
    /// Seconds for which a new planner, or a node that just came up, is left alone.
    #[arg(long, value_name = "SECONDS")]
    planner_warm_up: Option<u64>,
    /// Seconds for which a group that was moved for balance rests.
    #[arg(long, value_name = "SECONDS")]
    planner_rest: Option<u64>,
    /// Seconds after which the replicas of a shard are compared; 0: never.
    #[arg(long, value_name = "SECONDS")]
    consistency_check: Option<u64>,
    /// Whether a new cluster replaces replicas on nodes that are gone, and spreads replicas over nodes.
    #[arg(long, value_enum)]
    replicas: Option<Planner>,
    /// Seconds after which a node that does not answer is replaced, in a new cluster.
    #[arg(long, value_name = "SECONDS")]
    replace_after: Option<u64>,
    /// The latest version of a cluster that this node takes part in. The cluster stays there, so that its
    /// nodes may run an earlier program again; by default the latest that this program knows.
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..=i64::from(ClusterVersion::NEWEST.get())))]
    cluster_version_max: Option<u32>,
    /// Do not open the replicas of these groups: one that keeps the host from running, or ends it. They
    /// are parked, the others start; a start without this flag opens them again.
    #[arg(long, value_name = "GROUPS", value_delimiter = ',', value_parser = group_number)]
    pub(super) park: Vec<u64>,
    /// Bootstrap a new cluster without asking these founders whether their disks are new. Only for a
    /// cluster that surely holds no data: if one of them took part in a founding before, there are two
    /// clusters with one name afterwards, and acknowledged writes of one of them are lost. Give it to
    /// every founder that is there; those left out are removed from their groups and added again.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    pub(super) bootstrap_without: Vec<u64>,
    /// Listen without TLS where other machines reach this node. All who reach it may do everything: only
    /// where every machine is trusted.
    #[arg(long)]
    insecure: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// Take the addresses of the nodes from the process that started this one.
    #[arg(long, hide = true)]
    pub(super) supervised: bool,
}

/// See [`shardhost_server::config::Planner`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Planner {
    /// Nothing is planned.
    Off,
    /// Plans are made and shown; nothing moves.
    Shadow,
    /// Plans are carried out.
    On,
}

impl From<Planner> for config::Planner {
    fn from(planner: Planner) -> Self {
        match planner {
            Planner::Off => Self::Off,
            Planner::Shadow => Self::Shadow,
            Planner::On => Self::On,
        }
    }
}

fn group_number(text: &str) -> Result<u64, String> {
    let number = text.parse();
    number.map_err(|_| "a group has a number, as `shardhost group list` shows it".to_owned())
}

fn parse_seed(text: &str) -> Result<String, String> {
    check_address(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn parse_peer(text: &str) -> Result<(String, String), String> {
    let pair =
        text.split_once('=').filter(|(node, address)| !node.is_empty() && !address.is_empty());
    let (node, address) = pair.ok_or("write NODE=ADDRESS, as 2=10.0.0.2:7400")?;
    Ok((node.to_owned(), address.to_owned()))
}

/// The configuration of a node that joins or joined: what it learned, and for the rest the file and the
/// flags.
pub(super) async fn take_part(
    arguments: &ServeArguments,
    config: &mut ServerConfig,
) -> anyhow::Result<()> {
    let in_file = arguments.config.as_deref().map(ServerConfig::named_cluster).transpose()?;
    let cluster = arguments.cluster.clone().or(in_file.flatten());
    let cluster = cluster.as_deref();
    let joining =
        Joining { seeds: &arguments.join, advertise: arguments.advertise.as_deref(), cluster };
    let known = Membership::read(&config.data_dir)?;
    if arguments.node.is_none() && arguments.config.is_none() {
        config.node = 0;
    }
    let membership = match known {
        Some(membership) => membership,
        None => join(config, &joining).await?,
    };
    membership.configure(config, &joining)?;
    config.validate().map_err(|error| located(error, arguments.config.as_deref()))?;
    Ok(())
}

/// The addresses that flags name, by node.
fn peers(given: &[(String, String)]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut peers = BTreeMap::new();
    for (node, address) in given {
        if peers.insert(node.clone(), address.clone()).is_some() {
            let node = shown(node);
            return Err(senseless(format!("--peer: node {node} is named twice")));
        }
    }
    Ok(peers)
}

/// The file, with what the flags say instead.
pub(super) fn configuration(
    arguments: &ServeArguments,
    security: &SecurityArguments,
) -> anyhow::Result<ServerConfig> {
    let mut config = match &arguments.config {
        Some(path) => ServerConfig::parse(path)?,
        None => ServerConfig::alone(PathBuf::new()),
    };
    if let Some(cluster) = &arguments.cluster {
        config.cluster.clone_from(cluster);
    }
    if let Some(directory) = &arguments.data_dir {
        config.data_dir.clone_from(directory);
    }
    config.node = arguments.node.unwrap_or(config.node);
    config.listen = arguments.listen.unwrap_or(config.listen);
    config.client_listen = arguments.client_listen.or(config.client_listen);
    config.client_advertise = arguments.client_advertise.clone().or(config.client_advertise);
    config.admin_listen = arguments.admin_listen.or(config.admin_listen);
    config.admin_advertise = arguments.admin_advertise.clone().or(config.admin_advertise);
    config.http_listen = arguments.http_listen.or(config.http_listen);
    config.nodes.extend(peers(&arguments.peers)?);
    if arguments.config.is_none() {
        config.alone = config.nodes.is_empty();
    }
    if !arguments.voters.is_empty() && !arguments.supervised {
        config.shards.voters.clone_from(&arguments.voters);
    }
    config.shards.tables = arguments.tables.unwrap_or(config.shards.tables);
    config.shards.queues = arguments.queues.unwrap_or(config.shards.queues);
    config.capabilities.extend(arguments.capabilities.iter().cloned());
    config.shards.tables_require.extend(arguments.tables_require.iter().cloned());
    config.shards.queues_require.extend(arguments.queues_require.iter().cloned());
    config.zone = arguments.zone.clone().or(config.zone);
    config.planner = arguments.planner.map_or(config.planner, Into::into);
    config.planner_warm_up = arguments.planner_warm_up.unwrap_or(config.planner_warm_up);
    config.planner_rest = arguments.planner_rest.unwrap_or(config.planner_rest);
    config.replicas = arguments.replicas.map_or(config.replicas, Into::into);
    config.replace_after = arguments.replace_after.unwrap_or(config.replace_after);
    config.cluster_version_max =
        arguments.cluster_version_max.unwrap_or(config.cluster_version_max);
    config.consistency_check = arguments.consistency_check.unwrap_or(config.consistency_check);
    if let Some(tls) = security.of_node()? {
        config.tls = Some(tls);
    }
    config.insecure |= arguments.insecure;
    config.workers = arguments.workers.unwrap_or(config.workers);
    config.apply_threads = arguments.apply_threads.unwrap_or(config.apply_threads);
    if !arguments.supervised {
        config.bootstrap_without.extend(&arguments.bootstrap_without);
        config.park.extend(&arguments.park);
    }
    Ok(config)
}

/// The error with the line of the file, if it is the file's own and not that of a flag.
pub(super) fn located(error: ConfigError, file: Option<&Path>) -> ConfigError {
    let Some(path) = file else { return error };
    let of_file = ServerConfig::parse(path).and_then(|config| config.validate());
    match of_file {
        Err(alone) if alone.to_string() == error.to_string() => error.in_file(path),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ended::code_of;

    #[test]
    fn a_node_has_one_address() {
        let pair = |node: &str, address: &str| (node.to_owned(), address.to_owned());
        let given = [pair("1", "a:1"), pair("2", "b:1")];
        assert_eq!(peers(&given).unwrap().len(), 2);
        let twice = peers(&[pair("1", "a:1"), pair("1", "b:1")]).unwrap_err();
        assert_eq!(code_of(&twice), 2);
        assert!(twice.to_string().contains("node 1 is named twice"), "{twice}");
    }
}

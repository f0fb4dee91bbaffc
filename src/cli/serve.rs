//! `shardhost serve`: a host of tables and queues, from a configuration file and flags.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use shardhost::Shutdown;
use shardhost::groups::HostFault;
use shardhost_proto::shard_map::MapMismatch;
use shardhost_proto::version::ClusterVersion;
use shardhost_security::Credentials;
use shardhost_security::channel::Security;
use shardhost_server::config::{ConfigError, check_address, parse_listen};
use shardhost_server::{Server, ServerConfig, config};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ended::senseless;
use super::join::{Joining, Membership, join};
use super::security::{SecurityArguments, use_security};
use super::shown::shown;
use super::supervised::{Order, Report};

/// How long a supervised host waits for a port that its predecessor may still hold.
const BIND_PATIENCE: Duration = Duration::from_secs(10);
/// How long a node waits for its shards before it reports that it serves: the others may come
/// later.
const SHARDS_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for a node that waits for no other.
const SHARDS_TIMEOUT_ALONE: Duration = Duration::from_secs(30);
/// How long closing may take after leaderships were handed over: a disk that hangs is not waited for.
const CLOSING_PATIENCE: Duration = Duration::from_secs(20);
/// How long the supervisor may take to name the other nodes.
const ORDER_PATIENCE: Duration = Duration::from_secs(60);

/// How a host is started. Flags win over the file.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
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
    /// Join the running cluster of these nodes: this node gets a number, and learns where the others are.
    /// The data directory keeps the answer, so that later starts need no seed.
    #[arg(
        long,
        value_name = "ADDRESSES",
        value_delimiter = ',',
        value_parser = parse_seed,
        conflicts_with_all = ["peers", "voters", "tables", "queues", "bootstrap_without", "supervised"],
    )]
    join: Vec<String>,
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
    shutdown_timeout: u64,
    /// The nodes that hold the shards when they are created; by default all. A node that joins a
    /// running cluster is none of them.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    voters: Vec<u64>,
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
    park: Vec<u64>,
    /// Bootstrap a new cluster without asking these founders whether their disks are new. Only for a
    /// cluster that surely holds no data: if one of them took part in a founding before, there are two
    /// clusters with one name afterwards, and acknowledged writes of one of them are lost. Give it to
    /// every founder that is there; those left out are removed from their groups and added again.
    #[arg(long, value_name = "NODES", value_delimiter = ',')]
    bootstrap_without: Vec<u64>,
    /// Listen without TLS where other machines reach this node. All who reach it may do everything: only
    /// where every machine is trusted.
    #[arg(long)]
    insecure: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Take the addresses of the nodes from the process that started this one.
    #[arg(long, hide = true)]
    supervised: bool,
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

/// Runs a host until it is stopped or its log fails.
pub async fn run(
    arguments: ServeArguments,
    security: &SecurityArguments,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let mut config = configuration(&arguments, security)?;
    if let Some(tls) = &config.tls {
        let credentials = Credentials::load(tls.files())?;
        credentials.check_any_node()?;
        let credentials = Some(credentials);
        use_security(Security { credentials, token: None });
    }
    let mut orders = None;
    let mut listener = None;
    if joins(&arguments, &config)? {
        let bound = tokio::select! {
            bound = bind(config.listen) => bound?,
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        };
        config.listen = bound.local_addr()?;
        tokio::select! {
            joined = take_part(&arguments, &mut config) => joined?,
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        }
        listener = Some(bound);
    } else {
        config.validate().map_err(|error| located(error, arguments.config.as_deref()))?;
    }
    if arguments.supervised {
        let mut incoming = read_orders();
        let bound = tokio::select! {
            bound = bind(config.listen) => bound?,
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        };
        say(&Report::Listening { address: bound.local_addr()?.to_string() })?;
        config.nodes = tokio::select! {
            nodes = await_start(&mut incoming) => nodes?,
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        };
        config.alone = false;
        config.shards.voters.clone_from(&arguments.voters);
        config.bootstrap_without.extend(&arguments.bootstrap_without);
        config.park.extend(&arguments.park);
        config.validate()?;
        orders = Some(incoming);
        listener = Some(bound);
    }
    let deadline = Duration::from_secs(arguments.shutdown_timeout);
    let limit = if config.alone { SHARDS_TIMEOUT_ALONE } else { SHARDS_TIMEOUT };
    let server = start(config, listener, &mut signals).await?;
    tokio::select! {
        () = signals.next() => return stop(server, End::Asked, &mut signals, deadline).await,
        there = server.await_shards(limit) => if !there {
            tracing::info!("not every shard is there yet; they come when enough nodes are");
        },
    }
    announce(&arguments, &server);
    let end = until_end(&server, &mut signals, orders).await;
    stop(server, end, &mut signals, deadline).await
}

/// Whether the node is one that joins, or joined before.
fn joins(arguments: &ServeArguments, config: &ServerConfig) -> anyhow::Result<bool> {
    if config.data_dir.as_os_str().is_empty() || arguments.supervised {
        return Ok(false);
    }
    if arguments.join.is_empty() {
        return Ok(config.nodes.is_empty() && Membership::read(&config.data_dir)?.is_some());
    }
    if !config.nodes.is_empty() {
        return Err(senseless(
            "--join and the nodes of a configuration exclude each other: a node that joins learns where the \
             others are",
        ));
    }
    Ok(true)
}

/// The configuration of a node that joins or joined: what it learned, and for the rest the file and the
/// flags.
async fn take_part(arguments: &ServeArguments, config: &mut ServerConfig) -> anyhow::Result<()> {
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
fn configuration(
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
fn located(error: ConfigError, file: Option<&Path>) -> ConfigError {
    let Some(path) = file else { return error };
    let of_file = ServerConfig::parse(path).and_then(|config| config.validate());
    match of_file {
        Err(alone) if alone.to_string() == error.to_string() => error.in_file(path),
        _ => error,
    }
}

/// Binds an address, which the process that had it before may hold for a moment yet.
async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let deadline = Instant::now() + BIND_PATIENCE;
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("cannot listen on {address}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Starts the server. If it is stopped before that is done, the process ends at once: it has
/// acknowledged nothing yet, and reading a long log may take minutes.
async fn start(
    config: ServerConfig,
    listener: Option<TcpListener>,
    signals: &mut Signals,
) -> anyhow::Result<Server> {
    let (node, directory) = (config.node, config.data_dir.display().to_string());
    // A separate task: the databases are opened on its thread.
    let mut starting = tokio::spawn(Server::start(config, listener));
    let started = tokio::select! {
        started = &mut starting => started?,
        () = signals.next() => {
            tracing::info!("stopped while starting; ending at once");
            super::logging::exit(0);
        }
    };
    started.with_context(|| format!("node {node} with its data in {directory} does not start"))
}

/// Reports that the host serves. A missing reader does not matter.
fn announce(arguments: &ServeArguments, server: &Server) {
    if let Err(error) = print_started(arguments, server) {
        tracing::warn!(%error, "standard output cannot be written");
    }
}

fn print_started(arguments: &ServeArguments, server: &Server) -> anyhow::Result<()> {
    let host = server.host();
    let groups = host.groups().len() as u64;
    let (node, cluster, address) = (host.node_id(), &host.config().cluster, host.address());
    if arguments.supervised {
        return say(&Report::Started { groups });
    }
    let mut output = std::io::stdout().lock();
    if arguments.json {
        let started = json!({
            "node": node.get(), "cluster": cluster, "address": address.to_string(), "groups": groups
        });
        writeln!(output, "{started}")?;
    } else {
        let cluster = shown(cluster);
        writeln!(
            output,
            "node {node} of cluster {cluster} serves {groups} groups at {address}; stop it with \
             Ctrl-C or SIGTERM"
        )?;
    }
    Ok(output.flush()?)
}

fn say(report: &Report) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(report)?)?;
    Ok(output.flush()?)
}

/// Reads orders on a separate thread: a read of standard input cannot be cancelled.
fn read_orders() -> mpsc::Receiver<String> {
    let (sender, orders) = mpsc::channel(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    orders
}

async fn await_start(
    orders: &mut mpsc::Receiver<String>,
) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let line = tokio::time::timeout(ORDER_PATIENCE, orders.recv()).await;
    let line = line.context("the supervisor named no nodes")?.context("the supervisor is gone")?;
    match serde_json::from_str(&line).with_context(|| format!("this is no order: {line}"))? {
        Order::Start { nodes } => Ok(nodes),
        Order::Release => bail!("ordered to continue alone before the nodes were named"),
    }
}

enum End {
    Asked,
    Abandoned,
    Failed(HostFault),
    /// The configuration contradicts what the cluster has.
    Contradicted(MapMismatch),
    /// The node was removed from the cluster.
    Removed,
}

async fn until_end(
    server: &Server,
    signals: &mut Signals,
    orders: Option<mpsc::Receiver<String>>,
) -> End {
    let mut health = server.host().health();
    tokio::select! {
        mismatch = server.contradicted() => End::Contradicted(mismatch),
        () = server.removed() => End::Removed,
        () = signals.next() => End::Asked,
        () = until_abandoned(orders) => End::Abandoned,
        failed = health.wait_for(Option::is_some) => match failed {
            Ok(error) => error.clone().map_or(End::Asked, End::Failed),
            Err(_) => End::Asked,
        },
    }
}

/// Until the supervisor is gone without having released this process.
async fn until_abandoned(orders: Option<mpsc::Receiver<String>>) {
    let Some(mut orders) = orders else { return std::future::pending().await };
    while let Some(line) = orders.recv().await {
        match serde_json::from_str(&line) {
            Ok(Order::Release) => return std::future::pending().await,
            Ok(Order::Start { .. }) => tracing::warn!("ordered to start twice"),
            Err(error) => tracing::warn!(%error, line, "this is no order"),
        }
    }
}

async fn stop(
    server: Server,
    end: End,
    signals: &mut Signals,
    deadline: Duration,
) -> anyhow::Result<ExitCode> {
    let mode = match end {
        End::Asked => Shutdown::Graceful { deadline },
        End::Abandoned | End::Failed(_) | End::Contradicted(_) | End::Removed => {
            Shutdown::Immediate
        }
    };
    if let End::Failed(fault @ HostFault::Stuck { .. }) = &end {
        // Its groups are mute as long as the process lives, and no shutdown would end.
        tracing::error!(%fault, "the host is stuck and ends at once");
        super::logging::complain(&format!(
            "error: {fault}; the host ended at once, start it again"
        ));
        super::logging::exit(1);
    }
    tracing::info!(?mode, "stopping; a second signal ends at once");
    tokio::select! {
        () = server.shutdown(mode) => {}
        () = tokio::time::sleep(deadline + CLOSING_PATIENCE) => {
            // What was acknowledged is in the log; the next start does what was left undone.
            tracing::error!("the databases do not close; ending without that");
            super::logging::complain(
                "error: the databases did not close in time and the host ended without that; look \
                 after the disk of the data directory",
            );
            super::logging::exit(1);
        }
        () = signals.next() => {
            tracing::warn!("ending at once");
            super::logging::exit(1);
        }
    }
    match end {
        End::Failed(HostFault::Log(error)) => Err(anyhow!(error).context(
            "the log failed and the host stopped; check the disk (space, permissions, health), \
             then start the host again",
        )),
        End::Failed(HostFault::State(error)) => Err(anyhow!("{error}").context(
            "the state of the shards failed and the host stopped; check the disk (permissions, \
             health) and the limit of open files, then start the host again",
        )),
        End::Failed(fault) => {
            Err(anyhow!(fault).context("the host stopped after a bug; start it again"))
        }
        End::Removed => bail!(
            "this node was removed from the cluster, for good; to use the machine again, remove its data \
             directory and join anew: `shardhost serve --join ADDRESSES --data-dir ...`"
        ),
        End::Contradicted(mismatch) => {
            Err(anyhow!(mismatch).context("the node does not start with this configuration"))
        }
        End::Asked | End::Abandoned => Ok(ExitCode::SUCCESS),
    }
}

/// What asks a process to stop.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        // A terminal that went away is no order to stop.
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tracing::info!("SIGHUP: there is no configuration to reload, the host continues");
            }
        });
        Ok(Self { terminate, interrupt })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
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

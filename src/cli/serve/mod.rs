//! `shardhost serve`: a host of tables and queues, from a configuration file and flags.

mod arguments;

use std::io::{BufRead, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::json;
use shardhost::Shutdown;
use shardhost::groups::HostFault;
use shardhost_proto::shard_map::MapMismatch;
use shardhost_security::Credentials;
use shardhost_security::channel::Security;
use shardhost_server::{Server, ServerConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::arguments::ServeArguments;
use self::arguments::{configuration, located, take_part};
use super::ended::senseless;
use super::join::Membership;
use super::output::counted;
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
        use_security(Security::without_token(credentials));
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
    let (operators, clients) = (host.admin_listener(), host.client_listener());
    if arguments.supervised {
        return say(&Report::Started { groups });
    }
    let mut output = std::io::stdout().lock();
    if arguments.json {
        let started = json!({
            "node": node.get(), "cluster": cluster, "address": address.to_string(), "groups": groups,
            "admin_address": operators.unwrap_or(address).to_string(),
            "client_address": clients.unwrap_or(address).to_string(),
            "http_address": server.pages().map(|at| at.to_string()),
        });
        writeln!(output, "{started}")?;
    } else {
        let (cluster, groups) = (shown(cluster), counted(groups, "group"));
        let at = |who, at: Option<_>| at.map(|at| format!(", {who} at {at}")).unwrap_or_default();
        let (operators, clients) = (at("operators", operators), at("clients", clients));
        let pages = at("HTTP", server.pages());
        writeln!(
            output,
            "node {node} of cluster {cluster} serves {groups} at {address}{operators}{clients}{pages}; stop it with \
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

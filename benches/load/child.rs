//! One node of a benchmark: a host that does what the parent orders.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shardhost::{Group, Host, NodeId, Shutdown};
use shardhost_server::config::ShardCounts;
use shardhost_server::{Server, ServerConfig};

use super::flow::{FlowOrder, Flowed, Flowing};
use super::hosting::{self, Hosted, Machines, Setup, TimedLog};
use super::kill::KillNode;
use super::nodes::{Answer, Order, Usage};
use super::process::{cpu_time, resident_bytes};
use super::snapshot::SnapshotNode;
use super::stall::StallNode;
use super::{balance, drain, found, read, restart, write};

/// How long groups may take to be led or to sleep.
const PATIENCE: Duration = Duration::from_secs(110);

/// What the child was told to be.
pub struct Role {
    pub node: NodeId,
    pub nodes: u64,
    pub directory: PathBuf,
    pub workers: usize,
    pub apply_threads: usize,
    pub listener: Option<std::net::TcpListener>,
}

/// What the child is, in the order in which it becomes so.
#[derive(Default)]
struct State {
    role: Option<Role>,
    running: Option<Running>,
    snapshots: Option<SnapshotNode>,
}

struct Running {
    host: Host,
    groups: Vec<Group>,
    /// Nodes that hold a voter of every group at first.
    voters: u64,
    /// What it was put together from, unless it is a server.
    parts: Option<(Arc<Machines>, Arc<TimedLog>)>,
    server: Option<Server>,
    stall: StallNode,
    kill: KillNode,
    flowing: Option<Flowing>,
    before: Usage,
    started: Instant,
}

/// Takes orders until the parent says that it is over, or goes away.
pub async fn run() -> anyhow::Result<()> {
    let (sender, mut orders) = tokio::sync::mpsc::channel::<String>(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut state = State::default();
    while let Some(line) = orders.recv().await {
        let order: Order = serde_json::from_str(&line)?;
        let last = matches!(order, Order::End);
        let answer = match carry_out(order, &mut state).await {
            Ok(answer) => answer,
            Err(error) => Answer::Failed { message: format!("{error:#}") },
        };
        let mut output = std::io::stdout().lock();
        writeln!(output, "{}", serde_json::to_string(&answer)?)?;
        output.flush()?;
        if last {
            break;
        }
    }
    Ok(())
}

async fn carry_out(order: Order, state: &mut State) -> anyhow::Result<Answer> {
    let State { role, running, snapshots } = state;
    match order {
        Order::Be { node, nodes, directory, workers, apply_threads } => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?.to_string();
            let node = NodeId::new(node).context("nodes are numbered from 1")?;
            let listener = Some(listener);
            *role = Some(Role { node, nodes, directory, workers, apply_threads, listener });
            Ok(Answer::Listening { address })
        }
        Order::Join(setup) => {
            let role = role.take().context("told to join before told who to be")?;
            *running = Some(Running::start(role, &setup).await?);
            Ok(Answer::Done)
        }
        Order::Serve(setup) => {
            let role = role.take().context("told to serve before told who to be")?;
            *running = Some(Running::serve(role, setup).await?);
            Ok(Answer::Done)
        }
        Order::Snapshot(order) => SnapshotNode::carry_out(order, role, snapshots).await,
        Order::End => {
            if let Some(running) = running.take() {
                running.end().await;
            }
            if let Some(node) = snapshots.take() {
                node.end().await;
            }
            Ok(Answer::Done)
        }
        order => match running.as_mut() {
            Some(running) => running.carry_out(order).await,
            None => bail!("told {order:?} before told to join"),
        },
    }
}

impl Running {
    async fn start(role: Role, setup: &Setup) -> anyhow::Result<Self> {
        let Hosted { host, groups, machines, log } = hosting::start(role, setup).await?;
        Ok(Self { parts: Some((machines, log)), ..Self::new(host, groups, setup.voters) })
    }

    /// Runs what `shardhost serve` runs.
    async fn serve(role: Role, setup: Setup) -> anyhow::Result<Self> {
        let mut config = ServerConfig::alone(role.directory);
        config.node = role.node.get();
        config.nodes = setup.addresses.into_iter().map(|(id, at)| (id.to_string(), at)).collect();
        config.alone = false;
        config.catalog = setup.catalog;
        config.shards = ShardCounts {
            tables: setup.groups,
            voters: (1..=setup.voters).collect(),
            ..ShardCounts::default()
        };
        config.workers = role.workers;
        config.apply_threads = role.apply_threads;
        let server = Server::start(config, role.listener).await?;
        let host = server.host().clone();
        let groups = host.runtime().groups();
        Ok(Self { server: Some(server), ..Self::new(host, groups, setup.voters) })
    }

    fn new(host: Host, groups: Vec<Group>, voters: u64) -> Self {
        let (before, started) = (Usage::default(), Instant::now());
        let mut running = Self {
            host,
            groups,
            voters,
            parts: None,
            server: None,
            stall: StallNode::default(),
            kill: KillNode::default(),
            flowing: None,
            before,
            started,
        };
        running.before = running.used();
        running
    }

    async fn end(mut self) {
        self.stall.end();
        drop((self.flowing, self.kill));
        match self.server {
            Some(server) => server.shutdown(Shutdown::Immediate).await,
            None => self.host.shutdown(Shutdown::Immediate).await,
        }
        // What the tables keep in memory is flushed when the last handle goes.
        drop(self.parts);
    }

    async fn carry_out(&mut self, order: Order) -> anyhow::Result<Answer> {
        match order {
            Order::AwaitLeaders => {
                self.until("a group is without a leader", |group| group.status().leader.is_some())
                    .await?;
                let led = self.groups.iter().filter(|group| group.status().serving).count();
                Ok(Answer::Leaders { led: led as u64 })
            }
            Order::Found(order) => {
                let system = self.server.as_ref().and_then(Server::system);
                let founded = found::carry_out(order, &self.host, system).await?;
                // Those that came since the start.
                self.groups = found::shards(&self.host);
                Ok(Answer::Founded(founded))
            }
            Order::AwaitSleep => {
                self.until("a group is awake", |group| group.status().asleep).await?;
                Ok(Answer::Done)
            }
            Order::Spread => self.spread().await,
            Order::Drain(order) => Ok(Answer::Drained(drain::carry_out(order, &self.host).await?)),
            Order::Balance(order) => {
                Ok(Answer::Balance(Box::new(balance::carry_out(order, &self.host).await)))
            }
            Order::Kill(order) => {
                Ok(Answer::Noted(Box::new(self.kill.carry_out(order, &self.host)?)))
            }
            Order::Flow(FlowOrder::Begin(flow)) => {
                self.flowing = Some(Flowing::begin(&self.host, flow)?);
                Ok(Answer::Done)
            }
            Order::Flow(FlowOrder::End) => {
                let flowed = match self.flowing.take() {
                    Some(flowing) => flowing.end().await?,
                    None => Flowed::default(),
                };
                Ok(Answer::Flowed(Box::new(flowed)))
            }
            Order::Usage => {
                let used = self.used();
                let since = used.since(&self.before);
                self.before = used;
                Ok(Answer::Usage(since))
            }
            Order::Write(arguments) => {
                self.until_serving().await?;
                let measured = write::drive(&self.host, &self.groups, &arguments, || self.used())?;
                Ok(Answer::Measured(Box::new(measured)))
            }
            Order::Read(order) => {
                self.until_serving().await?;
                let measured = read::drive(&self.host, &self.groups, &order, || self.used())?;
                Ok(Answer::Read(Box::new(measured)))
            }
            Order::Stall(order) => {
                let log = self.parts.as_ref().map(|(_, log)| &**log);
                let answer = self.stall.carry_out(order, &self.host, log).await?;
                Ok(Answer::Stall(Box::new(answer)))
            }
            Order::Restart(order) => {
                let (machines, _) = self.parts.as_ref().context("a server cannot do that")?;
                let own = self.host.node_id();
                let answer = restart::carry_out(order, own, &self.groups, machines).await?;
                Ok(Answer::Restart(Box::new(answer)))
            }
            other => bail!("{other:?} makes no sense here"),
        }
    }

    /// Waits until this node serves the groups that belong on it.
    async fn until_serving(&self) -> anyhow::Result<()> {
        let own = self.host.node_id();
        let serves = |group: &Group| self.home(group) != own || group.status().serving;
        self.until("a group does not serve", serves).await
    }

    async fn until(&self, trouble: &str, done: impl Fn(&Group) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(group) = self.groups.iter().find(|group| !done(group)) {
            if Instant::now() > deadline {
                bail!("{trouble} after {PATIENCE:?}: {:?}", group.status());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Group n belongs on node n modulo their number, so that every node leads its share.
    async fn spread(&self) -> anyhow::Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let misplaced: Vec<_> = self
                .groups
                .iter()
                .filter(|group| group.status().serving && self.home(group) != self.host.node_id())
                .collect();
            if misplaced.is_empty() {
                let led = self.groups.iter().filter(|group| group.status().serving).count();
                return Ok(Answer::Leaders { led: led as u64 });
            }
            for group in misplaced {
                let moved = group.transfer_leadership(Some(self.home(group))).await;
                if let Err(error) = moved
                    && Instant::now() > deadline
                {
                    bail!("group {} does not move: {error}", group.id());
                }
            }
        }
    }

    fn home(&self, group: &Group) -> NodeId {
        NodeId::must(1 + group.id().get() % self.voters)
    }

    fn used(&self) -> Usage {
        let stats = self.host.stats();
        let transport = self.host.transport_stats();
        let lanes = || transport.peers.iter().flat_map(|peer| [&peer.bulk, &peer.urgent]);
        Usage {
            seconds: self.started.elapsed().as_secs_f64(),
            cpu_seconds: cpu_time().as_secs_f64(),
            resident_bytes: resident_bytes(),
            log_writes: stats.log_writes,
            log_group_writes: stats.log_group_writes,
            log_entries: stats.log_entries,
            messages: lanes().map(|lane| lane.messages).sum(),
            frames: lanes().map(|lane| lane.frames).sum(),
            rounds: stats.workers.rounds,
        }
    }
}

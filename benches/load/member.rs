//! One node of a benchmark: a host that does what the parent orders.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shardhost::{Group, Host, NodeId, Shutdown};
use shardhost_server::config::ShardCounts;
use shardhost_server::{Server, ServerConfig};

use super::certificates;
use super::hosting::{self, Hosted, Machines, TimedLog};
use super::nodes::{Answer, Order, Setup, Usage};
use super::part::Parts;
use super::process::{cpu_time, resident_bytes};

/// How long groups may take to be led or to hibernate.
const TIMEOUT: Duration = Duration::from_secs(110);

/// The role of the child.
pub struct Role {
    pub node: NodeId,
    pub nodes: u64,
    pub directory: PathBuf,
    pub workers: usize,
    pub apply_threads: usize,
    /// Where its certificates are; `None`: without TLS.
    pub certificates: Option<PathBuf>,
    pub listener: Option<std::net::TcpListener>,
}

/// A node of a benchmark: its role until it runs, then what runs.
#[derive(Default)]
pub struct Member {
    pub role: Option<Role>,
    running: Option<Running>,
}

/// A host, or a server around it.
pub struct Running {
    pub host: Host,
    pub groups: Vec<Group>,
    /// Nodes that hold a voter of every group at first.
    voters: u64,
    /// What it was put together from, unless it is a server.
    pub parts: Option<(Arc<Machines>, Arc<TimedLog>)>,
    pub server: Option<Server>,
    before: Usage,
    started: Instant,
}

/// Executes orders until the parent ends it, or is gone.
pub async fn run(mut parts: Parts) -> anyhow::Result<()> {
    let (sender, mut orders) = tokio::sync::mpsc::channel::<String>(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut member = Member::default();
    while let Some(line) = orders.recv().await {
        let order: Order = serde_json::from_str(&line)?;
        if matches!(order, Order::End) {
            parts.end().await;
            if let Some(running) = member.running.take() {
                running.end().await;
            }
            return answer(&Answer::Done);
        }
        let done = member.execute(order, &mut parts).await;
        answer(&done.unwrap_or_else(|error| Answer::Failed { message: format!("{error:#}") }))?;
    }
    Ok(())
}

fn answer(answer: &Answer) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(answer)?)?;
    Ok(output.flush()?)
}

impl Member {
    /// The host that runs.
    pub fn running(&mut self) -> anyhow::Result<&mut Running> {
        self.running.as_mut().context("the node did not join yet")
    }

    async fn execute(&mut self, order: Order, parts: &mut Parts) -> anyhow::Result<Answer> {
        match order {
            Order::Be { node, nodes, directory, workers, apply_threads, certificates } => {
                let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
                let address = listener.local_addr()?.to_string();
                let node = NodeId::new(node).context("nodes are numbered from 1")?;
                let listener = Some(listener);
                self.role = Some(Role {
                    node,
                    nodes,
                    directory,
                    workers,
                    apply_threads,
                    certificates,
                    listener,
                });
                return Ok(Answer::Listening { address });
            }
            Order::Join(setup) => {
                let role = self.role.take().context("the node has no role yet")?;
                self.running = Some(Running::start(role, &setup).await?);
            }
            Order::Serve(setup) => {
                let role = self.role.take().context("the node has no role yet")?;
                self.running = Some(Running::serve(role, setup).await?);
            }
            Order::AwaitLeaders => {
                let led = |group: &Group| group.status().leader.is_some();
                self.running()?.until("a group is without a leader", led).await?;
            }
            Order::AwaitHibernation => {
                self.running()?
                    .until("a group is awake", |group| group.status().hibernating)
                    .await?;
            }
            Order::Spread => self.running()?.spread().await?,
            Order::Usage => return Ok(Answer::Usage(self.running()?.lap())),
            Order::Do { name, task } => {
                return Ok(Answer::Did(parts.execute(&name, task, self).await?));
            }
            Order::End => {}
        }
        Ok(Answer::Done)
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
        let settings = |all: PathBuf| certificates::settings_of(&all, role.node);
        config.tls = role.certificates.and_then(settings);
        config.workers = role.workers;
        config.apply_threads = role.apply_threads;
        config.replace_after = setup.replace_after.unwrap_or(config.replace_after);
        let server = Server::start(config, role.listener).await?;
        let host = server.host().clone();
        let groups = host.runtime().groups();
        Ok(Self { server: Some(server), ..Self::new(host, groups, setup.voters) })
    }

    fn new(host: Host, groups: Vec<Group>, voters: u64) -> Self {
        let (before, started) = (Usage::default(), Instant::now());
        let mut running = Self { host, groups, voters, parts: None, server: None, before, started };
        running.before = running.used();
        running
    }

    async fn end(self) {
        match self.server {
            Some(server) => server.shutdown(Shutdown::Immediate).await,
            None => self.host.shutdown(Shutdown::Immediate).await,
        }
        // What the tables keep in memory is flushed when the last handle goes.
        drop(self.parts);
    }

    /// What was used since the last time.
    fn lap(&mut self) -> Usage {
        let used = self.used();
        let since = used.since(&self.before);
        self.before = used;
        since
    }

    /// Waits until this node serves the groups that belong on it.
    pub async fn until_serving(&self) -> anyhow::Result<()> {
        let own = self.host.node_id();
        let serves = |group: &Group| self.home(group) != own || group.status().serving;
        self.until("a group does not serve", serves).await
    }

    async fn until(&self, trouble: &str, done: impl Fn(&Group) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while let Some(group) = self.groups.iter().find(|group| !done(group)) {
            if Instant::now() > deadline {
                bail!("{trouble} after {TIMEOUT:?}: {:?}", group.status());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Group n belongs on node n modulo their number, so that every node leads its share.
    async fn spread(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let misplaced: Vec<_> = self
                .groups
                .iter()
                .filter(|group| group.status().serving && self.home(group) != self.host.node_id())
                .collect();
            if misplaced.is_empty() {
                return Ok(());
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

    /// What was used since the start.
    pub fn used(&self) -> Usage {
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

//! Clusters of servers whose replicas move: tables that the catalog places, writers, and who holds
//! what at the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shardhost::driver::{SYSTEM_GROUP, System};
use shardhost::{Group, GroupId, Host, NodeId};
use shardhost_policy::catalog::{Name, NewGroup, Operation, Subject};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::Server;
use shardhost_server::shards::table::TableCommand;
use tokio::time::Instant;

use super::arguments::{MachineKind, Output, Threads};
use super::flow::{Flow, FlowTask, Flowed};
use super::member::Member;
use super::nodes::{Answer, Layout, Nodes, Order, Setup, Usage};
use super::part::Part;
use super::process::now_ns;
use super::report::Latencies;
use super::snapshot::parse_bytes;
use super::task::Task;

/// What benchmarks of replicas that move ask for.
#[derive(Clone, Debug, Args)]
pub struct ReplicasArguments {
    /// Number of groups, each on three nodes.
    #[arg(long, default_value_t = 10_000)]
    pub groups: u64,
    /// Writes per second, to groups by chance.
    #[arg(long, default_value_t = 1_000)]
    pub rate: u64,
    /// Bytes that each group has at first, for example 8MiB.
    #[arg(long, value_parser = parse_bytes, default_value = "0")]
    pub state: u64,
    /// Seconds after which a node that does not answer is replaced.
    #[arg(long, default_value_t = 3)]
    pub replace_after: u64,
    /// Seconds for which the writers are measured before anything happens.
    #[arg(long, default_value_t = 10)]
    pub calm: u64,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

/// How long anything may take.
pub const TIMEOUT: Duration = Duration::from_secs(1_800);
/// Replicas of a group.
pub const VOTERS: u64 = 3;
/// The first group; none of the map of shards has such a number.
const FIRST_GROUP: u64 = 100;
/// Between two looks at who holds what.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Commands to the catalog under way, and groups that are filled at once.
const CREATED_AT_ONCE: usize = 256;
const FILLED_AT_ONCE: usize = 16;
/// Bytes of a value of a table that is filled: so few that a large state is not all in the log, and goes
/// to a new replica as a snapshot.
const VALUE_BYTES: u64 = 4 << 10;
/// Values of a table that are written at once.
const VALUES_AT_ONCE: usize = 16;
/// How long writes flow before they are measured.
const WARM_UP: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicasTask {
    /// Have the groups created, each on three of these nodes, in turn.
    Create { groups: u64, on: u64 },
    /// Put so many bytes into each group that is led here, but those that have them.
    Fill { bytes: u64, filled: BTreeSet<u64> },
    /// Say where the replicas of the groups are that are led here.
    Look,
}

/// Where the replicas are, of groups that are led where this comes from.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Places {
    /// Groups that are led and served.
    pub led: u64,
    /// Of these: without a change of members under way, and with as many voters as they should have.
    pub whole: u64,
    /// How many replicas nodes hold.
    pub held: BTreeMap<u64, u64>,
    /// Nodes that hold the catalog; nothing where it is not led.
    pub catalog: Vec<u64>,
    /// Bytes of snapshots that came here.
    pub snapshot_bytes: u64,
    /// Groups that were filled.
    pub filled: BTreeSet<u64>,
}

impl Places {
    fn add(&mut self, other: Self) {
        self.led += other.led;
        self.whole += other.whole;
        for (node, count) in other.held {
            *self.held.entry(node).or_default() += count;
        }
        self.catalog.extend(other.catalog);
        self.snapshot_bytes += other.snapshot_bytes;
    }

    /// How many replicas a node holds.
    pub fn on(&self, node: u64) -> u64 {
        self.held.get(&node).copied().unwrap_or(0)
    }

    /// Whether these nodes hold as many replicas as each other, but for one.
    pub fn is_even(&self, nodes: u64) -> bool {
        let counts = || (1..=nodes).map(|node| self.on(node));
        counts().max().unwrap_or(0) - counts().min().unwrap_or(0) <= 1
    }
}

impl Task for ReplicasTask {
    const NAME: &'static str = "replicas";
    type Answer = Places;
}

/// Creates groups, and says where their replicas are.
#[derive(Default)]
pub struct ReplicasNode;

impl Part for ReplicasNode {
    type Task = ReplicasTask;

    async fn execute(&mut self, task: ReplicasTask, node: &mut Member) -> anyhow::Result<Places> {
        let running = node.running()?;
        match task {
            ReplicasTask::Create { groups, on } => {
                let system = running.server.as_ref().and_then(Server::system);
                create(system.context("there is no catalog")?, groups, on).await?;
            }
            ReplicasTask::Fill { bytes, filled } => {
                let filled = fill(&running.host, bytes, &filled).await;
                return Ok(Places { filled, ..Places::default() });
            }
            ReplicasTask::Look => return Ok(look(&running.host)),
        }
        Ok(Places::default())
    }
}

async fn create(system: &System, groups: u64, on: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let all = |count: usize| count as u64 >= on;
    while !system.view().is_some_and(|view| all(view.nodes().len())) {
        ensure!(Instant::now() < deadline, "the nodes do not register");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let kind = Name::new(Subject::Kind, TABLE_KIND)?;
    let created = stream::iter(0..groups).map(|number| {
        let founders = (0..VOTERS).filter_map(|place| NodeId::new(1 + (number + place) % on));
        let new = NewGroup::new(GroupId::new(FIRST_GROUP + number), kind.clone(), founders);
        system.catalog().apply(Operation::CreateGroup(new))
    });
    created.buffer_unordered(CREATED_AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    Ok(())
}

/// Returns those that were filled: others may be led elsewhere by now.
async fn fill(host: &Host, bytes: u64, filled: &BTreeSet<u64>) -> BTreeSet<u64> {
    let left = |group: &Group| group.status().serving && !filled.contains(&group.id().get());
    let led = tables(host).into_iter().filter(left);
    let filled = stream::iter(led).map(|group| async move {
        let puts = stream::iter(0..bytes.div_ceil(VALUE_BYTES)).map(|number| {
            let value = noise(group.id().get() << 32 | number);
            let key = format!("fill-{number:08}");
            let put = TableCommand::Put { key: key.as_bytes(), value: &value }.encode();
            let group = group.clone();
            async move { group.propose(put).await }
        });
        let put = puts.buffer_unordered(VALUES_AT_ONCE).try_for_each(|_| async { Ok(()) });
        put.await.ok().map(|()| group.id().get())
    });
    filled.buffer_unordered(FILLED_AT_ONCE).filter_map(|one| async move { one }).collect().await
}

/// A value that a compressor makes nothing of.
fn noise(seed: u64) -> Vec<u8> {
    let words = (0..VALUE_BYTES / 8).map(|word| shardhost_proto::hash::mix(seed ^ word << 20));
    words.flat_map(u64::to_be_bytes).collect()
}

fn tables(host: &Host) -> Vec<Group> {
    host.groups().into_iter().filter(|group| group.id() != SYSTEM_GROUP).collect()
}

fn look(host: &Host) -> Places {
    let snapshot_bytes = host.transport_stats().snapshot_bytes_received;
    let mut places = Places { snapshot_bytes, ..Places::default() };
    for group in host.groups() {
        let status = group.status();
        if !status.serving {
            continue;
        }
        let members = &status.membership.members;
        let nodes = || members.values().map(|member| member.node.get());
        if group.id() == SYSTEM_GROUP {
            places.catalog = nodes().collect();
            continue;
        }
        let whole = status.membership.incoming.is_none()
            && !status.membership.is_joint()
            && members.len() as u64 == VOTERS
            && members.values().all(|member| member.voter);
        places.led += 1;
        places.whole += u64::from(whole);
        for node in nodes() {
            *places.held.entry(node).or_default() += 1;
        }
    }
    places
}

/// A cluster whose replicas move.
pub struct Cluster {
    pub nodes: Nodes,
    pub arguments: ReplicasArguments,
    setup: Setup,
    flow: Flow,
}

impl Cluster {
    /// Starts the first nodes; those beyond them have their addresses, and come later. Has the groups
    /// created and filled.
    pub async fn start(
        arguments: &ReplicasArguments,
        directory: &std::path::Path,
        nodes: u64,
        first: u64,
    ) -> anyhow::Result<Self> {
        let layout = Layout {
            nodes,
            groups: 0,
            machine: MachineKind::Table,
            threads: arguments.threads,
            tls: false,
        };
        let (nodes, setup) = Nodes::prepare(&layout, directory).await?;
        let (catalog, replace_after) = (true, Some(arguments.replace_after));
        let setup = Setup { catalog, voters: VOTERS, replace_after, ..setup };
        let flow = Flow {
            first_group: FIRST_GROUP,
            machine: MachineKind::Table,
            rate: arguments.rate,
            ..Flow::to_counters(arguments.groups, now_ns()?)
        };
        let mut cluster = Self { nodes, arguments: arguments.clone(), setup, flow };
        // They found the cluster together.
        for node in 1..=first {
            cluster.nodes.one(node)?.order(&Order::Serve(cluster.setup.clone())).await?;
        }
        for node in 1..=first {
            cluster.nodes.one(node)?.answer(TIMEOUT).await?;
        }
        let create = ReplicasTask::Create { groups: arguments.groups, on: first };
        cluster.nodes.one_does(1, &create, TIMEOUT).await?;
        cluster.until(first, |places| places.whole == arguments.groups).await?;
        if arguments.state > 0 {
            cluster.fill(first).await?;
        }
        Ok(cluster)
    }

    /// Fills all groups, wherever they are led.
    async fn fill(&mut self, running: u64) -> anyhow::Result<()> {
        let (mut filled, deadline) = (BTreeSet::new(), Instant::now() + TIMEOUT);
        while (filled.len() as u64) < self.arguments.groups {
            ensure!(Instant::now() < deadline, "{} groups are filled", filled.len());
            for node in 1..=running {
                let bytes = self.arguments.state;
                let fill = ReplicasTask::Fill { bytes, filled: filled.clone() };
                filled.extend(self.nodes.one_does(node, &fill, TIMEOUT).await?.filled);
            }
        }
        Ok(())
    }

    /// Another node comes, and takes part in the writing.
    pub async fn serve(&mut self, node: u64) -> anyhow::Result<()> {
        self.nodes.one(node)?.order(&Order::Serve(self.setup.clone())).await?;
        self.nodes.one(node)?.answer(TIMEOUT).await?;
        self.nodes.one_does(node, &FlowTask::Begin(self.flow), TIMEOUT).await?;
        Ok(())
    }

    /// Begins to write, and measures the writers before anything happens.
    pub async fn write(&mut self, running: u64) -> anyhow::Result<Written> {
        self.flow.from_ns = now_ns()?;
        for node in 1..=running {
            self.nodes.one_does(node, &FlowTask::Begin(self.flow), TIMEOUT).await?;
        }
        tokio::time::sleep(WARM_UP).await;
        self.lap(running).await?;
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(self.arguments.calm)).await;
        let flowed = self.lap(running).await?;
        Ok(Written { flowed, seconds: began.elapsed().as_secs_f64() })
    }

    /// What was written since the last time, on the first nodes that are there still.
    pub async fn lap(&mut self, upto: u64) -> anyhow::Result<Flowed> {
        let mut flowed = Flowed::default();
        for node in self.numbers(upto) {
            flowed.add(self.nodes.one_does(node, &FlowTask::Lap, TIMEOUT).await?);
        }
        Ok(flowed)
    }

    /// What each used since the last time.
    pub async fn usage(&mut self, upto: u64) -> anyhow::Result<Vec<Usage>> {
        let mut used = Vec::new();
        for node in self.numbers(upto) {
            self.nodes.one(node)?.order(&Order::Usage).await?;
            if let Answer::Usage(usage) = self.nodes.one(node)?.answer(TIMEOUT).await? {
                used.push(usage);
            }
        }
        Ok(used)
    }

    fn numbers(&self, upto: u64) -> Vec<u64> {
        self.nodes.nodes.iter().map(|node| node.number).filter(|node| *node <= upto).collect()
    }

    /// Where all replicas are, as the first nodes know.
    pub async fn look(&mut self, upto: u64) -> anyhow::Result<Places> {
        let mut places = Places::default();
        for node in self.numbers(upto) {
            places.add(self.nodes.one_does(node, &ReplicasTask::Look, TIMEOUT).await?);
        }
        Ok(places)
    }

    /// Waits until it is so; returns when it was.
    pub async fn until(
        &mut self,
        upto: u64,
        mut so: impl FnMut(&Places) -> bool,
    ) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let places = self.look(upto).await?;
            if so(&places) {
                return Ok(Instant::now());
            }
            ensure!(Instant::now() < deadline, "not in time: {places:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// What was written, in how many seconds.
pub struct Written {
    pub flowed: Flowed,
    pub seconds: f64,
}

impl Written {
    /// Acknowledged writes per second.
    pub fn rate(&self) -> f64 {
        self.flowed.counted.succeeded as f64 / self.seconds.max(0.001)
    }

    /// Adds the figures under the name of a phase.
    pub fn put_into(&self, figures: &mut Map<String, Value>, phase: &str) {
        let took = Latencies::of(self.flowed.counted.latencies_ns.iter().copied());
        let ms = |quantile| took.quantile(quantile) as f64 / 1e6;
        figures.insert(format!("writes_per_second_{phase}"), json!(self.rate()));
        figures.insert(format!("write_p50_ms_{phase}"), json!(ms(0.5)));
        figures.insert(format!("write_p99_ms_{phase}"), json!(ms(0.99)));
        let lost = self.flowed.refused + self.flowed.unknown;
        figures.insert(format!("writes_not_acknowledged_{phase}"), json!(lost));
    }
}

/// When parts of something were done.
#[derive(Debug, Default)]
pub struct Progress {
    first: Option<f64>,
    half: Option<f64>,
    most: Option<f64>,
}

impl Progress {
    /// So much of it is done, so many seconds after the beginning.
    pub fn note(&mut self, done: u64, all: u64, seconds: f64) {
        for (mark, part) in [(&mut self.first, 0), (&mut self.half, 50), (&mut self.most, 95)] {
            if done > 0 && done * 100 >= all * part {
                mark.get_or_insert(seconds);
            }
        }
    }

    /// Adds the figures.
    pub fn put_into(&self, figures: &mut Map<String, Value>) {
        figures.insert("seconds_until_first".to_owned(), json!(self.first));
        figures.insert("seconds_until_half".to_owned(), json!(self.half));
        figures.insert("seconds_until_95_percent".to_owned(), json!(self.most));
    }
}

//! How long the writes of a group are paused when its leadership is transferred on purpose, and
//! when its members change.
//!
//! Four hosts: three hold every group, the fourth holds nothing until it is added. A steady stream
//! of writes is offered, whatever the answers. One event after the other happens to one of the
//! groups; around each, the longest time between two acknowledged writes of that group is the
//! *stall*. Calm windows of the same length, just before the events, are the reference.

mod client;
mod events;
mod node;
mod offer;
mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::group_of_shard;

pub use node::{StallAnswer, StallNode, StallTask};

use super::arguments::{MachineKind, Mode, Output, Threads};
use super::nodes::{Layout, Nodes, Setup};
use super::process::now_ns;
use super::tally::Counted;
use client::ClientLoad;
use events::{Events, Happened};
use offer::{Ack, Offer};

/// How the stall benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct StallArguments {
    /// The writer. Embedded: every host offers the same stream, and the leader takes it. Client: a
    /// separate process, over gRPC, which learns the leader from refusals.
    #[arg(long, value_enum, default_value_t = Mode::Embedded)]
    pub mode: Mode,
    /// Numbers of groups, each measured on its own; the events happen to the first group.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 48])]
    pub groups: Vec<u64>,
    /// Writes per second to the group that is measured: two are so far apart at least.
    #[arg(long, default_value_t = 1_000)]
    pub rate: u64,
    /// Writes per second to all other groups together.
    #[arg(long, default_value_t = 1_000)]
    pub others: u64,
    /// Number of transfers.
    #[arg(long, default_value_t = 100)]
    pub transfers: u64,
    /// How often a node is added as a learner, promoted, and removed.
    #[arg(long, default_value_t = 34)]
    pub changes: u64,
    /// How often a member is replaced by another, in one joint change.
    #[arg(long, default_value_t = 34)]
    pub replacements: u64,
    /// Milliseconds that are looked at from the begin of each event, if it does not take longer,
    /// and before each as calm.
    #[arg(long, default_value_t = 100)]
    pub window: u64,
    /// Seconds of calm before the first event, for the usual latency.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// What the groups do with a write. Clients always write to tables.
    #[arg(long, value_enum, default_value_t = MachineKind::Trivial)]
    pub machine: MachineKind,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Nodes that hold every group at first.
const VOTERS: u64 = 3;
/// All nodes; the last one holds nothing at first.
const NODES: u64 = 4;

/// Everything that was measured with a number of groups.
struct Measured {
    groups: u64,
    acks: Vec<Ack>,
    /// From when to when nothing happened, before the first event.
    calm: (u64, u64),
    events: Vec<Happened>,
    round_trips: Counted,
    /// Of the hosts; none when they are servers.
    log_writes: Option<Counted>,
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &StallArguments) -> anyhow::Result<()> {
    let data = arguments.output.data()?;
    for groups in &arguments.groups {
        let directory = data.path().join(format!("groups-{groups}"));
        let measured = measure(arguments, *groups, &directory).await?;
        report::print(arguments, &measured);
    }
    Ok(())
}

async fn measure(
    arguments: &StallArguments,
    groups: u64,
    directory: &Path,
) -> anyhow::Result<Measured> {
    let mut cluster = Cluster::start(arguments, groups, directory).await?;
    cluster.offer(arguments, groups).await?;
    // The first second is no measure of anything.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.log_writes().await?;
    let calm_from = now_ns()?;
    let round_trips = cluster.round_trips(Duration::from_secs(arguments.seconds)).await?;
    let calm = (calm_from, now_ns()?);
    let log_writes = cluster.log_writes().await?;
    let events = Events::new(arguments, &mut cluster).run().await?;
    tokio::time::sleep(Duration::from_millis(arguments.window)).await;
    let acks = cluster.acks().await?;
    cluster.nodes.end().await?;
    Ok(Measured { groups, acks, calm, events, round_trips, log_writes })
}

/// The nodes while they run, and who writes.
struct Cluster {
    nodes: Nodes,
    /// The group that events happen to.
    group: u64,
    addresses: Vec<String>,
    client: Option<ClientLoad>,
}

impl Cluster {
    async fn start(
        arguments: &StallArguments,
        groups: u64,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let layout = Layout {
            nodes: NODES,
            groups,
            machine: arguments.machine,
            threads: arguments.threads,
            tls: false,
        };
        let (mut nodes, group, addresses) = match arguments.mode {
            Mode::Embedded => {
                let nodes = Nodes::start_as(&layout, directory, |setup| setup.voters = VOTERS);
                (nodes.await?, 1, Vec::new())
            }
            Mode::Client => {
                let change = |setup: &mut Setup| setup.voters = VOTERS;
                let (nodes, addresses) = Nodes::start_servers(&layout, directory, change).await?;
                let group = group_of_shard(TABLE_KIND, 0).context("there are tables")?;
                (nodes, group.get(), addresses)
            }
        };
        nodes.spread(TIMEOUT).await?;
        Ok(Self { nodes, group, addresses, client: None })
    }

    async fn offer(&mut self, arguments: &StallArguments, groups: u64) -> anyhow::Result<()> {
        let others = if groups > 1 { arguments.others } else { 0 };
        let (group, rate, machine) = (self.group, arguments.rate, arguments.machine);
        match arguments.mode {
            Mode::Embedded => {
                let offer = Offer { group, rate, others, machine };
                self.all(StallTask::Offer(offer)).await?;
            }
            Mode::Client => {
                let addresses = self.addresses.clone();
                self.client = Some(ClientLoad::start(addresses, group, rate, others).await?);
            }
        }
        Ok(())
    }

    async fn one(&mut self, node: u64, task: StallTask) -> anyhow::Result<StallAnswer> {
        self.nodes.one_does(node, &task, TIMEOUT).await
    }

    async fn all(&mut self, task: StallTask) -> anyhow::Result<Vec<StallAnswer>> {
        self.nodes.all_do(&task, TIMEOUT).await
    }

    async fn leader(&mut self) -> anyhow::Result<u64> {
        let group = self.group;
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            for answer in self.all(StallTask::Leader { group }).await? {
                if let StallAnswer::Leader(Some(node)) = answer {
                    return Ok(node);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("group {group} has no leader")
    }

    /// Times rounds of a quorum, for a while.
    async fn round_trips(&mut self, lasting: Duration) -> anyhow::Result<Counted> {
        let (leader, group) = (self.leader().await?, self.group);
        match self.one(leader, StallTask::RoundTrips { group, lasting }).await? {
            StallAnswer::Took(counted) => Ok(counted),
            other => bail!("node {leader} answered {other:?}"),
        }
    }

    /// How long the writes of all logs took since the last time.
    async fn log_writes(&mut self) -> anyhow::Result<Option<Counted>> {
        let mut all = Counted::default();
        for answer in self.all(StallTask::LogWrites).await? {
            match answer {
                StallAnswer::Took(some) => all.add(some),
                _ => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// All acknowledged writes of the group, by the time of their acknowledgement.
    async fn acks(&mut self) -> anyhow::Result<Vec<Ack>> {
        let mut acks = match self.client.take() {
            Some(client) => client.end().await,
            None => Vec::new(),
        };
        for answer in self.all(StallTask::Acks).await? {
            if let StallAnswer::Acks(some) = answer {
                acks.extend(some);
            }
        }
        acks.sort_unstable_by_key(|ack| ack.at_ns);
        Ok(acks)
    }
}

/// What happens to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Transfer { to: u64 },
    AddLearner { node: u64 },
    Promote { node: u64 },
    Remove { node: u64 },
    Replace { old: u64, new: u64 },
}

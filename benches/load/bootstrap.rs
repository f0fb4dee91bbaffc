//! How soon the shards of a fresh cluster are led, and one more that is created by hand; on request
//! without a catalog, where every node creates its replicas independently.

use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shardhost::driver::{SYSTEM_GROUP, System};
use shardhost::{Group, GroupId, Host, NodeId};
use shardhost_policy::catalog::{Name, NewGroup, Operation, Subject};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::Server;
use tokio::time::Instant;

use super::arguments::{MachineKind, Output, Threads};
use super::member::Member;
use super::nodes::{Layout, Nodes, Order, Setup, Usage};
use super::part::Part;
use super::process::now_ns;
use super::report;
use super::task::Task;

/// How the benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct BootstrapArguments {
    /// Shards of the configuration, each on every node.
    #[arg(long, default_value_t = 10_000)]
    pub groups: u64,
    /// Groups that are created by hand afterwards, one after the other.
    #[arg(long, default_value_t = 10)]
    pub by_hand: u64,
    /// Seconds to measure what the hosts use once all groups hibernate; 0: not at all.
    #[arg(long, default_value_t = 0)]
    pub seconds: u64,
    /// Let every node create its replicas independently; none is created by hand.
    #[arg(long)]
    pub without_catalog: bool,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundTask {
    /// Wait until so many groups are here and each has a leader.
    AwaitLed { groups: u64 },
    /// Have a group created on the first nodes.
    Create { group: u64, voters: u64 },
    /// Wait until this group is here and has a leader.
    AwaitOne { group: u64 },
}

/// When it was so, on the clock of this machine, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Founded {
    held_ns: u64,
    /// Its leader is known here.
    led_ns: u64,
}

const NODES: u64 = 3;
/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Between two looks at all groups, and at one.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_AT_ONE_EVERY: Duration = Duration::from_millis(1);
/// The first group that is created by hand.
const FIRST_BY_HAND: u64 = 70;
/// For what follows the founding to come to an end before anything else is measured.
const SETTLE: Duration = Duration::from_secs(5);

impl Task for FoundTask {
    const NAME: &'static str = "bootstrap";
    type Answer = Founded;
}

/// Watches groups come.
#[derive(Default)]
pub struct FoundNode;

impl Part for FoundNode {
    type Task = FoundTask;

    async fn execute(&mut self, task: FoundTask, node: &mut Member) -> anyhow::Result<Founded> {
        let running = node.running()?;
        let system = running.server.as_ref().and_then(Server::system);
        let founded = execute(task, &running.host, system).await?;
        // Those that came since the start.
        running.groups = shards(&running.host);
        Ok(founded)
    }
}

async fn execute(task: FoundTask, host: &Host, system: Option<&System>) -> anyhow::Result<Founded> {
    match task {
        FoundTask::AwaitLed { groups } => await_led(host, groups as usize).await,
        FoundTask::Create { group, voters } => {
            let system = system.context("there is no catalog")?;
            let kind = Name::new(Subject::Kind, TABLE_KIND)?;
            let voters = (1..=voters).filter_map(NodeId::new);
            let began = now_ns()?;
            let new = NewGroup::new(GroupId::new(group), kind, voters);
            system.catalog().apply(Operation::CreateGroup(new)).await?;
            Ok(Founded { held_ns: began, led_ns: now_ns()? })
        }
        FoundTask::AwaitOne { group } => await_one(host, GroupId::new(group)).await,
    }
}

async fn await_led(host: &Host, groups: usize) -> anyhow::Result<Founded> {
    let deadline = Instant::now() + TIMEOUT;
    let mut founded = Founded::default();
    loop {
        let here = shards(host);
        if here.len() >= groups && founded.held_ns == 0 {
            founded.held_ns = now_ns()?;
        }
        if here.len() >= groups && here.iter().all(has_leader) {
            return Ok(Founded { led_ns: now_ns()?, ..founded });
        }
        ensure!(Instant::now() < deadline, "{} of {groups} groups are here", here.len());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// All groups here but that of the catalog.
fn shards(host: &Host) -> Vec<Group> {
    let groups = host.runtime().groups();
    groups.into_iter().filter(|group| group.id() != SYSTEM_GROUP).collect()
}

fn has_leader(group: &Group) -> bool {
    group.status().leader.is_some()
}

async fn await_one(host: &Host, group: GroupId) -> anyhow::Result<Founded> {
    let deadline = Instant::now() + TIMEOUT;
    let mut founded = Founded::default();
    loop {
        let here = host.group(group);
        if here.is_some() && founded.held_ns == 0 {
            founded.held_ns = now_ns()?;
        }
        if here.as_ref().is_some_and(has_leader) {
            return Ok(Founded { led_ns: now_ns()?, ..founded });
        }
        ensure!(Instant::now() < deadline, "group {group} is not here, or has no leader");
        tokio::time::sleep(LOOK_AT_ONE_EVERY).await;
    }
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &BootstrapArguments) -> anyhow::Result<()> {
    let data = arguments.output.data()?;
    let layout = Layout {
        nodes: NODES,
        groups: arguments.groups,
        machine: MachineKind::Table,
        threads: arguments.threads,
        tls: false,
    };
    let (mut nodes, setup) = Nodes::prepare(&layout, data.path()).await?;
    let began = now_ns()?;
    let setup = Setup { catalog: !arguments.without_catalog, ..setup };
    nodes.all(&Order::Serve(setup), TIMEOUT).await?;
    let all = FoundTask::AwaitLed { groups: arguments.groups };
    let founded = latest(&nodes.all_do(&all, TIMEOUT).await?);
    let founding = nodes.usage().await?;
    let by_hand = by_hand(&mut nodes, arguments).await?;
    let resting = at_rest(&mut nodes, arguments).await?;
    nodes.end().await?;

    let seconds = |moment: u64| Duration::from_nanos(moment.saturating_sub(began)).as_secs_f64();
    let most = |usage: &[Usage], pick: fn(&Usage) -> f64| usage.iter().map(pick).reduce(f64::max);
    let percent = |one: &Usage| one.cpu_seconds / one.seconds * 100.0;
    let median = |pick: fn(&Founded) -> u64| by_hand.get(by_hand.len() / 2).map(pick);
    let figures = json!({
        "groups": arguments.groups,
        "catalog": !arguments.without_catalog,
        "seconds_until_all_held": seconds(founded.held_ns),
        "seconds_until_all_led": seconds(founded.led_ns),
        "cpu_seconds_of_a_host_at_most": most(&founding, |one| one.cpu_seconds),
        "log_writes_of_a_host_at_most": most(&founding, |one| one.log_writes as f64),
        "by_hand_held_ms": median(|one| one.held_ns).map(millis),
        "by_hand_led_ms": median(|one| one.led_ns).map(millis),
        "by_hand_led_ms_at_most": by_hand.iter().map(|one| one.led_ns).max().map(millis),
        "cpu_percent_of_a_core_at_rest": most(&resting, percent),
    });
    report::print(&figures, arguments.output.json);
    Ok(())
}

fn millis(nanos: u64) -> f64 {
    Duration::from_nanos(nanos).as_secs_f64() * 1_000.0
}

/// When it was so everywhere.
fn latest(answers: &[Founded]) -> Founded {
    let mut latest = Founded::default();
    for one in answers {
        latest.held_ns = latest.held_ns.max(one.held_ns);
        latest.led_ns = latest.led_ns.max(one.led_ns);
    }
    latest
}

/// How long each group took from the order until every node holds it, and knows its leader;
/// ascending.
async fn by_hand(
    nodes: &mut Nodes,
    arguments: &BootstrapArguments,
) -> anyhow::Result<Vec<Founded>> {
    let mut took = Vec::new();
    if arguments.without_catalog {
        return Ok(took);
    }
    tokio::time::sleep(SETTLE).await;
    for group in FIRST_BY_HAND..FIRST_BY_HAND + arguments.by_hand {
        let create = FoundTask::Create { group, voters: NODES };
        let created = nodes.one_does(1 + group % NODES, &create, TIMEOUT).await?;
        let founded = latest(&nodes.all_do(&FoundTask::AwaitOne { group }, TIMEOUT).await?);
        let since = |moment: u64| moment.saturating_sub(created.held_ns);
        took.push(Founded { held_ns: since(founded.held_ns), led_ns: since(founded.led_ns) });
    }
    took.sort_unstable_by_key(|one| one.led_ns);
    Ok(took)
}

/// What the hosts use while all groups hibernate.
async fn at_rest(nodes: &mut Nodes, arguments: &BootstrapArguments) -> anyhow::Result<Vec<Usage>> {
    if arguments.seconds == 0 {
        return Ok(Vec::new());
    }
    nodes.all(&Order::AwaitHibernation, TIMEOUT).await?;
    tokio::time::sleep(SETTLE).await;
    nodes.usage().await?;
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    nodes.usage().await
}

//! How long it takes from all leaders on one node to the best placement: views of all nodes, plans,
//! and transfers, in rounds, until there is nothing left to move.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::Args;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shardhost::driver::view::local_view;
use shardhost::{GroupId, Host, NodeId};
use shardhost_policy::inputs::view::merge;
use shardhost_policy::planner::{self, Plan, Settings, Snapshot};

use super::crowd::{CrowdArguments, LEADER, OTHERS, TIMEOUT};
use super::member::Member;
use super::nodes::Nodes;
use super::part::Part;
use super::report;
use super::task::Task;

/// How the benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct BalanceArguments {
    /// Transfers under way at a node.
    #[arg(long, default_value_t = 256)]
    pub window: usize,
    #[command(flatten)]
    pub crowd: CrowdArguments,
}

const MAX_ROUNDS: u64 = 8;
/// Between two looks at whether the leader knows how far the others are.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// One group in so many may be led by another node at first.
const STRAYS: u64 = 100;
/// Entries that a successor may lack.
const MAX_LAG: u64 = 1_024;
/// With more groups than this the checker, which is plain rather than fast, takes too long.
const CHECKED_GROUPS: u64 = 1_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceTask {
    View,
    /// Hand these groups to these nodes, so many at a time.
    Move {
        to: Vec<(u64, u64)>,
        window: usize,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceAnswer {
    View(Snapshot),
    /// How many went, and why the others did not.
    Moved {
        moved: u64,
        failed: Vec<String>,
    },
}

impl Task for BalanceTask {
    const NAME: &'static str = "balance";
    type Answer = BalanceAnswer;
}

/// Reports what a node knows, and moves its leaderships.
#[derive(Default)]
pub struct BalanceNode;

impl Part for BalanceNode {
    type Task = BalanceTask;

    async fn execute(
        &mut self,
        task: BalanceTask,
        node: &mut Member,
    ) -> anyhow::Result<BalanceAnswer> {
        Ok(execute(task, &node.running()?.host).await)
    }
}

async fn execute(task: BalanceTask, host: &Host) -> BalanceAnswer {
    match task {
        BalanceTask::View => BalanceAnswer::View(local_view(host, 0, Settings::default())),
        BalanceTask::Move { to, window } => {
            let moves = to.into_iter().map(|(group, to)| hand_over(host, group, to));
            let outcomes: Vec<_> = stream::iter(moves).buffer_unordered(window).collect().await;
            let (moved, failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
            let failed = failed.into_iter().filter_map(Result::err).collect();
            BalanceAnswer::Moved { moved: moved.len() as u64, failed }
        }
    }
}

async fn hand_over(host: &Host, group: u64, to: u64) -> Result<(), String> {
    let to = NodeId::new(to).ok_or("nodes are numbered from 1")?;
    let found = host.group(GroupId::new(group));
    let found = found.ok_or_else(|| format!("group {group} is not here"))?;
    let moved = found.transfer_to_first_fit([to], MAX_LAG).await;
    moved.map(|_| ()).map_err(|error| format!("group {group}: {error}"))
}

#[derive(Debug, Default)]
struct Balanced {
    /// Plans that were made, the last of which finds nothing to move.
    rounds: u64,
    moved: u64,
    /// Of all passes: refused moves are planned again.
    failed: Vec<String>,
    planning: Duration,
    took: Duration,
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &BalanceArguments) -> anyhow::Result<()> {
    let (mut nodes, _data) = arguments.crowd.gather().await?;
    let first = await_settled(&mut nodes, arguments.crowd.groups).await?;
    let fewest = fewest_moves(leads(&first));
    let (balanced, last) = balance(&mut nodes, first, arguments).await?;
    nodes.end().await?;
    let [one, two, three] = leads(&last);
    let figures = json!({
        "groups": arguments.crowd.groups,
        "planning_rounds": balanced.rounds,
        "moves": balanced.moved,
        "fewest_moves": fewest,
        "failed": balanced.failed.len(),
        "planning_ms": balanced.planning.as_secs_f64() * 1e3,
        "seconds": balanced.took.as_secs_f64(),
        "led_by_first_after": one,
        "led_by_second_after": two,
        "led_by_third_after": three,
    });
    report::print(&figures, arguments.crowd.output.json);
    balanced.failed.iter().take(5).for_each(|error| eprintln!("not moved: {error}"));
    Ok(())
}

/// What each of the three nodes leads.
fn leads(snapshot: &Snapshot) -> [u64; 3] {
    let led_by = |node: u64| {
        let led = snapshot.groups.iter().filter(|group| group.leader == NodeId::new(node));
        led.count() as u64
    };
    [led_by(1), led_by(2), led_by(3)]
}

/// The fewest moves after which no two nodes differ by more than one: those that lead most keep the
/// remainder.
fn fewest_moves(mut leads: [u64; 3]) -> u64 {
    leads.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
    let (sum, parts) = (leads.iter().sum::<u64>(), leads.len() as u64);
    let part = |place: u64| sum / parts + u64::from(place < sum % parts);
    (0..).zip(leads).map(|(place, count)| count.saturating_sub(part(place))).sum()
}

async fn balance(
    nodes: &mut Nodes,
    mut snapshot: Snapshot,
    arguments: &BalanceArguments,
) -> anyhow::Result<(Balanced, Snapshot)> {
    let (began, mut balanced) = (Instant::now(), Balanced::default());
    loop {
        let planning = Instant::now();
        let plan = planner::plan(&snapshot)?;
        balanced.planning += planning.elapsed();
        balanced.rounds += 1;
        if arguments.crowd.groups <= CHECKED_GROUPS {
            planner::check(&snapshot, &plan)?;
        }
        if plan.moves.is_empty() {
            balanced.took = began.elapsed();
            return Ok((balanced, snapshot));
        }
        ensure!(balanced.rounds <= MAX_ROUNDS, "{} moves are left", plan.moves.len());
        move_all(nodes, &plan, arguments.window, &mut balanced).await?;
        snapshot = look(nodes, arguments.crowd.groups).await?;
    }
}

async fn move_all(
    nodes: &mut Nodes,
    plan: &Plan,
    window: usize,
    balanced: &mut Balanced,
) -> anyhow::Result<()> {
    for from in [LEADER].into_iter().chain(OTHERS) {
        let moves = plan.moves.iter().filter(|step| step.from.get() == from);
        let to: Vec<(u64, u64)> = moves.map(|step| (step.group.get(), step.to.get())).collect();
        if to.is_empty() {
            continue;
        }
        match nodes.one_does(from, &BalanceTask::Move { to, window }, TIMEOUT).await? {
            BalanceAnswer::Moved { moved, failed } => {
                balanced.moved += moved;
                balanced.failed.extend(failed);
            }
            other @ BalanceAnswer::View(_) => bail!("node {from} answers {other:?}"),
        }
    }
    Ok(())
}

/// What all know, with no limit on the moves of a round.
async fn look(nodes: &mut Nodes, groups: u64) -> anyhow::Result<Snapshot> {
    let answers = nodes.all_do(&BalanceTask::View, TIMEOUT).await?;
    let mut views = Vec::new();
    for (node, answer) in (1..).zip(answers) {
        let BalanceAnswer::View(view) = answer else { bail!("node {node} answers {answer:?}") };
        views.push((NodeId::must(node), view));
    }
    let mut snapshot = merge(views);
    let all = u32::try_from(groups)?;
    snapshot.settings = Settings {
        cool_down_ms: 0,
        warm_up_ms: 0,
        max_lag_entries: MAX_LAG,
        moves_per_round: all,
        out_per_node: all,
        in_per_node: all,
        ..Settings::default()
    };
    Ok(snapshot)
}

/// Waits until every group is led, and the first node leads nearly all of them and knows how far the
/// others are: here and there another node may have been elected.
async fn await_settled(nodes: &mut Nodes, groups: u64) -> anyhow::Result<Snapshot> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let snapshot = look(nodes, groups).await?;
        let led = snapshot.groups.iter().filter(|group| group.leader.is_some()).count() as u64;
        let settled = |group: &&planner::Group| {
            group.leader == NodeId::new(LEADER) && group.voters.iter().all(|one| one.lag.is_some())
        };
        let settled = snapshot.groups.iter().filter(settled).count() as u64;
        if led == groups && settled >= groups - groups / STRAYS {
            return Ok(snapshot);
        }
        ensure!(Instant::now() < deadline, "node {LEADER} leads {settled} of {groups} groups");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_moves_are_those_beyond_a_part_each() {
        assert_eq!(fewest_moves([10_000, 0, 0]), 6_666);
        assert_eq!(fewest_moves([0, 9, 0]), 6);
        assert_eq!(fewest_moves([3, 4, 3]), 0);
        assert_eq!(fewest_moves([5, 0, 2]), 2);
    }
}

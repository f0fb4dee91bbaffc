//! `shardhost member fill`: a node that joined gets its fair part of the replicas, each in the
//! place of another node's.
//!
//! [`choose`] decides which, [`carry_out`] has one after the other replaced in every group. Changes
//! in progress are recorded in the groups, so it may be stopped and started again at any time.

mod choose;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use shardhost_proto::admin::{HostStatus, ReplaceMemberRequest};

use self::choose::{Nodes, Shard, Step};
use super::change::unconfirmed;
use super::ended::PARTLY;
use super::group::config_index;
use super::member::Replacing;
use super::observe::{Leader, Observer};
use super::output::{Column, number, table};
use super::reached::{REQUEST_MS, Reached, hand_over};
use super::target::Target;

/// Steps and troubles that are shown.
const SHOWN: usize = 20;
/// Replicas that the node catches up with at a time.
const WINDOW: usize = 16;

/// Which node is filled, and how.
#[derive(Clone, Debug, Args)]
pub struct FillArguments {
    /// The node that gets replicas.
    node: u64,
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

/// The result.
#[derive(Debug, Default)]
pub struct Filled {
    /// Replicas that the node got.
    pub gained: u64,
    /// What went wrong, by group.
    pub failed: BTreeMap<u64, String>,
}

/// Fills a node, or shows what that would do.
pub async fn run(arguments: &FillArguments) -> anyhow::Result<ExitCode> {
    let FillArguments { node, dry_run, target } = arguments;
    let survey = Survey::new(*node, target).await?;
    let steps = survey.steps(*node);
    if *dry_run {
        survey.show(*node, &steps, target.json);
        return Ok(ExitCode::SUCCESS);
    }
    let unled = survey.unled;
    let filled = carry_out(*node, steps, survey.cluster, target.timeout()).await;
    report(*node, &filled, &unled, target.json);
    Ok(match (filled.failed.is_empty(), unled.is_empty()) {
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(PARTLY),
        (true, true) => ExitCode::SUCCESS,
    })
}

/// Fills a node of a cluster. Each replica may take as long as the target is tried for.
pub async fn fill(node: u64, target: &Target) -> anyhow::Result<Filled> {
    let survey = Survey::new(node, target).await?;
    let steps = survey.steps(node);
    let mut filled = carry_out(node, steps, survey.cluster, target.timeout()).await;
    let unled = survey.unled.into_iter();
    filled.failed.extend(unled.map(|group| (group, "it has no leader".to_owned())));
    Ok(filled)
}

async fn carry_out(new: u64, steps: Vec<Step>, cluster: Reached, within: Duration) -> Filled {
    let cluster = &cluster;
    let replace = |step: Step| async move { (step, replace(cluster, step, new, within).await) };
    let mut outcomes = stream::iter(steps).map(replace).buffer_unordered(WINDOW);
    let mut filled = Filled::default();
    while let Some((step, outcome)) = outcomes.next().await {
        match outcome {
            Ok(()) => filled.gained += 1,
            Err(error) => drop(filled.failed.insert(step.group, format!("{error:#}"))),
        }
    }
    filled
}

/// Replaces one member, and waits until that is done.
async fn replace(cluster: &Reached, step: Step, new: u64, within: Duration) -> anyhow::Result<()> {
    let Step { group, old } = step;
    cluster
        .carry_on(group, within, async |leader, status| {
            match Replacing::of(status, old, new) {
                Replacing::Done => return Ok(true),
                Replacing::UnderWay => return Ok(false),
                Replacing::NotBegun => {}
            }
            if leader.status.node == old {
                hand_over(leader, group, status).await?;
                return Ok(false);
            }
            let request = ReplaceMemberRequest {
                group,
                old_node: old,
                new_node: new,
                // The configuration that was examined is the one that is changed.
                expect: config_index(status),
                timeout_ms: REQUEST_MS,
            };
            let begun = leader.admin.clone().replace_member(request).await;
            begun.map_err(|status| unconfirmed(&leader.address, &status))?;
            Ok(false)
        })
        .await
}

/// What the nodes that answer say of the shards, and of what they have.
struct Survey {
    cluster: Reached,
    nodes: Nodes,
    shards: Vec<Shard>,
    /// Shards without a leader that could replace a member: they are left as they are.
    unled: BTreeSet<u64>,
}

impl Survey {
    async fn new(node: u64, target: &Target) -> anyhow::Result<Self> {
        let cluster = Reached::all(target).await?;
        cluster.require(node)?;
        let reached = cluster.nodes();
        let addresses = reached.iter().map(|(id, one)| (*id, one.address.clone())).collect();
        let (leaders, unled) = Observer::new(&addresses, 0)?.led_within(target.timeout()).await;
        let nodes = reached.values().map(|one| (one.status.node, capabilities(&one.status)));
        let nodes = nodes.collect();
        let shards = leaders.iter().filter(|(_, leader)| leader.settled).map(shard).collect();
        Ok(Self { cluster, nodes, shards, unled })
    }

    fn steps(&self, new: u64) -> Vec<Step> {
        choose::choose(&self.shards, &self.nodes, new)
    }

    fn show(&self, new: u64, steps: &[Step], as_json: bool) {
        let before = choose::held(&self.shards, &self.nodes);
        let given = |node: u64| steps.iter().filter(|step| step.old == node).count() as u64;
        let after = |node: u64, held: u64| match node == new {
            true => held + steps.len() as u64,
            false => held - given(node),
        };
        let after: BTreeMap<u64, u64> =
            before.iter().map(|(node, held)| (*node, after(*node, *held))).collect();
        if as_json {
            let steps: Vec<Value> = steps.iter().map(|step| step_json(*step, new)).collect();
            let unled = &self.unled;
            return println!(
                "{}",
                json!({
                    "before": before, "after": after, "steps": steps, "groups_without_leader": unled
                })
            );
        }
        let columns =
            [Column::Right("node"), Column::Right("replicas"), Column::Right("afterwards")];
        let rows = before.iter().map(|(node, held)| {
            vec![node.to_string(), number(*held), number(after.get(node).copied().unwrap_or(0))]
        });
        println!("{}", table(&columns, rows));
        for Step { group, old } in steps.iter().take(SHOWN) {
            println!("group {group}: node {new} in the place of node {old}");
        }
        if steps.len() > SHOWN {
            println!("and {} more", number((steps.len() - SHOWN) as u64));
        }
        show_unled(&self.unled);
    }
}

fn show_unled(unled: &BTreeSet<u64>) {
    if unled.is_empty() {
        return;
    }
    let shown: Vec<String> = unled.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if unled.len() > SHOWN { " and more" } else { "" };
    println!(
        "{} groups have no leader and stay as they are ({}{more}); run this again when they have one",
        number(unled.len() as u64),
        shown.join(", ")
    );
}

fn shard((group, leader): (&u64, &Leader)) -> Shard {
    let Leader { node, voters, requires, .. } = leader.clone();
    Shard { group: *group, voters, leader: node, requires }
}

fn capabilities(status: &HostStatus) -> BTreeSet<String> {
    status
        .advertisement
        .iter()
        .flat_map(|advertisement| advertisement.capabilities.iter().cloned())
        .collect()
}

fn step_json(Step { group, old }: Step, new: u64) -> Value {
    json!({ "group": group, "old": old, "new": new })
}

fn report(node: u64, filled: &Filled, unled: &BTreeSet<u64>, as_json: bool) {
    if as_json {
        let (gained, failed) = (filled.gained, &filled.failed);
        return println!(
            "{}",
            json!({
                "node": node, "gained": gained, "failed": failed, "groups_without_leader": unled
            })
        );
    }
    println!("node {node} got {} replicas", number(filled.gained));
    for (group, error) in filled.failed.iter().take(SHOWN) {
        println!("group {group}: {error}");
    }
    show_unled(unled);
}

//! `shardhost member fill`: a node that joined gets its fair part of the replicas, each in the
//! place of another node's.
//!
//! [`choose`] decides which, [`carry_out`] has one after the other replaced in every group. Changes
//! in progress are recorded in the groups, so it may be stopped and started again at any time.

mod choose;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use shardhost_proto::admin::{GroupStatus, HostStatus, ReplaceMemberRequest};
use tokio::time::Instant;

pub use self::choose::Step;
use self::choose::{Nodes, Shard};
use super::change::unconfirmed;
use super::ended::{PARTLY, code_of, partly};
use super::group_status::config_index;
use super::observe::{Leader, Observer};
use super::output::{Column, by_count, counted, number, table};
use super::reached::{REQUEST_MS, Reached, hand_over, successors};
use super::replacing::Replacing;
use super::target::{Node, Target, all_groups, in_time};

/// Steps and troubles that are shown.
const SHOWN: usize = 20;
/// Replicas that the node catches up with at a time.
const WINDOW: usize = 16;
/// A leader that refuses to hand over for so long is replaced where it is. Voters may lag, or be asked by
/// others, for a moment.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which node is filled, and how.
#[derive(Clone, Debug, Args)]
pub struct FillArguments {
    /// The node that gets replicas.
    node: u64,
    /// Show what would be done, and do nothing. Ends with exit code 3 when groups would stay as they are.
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
    /// Those of them in which the replacement may have begun, and then continues.
    continues: BTreeSet<u64>,
}

impl Filled {
    fn note(&mut self, group: u64, error: &anyhow::Error) {
        self.failed.insert(group, format!("{error:#}"));
        if code_of(error) == PARTLY {
            self.continues.insert(group);
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.len() > self.continues.len()
    }
}

/// Fills a node, or shows what that would do.
pub async fn run(arguments: &FillArguments) -> anyhow::Result<ExitCode> {
    let FillArguments { node, dry_run, target } = arguments;
    let survey = Survey::new(*node, target).await?;
    let steps = survey.steps(*node);
    if *dry_run {
        survey.show(*node, &steps, target.json);
        let whole = survey.left.is_empty();
        return Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) });
    }
    let left = survey.left;
    let filled = carry_out(*node, steps, survey.cluster, target.timeout()).await;
    report(*node, &filled, &left, target.json);
    Ok(match (filled.has_failed(), filled.failed.is_empty() && left.is_empty()) {
        (true, _) => ExitCode::FAILURE,
        (false, false) => ExitCode::from(PARTLY),
        (false, true) => ExitCode::SUCCESS,
    })
}

/// Fills a node of a cluster. Each replica may take as long as the target is tried for.
pub async fn fill(node: u64, target: &Target) -> anyhow::Result<Filled> {
    let survey = Survey::new(node, target).await?;
    let steps = survey.steps(node);
    let mut filled = carry_out(node, steps, survey.cluster, target.timeout()).await;
    let unled = survey.left.unled.into_iter();
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
            Err(error) => filled.note(step.group, &error),
        }
    }
    filled
}

/// Replaces one member, and waits until that is done.
async fn replace(cluster: &Reached, step: Step, new: u64, within: Duration) -> anyhow::Result<()> {
    let replacement = Replacement::new(step, new);
    let next = async |leader: &Node, status: &GroupStatus| replacement.next(leader, status).await;
    cluster.carry_on(step.group, within, next).await
}

/// The replacement of one member.
#[derive(Debug)]
pub struct Replacement {
    step: Step,
    new: u64,
    patience: Patience,
}

impl Replacement {
    /// Nothing of it was done.
    pub fn new(step: Step, new: u64) -> Self {
        Self { step, new, patience: Patience::default() }
    }

    /// Asks a leader for what comes next; whether that is nothing.
    ///
    /// A leader that is to go hands over before the replacement begins. One that cannot, because it is the
    /// only voter or the only one that may lead, begins it where it is: the change that gives the new one
    /// its vote removes the leader.
    pub async fn next(&self, leader: &Node, status: &GroupStatus) -> anyhow::Result<bool> {
        let Self { step: Step { group, old }, new, patience } = self;
        match Replacing::of(status, *old, *new) {
            Replacing::Done => return Ok(true),
            Replacing::UnderWay => return Err(partly("it catches up")),
            Replacing::NotBegun => {}
        }
        if leader.status.node == *old && !successors(status, *old).is_empty() {
            match hand_over(leader, *group, status).await {
                Ok(()) => return Ok(false),
                Err(error) if !patience.is_over(Instant::now()) => return Err(error),
                Err(_) => {}
            }
        }
        let request = ReplaceMemberRequest {
            group: *group,
            old_node: *old,
            new_node: *new,
            // The configuration that was examined is the one that is changed.
            expect: config_index(status),
            timeout_ms: REQUEST_MS,
        };
        let begun = leader.admin.clone().replace_member(request).await;
        begun.map_err(|status| unconfirmed(&leader.address, &status))?;
        Ok(false)
    }
}

/// How long it is tried to have a leader hand over that refuses.
#[derive(Debug, Default)]
struct Patience {
    /// The first refusal.
    since: Mutex<Option<Instant>>,
}

impl Patience {
    /// Notes a refusal. Whether the leader has refused for long enough.
    fn is_over(&self, now: Instant) -> bool {
        now >= *self.since.lock().get_or_insert(now) + PATIENCE
    }
}

/// What the nodes that answer say of the shards, and of what they have.
struct Survey {
    cluster: Reached,
    nodes: Nodes,
    shards: Vec<Shard>,
    left: Left,
}

/// Shards that are left as they are.
#[derive(Debug, Default)]
struct Left {
    /// No leader could replace a member.
    unled: BTreeSet<u64>,
    /// Another change of members is under way.
    changing: BTreeSet<u64>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.unled.is_empty() && self.changing.is_empty()
    }

    fn show(&self) {
        let unled = ["has no leader and stays as it is", "have no leader and stay as they are"];
        show_left(&self.unled, unled, "none lacks one");
        let changing =
            ["changes its members and stays as it is", "change their members and stay as they are"];
        show_left(&self.changing, changing, "that is over");
    }
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
        let shards: Vec<Shard> =
            leaders.iter().filter(|(_, leader)| leader.settled).map(shard).collect();
        if let Some(one) = reached.get(&node) {
            let mut admin = one.admin.clone();
            let held = in_time(&one.address, all_groups(&mut admin)).await?;
            check_holds(node, &shards, &held.iter().map(|status| status.group).collect())?;
        }
        let changing = leaders.iter().filter(|(_, leader)| !leader.settled);
        let left = Left { unled, changing: changing.map(|(group, _)| *group).collect() };
        Ok(Self { cluster, nodes, shards, left })
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
            let Left { unled, changing } = &self.left;
            return println!(
                "{}",
                json!({
                    "before": before, "after": after, "steps": steps,
                    "groups_without_leader": unled, "groups_changing": changing
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
        self.left.show();
    }
}

/// Fails where the node is a voter of groups of which it holds no replica: what it lacks is not a part of
/// all replicas, but its own.
fn check_holds(node: u64, shards: &[Shard], held: &BTreeSet<u64>) -> anyhow::Result<()> {
    let lacks = |shard: &&Shard| shard.voters.contains(&node) && !held.contains(&shard.group);
    let missing: Vec<String> =
        shards.iter().filter(lacks).map(|shard| shard.group.to_string()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let more = if missing.len() > SHOWN { " and more" } else { "" };
    bail!(
        "node {node} is a member of {} of which it holds no replica ({}{more}): its disk was lost, or \
         they are on their way; `shardhost member rebuild {node}` gives it new ones. Fill it then",
        counted(missing.len() as u64, "group"),
        missing[..missing.len().min(SHOWN)].join(", ")
    )
}

/// `why`: of one group, and of several.
fn show_left(groups: &BTreeSet<u64>, [one, several]: [&str; 2], until: &str) {
    if groups.is_empty() {
        return;
    }
    let shown: Vec<String> = groups.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if groups.len() > SHOWN { " and more" } else { "" };
    let count = groups.len() as u64;
    let why = by_count(count, one, several);
    println!(
        "{} {why} ({}{more}); run this again when {until}",
        counted(count, "group"),
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

fn report(node: u64, filled: &Filled, left: &Left, as_json: bool) {
    if as_json {
        let (gained, failed) = (filled.gained, &filled.failed);
        let Left { unled, changing } = left;
        return println!(
            "{}",
            json!({
                "node": node, "gained": gained, "failed": failed,
                "groups_without_leader": unled, "groups_changing": changing
            })
        );
    }
    println!("node {node} got {}", counted(filled.gained, "replica"));
    for (group, error) in filled.failed.iter().take(SHOWN) {
        println!("group {group}: {error}");
    }
    left.show();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_lost_what_it_is_a_member_of_is_not_filled() {
        let shard =
            |group, voters: &[u64]| Shard { group, voters: voters.to_vec(), ..Shard::default() };
        let shards = [shard(7, &[1, 2, 3]), shard(8, &[1, 2]), shard(9, &[1, 3])];
        assert!(check_holds(3, &shards, &[7, 9].into()).is_ok());
        assert!(check_holds(4, &shards, &BTreeSet::new()).is_ok());
        let refused = check_holds(3, &shards, &[7].into()).unwrap_err().to_string();
        assert!(refused.contains("1 group of") && refused.contains("(9)"), "{refused}");
        assert!(refused.contains("member rebuild 3"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_refuses_to_hand_over_is_asked_for_a_while_only() {
        let (patience, first) = (Patience::default(), Instant::now());
        assert!(!patience.is_over(first));
        assert!(!patience.is_over(first + PATIENCE / 2));
        assert!(patience.is_over(first + PATIENCE));
    }
}

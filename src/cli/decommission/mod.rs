//! `shardhost node decommission`: every replica of a node moves to other nodes, so that it can be stopped
//! for good. Also of a node that is gone.
//!
//! [`choose`] decides where to. Each replacement is recorded in its group, so the command may be stopped
//! and run again at any time; `drain end` and `member fill` take it back.

mod choose;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use shardhost_proto::admin::membership_step::Kind;
use shardhost_proto::admin::{
    ChangeMembershipRequest, GroupStatus, HostStatus, KnownNode, ListNodesRequest, MembershipStep,
};
use shardhost_proto::balance::DrainRequest;
use shardhost_proto::balance::balance_client::BalanceClient;
use tokio::time::Instant;

use self::choose::{Choice, Held, Move, Place, choose};
use super::change::unconfirmed;
use super::ended::{PARTLY, code_of};
use super::fill::{Step, replace};
use super::group::config_index;
use super::output::number;
use super::reached::{REQUEST_MS, Reached};
use super::rebuild;
use super::target::{Target, all_groups, channel, in_time};

/// Groups that are shown.
const SHOWN: usize = 20;
/// Between two looks for leaders.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Replicas that move at a time.
const WINDOW: usize = 16;
/// How long the drain lasts that keeps leaderships away meanwhile.
const DRAIN_MS: u64 = 24 * 60 * 60 * 1_000;

/// Which node gives everything away.
#[derive(Clone, Debug, Args)]
pub struct DecommissionArguments {
    /// The node.
    node: u64,
    /// Show where each replica would go, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

/// Moves all replicas of a node, or shows where they would go.
pub async fn run(arguments: &DecommissionArguments) -> anyhow::Result<ExitCode> {
    let DecommissionArguments { node, dry_run, target } = arguments;
    let cluster = Reached::all(target).await?;
    let survey = Survey::within(&cluster, *node, target.timeout()).await?;
    let choice = choose(&survey.held, &survey.places, *node);
    let mut outcome = Outcome { left: choice.stuck.clone(), ..Outcome::default() };
    outcome.left.extend(survey.unled.iter().map(|group| (*group, "it has no leader".to_owned())));
    if *dry_run {
        show(*node, &choice, &outcome, target.json);
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(error) = drain(&cluster, *node).await {
        eprintln!("node {node} is not drained, and may take leaderships meanwhile: {error:#}");
    }
    carry_out(&cluster, *node, &choice.moves, target.timeout(), &mut outcome).await;
    // Another command may have given it one meanwhile, or have ended between two of its steps.
    let after = Survey::of(&cluster, *node).await?;
    for held in after.held {
        outcome.left.entry(held.group).or_insert_with(|| "it has a replica there again".to_owned());
    }
    outcome.short = after.short;
    report(*node, &cluster, &outcome, target.json);
    let silent = cluster.silent().keys().any(|silent| silent != node);
    let whole = outcome.left.is_empty() && outcome.short.is_empty() && !silent;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// What was done.
#[derive(Debug, Default)]
struct Outcome {
    moved: u64,
    /// Groups that still have a replica on the node, or may, and why.
    left: BTreeMap<u64, String>,
    /// Those of them in which a change may have begun, and then continues.
    continues: BTreeSet<u64>,
    /// Groups that have fewer voters than most, and how many.
    short: BTreeMap<u64, usize>,
}

/// What the nodes that answer say.
struct Survey {
    held: Vec<Held>,
    places: BTreeMap<u64, Place>,
    /// Groups with a replica on the node, as far as is known, and no leader that answers.
    unled: BTreeSet<u64>,
    /// Groups without a voter on the node that have fewer voters than most.
    short: BTreeMap<u64, usize>,
}

impl Survey {
    /// Looks until each group has a leader that answers, and after that time in any case: a node that is
    /// just gone may have led some.
    async fn within(cluster: &Reached, gone: u64, within: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + within;
        loop {
            let survey = Self::of(cluster, gone).await?;
            if survey.unled.is_empty() || Instant::now() > deadline {
                return Ok(survey);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn of(cluster: &Reached, gone: u64) -> anyhow::Result<Self> {
        let (mut leaders, mut named) = (BTreeMap::<u64, GroupStatus>::new(), BTreeSet::new());
        let mut all = Vec::new();
        for one in cluster.nodes().values() {
            let mut admin = one.admin.clone();
            for status in in_time(&one.address, all_groups(&mut admin)).await? {
                if members(&status).contains(&gone) {
                    named.insert(status.group);
                }
                all.push(status.clone());
                let newer = leaders.get(&status.group).is_none_or(|known| known.term < status.term);
                if status.role == "leader" && newer {
                    leaders.insert(status.group, status);
                }
            }
        }
        let unled = named.into_iter().filter(|group| !leaders.contains_key(group)).collect();
        let places = places(cluster).await?;
        if !places.contains_key(&gone) && !cluster.silent().contains_key(&gone) {
            bail!("there is no node {gone}; `shardhost node list` shows those that are");
        }
        let held = leaders.values().filter_map(|status| held_by(status, gone)).collect();
        let short = rebuild::Survey::short_groups(&all, gone);
        Ok(Self { held, places, unled, short })
    }
}

fn members(status: &GroupStatus) -> BTreeSet<u64> {
    let members = status.membership.iter().flat_map(|membership| &membership.members);
    members.map(|member| member.node).collect()
}

fn held_by(status: &GroupStatus, node: u64) -> Option<Held> {
    let membership = status.membership.as_ref()?;
    let learns = rebuild::learns(status, rebuild::member_on(status, node)?);
    let requires = membership.requirement.clone().unwrap_or_default().capabilities;
    let requires = requires.into_iter().collect();
    Some(Held { group: status.group, members: members(status), learns, requires })
}

/// The nodes that answer, as the catalog knows them, if there is one.
async fn places(cluster: &Reached) -> anyhow::Result<BTreeMap<u64, Place>> {
    let mut known: BTreeMap<u64, KnownNode> = BTreeMap::new();
    if let Some(one) = cluster.nodes().values().find(|one| one.status.has_catalog) {
        let mut admin = one.admin.clone();
        let listed = in_time(&one.address, admin.list_nodes(ListNodesRequest {})).await?;
        known.extend(listed.nodes.into_iter().map(|node| (node.node, node)));
    }
    let place =
        |(node, one): (&u64, &super::target::Node)| (*node, place_of(&one.status, known.get(node)));
    Ok(cluster.nodes().iter().map(place).collect())
}

fn place_of(status: &HostStatus, known: Option<&KnownNode>) -> Place {
    let advertised = status.advertisement.clone().unwrap_or_default();
    let drains = advertised.draining || known.is_some_and(|known| known.draining);
    let closed = match (drains, status.impaired.as_str()) {
        (true, _) => Some("it is draining".to_owned()),
        (false, "") => None,
        (false, why) => Some(why.to_owned()),
    };
    Place {
        has: advertised.capabilities.into_iter().collect(),
        zone: known.map(|known| known.zone.clone()).unwrap_or_default(),
        replicas: status.groups,
        closed,
    }
}

/// Keeps leaderships away from the node while its replicas move, if it answers.
async fn drain(cluster: &Reached, node: u64) -> anyhow::Result<()> {
    let Some(one) = cluster.nodes().get(&node) else { return Ok(()) };
    if one.status.advertisement.as_ref().is_some_and(|advertised| advertised.draining) {
        return Ok(());
    }
    let request = DrainRequest {
        deadline_ms: DRAIN_MS,
        undrain_when_overdue: false,
        owner: "node decommission".to_owned(),
        expires_ms: DRAIN_MS,
        // What cannot move is named by this command.
        accept_stranded: true,
    };
    let mut balance = BalanceClient::new(channel(&one.address)?);
    in_time(&one.address, balance.drain(request)).await.map(drop)
}

async fn carry_out(
    cluster: &Reached,
    gone: u64,
    moves: &[Move],
    within: Duration,
    outcome: &mut Outcome,
) {
    let one =
        |one: Move| async move { (one.group, move_replica(cluster, one, gone, within).await) };
    let mut ended = stream::iter(moves.iter().copied()).map(one).buffer_unordered(WINDOW);
    while let Some((group, moved)) = ended.next().await {
        match moved {
            Ok(()) => outcome.moved += 1,
            Err(error) => {
                if code_of(&error) == PARTLY {
                    outcome.continues.insert(group);
                }
                outcome.left.insert(group, format!("{error:#}"));
            }
        }
    }
}

/// Moves one replica, and waits until the new one has its place.
async fn move_replica(
    cluster: &Reached,
    one: Move,
    gone: u64,
    within: Duration,
) -> anyhow::Result<()> {
    let Move { group, new, learns } = one;
    if !learns {
        return replace(cluster, Step { group, old: gone }, new, within).await;
    }
    cluster
        .carry_on(group, within, async |leader, status| {
            let members = members(status);
            if members.contains(&new) && !members.contains(&gone) {
                return Ok(true);
            }
            let step = |kind: Kind, node| MembershipStep {
                kind: kind.into(),
                node,
                ..MembershipStep::default()
            };
            let steps =
                [(Kind::AddLearner, new, members.contains(&new)), (Kind::Remove, gone, false)];
            let steps = steps.into_iter().filter(|(.., done)| !done);
            let request = ChangeMembershipRequest {
                group,
                steps: steps.map(|(kind, node, _)| step(kind, node)).collect(),
                expect: config_index(status),
                timeout_ms: REQUEST_MS,
            };
            let changed = leader.admin.clone().change_membership(request).await;
            changed.map_err(|status| unconfirmed(&leader.address, &status))?;
            Ok(false)
        })
        .await
}

fn show(node: u64, choice: &Choice, outcome: &Outcome, as_json: bool) {
    if as_json {
        let moves = choice.moves.iter().map(|one| json!({ "group": one.group, "new": one.new }));
        let moves: Vec<Value> = moves.collect();
        return println!("{}", json!({ "node": node, "moves": moves, "left": outcome.left }));
    }
    println!("{} replicas of node {node} would move", number(choice.moves.len() as u64));
    for Move { group, new, .. } in choice.moves.iter().take(SHOWN) {
        println!("group {group}: to node {new}");
    }
    if choice.moves.len() > SHOWN {
        println!("and {} more", number((choice.moves.len() - SHOWN) as u64));
    }
    show_left(outcome);
}

fn show_left(outcome: &Outcome) {
    for (group, why) in outcome.left.iter().take(SHOWN) {
        let continues =
            if outcome.continues.contains(group) { " (its change continues)" } else { "" };
        println!("group {group} stays: {why}{continues}");
    }
    if outcome.left.len() > SHOWN {
        println!("and {} more stay", number((outcome.left.len() - SHOWN) as u64));
    }
}

fn report(node: u64, cluster: &Reached, outcome: &Outcome, as_json: bool) {
    let silent: Vec<u64> =
        cluster.silent().keys().copied().filter(|silent| *silent != node).collect();
    if as_json {
        let Outcome { moved, left, continues, short } = outcome;
        return println!(
            "{}",
            json!({
                "node": node, "moved": moved, "left": left, "continues": continues,
                "silent_nodes": silent, "short_groups": short
            })
        );
    }
    println!("{} replicas of node {node} moved", number(outcome.moved));
    show_left(outcome);
    for silent in &silent {
        println!(
            "node {silent} does not answer: groups that only such nodes hold are not known; run this again \
             when it does"
        );
    }
    for (group, voters) in &outcome.short {
        println!(
            "group {group} has {voters} voters, fewer than most: a `member rebuild` that was ended may have left \
             it so; `shardhost member add {group} NODE` adds another"
        );
    }
    if outcome.left.is_empty() && outcome.short.is_empty() && silent.is_empty() {
        println!(
            "no group has a replica on node {node}: it can be stopped for good. `shardhost drain end {node}` \
             and `shardhost member fill {node}` take it back"
        );
    } else if !outcome.left.is_empty() {
        println!(
            "run this again for those that stay; node {node} is drained until `shardhost drain end {node}`"
        );
    }
}

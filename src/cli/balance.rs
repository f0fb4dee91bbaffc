//! `shardhost balance`: what the planner makes of the cluster, and carrying it out.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Subcommand;
use futures::{StreamExt, stream};
use serde_json::json;
use shardhost::NodeId;
use shardhost_policy::inputs::view::merge;
use shardhost_policy::planner::{self, Plan, Snapshot};
use shardhost_proto::admin::TransferLeaderToFitRequest;
use shardhost_proto::balance::ViewRequest;
use shardhost_proto::balance::balance_client::BalanceClient;

use super::ended::PARTLY;
use super::output::{Column, counted, number, table};
use super::planner as planner_cli;
use super::shown::shown;
use super::target::{Node, Target, channel, promptly, said};

/// Longest view: JSON of some hundred thousand groups.
const MAX_VIEW_BYTES: usize = 128 * 1024 * 1024;
const SHOWN: usize = 20;
const WINDOW: usize = 64;
/// Rounds of one `balance now`.
const MAX_ROUNDS: usize = 8;
/// How long leaderships that were acquired a moment ago are waited for.
const SETTLE: Duration = Duration::from_secs(3);
/// For how long it is measured how busy groups are.
const MEASURE: Duration = Duration::from_secs(1);
/// Operations per second of a group below which it counts as idle.
const IDLE_BELOW: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Entries that a target may lack.
const MAX_LAG: u64 = 1_024;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show which leaderships would move where, and why. Nothing moves.
    Plan {
        /// Say why this group is where it is, too.
        #[arg(long, value_name = "GROUP")]
        why: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Execute the plan, in passes, until no move is left.
    ///
    /// Ends with exit code 3 when it was done in part: nodes do not answer, or groups have no leader.
    Now {
        #[command(flatten)]
        target: Target,
    },
    /// Show the state of the automatic planner, and its results.
    Status {
        /// Say why this group is where it is, too.
        #[arg(long, value_name = "GROUP")]
        why: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Print the last round that moved something, as JSON: what was known, and what was planned. The
    /// same plan follows from it on any machine.
    Recorded {
        #[command(flatten)]
        target: Target,
    },
    /// Switch the automatic planner of the whole cluster.
    Mode {
        /// The mode.
        mode: planner_cli::Mode,
        #[command(flatten)]
        target: Target,
    },
    /// Stop planned moves at once. Refusals and drains continue.
    Stop {
        /// Only those away from this node, until it stops; needs no quorum.
        #[arg(long)]
        node: Option<u64>,
        /// Why, for others who want to know.
        #[arg(long, default_value = "an operator")]
        reason: String,
        #[command(flatten)]
        target: Target,
    },
    /// Allow planned moves again.
    Resume {
        /// Only those away from this node.
        #[arg(long)]
        node: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
}

/// Plans, or plans and moves.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Plan { why, target } => show_plan(*why, target).await,
        Command::Now { target } => balance(target).await,
        Command::Status { why, target } => done(planner_cli::status(*why, target).await),
        Command::Recorded { target } => done(planner_cli::recorded(target).await),
        Command::Mode { mode, target } => done(planner_cli::set_mode(*mode, target).await),
        Command::Stop { node, reason, target } => {
            done(planner_cli::switch(true, *node, reason, target).await)
        }
        Command::Resume { node, target } => {
            done(planner_cli::switch(false, *node, "", target).await)
        }
    }
}

fn done(ended: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    ended.map(|()| ExitCode::SUCCESS)
}

/// What all nodes that answer know, how they are reached, and which do not answer.
struct Looked {
    snapshot: Snapshot,
    nodes: BTreeMap<NodeId, Node>,
    silent: Vec<u64>,
}

impl Looked {
    /// Groups without a leader, as far as the nodes that answer know.
    fn without_leader(&self) -> usize {
        self.snapshot.groups.iter().filter(|group| group.leader.is_none()).count()
    }
}

/// The knowledge of all nodes that answer, and how they are reached. Leaders that were elected a
/// moment ago do not know yet how far the others are: they are waited for. Looks more than once,
/// because load is a difference of two looks.
async fn look(target: &Target) -> anyhow::Result<Looked> {
    let began = Instant::now();
    loop {
        let asked = began.elapsed();
        let looked = look_once(target).await?;
        let measured = asked >= MEASURE;
        if asked > SETTLE || measured && looked.snapshot.groups.iter().all(is_settled) {
            return Ok(looked);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether the leader of a group knows how far the others are.
fn is_settled(group: &planner::Group) -> bool {
    let mut others = group.voters.iter().filter(|voter| Some(voter.node) != group.leader);
    group.leader.is_some() && (group.voters.len() == 1 || others.any(|voter| voter.lag.is_some()))
}

async fn look_once(target: &Target) -> anyhow::Result<Looked> {
    let first = target.node().await?;
    let (mut views, mut nodes) = (Vec::new(), BTreeMap::new());
    let addresses = first.all_addresses();
    let asked = addresses.iter().map(|address| view_of(address));
    for answer in futures::future::join_all(asked).await {
        let Some((node, view)) = answer? else { continue };
        let id = NodeId::new(node.status.node).context("a node without a number")?;
        views.push((id, view));
        nodes.insert(id, node);
    }
    let mut snapshot = merge(views);
    // An operator asks for it: nodes that started a moment ago count like the others.
    snapshot.settings.cool_down_ms = 0;
    snapshot.settings.warm_up_ms = 0;
    snapshot.settings.max_lag_entries = MAX_LAG;
    snapshot.settings.load_tier = true;
    for group in snapshot.groups.iter_mut().filter(|group| group.load < IDLE_BELOW) {
        group.load = 0;
    }
    let known = first.status.peers.iter().map(|peer| peer.node);
    let answers = |node: &u64| NodeId::new(*node).is_some_and(|node| nodes.contains_key(&node));
    let silent = known.filter(|node| !answers(node)).collect();
    Ok(Looked { snapshot, nodes, silent })
}

/// What a node knows. One that does not answer is left out: nothing of its is moved.
async fn view_of(address: &str) -> anyhow::Result<Option<(Node, Snapshot)>> {
    let Ok(node) = Node::connect(address).await else { return Ok(None) };
    let client = BalanceClient::new(channel(address)?);
    let mut client = client.max_decoding_message_size(MAX_VIEW_BYTES);
    let view = promptly(address, client.view(ViewRequest {})).await?;
    let view = serde_json::from_slice(&view.snapshot)
        .with_context(|| format!("{address} gives a view that cannot be read"))?;
    Ok(Some((node, view)))
}

async fn show_plan(why: Option<u64>, target: &Target) -> anyhow::Result<ExitCode> {
    let looked = look(target).await?;
    let snapshot = &looked.snapshot;
    let plan = planner::plan(snapshot)?;
    if target.json {
        println!("{}", json!({ "snapshot": snapshot, "plan": plan }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", nodes_table(&plan));
    println!("{}", summary(&plan));
    for step in plan.moves.iter().take(SHOWN) {
        println!("group {}: node {} to node {} ({})", step.group, step.from, step.to, step.tier);
    }
    for finding in &plan.summary.findings {
        println!("note: {}", shown(&finding.to_string()));
    }
    if let Some(missing) = missing(&looked) {
        println!("note: {missing}");
    }
    if let Some(group) = why {
        match planner::why(snapshot, &plan, group.into())? {
            Some(explanation) => println!("{explanation}"),
            None => bail!("no node that answers knows group {group}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn nodes_table(plan: &Plan) -> String {
    let columns =
        [Column::Right("node"), Column::Right("leaders"), Column::Right("after the plan")];
    let rows = plan
        .summary
        .nodes
        .iter()
        .map(|node| vec![node.node.to_string(), number(node.before), number(node.after)]);
    table(&columns, rows)
}

fn summary(plan: &Plan) -> String {
    let moves = plan.moves.len() + plan.deferred.len();
    if moves == 0 {
        return "nothing to move: no placement is better than this one".to_owned();
    }
    format!("{}, {} of them in the first round", counted(moves as u64, "move"), plan.moves.len())
}

async fn balance(target: &Target) -> anyhow::Result<ExitCode> {
    let (mut moved, mut failed, mut round) = (0_u64, Vec::new(), 0);
    loop {
        let looked = look(target).await?;
        let plan = planner::plan(&looked.snapshot)?;
        if plan.moves.is_empty() || round == MAX_ROUNDS {
            return report(moved, &failed, round, &looked, target);
        }
        round += 1;
        failed.clear();
        let moves = stream::iter(&plan.moves).map(|step| carry_out(step, &looked.nodes));
        let outcomes: Vec<_> = moves.buffer_unordered(WINDOW).collect().await;
        for outcome in outcomes {
            match outcome {
                Ok(()) => moved += 1,
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
    }
}

/// What was not looked at or could not be moved; `None`: the plan is for the whole cluster.
fn missing(looked: &Looked) -> Option<String> {
    let mut parts = Vec::new();
    if !looked.silent.is_empty() {
        let silent: Vec<_> = looked.silent.iter().map(ToString::to_string).collect();
        parts.push(format!("nodes that do not answer: {}", silent.join(", ")));
    }
    match looked.without_leader() {
        0 => {}
        groups => parts.push(format!("groups without a leader: {}", number(groups as u64))),
    }
    (!parts.is_empty()).then(|| format!("{}; nothing of theirs is moved", parts.join("; ")))
}

async fn carry_out(step: &planner::Move, nodes: &BTreeMap<NodeId, Node>) -> anyhow::Result<()> {
    let leader = nodes.get(&step.from).context("the leader does not answer")?;
    let request = TransferLeaderToFitRequest {
        group: step.group.get(),
        nodes: vec![step.to.get()],
        max_lag: MAX_LAG,
        timeout_ms: 10_000,
    };
    let moved = leader.admin.clone().transfer_leader_to_fit(request).await;
    moved.map(|_| ()).map_err(|status| said(&leader.address, &status))
}

fn report(
    moved: u64,
    failed: &[String],
    rounds: usize,
    looked: &Looked,
    target: &Target,
) -> anyhow::Result<ExitCode> {
    let missing = missing(looked);
    if target.json {
        let shown = json!({
            "moved": moved,
            "failed": failed,
            "rounds": rounds,
            "silent_nodes": looked.silent,
            "groups_without_leader": looked.without_leader(),
        });
        println!("{shown}");
    } else {
        let partly = if missing.is_some() { "partly balanced: " } else { "" };
        let (moved, rounds) = (counted(moved, "leadership"), counted(rounds as u64, "round"));
        println!("{partly}{moved} moved in {rounds}");
        failed.iter().take(SHOWN).for_each(|error| println!("not moved: {error}"));
        if let Some(missing) = &missing {
            println!("{missing}");
        }
    }
    Ok(match (failed.is_empty(), missing) {
        (false, _) => ExitCode::FAILURE,
        (true, Some(_)) => ExitCode::from(PARTLY),
        (true, None) => ExitCode::SUCCESS,
    })
}

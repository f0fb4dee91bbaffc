//! `shardhost balance status`, `mode`, `stop`, `resume`: the automatic planner, and its switches.

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use shardhost::groups::RejectReason;
use shardhost_policy::catalog::{Operation, PlannedMoves, PlannerMode};
use shardhost_policy::executor::ExecutorStatus;
use shardhost_proto::balance::balance_client::BalanceClient;
use shardhost_proto::balance::{LocalSwitch, PlannerReply, PlannerRequest};
use shardhost_security::channel::Channel;

use super::catalog::Catalog;
use super::change::confirmed;
use super::leader_of_catalog::{self, Answer};
use super::output::{Cell, Column, facts, number, table};
use super::shown::shown;
use super::target::{Target, channel};

/// Modes of the planner.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// Nothing is planned.
    Off,
    /// Plans are made and shown; nothing moves.
    Shadow,
    /// Plans are carried out.
    On,
}

impl From<Mode> for PlannerMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Off => Self::Off,
            Mode::Shadow => Self::Shadow,
            Mode::On => Self::On,
        }
    }
}

/// A mode, as it is typed.
pub const fn word_of(mode: PlannerMode) -> &'static str {
    match mode {
        PlannerMode::Off => "off",
        PlannerMode::Shadow => "shadow",
        PlannerMode::On => "on",
    }
}

/// Sets the mode for the whole cluster.
pub async fn set_mode(mode: Mode, target: &Target) -> anyhow::Result<()> {
    let mode = PlannerMode::from(mode);
    let word = word_of(mode);
    Catalog::reach(target).await?.apply(None, Operation::SetPlannerMode { mode }).await?;
    tell(target, json!({ "mode": word }), format!("the planner is {word}"));
    Ok(())
}

/// Sets or releases the kill switch: of the whole cluster, or of one node.
pub async fn switch(
    stopped: bool,
    node: Option<u64>,
    reason: &str,
    target: &Target,
) -> anyhow::Result<()> {
    let word = if stopped { "stopped" } else { "allowed" };
    let Some(number) = node else {
        let moves = if stopped { PlannedMoves::Stopped } else { PlannedMoves::Allowed };
        let reason = reason.to_owned();
        let operation = Operation::SetPlannedMoves { moves, reason };
        Catalog::reach(target).await?.apply(None, operation).await?;
        tell(target, json!({ "planned_moves": word }), format!("planned moves are {word}"));
        return Ok(());
    };
    let node = target.node_numbered(number).await?;
    let request = LocalSwitch { planned_moves_stopped: stopped };
    let mut balance = BalanceClient::new(channel(&node.address)?);
    confirmed(&node.address, target.timeout(), balance.switch_locally(request)).await?;
    let text = format!("planned moves away from node {number} are {word}, until it stops");
    tell(target, json!({ "node": number, "planned_moves": word }), text);
    Ok(())
}

fn tell(target: &Target, json: Value, text: String) {
    if target.json { println!("{json}") } else { println!("{text}") }
}

const NOBODY_PLANS: &str = "there is no planner: the system group has no leader that serves; `shardhost group \
     show 0` has the cause; everything but planning continues";

impl Answer for PlannerReply {
    fn is_known(&self) -> bool {
        !self.status.is_empty()
    }

    fn leader_node(&self) -> u64 {
        self.leader_node
    }
}

/// The planner's answer, wherever it runs.
pub async fn ask(request: PlannerRequest, target: &Target) -> anyhow::Result<PlannerReply> {
    let ask = async |client: &mut BalanceClient<Channel>| client.planner(request).await;
    leader_of_catalog::ask(target, NOBODY_PLANS, ask).await
}

/// Shows what the planner is at, and why a group is where it is.
pub async fn status(why: Option<u64>, target: &Target) -> anyhow::Result<()> {
    let request = PlannerRequest { why_group: why.unwrap_or(0), last_round: false };
    if why == Some(0) {
        bail!("group 0 is the catalog: it is led where it falls, and no planner moves it");
    }
    let reply = ask(request, target).await?;
    if let Some(group) = why.filter(|_| reply.why_unknown) {
        bail!("the catalog knows no group {group}; `shardhost group list` shows those that are");
    }
    if target.json {
        let status: Value = serde_json::from_slice(&reply.status)?;
        println!("{}", json!({ "node": reply.leader_node, "planner": status, "why": reply.why }));
        return Ok(());
    }
    let status: ExecutorStatus = serde_json::from_slice(&reply.status)
        .context("the planner is of a version that says other things; use its own `shardhost`")?;
    println!("{}", facts(described(&status, reply.leader_node)));
    if let Some(summary) = status.plan.as_ref().map(|plan| &plan.summary) {
        let columns =
            [Column::Right("node"), Column::Right("leaders"), Column::Right("after the plan")];
        let rows = summary
            .nodes
            .iter()
            .map(|node| vec![node.node.to_string(), number(node.before), number(node.after)]);
        println!("{}", table(&columns, rows));
        for finding in &summary.findings {
            println!("note: {}", shown(&finding.to_string()));
        }
    }
    if !reply.why.is_empty() {
        println!("{}", reply.why);
    }
    Ok(())
}

fn described(status: &ExecutorStatus, node: u64) -> Vec<(&'static str, Cell)> {
    let sum = |counts: &std::collections::BTreeMap<_, u64>| counts.values().sum::<u64>();
    let failed = status.failed.values().flatten().map(|(_, count)| count).sum::<u64>();
    let mut rows = vec![
        ("planner", format!("{}, on node {node} (term {})", status.mode, status.planner_term)),
        (
            "moves",
            status.hold.as_ref().map_or_else(|| "start as planned".to_owned(), ToString::to_string),
        ),
        ("circuit breaker", status.breaker.to_string()),
        (
            "under way",
            format!(
                "{} of at most {}, {} to be confirmed, {} wait",
                status.in_flight, status.window, status.unconfirmed, status.queued
            ),
        ),
        ("moved", number(sum(&status.moved))),
        ("failed", number(failed)),
        ("longest stall", format!("{} ms", status.longest_stall_ms)),
        ("targets left alone", number(status.back_offs)),
        ("rounds", number(status.rounds)),
    ];
    if status.would_move > 0 {
        rows.push(("would move", number(status.would_move)));
    }
    let reasons = status.failed.iter().flat_map(|(tier, reasons)| {
        reasons.iter().map(move |(name, count)| {
            let words = RejectReason::by_name(name).map_or("", RejectReason::words);
            format!("{count} for {tier}: {words} [{name}]")
        })
    });
    let reasons: Vec<String> = reasons.collect();
    let mut rows: Vec<(_, Cell)> = rows.into_iter().map(|(name, is)| (name, is.into())).collect();
    if !reasons.is_empty() {
        rows.push(("not moved", Cell::of_lines(reasons)));
    }
    rows
}

/// Prints the last recorded round.
pub async fn recorded(target: &Target) -> anyhow::Result<()> {
    let reply = ask(PlannerRequest { why_group: 0, last_round: true }, target).await?;
    if reply.round.is_empty() {
        bail!("no round was recorded since the planner began; see `shardhost balance status`");
    }
    println!("{}", String::from_utf8_lossy(&reply.round));
    Ok(())
}

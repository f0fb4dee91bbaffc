//! `shardhost replicas`: which replicas the cluster moves automatically, why, and by which rules.

use std::ops::RangeInclusive;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use shardhost_policy::allocator::{AllocatorStatus, MovingReplica};
use shardhost_policy::catalog::{
    MAX_REPLACE_AFTER_MS, MIN_REPLACE_AFTER_MS, Operation, PlannerMode, ReplicaSettings,
};
use shardhost_proto::balance::balance_client::BalanceClient;
use shardhost_proto::balance::{AllocatorReply, AllocatorRequest};
use shardhost_security::channel::Channel;

use super::catalog::Catalog;
use super::leader_of_catalog::{self, Answer};
use super::output::{facts, number};
use super::planner::{Mode, word_of};
use super::rule;
use super::target::Target;

/// Lines that are shown of a list.
const SHOWN: usize = 20;
const NOT_FOUND: &str = "replicas are not moved at the moment: the system group has no leader that serves; `shardhost \
     group show 0` has the cause";

/// Between which a node may be waited for.
const SECONDS: RangeInclusive<u64> = MIN_REPLACE_AFTER_MS / 1_000..=MAX_REPLACE_AFTER_MS / 1_000;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show which nodes are gone, which replicas move, and which cannot.
    Status {
        /// Say why the replicas of this group are where they are, too.
        #[arg(long, value_name = "GROUP")]
        why: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Switch it for the whole cluster: whether replicas on nodes that are gone are replaced, and replicas
    /// are spread over zones and nodes.
    Mode {
        /// The mode.
        mode: Mode,
        /// Seconds after which a node that does not answer is replaced; by default as it is.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(SECONDS))]
        replace_after: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Rules: how many replicas groups have, and where they may be.
    #[command(subcommand)]
    Rule(rule::Command),
}

/// Shows the state, switches the mode, or changes rules.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status { why, target } => status(*why, target).await?,
        Command::Mode { mode, replace_after, target } => set(*mode, *replace_after, target).await?,
        Command::Rule(command) => return rule::run(command).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(mode: Mode, replace_after: Option<u64>, target: &Target) -> anyhow::Result<()> {
    let (mode, after) = words(Some(switch(mode, replace_after, target).await?));
    if target.json {
        println!("{}", json!({ "mode": mode, "replace_after": after }));
    } else {
        let seconds = number(after.unwrap_or_default());
        println!("replicas: {mode}; a node that does not answer for {seconds} s is replaced");
    }
    Ok(())
}

/// Switches the mode, and returns what is set then.
pub async fn switch(
    mode: Mode,
    replace_after: Option<u64>,
    target: &Target,
) -> anyhow::Result<ReplicaSettings> {
    let mode = PlannerMode::from(mode);
    let catalog = Catalog::reach(target).await?;
    let settings = catalog.settings().await?;
    let present = settings.replicas.map(|replicas| replicas.replace_after_ms);
    let replace_after_ms = match replace_after {
        Some(seconds) => seconds * 1_000,
        None => present.unwrap_or(ReplicaSettings::DEFAULT_REPLACE_AFTER_MS),
    };
    let replicas = ReplicaSettings { mode, replace_after_ms };
    catalog.apply(Some(settings.revision), Operation::SetReplicas { replicas }).await?;
    Ok(replicas)
}

/// What the allocator does, wherever it runs.
pub async fn state(target: &Target) -> anyhow::Result<AllocatorStatus> {
    read(&ask(AllocatorRequest::default(), target).await?)
}

fn read(reply: &AllocatorReply) -> anyhow::Result<AllocatorStatus> {
    serde_json::from_slice(&reply.status)
        .context("the node is of a version that says other things; use its own `shardhost`")
}

impl Answer for AllocatorReply {
    fn is_known(&self) -> bool {
        !self.status.is_empty()
    }

    fn leader_node(&self) -> u64 {
        self.leader_node
    }
}

/// The answer of the allocator, wherever it runs.
async fn ask(request: AllocatorRequest, target: &Target) -> anyhow::Result<AllocatorReply> {
    let ask = async |client: &mut BalanceClient<Channel>| client.allocator(request).await;
    leader_of_catalog::ask(target, NOT_FOUND, ask).await
}

async fn status(why: Option<u64>, target: &Target) -> anyhow::Result<()> {
    let reply = ask(AllocatorRequest { why_group: why }, target).await?;
    if let Some(group) = why {
        check_why(group, &reply)?;
    }
    let settings = Catalog::reach(target).await?.settings().await?;
    let status = read(&reply)?;
    if target.json {
        let raw: Value = serde_json::from_slice(&reply.status)?;
        let (mode, after) = words(settings.replicas);
        println!(
            "{}",
            json!({
                "node": reply.leader_node, "mode": mode, "replace_after": after, "state": raw,
                "why": (!reply.why.is_empty()).then_some(reply.why)
            })
        );
        return Ok(());
    }
    println!("{}", facts(described(&status, settings.replicas, reply.leader_node)));
    list("moves", &status.moving, status.moving_total);
    if settings.replicas.is_some_and(|replicas| replicas.mode == PlannerMode::Shadow) {
        list("would move", &status.chosen, status.chosen_total);
    }
    for stuck in status.stuck.iter().take(SHOWN) {
        println!("group {}: {}", stuck.group, stuck.why);
    }
    more(status.stuck_total, status.stuck.len().min(SHOWN));
    if !reply.why.is_empty() {
        println!("{}", reply.why);
    }
    Ok(())
}

/// Whether the answer says something of the group.
fn check_why(group: u64, reply: &AllocatorReply) -> anyhow::Result<()> {
    if reply.why_unknown {
        bail!("the catalog knows no group {group}; `shardhost group list` shows those that are");
    }
    if reply.why.is_empty() && !reply.status.is_empty() {
        bail!(
            "node {} is of an earlier version, which does not say why the replicas of group {group} are where they \
             are; update it",
            reply.leader_node
        );
    }
    Ok(())
}

/// The mode in a word, and the seconds.
const fn words(settings: Option<ReplicaSettings>) -> (&'static str, Option<u64>) {
    let Some(ReplicaSettings { mode, replace_after_ms }) = settings else { return ("off", None) };
    (word_of(mode), Some(replace_after_ms / 1_000))
}

fn described(
    status: &AllocatorStatus,
    settings: Option<ReplicaSettings>,
    node: u64,
) -> Vec<(&'static str, String)> {
    let (mode, after) = words(settings);
    let after = after.map_or(String::new(), |seconds| {
        format!("; a node that does not answer for {} s is replaced", number(seconds))
    });
    let gone = status
        .gone
        .iter()
        .map(|gone| format!("node {} for {} s", gone.node, number(gone.silent_ms / 1_000)));
    let gone: Vec<String> = gone.collect();
    vec![
        ("replicas", format!("{mode}, on node {node}{after}")),
        ("no answer", if gone.is_empty() { "no node".to_owned() } else { gone.join(", ") }),
        ("under way", number(status.moving_total)),
        ("wait", number(status.waiting)),
        ("cannot move now", number(status.stuck_total)),
        ("moved", number(status.moved)),
        ("refused", number(status.refused)),
    ]
}

fn list(what: &str, replicas: &[MovingReplica], total: u64) {
    for replica in replicas.iter().take(SHOWN) {
        println!("group {} {what}: {}; {}", replica.group, replica.words(), replica.reason);
    }
    more(total, replicas.len().min(SHOWN));
}

fn more(total: u64, shown: usize) {
    let more = total.saturating_sub(shown as u64);
    if more > 0 {
        println!("and {} more", number(more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_group_is_where_it_is_is_said_or_refused() {
        let answer = |why: &str, why_unknown| {
            let status = b"{}".to_vec().into();
            AllocatorReply { leader_node: 2, status, why: why.to_owned(), why_unknown }
        };
        check_why(0, &answer("it stays", false)).unwrap();
        let unknown = check_why(99, &answer("it stays", true)).unwrap_err().to_string();
        assert!(unknown.contains("no group 99"), "{unknown}");
        // An earlier version takes the catalog for no group.
        let earlier = check_why(0, &answer("", false)).unwrap_err().to_string();
        assert!(earlier.contains("node 2 is of an earlier version"), "{earlier}");
    }
}

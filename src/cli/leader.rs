//! `shardhost leader`: moving leadership from one node to another, and explaining it.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use shardhost_proto::admin::{TransferLeaderRequest, TransferLeaderToFitRequest};
use tonic::Code;

use super::change::{answered, confirmed, unconfirmed};
use super::output::{millis, whole};
use super::target::Target;
use super::why::why;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand the leadership of a group to another node.
    Transfer {
        /// Number of the group.
        group: u64,
        /// The node that should lead; by default the one that is furthest.
        #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
        /// Nodes to try in this order; the first that is fit gets it.
        #[arg(long, value_name = "NODES", value_delimiter = ',', conflicts_with = "to")]
        first_fit: Vec<u64>,
        /// Entries that a node of --first-fit may lack.
        #[arg(long, value_name = "ENTRIES", default_value_t = 0, value_parser = whole, requires = "first_fit")]
        max_lag: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Say who leads a group, whether it serves and why not, and who else could.
    Why {
        /// Number of the group.
        group: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// Moves or explains leadership.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Transfer { group, to, first_fit, target, .. } if first_fit.is_empty() => {
            transfer(*group, *to, target).await?;
        }
        Command::Transfer { group, first_fit, max_lag, target, .. } => {
            transfer_to_fit(*group, first_fit, *max_lag, target).await?;
        }
        Command::Why { group, target } => why(*group, target).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn transfer(group: u64, to: Option<u64>, target: &Target) -> anyhow::Result<()> {
    let (mut leader, before) = target.leader_of(group).await?;
    let from = leader.status.node;
    if to == Some(from) {
        return report(target, group, from, from, before.term, 0);
    }
    let request = TransferLeaderRequest {
        group,
        to_node: to.unwrap_or(0),
        timeout_ms: target.timeout.saturating_mul(1_000),
    };
    let moved = leader.admin.transfer_leader(request);
    let moved = confirmed(&leader.address, target.timeout(), moved).await?;
    report(target, group, from, moved.to_node, moved.term, moved.took_us)
}

async fn transfer_to_fit(
    group: u64,
    nodes: &[u64],
    max_lag: u64,
    target: &Target,
) -> anyhow::Result<()> {
    let (mut leader, before) = target.leader_of(group).await?;
    let from = leader.status.node;
    // The node that leads is fit to: those behind it are not tried.
    let preferred: Vec<u64> = nodes.iter().copied().take_while(|node| *node != from).collect();
    let stays = preferred.len() < nodes.len();
    if stays && preferred.is_empty() {
        return report(target, group, from, from, before.term, 0);
    }
    let request = TransferLeaderToFitRequest {
        group,
        nodes: preferred,
        max_lag,
        timeout_ms: target.timeout.saturating_mul(1_000),
    };
    let moved = leader.admin.transfer_leader_to_fit(request);
    match answered(&leader.address, target.timeout(), moved).await? {
        Ok(moved) => report(target, group, from, moved.to_node, moved.term, moved.took_us),
        Err(status) if stays && status.code() == Code::FailedPrecondition => {
            report(target, group, from, from, before.term, 0)
        }
        Err(status) => Err(unconfirmed(&leader.address, &status)),
    }
}

fn report(
    target: &Target,
    group: u64,
    from: u64,
    to: u64,
    term: u64,
    took_us: u64,
) -> anyhow::Result<()> {
    if target.json {
        let moved = json!({
            "group": group, "from_node": from, "to_node": to, "term": term, "took_us": took_us
        });
        println!("{moved}");
    } else if from == to {
        println!("group {group} is led by node {to} already, in term {term}");
    } else {
        let took = millis(took_us);
        println!("group {group} moved from node {from} to node {to} in {took}, term {term}");
    }
    Ok(())
}

//! `shardhost snapshot`: snapshots of a group's state on one node.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use shardhost_proto::admin::{ListSnapshotsRequest, TakeSnapshotRequest};
use shardhost_proto::log::LogPosition;

use super::change::confirmed;
use super::output::{Column, number, table};
use super::target::{Target, promptly};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a snapshot on a node, of everything that its replica has applied.
    Take {
        /// Number of the group.
        group: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Show the snapshots that a node holds.
    List {
        /// Number of the group.
        group: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// Takes or shows snapshots.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Take { group, target } => take(*group, target).await?,
        Command::List { group, target } => list(*group, target).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn take(group: u64, target: &Target) -> anyhow::Result<()> {
    let mut node = target.node().await?;
    let timeout_ms = target.timeout.saturating_mul(1_000);
    let taken = node.admin.take_snapshot(TakeSnapshotRequest { group, timeout_ms });
    let taken = confirmed(&node.address, target.timeout(), taken).await?;
    let LogPosition { term, index } = taken.position.unwrap_or_default();
    if target.json {
        println!(
            "{}",
            json!({ "group": group, "node": node.status.node, "term": term, "index": index })
        );
    } else {
        let (node, index) = (node.status.node, number(index));
        println!("node {node} has a snapshot of group {group} at index {index} of term {term}");
    }
    Ok(())
}

async fn list(group: u64, target: &Target) -> anyhow::Result<()> {
    let mut node = target.node().await?;
    let request = ListSnapshotsRequest { group };
    let listed = promptly(&node.address, node.admin.list_snapshots(request)).await?;
    if target.json {
        let positions = listed.positions.iter();
        let positions: Vec<Value> =
            positions.map(|at| json!({ "term": at.term, "index": at.index })).collect();
        let node = node.status.node;
        println!("{}", json!({ "group": group, "node": node, "snapshots": positions }));
    } else if listed.positions.is_empty() {
        println!("node {} has no snapshot of group {group}", node.status.node);
    } else {
        let columns = [Column::Right("index"), Column::Right("term")];
        let rows = listed.positions.iter().map(|at| vec![number(at.index), number(at.term)]);
        println!("{}", table(&columns, rows));
    }
    Ok(())
}

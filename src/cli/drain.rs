//! `shardhost drain`: emptying a node of its leaderships, and taking it back.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;
use shardhost::proto::balance::balance_client::BalanceClient;
use shardhost::proto::balance::drain_status::State;
use shardhost::proto::balance::{DrainRequest, DrainStatus, GetDrainRequest, UndrainRequest};
use tonic::transport::Channel;

use super::output::{facts, number};
use super::target::{Target, channel, said};

/// Between two looks at how far a drain is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Leaderships that stay, of which the reason is shown.
const SHOWN: usize = 20;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand every leadership of a node to others, and wait until that is done. The node takes none
    /// until `drain end`.
    Begin {
        /// The node.
        node: u64,
        /// How long it may take, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        deadline: u64,
        /// When it takes longer, let the node take leaderships again.
        #[arg(long)]
        or_undrain: bool,
        /// When the drain ends by itself, in seconds: whoever asked may be gone.
        #[arg(long, value_name = "SECONDS", default_value_t = 24 * 60 * 60)]
        expires: u64,
        /// Begin although groups would have nobody left who could lead them.
        #[arg(long)]
        even_if_nobody: bool,
        /// Do not wait.
        #[arg(long)]
        no_wait: bool,
        /// Who asks, for others who want to know.
        #[arg(long, default_value = "an operator")]
        owner: String,
        #[command(flatten)]
        target: Target,
    },
    /// Show how far the drain of a node is, and why what is left cannot go.
    Status {
        /// The node.
        node: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Let a node take leaderships again.
    End {
        /// The node.
        node: u64,
        #[command(flatten)]
        target: Target,
    },
}

/// Drains, shows or ends.
pub async fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Begin {
            node,
            deadline,
            or_undrain,
            expires,
            even_if_nobody,
            no_wait,
            owner,
            target,
        } => {
            let request = DrainRequest {
                deadline_ms: deadline.saturating_mul(1_000),
                undrain_when_overdue: *or_undrain,
                owner: owner.clone(),
                expires_ms: expires.saturating_mul(1_000),
                accept_stranded: *even_if_nobody,
            };
            begin(*node, request, !no_wait, target).await
        }
        Command::Status { node, target } => {
            let (mut balance, address) = reach(*node, target).await?;
            let status = balance.get_drain(GetDrainRequest {}).await;
            show(&status.map_err(|status| said(&address, &status))?.into_inner(), target);
            Ok(ExitCode::SUCCESS)
        }
        Command::End { node, target } => {
            let (mut balance, address) = reach(*node, target).await?;
            let status = balance.undrain(UndrainRequest {}).await;
            show(&status.map_err(|status| said(&address, &status))?.into_inner(), target);
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn begin(
    node: u64,
    request: DrainRequest,
    wait: bool,
    target: &Target,
) -> anyhow::Result<ExitCode> {
    let (mut balance, address) = reach(node, target).await?;
    let begun = balance.drain(request).await.map_err(|status| said(&address, &status))?;
    let mut status = begun.into_inner();
    while wait && status.state() == State::Running {
        tokio::time::sleep(LOOK_EVERY).await;
        let looked = balance.get_drain(GetDrainRequest {}).await;
        status = looked.map_err(|status| said(&address, &status))?.into_inner();
    }
    show(&status, target);
    match status.state() {
        State::Overdue => bail!(
            "node {node} still has {} leaderships; `shardhost drain status {node}` says why",
            status.left
        ),
        _ => Ok(ExitCode::SUCCESS),
    }
}

async fn reach(node: u64, target: &Target) -> anyhow::Result<(BalanceClient<Channel>, String)> {
    let node = target.node_numbered(node).await?;
    Ok((BalanceClient::new(channel(&node.address)?), node.address))
}

const fn word(status: &DrainStatus) -> &'static str {
    match (status.draining, status.state) {
        (false, 0) => "not draining",
        (true, 0) => "draining",
        (_, 1) => "running",
        (_, 2) => "done",
        (_, 3) => "overdue",
        _ => "cancelled",
    }
}

fn show(status: &DrainStatus, target: &Target) {
    if target.json {
        let undrainable: Vec<_> = status
            .undrainable
            .iter()
            .map(|one| json!({ "group": one.group, "reason": one.reason }))
            .collect();
        let drain = json!({
            "node": status.node,
            "draining": status.draining,
            "state": word(status),
            "owner": status.owner,
            "left": status.left,
            "moved": status.moved,
            "failed": status.failed,
            "window": status.window,
            "elapsed_ms": status.elapsed_ms,
            "undrainable": undrainable,
            "durable": status.durable,
        });
        return println!("{drain}");
    }
    let takes = if status.draining { "takes no leaderships" } else { "takes leaderships" };
    let mut rows = vec![
        ("node", format!("{}, {takes}", status.node)),
        ("drain", word(status).to_owned()),
        ("left", number(status.left)),
        ("moved", number(status.moved)),
        ("took", format!("{:.1} s", status.elapsed_ms as f64 / 1e3)),
    ];
    if !status.owner.is_empty() {
        rows.insert(2, ("asked by", status.owner.clone()));
        let lasts =
            if status.durable { "until it is ended, or expires" } else { "until the node stops" };
        rows.insert(3, ("lasts", lasts.to_owned()));
    }
    let stuck = status.undrainable.iter().take(SHOWN);
    let stuck: Vec<_> = stuck.map(|one| format!("group {}: {}", one.group, one.reason)).collect();
    if !stuck.is_empty() {
        rows.push(("cannot go", stuck.join("\n")));
    }
    println!("{}", facts(rows));
}

//! How long a node takes to hand on everything that it leads, and what it leaves behind.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shardhost::Host;
use shardhost::policy::{Drain, DrainOptions, DrainState};

use super::nodes::{Answer, Layout, Nodes, Order};
use super::{MachineKind, report};

/// How the drain benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct DrainArguments {
    /// Number of groups, each on every node; all are led by one of them when it drains.
    #[arg(long, default_value_t = 10_000)]
    pub groups: u64,
    /// Threads for Raft in each process.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Where the data stands; a temporary directory unless set. Decides which disk is measured.
    #[arg(long)]
    pub directory: Option<std::path::PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a node is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainOrder {
    /// Drain, and say what came of it.
    Drain,
    /// Take leaderships again.
    Undrain,
}

/// What came of a drain.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Drained {
    led_before: u64,
    left: u64,
    moved: u64,
    failed: u64,
    window: u64,
    seconds: f64,
}

/// Carries out what a node is told.
pub async fn carry_out(order: DrainOrder, host: &Host) -> anyhow::Result<Drained> {
    let led = || host.groups().iter().filter(|group| group.status().is_leader()).count() as u64;
    let led_before = led();
    match order {
        DrainOrder::Undrain => {
            host.set_draining(false);
            Ok(Drained { led_before, ..Drained::default() })
        }
        DrainOrder::Drain => {
            let drain = Drain::begin(host, DrainOptions::default().deadline(PATIENCE));
            let end = drain.finished().await;
            if end.state != DrainState::Done {
                bail!("the drain ended as {end:?}");
            }
            Ok(Drained {
                led_before,
                left: end.left as u64,
                moved: end.moved,
                failed: end.failed,
                window: end.window as u64,
                seconds: end.elapsed.as_secs_f64(),
            })
        }
    }
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &DrainArguments) -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let directory = arguments.directory.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    let layout = Layout {
        nodes: 3,
        groups: arguments.groups,
        machine: MachineKind::Trivial,
        workers: arguments.workers,
        apply_threads: 1,
    };
    let mut nodes = Nodes::start(&layout, &directory).await?;
    nodes.all(&Order::AwaitLeaders, PATIENCE).await?;
    // Two nodes drain, so that the third leads everything.
    for node in [2, 3] {
        drained(&mut nodes, node, DrainOrder::Drain).await?;
    }
    for node in [2, 3] {
        drained(&mut nodes, node, DrainOrder::Undrain).await?;
    }
    nodes.all(&Order::AwaitSleep, PATIENCE).await?;
    let drain = drained(&mut nodes, 1, DrainOrder::Drain).await?;
    let mut after = Vec::new();
    for node in [2, 3] {
        after.push(drained(&mut nodes, node, DrainOrder::Undrain).await?.led_before);
    }
    nodes.end().await?;
    let figures = json!({
        "groups": arguments.groups,
        "led_before": drain.led_before,
        "moved": drain.moved,
        "failed": drain.failed,
        "left": drain.left,
        "led_by_second_after": after[0],
        "led_by_third_after": after[1],
        "window_at_the_end": drain.window,
        "seconds": drain.seconds,
        "leaderships_per_second": drain.moved as f64 / drain.seconds,
    });
    report::print(&figures, arguments.json);
    Ok(())
}

async fn drained(nodes: &mut Nodes, node: u64, order: DrainOrder) -> anyhow::Result<Drained> {
    match nodes.one(node, &Order::Drain(order), PATIENCE).await.context("draining")? {
        Answer::Drained(drained) => Ok(drained),
        other => bail!("node {node} answers {other:?}"),
    }
}

//! What groups cost that nobody uses, and how soon they are led after a crash of everything.

use std::time::{Duration, Instant};

use super::nodes::{Layout, Nodes, Order};
use super::{IdleArguments, MachineKind, report};

/// Runs the benchmark.
pub async fn run(arguments: &IdleArguments) -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let directory = arguments.directory.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    let patience = Duration::from_secs(arguments.seconds + 120);
    let layout = Layout {
        nodes: 3,
        groups: arguments.groups,
        machine: MachineKind::Trivial,
        workers: 1,
        apply_threads: 1,
    };
    let mut nodes = Nodes::start(&layout, &directory).await?;
    nodes.all(&Order::AwaitLeaders, patience).await?;
    nodes.all(&Order::AwaitSleep, patience).await?;
    nodes.usage().await?;
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let usage = nodes.usage().await?;
    nodes.kill().await?;
    let killed = Instant::now();
    let mut nodes = Nodes::start(&layout, &directory).await?;
    let opened = killed.elapsed();
    nodes.all(&Order::AwaitLeaders, patience).await?;
    let led = killed.elapsed();
    nodes.end().await?;
    report::idle(arguments, &usage, opened, led)
}

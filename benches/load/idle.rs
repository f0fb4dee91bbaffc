//! The cost of unused groups, and how soon they are led after a crash of everything.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::arguments::{MachineKind, Output, Threads};
use super::nodes::{Layout, Nodes, Order, Usage};
use super::report;

/// How an idle benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct IdleArguments {
    /// Number of groups, each on every node.
    #[arg(long, default_value_t = 10_000)]
    pub groups: u64,
    /// Seconds to measure once all groups hibernate.
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    #[command(flatten)]
    pub output: Output,
}

/// Runs the benchmark.
pub async fn run(arguments: &IdleArguments) -> anyhow::Result<()> {
    let data = arguments.output.data()?;
    let limit = Duration::from_secs(arguments.seconds + 120);
    let layout = Layout {
        nodes: 3,
        groups: arguments.groups,
        machine: MachineKind::Trivial,
        threads: Threads::default(),
        tls: false,
    };
    let mut nodes = Nodes::start(&layout, data.path()).await?;
    nodes.all(&Order::AwaitLeaders, limit).await?;
    nodes.all(&Order::AwaitHibernation, limit).await?;
    nodes.usage().await?;
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let usage = nodes.usage().await?;
    nodes.kill().await?;
    let killed = Instant::now();
    let mut nodes = Nodes::start(&layout, data.path()).await?;
    let opened = killed.elapsed();
    nodes.all(&Order::AwaitLeaders, limit).await?;
    let led = killed.elapsed();
    nodes.end().await?;
    report_idle(arguments, &usage, opened, led);
    Ok(())
}

fn report_idle(arguments: &IdleArguments, usage: &[Usage], opened: Duration, led: Duration) {
    let most = |pick: &dyn Fn(&Usage) -> f64| usage.iter().map(pick).fold(0.0, f64::max);
    let resident = most(&|one| one.resident_bytes as f64);
    let figures = json!({
        "groups": arguments.groups,
        "cpu_percent_of_a_core": most(&|one| one.cpu_seconds / one.seconds * 100.0),
        "resident_mib_per_host": resident / 1_048_576.0,
        "resident_bytes_per_group": resident / arguments.groups.max(1) as f64,
        "messages": most(&|one| one.messages as f64),
        "seconds_until_opened": opened.as_secs_f64(),
        "seconds_until_all_led": led.as_secs_f64(),
    });
    report::print(&figures, arguments.output.json);
}

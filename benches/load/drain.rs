//! How long a node takes to hand on everything that it leads, and what it leaves behind; on request
//! while a part of the writes go on that the same setup sustains.

mod load;

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shardhost::Host;
use shardhost::driver::{Drain, DrainOptions, DrainState};

use super::crowd::{CrowdArguments, LEADER, OTHERS, PATIENCE};
use super::nodes::{Answer, Nodes, Order};
use super::report;
use load::Load;

/// How the drain benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct DrainArguments {
    /// Write meanwhile: this part of what can be written at most, which is measured first. Without
    /// it all groups sleep.
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    pub load: Option<f64>,
    #[command(flatten)]
    pub crowd: CrowdArguments,
}

fn fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|part: &f64| (0.01..=1.0).contains(part));
    fraction.ok_or_else(|| "write a part between 0.01 and 1, as 0.5 for half".to_owned())
}

/// What a node is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainOrder {
    /// Drain, and say what came of it.
    Drain,
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
    /// How long proposals of single groups stood still, as this node counts it since its start.
    freeze_p50_ms: f64,
    freeze_p99_ms: f64,
    freeze_max_ms: f64,
    by_watchdog: u64,
    stood_again: u64,
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
            let counters = host.stats().workers.policy;
            let freezes = host.runtime().freezes().snapshot();
            let millis = |quantile| freezes.quantile_us(quantile) as f64 / 1e3;
            Ok(Drained {
                led_before,
                freeze_p50_ms: millis(500),
                freeze_p99_ms: millis(990),
                freeze_max_ms: freezes.max_us() as f64 / 1e3,
                by_watchdog: counters.watchdog_endings,
                stood_again: counters.stood_again,
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
    let (mut nodes, _data) = arguments.crowd.gather().await?;
    let load = match arguments.load {
        Some(fraction) => Some(Load::begin(&mut nodes, arguments.crowd.groups, fraction).await?),
        None => {
            nodes.all(&Order::AwaitSleep, PATIENCE).await?;
            None
        }
    };
    let drain = drained(&mut nodes, LEADER, DrainOrder::Drain).await?;
    let loaded = match load {
        Some(load) => Some(load.end(&mut nodes, Duration::from_secs_f64(drain.seconds)).await?),
        None => None,
    };
    let mut after = Vec::new();
    for node in OTHERS {
        after.push(drained(&mut nodes, node, DrainOrder::Undrain).await?.led_before);
    }
    nodes.end().await?;
    let mut figures = json!({
        "groups": arguments.crowd.groups,
        "led_before": drain.led_before,
        "moved": drain.moved,
        "failed": drain.failed,
        "left": drain.left,
        "led_by_second_after": after[0],
        "led_by_third_after": after[1],
        "window_at_the_end": drain.window,
        "freeze_p50_ms": drain.freeze_p50_ms,
        "freeze_p99_ms": drain.freeze_p99_ms,
        "freeze_max_ms": drain.freeze_max_ms,
        "ended_by_watchdog": drain.by_watchdog,
        "stood_again": drain.stood_again,
        "seconds": drain.seconds,
        "leaderships_per_second": drain.moved as f64 / drain.seconds,
    });
    if let (Some(loaded), Some(figures)) = (loaded, figures.as_object_mut()) {
        figures.extend(loaded);
    }
    report::print(&figures, arguments.crowd.json);
    Ok(())
}

/// Tells a node to drain, or that it is over.
pub async fn drained(nodes: &mut Nodes, node: u64, order: DrainOrder) -> anyhow::Result<Drained> {
    match nodes.one(node, &Order::Drain(order), PATIENCE).await.context("draining")? {
        Answer::Drained(drained) => Ok(drained),
        other => bail!("node {node} answers {other:?}"),
    }
}

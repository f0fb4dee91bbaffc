//! How long a node takes to give away everything that it leads, and the rest; on request while a
//! part of the sustainable writes continue.

mod load;

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::crowd::{CrowdArguments, LEADER, OTHERS, TIMEOUT};
use super::draining::DrainTask;
use super::nodes::Order;
use super::report;
use load::Load;

/// How the drain benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct DrainArguments {
    /// Write meanwhile: this part of what can be written at most, which is measured first. Without
    /// it all groups hibernate.
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    pub load: Option<f64>,
    #[command(flatten)]
    pub crowd: CrowdArguments,
}

fn fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|part: &f64| (0.01..=1.0).contains(part));
    fraction.ok_or_else(|| "write a part between 0.01 and 1, as 0.5 for half".to_owned())
}

/// Runs the benchmark and reports.
pub async fn run(arguments: &DrainArguments) -> anyhow::Result<()> {
    let (mut nodes, _data) = arguments.crowd.gather().await?;
    let load = match arguments.load {
        Some(fraction) => Some(Load::begin(&mut nodes, arguments.crowd.groups, fraction).await?),
        None => {
            nodes.all(&Order::AwaitHibernation, TIMEOUT).await?;
            None
        }
    };
    let drain = nodes.one_does(LEADER, &DrainTask::Drain, TIMEOUT).await?;
    let loaded = match load {
        Some(load) => Some(load.end(&mut nodes, Duration::from_secs_f64(drain.seconds)).await?),
        None => None,
    };
    let mut after = Vec::new();
    for node in OTHERS {
        after.push(nodes.one_does(node, &DrainTask::Undrain, TIMEOUT).await?.led_before);
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
    report::print(&figures, arguments.crowd.output.json);
    Ok(())
}

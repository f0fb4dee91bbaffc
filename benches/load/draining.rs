//! Nodes that drain: the result, and how long proposals are paused meanwhile.

use anyhow::bail;
use serde::{Deserialize, Serialize};
use shardhost::Host;
use shardhost::driver::{Drain, DrainOptions, DrainState};

use super::member::Member;
use super::part::Part;
use super::task::Task;

/// How long a drain may take.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(300);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainTask {
    Drain,
    Undrain,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Drained {
    pub led_before: u64,
    pub left: u64,
    pub moved: u64,
    pub failed: u64,
    pub window: u64,
    pub seconds: f64,
    /// How long proposals of single groups were paused, as this node counts it since its start.
    pub freeze_p50_ms: f64,
    pub freeze_p99_ms: f64,
    pub freeze_max_ms: f64,
    pub by_watchdog: u64,
    pub stood_again: u64,
}

async fn execute(task: DrainTask, host: &Host) -> anyhow::Result<Drained> {
    let led = || host.groups().iter().filter(|group| group.status().is_leader()).count() as u64;
    let led_before = led();
    match task {
        DrainTask::Undrain => {
            host.set_draining(false);
            Ok(Drained { led_before, ..Drained::default() })
        }
        DrainTask::Drain => {
            let drain = Drain::begin(host, DrainOptions::default().deadline(DEADLINE));
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

impl Task for DrainTask {
    const NAME: &'static str = "drain";
    type Answer = Drained;
}

/// Drains a node.
#[derive(Default)]
pub struct DrainNode;

impl Part for DrainNode {
    type Task = DrainTask;

    async fn execute(&mut self, task: DrainTask, node: &mut Member) -> anyhow::Result<Drained> {
        execute(task, &node.running()?.host).await
    }
}

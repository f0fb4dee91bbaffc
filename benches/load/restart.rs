//! How a cluster of many groups with state comes back after all its hosts were killed.
//!
//! Three hosts. Every group is filled; then all hosts are killed and started again. Measured is
//! how long it takes until every group is open, is led, took a write; and it is checked that the
//! machines hold everything, and were given nothing that they held already.

mod node;
mod watch;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde_json::json;

use super::process::now_ns;
pub use node::RestartNode;
use node::{RestartAnswer, RestartTask, WrittenOnce};
pub use watch::{Seen, Watch, Watched};

use super::arguments::{MachineKind, Output, Threads};
use super::nodes::{Layout, Nodes, Order};
use super::report;

/// How the restart benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct RestartArguments {
    /// Number of groups, each on every node.
    #[arg(long, default_value_t = 10_000)]
    pub groups: u64,
    /// Writes to every group that are made durable in its state machine before the crash.
    #[arg(long, default_value_t = 20)]
    pub keys: u64,
    /// Writes to every group after that: they are in the log only.
    #[arg(long, default_value_t = 5)]
    pub tail: u64,
    /// What the groups are. Tables keep themselves on disk; the trivial machine is in memory, and
    /// has a snapshot.
    #[arg(long, value_enum, default_value_t = MachineKind::Table)]
    pub machine: MachineKind,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(320);
const PAUSE: Duration = Duration::from_millis(50);
const NODES: u64 = 3;

/// Runs the benchmark and reports.
pub async fn run(arguments: &RestartArguments) -> anyhow::Result<()> {
    let data = arguments.output.data()?;
    let mut bench = Bench::start(arguments, data.path()).await?;
    let filling = Instant::now();
    let uncertain = bench.fill().await?;
    let seconds_to_fill = filling.elapsed().as_secs_f64();
    bench.nodes.kill().await?;

    let began = now_ns()?;
    let mut bench = Bench::start(arguments, data.path()).await?;
    let opened = now_ns()?;
    let back = bench.write_once().await?;
    let items = bench.items(uncertain, &back).await?;
    let seen = bench.seen().await?;
    bench.nodes.end().await?;
    check(arguments, uncertain, &seen)?;

    let seconds = |moment: u64| Duration::from_nanos(moment.saturating_sub(began)).as_secs_f64();
    let figures = json!({
        "groups": arguments.groups,
        "machine": arguments.machine,
        "durable_writes_per_group": arguments.keys,
        "other_writes_per_group": arguments.tail,
        "seconds_to_fill": seconds_to_fill,
        "seconds_until_opened": seconds(opened),
        "seconds_until_all_led": seconds(back.led_ns),
        "seconds_until_all_took_a_write": seconds(back.written_ns),
        "items_on_all_hosts": items,
        "entries_held_at_opening": seen.held,
        "machines_restored_from_snapshots": seen.restored,
        "entries_applied_that_were_not_held": seen.replayed,
        "entries_applied_that_were_held": seen.twice,
    });
    report::print(&figures, arguments.output.json);
    Ok(())
}

/// Nothing that a machine held was applied to it, and so nothing twice.
fn check(arguments: &RestartArguments, uncertain: u64, seen: &Seen) -> anyhow::Result<()> {
    ensure!(seen.twice == 0, "{} entries were given to machines that held them", seen.twice);
    let lacked = NODES * (arguments.groups * arguments.tail + uncertain);
    let on_disk = arguments.machine == MachineKind::Table;
    ensure!(
        !on_disk || seen.replayed <= lacked,
        "{} entries were applied again, and only {lacked} were not durable",
        seen.replayed
    );
    Ok(())
}

/// The nodes while they run.
struct Bench<'a> {
    arguments: &'a RestartArguments,
    nodes: Nodes,
}

impl<'a> Bench<'a> {
    async fn start(arguments: &'a RestartArguments, directory: &Path) -> anyhow::Result<Self> {
        let layout = Layout {
            nodes: NODES,
            groups: arguments.groups,
            machine: arguments.machine,
            threads: arguments.threads,
            tls: false,
        };
        let nodes = Nodes::start_as(&layout, directory, |setup| setup.watched = true).await?;
        Ok(Self { arguments, nodes })
    }

    async fn all(&mut self, task: RestartTask) -> anyhow::Result<Vec<RestartAnswer>> {
        self.nodes.all_do(&task, TIMEOUT).await
    }

    /// Fills every group, makes that durable in the machines, and writes some more. Returns how
    /// many writes may have taken effect beside those.
    async fn fill(&mut self) -> anyhow::Result<u64> {
        self.nodes.all(&Order::AwaitLeaders, TIMEOUT).await?;
        let (keys, tail) = (self.arguments.keys, self.arguments.tail);
        let mut uncertain = self.write(0..keys).await?;
        self.all(RestartTask::AwaitItems { at_least: keys }).await?;
        self.all(RestartTask::MakeDurable).await?;
        uncertain += self.write(keys..keys + tail).await?;
        Ok(uncertain)
    }

    /// Writes these keys to every group, wherever it is led.
    async fn write(&mut self, keys: Range<u64>) -> anyhow::Result<u64> {
        let machine = self.arguments.machine;
        let mut missing: BTreeSet<u64> = (1..=self.arguments.groups).collect();
        let mut uncertain = 0;
        let deadline = Instant::now() + TIMEOUT;
        while !missing.is_empty() {
            ensure!(Instant::now() < deadline, "{} groups are not filled", missing.len());
            let groups = self.only(&missing);
            let keys = keys.clone();
            for answer in self.all(RestartTask::Fill { groups, keys, machine }).await? {
                let RestartAnswer::Filled { groups, uncertain: more } = answer else { continue };
                uncertain += more;
                missing.retain(|group| groups.binary_search(group).is_err());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(uncertain)
    }

    /// The groups that an order is about; `None`: all.
    fn only(&self, groups: &BTreeSet<u64>) -> Option<Vec<u64>> {
        let all = groups.len() as u64 == self.arguments.groups;
        (!all).then(|| groups.iter().copied().collect())
    }

    /// Writes to every group once; returns when the last one was led and written.
    async fn write_once(&mut self) -> anyhow::Result<WrittenOnce> {
        let machine = self.arguments.machine;
        let mut missing: BTreeSet<u64> = (1..=self.arguments.groups).collect();
        let mut all = WrittenOnce { led_ns: 0, written_ns: 0, groups: Vec::new(), uncertain: 0 };
        let deadline = Instant::now() + TIMEOUT;
        // A second time only for groups whose leadership moved meanwhile.
        while !missing.is_empty() {
            ensure!(Instant::now() < deadline, "{} groups took no write", missing.len());
            let groups = self.only(&missing);
            for answer in self.all(RestartTask::WriteOnce { groups, machine }).await? {
                let RestartAnswer::WrittenOnce(one) = answer else { continue };
                all.led_ns = all.led_ns.max(one.led_ns);
                all.written_ns = all.written_ns.max(one.written_ns);
                all.uncertain += one.uncertain;
                for group in &one.groups {
                    missing.remove(group);
                }
                all.groups.extend(one.groups);
            }
        }
        Ok(all)
    }

    /// Waits until every machine holds all that was written, and nothing more than that.
    async fn items(&mut self, uncertain: u64, back: &WrittenOnce) -> anyhow::Result<u64> {
        let each = self.arguments.keys + self.arguments.tail + 1;
        let mut items = 0;
        for answer in self.all(RestartTask::AwaitItems { at_least: each }).await? {
            if let RestartAnswer::Items { items: some } = answer {
                items += some;
            }
        }
        let least = NODES * self.arguments.groups * each;
        // A write that was sent again may count twice where commands are counted.
        let again = (back.groups.len() as u64).saturating_sub(self.arguments.groups);
        let most = least + NODES * (uncertain + back.uncertain + again);
        ensure!((least..=most).contains(&items), "{items} items, not {least} to {most}");
        Ok(items)
    }

    async fn seen(&mut self) -> anyhow::Result<Seen> {
        let mut all = Seen::default();
        for answer in self.all(RestartTask::Seen).await? {
            let RestartAnswer::Seen(seen) = answer else { continue };
            all.held += seen.held;
            all.restored += seen.restored;
            all.replayed += seen.replayed;
            all.fresh += seen.fresh;
            all.twice += seen.twice;
        }
        Ok(all)
    }
}

//! How a node that is far behind catches up by snapshot, and what that does to writers.
//!
//! Three host processes. Two of them hold *large* groups, each with a state of the given size,
//! and *small* ones; writers write to all of them. Their log is truncated. Then the third node
//! starts with nothing: the leaders make snapshots of the large states, ship them, and the node
//! restores them and follows.

mod machine;
mod node;
mod report;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::arguments::{MachineKind, Output, Threads};
use super::nodes::{Layout, Nodes};
pub use node::SnapshotNode;
pub use node::{Join, Lap, Look, SnapshotAnswer, SnapshotTask};
use report::{Event, Timeline};

/// How the snapshot benchmark runs.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct SnapshotArguments {
    /// Bytes of the state of a large group, for example 64MiB or 1GiB.
    #[arg(long, value_parser = parse_bytes, default_value = "256MiB")]
    pub size: u64,
    /// Number of large groups.
    #[arg(long, default_value_t = 1)]
    pub groups: u64,
    /// Number of small groups.
    #[arg(long, default_value_t = 16)]
    pub small_groups: u64,
    /// Bytes per second that snapshots of a host may take of its disk, and again of its network,
    /// for example 64MiB; 0: no bound.
    #[arg(long, value_parser = parse_bytes, default_value = "64MiB")]
    pub rate: u64,
    /// Bytes of a snapshot that are written before they are synced.
    #[arg(long, value_parser = parse_bytes, default_value = "8MiB")]
    pub sync: u64,
    /// Writes per second to offer, half of them to the large groups; 0: as fast as answers come.
    #[arg(long, default_value_t = 2_000)]
    pub writes: u64,
    /// Writes under way at any moment, half of them to the large groups.
    #[arg(long, default_value_t = 64)]
    pub outstanding: usize,
    /// Bytes of a write.
    #[arg(long, default_value_t = 100)]
    pub payload: usize,
    /// Seconds to measure before the third node starts, and after it has caught up.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    #[command(flatten)]
    pub threads: Threads,
    #[command(flatten)]
    pub output: Output,
}

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Between two looks at how far the nodes are.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The nodes that lead, and the one that comes late.
const LEADERS: [u64; 2] = [1, 2];
const LATE: u64 = 3;

/// Runs the benchmark and reports.
pub async fn run(arguments: &SnapshotArguments) -> anyhow::Result<()> {
    let data = arguments.output.data()?;
    let mut bench = Bench::start(arguments, data.path()).await?;
    bench.write_until_the_log_is_truncated().await?;
    bench.lap().await?;
    let seconds = Duration::from_secs(arguments.seconds);
    tokio::time::sleep(seconds).await;
    let before = bench.lap().await?;
    let timeline = bench.catch_up().await?;
    bench.lap().await?;
    tokio::time::sleep(seconds).await;
    let after = bench.lap().await?;
    bench.nodes.end().await?;
    report::print(arguments, &before, &timeline, &after)
}

/// The nodes while they run.
struct Bench {
    arguments: SnapshotArguments,
    nodes: Nodes,
    join: Join,
}

impl Bench {
    /// Starts the first two nodes. The third listens, and knows no other.
    async fn start(arguments: &SnapshotArguments, directory: &Path) -> anyhow::Result<Self> {
        let layout = Layout {
            nodes: 3,
            groups: 0,
            machine: MachineKind::Trivial,
            threads: arguments.threads,
            tls: false,
        };
        let (nodes, addresses) = Nodes::introduce(&layout, directory).await?;
        let join = Join { addresses, arguments: arguments.clone(), late: false };
        let mut bench = Self { arguments: arguments.clone(), nodes, join };
        bench.leaders_do(SnapshotTask::Join(bench.join.clone())).await?;
        Ok(bench)
    }

    async fn does(&mut self, node: u64, task: SnapshotTask) -> anyhow::Result<SnapshotAnswer> {
        self.nodes.one_does(node, &task, TIMEOUT).await
    }

    async fn look(&mut self, node: u64) -> anyhow::Result<Look> {
        match self.does(node, SnapshotTask::Look).await? {
            SnapshotAnswer::Look(look) => Ok(look),
            other => bail!("node {node} answered {other:?}"),
        }
    }

    /// What was written since the last lap, by both nodes that lead.
    async fn lap(&mut self) -> anyhow::Result<Vec<Lap>> {
        let mut laps = Vec::new();
        for (node, answer) in (1..).zip(self.leaders_do(SnapshotTask::Lap).await?) {
            match answer {
                SnapshotAnswer::Lap(lap) => laps.push(*lap),
                other => bail!("node {node} answered {other:?}"),
            }
        }
        Ok(laps)
    }

    async fn leaders_do(&mut self, task: SnapshotTask) -> anyhow::Result<Vec<SnapshotAnswer>> {
        let tasks = LEADERS.map(|_| task.clone());
        self.nodes.each(tasks, TIMEOUT).await
    }

    /// Writes until the late node can only catch up by snapshot.
    async fn write_until_the_log_is_truncated(&mut self) -> anyhow::Result<()> {
        self.leaders_do(SnapshotTask::Write).await?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let looks = [self.look(1).await?, self.look(2).await?];
            let truncated = |group: &(u64, _)| {
                looks.iter().flat_map(|look| &look.large).any(|g| g.group == group.0 && g.first > 2)
            };
            let groups: Vec<_> = looks[0].large.iter().map(|large| (large.group, ())).collect();
            if groups.iter().all(truncated) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the log is not truncated: {looks:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Starts the late node, and watches until it has everything.
    async fn catch_up(&mut self) -> anyhow::Result<Timeline> {
        let mut timeline = Timeline::begin();
        let late = Join { late: true, ..self.join.clone() };
        self.does(LATE, SnapshotTask::Join(late)).await?;
        let total = self.arguments.size * self.arguments.groups;
        let deadline = Instant::now() + TIMEOUT;
        let mut open = vec![Event::Made, Event::FirstByte, Event::Shipped, Event::CaughtUp];
        while let Some(event) = open.first().copied() {
            let leaders = [self.look(1).await?, self.look(2).await?];
            let late = self.look(LATE).await?;
            let made: BTreeSet<u64> = leaders.iter().flat_map(Look::made).collect();
            let reached = match event {
                Event::Made => made.len() as u64 == self.arguments.groups,
                Event::FirstByte => late.bytes_received > 1 << 20 || late.bytes_received >= total,
                Event::Shipped => late.bytes_received >= total,
                Event::CaughtUp => late.has_caught_up_with(&leaders),
            };
            if reached {
                timeline.reached(event, self.lap().await?, late);
                open.remove(0);
                continue;
            }
            ensure!(Instant::now() < deadline, "no {event:?} in time: {leaders:?}, {late:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let crcs = [self.look(1).await?.state_crcs(), self.look(LATE).await?.state_crcs()];
        ensure!(crcs[0] == crcs[1], "the states differ: {crcs:?}");
        Ok(timeline)
    }
}

/// A number of bytes as people write it: 4096, 64KiB, 256MiB, 1GiB.
pub fn parse_bytes(text: &str) -> anyhow::Result<u64> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
    let unit = units.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let number: u64 = number.trim().parse().with_context(|| format!("{text:?} is no size"))?;
    number.checked_mul(1 << shift).with_context(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("7B", 7), ("64 KiB", 65536), ("2MiB", 2 << 20)]
        {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        assert_eq!(parse_bytes("1GiB").unwrap(), 1 << 30);
        for text in ["", "MiB", "-1", "1.5GiB", "99999999999GiB", "1TB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}

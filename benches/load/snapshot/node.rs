//! One node of the snapshot benchmark.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shardhost::groups::GroupSpec;
use shardhost::{Group, GroupId, Host, HostConfig, NodeId, Shutdown, StateMachine};
use tokio::task::JoinSet;
use tonic::service::Routes;

use super::SnapshotArguments;
use super::machine::{Large, Seen};
use crate::machine::Counter;
use crate::member::{Member, Role};
use crate::part::Part;
use crate::process::{cpu_time, forget_peak, peak_resident_bytes};
use crate::task::Task;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotTask {
    Join(Join),
    /// Write to every group that this node leads, until the end.
    Write,
    /// Say how far the large groups are.
    Look,
    /// Say what was written since the last time.
    Lap,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotAnswer {
    Done,
    Look(Look),
    Lap(Box<Lap>),
}

/// Start, and create the groups.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Join {
    pub addresses: BTreeMap<u64, String>,
    pub arguments: SnapshotArguments,
    pub late: bool,
}

/// How far a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Look {
    pub large: Vec<LargeGroup>,
    /// Bytes of snapshots that came.
    pub bytes_received: u64,
    pub peak_bytes: u64,
    pub cpu_seconds: f64,
}

/// How far a large group is on a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LargeGroup {
    pub group: u64,
    pub first: u64,
    pub committed: u64,
    pub applied: u64,
    pub snapshot: bool,
    pub state_crc: Option<u32>,
}

impl Look {
    /// Whether this node has applied all that the leaders had committed a moment ago, but for
    /// writes since the last heartbeat.
    pub fn has_caught_up_with(&self, leaders: &[Self]) -> bool {
        self.large.iter().all(|own| {
            let committed = leaders.iter().flat_map(|look| &look.large);
            let committed = committed.filter(|large| large.group == own.group);
            let committed = committed.map(|large| large.committed).max().unwrap_or(u64::MAX);
            own.state_crc.is_some() && own.applied + CAUGHT_UP_ENTRIES >= committed
        })
    }

    /// Large groups that have a snapshot here.
    pub fn made(&self) -> impl Iterator<Item = u64> {
        self.large.iter().filter(|large| large.snapshot).map(|large| large.group)
    }

    pub fn state_crcs(&self) -> Vec<Option<u32>> {
        self.large.iter().map(|large| large.state_crc).collect()
    }
}

/// A follower this little behind counts as caught up.
const CAUGHT_UP_ENTRIES: u64 = 200;

/// What one node wrote and used since the last lap.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lap {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
    pub large: Written,
    pub small: Written,
}

/// Writes to groups of one kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Written {
    pub acknowledged: u64,
    pub failed: u64,
    /// Latencies in microseconds, with how often each was seen.
    pub latencies: Vec<(u64, u64)>,
}

impl Task for SnapshotTask {
    const NAME: &'static str = "snapshot";
    type Answer = SnapshotAnswer;
}

/// A node, which runs a separate host once it joined.
#[derive(Default)]
pub struct SnapshotNode(Option<Running>);

struct Running {
    host: Host,
    arguments: SnapshotArguments,
    large: Vec<(Group, Arc<Seen>)>,
    small: Vec<Group>,
    tallies: [Arc<Mutex<Tally>>; 2],
    writers: JoinSet<()>,
    /// Whether writes come at the offered rate: from the first lap on. Before, as many entries as
    /// possible are to be truncated.
    paced: Arc<AtomicBool>,
    lap_began: (Instant, Duration),
}

impl Part for SnapshotNode {
    type Task = SnapshotTask;

    async fn execute(
        &mut self,
        task: SnapshotTask,
        node: &mut Member,
    ) -> anyhow::Result<SnapshotAnswer> {
        Ok(match (task, self.0.as_mut()) {
            (SnapshotTask::Join(join), None) => {
                let role = node.role.take().context("the node has no role yet")?;
                self.0 = Some(Running::start(role, join).await?);
                SnapshotAnswer::Done
            }
            (SnapshotTask::Write, Some(running)) => {
                running.write();
                SnapshotAnswer::Done
            }
            (SnapshotTask::Look, Some(running)) => SnapshotAnswer::Look(running.look()),
            (SnapshotTask::Lap, Some(running)) => SnapshotAnswer::Lap(Box::new(running.lap())),
            (task, _) => bail!("{task:?} makes no sense here"),
        })
    }

    async fn end(self) {
        if let Some(running) = self.0 {
            running.end().await;
        }
    }
}

impl Running {
    async fn start(role: Role, join: Join) -> anyhow::Result<Self> {
        let Join { addresses, arguments, late } = join;
        let peers = addresses.into_iter().filter_map(|(id, at)| Some((NodeId::new(id)?, at)));
        let mut config = HostConfig::new(role.node, role.directory.join("data")).peers(peers);
        config.workers = role.workers;
        config.apply_threads = role.apply_threads;
        config.snapshots.bytes_per_second = arguments.rate;
        config.snapshot_files.bytes_per_second = arguments.rate;
        config.snapshot_files.sync_bytes = arguments.sync;
        config.groups.log_keep_entries = LOG_KEEP_ENTRIES;
        config.groups.log_trail_entries = LOG_TRAIL_ENTRIES;
        let listener = role.listener.context("no listener")?;
        let host = Host::builder(config).listener(listener).start().await?;
        host.serve(Routes::default());
        let mut machines: Vec<Box<dyn StateMachine>> = Vec::new();
        let mut seen = Vec::new();
        for number in 1..=arguments.groups {
            let machine = large_machine(&role.directory, &arguments, number, late)?;
            seen.push(machine.seen());
            machines.push(Box::new(machine));
        }
        machines.extend((0..arguments.small_groups).map(|_| Box::new(Counter::default()) as _));
        let voters: Vec<NodeId> = (1..=role.nodes).filter_map(NodeId::new).collect();
        let specs = (1..).zip(machines).map(|(id, machine)| {
            (GroupSpec::new(GroupId::new(id), voters.iter().copied()), machine)
        });
        let mut groups = host.create_groups(specs.collect()).await?;
        let small = groups.split_off(seen.len());
        let large = groups.into_iter().zip(seen).collect();
        let tallies = [Tally::new()?, Tally::new()?].map(|tally| Arc::new(Mutex::new(tally)));
        let (writers, paced, lap_began) =
            (JoinSet::new(), Arc::default(), (Instant::now(), cpu_time()));
        Ok(Self { host, arguments, large, small, tallies, writers, paced, lap_began })
    }

    /// Writes to all groups; those that this node does not lead refuse.
    fn write(&mut self) {
        let half = (self.arguments.outstanding / 2).max(1);
        let rate = self.arguments.writes as f64 / 2.0;
        let large: Vec<Group> = self.large.iter().map(|(group, _)| group.clone()).collect();
        for (groups, tally) in [large, self.small.clone()].into_iter().zip(&self.tallies) {
            for number in 0..half.max(groups.len()) {
                let Some(group) = groups.get(number % groups.len().max(1)) else { continue };
                let writers = half.max(groups.len()) as f64;
                let interval = (rate > 0.0).then(|| Duration::from_secs_f64(writers / rate));
                let payload = Bytes::from(vec![b'x'; self.arguments.payload]);
                let (tally, paced) = (Arc::clone(tally), Arc::clone(&self.paced));
                let writer = Writer { group: group.clone(), tally, payload, interval, paced };
                self.writers.spawn(writer.run());
            }
        }
    }

    fn look(&self) -> Look {
        let large = self.large.iter().map(|(group, seen)| {
            let status = group.status();
            LargeGroup {
                group: group.id().get(),
                first: status.first.get(),
                committed: status.committed.get(),
                applied: status.applied.get(),
                snapshot: status.snapshot.is_some(),
                state_crc: seen.crc(),
            }
        });
        Look {
            large: large.collect(),
            bytes_received: self.host.transport_stats().snapshot_bytes_received,
            peak_bytes: peak_resident_bytes(),
            cpu_seconds: cpu_time().as_secs_f64(),
        }
    }

    fn lap(&mut self) -> Lap {
        let (began, cpu) = std::mem::replace(&mut self.lap_began, (Instant::now(), cpu_time()));
        let [large, small] = self.tallies.each_ref().map(|tally| tally.lock().take());
        let lap = Lap {
            seconds: began.elapsed().as_secs_f64(),
            cpu_seconds: (cpu_time() - cpu).as_secs_f64(),
            peak_bytes: peak_resident_bytes(),
            large,
            small,
        };
        forget_peak();
        self.paced.store(true, Ordering::Relaxed);
        lap
    }

    async fn end(mut self) {
        self.writers.shutdown().await;
        self.host.shutdown(Shutdown::Immediate).await;
    }
}

/// So little that a node which comes late finds nothing of the beginning.
const LOG_KEEP_ENTRIES: u64 = 1_000;
const LOG_TRAIL_ENTRIES: u64 = 500;

fn large_machine(
    directory: &Path,
    arguments: &SnapshotArguments,
    number: u64,
    late: bool,
) -> anyhow::Result<Large> {
    let file = directory.join(format!("state-{number}"));
    if late {
        return Ok(Large::empty(file));
    }
    let shown = file.display().to_string();
    Large::filled(file, arguments.size, number).with_context(|| format!("cannot write {shown}"))
}

/// Answers since the last lap.
struct Tally {
    histogram: Histogram<u64>,
    written: Written,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, 60_000_000, 3).context("a histogram")?;
        Ok(Self { histogram, written: Written::default() })
    }

    fn count(&mut self, taken: bool, latency: Duration) {
        if taken {
            self.written.acknowledged += 1;
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.histogram.saturating_record(micros.max(1));
        } else {
            self.written.failed += 1;
        }
    }

    fn take(&mut self) -> Written {
        let mut written = std::mem::take(&mut self.written);
        let recorded = self.histogram.iter_recorded();
        written.latencies = recorded.map(|v| (v.value_iterated_to(), v.count_at_value())).collect();
        self.histogram.reset();
        written
    }
}

/// Writes to one group, one after the other.
struct Writer {
    group: Group,
    tally: Arc<Mutex<Tally>>,
    payload: Bytes,
    interval: Option<Duration>,
    paced: Arc<AtomicBool>,
}

impl Writer {
    async fn run(self) {
        let mut due = Instant::now();
        loop {
            if !self.group.status().serving {
                // Another node leads; a transfer may follow.
                tokio::time::sleep(Duration::from_millis(50)).await;
                due = Instant::now();
                continue;
            }
            if !self.paced.load(Ordering::Relaxed) {
                due = Instant::now();
            } else if let Some(interval) = self.interval {
                tokio::time::sleep_until(due.into()).await;
                due += interval;
            }
            let began = Instant::now();
            let taken = self.group.propose(self.payload.clone()).await.is_ok();
            self.tally.lock().count(taken, began.elapsed());
        }
    }
}

//! Writes, embedded: every node proposes to the groups that it leads, as a user of the library
//! does. One thread per node submits; it is woken by answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use shardhost::groups::{ProposalSink, ProposeOutcome};
use shardhost::{Group, Host};
use shardhost_server::shards::table::TableCommand;

use super::arguments::{MachineKind, WriteArguments};
use super::member::Member;
use super::nodes::{Layout, Measured, Nodes, Usage};
use super::part::Part;
use super::report;
use super::task::Task;

/// The part at the start that is not measured.
pub const WARM_UP: Duration = Duration::from_secs(2);
/// After the end: how long answers may still come.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Runs the benchmark and reports.
pub async fn run(arguments: &WriteArguments) -> anyhow::Result<()> {
    report::print(&measure(arguments).await?, arguments.output.json);
    Ok(())
}

/// Starts the nodes, spreads the leaders, lets all write.
pub async fn measure(arguments: &WriteArguments) -> anyhow::Result<serde_json::Value> {
    let data = arguments.output.data()?;
    let layout = Layout::of(arguments);
    let limit = Duration::from_secs(arguments.seconds + 120);
    let mut nodes = Nodes::start(&layout, data.path()).await?;
    nodes.spread(limit).await?;
    let measured = nodes.all_do(&WriteTask(arguments.clone()), limit).await?;
    nodes.end().await?;
    report::write(arguments, &measured, None)
}

/// Write to the groups that the node leads.
#[derive(Debug, Serialize, Deserialize)]
pub struct WriteTask(pub WriteArguments);

impl Task for WriteTask {
    const NAME: &'static str = "write";
    type Answer = Measured;
}

/// Writes on a node.
#[derive(Default)]
pub struct WriteNode;

impl Part for WriteNode {
    type Task = WriteTask;

    async fn execute(&mut self, task: WriteTask, node: &mut Member) -> anyhow::Result<Measured> {
        let running = node.running()?;
        running.until_serving().await?;
        drive(&running.host, &running.groups, &task.0, || running.used())
    }
}

/// Answers that came and were not looked at yet: by token, whether the write was acknowledged.
#[derive(Default)]
pub struct Answers {
    fresh: Mutex<Vec<(u64, bool)>>,
    wake: Condvar,
}

impl ProposalSink for Answers {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        let mut fresh = self.fresh.lock();
        fresh.push((token, outcome.is_ok()));
        if fresh.len() == 1 {
            self.wake.notify_one();
        }
    }
}

impl Answers {
    /// Takes what came, or waits for it until `deadline`.
    pub fn take(&self, into: &mut Vec<(u64, bool)>, deadline: Instant) {
        let mut fresh = self.fresh.lock();
        if fresh.is_empty() {
            self.wake.wait_until(&mut fresh, deadline);
        }
        std::mem::swap(&mut *fresh, into);
    }
}

/// One write that is under way or may be.
#[derive(Clone, Copy)]
struct Slot {
    group: usize,
    due: Instant,
    busy: bool,
}

/// Drives the groups that this node leads, and measures.
pub fn drive(
    host: &Host,
    groups: &[Group],
    arguments: &WriteArguments,
    usage: impl Fn() -> Usage,
) -> anyhow::Result<Measured> {
    drive_after(host, groups, arguments, WARM_UP, usage)
}

/// The same after another time to warm up.
pub fn drive_after(
    host: &Host,
    groups: &[Group],
    arguments: &WriteArguments,
    warm_up: Duration,
    usage: impl Fn() -> Usage,
) -> anyhow::Result<Measured> {
    let led: Vec<&Group> = groups.iter().filter(|group| group.status().serving).collect();
    let share = share_of(groups, host.node_id().get(), arguments);
    let mut driver = Driver::new(led, share, arguments)?;
    let start = Instant::now();
    let measure_from = start + warm_up;
    let end = measure_from + Duration::from_secs(arguments.seconds);
    driver.run_until(measure_from);
    driver.forget();
    let before = usage();
    driver.run_until(end);
    let used = usage().since(&before);
    let (acknowledged, failed) = (driver.acknowledged, driver.failed);
    let latencies =
        driver.histogram.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value()));
    let latencies = latencies.collect();
    driver.drain(Instant::now() + DRAIN);
    Ok(Measured { acknowledged, failed, usage: used, latencies })
}

/// How many writes this node keeps under way: its part of the groups' part.
fn share_of(groups: &[Group], node: u64, arguments: &WriteArguments) -> usize {
    let total = groups.len().max(1);
    let mine = |number: u64| {
        let led = |group: &&Group| 1 + group.id().get() % arguments.nodes == number;
        groups.iter().filter(led).count()
    };
    let upto = |number: u64| (1..=number).map(mine).sum::<usize>() * arguments.outstanding / total;
    upto(node) - upto(node - 1)
}

struct Driver<'a> {
    groups: Vec<&'a Group>,
    slots: Vec<Slot>,
    answers: Arc<Answers>,
    sink: Arc<dyn ProposalSink>,
    payload: Payload,
    interval: Option<Duration>,
    next_due: Instant,
    idle: Vec<u64>,
    histogram: Histogram<u64>,
    acknowledged: u64,
    failed: u64,
    under_way: usize,
}

impl<'a> Driver<'a> {
    fn new(
        groups: Vec<&'a Group>,
        share: usize,
        arguments: &WriteArguments,
    ) -> anyhow::Result<Self> {
        let answers = Arc::new(Answers::default());
        let now = Instant::now();
        let share = if groups.is_empty() { 0 } else { share };
        let count = groups.len().max(1);
        let slots: Vec<Slot> =
            (0..share).map(|n| Slot { group: n % count, due: now, busy: false }).collect();
        let per_node = arguments.rate as f64 / arguments.nodes as f64;
        let interval = (arguments.rate > 0).then(|| Duration::from_secs_f64(1.0 / per_node));
        Ok(Self {
            groups,
            idle: (0..slots.len() as u64).rev().collect(),
            slots,
            sink: Arc::clone(&answers) as Arc<dyn ProposalSink>,
            answers,
            payload: Payload::new(arguments),
            interval,
            next_due: now,
            histogram: Histogram::new_with_bounds(1, 60_000_000, 3).context("a histogram")?,
            acknowledged: 0,
            failed: 0,
            under_way: 0,
        })
    }

    fn forget(&mut self) {
        self.histogram.reset();
        self.acknowledged = 0;
        self.failed = 0;
    }

    fn run_until(&mut self, end: Instant) {
        let mut fresh = Vec::new();
        loop {
            let now = Instant::now();
            if now >= end {
                return;
            }
            self.submit(now);
            let wait = match self.interval {
                Some(_) if !self.idle.is_empty() => self.next_due.min(end),
                _ => end,
            };
            self.answers.take(&mut fresh, wait);
            self.settle(&mut fresh);
        }
    }

    fn settle(&mut self, fresh: &mut Vec<(u64, bool)>) {
        let now = Instant::now();
        for (token, taken) in fresh.drain(..) {
            let Some(slot) = usize::try_from(token).ok().and_then(|n| self.slots.get_mut(n)) else {
                continue;
            };
            slot.busy = false;
            self.under_way -= 1;
            self.idle.push(token);
            if taken {
                self.acknowledged += 1;
                let took = now.saturating_duration_since(slot.due).as_micros();
                self.histogram.saturating_record(u64::try_from(took).unwrap_or(u64::MAX).max(1));
            } else {
                self.failed += 1;
            }
        }
    }

    /// Submits the writes that are due, as one batch per group.
    fn submit(&mut self, now: Instant) {
        let mut batches: Vec<Vec<(u64, Bytes)>> = vec![Vec::new(); self.groups.len()];
        while let Some(token) = self.idle.last().copied() {
            let due = match self.interval {
                Some(_) if self.next_due > now => break,
                Some(interval) => {
                    let due = self.next_due;
                    self.next_due += interval;
                    due
                }
                None => now,
            };
            self.idle.pop();
            let Some(slot) = usize::try_from(token).ok().and_then(|n| self.slots.get_mut(n)) else {
                continue;
            };
            slot.due = due;
            slot.busy = true;
            self.under_way += 1;
            batches[slot.group].push((token, self.payload.next()));
        }
        for (group, batch) in self.groups.iter().zip(batches) {
            if !batch.is_empty() {
                group.submit(batch, &self.sink);
            }
        }
    }

    fn drain(&mut self, deadline: Instant) {
        let mut fresh = Vec::new();
        while self.under_way > 0 && Instant::now() < deadline {
            self.answers.take(&mut fresh, deadline);
            self.settle(&mut fresh);
        }
    }
}

/// Commands without any pattern that a compressor could use.
pub struct Payload {
    state: u64,
    size: usize,
    machine: MachineKind,
}

impl Payload {
    /// Payloads of the size and kind that the arguments say.
    pub fn new(arguments: &WriteArguments) -> Self {
        let seed = u64::from(std::process::id());
        Self { state: seed, size: arguments.size.max(1), machine: arguments.machine }
    }

    /// A key of a hundred thousand, so that values are replaced too, and its value.
    pub fn pair(&mut self) -> (String, Bytes) {
        let value = self.random();
        (format!("key-{:05}", self.state % 100_000), value)
    }

    fn random(&mut self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.size + 8);
        while bytes.len() < self.size {
            self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            bytes.extend_from_slice(&self.state.rotate_right(17).to_le_bytes());
        }
        bytes.truncate(self.size);
        Bytes::from(bytes)
    }

    fn next(&mut self) -> Bytes {
        match self.machine {
            MachineKind::Trivial => self.random(),
            MachineKind::Table => {
                let (key, value) = self.pair();
                TableCommand::Put { key: key.as_bytes(), value: &value }.encode()
            }
        }
    }
}

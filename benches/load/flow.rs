//! A steady flow of writes to all groups, wherever they are led: every node goes through the same
//! sequence, and makes the writes whose group it serves when they are due. Groups may come and go
//! meanwhile: a node has a part of the writes of those that it serves at the moment.
//!
//! Some groups are *probes*: each is written to at short intervals, so that the longest time
//! between two acknowledged writes of it is the time it was paused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shardhost::groups::{ProposalSink, ProposeOutcome};
use shardhost::{GroupId, Host};
use shardhost_proto::hash::mix;
use shardhost_server::shards::table::TableCommand;

use super::arguments::MachineKind;
use super::member::Member;
use super::part::Part;
use super::process::now_ns;
use super::tally::{Counted, Tally};
use super::task::Task;

/// Between two looks at which writes are due.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long answers may take after the end.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// Marks the token of a write to a probe.
const PROBE: u64 = 1 << 63;
/// Bits of a token that say which probe.
const PROBE_BITS: u32 = 16;

/// What flows. Equal on all nodes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// When the first write is due, on the clock of this machine, in nanoseconds.
    pub from_ns: u64,
    /// The groups: so many, numbered from this one.
    pub first_group: u64,
    pub groups: u64,
    pub machine: MachineKind,
    /// Writes per second to groups by chance.
    pub rate: u64,
    /// Groups that are probes, and the time between two writes to each, in nanoseconds.
    pub probes: u64,
    pub probe_every_ns: u64,
    pub size: usize,
}

impl Flow {
    /// To the groups of a benchmark of hosts, which are numbered from 1, and count writes.
    pub const fn to_counters(groups: u64, from_ns: u64) -> Self {
        let (machine, first_group) = (MachineKind::Trivial, 1);
        let (rate, probes, probe_every_ns, size) = (0, 0, 0, 16);
        Self { from_ns, first_group, groups, machine, rate, probes, probe_every_ns, size }
    }

    /// The number of the first write by chance that is not due yet, and of the first round of probes.
    const fn first_after(&self, now_ns: u64) -> (u64, u64) {
        let passed = now_ns.saturating_sub(self.from_ns);
        let next = (passed as u128 * self.rate as u128).div_ceil(1_000_000_000) as u64;
        let round = match self.probe_every_ns {
            0 => 0,
            every => passed.div_ceil(every),
        };
        (next, round)
    }

    /// When a write by chance is due.
    fn due(&self, number: u64) -> u64 {
        self.from_ns + (u128::from(number) * 1_000_000_000 / u128::from(self.rate.max(1))) as u64
    }

    /// When the probes are written to.
    const fn probes_due(&self, round: u64) -> u64 {
        self.from_ns + round * self.probe_every_ns
    }

    fn due_of(&self, token: u64) -> u64 {
        match token & PROBE {
            0 => self.due(token),
            _ => self.probes_due((token & !PROBE) >> PROBE_BITS),
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowTask {
    Begin(Flow),
    /// Report the outcomes since the last time.
    Lap,
    /// End, and report the outcomes.
    End,
}

impl Task for FlowTask {
    const NAME: &'static str = "flow";
    type Answer = Flowed;
}

/// The writes of a node, while they flow.
#[derive(Default)]
pub struct FlowNode(Option<Flowing>);

impl Part for FlowNode {
    type Task = FlowTask;

    async fn execute(&mut self, task: FlowTask, node: &mut Member) -> anyhow::Result<Flowed> {
        match task {
            FlowTask::Begin(flow) => {
                self.0 = Some(Flowing::begin(&node.running()?.host, flow)?);
                Ok(Flowed::default())
            }
            FlowTask::Lap => Ok(self.0.as_ref().map(Flowing::lap).unwrap_or_default()),
            FlowTask::End => match self.0.take() {
                Some(flowing) => flowing.end().await,
                None => Ok(Flowed::default()),
            },
        }
    }
}

/// The outcomes of the writes that a node made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Flowed {
    /// Those that were acknowledged, from when they were due.
    pub counted: Counted,
    /// Those that surely took no effect; the error names the leader.
    pub refused: u64,
    pub unknown: u64,
    /// When the writes of each probe were acknowledged.
    pub probes: BTreeMap<u64, Vec<u64>>,
}

impl Flowed {
    /// Adds what another node made.
    pub fn add(&mut self, other: Self) {
        self.counted.add(other.counted);
        self.refused += other.refused;
        self.unknown += other.unknown;
        for (probe, acks) in other.probes {
            self.probes.entry(probe).or_default().extend(acks);
        }
    }

    /// The longest time between two acknowledged writes of each probe, from one moment to another,
    /// in nanoseconds. A probe without any was paused all the time.
    pub fn stalls(&self, from_ns: u64, to_ns: u64) -> Vec<u64> {
        let stall = |acks: &Vec<u64>| {
            let mut moments: Vec<u64> =
                acks.iter().copied().filter(|at| (from_ns..=to_ns).contains(at)).collect();
            moments.extend([from_ns, to_ns]);
            moments.sort_unstable();
            moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
        };
        self.probes.values().map(stall).collect()
    }
}

/// Takes the outcomes of one node's writes.
struct Outcomes {
    flow: Flow,
    answered: AtomicU64,
    recorded: Mutex<(Tally, Flowed)>,
}

impl ProposalSink for Outcomes {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        let Ok(now) = now_ns() else { return };
        let (tally, flowed) = &mut *self.recorded.lock();
        let took = Duration::from_nanos(now.saturating_sub(self.flow.due_of(token)));
        match outcome {
            Ok(_) => {
                tally.count(true, took);
                if token & PROBE != 0 {
                    let probe = token & ((1 << PROBE_BITS) - 1);
                    flowed.probes.entry(probe).or_default().push(now);
                }
            }
            Err(error) if error.is_definite() => flowed.refused += 1,
            Err(_) => flowed.unknown += 1,
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The part of a node, on a separate thread.
pub struct Flowing {
    outcomes: Arc<Outcomes>,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flowing {
    /// Begins to write.
    pub fn begin(host: &Host, flow: Flow) -> anyhow::Result<Self> {
        let recorded = Mutex::new((Tally::new()?, Flowed::default()));
        let outcomes = Arc::new(Outcomes { flow, answered: AtomicU64::new(0), recorded });
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let sink = Arc::clone(&outcomes) as Arc<dyn ProposalSink>;
        let (host, counted) = (host.clone(), Arc::clone(&made));
        // A node that comes later makes none of the writes that were due before.
        let (next, next_round) = flow.first_after(now_ns()?);
        let mut writer = Writer { flow, host, sink, made: counted, next, next_round };
        let stopped = Arc::clone(&stop);
        let run = move || {
            while !stopped.load(Ordering::Relaxed) {
                writer.write_due();
                std::thread::sleep(LOOK_EVERY);
            }
        };
        let thread = Some(std::thread::Builder::new().name("flow".to_owned()).spawn(run)?);
        Ok(Self { outcomes, stop, made, thread })
    }

    /// The outcomes since the last time.
    pub fn lap(&self) -> Flowed {
        let mut recorded = self.outcomes.recorded.lock();
        let mut flowed = std::mem::take(&mut recorded.1);
        flowed.counted = recorded.0.take();
        flowed
    }

    /// Ends it, and waits for the last answers.
    pub async fn end(mut self) -> anyhow::Result<Flowed> {
        self.stop();
        let deadline = Instant::now() + LAST_ANSWERS;
        let open =
            || self.made.load(Ordering::Relaxed) - self.outcomes.answered.load(Ordering::Relaxed);
        while open() > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let mut flowed = self.lap();
        // A write without an answer is unknown, too.
        flowed.unknown += open();
        Ok(flowed)
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes panicked");
        }
    }
}

impl Drop for Flowing {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Writer {
    flow: Flow,
    host: Host,
    sink: Arc<dyn ProposalSink>,
    made: Arc<AtomicU64>,
    /// The next write by chance, and the next round of the probes.
    next: u64,
    next_round: u64,
}

impl Writer {
    fn write_due(&mut self) {
        let Ok(now) = now_ns() else { return };
        while self.flow.rate > 0 && self.flow.due(self.next) <= now {
            self.write(mix(self.next) % self.flow.groups.max(1), self.next);
            self.next += 1;
        }
        while self.flow.probes > 0 && self.flow.probes_due(self.next_round) <= now {
            for probe in 0..self.flow.probes {
                let token = PROBE | (self.next_round << PROBE_BITS) | probe;
                let spread = self.flow.groups / self.flow.probes;
                self.write(probe * spread.max(1), token);
            }
            self.next_round += 1;
        }
    }

    fn write(&self, place: u64, token: u64) {
        let group = self.host.group(GroupId::new(self.flow.first_group + place));
        let Some(group) = group.filter(|group| group.status().serving) else { return };
        let size = self.flow.size.max(8);
        let content = mix(token).to_be_bytes().repeat(size.div_ceil(8));
        let command: Bytes = match self.flow.machine {
            MachineKind::Trivial => Bytes::from(content).slice(..size),
            MachineKind::Table => {
                // Values are replaced, too.
                let key = format!("key-{:03}", token % 1_000);
                TableCommand::Put { key: key.as_bytes(), value: &content[..size] }.encode()
            }
        };
        self.made.fetch_add(1, Ordering::Relaxed);
        group.submit([(token, command)], &self.sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_when_its_write_was_due() {
        let (rate, probes, probe_every_ns) = (1_000, 3, 5_000_000);
        let flow = Flow { rate, probes, probe_every_ns, ..Flow::to_counters(10, 500) };
        assert_eq!(flow.due_of(0), 500);
        assert_eq!(flow.due_of(7), 7_000_500);
        assert_eq!(flow.due_of(PROBE | (2 << PROBE_BITS) | 1), 10_000_500);
    }

    #[test]
    fn a_node_that_comes_later_makes_the_writes_that_are_due_from_then_on() {
        let (rate, probes, probe_every_ns) = (1_000, 3, 5_000_000);
        let flow = Flow { rate, probes, probe_every_ns, ..Flow::to_counters(10, 500) };
        assert_eq!(flow.first_after(500), (0, 0));
        assert_eq!(flow.first_after(0), (0, 0), "before the beginning");
        let (next, round) = flow.first_after(7_000_501);
        assert_eq!((next, round), (8, 2));
        assert!(flow.due(next) >= 7_000_501 && flow.due(next - 1) < 7_000_501);
        assert!(flow.probes_due(round) >= 7_000_501 && flow.probes_due(round - 1) < 7_000_501);
    }

    #[test]
    fn a_stall_is_the_longest_time_between_two_acknowledgements_of_a_probe() {
        let mut flowed = Flowed::default();
        let part =
            |acks: &[u64]| Flowed { probes: [(0, acks.to_vec())].into(), ..Flowed::default() };
        flowed.add(part(&[10, 20, 90]));
        flowed.add(part(&[50]));
        assert_eq!(flowed.stalls(10, 90), [40]);
        assert_eq!(flowed.stalls(10, 200), [110], "it has not gone on yet");
        assert_eq!(flowed.stalls(20, 50), [30]);
    }
}

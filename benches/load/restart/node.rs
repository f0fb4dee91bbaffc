//! What a node does in the restart benchmark.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use shardhost::groups::ProposalSink;
use shardhost::{Group, NodeId};
use shardhost_server::shards::table::TableCommand;

use super::watch::{FRESH, Seen};
use crate::arguments::MachineKind;
use crate::hosting::Machines;
use crate::member::Member;
use crate::part::Part;
use crate::process::now_ns;
use crate::task::Task;
use crate::write::Answers;

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Between two looks at all groups.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Groups that are filled at a time.
const FILLED_TOGETHER: usize = 256;
/// Snapshots that are taken at a time.
const TAKEN_TOGETHER: usize = 64;
const VALUE_BYTES: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartTask {
    /// Write these keys to those of the groups that this node leads; `None`: of all.
    Fill { groups: Option<Vec<u64>>, keys: Range<u64>, machine: MachineKind },
    /// Make the machines' state durable: state on disk is flushed, of the others a snapshot is
    /// taken.
    MakeDurable,
    /// Write once to those of the groups that this node leads, as soon as it does; `None`: of all.
    WriteOnce { groups: Option<Vec<u64>>, machine: MachineKind },
    /// Wait until every machine holds at least so many items; how many all hold together.
    AwaitItems { at_least: u64 },
    /// Say what the machines were given.
    Seen,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartAnswer {
    Done,
    /// Which groups took everything, and how many writes to others may have taken effect.
    Filled {
        groups: Vec<u64>,
        uncertain: u64,
    },
    WrittenOnce(WrittenOnce),
    Items {
        items: u64,
    },
    Seen(Seen),
}

/// How a node came back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WrittenOnce {
    /// When the last group had a leader, on the clock of this machine, in nanoseconds.
    pub led_ns: u64,
    /// When the last write was acknowledged.
    pub written_ns: u64,
    /// The groups that took a write here.
    pub groups: Vec<u64>,
    /// Writes that were not acknowledged and may have taken effect.
    pub uncertain: u64,
}

impl Task for RestartTask {
    const NAME: &'static str = "restart";
    type Answer = RestartAnswer;
}

/// Fills the groups of a node, and looks at what comes back.
#[derive(Default)]
pub struct RestartNode;

impl Part for RestartNode {
    type Task = RestartTask;

    async fn execute(
        &mut self,
        task: RestartTask,
        node: &mut Member,
    ) -> anyhow::Result<RestartAnswer> {
        let running = node.running()?;
        let (machines, _) = running.parts.as_ref().context("a server cannot do that")?;
        execute(task, running.host.node_id(), &running.groups, machines).await
    }
}

async fn execute(
    task: RestartTask,
    own: NodeId,
    groups: &[Group],
    machines: &Arc<Machines>,
) -> anyhow::Result<RestartAnswer> {
    match task {
        RestartTask::Fill { groups: wanted, keys, machine } => {
            let (groups, uncertain) = fill(&select(groups, wanted.as_deref()), &keys, machine)?;
            Ok(RestartAnswer::Filled { groups, uncertain })
        }
        RestartTask::MakeDurable => {
            let machines = Arc::clone(machines);
            if !tokio::task::spawn_blocking(move || machines.make_durable()).await?? {
                take_snapshots(groups).await?;
            }
            Ok(RestartAnswer::Done)
        }
        RestartTask::WriteOnce { groups: wanted, machine } => {
            let groups = select(groups, wanted.as_deref());
            Ok(RestartAnswer::WrittenOnce(OnceWriter::new(own, groups, machine).run()?))
        }
        RestartTask::AwaitItems { at_least } => {
            Ok(RestartAnswer::Items { items: await_items(groups, at_least).await? })
        }
        RestartTask::Seen => {
            let watch = machines.watch().context("the machines are not watched")?;
            Ok(RestartAnswer::Seen(watch.seen()))
        }
    }
}

async fn take_snapshots(groups: &[Group]) -> anyhow::Result<()> {
    let snapshots = stream::iter(groups).map(Group::snapshot).buffer_unordered(TAKEN_TOGETHER);
    let taken = snapshots.try_for_each(|_| async { Ok(()) });
    Ok(tokio::time::timeout(TIMEOUT, taken).await.context("snapshots take too long")??)
}

fn command(machine: MachineKind, key: &str, value: &[u8]) -> Bytes {
    match machine {
        MachineKind::Trivial => Bytes::copy_from_slice(value),
        MachineKind::Table => TableCommand::Put { key: key.as_bytes(), value }.encode(),
    }
}

/// The groups that are wanted; `None`: all.
fn select<'a>(groups: &'a [Group], wanted: Option<&[u64]>) -> Vec<&'a Group> {
    let wanted: Option<BTreeSet<u64>> = wanted.map(|wanted| wanted.iter().copied().collect());
    let is_wanted =
        |group: &&Group| wanted.as_ref().is_none_or(|wanted| wanted.contains(&group.id().get()));
    groups.iter().filter(is_wanted).collect()
}

/// Writes everything to each group that is led here. Returns those that took all of it, and how
/// many writes the others may have taken.
fn fill(
    groups: &[&Group],
    keys: &Range<u64>,
    machine: MachineKind,
) -> anyhow::Result<(Vec<u64>, u64)> {
    let led: Vec<&Group> = groups.iter().copied().filter(|g| g.status().serving).collect();
    let answers = Arc::new(Answers::default());
    let sink: Arc<dyn ProposalSink> = Arc::clone(&answers) as _;
    let each = keys.end - keys.start;
    let mut taken = vec![0; led.len()];
    let deadline = Instant::now() + TIMEOUT;
    for first in (0..led.len()).step_by(FILLED_TOGETHER) {
        let some = first..led.len().min(first + FILLED_TOGETHER);
        let mut due = some.len() as u64 * each;
        for place in some {
            let write = |key: u64| {
                let value = key.to_be_bytes().repeat(VALUE_BYTES / 8);
                (place as u64, command(machine, &format!("key-{key:05}"), &value))
            };
            led[place].submit(keys.clone().map(write), &sink);
        }
        let mut fresh = Vec::new();
        while due > 0 {
            ensure!(Instant::now() < deadline, "{due} writes were never answered");
            answers.take(&mut fresh, deadline);
            for (place, is_taken) in fresh.drain(..) {
                due -= 1;
                taken[usize::try_from(place)?] += u64::from(is_taken);
            }
        }
    }
    let (full, part): (Vec<_>, Vec<_>) =
        led.iter().zip(taken).partition(|(_, taken)| *taken == each);
    let full = full.into_iter().map(|(group, _)| group.id().get()).collect();
    Ok((full, part.len() as u64 * each))
}

async fn await_items(groups: &[Group], at_least: u64) -> anyhow::Result<u64> {
    let deadline = Instant::now() + TIMEOUT;
    let mut all = 0;
    for group in groups {
        loop {
            let (_, state) = group.checksum().await?;
            if state.items >= at_least {
                all += state.items;
                break;
            }
            let items = state.items;
            ensure!(Instant::now() < deadline, "{group:?} holds {items} items of {at_least}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(all)
}

/// Writes once to every group that is led here, as soon as it is.
struct OnceWriter<'a> {
    own: NodeId,
    groups: Vec<&'a Group>,
    machine: MachineKind,
    answers: Arc<Answers>,
    sink: Arc<dyn ProposalSink>,
    /// Places of groups without a leader that is known.
    leaderless: Vec<usize>,
    /// Places of groups that took no write and may be led here.
    unwritten: Vec<usize>,
    under_way: u64,
    result: WrittenOnce,
}

impl<'a> OnceWriter<'a> {
    fn new(own: NodeId, groups: Vec<&'a Group>, machine: MachineKind) -> Self {
        let answers = Arc::new(Answers::default());
        let places: Vec<usize> = (0..groups.len()).collect();
        Self {
            own,
            groups,
            machine,
            sink: Arc::clone(&answers) as _,
            answers,
            leaderless: places.clone(),
            unwritten: places,
            under_way: 0,
            result: WrittenOnce { led_ns: 0, written_ns: 0, groups: Vec::new(), uncertain: 0 },
        }
    }

    fn run(mut self) -> anyhow::Result<WrittenOnce> {
        let deadline = Instant::now() + TIMEOUT;
        while !self.leaderless.is_empty() || !self.unwritten.is_empty() || self.under_way > 0 {
            ensure!(
                Instant::now() < deadline,
                "{} groups are not led, {} took no write",
                self.leaderless.len(),
                self.unwritten.len()
            );
            self.look()?;
            self.submit();
            self.settle()?;
        }
        Ok(self.result)
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let groups = &self.groups;
        let before = self.leaderless.len();
        self.leaderless.retain(|place| groups[*place].status().leader.is_none());
        if before > 0 && self.leaderless.is_empty() {
            self.result.led_ns = now_ns()?;
        }
        Ok(())
    }

    /// Writes to the groups that serve here; those that are led elsewhere are others' business.
    fn submit(&mut self) {
        for place in std::mem::take(&mut self.unwritten) {
            let group = self.groups[place];
            let status = group.status();
            let elsewhere = status.leader.is_some_and(|leader| leader.node != self.own);
            if status.serving {
                let write = command(self.machine, "fresh", FRESH);
                self.under_way += 1;
                group.submit([(place as u64, write)], &self.sink);
            } else if !elsewhere {
                self.unwritten.push(place);
            }
        }
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let mut fresh = Vec::new();
        self.answers.take(&mut fresh, Instant::now() + LOOK_EVERY);
        for (token, taken) in fresh {
            self.under_way -= 1;
            let place = usize::try_from(token)?;
            if taken {
                self.result.groups.push(self.groups[place].id().get());
                self.result.written_ns = now_ns()?;
            } else {
                self.result.uncertain += 1;
                self.unwritten.push(place);
            }
        }
        Ok(())
    }
}

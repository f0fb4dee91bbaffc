//! What a node does in the read benchmark: it reads and writes in the groups of its host, as a
//! user of the library does. One thread drives all that is under way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use shardhost::{Group, Host, ReadMode};
use shardhost_proto::client::{Get, Value};
use shardhost_server::shards::table::{TableAnswer, TableCommand, TableQuery};

use super::ReadKind;
use super::mix::{self, Load, Mix, Mixed, Target};
use crate::arguments::{MachineKind, WriteArguments};
use crate::member::Member;
use crate::nodes::Usage;
use crate::part::Part;
use crate::task::Task;
use crate::write;

const KEYS: u64 = 1_000;
const VALUE_BYTES: usize = 16;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadTask {
    /// Write the values for later reads.
    Fill {
        machine: MachineKind,
    },
    /// Only write, as `write` does.
    Writes {
        arguments: WriteArguments,
        warm_up: Duration,
    },
    Reads(Reads),
}

/// How a node reads and writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reads {
    pub kind: ReadKind,
    pub mix: Mix,
    pub machine: MachineKind,
    pub outstanding: usize,
    pub warm_up: Duration,
    pub duration: Duration,
}

/// What a node measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ReadMeasured {
    pub mixed: Mixed,
    pub usage: Usage,
}

impl Task for ReadTask {
    const NAME: &'static str = "read";
    type Answer = ReadMeasured;
}

/// Reads and writes on a node.
#[derive(Default)]
pub struct ReadNode;

impl Part for ReadNode {
    type Task = ReadTask;

    async fn execute(&mut self, task: ReadTask, node: &mut Member) -> anyhow::Result<ReadMeasured> {
        let running = node.running()?;
        running.until_serving().await?;
        drive(&running.host, &running.groups, &task, || running.used())
    }
}

/// Blocks meanwhile.
fn drive(
    host: &Host,
    groups: &[Group],
    task: &ReadTask,
    usage: impl Fn() -> Usage + Send + Sync,
) -> anyhow::Result<ReadMeasured> {
    match task {
        ReadTask::Writes { arguments, warm_up } => {
            let measured = write::drive_after(host, groups, arguments, *warm_up, usage)?;
            let latencies_ns = measured.latencies.iter().map(|(us, count)| (us * 1_000, *count));
            let mut mixed = Mixed::default();
            mixed.writes.succeeded = measured.acknowledged;
            mixed.writes.failed = measured.failed;
            mixed.writes.latencies_ns = latencies_ns.collect();
            Ok(ReadMeasured { mixed, usage: measured.usage })
        }
        ReadTask::Fill { machine } => {
            let target = Embedded::new(groups, ReadKind::Lease, *machine);
            on_own_thread(target.fill())??;
            Ok(ReadMeasured::default())
        }
        ReadTask::Reads(reads) => {
            let target = Embedded::new(groups, reads.kind, reads.machine);
            ensure!(!target.read.is_empty(), "this node has nothing to read");
            on_own_thread(target.drive(reads, &usage))?
        }
    }
}

/// Runs to the end on a thread that does nothing else.
fn on_own_thread<T: Send>(run: impl Future<Output = T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            Ok(runtime.block_on(run))
        });
        driver.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the driver panicked")))
    })
}

/// The groups of this host.
#[derive(Clone)]
struct Embedded {
    read: Arc<[Group]>,
    /// Groups that are written to: those that this host leads.
    written: Arc<[Group]>,
    mode: ReadMode,
    machine: MachineKind,
}

impl Embedded {
    fn new(groups: &[Group], kind: ReadKind, machine: MachineKind) -> Self {
        let (led, followed): (Vec<Group>, Vec<Group>) =
            groups.iter().cloned().partition(|group| group.status().serving);
        let written: Arc<[Group]> = led.into();
        let read = match kind {
            ReadKind::Lease | ReadKind::Quorum => Arc::clone(&written),
            ReadKind::Follower => followed.into(),
            ReadKind::Stale => groups.into(),
        };
        Self { read, written, mode: kind.mode(), machine }
    }

    async fn drive(
        self,
        reads: &Reads,
        usage: &(impl Fn() -> Usage + Sync),
    ) -> anyhow::Result<ReadMeasured> {
        let load = Load::start(&self, reads.outstanding, reads.mix)?;
        let (mixed, before, after) =
            mix::measure(&load, reads.warm_up, reads.duration, usage).await;
        load.end().await;
        Ok(ReadMeasured { mixed, usage: after.since(&before) })
    }

    async fn fill(self) -> anyhow::Result<()> {
        for group in self.written.iter() {
            let lots = (0..KEYS).map(lot_of_key);
            let keys = lots.map(|lot| group.propose(self.command(lot)).into_future());
            let outcomes = join_all(keys).await;
            let failed = outcomes.into_iter().find_map(Result::err);
            failed.map_or(Ok(()), Err).with_context(|| format!("{group:?} cannot be filled"))?;
        }
        Ok(())
    }

    fn command(&self, lot: u64) -> Bytes {
        let value: Vec<u8> = lot.to_be_bytes().repeat(VALUE_BYTES / 8);
        match self.machine {
            MachineKind::Trivial => value.into(),
            MachineKind::Table => {
                TableCommand::Put { key: key_of(lot).as_bytes(), value: &value }.encode()
            }
        }
    }

    fn question(&self, lot: u64) -> Bytes {
        match self.machine {
            MachineKind::Trivial => Bytes::new(),
            MachineKind::Table => {
                TableQuery::Get(Get { key: key_of(lot).into(), ..Get::default() }).encode()
            }
        }
    }

    /// Whether this can be the answer.
    fn fits(&self, answer: &Bytes) -> bool {
        match self.machine {
            MachineKind::Trivial => answer.len() == 8,
            MachineKind::Table => {
                let answer = TableAnswer::decode(answer);
                matches!(answer, Ok(TableAnswer::Value(Value { value: Some(_) })))
            }
        }
    }
}

impl Target for Embedded {
    async fn read(&self, lot: u64) -> bool {
        let group = one_of(&self.read, lot);
        match group.query(self.mode, self.question(lot)).await {
            Ok(answer) => self.fits(&answer),
            Err(error) => {
                tracing::debug!(%error, "a read failed");
                false
            }
        }
    }

    async fn write(&self, lot: u64) -> bool {
        one_of(&self.written, lot).propose(self.command(lot)).await.is_ok()
    }
}

/// The key that the high half of a lot chooses.
fn key_of(lot: u64) -> String {
    format!("key-{:05}", (lot >> 32) % KEYS)
}

const fn lot_of_key(key: u64) -> u64 {
    key << 32
}

/// The group that the low half of a lot chooses.
fn one_of(groups: &[Group], lot: u64) -> &Group {
    let place = (lot & u64::from(u32::MAX)) % groups.len() as u64;
    &groups[usize::try_from(place).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_asked_for_was_written_before() {
        let filled: std::collections::BTreeSet<String> =
            (0..KEYS).map(|key| key_of(lot_of_key(key))).collect();
        assert_eq!(filled.len() as u64, KEYS);
        let lots = (0..10_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        assert!(lots.map(key_of).all(|key| filled.contains(&key)));
    }
}

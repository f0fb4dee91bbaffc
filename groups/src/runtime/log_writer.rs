//! The one thread that writes the shared log. While one sync runs, the tasks of all workers pile
//! up behind it, and the next write takes them all: batches grow by themselves with the load.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use shardhost_storage::{LogBatch, LogError};

use super::RuntimeShared;
use crate::worker::{Input, LogTask};

/// Tasks that may wait. A worker that is so far ahead of the disk waits for it: its groups then
/// fall silent and others take over, which is what a stuck disk calls for.
const MAX_TASKS: usize = 1024;
/// Entries of one write, about.
const ENTRIES_PER_WRITE: usize = 1 << 16;

/// What the writer is asked for.
#[derive(Debug)]
enum Task {
    Round { worker: usize, task: LogTask },
    Direct { batch: LogBatch, done: Sender<Result<(), LogError>> },
    Stop,
}

/// Where tasks are put.
#[derive(Debug)]
pub(super) struct LogQueue(Sender<Task>);

/// Where the writer takes them.
#[derive(Debug)]
pub(super) struct LogOutlet(Receiver<Task>);

impl LogQueue {
    pub(super) fn new() -> (Self, LogOutlet) {
        let (sender, receiver) = bounded(MAX_TASKS);
        (Self(sender), LogOutlet(receiver))
    }

    pub(super) fn push(&self, worker: usize, task: LogTask) {
        self.put(Task::Round { worker, task });
    }

    /// Writes a batch that is nobody's round, and waits until it is durable.
    pub(super) fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        let (done, answer) = bounded(1);
        self.put(Task::Direct { batch, done });
        answer.recv().unwrap_or(Err(LogError::Poisoned))
    }

    pub(super) fn stop(&self) {
        self.put(Task::Stop);
    }

    fn put(&self, task: Task) {
        if self.0.send(task).is_err() {
            tracing::debug!("a log task came after the log writer had ended");
        }
    }
}

/// Everything that one write makes durable.
#[derive(Debug, Default)]
struct Merged {
    task: LogTask,
    acks: BTreeMap<usize, Vec<crate::worker::PersistAck>>,
    direct: Vec<Sender<Result<(), LogError>>>,
    entries: usize,
    stop: bool,
}

impl Merged {
    fn add(&mut self, task: Task) {
        match task {
            Task::Round { worker, mut task } => {
                self.entries += task.batch.writes.iter().map(|w| w.entries.len()).sum::<usize>();
                let acks = std::mem::take(&mut task.acks);
                self.acks.entry(worker).or_default().extend(acks);
                self.task.merge(task);
            }
            Task::Direct { batch, done } => {
                self.task.batch.writes.extend(batch.writes);
                self.direct.push(done);
            }
            Task::Stop => self.stop = true,
        }
    }
}

/// Runs the writer until it is told to stop.
pub(super) fn run(shared: &Arc<RuntimeShared>, outlet: &LogOutlet) {
    let mut healthy = true;
    while let Ok(first) = outlet.0.recv() {
        let mut merged = Merged::default();
        merged.add(first);
        while merged.entries < ENTRIES_PER_WRITE && !merged.stop {
            let Ok(task) = outlet.0.try_recv() else { break };
            merged.add(task);
        }
        let stop = merged.stop;
        if healthy {
            healthy = write(shared, merged);
        } else {
            // Nothing is known about the disk any more: nothing is promised either.
            merged.direct.iter().for_each(|done| drop(done.send(Err(LogError::Poisoned))));
        }
        if stop {
            return;
        }
    }
}

/// Writes, and lets go of what waited for it. Says whether the log is still sound.
fn write(shared: &RuntimeShared, merged: Merged) -> bool {
    let Merged { task, acks, direct, .. } = merged;
    if !task.batch.writes.is_empty()
        && let Err(error) = shared.store.write(&task.batch)
    {
        direct.iter().for_each(|done| drop(done.send(Err(error.clone()))));
        shared.log_failed(&error);
        return false;
    }
    if !task.releases.is_empty() {
        shared.transport.send(task.releases);
    }
    for (worker, acks) in acks {
        if !acks.is_empty() {
            shared.inboxes[worker].complete(Input::Persisted(acks));
        }
    }
    direct.iter().for_each(|done| drop(done.send(Ok(()))));
    for (group, keep) in task.prune {
        shared.snapshot_tasks.prune(group, keep);
    }
    true
}

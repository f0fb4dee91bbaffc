//! The one thread that writes the shared log. While one sync runs, the tasks of all workers pile
//! up behind it, and the next write takes them all: batches grow by themselves with the load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use shardhost_storage::{GroupId, LogBatch, LogError, LogPosition, LogStore};

use super::RuntimeShared;
use crate::apply::ApplyWork;
use crate::error::{GroupFault, HostFault};
use crate::worker::{GroupEvent, Input, LogTask};

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
pub(super) struct LogQueue(Sender<Task>, Arc<AtomicBool>);

/// Where the writer takes them.
#[derive(Debug)]
pub(super) struct LogOutlet(Receiver<Task>, Arc<AtomicBool>);

impl Drop for LogOutlet {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
    }
}

/// How long whoever waits for a write waits before looking whether the writer is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl LogQueue {
    pub(super) fn new() -> (Self, LogOutlet) {
        let (sender, receiver) = bounded(MAX_TASKS);
        let ended = Arc::new(AtomicBool::new(false));
        (Self(sender, Arc::clone(&ended)), LogOutlet(receiver, ended))
    }

    pub(super) fn push(&self, worker: usize, task: LogTask) {
        self.put(Task::Round { worker, task });
    }

    /// Writes a batch that is nobody's round, and waits until it is durable.
    pub(super) fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        let (done, answer) = bounded(1);
        self.put(Task::Direct { batch, done });
        loop {
            match answer.recv_timeout(LOOK_AGAIN) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => return Err(LogError::Poisoned),
                // A task that came when the writer had ended stays where it is.
                Err(RecvTimeoutError::Timeout) if self.1.load(Ordering::SeqCst) => {
                    return answer.try_recv().unwrap_or(Err(LogError::Poisoned));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
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

/// Somebody who waits for a batch that is nobody's round.
#[derive(Debug)]
struct Direct {
    groups: BTreeSet<GroupId>,
    done: Sender<Result<(), LogError>>,
}

impl Direct {
    /// Whoever stopped waiting does not care.
    fn answer(&self, outcome: Result<(), LogError>) {
        drop(self.done.send(outcome));
    }
}

/// Everything that one write makes durable.
#[derive(Debug, Default)]
struct Merged {
    task: LogTask,
    acks: BTreeMap<usize, Vec<crate::worker::PersistAck>>,
    direct: Vec<Direct>,
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
                let groups = batch.writes.iter().map(|write| write.group).collect();
                self.task.batch.writes.extend(batch.writes);
                self.direct.push(Direct { groups, done });
            }
            Task::Stop => self.stop = true,
        }
    }
}

/// Runs the writer until it is told to stop.
pub(super) fn run(shared: &Arc<RuntimeShared>, outlet: &LogOutlet) {
    let Ok(store) = shared.store() else { return };
    let mut healthy = true;
    while let Ok(first) = outlet.0.recv() {
        let mut merged = Merged::default();
        merged.add(first);
        // As in the workers: whoever only waits for a core joins this write.
        std::thread::yield_now();
        while merged.entries < ENTRIES_PER_WRITE && !merged.stop {
            let Ok(task) = outlet.0.try_recv() else { break };
            merged.add(task);
        }
        let stop = merged.stop;
        if healthy {
            healthy = write(shared, &*store, merged);
        } else {
            // Nothing is known about the disk any more: nothing is promised either.
            merged.direct.iter().for_each(|direct| direct.answer(Err(LogError::Poisoned)));
        }
        if stop {
            return;
        }
    }
}

/// Writes, and lets go of what waited for it. Says whether the log is still sound.
fn write(shared: &RuntimeShared, store: &dyn LogStore, mut merged: Merged) -> bool {
    while !merged.task.batch.writes.is_empty() {
        match store.write(&merged.task.batch) {
            Ok(()) => break,
            // Nothing was written. Only the group whose write makes no sense pays for it.
            Err(error @ LogError::Invalid { group, .. }) => {
                expel(shared, &mut merged, group, &error);
            }
            Err(error) => {
                merged.direct.iter().for_each(|direct| direct.answer(Err(error.clone())));
                shared.fail(&HostFault::Log(error));
                return false;
            }
        }
    }
    let Merged { task, acks, direct, .. } = merged;
    if !task.releases.is_empty() {
        shared.transport.send(task.releases);
    }
    for (worker, acks) in acks {
        if !acks.is_empty() {
            shared.inboxes[worker].complete(Input::Persisted(acks));
        }
    }
    direct.iter().for_each(|direct| direct.answer(Ok(())));
    for (group, epoch) in task.buried {
        retire(shared, group, epoch);
    }
    for (group, keep) in task.prune {
        shared.snapshot_tasks.prune(group, keep);
    }
    true
}

/// The log holds nothing of the replica any more: its snapshots go, and its machine is told.
fn retire(shared: &RuntimeShared, group: GroupId, epoch: u64) {
    shared.snapshot_tasks.prune(group, LogPosition::new(u64::MAX, u64::MAX));
    let known = shared.registry.get(&group).map(|known| known.clone());
    if let Some(handle) = known.filter(|known| known.shared().epoch == epoch) {
        shared.push_work(handle.shared(), ApplyWork::Removed);
    }
}

/// Takes everything of one group out of a write, and fails its replica.
fn expel(shared: &RuntimeShared, merged: &mut Merged, group: GroupId, error: &LogError) {
    tracing::error!(%group, %error, "the log refuses a write; the replica fails");
    merged.task.batch.writes.retain(|write| write.group != group);
    merged.task.releases.retain(|release| release.message.group != group.get());
    merged.task.prune.retain(|(of, _)| *of != group);
    for (worker, acks) in &mut merged.acks {
        for ack in acks.extract_if(.., |ack| ack.group == group) {
            let event = GroupEvent::Failed(GroupFault::Log(error.clone()));
            shared.inboxes[*worker].complete(Input::Group { group, epoch: ack.epoch, event });
        }
    }
    merged.direct.retain(|direct| {
        let concerned = direct.groups.contains(&group);
        if concerned {
            direct.answer(Err(error.clone()));
        }
        !concerned
    });
}

//! The one thread that writes the shared log. While one sync runs, the tasks of all workers pile
//! up behind it, and the next write takes them all: batches grow by themselves with the load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use shardhost_storage::{GroupId, GroupWrite, LogBatch, LogError, LogStore};

use super::RuntimeShared;
use crate::core::{LogTask, Prune};
use crate::error::{GroupFault, HostFault};
use crate::lives::{Ending, InBatch, OpenId};
use crate::worker::{GroupEvent, Input};

/// Tasks that may wait. A worker that is so far ahead of the disk waits for it: its groups then
/// fall silent and others take over, which is what a stuck disk calls for.
const MAX_TASKS: usize = 1024;
/// Entries of one write, about.
const ENTRIES_PER_WRITE: usize = 1 << 16;

/// What the writer is asked for.
#[derive(Debug)]
enum Task {
    Effects {
        worker: usize,
        task: LogTask,
    },
    Direct {
        batch: LogBatch,
        done: Sender<Result<(), LogError>>,
    },
    /// Everything that a replica handed over is in front of its end.
    End(Ending),
    Stop,
}

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

/// How long a caller waits for a write before it checks whether the writer still exists.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl LogQueue {
    pub(super) fn new() -> (Self, LogOutlet) {
        let (sender, receiver) = bounded(MAX_TASKS);
        let ended = Arc::new(AtomicBool::new(false));
        (Self(sender, Arc::clone(&ended)), LogOutlet(receiver, ended))
    }

    pub(super) fn push(&self, worker: usize, task: LogTask) {
        self.put(Task::Effects { worker, task });
    }

    /// A replica ends when everything that was pushed before is written.
    pub(super) fn end(&self, ending: Ending) {
        self.put(Task::End(ending));
    }

    /// Writes a batch outside of worker steps, and waits until it is durable.
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

/// Whether the writer is at a write, and at which: odd while it is.
#[derive(Debug, Default)]
pub(super) struct LogActivity(AtomicU64);

impl LogActivity {
    /// The write that is under way, by its number.
    pub(super) fn writing(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|number| number % 2 == 1)
    }

    fn turn(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// A caller that waits for a batch outside of worker steps.
#[derive(Debug)]
struct Direct {
    writes: Vec<GroupWrite>,
    done: Sender<Result<(), LogError>>,
}

impl Direct {
    fn concerns(&self, group: GroupId) -> bool {
        self.writes.iter().any(|write| write.group == group)
    }

    /// A caller that stopped waiting does not care.
    fn answer(&self, outcome: Result<(), LogError>) {
        drop(self.done.send(outcome));
    }
}

/// Everything that one write makes durable.
#[derive(Debug, Default)]
struct Merged {
    task: LogTask,
    acks: BTreeMap<usize, Vec<crate::core::PersistAck>>,
    direct: Vec<Direct>,
    endings: Vec<Ending>,
    entries: usize,
    stop: bool,
}

impl Merged {
    fn add(&mut self, task: Task) {
        match task {
            Task::Effects { worker, mut task } => {
                self.entries += task.batch.writes.iter().map(|w| w.entries.len()).sum::<usize>();
                let acks = std::mem::take(&mut task.acks);
                self.acks.entry(worker).or_default().extend(acks);
                self.task.merge(task);
            }
            Task::Direct { batch, done } => {
                self.direct.push(Direct { writes: batch.writes, done });
            }
            Task::End(ending) => self.endings.push(ending),
            Task::Stop => self.stop = true,
        }
    }

    /// Adds what is to be written for replicas that end, behind what they handed over.
    fn add_endings(&mut self, store: &dyn LogStore) {
        for ending in &mut self.endings {
            let group = ending.group();
            let released = self.task.destroyed.iter().any(|(of, _)| *of == group);
            let batch = if released { InBatch::Destroyed } else { InBatch::Kept };
            self.task.batch.writes.extend(ending.write(store, batch));
        }
    }

    fn has_writes(&self) -> bool {
        let direct = self.direct.iter().any(|direct| !direct.writes.is_empty());
        direct || !self.task.batch.writes.is_empty()
    }

    /// Writes everything as one batch. Direct writes come last, and stay apart from what replicas
    /// wait for: who is refused does not take the other with it.
    fn write_to(&mut self, store: &dyn LogStore) -> Result<(), LogError> {
        let own = self.task.batch.writes.len();
        for direct in &self.direct {
            self.task.batch.writes.extend(direct.writes.iter().cloned());
        }
        let outcome = store.write(&self.task.batch);
        self.task.batch.writes.truncate(own);
        outcome
    }

    /// Refuses direct writes that concern a group, each as a whole. Returns whether there was one.
    fn refuse_direct(&mut self, group: GroupId, error: &LogError) -> bool {
        let before = self.direct.len();
        self.direct.retain(|direct| {
            let concerned = direct.concerns(group);
            if concerned {
                direct.answer(Err(error.clone()));
            }
            !concerned
        });
        self.direct.len() < before
    }

    /// Takes everything of one group out that replicas handed over; one that ends is refused.
    fn drop_group(&mut self, group: GroupId, error: &LogError) {
        self.task.batch.writes.retain(|write| write.group != group);
        self.task.destroyed.retain(|(of, _)| *of != group);
        self.task.prune.retain(|prune| prune.group != group);
        self.task.releases.retain(|release| release.message.group != group.get());
        let concerned = self.endings.iter_mut().filter(|ending| ending.group() == group);
        concerned.for_each(|ending| ending.refuse(error));
    }
}

/// Runs the writer until stopped.
pub(super) fn run(shared: &Arc<RuntimeShared>, outlet: &LogOutlet) {
    let Ok(store) = shared.store() else { return };
    let mut healthy = true;
    while let Ok(first) = outlet.0.recv() {
        let mut merged = Merged::default();
        merged.add(first);
        // As in the workers: a thread that only waits for a core joins this write.
        std::thread::yield_now();
        while merged.entries < ENTRIES_PER_WRITE && !merged.stop {
            let Ok(task) = outlet.0.try_recv() else { break };
            merged.add(task);
        }
        let stop = merged.stop;
        if healthy {
            healthy = write(shared, &*store, merged);
        } else {
            give_up(shared, merged, &LogError::Poisoned);
        }
        if stop {
            return;
        }
    }
}

/// Writes, and releases what waited for it. Returns whether the log is still usable.
fn write(shared: &RuntimeShared, store: &dyn LogStore, mut merged: Merged) -> bool {
    merged.add_endings(store);
    while merged.has_writes() {
        shared.log_activity.turn();
        let began = Instant::now();
        let written = merged.write_to(store);
        shared.log_writes.record(began.elapsed());
        shared.log_activity.turn();
        match written {
            Ok(()) => break,
            // Nothing was written. Only the write that makes no sense fails: a direct one, or else
            // that of the group's replica.
            Err(error @ LogError::Invalid { group, .. }) => {
                if !merged.refuse_direct(group, &error) {
                    expel(shared, &mut merged, group, &error);
                }
            }
            Err(error) => {
                give_up(shared, merged, &error);
                shared.fail(&HostFault::Log(error));
                return false;
            }
        }
    }
    let Merged { task, acks, direct, endings, .. } = merged;
    // Before the messages leave: an answer to one, such as a vote, is of no use to a replica that
    // does not know yet that its own write is durable. Messages may overtake each other anyway.
    for (worker, acks) in acks {
        if !acks.is_empty() {
            shared.inboxes[worker].complete(Input::Persisted(acks));
        }
    }
    if !task.releases.is_empty() {
        shared.send(task.releases);
    }
    direct.iter().for_each(|direct| direct.answer(Ok(())));
    for prune in task.prune {
        prune_snapshots(shared, prune);
    }
    for (group, open_id) in task.destroyed {
        release(shared, group, open_id);
    }
    end_all(shared, endings);
    true
}

/// Nothing is known about the disk any more: nothing is promised either. Replicas end all the same.
fn give_up(shared: &RuntimeShared, mut merged: Merged, error: &LogError) {
    merged.direct.iter().for_each(|direct| direct.answer(Err(error.clone())));
    merged.endings.iter_mut().for_each(|ending| ending.refuse(error));
    end_all(shared, merged.endings);
}

fn end_all(shared: &RuntimeShared, endings: Vec<Ending>) {
    for ending in endings {
        shared.end_machine(ending);
    }
}

/// Old snapshots go, unless the replica that ordered it is over: then they may be another one's.
fn prune_snapshots(shared: &RuntimeShared, prune: Prune) {
    let Prune { group, open_id, keep } = prune;
    let known = shared.registry.get(&group).map(|known| Arc::clone(known.shared()));
    match known.filter(|known| known.open_id == open_id) {
        Some(replica) => shared.snapshot_tasks.prune(replica, keep),
        None => tracing::debug!(%group, open_id, "a prune came after the end of its replica"),
    }
}

/// The log holds nothing of the replica any more: its state and its snapshots are removed.
fn release(shared: &RuntimeShared, group: GroupId, open_id: u64) {
    if let Some(ending) = shared.lives.release(group, OpenId::from_open_id(open_id)) {
        shared.end_released(ending);
    }
}

/// Takes everything of one group out of a write, and fails its replica.
fn expel(shared: &RuntimeShared, merged: &mut Merged, group: GroupId, error: &LogError) {
    tracing::error!(%group, %error, "the log refuses a write; the replica fails");
    merged.drop_group(group, error);
    for (worker, acks) in &mut merged.acks {
        for ack in acks.extract_if(.., |ack| ack.group == group) {
            let event = GroupEvent::Failed(GroupFault::Log(error.clone()));
            shared.inboxes[*worker].complete(Input::Group { group, open_id: ack.open_id, event });
        }
    }
}

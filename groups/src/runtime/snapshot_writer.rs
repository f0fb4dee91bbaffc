//! Writes views of state machines to the snapshot store, and removes snapshots that are not needed
//! any more. One at a time, which bounds their cost to the host; one that takes long delays no
//! others, because it may be a state machine that hangs.
//!
//! A failure is reported to the group, which asks again later.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::{Condvar, Mutex};
use shardhost_storage::{LogPosition, LogStore, SnapshotError, SnapshotStore, SnapshotWrite};

use super::RuntimeShared;
use super::apply_pool::tell;
use crate::machine::SnapshotWriter;
use crate::panics::{Foreign, contain};
use crate::runtime::GroupShared;
use crate::worker::GroupEvent;

/// Views that are written side by side at most, when each takes longer than [`TURN`].
pub(super) const THREADS: usize = 4;
/// A view that takes longer no longer keeps others waiting.
const TURN: Duration = Duration::from_secs(10);

/// Snapshots and removals that may wait. One that finds no room is tried again later.
const MAX_TASKS: usize = 1 << 16;

/// A view is of a user until it is written, or has no room to wait.
type View = Foreign<Box<dyn SnapshotWriter>>;

enum Task {
    Write { group: Arc<GroupShared>, position: LogPosition, view: View },
    Prune { group: Arc<GroupShared>, keep: LogPosition },
    Stop,
}

/// Where tasks are put, and what became of them.
pub(super) struct SnapshotQueue {
    tasks: Sender<Task>,
    turns: Turns,
    pub counters: SnapshotCounters,
}

#[derive(Debug, Default)]
pub(super) struct SnapshotCounters {
    pub made: AtomicU64,
    pub failures: AtomicU64,
}

/// Where the writers take them.
#[derive(Clone)]
pub(super) struct SnapshotOutlet(Receiver<Task>);

impl SnapshotQueue {
    pub(super) fn new() -> (Self, SnapshotOutlet) {
        let (sender, receiver) = bounded(MAX_TASKS);
        let counters = SnapshotCounters::default();
        (Self { tasks: sender, turns: Turns::new(TURN), counters }, SnapshotOutlet(receiver))
    }

    pub(super) fn write(
        &self,
        shared: &RuntimeShared,
        group: &Arc<GroupShared>,
        position: LogPosition,
        view: Box<dyn SnapshotWriter>,
    ) {
        let view = Foreign::new("a view of a state machine", view);
        let task = Task::Write { group: Arc::clone(group), position, view };
        if self.tasks.try_send(task).is_err() {
            self.note_failure();
            tell(shared, group, GroupEvent::SnapshotMade(None));
        }
    }

    /// A snapshot could not be made.
    pub(super) fn note_failure(&self) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn prune(&self, group: Arc<GroupShared>, keep: LogPosition) {
        let id = group.id;
        match self.tasks.try_send(Task::Prune { group, keep }) {
            Ok(()) => {}
            // The next snapshot of the group removes it.
            Err(TrySendError::Full(_)) => {
                tracing::warn!(group = %id, "an old snapshot stays for now");
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    pub(super) fn stop_one(&self) {
        if self.tasks.send(Task::Stop).is_err() {
            tracing::debug!("the snapshot writer had ended");
        }
    }
}

/// Whose turn it is to write a view.
struct Turns {
    length: Duration,
    current: Mutex<Turn>,
    over: Condvar,
}

#[derive(Default)]
struct Turn {
    number: u64,
    began: Option<Instant>,
}

impl Turns {
    const fn new(length: Duration) -> Self {
        let turn = Turn { number: 0, began: None };
        Self { length, current: Mutex::new(turn), over: Condvar::new() }
    }

    /// Runs a task when the one before it ended, or took its time.
    fn take<T>(&self, task: impl FnOnce() -> T) -> T {
        let number = self.begin();
        let done = task();
        let mut current = self.current.lock();
        if current.number == number {
            current.began = None;
            self.over.notify_one();
        }
        done
    }

    fn begin(&self) -> u64 {
        let mut current = self.current.lock();
        while let Some(began) = current.began
            && began.elapsed() < self.length
        {
            self.over.wait_until(&mut current, began + self.length);
        }
        *current = Turn { number: current.number + 1, began: Some(Instant::now()) };
        current.number
    }
}

/// Runs a writer until stopped.
pub(super) fn run(shared: &Arc<RuntimeShared>, outlet: &SnapshotOutlet) {
    while let Ok(task) = outlet.0.recv() {
        match task {
            Task::Stop => return,
            Task::Prune { group, keep } => prune(shared, &group, keep),
            Task::Write { group, position, view } => {
                let turns = &shared.snapshot_tasks.turns;
                let made = turns.take(|| make(shared, &group, position, view));
                tell(shared, &group, GroupEvent::SnapshotMade(made));
            }
        }
    }
}

/// Removes old snapshots of a replica, unless it is over: then they may be another one's.
fn prune(shared: &RuntimeShared, replica: &GroupShared, keep: LogPosition) {
    let group = replica.id;
    match replica.life.while_alive(|| shared.snapshots.remove_below(group, Some(keep))) {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            tracing::warn!(%group, %error, "an old snapshot could not be removed");
        }
        None => tracing::debug!(%group, "a prune came after the end of its replica"),
    }
}

/// Makes a snapshot of a view; its place, if that worked.
fn make(
    shared: &RuntimeShared,
    replica: &GroupShared,
    position: LogPosition,
    view: View,
) -> Option<LogPosition> {
    let group = replica.id;
    match write(shared, replica, position, view) {
        Ok((bytes, _)) => {
            tracing::debug!(%group, %position, bytes, "snapshot made");
            shared.snapshot_tasks.counters.made.fetch_add(1, Ordering::Relaxed);
            Some(position)
        }
        Err(error) if shared.is_stopping() => {
            tracing::debug!(%group, %position, %error, "no snapshot: the host stops");
            None
        }
        Err(error) if replica.life.is_over() => {
            tracing::debug!(%group, %position, %error, "no snapshot: its replica ended");
            None
        }
        Err(error) => {
            tracing::error!(%group, %position, %error, "no snapshot; it is tried again");
            shared.snapshot_tasks.note_failure();
            None
        }
    }
}

/// Writes a view into the store. A panic of the state machine concerns its group only.
fn write(
    shared: &RuntimeShared,
    replica: &GroupShared,
    position: LogPosition,
    view: View,
) -> Result<(u64, u32), SnapshotError> {
    let (group, action) = (replica.id, "writing the state");
    let written = contain(|| {
        let over = || SnapshotError::from_io(group, action, &replica_ended());
        let created = replica.life.while_alive(|| shared.snapshots.create(group, position));
        let mut file = created.ok_or_else(over)??;
        let mut sink = Sink { file: &mut *file, shared, replica };
        view.into_inner()
            .write_to(&mut sink)
            .map_err(|error| SnapshotError::from_io(group, action, &error))?;
        // Nothing of a replica that is over becomes visible.
        replica.life.while_alive(|| file.finish()).ok_or_else(over)?
    });
    written.unwrap_or_else(|panic| {
        let message = format!("the state machine panicked: {panic}");
        Err(SnapshotError::Io { group, action, message })
    })
}

fn replica_ended() -> io::Error {
    io::Error::other("the replica ended")
}

/// Where a view is written to. Fails when the host stops or the replica ended: the rest is not
/// needed then.
struct Sink<'a> {
    file: &'a mut dyn SnapshotWrite,
    shared: &'a RuntimeShared,
    replica: &'a GroupShared,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shared.is_stopping() {
            return Err(io::Error::other("the host stops"));
        }
        if self.replica.life.is_over() {
            return Err(replica_ended());
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Removes snapshots that no replica names: a crash came before one was named, or before one that
/// was replaced was removed. For the start only: later one may have just arrived.
pub(super) fn remove_unnamed(log: &dyn LogStore, snapshots: &dyn SnapshotStore) {
    let groups = match snapshots.groups() {
        Ok(groups) => groups,
        Err(error) => return tracing::warn!(%error, "old snapshots stay"),
    };
    for group in groups {
        match log.load(group) {
            Ok(persisted) => {
                let named = persisted.and_then(|persisted| persisted.meta.snapshot);
                if let Err(error) = snapshots.remove_except(group, named) {
                    tracing::warn!(%group, %error, "an old snapshot could not be removed");
                }
            }
            // Opening the group reports the error.
            Err(error) => tracing::warn!(%group, %error, "its old snapshots stay"),
        }
    }
}

#[cfg(test)]
mod tests;

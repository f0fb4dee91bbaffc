//! The one thread that writes views of state machines to the snapshot store, and removes
//! snapshots that nobody needs any more. One at a time, which bounds what they cost the host.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use shardhost_storage::{GroupId, LogPosition, SnapshotError};

use super::RuntimeShared;
use super::apply_pool::tell;
use crate::handle::GroupShared;
use crate::machine::SnapshotWriter;
use crate::worker::GroupEvent;

/// Snapshots and removals that may wait. One that finds no room is tried again later.
const MAX_TASKS: usize = 1 << 16;

enum Task {
    Write { group: Arc<GroupShared>, position: LogPosition, view: Box<dyn SnapshotWriter> },
    Prune { group: GroupId, keep: LogPosition },
    Stop,
}

/// Where tasks are put.
pub(super) struct SnapshotQueue(Sender<Task>);

/// Where the writer takes them.
pub(super) struct SnapshotOutlet(Receiver<Task>);

impl SnapshotQueue {
    pub(super) fn new() -> (Self, SnapshotOutlet) {
        let (sender, receiver) = bounded(MAX_TASKS);
        (Self(sender), SnapshotOutlet(receiver))
    }

    pub(super) fn write(
        &self,
        shared: &RuntimeShared,
        group: &Arc<GroupShared>,
        position: LogPosition,
        view: Box<dyn SnapshotWriter>,
    ) {
        let task = Task::Write { group: Arc::clone(group), position, view };
        if self.0.try_send(task).is_err() {
            tell(shared, group, GroupEvent::SnapshotMade(None));
        }
    }

    pub(super) fn prune(&self, group: GroupId, keep: LogPosition) {
        match self.0.try_send(Task::Prune { group, keep }) {
            Ok(()) => {}
            // The next snapshot of the group removes it.
            Err(TrySendError::Full(_)) => tracing::warn!(%group, "an old snapshot stays for now"),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    pub(super) fn stop(&self) {
        if self.0.send(Task::Stop).is_err() {
            tracing::debug!("the snapshot writer had ended");
        }
    }
}

/// Runs the writer until it is told to stop.
pub(super) fn run(shared: &Arc<RuntimeShared>, outlet: &SnapshotOutlet) {
    while let Ok(task) = outlet.0.recv() {
        match task {
            Task::Stop => return,
            Task::Prune { group, keep } => {
                if let Err(error) = shared.snapshots.remove_below(group, Some(keep)) {
                    tracing::warn!(%group, %error, "an old snapshot could not be removed");
                }
            }
            Task::Write { group, position, view } => {
                let made = match write(shared, group.id, position, view) {
                    Ok(()) => Some(position),
                    Err(error) => {
                        tracing::error!(group = %group.id, %error, "no snapshot; tried again");
                        None
                    }
                };
                tell(shared, &group, GroupEvent::SnapshotMade(made));
            }
        }
    }
}

fn write(
    shared: &RuntimeShared,
    group: GroupId,
    position: LogPosition,
    view: Box<dyn SnapshotWriter>,
) -> Result<(), SnapshotError> {
    let mut sink = shared.snapshots.create(group, position)?;
    view.write_to(&mut sink).map_err(|error| SnapshotError::Io {
        group,
        action: "writing the state",
        message: error.to_string(),
    })?;
    sink.finish()?;
    Ok(())
}

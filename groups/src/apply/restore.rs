//! A state machine gets the state of a snapshot. That takes as long as the snapshot is long, and every
//! read of it is progress.

use std::io::{self, BufReader, Read};

use shardhost_storage::{GroupId, LogPosition, SnapshotError, SnapshotRead, SnapshotStore};

use crate::error::GroupFault;
use crate::machine::{ApplyFault, Progress, StateMachine};

/// Replaces a machine's state by the snapshot at `position`, whose bytes are checked first.
///
/// # Errors
/// When the snapshot cannot be read or the machine refuses it.
pub fn restore_machine(
    machine: &mut dyn StateMachine,
    snapshots: &dyn SnapshotStore,
    group: GroupId,
    position: LogPosition,
) -> Result<(), GroupFault> {
    Ok(restore_from(machine, snapshots, (group, position), &Progress::default())?)
}

/// The same, with what can be done about a fault.
pub(crate) fn restore_from(
    machine: &mut dyn StateMachine,
    snapshots: &dyn SnapshotStore,
    (group, position): (GroupId, LogPosition),
    progress: &Progress,
) -> Result<(), ApplyFault> {
    let checked = snapshots.open_unchecked(group, position).and_then(|source| {
        let checked = checked(source, progress);
        checked.map_err(|error| SnapshotError::from_io(group, "checking it", &error))
    });
    let mut source = checked.map_err(|error| match error.passes() {
        true => ApplyFault::passing(format_args!("the snapshot to restore: {error}")),
        false => ApplyFault::new(format_args!("no snapshot to restore: {error}")),
    })?;
    machine.restore(position, &mut Counted { source: &mut *source, progress })
}

/// Bytes that are read at a time to check a snapshot.
const CHUNK_BYTES: usize = 64 * 1024;

/// Reads all of a snapshot, which compares it with its checksum, and goes back to its start. Not left
/// to the store: it would not be seen to get on.
fn checked(
    mut source: Box<dyn SnapshotRead>,
    progress: &Progress,
) -> io::Result<Box<dyn SnapshotRead>> {
    let counted = Counted { source: &mut *source, progress };
    io::copy(&mut BufReader::with_capacity(CHUNK_BYTES, counted), &mut io::sink())?;
    source.read_from(0)?;
    Ok(source)
}

/// Counts reads as steps.
struct Counted<'a> {
    source: &'a mut dyn SnapshotRead,
    progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(out)?;
        self.progress.step();
        Ok(count)
    }
}

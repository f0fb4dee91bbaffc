//! What follows for the host from how the state of its shards is.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shardhost_groups::nodes::Impairment;
use shardhost_groups::{HostFault, RequirementMode};
use tokio::sync::watch;

use crate::disk_space::DiskSpace;
use crate::shards::{StateHealth, files_are_free};
use shardhost::host::Host;

/// The name under which the host is impaired.
const SOURCE: &str = "state";
/// Between two looks at whether there is room after all.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Looks in a row that found room while the state still waited, after which it is not waited for
/// any more. RocksDB looks every five seconds, and continues then, or does not.
const MAX_LOOKS: u32 = 5;
/// What is written to see whether there is room.
const PROBE_BYTES: usize = 1 << 20;
const PROBE_NAME: &str = "room";

/// What the state needs to go on that ran out of space.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub(super) directory: PathBuf,
    /// Free bytes from which on RocksDB surely resumes. With less it may wait, and there is no fault in it.
    pub(super) bytes: u64,
}

/// While the state waits for space the host leads nothing that others can lead; when it failed, or does not
/// go on although there is room, the host stops. Until the host stops.
pub(super) async fn follow(host: Host, mut health: watch::Receiver<StateHealth>, room: Room) {
    let stopping = host.stopping();
    let mut looks = 0;
    loop {
        let waits = match &*health.borrow_and_update() {
            StateHealth::Well => {
                host.impair(SOURCE, None);
                None
            }
            StateHealth::Waits(error) => {
                let reason = format!(
                    "{error}; free space on the disk of the data directory, {} MiB at least, or files of \
                     the process",
                    room.bytes.div_ceil(1 << 20)
                );
                let mode = RequirementMode::Hard;
                host.impair(SOURCE, Some(Impairment { reason: reason.into(), mode }));
                Some(error.to_string())
            }
            StateHealth::Failed(error) => {
                host.fail(&HostFault::State(error.to_string().into()));
                return;
            }
        };
        tokio::select! {
            changed = health.changed() => match changed {
                Ok(()) => looks = 0,
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK_EVERY), if waits.is_some() => {
                looks = if has_room(room.clone()).await { looks + 1 } else { 0 };
            }
            () = stopping.cancelled() => return,
        }
        if let Some(error) = waits.filter(|_| looks >= MAX_LOOKS) {
            // A start opens it anew, and what it lacks is in the log.
            let fault = format!("there is room again, and still {error}");
            host.fail(&HostFault::State(fault.into()));
            return;
        }
    }
}

/// Whether a file can be made and written where the state stands, as many can be opened as a part of it
/// takes that is opened anew, and there is as much room as it needs.
async fn has_room(room: Room) -> bool {
    let probed = tokio::task::spawn_blocking(move || room.is_there()).await;
    matches!(probed, Ok(Ok(true)))
}

impl Room {
    fn is_there(&self) -> io::Result<bool> {
        probe(&self.directory)?;
        if files_are_free(&self.directory).is_err() {
            return Ok(false);
        }
        Ok(DiskSpace::of(&self.directory)?.free >= self.bytes)
    }
}

fn probe(directory: &Path) -> io::Result<()> {
    let path = directory.join(PROBE_NAME);
    let written = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0; PROBE_BYTES])?;
        file.sync_data()
    });
    let removed = match std::fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use shardhost_storage::testing::process::{is_alone, limit_files};

    use super::*;

    #[test]
    fn there_is_room_where_a_file_can_be_written_and_nothing_stays_of_it() {
        let directory = tempfile::tempdir().unwrap();
        probe(directory.path()).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(probe(&directory.path().join("missing")).is_err());
    }

    #[test]
    fn there_is_no_room_where_rocksdb_does_not_resume() {
        let directory = tempfile::tempdir().unwrap();
        let free = DiskSpace::of(directory.path()).unwrap().free;
        let room = |bytes| Room { directory: directory.path().to_owned(), bytes };
        assert!(room(0).is_there().unwrap());
        assert!(!room(free * 2).is_there().unwrap(), "a file of a MiB would fit");
    }

    /// A part of the state that lacked descriptors is opened anew only when there are enough.
    #[test]
    fn there_is_no_room_where_few_files_can_be_opened() {
        if !is_alone(module_path!(), "there_is_no_room_where_few_files_can_be_opened") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let room = Room { directory: directory.path().to_owned(), bytes: 0 };
        assert!(room.is_there().unwrap());
        let next = std::fs::File::open(directory.path()).unwrap();
        let before = limit_files(u64::try_from(next.as_raw_fd()).unwrap() + 5);
        probe(directory.path()).unwrap();
        assert!(!room.is_there().unwrap(), "a file can be made, and no more than a few");
        limit_files(before);
        assert!(room.is_there().unwrap());
    }
}

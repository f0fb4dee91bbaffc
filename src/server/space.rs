//! Watches the free space of the disk that the log and the state stand on, so that it is never quite full:
//! a write of the log that fails ends the host, and what can be refused before is better refused.
//!
//! | free space | what the host does |
//! |---|---|
//! | little | gives its leaderships away, and serves those that no other node takes |
//! | almost none | serves nothing, and takes no entries of leaders elsewhere, as if they were lost |
//!
//! It recovers when there is space again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use shardhost_groups::RequirementMode;
use shardhost_groups::nodes::Impairment;

use crate::disk_space::DiskSpace;
use shardhost::host::Host;

/// The name under which the host is impaired.
const SOURCE: &str = "space";
/// Almost none: this part of little.
const LEAST_PART: u64 = 4;
/// Between two looks, and when there is not much more than little.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_CLOSELY: Duration = Duration::from_millis(100);

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    Little,
    None,
}

/// What that much is after `before`. A little more than what made it scarce must come back, so that
/// leaderships do not come and go with every file.
const fn room(space: DiskSpace, before: Room) -> Room {
    let (low, least) = (space.low(), space.low() / LEAST_PART);
    let spare = low / 8;
    let least = if matches!(before, Room::None) { least + spare } else { least };
    let low = if matches!(before, Room::Enough) { low } else { low + spare };
    if space.free < least {
        Room::None
    } else if space.free < low {
        Room::Little
    } else {
        Room::Enough
    }
}

/// Watches until the host stops.
pub(super) async fn watch(host: Host, directory: PathBuf) {
    let stopping = host.stopping();
    let mut known = Room::Enough;
    let mut readable = true;
    loop {
        let looked = DiskSpace::of(&directory);
        let mut pause = LOOK;
        match looked {
            Ok(space) => {
                readable = true;
                if space.free < space.low().saturating_mul(4) {
                    pause = LOOK_CLOSELY;
                }
                let now = room(space, known);
                if now != known {
                    follow(&host, now, space, &directory);
                }
                known = now;
            }
            Err(error) if readable => {
                readable = false;
                tracing::error!(%error, directory = %directory.display(),
                    "the free space of the disk cannot be read");
            }
            Err(_) => {}
        }
        if stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

fn follow(host: &Host, room: Room, space: DiskSpace, directory: &Path) {
    let mode = match room {
        Room::Enough => None,
        Room::Little => Some(RequirementMode::Soft),
        Room::None => Some(RequirementMode::Hard),
    };
    let impairment =
        mode.map(|mode| Impairment { reason: reason(space, mode, directory).into(), mode });
    host.take_entries(room != Room::None);
    host.impair(SOURCE, impairment);
}

/// What operators read: also whether the host still takes what others could not commit without it.
fn reason(space: DiskSpace, mode: RequirementMode, directory: &Path) -> String {
    let (free, low) = (space.free >> 20, space.low() >> 20);
    let takes = match mode {
        RequirementMode::Soft => "",
        RequirementMode::Hard => " and takes no entries until there is more",
    };
    let directory = directory.display();
    format!(
        "the disk of {directory} has {free} MiB left, of which {low} must stay free{takes}; make room"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_host_that_takes_no_entries_says_so() {
        let space = DiskSpace { free: MIB, all: 200 * MIB };
        let said = |mode| reason(space, mode, Path::new("data"));
        assert!(said(RequirementMode::Hard).contains("takes no entries"));
        assert!(!said(RequirementMode::Soft).contains("takes no entries"));
    }

    #[test]
    fn space_is_scarce_in_two_steps_and_comes_back_with_something_to_spare() {
        let all = 200 * MIB;
        let room = |free, before| room(DiskSpace { free: free * MIB, all }, before);
        assert_eq!(room(11, Room::Enough), Room::Enough);
        assert_eq!(room(9, Room::Enough), Room::Little);
        assert_eq!(room(2, Room::Little), Room::None);
        assert_eq!(room(3, Room::None), Room::None);
        assert_eq!(room(4, Room::None), Room::Little);
        assert_eq!(room(11, Room::Little), Room::Little);
        assert_eq!(room(12, Room::Little), Room::Enough);
    }
}

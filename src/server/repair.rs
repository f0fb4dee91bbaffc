//! Recovers what the disk damaged of the shards' state, without an operator.
//!
//! The replicas of the damaged cell are closed, the cell is written anew with what can be read, and they
//! are opened again. Those whose state could not be read ask their leaders for it; one that is the
//! only replica of its group stays parked, and what is left of it stands beside the cell. One cell at
//! a time, and each three times at most: then somebody has to look after the disk.
//!
//! Nothing is closed before there is room for the new cell beside what the log needs. What fails is tried
//! again, each time after a longer pause, for its replicas serve nobody meanwhile; the host's status says
//! what is not recovered, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use shardhost_storage::{GroupId, GroupMeta};
use tokio::sync::watch;
use tokio::time::Instant;

use super::replicas::machine_of;
use crate::shards::{StateDb, StateDbError};
use shardhost::driver::SYSTEM_GROUP;
use shardhost::host::Host;

/// Before another try of a cell after its first one that failed; twice as long each further time,
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Looks whether the machines of a cell are let go, and how long that takes at most.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 100;

/// The cells that could not be recovered, and when each is tried again.
#[derive(Debug, Default)]
struct Tries(BTreeMap<usize, Try>);

#[derive(Clone, Copy, Debug)]
struct Try {
    pause: Duration,
    next: Instant,
}

impl Tries {
    fn is_due(&self, cell: usize, now: Instant) -> bool {
        self.0.get(&cell).is_none_or(|tried| tried.next <= now)
    }

    fn failed(&mut self, cell: usize, now: Instant) {
        let longer = |tried: &Try| tried.pause.saturating_mul(2).min(LONGEST_PAUSE);
        let pause = self.0.get(&cell).map_or(FIRST_PAUSE, longer);
        self.0.insert(cell, Try { pause, next: now + pause });
    }

    fn recovered(&mut self, cell: usize) {
        self.0.remove(&cell);
    }

    /// When the first of them is tried again.
    fn next(&self) -> Option<Instant> {
        self.0.values().map(|tried| tried.next).min()
    }
}

/// Recovers damaged cells until the host stops.
pub(super) async fn follow(host: Host, state: Weak<StateDb>, park: BTreeSet<u64>) {
    let Some(mut damaged) = state.upgrade().map(|state| state.damaged_cells()) else { return };
    let stopping = host.stopping();
    let mut given_up = BTreeSet::new();
    let mut tries = Tries::default();
    loop {
        let found = damaged.borrow_and_update().clone();
        tries.0.retain(|cell, _| found.contains(cell));
        for cell in found {
            let Some(state) = state.upgrade() else { return };
            if given_up.contains(&cell) || !tries.is_due(cell, Instant::now()) {
                continue;
            }
            if !state.may_recover(cell) {
                given_up.insert(cell);
                tries.recovered(cell);
                tracing::error!(cell, "{GIVEN_UP}");
                state.note_unrecovered(cell, GIVEN_UP);
                continue;
            }
            match recover(&host, &state, cell, &park).await {
                Ok(()) => tries.recovered(cell),
                Err(error) => {
                    tries.failed(cell, Instant::now());
                    let lacks_room = matches!(error, StateDbError::NoRoom { .. });
                    // The lack of room is said once: its numbers change all the time.
                    if state.note_unrecovered(cell, error.to_string()) || !lacks_room {
                        tracing::error!(cell, %error, "a damaged part of the state is not recovered");
                    }
                }
            }
        }
        let next = wait(&mut damaged, tries.next());
        if stopping.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

const GIVEN_UP: &str = "three damaged parts of the state were put aside already: look after the disk, \
                        remove them, and start the host again";

/// Until another cell is damaged, or one is tried again.
async fn wait(damaged: &mut watch::Receiver<BTreeSet<usize>>, next: Option<Instant>) {
    let again = async {
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        changed = damaged.changed() => if changed.is_err() { std::future::pending().await },
        () = again => {}
    }
}

async fn recover(
    host: &Host,
    state: &Arc<StateDb>,
    cell: usize,
    park: &BTreeSet<u64>,
) -> Result<(), StateDbError> {
    let asked = Arc::clone(state);
    let has_room = tokio::task::spawn_blocking(move || asked.has_room_to_recover(cell)).await;
    has_room.map_err(|_| StateDbError::Closed)??;
    let stored = host.stored_groups().map_err(|error| StateDbError::Io {
        action: "looking which replicas are in a damaged cell",
        message: error.to_string(),
    })?;
    let here = |meta: &GroupMeta| meta.group != SYSTEM_GROUP && state.cell_of(meta.group) == cell;
    let metas: Vec<GroupMeta> = stored.into_iter().filter(here).collect();
    let groups: Vec<GroupId> = metas.iter().map(|meta| meta.group).collect();
    tracing::warn!(cell, replicas = groups.len(), "recovering a damaged part of the state");
    join_all(groups.iter().map(|group| host.close_group(*group))).await;
    let salvaged = salvage(state, cell, &groups).await;
    let open_again = metas.iter().filter(|meta| !park.contains(&meta.group.get()));
    let opened = join_all(open_again.map(|meta| open(host, state, meta))).await;
    let salvaged = salvaged?;
    tracing::warn!(cell, lost = ?salvaged.lost, aside = %salvaged.aside.display(),
        opened = opened.iter().filter(|opened| **opened).count(),
        "a damaged part of the state was written anew; states that were lost are asked of their leaders");
    Ok(())
}

async fn salvage(
    state: &Arc<StateDb>,
    cell: usize,
    groups: &[GroupId],
) -> Result<crate::shards::Salvaged, StateDbError> {
    let mut looks = 0;
    loop {
        let (state, groups) = (Arc::clone(state), groups.to_vec());
        let run = move || state.recover(cell, &groups);
        let salvaged = tokio::task::spawn_blocking(run).await.map_err(|_| StateDbError::Closed)?;
        match salvaged {
            Err(StateDbError::Busy { .. }) if looks < LOOKS => looks += 1,
            other => return other,
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says whether the replica is open. One that is not is parked, with the cause.
async fn open(host: &Host, state: &Arc<StateDb>, meta: &GroupMeta) -> bool {
    let (state, group, kind) = (Arc::clone(state), meta.group, meta.kind.clone());
    let machine = move || machine_of(&state, group, &kind);
    host.open_group_with(group, Box::new(machine)).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_cell_that_is_not_recovered_is_tried_again_after_longer_and_longer_pauses() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        assert!(tries.is_due(3, start) && tries.next().is_none());
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            tries.failed(3, now);
            let next = tries.next().unwrap();
            assert!(!tries.is_due(3, now) && tries.is_due(3, next));
            assert!(tries.is_due(4, now), "that is another one");
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        tries.recovered(3);
        assert!(tries.is_due(3, now) && tries.next().is_none());
    }
}

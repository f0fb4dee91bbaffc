//! Recovers what the disk damaged of the shards' state, without an operator.
//!
//! The replicas of the damaged cell are closed, the cell is written anew with what can be read, and they
//! are opened again. Those whose state could not be read ask their leaders for it; one that is the
//! only replica of its group stays parked, and what is left of it stands beside the cell. One cell at
//! a time, and each three times at most: then somebody has to look after the disk.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use shardhost_storage::{GroupId, GroupMeta};

use super::replicas::machine_of;
use crate::host::Host;
use crate::policy::system::SYSTEM_GROUP;
use crate::shards::{StateDb, StateDbError};

/// Before another try after one that failed.
const PAUSE: Duration = Duration::from_secs(5);
/// Looks whether the machines of a cell are let go, and how long that takes at most.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 100;

/// Recovers damaged cells until the host stops.
pub(super) async fn follow(host: Host, state: Weak<StateDb>, park: BTreeSet<u64>) {
    let Some(mut damaged) = state.upgrade().map(|state| state.damaged_cells()) else { return };
    let stopping = host.stopping();
    let mut given_up = BTreeSet::new();
    loop {
        let found = damaged.borrow_and_update().clone();
        let mut failed = false;
        for cell in found {
            let Some(state) = state.upgrade() else { return };
            if given_up.contains(&cell) {
                continue;
            }
            if !state.may_recover(cell) {
                given_up.insert(cell);
                tracing::error!(
                    cell,
                    "three damaged parts of the state were put aside already: look \
                    after the disk, remove them, and start the host again"
                );
                continue;
            }
            if let Err(error) = recover(&host, &state, cell, &park).await {
                failed = true;
                tracing::error!(cell, %error, "a damaged part of the state is not recovered");
            }
        }
        let next = async {
            match failed {
                true => tokio::time::sleep(PAUSE).await,
                false => drop(damaged.changed().await),
            }
        };
        if stopping.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

async fn recover(
    host: &Host,
    state: &Arc<StateDb>,
    cell: usize,
    park: &BTreeSet<u64>,
) -> Result<(), String> {
    let stored = host.stored_groups().map_err(|error| error.to_string())?;
    let here = |meta: &GroupMeta| meta.group != SYSTEM_GROUP && state.cell_of(meta.group) == cell;
    let metas: Vec<GroupMeta> = stored.into_iter().filter(here).collect();
    let groups: Vec<GroupId> = metas.iter().map(|meta| meta.group).collect();
    tracing::warn!(cell, replicas = groups.len(), "recovering a damaged part of the state");
    join_all(groups.iter().map(|group| host.close_group(*group))).await;
    let salvaged = salvage(state, cell, &groups).await;
    let open_again = metas.iter().filter(|meta| !park.contains(&meta.group.get()));
    let opened = join_all(open_again.map(|meta| open(host, state, meta))).await;
    let salvaged = salvaged.map_err(|error| error.to_string())?;
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

//! Recovers what the disk damaged of the shards' state, without an operator.
//!
//! The replicas of the damaged cell are closed, the cell is written anew with all that can be read,
//! and they are opened again. Those whose state could not be read ask their leaders for it; one
//! that is the only replica of its group stays parked, and the rest of its state stays beside the
//! cell. One cell at a time, and each three times at most: then an operator has to examine the
//! disk.
//!
//! Nothing is closed before there is room for the new cell beside what the log needs. A replica
//! that does not close, because its state machine hangs, keeps the others from being served for a
//! short time only: they are opened again, and not closed before it has ended. One that an operator
//! keeps closed stays closed. What fails is tried again, each time after a longer pause, for its
//! replicas serve no users meanwhile; the host's status lists what is not recovered, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use shardhost_groups::OpenGroupError;
use shardhost_storage::{GroupId, GroupMeta};
use tokio::sync::watch;
use tokio::time::Instant;

use super::replicas::machine_of;
use crate::shards::{Salvaged, StateDb, StateDbError};
use shardhost::driver::SYSTEM_GROUP;
use shardhost::host::Host;

/// Before another try of a cell after its first one that failed; twice as long each further time,
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long the replicas of a cell may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Why replicas are not open meanwhile.
const CLOSED: &str = "a damaged part of the state is being recovered";
/// Looks whether the machines of a cell are let go, or a replica is not held, and how often at most.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 100;

/// The cells that could not be recovered, and when each is tried again.
#[derive(Debug, Default)]
struct Tries(BTreeMap<usize, Try>);

#[derive(Clone, Debug)]
struct Try {
    pause: Duration,
    next: Instant,
    /// Replicas that did not close.
    hanging: Vec<GroupId>,
}

/// Why a cell was not recovered.
#[derive(Debug)]
enum Failure {
    State(StateDbError),
    /// These replicas do not close.
    Hang(Vec<GroupId>),
}

impl From<StateDbError> for Failure {
    fn from(error: StateDbError) -> Self {
        Self::State(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(error) => error.fmt(f),
            Self::Hang(groups) => {
                write!(f, "state machines hang and are waited for, those of groups {groups:?}")
            }
        }
    }
}

impl Tries {
    fn is_due(&self, cell: usize, now: Instant) -> bool {
        self.0.get(&cell).is_none_or(|tried| tried.next <= now)
    }

    fn failed(&mut self, cell: usize, now: Instant, failure: &Failure) {
        let longer = |tried: &Try| tried.pause.saturating_mul(2).min(LONGEST_PAUSE);
        let pause = self.0.get(&cell).map_or(FIRST_PAUSE, longer);
        let hanging = match failure {
            Failure::Hang(groups) => groups.clone(),
            Failure::State(_) => Vec::new(),
        };
        self.0.insert(cell, Try { pause, next: now + pause, hanging });
    }

    /// The replicas of a cell that did not close when it was tried last.
    fn hanging(&self, cell: usize) -> Vec<GroupId> {
        self.0.get(&cell).map(|tried| tried.hanging.clone()).unwrap_or_default()
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
pub(super) async fn follow(host: Host, state: Weak<StateDb>) {
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
            match recover(&host, &state, cell, &tries.hanging(cell)).await {
                Ok(()) => tries.recovered(cell),
                Err(error) => {
                    tries.failed(cell, Instant::now(), &error);
                    let lacks_room = matches!(error, Failure::State(StateDbError::NoRoom { .. }));
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
    hanging: &[GroupId],
) -> Result<(), Failure> {
    let stored = host.stored_groups().map_err(|error| StateDbError::Io {
        action: "looking which replicas are in a damaged cell",
        message: error.to_string(),
    })?;
    let here = |meta: &GroupMeta| meta.group != SYSTEM_GROUP && state.cell_of(meta.group) == cell;
    let metas: Vec<GroupMeta> = stored.into_iter().filter(here).collect();
    let groups: Vec<GroupId> = metas.iter().map(|meta| meta.group).collect();
    tracing::warn!(cell, replicas = groups.len(), "recovering a damaged part of the state");
    let salvaged = close_and_salvage(host, state, cell, &groups, hanging).await;
    // Also after a failure: what this try or an earlier one closed, and what ended late, opens again.
    let opened = join_all(metas.iter().map(|meta| reopen(host, state, meta))).await;
    let salvaged = salvaged?;
    tracing::warn!(cell, lost = ?salvaged.lost, aside = %salvaged.aside.display(),
        opened = opened.iter().filter(|opened| **opened).count(),
        "a damaged part of the state was written anew; states that were lost are asked of their leaders");
    Ok(())
}

async fn close_and_salvage(
    host: &Host,
    state: &Arc<StateDb>,
    cell: usize,
    groups: &[GroupId],
    hanging: &[GroupId],
) -> Result<Salvaged, Failure> {
    let asked = Arc::clone(state);
    let has_room = tokio::task::spawn_blocking(move || asked.has_room_to_recover(cell)).await;
    has_room.map_err(|_| StateDbError::Closed)??;
    let close = |group: &GroupId| (*group, host.close_to_reopen(*group, CLOSED));
    // Those that hung before: the others serve until they have ended.
    close_all(hanging.iter().map(close)).await?;
    close_all(groups.iter().map(close)).await?;
    salvage(state, cell, groups).await.map_err(Failure::from)
}

/// Closes replicas. Those that take too long end later.
async fn close_all<C: Future>(
    closing: impl IntoIterator<Item = (GroupId, C)>,
) -> Result<(), Failure> {
    let within = |(group, close): (GroupId, C)| async move {
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
        closed.err().map(|_| group)
    };
    let closed = join_all(closing.into_iter().map(within)).await;
    let hanging: Vec<GroupId> = closed.into_iter().flatten().collect();
    match hanging.is_empty() {
        true => Ok(()),
        false => Err(Failure::Hang(hanging)),
    }
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

/// Says whether the replica is open. One that is not is parked, with the cause, or ends only now.
async fn reopen(host: &Host, state: &Arc<StateDb>, meta: &GroupMeta) -> bool {
    let group = meta.group;
    for _ in 0..LOOKS {
        let (state, kind) = (Arc::clone(state), meta.kind.clone());
        let machine = move || machine_of(&state, group, &kind);
        match host.reopen_group_with(group, Box::new(machine)).await {
            // An operator's step holds it.
            Err(OpenGroupError::Busy { .. }) => tokio::time::sleep(LOOK).await,
            opened => return matches!(opened, Ok(Some(_))),
        }
    }
    false
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
            tries.failed(3, now, &Failure::State(StateDbError::Closed));
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

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_does_not_close_is_named_and_closed_before_the_others_next_time() {
        let (hung, other) = (GroupId::new(7), GroupId::new(8));
        let close = |group| {
            let takes = if group == hung { 10 * CLOSE_TIMEOUT } else { CLOSE_TIMEOUT / 2 };
            (group, tokio::time::sleep(takes))
        };
        let began = Instant::now();
        let failure = close_all([other, hung].map(close)).await.unwrap_err();
        assert_eq!(began.elapsed(), CLOSE_TIMEOUT, "no longer than that");
        assert!(failure.to_string().contains("7"), "{failure}");
        close_all([other].map(close)).await.unwrap();

        let mut tries = Tries::default();
        assert!(tries.hanging(3).is_empty());
        tries.failed(3, began, &failure);
        assert_eq!(tries.hanging(3), [hung]);
        tries.failed(3, began, &Failure::State(StateDbError::Closed));
        assert!(tries.hanging(3).is_empty());
    }
}

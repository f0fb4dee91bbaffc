//! Recovers what the disk damaged of the shards' state, and what RocksDB writes no more for want of a
//! file descriptor, without an operator.
//!
//! The replicas of the damaged cell are closed, the cell is written anew with all that can be read,
//! and they are opened again. Those whose state could not be read ask their leaders for it; one
//! that is the only replica of its group stays parked, and the rest of its state stays beside the
//! cell. One cell at a time, and each three times at most: then an operator has to examine the
//! disk.
//!
//! A cell that lacked descriptors is only closed and opened, with its replicas around it: they
//! continue from where they were durable.
//!
//! Nothing is closed before there is room for the new cell beside what the log needs, or before
//! files can be opened. A replica that does not close, because its state machine hangs, keeps the
//! others from being served for a short time only: they are opened again, and not closed before it
//! has ended. One that an operator keeps closed stays closed. What fails is tried again, each time
//! after a longer pause, for its replicas serve no users meanwhile; the host's status lists what is
//! not recovered, and why.

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
/// Before another try of one that waits for descriptors. The host waits 15 s for it where there are
/// some again (`state_health`).
const HALTED_PAUSE: Duration = Duration::from_secs(2);
/// How long the replicas of a cell may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Why replicas are not open meanwhile.
const CLOSED: &str = "a part of the state is being recovered";
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

/// What a cell needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    WrittenAnew,
    OpenedAnew,
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

    fn failed(&mut self, cell: usize, need: Need, now: Instant, failure: &Failure) {
        let longer = |tried: &Try| tried.pause.saturating_mul(2).min(LONGEST_PAUSE);
        let pause = match need {
            Need::WrittenAnew => self.0.get(&cell).map_or(FIRST_PAUSE, longer),
            Need::OpenedAnew => HALTED_PAUSE,
        };
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

/// The cells that need something.
struct Found {
    damaged: watch::Receiver<BTreeSet<usize>>,
    halted: watch::Receiver<BTreeSet<usize>>,
    /// Damaged ones are recovered, too.
    repairs: bool,
}

impl Found {
    fn of(state: &StateDb, repairs: bool) -> Self {
        Self { damaged: state.damaged_cells(), halted: state.halted_cells(), repairs }
    }

    /// One that is written anew is opened anew, too.
    fn look(&mut self) -> BTreeMap<usize, Need> {
        let damaged = self.damaged.borrow_and_update().clone();
        let halted = self.halted.borrow_and_update().clone();
        let halted = halted.difference(&damaged).map(|cell| (*cell, Need::OpenedAnew));
        let damaged = damaged.iter().filter(|_| self.repairs);
        halted.chain(damaged.map(|cell| (*cell, Need::WrittenAnew))).collect()
    }

    /// Until there may be another one.
    async fn changed(&mut self) {
        let ended = tokio::select! {
            changed = self.damaged.changed() => changed.is_err(),
            changed = self.halted.changed() => changed.is_err(),
        };
        if ended {
            std::future::pending().await
        }
    }
}

/// Recovers cells until the host stops; damaged ones only if it `repairs`.
pub(super) async fn follow(host: Host, state: Weak<StateDb>, repairs: bool) {
    let found = state.upgrade().map(|state| Found::of(&state, repairs));
    let Some(mut cells) = found else { return };
    let stopping = host.stopping();
    let mut given_up = BTreeSet::new();
    let mut tries = Tries::default();
    loop {
        let found = cells.look();
        tries.0.retain(|cell, _| found.contains_key(cell));
        for (cell, need) in found {
            let Some(state) = state.upgrade() else { return };
            if given_up.contains(&cell) || !tries.is_due(cell, Instant::now()) {
                continue;
            }
            if need == Need::WrittenAnew && !state.may_recover(cell) {
                given_up.insert(cell);
                tries.recovered(cell);
                tracing::error!(cell, "{GIVEN_UP}");
                state.note_unrecovered(cell, GIVEN_UP);
                continue;
            }
            match recover(&host, &state, (cell, need), &tries.hanging(cell)).await {
                Ok(()) => tries.recovered(cell),
                Err(error) => {
                    tries.failed(cell, need, Instant::now(), &error);
                    // The lack of room or descriptors is said once: its numbers change all the time.
                    if state.note_unrecovered(cell, error.to_string()) || !lacks(&error) {
                        tracing::error!(cell, %error, "a part of the state is not recovered");
                    }
                }
            }
        }
        let next = wait(&mut cells, tries.next());
        if stopping.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

const GIVEN_UP: &str = "three damaged parts of the state were put aside already: look after the disk, \
                        remove them, and start the host again";

const fn lacks(failure: &Failure) -> bool {
    let Failure::State(error) = failure else { return false };
    matches!(error, StateDbError::NoRoom { .. } | StateDbError::Passing { .. })
}

/// Until another cell needs something, or one is tried again.
async fn wait(cells: &mut Found, next: Option<Instant>) {
    let again = async {
        match next {
            Some(next) => tokio::time::sleep_until(next).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = cells.changed() => {}
        () = again => {}
    }
}

async fn recover(
    host: &Host,
    state: &Arc<StateDb>,
    (cell, need): (usize, Need),
    hanging: &[GroupId],
) -> Result<(), Failure> {
    let stored = host.stored_groups().map_err(|error| StateDbError::Io {
        action: "looking which replicas are in a damaged cell",
        message: error.to_string(),
    })?;
    let here = |meta: &GroupMeta| meta.group != SYSTEM_GROUP && state.cell_of(meta.group) == cell;
    let metas: Vec<GroupMeta> = stored.into_iter().filter(here).collect();
    let groups: Vec<GroupId> = metas.iter().map(|meta| meta.group).collect();
    tracing::warn!(cell, replicas = groups.len(), ?need, "recovering a part of the state");
    let mended = close_and_mend(host, state, (cell, need), &groups, hanging).await;
    // Also after a failure: what this try or an earlier one closed, and what ended late, opens again.
    let opened = join_all(metas.iter().map(|meta| reopen(host, state, meta))).await;
    let opened = opened.iter().filter(|opened| **opened).count();
    match mended? {
        Some(salvaged) => {
            tracing::warn!(cell, lost = ?salvaged.lost, aside = %salvaged.aside.display(), opened,
                "a damaged part of the state was written anew; states that were lost are asked of their \
                 leaders");
        }
        None => tracing::warn!(cell, opened, "a part of the state was opened anew"),
    }
    Ok(())
}

async fn close_and_mend(
    host: &Host,
    state: &Arc<StateDb>,
    (cell, need): (usize, Need),
    groups: &[GroupId],
    hanging: &[GroupId],
) -> Result<Option<Salvaged>, Failure> {
    has_what_it_takes(state, cell, need).await?;
    let close = |group: &GroupId| (*group, host.close_to_reopen(*group, CLOSED));
    // Those that hung before: the others serve until they have ended.
    close_all(hanging.iter().map(close)).await?;
    close_all(groups.iter().map(close)).await?;
    mend(state, cell, need, groups).await.map_err(Failure::from)
}

/// Whether there is room, or there are descriptors, for what the cell needs.
async fn has_what_it_takes(
    state: &Arc<StateDb>,
    cell: usize,
    need: Need,
) -> Result<(), StateDbError> {
    let state = Arc::clone(state);
    let look = move || match need {
        Need::WrittenAnew => state.has_room_to_recover(cell),
        Need::OpenedAnew => state.has_descriptors(),
    };
    tokio::task::spawn_blocking(look).await.map_err(|_| StateDbError::Closed)?
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

async fn mend(
    state: &Arc<StateDb>,
    cell: usize,
    need: Need,
    groups: &[GroupId],
) -> Result<Option<Salvaged>, StateDbError> {
    let mut looks = 0;
    loop {
        let (state, groups) = (Arc::clone(state), groups.to_vec());
        let run = move || match need {
            Need::WrittenAnew => state.recover(cell, &groups).map(Some),
            Need::OpenedAnew => state.reopen(cell).map(|()| None),
        };
        let mended = tokio::task::spawn_blocking(run).await.map_err(|_| StateDbError::Closed)?;
        match mended {
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
            tries.failed(3, Need::WrittenAnew, now, &Failure::State(StateDbError::Closed));
            let next = tries.next().unwrap();
            assert!(!tries.is_due(3, now) && tries.is_due(3, next));
            assert!(tries.is_due(4, now), "that is another one");
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        tries.recovered(3);
        assert!(tries.is_due(3, now) && tries.next().is_none());
        for _ in 0..3 {
            tries.failed(3, Need::OpenedAnew, now, &Failure::State(StateDbError::Closed));
            assert_eq!(tries.next().unwrap() - now, HALTED_PAUSE, "it costs nothing to look");
        }
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
        tries.failed(3, Need::WrittenAnew, began, &failure);
        assert_eq!(tries.hanging(3), [hung]);
        tries.failed(3, Need::WrittenAnew, began, &Failure::State(StateDbError::Closed));
        assert!(tries.hanging(3).is_empty());
    }
}

//! Opens the replicas again that could not be opened for a reason that passes: a host that had no
//! descriptor left when it started, or an error of the disk that came once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{StreamExt, stream};
use shardhost_storage::{GroupId, GroupMeta};

use super::replicas::machine_of;
use crate::shards::StateDb;
use shardhost::host::Host;

/// Between two looks while nothing is to be opened, and before the second try of a replica; twice as
/// long each further time,
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Replicas that are opened side by side.
const AT_A_TIME: usize = 16;

/// Opens them until the host stops.
pub(super) async fn follow(host: Host, state: Weak<StateDb>) {
    let stopping = host.stopping();
    let mut pause = FIRST_PAUSE;
    while stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let Some(state) = state.upgrade() else { return };
        let parked = host.parked_replicas().into_iter().filter(|parked| parked.passes);
        // What cannot even be read of the log is none of the state's faults.
        let metas: Vec<GroupMeta> = parked.filter_map(|parked| parked.meta).collect();
        let tries = stream::iter(metas).map(|meta| open(&host, &state, meta));
        let opened: Vec<bool> = tries.buffer_unordered(AT_A_TIME).collect().await;
        pause = pause_after(pause, &opened);
    }
}

/// The pause after a round of these outcomes.
fn pause_after(before: Duration, opened: &[bool]) -> Duration {
    match opened.iter().all(|opened| *opened) {
        true => FIRST_PAUSE,
        false => before.saturating_mul(2).min(LONGEST_PAUSE),
    }
}

/// Whether the replica runs now, or is none of ours any more.
async fn open(host: &Host, state: &Arc<StateDb>, meta: GroupMeta) -> bool {
    let GroupMeta { group, kind, .. } = meta;
    let made = Arc::clone(state);
    let machine = move || machine_of(&made, group, &kind);
    match host.reopen_group_with(group, Box::new(machine)).await {
        Ok(Some(_)) => {
            tracing::info!(%group, "the replica is open: what kept it closed has passed");
            true
        }
        // An operator keeps it closed.
        Ok(None) => true,
        Err(error) => {
            tracing::debug!(%group, %error, "the replica is not open yet");
            !is_still_passing(host, group)
        }
    }
}

fn is_still_passing(host: &Host, group: GroupId) -> bool {
    host.parked_replica(group).is_some_and(|parked| parked.passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_stay_closed_are_tried_again_after_longer_and_longer_pauses() {
        let mut pause = FIRST_PAUSE;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pause = pause_after(pause, &[true, false]);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause_after(pause, &[true, true]), FIRST_PAUSE);
        assert_eq!(pause_after(FIRST_PAUSE, &[]), FIRST_PAUSE, "nothing to be opened");
    }
}

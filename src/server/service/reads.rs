//! How many reads run or wait to be sent, and how many of them one group may have: of one stream, by
//! weight, and of all streams of a host, by bytes.
//!
//! A read keeps its place until its answer is handed to the connection. Reads of a state machine
//! that hangs keep theirs for long, so no group may have them all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_storage::GroupId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long a read waits for one of the places of its group.
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reads of one stream, or of all.
#[derive(Debug)]
pub(super) struct Reads {
    all: Arc<Semaphore>,
    /// What one group may have.
    group_share: usize,
    /// The shares of the groups that have reads, or that reads wait for.
    shares: Mutex<HashMap<GroupId, Share>>,
}

#[derive(Debug)]
struct Share {
    places: Arc<Semaphore>,
    users: usize,
}

/// A read's use of the share of its group; the share goes with the last one.
#[derive(Debug)]
struct Use {
    reads: Arc<Reads>,
    group: GroupId,
}

/// The place of one read, free again when this is dropped.
#[derive(Debug)]
pub(super) struct ReadPlace {
    all: Option<OwnedSemaphorePermit>,
    share: Option<OwnedSemaphorePermit>,
    _use: Use,
}

impl ReadPlace {
    /// Gives back what is above `weight`.
    pub(super) fn shrink_to(&mut self, weight: usize) {
        for permit in [&mut self.all, &mut self.share].into_iter().flatten() {
            drop(permit.split(permit.num_permits().saturating_sub(weight)));
        }
    }
}

impl Reads {
    pub(super) fn new(all: usize, group_share: usize) -> Arc<Self> {
        let all = Arc::new(Semaphore::new(all));
        Arc::new(Self { all, group_share, shares: Mutex::default() })
    }

    pub(super) fn free(&self) -> usize {
        self.all.available_permits()
    }

    /// Waits for a place: first for one of the group's, then for one of the stream's. So what waits
    /// for a group that hangs is in the way of no other. `None`: the group has none for too long; what
    /// waits there counts as under way, for the client and for the stream, so it must not be much.
    pub(super) async fn place(self: Arc<Self>, group: GroupId, weight: u32) -> Option<ReadPlace> {
        let places = self.enter(group);
        let used = Use { reads: Arc::clone(&self), group };
        // No semaphore is ever closed; without a permit the read would only be less bounded.
        let share = timeout(PLACE_TIMEOUT, places.acquire_many_owned(weight)).await.ok()?.ok();
        let all = Arc::clone(&self.all).acquire_many_owned(weight).await.ok();
        Some(ReadPlace { all, share, _use: used })
    }

    fn enter(&self, group: GroupId) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        let share = shares.entry(group).or_insert_with(|| Share {
            places: Arc::new(Semaphore::new(self.group_share)),
            users: 0,
        });
        share.users += 1;
        Arc::clone(&share.places)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut shares = self.reads.shares.lock();
        if let Some(share) = shares.get_mut(&self.group) {
            share.users -= 1;
            if share.users == 0 {
                shares.remove(&self.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::task::unconstrained;

    use super::*;
    use crate::service::{MAX_GROUP_READ_WEIGHT, MAX_READ_WEIGHT, RANGE_READ_WEIGHT};

    const ONE: GroupId = GroupId::new(1);

    fn reads() -> Arc<Reads> {
        Reads::new(MAX_READ_WEIGHT as usize, MAX_GROUP_READ_WEIGHT as usize)
    }

    /// Takes places until none is free.
    fn take_all(reads: &Arc<Reads>, group: GroupId, weight: u32) -> Vec<ReadPlace> {
        // The runtime lets a task poll only so often without a pause.
        let place = || unconstrained(Arc::clone(reads).place(group, weight)).now_or_never()?;
        std::iter::from_fn(place).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_does_not_wait_for_ever_for_the_places_of_a_group_that_hangs() {
        let reads = reads();
        let hung = take_all(&reads, ONE, 1);
        assert!(Arc::clone(&reads).place(ONE, 1).await.is_none());
        drop(hung);
        assert!(Arc::clone(&reads).place(ONE, 1).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_has_a_part_of_the_places_and_leaves_the_others() {
        let reads = reads();
        let hung = take_all(&reads, ONE, 1);
        assert_eq!(hung.len(), MAX_GROUP_READ_WEIGHT as usize);
        let mut waits = Box::pin(unconstrained(Arc::clone(&reads).place(ONE, 1)));
        assert!((&mut waits).now_or_never().is_none());
        let others = take_all(&reads, GroupId::new(2), RANGE_READ_WEIGHT);
        assert_eq!(others.len(), (MAX_GROUP_READ_WEIGHT / RANGE_READ_WEIGHT) as usize);
        drop(hung);
        assert!(waits.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn all_groups_together_have_the_places_of_the_stream() {
        let reads = reads();
        let groups = (1..).map(GroupId::new);
        let taken: Vec<_> = groups.map(|group| take_all(&reads, group, 1)).take(20).collect();
        assert_eq!(taken.iter().map(Vec::len).sum::<usize>(), MAX_READ_WEIGHT as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_without_reads_takes_no_memory() {
        let reads = reads();
        let places = take_all(&reads, ONE, 1);
        drop(Arc::clone(&reads).place(ONE, 1).now_or_never());
        assert_eq!(reads.shares.lock().len(), 1);
        drop(places);
        assert!(reads.shares.lock().is_empty());
    }
}

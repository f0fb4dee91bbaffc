//! Which snapshots are being received: how many at once, one of a group at a time; and dropping the
//! rest of broken streams that are not continued.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use shardhost_storage::{GroupId, NodeId};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::refusal::ReceiveError;
use crate::transport::config::SnapshotLimits;
use crate::transport::shared::Shared;

/// Bounds and bookkeeping of receptions.
pub(in crate::transport) struct Receptions {
    most: usize,
    turns: Arc<Semaphore>,
    holders: Mutex<HashMap<GroupId, Holder>>,
    /// Notified when a reception was left to be continued.
    pub(super) paused: Notify,
}

/// Whose snapshot of a group is being received.
struct Holder {
    from: NodeId,
    superseded: CancellationToken,
    gone: CancellationToken,
}

impl Receptions {
    pub fn new(limits: &SnapshotLimits) -> Self {
        Self {
            most: limits.receiving,
            turns: Arc::new(Semaphore::new(limits.receiving)),
            holders: Mutex::default(),
            paused: Notify::new(),
        }
    }

    /// Snapshots being received.
    pub fn running(&self) -> usize {
        self.most.saturating_sub(self.turns.available_permits())
    }

    fn turn(&self) -> Result<OwnedSemaphorePermit, ReceiveError> {
        let turn = Arc::clone(&self.turns).try_acquire_owned();
        turn.map_err(|_| ReceiveError::Busy(self.most))
    }
}

/// Keeps a second snapshot of the same group out, unless its sender begins anew: then the first
/// one's stream is dead, though that may not show yet.
pub(super) struct Claim {
    shared: Arc<Shared>,
    group: GroupId,
    turn: Option<OwnedSemaphorePermit>,
    pub superseded: CancellationToken,
    gone: CancellationToken,
}

impl Claim {
    /// Takes a turn for a group, after an earlier stream of the same sender has put by what came.
    pub async fn new(
        shared: &Arc<Shared>,
        group: GroupId,
        from: NodeId,
    ) -> Result<Self, ReceiveError> {
        let end = tokio::time::Instant::now() + shared.config.handshake_timeout;
        loop {
            let gone = match Self::try_new(shared, group, from) {
                Ok(claim) => return claim.with_turn(),
                Err((holder, gone)) if holder == from => gone,
                Err((holder, _)) => return Err(ReceiveError::Duplicate { group, from: holder }),
            };
            tokio::time::timeout_at(end, gone.cancelled())
                .await
                .map_err(|_| ReceiveError::Duplicate { group, from })?;
        }
    }

    /// Claims a group, or returns which one has it and a signal that it is free.
    fn try_new(
        shared: &Arc<Shared>,
        group: GroupId,
        from: NodeId,
    ) -> Result<Self, (NodeId, CancellationToken)> {
        let mut holders = shared.receptions.holders.lock();
        if let Some(holder) = holders.get(&group) {
            if holder.from == from {
                holder.superseded.cancel();
            }
            return Err((holder.from, holder.gone.clone()));
        }
        let (superseded, gone) = (CancellationToken::new(), CancellationToken::new());
        let holder = Holder { from, superseded: superseded.clone(), gone: gone.clone() };
        holders.insert(group, holder);
        Ok(Self { shared: Arc::clone(shared), group, turn: None, superseded, gone })
    }

    fn with_turn(mut self) -> Result<Self, ReceiveError> {
        self.turn = Some(self.shared.receptions.turn()?);
        Ok(self)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A reception that waits for the group needs the turn too.
        self.turn = None;
        self.shared.receptions.holders.lock().remove(&self.group);
        self.gone.cancel();
    }
}

/// Drops receptions that were not continued in time, until the transport ends.
pub(in crate::transport) async fn forget_stale(shared: Arc<Shared>) {
    let forget = || {
        let store = Arc::clone(&shared.snapshots);
        tokio::task::spawn_blocking(move || store.forget_stale())
    };
    let run = async {
        loop {
            shared.receptions.paused.notified().await;
            while let Ok(Some(due)) = forget().await {
                tokio::time::sleep(due).await;
            }
        }
    };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = run => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shardhost_storage::{
        LogPosition, SnapshotAnnouncement, SnapshotFiles, SnapshotFilesOptions, SnapshotStore,
    };

    use super::*;
    use crate::transport::memory::Forgetful;
    use crate::transport::{PeerDirectory, TransportConfig};

    #[tokio::test]
    async fn what_nobody_continues_in_time_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let keep_paused_for = Duration::from_millis(50);
        let options = SnapshotFilesOptions { keep_paused_for, ..Default::default() };
        let store = SnapshotFiles::open_with(directory.path(), options).unwrap();
        let config = TransportConfig::new("test", NodeId::must(1), 1, "127.0.0.1:1");
        let directory_of_peers = PeerDirectory::new([]);
        let shared =
            Shared::new(config, directory_of_peers, Arc::new(store.clone()), Arc::new(Forgetful));
        let shared = Arc::new(shared);
        let forgetting = tokio::spawn(forget_stale(Arc::clone(&shared)));

        let announced = SnapshotAnnouncement {
            from: NodeId::must(2),
            group: GroupId::new(7),
            position: LogPosition::new(3, 40),
            size: 100,
            crc: 0,
        };
        let mut reception = store.receive(announced).unwrap();
        reception.append(&[1; 50]).unwrap();
        assert_eq!(reception.pause(), Ok(50));
        shared.receptions.paused.notify_one();

        let files = || std::fs::read_dir(directory.path()).unwrap().count();
        let gone = async {
            while files() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
        shared.stop.cancel();
        forgetting.await.unwrap();
    }
}

//! A replica whose state machine lost its state: the disk damaged it, or somebody removed it. The log is
//! whole, so it votes and acknowledges as ever. It applies nothing, leads nothing, and asks whoever
//! leads for a snapshot, which replaces state and log.
//!
//! Nothing of this is written down: whoever opens such a replica sees that its machine is behind the
//! log's base.

use raft::{INVALID_ID, INVALID_INDEX, StateRole};
use shardhost_storage::RequirementMode;

use super::GroupCore;
use crate::known_bugs::KnownBug;
use crate::worker::{Impairment, Round};

/// What such a replica says of itself.
pub(super) fn impairment() -> Impairment {
    let reason = "its state is lost; it waits for a snapshot of the replica that leads";
    Impairment { reason: reason.into(), mode: RequirementMode::Hard }
}

impl GroupCore {
    /// Whether nothing may be applied, for there is nothing to apply it to.
    pub(super) fn lacks_state(&self) -> bool {
        self.lost && !self.config.bugs.has(KnownBug::ApplyWithoutState)
    }

    /// At every tick: asks for a snapshot, once there is a leader whose first entry is here. Raft asks
    /// on until one is taken, and takes no entries meanwhile: none is acknowledged that the
    /// snapshot could lack.
    pub(super) fn ask_for_state(&mut self) {
        let raft = &self.raw.raft;
        let may = self.lost
            && raft.state == StateRole::Follower
            && raft.leader_id != INVALID_ID
            && raft.pending_request_snapshot == INVALID_INDEX
            && !self.snapshots.is_installing()
            && self.doubt.is_none();
        if may && let Err(error) = self.raw.request_snapshot() {
            tracing::debug!(group = %self.id, %error, "the leader cannot be asked for a snapshot yet");
        }
    }

    /// A leader cannot be given a snapshot.
    pub(super) fn may_not_campaign_without_state(&self) -> bool {
        self.lacks_state()
    }

    /// A snapshot is the state from here on.
    pub(super) fn state_is_back(&mut self, round: &mut Round) {
        if std::mem::take(&mut self.lost) {
            tracing::info!(group = %self.id, "the lost state was replaced by a snapshot");
            self.on_stalled(None, round);
        }
    }
}

//! A replica whose state machine lost its state: the disk damaged it, or somebody removed it. The log is
//! whole, so it votes and acknowledges as ever. It applies nothing, serves nobody, and asks whoever
//! leads for a snapshot, which replaces state and log.
//!
//! It leads only when nobody else comes to it, as any unfit node: its log may be the one that has what
//! was acknowledged. It brings another voter level with it, and leaves.
//!
//! Nothing of this is written down: whoever opens such a replica sees that its machine is behind the
//! log's base.

use raft::{INVALID_ID, INVALID_INDEX, StateRole};
use shardhost_storage::RequirementMode;

use super::GroupCore;
use crate::known_bugs::KnownBug;
use crate::worker::{Impairment, LiveNodes, Round};

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

    /// At every tick: a leader cannot be given a snapshot. As soon as somebody else has all that it
    /// has, it leads no more.
    pub(super) fn leave_leadership_without_state(&mut self, live: &LiveNodes) {
        if !self.lacks_state() || !self.leads() {
            return;
        }
        let (raft, own) = (&self.raw.raft, self.replica);
        let last = raft.raft_log.last_index();
        let level = self.membership.voters().any(|(replica, node)| {
            let progress = raft.prs().get(replica.get());
            replica != own
                && live.contains(node)
                && progress.is_some_and(|progress| progress.matched == last)
        });
        if level {
            tracing::info!(group = %self.id, "another voter has the log: it may lead");
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, INVALID_ID);
            self.withhold_candidacy();
            self.pin_election_timeout();
        }
    }

    /// A snapshot is the state from here on.
    pub(super) fn state_is_back(&mut self, round: &mut Round) {
        if std::mem::take(&mut self.lost) {
            tracing::info!(group = %self.id, "the lost state was replaced by a snapshot");
            self.on_stalled(None, round);
        }
    }
}

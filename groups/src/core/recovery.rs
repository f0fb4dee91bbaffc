//! A replica whose state machine lost its state: the disk damaged it, or somebody removed it. The log is
//! whole, so it votes and acknowledges as ever. It applies nothing, serves nobody, and asks whoever
//! leads for a snapshot, which replaces state and log.
//!
//! It leads only when nobody else comes to it, as any unfit node: its log may be the one that has what
//! was acknowledged. It brings another voter level with it, and leaves.
//!
//! Nothing of this is written down: whoever opens such a replica sees that its machine is behind the
//! log's base.

use raft::{INVALID_ID, INVALID_INDEX, ProgressState, StateRole};
use shardhost_storage::{LogPosition, ReplicaId, RequirementMode};

use super::GroupCore;
use crate::known_bugs::KnownBug;
use crate::worker::{Impairment, LiveNodes, Round};

/// What is known of a lost state.
#[derive(Debug)]
pub(super) struct Recovery {
    lost: bool,
    /// The term in which a snapshot was asked for last.
    asked_in: u64,
}

impl Recovery {
    pub(super) const fn opened(lost: bool) -> Self {
        Self { lost, asked_in: 0 }
    }

    pub(super) const fn is_lost(&self) -> bool {
        self.lost
    }
}

/// Whether a group can do without one replica's acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standby {
    /// The other voters that answer are a quorum.
    Spared,
    /// Not while one of the others does not answer.
    Needed,
    /// Its acknowledgement is part of every quorum.
    AlwaysNeeded,
}

/// What such a replica says of itself.
pub(super) fn impairment() -> Impairment {
    let reason = "its state is lost; it waits for a snapshot of the replica that leads";
    Impairment { reason: reason.into(), mode: RequirementMode::Hard }
}

impl GroupCore {
    /// Whether nothing may be applied, for there is nothing to apply it to.
    pub(super) fn lacks_state(&self) -> bool {
        self.recovery.lost && !self.config.bugs.has(KnownBug::ApplyWithoutState)
    }

    /// At every tick: asks for a snapshot, and takes that back when the group needs this replica for
    /// something else.
    pub(super) fn tend_recovery(&mut self, live: &LiveNodes) {
        self.drop_vain_requests(live);
        if !self.recovery.lost {
            return;
        }
        let standby = self.standby(live);
        if self.raw.raft.pending_request_snapshot == INVALID_INDEX {
            self.ask_for_state(standby);
        } else if !self.keeps_asking(standby) && !self.keeps_request_for_ever() {
            tracing::info!(group = %self.id, "it asks for no snapshot while the group needs its log");
            self.raw.raft.pending_request_snapshot = INVALID_INDEX;
        }
    }

    /// Raft asks on until a snapshot is taken, and takes no entries meanwhile: none is acknowledged
    /// that the snapshot could lack. So nothing may depend on this replica's acknowledgements.
    fn ask_for_state(&mut self, standby: Standby) {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let may = match standby {
            Standby::Spared => true,
            Standby::Needed => false,
            Standby::AlwaysNeeded => log.committed == log.last_index(),
        };
        let may = (may || self.keeps_request_for_ever())
            && raft.state == StateRole::Follower
            && raft.leader_id != INVALID_ID
            && !self.snapshots.is_installing()
            && self.doubt.is_none();
        if !may {
            return;
        }
        self.recovery.asked_in = raft.term;
        if let Err(error) = self.raw.request_snapshot() {
            tracing::debug!(group = %self.id, %error, "the leader cannot be asked for a snapshot yet");
        }
    }

    /// Whether what it asked for is still to be had. A leader of a later term can make no snapshot
    /// before it has committed an entry of its term, for which it may need this replica.
    fn keeps_asking(&self, standby: Standby) -> bool {
        let raft = &self.raw.raft;
        let may = match standby {
            Standby::Spared => true,
            Standby::Needed => false,
            Standby::AlwaysNeeded => raft.raft_log.committed >= raft.pending_request_snapshot,
        };
        may && raft.term == self.recovery.asked_in
    }

    fn keeps_request_for_ever(&self) -> bool {
        self.config.bugs.has(KnownBug::AskForStateForEver)
    }

    /// Whether the group commits without this replica's acknowledgements.
    fn standby(&self, live: &LiveNodes) -> Standby {
        self.standby_of(self.replica, live)
    }

    fn standby_of(&self, replica: ReplicaId, live: &LiveNodes) -> Standby {
        let voters = self.membership.voters().count();
        let others = || self.membership.voters().filter(|(id, _)| *id != replica);
        let answering = others().filter(|(_, node)| self.answers(*node, live)).count();
        let quorum = voters / 2 + 1;
        if others().count() == voters || answering >= quorum {
            Standby::Spared
        } else if others().count() >= quorum {
            Standby::Needed
        } else {
            Standby::AlwaysNeeded
        }
    }

    /// A leader that was asked for a snapshot sends no entries before it has one. One that it cannot
    /// make, because it cannot commit that far without the replica that asks, it forgets.
    fn drop_vain_requests(&mut self, live: &LiveNodes) {
        if !self.leads() || self.keeps_request_for_ever() {
            return;
        }
        let committed = self.raw.raft.raft_log.committed;
        let vain = |(id, progress): (&u64, &raft::Progress)| {
            let asked = progress.pending_request_snapshot;
            if asked == INVALID_INDEX || progress.state == ProgressState::Snapshot {
                return None;
            }
            let vain = match self.standby_of(ReplicaId::new(*id)?, live) {
                Standby::Spared => false,
                Standby::Needed => true,
                Standby::AlwaysNeeded => asked > committed,
            };
            vain.then_some(*id)
        };
        let vain: Vec<u64> = self.raw.raft.prs().iter().filter_map(vain).collect();
        for id in vain {
            if let Some(progress) = self.raw.raft.mut_prs().get_mut(id) {
                progress.pending_request_snapshot = INVALID_INDEX;
                progress.resume();
            }
        }
    }

    /// Whether a snapshot that arrives would replace more of the log than it holds: an earlier request
    /// was answered late, and entries were acknowledged since.
    pub(super) fn comes_too_late(&self, position: LogPosition) -> bool {
        position.index.get() < self.raw.raft.pending_request_snapshot
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
            self.withhold_candidacy();
            self.follow_nobody();
        }
    }

    /// A snapshot is the state from here on.
    pub(super) fn state_is_back(&mut self, round: &mut Round) {
        if std::mem::take(&mut self.recovery.lost) {
            tracing::info!(group = %self.id, "the lost state was replaced by a snapshot");
            self.on_stalled(None, round);
        }
    }
}

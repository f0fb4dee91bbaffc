//! The public state of the replica, as of the end of a step.

use std::sync::Arc;

use raft::{ProgressState, StateRole};
use shardhost_storage::{
    Certainty, LogIndex, LogPosition, Membership, PersistedGroup, ReplicaId, Term,
};

use super::GroupCore;
use crate::core::Effects;
use crate::core::lease::Presence;
use crate::status::{GroupStatus, PeerProgress, Role};

/// Ticks between two looks at the peers' progress.
pub(super) const REFRESH_TICKS: u64 = 10;

/// The status of a replica that was just opened.
pub(super) fn initial(
    persisted: &PersistedGroup,
    applied: LogPosition,
    membership: &Arc<Membership>,
) -> GroupStatus {
    GroupStatus {
        id: persisted.meta.group,
        replica: persisted.meta.replica,
        role: Role::Follower,
        term: persisted.hard_state.term.max(Term::new(1)),
        leader: None,
        serving: false,
        caretaker: None,
        first: persisted.base.index.next(),
        last: persisted.last.index,
        committed: persisted.hard_state.commit.max(applied.index),
        applied: applied.index,
        snapshot: persisted.meta.snapshot,
        membership: Arc::clone(membership),
        transferring_to: None,
        pending_change: None,
        paused: false,
        conflicting: None,
        hibernating: false,
        doubt: match persisted.certainty {
            Certainty::Sure | Certainty::Differs => None,
            Certainty::InDoubt(cause) => Some(cause),
        },
        checked: None,
        differs: None,
        stalled: None,
        peers: Arc::new([]),
    }
}

impl GroupCore {
    /// Puts the status into the step if anything changed.
    pub(super) fn publish(&mut self, effects: &mut Effects) {
        let status = self.current_status();
        if *self.published != status {
            self.published = Arc::new(status);
            effects.statuses.push((self.id, self.open_id, Arc::clone(&self.published)));
        }
    }

    /// The last status of this life.
    pub(super) fn publish_end(&mut self, role: Role, effects: &mut Effects) {
        let mut status = (*self.published).clone();
        status.role = role;
        // What came in the same step as its end counts: an operator looks for what stands behind
        // it.
        status.applied = LogIndex::new(self.apply.applied());
        status.serving = false;
        status.caretaker = None;
        status.leader = None;
        status.transferring_to = None;
        status.pending_change = None;
        status.paused = false;
        self.published = Arc::new(status);
        effects.statuses.push((self.id, self.open_id, Arc::clone(&self.published)));
    }

    fn current_status(&self) -> GroupStatus {
        let raft = &self.raw.raft;
        let log = self.raw.store();
        GroupStatus {
            id: self.id,
            replica: self.replica,
            role: self.role(),
            term: Term::new(raft.term),
            leader: self.leader_hint(),
            serving: self.serves(),
            caretaker: self.caretaker().cloned(),
            first: log.base().index.next(),
            last: log.last().index,
            committed: LogIndex::new(raft.raft_log.committed),
            applied: LogIndex::new(self.apply.applied()),
            snapshot: self.meta.snapshot,
            membership: Arc::clone(&self.membership),
            transferring_to: self.transferring_to(),
            pending_change: self.pending_change(),
            paused: self.barriers.is_open(),
            conflicting: self.conflicting,
            hibernating: self.hibernation.is_hibernating(),
            doubt: self.doubt_cause(),
            checked: self.consistency.checked(),
            differs: self.consistency.differs(),
            stalled: self.stalled(),
            peers: if self.leads() { Arc::clone(&self.peers) } else { Arc::default() },
        }
    }

    fn role(&self) -> Role {
        let raft = &self.raw.raft;
        let learner = self.membership.members.get(&self.replica).is_some_and(|m| m.learner);
        match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate => Role::Candidate,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Follower if learner => Role::Learner,
            StateRole::Follower => Role::Follower,
        }
    }

    /// Updates a leader's view of its peers, which is published at the end of the step.
    pub(super) fn renew_peers(&mut self) {
        if !self.leads() {
            return;
        }
        let peers = self.peer_progress();
        if *self.peers != *peers {
            self.peers = peers;
        }
    }

    /// How far the others are, by replica.
    fn peer_progress(&self) -> Arc<[PeerProgress]> {
        let raft = &self.raw.raft;
        let others = self.membership.members.iter().filter(|(id, _)| **id != self.replica);
        let known = others.filter_map(|(id, member)| {
            let progress = raft.prs().get(id.get())?;
            Some(PeerProgress {
                replica: ReplicaId::new(id.get())?,
                node: member.node,
                matched: LogIndex::new(progress.matched),
                next: LogIndex::new(progress.next_idx),
                state: match progress.state {
                    ProgressState::Probe => "probe",
                    ProgressState::Replicate => "replicate",
                    ProgressState::Snapshot => "snapshot",
                },
                recently_active: self.presence_of(id.get()) == Presence::Answers,
            })
        });
        known.collect()
    }
}

//! A vote for the next term, made durable before it is needed.
//!
//! While a group is frozen its users wait, and an election waits for disks: the candidate's, which
//! must remember its own vote before it asks for others, and a voter's. Both know in advance what
//! they are going to vote: the target when it agrees to take over, the leader when it asks. So they
//! write it then, while users are served, and when it comes to the vote there is nothing to write.
//!
//! A vote that is prepared counts for nothing. It is not given before raft asks for it, and raft
//! may vote otherwise, which overwrites it. If the process dies in between, the replica believes
//! that it voted in a term in which it did not: that costs at most one more term.
//!
//! **Invariant:** on disk there is never less than what was promised: a prepared vote is of a later
//! term than everything that raft voted, and is not overwritten before raft's term comes up to it.

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{GroupWrite, HardState, NodeId, ReplicaId, Term};

use super::super::GroupCore;
use crate::core::{Effects, PersistAck};
use crate::known_bugs::{KnownBug, KnownBugs};
use crate::transport::{Lane, Outgoing};

/// A vote that was written before it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) struct PreparedVote {
    term: Term,
    vote: ReplicaId,
}

/// What was prepared, and what of it is durable.
#[derive(Debug, Default)]
pub(in crate::core) struct Preparation {
    vote: Option<PreparedVote>,
    count: u64,
    durable: u64,
}

impl Preparation {
    /// Decides to write this vote; gives its number, or nothing if that was done.
    pub(in crate::core) fn prepare(&mut self, term: Term, vote: ReplicaId) -> Option<u64> {
        let prepared = Some(PreparedVote { term, vote });
        if self.vote == prepared {
            return None;
        }
        self.vote = prepared;
        self.count += 1;
        Some(self.count)
    }

    /// Prepared votes up to this one are durable.
    pub(in crate::core) fn on_durable(&mut self, count: u64) {
        self.durable = self.durable.max(count);
    }

    /// Whether nothing that was prepared is on its way to the disk.
    pub(in crate::core) const fn is_durable(&self, bugs: KnownBugs) -> bool {
        self.durable == self.count || bugs.has(KnownBug::TrustUnwrittenVote)
    }

    /// Whether this vote, which raft gave in this term, is one that was prepared, and is durable.
    pub(in crate::core) fn covers(&self, term: u64, vote: u64, bugs: KnownBugs) -> bool {
        let given = ReplicaId::new(vote).map(|vote| (Term::new(term), vote));
        let prepared = self.vote.map(|prepared| (prepared.term, prepared.vote));
        given.is_some() && given == prepared && self.is_durable(bugs)
    }

    /// A hard state is written: what was prepared otherwise is not on disk any more.
    pub(in crate::core) fn forget_other(&mut self, written: &HardState) {
        let stands = |prepared: &PreparedVote| {
            (prepared.term, Some(prepared.vote)) == (written.term, written.vote)
        };
        self.vote = self.vote.filter(stands);
    }

    /// The hard state as it stands on disk: with the vote that was prepared, until raft's term
    /// comes up to it.
    pub(in crate::core) fn with_vote(&self, state: HardState) -> HardState {
        match self.vote {
            Some(prepared) if prepared.term > state.term => {
                HardState { term: prepared.term, vote: Some(prepared.vote), ..state }
            }
            _ => state,
        }
    }
}

impl GroupCore {
    /// Writes a vote for the next term, unless that was done.
    pub(super) fn prepare_vote(&mut self, vote: ReplicaId, effects: &mut Effects) {
        let term = Term::new(self.raw.raft.term + 1);
        let Some(prepared) = self.durable.preparation.prepare(term, vote) else { return };
        let mut write = GroupWrite::new(self.id);
        write.hard_state = Some(self.hard_state_with_commit());
        effects.log.batch.writes.push(write);
        let (group, open_id) = (self.id, self.open_id);
        effects.log.acks.push(PersistAck { group, open_id, number: 0, term: 0, meta: 0, prepared });
    }

    /// Sends what relies on the prepared vote as soon as that is durable.
    pub(super) fn send_when_prepared(
        &self,
        to: NodeId,
        message: GroupMessage,
        effects: &mut Effects,
    ) {
        let outgoing = Outgoing { to, lane: Lane::Urgent, message };
        if self.durable.preparation.is_durable(self.config.bugs) {
            effects.messages.push(outgoing);
        } else {
            effects.log.releases.push(outgoing);
        }
    }
}

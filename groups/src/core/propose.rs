//! Proposals: queued during a step, proposed as one batch, and who waits for them.

use bytes::Bytes;
use raft::eraftpb;
use shardhost_storage::{LogIndex, Term};

use super::GroupCore;
use super::gate::Gate;
use crate::core::Effects;
use crate::error::{ProposalRejection, ProposeError, UnknownCause};
use crate::known_bugs::KnownBug;
use crate::waiter::{Handed, HandedWatch, Pending};

/// One command on its way into the log.
#[derive(Debug)]
pub struct Proposal {
    pub command: Bytes,
    /// Propose in this term only.
    pub in_term: Option<Term>,
    /// An operator's: an open barrier lets it through.
    pub through_barrier: bool,
    pub pending: Pending,
}

/// A command that is not in the log yet.
#[derive(Debug)]
pub(super) struct QueuedProposal {
    proposal: Proposal,
    since: u64,
}

/// A caller that waits for a state machine that has the entry.
#[derive(Debug)]
pub(super) struct HandedWaiter {
    index: u64,
    since: u64,
    watch: HandedWatch,
}

/// A caller that waits for the entry at a position.
#[derive(Debug)]
pub(super) struct PlacedWaiter {
    term: u64,
    index: u64,
    since: u64,
    pending: Pending,
}

impl GroupCore {
    /// Takes a proposal into this step.
    pub fn propose(&mut self, proposal: Proposal) {
        self.wake();
        self.queued.push(QueuedProposal { proposal, since: self.ticks });
    }

    /// Proposes everything that was queued, as one message to raft.
    pub(super) fn propose_queued(&mut self, effects: &mut Effects) {
        if self.queued.is_empty() {
            return;
        }
        if self.holds_proposals() {
            return;
        }
        if let Some(error) = self.refuses_proposals() {
            return self.fail_queued(&error, effects);
        }
        let queued = std::mem::take(&mut self.queued);
        let term = self.raw.raft.term;
        let mut entries = Vec::with_capacity(queued.len());
        let mut pending = Vec::with_capacity(queued.len());
        let paused = self.barrier.is_some();
        for QueuedProposal { proposal, .. } in queued {
            match proposal.in_term {
                _ if paused && !proposal.through_barrier => {
                    effects.fail(proposal.pending, Self::paused(self.id));
                }
                Some(wanted) if wanted.get() != term => {
                    let actual = Term::new(term);
                    let reason = ProposalRejection::TermMismatch { wanted, actual };
                    effects.fail(proposal.pending, self.rejected(reason));
                }
                _ => {
                    entries.push(command_entry(proposal.command));
                    pending.push(proposal.pending);
                }
            }
        }
        self.propose_entries(entries, pending, effects);
    }

    fn propose_entries(
        &mut self,
        entries: Vec<eraftpb::Entry>,
        pending: Vec<Pending>,
        effects: &mut Effects,
    ) {
        if entries.is_empty() {
            return;
        }
        let term = self.raw.raft.term;
        let since = self.ticks;
        let first = self.raw.raft.raft_log.last_index() + 1;
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.from = self.replica.get();
        message.entries = entries.into();
        match self.raw.raft.step(message) {
            Ok(()) => {
                let placed = pending.into_iter().zip(first..);
                self.waiters.extend(placed.map(|(pending, index)| PlacedWaiter {
                    term,
                    index,
                    since,
                    pending,
                }));
            }
            Err(error) => {
                tracing::debug!(group = %self.id, %error, "raft dropped proposals");
                let error = self.rejected(ProposalRejection::Busy);
                pending.into_iter().for_each(|one| effects.fail(one, error.clone()));
            }
        }
    }

    /// Whether proposals wait: until it is known who leads after a transfer, or, for a leader that
    /// was just elected, what the group asks of it.
    fn holds_proposals(&self) -> bool {
        let untried = self.led.as_ref().is_some_and(|led| !led.ready && led.gate == Gate::Open);
        self.leads() && (untried || self.raw.raft.lead_transferee.is_some())
    }

    /// Why no proposal is taken, if none is.
    fn refuses_proposals(&self) -> Option<ProposeError> {
        if !self.leads() {
            return Some(ProposeError::NotLeader { group: self.id, hint: self.leader_hint() });
        }
        self.refuses_service().map(|reason| self.rejected(reason))
    }

    fn rejected(&self, reason: ProposalRejection) -> ProposeError {
        ProposeError::Rejected { group: self.id, reason }
    }

    /// The caller of the entry that was committed at this position and has a command; from here on
    /// it waits for the state machine. An entry with nothing to apply has no answer.
    pub(super) fn hand_waiter(
        &mut self,
        term: u64,
        index: u64,
        effects: &mut Effects,
    ) -> Option<Handed> {
        let PlacedWaiter { since, pending, .. } = self.take_waiter(term, index, effects)?;
        let (handed, watch) = Handed::new(pending);
        self.handed.push_back(HandedWaiter { index, since, watch });
        Some(handed)
    }

    /// The state machine has applied everything up to here, and answered.
    pub(super) fn forget_handed(&mut self, applied: u64) {
        while self.handed.front().is_some_and(|front| front.index <= applied) {
            self.handed.pop_front();
        }
    }

    /// Waiters whose entry lost its place learn so.
    fn take_waiter(
        &mut self,
        term: u64,
        index: u64,
        effects: &mut Effects,
    ) -> Option<PlacedWaiter> {
        while let Some(front) = self.waiters.front() {
            if front.index > index {
                return None;
            }
            let front = self.waiters.pop_front()?;
            if front.index == index
                && (front.term == term || self.config.bugs.has(KnownBug::WaiterByIndex))
            {
                return Some(front);
            }
            let by = Term::new(term);
            let at = LogIndex::new(front.index);
            effects.fail(front.pending, ProposeError::Superseded { group: self.id, index: at, by });
        }
        None
    }

    /// Leadership is lost: the outcome of pending proposals is unknown.
    pub(super) fn fail_waiters_on_loss(&mut self, effects: &mut Effects) {
        if self.config.bugs.has(KnownBug::WaiterByIndex) {
            return;
        }
        // What never entered the log surely takes no effect.
        let error = ProposeError::NotLeader { group: self.id, hint: self.successor_hint() };
        self.fail_queued(&error, effects);
        let error = ProposeError::Unknown { group: self.id, cause: UnknownCause::LeadershipLost };
        self.fail_waiters(&error, effects);
    }

    pub(super) fn fail_waiters(&mut self, error: &ProposeError, effects: &mut Effects) {
        for waiter in self.waiters.drain(..) {
            effects.fail(waiter.pending, error.clone());
        }
        self.waiters = std::collections::VecDeque::new();
        self.fail_queued(error, effects);
    }

    /// Fails what is not in the log yet.
    pub(super) fn fail_queued(&mut self, error: &ProposeError, effects: &mut Effects) {
        for queued in std::mem::take(&mut self.queued) {
            effects.fail(queued.proposal.pending, error.clone());
        }
    }

    /// What a leader holds for too long does not enter the log any more. What came later waits
    /// shorter, so only the front is looked at.
    fn expire_queued(&mut self, limit: u64, effects: &mut Effects) {
        let ticks = self.ticks;
        let expired = self.queued.partition_point(|queued| ticks - queued.since >= limit);
        let error = self.rejected(ProposalRejection::Expired);
        for queued in self.queued.drain(..expired) {
            effects.fail(queued.proposal.pending, error.clone());
        }
    }

    /// At every tick: callers that waited too long get an unknown outcome.
    pub(super) fn expire_waiters(&mut self, effects: &mut Effects) {
        let limit = u64::from(self.config.propose_give_up_ticks);
        if !self.config.bugs.has(KnownBug::HoldForEver) {
            self.expire_queued(limit, effects);
        }
        let error = ProposeError::Unknown { group: self.id, cause: UnknownCause::Timeout };
        let hung = !self.config.bugs.has(KnownBug::AwaitHungMachines);
        while self.handed.front().is_some_and(|front| hung && self.ticks - front.since >= limit) {
            let expired = self.handed.pop_front().and_then(|front| front.watch.take());
            if let Some(pending) = expired {
                effects.fail(pending, error.clone());
            }
        }
        while self.waiters.front().is_some_and(|front| self.ticks - front.since >= limit) {
            if let Some(front) = self.waiters.pop_front() {
                effects.fail(front.pending, error.clone());
            }
        }
    }

    /// Whether a proposal is pending.
    pub(super) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty() || !self.queued.is_empty() || !self.handed.is_empty()
    }
}

fn command_entry(command: Bytes) -> eraftpb::Entry {
    eraftpb::Entry { data: command, ..eraftpb::Entry::default() }
}

//! Proposals: queued during a step, proposed as one batch, and who waits for them.
//!
//! [`Proposals`] knows who waits for what, and who waited too long; the replica decides whether its
//! leadership takes proposals at all.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb;
use shardhost_storage::{LogIndex, Term};

use super::GroupCore;
use crate::completion::{Handed, HandedWatch, Pending};
use crate::core::Effects;
use crate::error::{ProposalRejection, ProposeError, UnknownCause};
use crate::known_bugs::{KnownBug, KnownBugs};

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
pub(super) struct HandedCompletion {
    index: u64,
    since: u64,
    watch: HandedWatch,
}

/// A caller that waits for the entry at a position.
#[derive(Debug)]
pub(super) struct PlacedCompletion {
    term: u64,
    index: u64,
    since: u64,
    pending: Pending,
}

/// The proposals of one group, from the caller to the state machine.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    /// Not in the log yet.
    queued: Vec<QueuedProposal>,
    /// In the log, and not committed.
    placed: VecDeque<PlacedCompletion>,
    /// The state machine has their entry.
    handed: VecDeque<HandedCompletion>,
}

impl Proposals {
    fn queue(&mut self, proposal: Proposal, since: u64) {
        self.queued.push(QueuedProposal { proposal, since });
    }

    fn take_queued(&mut self) -> Vec<QueuedProposal> {
        std::mem::take(&mut self.queued)
    }

    fn take_placed(&mut self) -> VecDeque<PlacedCompletion> {
        std::mem::take(&mut self.placed)
    }

    /// These are in the log of this term, from `first` on.
    fn place(&mut self, pending: Vec<Pending>, term: u64, first: u64, since: u64) {
        let placed = pending.into_iter().zip(first..);
        let completion = |(pending, index)| PlacedCompletion { term, index, since, pending };
        self.placed.extend(placed.map(completion));
    }

    /// The caller of the entry that was committed at this position; from here on it waits for the
    /// state machine. `lost` gets callers whose entry lost its place, and where that was.
    fn hand(
        &mut self,
        term: u64,
        index: u64,
        bugs: KnownBugs,
        mut lost: impl FnMut(Pending, u64),
    ) -> Option<Handed> {
        while self.placed.front()?.index <= index {
            let front = self.placed.pop_front()?;
            let is_its = front.term == term || bugs.has(KnownBug::CompletionByIndex);
            if front.index == index && is_its {
                let (handed, watch) = Handed::new(front.pending);
                self.handed.push_back(HandedCompletion { index, since: front.since, watch });
                return Some(handed);
            }
            lost(front.pending, front.index);
        }
        None
    }

    /// The state machine has applied everything up to here, and answered.
    pub(super) fn forget_handed(&mut self, applied: u64) {
        while self.handed.front().is_some_and(|front| front.index <= applied) {
            self.handed.pop_front();
        }
    }

    /// Those that were queued by this tick. What came later waits shorter, so only the front is
    /// looked at.
    fn expire_queued(&mut self, by: u64) -> impl Iterator<Item = Pending> {
        let expired = self.queued.partition_point(|queued| queued.since <= by);
        self.queued.drain(..expired).map(|queued| queued.proposal.pending)
    }

    /// One that was handed over by this tick, and is not answered.
    fn expire_handed(&mut self, by: u64) -> Option<Pending> {
        while self.handed.front()?.since <= by {
            let expired = self.handed.pop_front()?.watch.take();
            if expired.is_some() {
                return expired;
            }
        }
        None
    }

    /// One that was proposed by this tick.
    fn expire_placed(&mut self, by: u64) -> Option<Pending> {
        let due = self.placed.front().is_some_and(|front| front.since <= by);
        let front = if due { self.placed.pop_front() } else { None };
        front.map(|front| front.pending)
    }

    /// Whether no caller waits.
    pub(super) fn is_empty(&self) -> bool {
        self.placed.is_empty() && self.queued.is_empty() && self.handed.is_empty()
    }

    pub(super) fn shrink(&mut self) {
        self.placed.shrink_to_fit();
        self.handed.shrink_to_fit();
        self.queued.shrink_to_fit();
    }
}

/// Whether a proposal goes into the log of this term. `paused`: a barrier is open.
fn admit(proposal: &Proposal, term: Term, paused: bool) -> Result<(), ProposalRejection> {
    match proposal.in_term {
        _ if paused && !proposal.through_barrier => Err(ProposalRejection::Paused),
        Some(wanted) if wanted != term => {
            Err(ProposalRejection::TermMismatch { wanted, actual: term })
        }
        _ => Ok(()),
    }
}

impl GroupCore {
    /// Takes a proposal into this step.
    pub fn propose(&mut self, proposal: Proposal) {
        self.wake();
        self.proposals.queue(proposal, self.ticks);
    }

    /// Proposes everything that was queued, as one message to raft.
    pub(super) fn propose_queued(&mut self, effects: &mut Effects) {
        if self.proposals.queued.is_empty() || self.holds_proposals() {
            return;
        }
        if let Some(error) = self.refuses_proposals() {
            return self.fail_queued(&error, effects);
        }
        let queued = self.proposals.take_queued();
        let (term, paused) = (Term::new(self.raw.raft.term), self.barriers.is_open());
        let mut entries = Vec::with_capacity(queued.len());
        let mut pending = Vec::with_capacity(queued.len());
        for QueuedProposal { proposal, .. } in queued {
            match admit(&proposal, term, paused) {
                Ok(()) => {
                    entries.push(command_entry(proposal.command));
                    pending.push(proposal.pending);
                }
                Err(reason) => effects.fail(proposal.pending, self.rejected(reason)),
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
        let first = self.raw.raft.raft_log.last_index() + 1;
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.from = self.replica.get();
        message.entries = entries.into();
        match self.raw.raft.step(message) {
            Ok(()) => self.proposals.place(pending, term, first, self.ticks),
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
        let untried = self.led.as_ref().is_some_and(|led| !led.ready && led.is_open());
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
    /// it waits for the state machine. An entry with nothing to apply has no answer. Callers whose
    /// entry lost its place learn so.
    pub(super) fn hand_completion(
        &mut self,
        term: u64,
        index: u64,
        effects: &mut Effects,
    ) -> Option<Handed> {
        let (group, by) = (self.id, Term::new(term));
        self.proposals.hand(term, index, self.config.bugs, |pending, index| {
            let index = LogIndex::new(index);
            effects.fail(pending, ProposeError::Superseded { group, index, by });
        })
    }

    /// Leadership is lost: the outcome of pending proposals is unknown.
    pub(super) fn fail_completions_on_loss(&mut self, effects: &mut Effects) {
        if self.config.bugs.has(KnownBug::CompletionByIndex) {
            return;
        }
        // What never entered the log surely takes no effect.
        let error = ProposeError::NotLeader { group: self.id, hint: self.successor_hint() };
        self.fail_queued(&error, effects);
        let error = ProposeError::Unknown { group: self.id, cause: UnknownCause::LeadershipLost };
        self.fail_completions(&error, effects);
    }

    pub(super) fn fail_completions(&mut self, error: &ProposeError, effects: &mut Effects) {
        for completion in self.proposals.take_placed() {
            effects.fail(completion.pending, error.clone());
        }
        self.fail_queued(error, effects);
    }

    /// Fails what is not in the log yet.
    pub(super) fn fail_queued(&mut self, error: &ProposeError, effects: &mut Effects) {
        for queued in self.proposals.take_queued() {
            effects.fail(queued.proposal.pending, error.clone());
        }
    }

    /// What a leader holds for too long does not enter the log any more. Callers that waited too
    /// long for an entry get an unknown outcome.
    pub(super) fn expire_completions(&mut self, effects: &mut Effects) {
        let bugs = self.config.bugs;
        let limit = u64::from(self.config.propose_give_up_ticks);
        let Some(by) = self.ticks.checked_sub(limit) else { return };
        if !bugs.has(KnownBug::HoldForEver) {
            let error = self.rejected(ProposalRejection::Expired);
            for pending in self.proposals.expire_queued(by) {
                effects.fail(pending, error.clone());
            }
        }
        let error = ProposeError::Unknown { group: self.id, cause: UnknownCause::Timeout };
        if !bugs.has(KnownBug::AwaitHungMachines) {
            while let Some(pending) = self.proposals.expire_handed(by) {
                effects.fail(pending, error.clone());
            }
        }
        while let Some(pending) = self.proposals.expire_placed(by) {
            effects.fail(pending, error.clone());
        }
    }
}

fn command_entry(command: Bytes) -> eraftpb::Entry {
    eraftpb::Entry { data: command, ..eraftpb::Entry::default() }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use shardhost_storage::GroupId;

    use super::*;
    use crate::completion::{Charge, Completion};

    fn pending() -> Pending {
        let (sender, _) = crate::completion::answer();
        let completion = Completion::One(sender);
        Pending::new(GroupId::new(1), completion, Charge::default(), Instant::now())
    }

    fn proposal(in_term: Option<u64>, through_barrier: bool) -> Proposal {
        let in_term = in_term.map(Term::new);
        Proposal { command: Bytes::new(), in_term, through_barrier, pending: pending() }
    }

    /// Whether a caller was found, and where others lost their place.
    fn hand(proposals: &mut Proposals, term: u64, index: u64) -> (bool, Vec<u64>) {
        let mut lost = Vec::new();
        let handed = proposals.hand(term, index, KnownBugs::none(), |_, index| lost.push(index));
        (handed.is_some(), lost)
    }

    #[test]
    fn a_barrier_comes_before_the_term_that_a_caller_wants() {
        let mismatch = |wanted: u64| {
            let (wanted, actual) = (Term::new(wanted), Term::new(5));
            Err(ProposalRejection::TermMismatch { wanted, actual })
        };
        let cases = [
            (proposal(None, false), false, Ok(())),
            (proposal(Some(5), false), false, Ok(())),
            (proposal(Some(4), false), false, mismatch(4)),
            (proposal(None, false), true, Err(ProposalRejection::Paused)),
            (proposal(Some(4), false), true, Err(ProposalRejection::Paused)),
            (proposal(None, true), true, Ok(())),
            (proposal(Some(4), true), true, mismatch(4)),
        ];
        for (proposal, paused, expected) in cases {
            assert_eq!(admit(&proposal, Term::new(5), paused), expected, "{proposal:?} {paused}");
        }
    }

    #[test]
    fn a_caller_is_found_by_term_and_index_and_by_nothing_else() {
        let mut proposals = Proposals::default();
        proposals.place(vec![pending(), pending(), pending()], 5, 10, 0);
        assert_eq!(hand(&mut proposals, 5, 9), (false, vec![]));
        assert_eq!(hand(&mut proposals, 5, 10), (true, vec![]));
        assert_eq!(hand(&mut proposals, 6, 11), (false, vec![11]), "another leader's entry");
        assert_eq!(hand(&mut proposals, 6, 13), (false, vec![12]), "one that came too late");
        assert!(!proposals.is_empty());
        proposals.forget_handed(10);
        assert!(proposals.is_empty());
    }

    #[test]
    fn callers_wait_for_so_long_wherever_their_proposal_is() {
        let mut proposals = Proposals::default();
        for since in [3, 4] {
            proposals.queue(proposal(None, false), since);
            proposals.place(vec![pending()], 5, 10 + since, since);
        }
        assert_eq!(hand(&mut proposals, 5, 13), (true, vec![]));
        assert!(proposals.expire_handed(2).is_none() && proposals.expire_placed(3).is_none());
        assert_eq!(proposals.expire_queued(3).count(), 1);
        assert!(proposals.expire_handed(3).is_none(), "its machine dropped it");
        assert!(proposals.expire_placed(4).is_some());
        assert_eq!(proposals.expire_queued(4).count(), 1);
        assert!(proposals.is_empty());
    }
}

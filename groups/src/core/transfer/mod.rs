//! Handing leadership over, with an outcome. Raft itself reports none: it ignores a bad target
//! silently and gives up silently, so the replica asks, watches and answers for it.
//!
//! | phase | users | ends with |
//! |---|---|---|
//! | asking | are served | the target agrees, declines, or does not answer: then the next one is asked |
//! | levelling | are served | the target lacks few enough entries, and votes are prepared |
//! | frozen | wait | the target leads, declines after all, or the watchdog ends it |
//!
//! Nothing stops before a target has agreed. Proposals that come while they are paused are held: if
//! this replica keeps leading, they go into its log, else their callers get the leader.
//!
//! This file is a transfer at its leader, from the request to the outcome. [`Transfer`] decides
//! what comes next (`phase`); `gate` decides who can be asked; `handshake` is the target's side,
//! `prepare` the votes that are written in advance, `deposed` what comes after a failure.

mod deposed;
mod gate;
mod handshake;
mod phase;
mod prepare;

pub(super) use gate::Rank;
pub(super) use phase::Transfer;
pub(super) use prepare::Preparation;

use std::time::Duration;

use raft::StateRole;
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{NodeId, Term};

use super::GroupCore;
use crate::completion::Reply;
use crate::core::Effects;
use crate::error::{LeaderHint, TransferError};
use crate::policy::PolicyEvent;
use crate::transport::{Lane, Outgoing};
use phase::{Answer, Next, Phase, View};

/// How a transfer ended: the node that leads afterwards and its term, how long users were
/// held up, or why not.
pub type TransferOutcome = Result<(NodeId, Term, Duration), TransferError>;

/// How a transfer ended: who leads, and its term.
type Ended = Result<(NodeId, Term), TransferError>;

/// Who waits for a transfer.
pub type TransferCompletion = Reply<TransferOutcome>;

/// Where leadership is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransferTarget {
    /// To the live voter that is fit and furthest, or the next that agrees.
    Furthest,
    Node(NodeId),
    /// To the first of these that is fit, agrees, and lacks at most so many entries.
    FirstFit {
        /// The targets, in order.
        candidates: Vec<NodeId>,
        /// Entries that it may lack; 0: none.
        max_lag: u64,
    },
}

/// Asks the leader to hand over.
#[derive(Debug)]
pub struct TransferRequest {
    pub to: TransferTarget,
    pub completion: TransferCompletion,
}

impl GroupCore {
    /// Starts a transfer, joins the one to the same target, or refuses.
    pub fn transfer(&mut self, request: TransferRequest, effects: &mut Effects) {
        let TransferRequest { to, completion } = request;
        let begun = match self.may_begin(&to) {
            Ok(None) => self.begin_with(&to, effects),
            Ok(Some(())) => Ok(()),
            Err(error) => Err(error),
        };
        match (begun, self.transfer.as_deref_mut()) {
            (Ok(()), Some(transfer)) => transfer.completions.push(completion),
            (Ok(()), None) => {
                let error = TransferError::NoHealthyTarget { group: self.id };
                effects.transfer_replies.push((completion, Err(error)));
            }
            (Err(error), _) => {
                effects.count(PolicyEvent::TransferFailed(error.reason()));
                effects.transfer_replies.push((completion, Err(error)));
            }
        }
    }

    /// Whether a transfer may begin; `Some`: the one under way is meant.
    fn may_begin(&self, to: &TransferTarget) -> Result<Option<()>, TransferError> {
        let group = self.id;
        if !self.leads() {
            return Err(TransferError::NotLeader { group, hint: self.leader_hint() });
        }
        if let Some(running) = &self.transfer {
            return self.joins(to, running.to).map(Some);
        }
        Ok(None)
    }

    fn begin_with(
        &mut self,
        to: &TransferTarget,
        effects: &mut Effects,
    ) -> Result<(), TransferError> {
        let (candidates, max_lag) = self.candidates(to, effects)?;
        self.begin_transfer(candidates, max_lag, effects)
    }

    /// Asks the first of these that is fit, from the leader's point of view.
    ///
    /// # Errors
    /// What is wrong with the first one, when none is.
    pub(super) fn begin_transfer(
        &mut self,
        candidates: Vec<NodeId>,
        max_lag: Option<u64>,
        effects: &mut Effects,
    ) -> Result<(), TransferError> {
        self.wake();
        let own = self.config.node;
        let transfer = Transfer::new(candidates, max_lag, own, self.ticks);
        self.transfer = Some(Box::new(transfer));
        if self.ask_next(effects) {
            return Ok(());
        }
        let none = self.transfer.take();
        let error = none.and_then(|transfer| transfer.error);
        Err(error.unwrap_or(TransferError::NoHealthyTarget { group: self.id }))
    }

    // ---- asking ----

    /// Asks the next candidate that is fit; `false`: there is none.
    fn ask_next(&mut self, effects: &mut Effects) -> bool {
        loop {
            let Some(transfer) = self.transfer.as_mut() else { return false };
            let Some(node) = transfer.next.pop_front() else { return false };
            let max_lag = transfer.max_lag;
            let checked = self.check_target(node, max_lag, effects);
            let Some(transfer) = self.transfer.as_mut() else { return false };
            match checked {
                Ok(replica) => {
                    transfer.ask(node, replica, self.ticks);
                    if let Some(led) = self.led.as_mut() {
                        led.offered = true;
                    }
                    self.prepare_vote(replica, effects);
                    self.send_question(node, replica.get(), self.ticks, effects);
                    return true;
                }
                Err(error) => {
                    effects.count(PolicyEvent::CandidateRefused(error.reason()));
                    transfer.blame(error);
                }
            }
        }
    }

    /// A question, or its answer, may have been lost.
    pub(super) fn ask_again(&self, effects: &mut Effects) {
        let Some(transfer) = &self.transfer else { return };
        if let Phase::Asking(asked) = transfer.phase
            && self.ticks > asked
            && self.leads()
        {
            self.send_question(transfer.to, transfer.replica, asked, effects);
        }
    }

    fn send_question(&self, to: NodeId, replica: u64, asked: u64, effects: &mut Effects) {
        let message = GroupMessage {
            index: self.raw.raft.raft_log.last_index(),
            stamp: asked,
            escape: self.only_draining_voters_are_left(effects),
            declined: self.declined_so_far(effects),
            ..self.own_message(MessageKind::TransferAsk, replica)
        };
        effects.messages.push(Outgoing { to, lane: Lane::Urgent, message });
    }

    /// The target answers, or declines after it got TimeoutNow.
    pub(super) fn take_transfer_answer(&mut self, message: &GroupMessage, effects: &mut Effects) {
        let Some(transfer) = self.transfer.as_mut() else { return };
        let from_target = transfer.replica == message.from_replica;
        if self.raw.raft.state != StateRole::Leader
            || !from_target
            || message.term != self.raw.raft.term
        {
            return;
        }
        match transfer.answer(message.stamp, message.reject) {
            Answer::Agrees => {
                transfer.phase = Phase::Levelling(self.ticks);
                self.watch_transfer(effects);
            }
            Answer::Declines => {
                let (group, node) = (self.id, transfer.to);
                let (reason, words) = handshake::what_it_said(message);
                let error = TransferError::TargetRefused { group, node, reason, words };
                self.try_another(error, effects);
            }
            Answer::Old => {}
        }
    }

    // ---- levelling and frozen ----

    /// Continues the transfer under way, as far as it can.
    pub(super) fn watch_transfer(&mut self, effects: &mut Effects) {
        let Some(transfer) = &self.transfer else { return };
        match transfer.next(&self.transfer_view(transfer, effects)) {
            Next::Wait => {}
            Next::Freeze => self.freeze(effects),
            Next::TryAnother(error) => self.try_another(error, effects),
            Next::GiveUp { overdue, error } => {
                if overdue {
                    effects.count(PolicyEvent::WatchdogEnded);
                }
                self.raw.raft.abort_leader_transfer();
                self.end_transfer(&Err(error), effects);
            }
            Next::End(outcome) => self.end_transfer(&outcome, effects),
        }
    }

    fn transfer_view(&self, transfer: &Transfer, effects: &Effects) -> View<'_> {
        let raft = &self.raw.raft;
        View {
            group: self.id,
            config: &self.config,
            tick: self.ticks,
            began: effects.began,
            leads: self.leads(),
            leader: raft.leader_id,
            term: raft.term,
            transferee: raft.lead_transferee,
            lag: self.lag_of(transfer.replica),
            prepared: self.durable.preparation.is_durable(self.config.bugs),
        }
    }

    /// Stops the group for its users, and gives the target what it needs to take over.
    fn freeze(&mut self, effects: &mut Effects) {
        let Some(transfer) = self.transfer.as_mut() else { return };
        let replica = transfer.replica;
        transfer.phase = Phase::Frozen(self.ticks, effects.began);
        self.void_lease(replica, effects);
        // What was queued in this step goes into the log first: raft refuses it afterwards.
        self.propose_queued(effects);
        self.raw.transfer_leader(replica);
        if self.raw.raft.lead_transferee == Some(replica) {
            let error = crate::error::ReadError::Transferring { group: self.id };
            self.fail_reads(&error, effects);
        } else {
            let error = TransferError::NoHealthyTarget { group: self.id };
            self.try_another(error, effects);
        }
    }

    /// Keeps the order to campaign until the target is known.
    pub(super) fn hold_order(&mut self, order: GroupMessage) {
        if let Some(transfer) = self.transfer.as_mut() {
            transfer.held = Some(order);
        }
    }

    /// The target answered: it can get TimeoutNow.
    pub(super) fn release_order(&mut self, replica: u64, life: u64, effects: &mut Effects) {
        let Some(transfer) = self.transfer.as_mut().filter(|one| one.replica == replica) else {
            return;
        };
        if let Some(mut message) = transfer.held.take() {
            message.life = life;
            effects.messages.push(Outgoing { to: transfer.to, lane: Lane::Urgent, message });
        }
    }

    // ---- the end ----

    /// This target does not get the leadership: the group continues, and the next one is asked.
    fn try_another(&mut self, error: TransferError, effects: &mut Effects) {
        let Some(transfer) = self.transfer.as_mut() else { return };
        let (replica, phase) = (transfer.replica, transfer.phase);
        transfer.blame(error.clone());
        let worst = transfer.error.clone().unwrap_or_else(|| error.clone());
        transfer.held = None;
        transfer.phase = Phase::Asking(self.ticks);
        self.succession.note_declined(replica, &error, self.at());
        if let Phase::Frozen(..) = phase {
            self.count_freeze(phase, effects);
            self.raw.raft.abort_leader_transfer();
            self.resume_lease(effects);
        }
        if !self.ask_next(effects) {
            self.fail_transfer(&worst, effects);
        }
    }

    pub(super) fn fail_transfer(&mut self, error: &TransferError, effects: &mut Effects) {
        self.end_transfer(&Err(error.clone()), effects);
    }

    fn end_transfer(&mut self, outcome: &Ended, effects: &mut Effects) {
        let Some(transfer) = self.transfer.take() else { return };
        match outcome {
            Ok(_) => {
                effects.count(PolicyEvent::TransferDone);
                self.withhold_candidacy();
            }
            Err(error) => {
                effects.count(PolicyEvent::TransferFailed(error.reason()));
                self.succession.failed(transfer.replica, error, self.at());
            }
        }
        let stood = self.count_freeze(transfer.phase, effects);
        if self.leads() && transfer.is_frozen() {
            self.resume_lease(effects);
        }
        let completions = transfer.completions.into_iter();
        let outcome = outcome.clone().map(|(to, term)| (to, term, stood));
        effects
            .transfer_replies
            .extend(completions.map(|completion| (completion, outcome.clone())));
    }

    /// Users waited, and do not any more: for how long.
    fn count_freeze(&self, phase: Phase, effects: &mut Effects) -> Duration {
        let Phase::Frozen(since, began) = phase else { return Duration::ZERO };
        let stood = match (began, effects.ended.or(effects.began)) {
            (Some(began), Some(now)) => now.since(began),
            _ => self.config.in_time(self.ticks - since),
        };
        effects.count(PolicyEvent::Froze(stood));
        stood
    }

    /// Who leads, or is about to: the target of a transfer that got this replica's vote.
    pub(super) fn successor_hint(&self) -> Option<LeaderHint> {
        let about_to = || {
            let transfer = self.transfer.as_ref().filter(|one| one.is_frozen())?;
            let voted = self.raw.raft.vote == transfer.replica && !self.leads();
            let term = Term::new(self.raw.raft.term);
            voted.then_some(LeaderHint { node: transfer.to, term })
        };
        self.leader_hint().or_else(about_to)
    }

    /// Where leadership is being handed to.
    pub(super) fn transferring_to(&self) -> Option<NodeId> {
        self.transfer.as_ref().map(|transfer| transfer.to())
    }

    /// Whether users wait for a transfer, which must not last.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.is_frozen())
    }
}

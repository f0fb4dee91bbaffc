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

mod deposed;
mod gate;
mod handshake;
mod prepare;

pub(super) use prepare::Preparation;

use std::collections::VecDeque;
use std::time::Duration;

use shardhost_proto::peer::GroupMessage;
use shardhost_storage::{NodeId, Term};
use tokio::sync::oneshot;

use super::GroupCore;
use crate::clock::Moment;
use crate::core::Effects;
use crate::error::{LeaderHint, TransferError};
use crate::known_bugs::KnownBug;
use crate::policy::PolicyEvent;
use crate::transport::{Lane, Outgoing};

/// How a transfer ended: the node that leads afterwards and its term, how long users were
/// held up, or why not.
pub type TransferOutcome = Result<(NodeId, Term, Duration), TransferError>;

/// How a transfer ended: who leads, and its term.
type Ended = Result<(NodeId, Term), TransferError>;

/// Who waits for a transfer.
pub type TransferWaiter = oneshot::Sender<TransferOutcome>;

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
    pub waiter: TransferWaiter,
}

/// Entries that a target may lack when the group is frozen: they must be there before it can lead.
const FREEZE_LAG: u64 = 1_024;
/// Ticks after which a target that was asked counts as silent.
const ASK_TICKS: u64 = 5;

/// Ticks that the votes that a transfer needs may take to be durable. After that it continues
/// without.
const PREPARE_TICKS: u64 = 5;

#[derive(Debug)]
pub(super) struct Transfer {
    /// Who is tried, and who is next.
    to: NodeId,
    replica: u64,
    next: VecDeque<NodeId>,
    /// Entries that a target may lack when it is asked; `None`: it is waited for.
    max_lag: Option<u64>,
    phase: Phase,
    since: u64,
    waiters: Vec<TransferWaiter>,
    /// One node was named, and no other will do.
    named: bool,
    /// What was wrong with the candidate that came closest.
    error: Option<TransferError>,
    /// The order to campaign, until it is known which life of the target it is meant for.
    held: Option<GroupMessage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The target was asked at this tick.
    Asking(u64),
    /// It agreed, and lacks too much.
    Levelling(u64),
    /// Users wait since this tick and moment.
    Frozen(u64, Option<Moment>),
}

impl Transfer {
    /// The replica that is to lead.
    pub(super) const fn replica(&self) -> u64 {
        self.replica
    }

    pub(super) const fn is_frozen(&self) -> bool {
        matches!(self.phase, Phase::Frozen(..))
    }

    /// Remembers the problem of a candidate: the most specific one of those that were tried.
    fn blame(&mut self, error: TransferError) {
        let known = self.error.as_ref().map_or(0, closeness);
        if closeness(&error) > known {
            self.error = Some(error);
        } else if known <= 1 && !self.named {
            let group = error.group();
            self.error = Some(TransferError::NoHealthyTarget { group });
        }
    }
}

/// How close a candidate came to lead, from what was wrong with it.
const fn closeness(error: &TransferError) -> u8 {
    match error {
        TransferError::TargetNotCaughtUp { .. } => 3,
        TransferError::AlreadyLeads { .. }
        | TransferError::NoVoter { .. }
        | TransferError::TargetNotLive { .. }
        | TransferError::NoHealthyTarget { .. } => 1,
        _ => 2,
    }
}

impl GroupCore {
    /// Starts a transfer, joins the one to the same target, or refuses.
    pub fn transfer(&mut self, request: TransferRequest, effects: &mut Effects) {
        let TransferRequest { to, waiter } = request;
        let begun = match self.may_begin(&to) {
            Ok(None) => self.begin_with(&to, effects),
            Ok(Some(())) => Ok(()),
            Err(error) => Err(error),
        };
        match (begun, self.transfer.as_deref_mut()) {
            (Ok(()), Some(transfer)) => transfer.waiters.push(waiter),
            (Ok(()), None) => {
                let error = TransferError::NoHealthyTarget { group: self.id };
                effects.transfer_replies.push((waiter, Err(error)));
            }
            (Err(error), _) => {
                effects.count(PolicyEvent::TransferFailed(error.reason()));
                effects.transfer_replies.push((waiter, Err(error)));
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
        self.transfer = Some(Box::new(Transfer {
            to: self.config.node,
            replica: 0,
            named: candidates.len() == 1,
            next: candidates.into(),
            max_lag,
            phase: Phase::Asking(self.ticks),
            since: self.ticks,
            waiters: Vec::new(),
            error: None,
            held: None,
        }));
        if self.ask_next(effects) {
            return Ok(());
        }
        let none = self.transfer.take();
        let error = none.and_then(|transfer| transfer.error);
        Err(error.unwrap_or(TransferError::NoHealthyTarget { group: self.id }))
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

    /// Notices the progress of a transfer, and its end.
    pub(super) fn watch_transfer(&mut self, effects: &mut Effects) {
        let Some(transfer) = &self.transfer else { return };
        if !self.leads() {
            return self.watch_successor(effects);
        }
        match transfer.phase {
            Phase::Asking(asked) if self.ticks - asked > ASK_TICKS => {
                let (group, node) = (self.id, transfer.to);
                let after = self.in_time(self.ticks - asked);
                self.try_another(TransferError::TargetSilent { group, node, after }, effects);
            }
            Phase::Asking(_) => {}
            Phase::Levelling(since) => self.level(since, effects),
            Phase::Frozen(since, began) => {
                let given_up = self.raw.raft.lead_transferee != Some(transfer.replica);
                let overdue = !given_up && self.is_overdue(since, began, effects);
                if overdue {
                    effects.count(PolicyEvent::WatchdogEnded);
                }
                if given_up || overdue {
                    self.raw.raft.abort_leader_transfer();
                    self.end_transfer(&self.aborted(), effects);
                }
            }
        }
    }

    /// Freezes when the target lacks little and nothing is to be written before the election; gives
    /// it up when it does not come to that.
    fn level(&mut self, since: u64, effects: &mut Effects) {
        let Some(transfer) = &self.transfer else { return };
        let (group, node, lag) = (self.id, transfer.to, self.lag_of(transfer.replica));
        let level = lag <= FREEZE_LAG;
        // A disk that is slow, or hangs, must not keep the leadership where it is: others can elect the
        // target, whose vote is durable. This replica's follows when it can.
        let waited = self.ticks - since >= PREPARE_TICKS && !self.waits_for_own_disk();
        if level && (self.is_prepared_vote_durable() || waited) {
            self.freeze(effects);
        } else if self.ticks - since > u64::from(self.config.give_up_ticks) {
            let after = self.in_time(self.ticks - since);
            let max_lag = FREEZE_LAG;
            let error = match level {
                true => TransferError::Aborted { group, to: node, after },
                false => TransferError::TargetNotCaughtUp { group, node, lag, max_lag },
            };
            self.try_another(error, effects);
        }
    }

    fn waits_for_own_disk(&self) -> bool {
        self.config.bugs.has(KnownBug::WaitForOwnDisk)
    }

    /// Whether users have waited long enough. Nothing extends it.
    fn is_overdue(&self, since: u64, began: Option<Moment>, effects: &Effects) -> bool {
        let limit = self.config.freeze_timeout;
        match (began, effects.began) {
            (Some(began), Some(now)) => now >= began + limit,
            // The time is unknown: a tick begun is a tick waited.
            _ => self.in_time(self.ticks - since) >= limit,
        }
    }

    /// This replica does not lead any more: the new leader is the outcome.
    fn watch_successor(&mut self, effects: &mut Effects) {
        let Some(transfer) = &self.transfer else { return };
        let raft = &self.raw.raft;
        let waited = self.ticks - transfer.since;
        let outcome = if transfer.is_frozen() && raft.leader_id == transfer.replica {
            Some(Ok((transfer.to, Term::new(raft.term))))
        } else if raft.leader_id != 0 || waited > u64::from(self.config.give_up_ticks) {
            Some(self.aborted())
        } else {
            None
        };
        if let Some(outcome) = outcome {
            self.end_transfer(&outcome, effects);
        }
    }

    fn aborted(&self) -> Ended {
        let (to, since) =
            self.transfer.as_ref().map_or((self.config.node, 0), |one| (one.to, one.since));
        let after = self.in_time(self.ticks.saturating_sub(since));
        Err(TransferError::Aborted { group: self.id, to, after })
    }

    pub(super) fn in_time(&self, ticks: u64) -> Duration {
        self.config.tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
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
                self.succession_failed(transfer.replica, error);
            }
        }
        let stood = self.count_freeze(transfer.phase, effects);
        if self.leads() && transfer.is_frozen() {
            self.resume_lease(effects);
        }
        let waiters = transfer.waiters.into_iter();
        let outcome = outcome.clone().map(|(to, term)| (to, term, stood));
        effects.transfer_replies.extend(waiters.map(|waiter| (waiter, outcome.clone())));
    }

    /// Users waited, and do not any more: for how long.
    fn count_freeze(&self, phase: Phase, effects: &mut Effects) -> Duration {
        let Phase::Frozen(since, began) = phase else { return Duration::ZERO };
        let stood = match (began, effects.ended.or(effects.began)) {
            (Some(began), Some(now)) => now.since(began),
            _ => self.in_time(self.ticks - since),
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
        self.transfer.as_ref().map(|transfer| transfer.to)
    }

    /// Whether users wait for a transfer, which must not last.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.is_frozen())
    }
}

//! A barrier holds back the proposals of users while an operator's go through, and can be waited
//! for until nothing of the users' is under way any more. It belongs to a term.

use shardhost_storage::{GroupId, LogIndex, Term};
use tokio::sync::oneshot;

use super::GroupCore;
use crate::core::Effects;
use crate::error::{BarrierError, ProposalRejection, ProposeError};

/// The term and the number of a barrier that was opened, or why none was.
pub type BarrierOutcome = Result<(Term, u64), BarrierError>;

/// Who waits for a barrier to be open.
pub type BarrierWaiter = oneshot::Sender<BarrierOutcome>;

/// Answers when everything before the barrier is applied, with the last index of it.
pub type DrainWaiter = oneshot::Sender<Result<LogIndex, BarrierError>>;

/// What is asked of the leader.
#[derive(Debug)]
pub enum BarrierOrder {
    Open(BarrierWaiter),
    /// Close the one with this number, if it is open.
    Close(u64),
    /// Tell when nothing of the users' is under way any more.
    Drain {
        number: u64,
        waiter: DrainWaiter,
    },
}

/// A barrier that is open.
#[derive(Debug)]
pub(super) struct Barrier {
    number: u64,
    /// The last entry that a user may have proposed.
    last: u64,
    drainers: Vec<DrainWaiter>,
}

impl GroupCore {
    /// Opens, closes, or waits for a barrier.
    pub fn barrier(&mut self, order: BarrierOrder, effects: &mut Effects) {
        match order {
            BarrierOrder::Open(waiter) => {
                let opened = self.open_barrier(effects);
                effects.barrier_replies.push((waiter, opened));
            }
            BarrierOrder::Close(number) => self.close_barrier(number, effects),
            BarrierOrder::Drain { number, waiter } => match self.barrier.as_mut() {
                Some(barrier) if barrier.number == number => barrier.drainers.push(waiter),
                _ => effects
                    .drain_replies
                    .push((waiter, Err(BarrierError::Ended { group: self.id }))),
            },
        }
    }

    fn open_barrier(&mut self, effects: &mut Effects) -> BarrierOutcome {
        let group = self.id;
        // A leadership that was won in this very step has no serving state yet.
        self.observe_leadership(effects);
        if !self.leads() {
            return Err(BarrierError::NotLeader { group, hint: self.leader_hint() });
        }
        if self.barrier.is_some() {
            return Err(BarrierError::AlreadyOpen { group });
        }
        self.wake();
        // What was queued before the barrier is before it.
        self.propose_queued(effects);
        self.barriers += 1;
        let last = self.raw.raft.raft_log.last_index();
        let barrier = Barrier { number: self.barriers, last, drainers: Vec::new() };
        self.barrier = Some(Box::new(barrier));
        Ok((Term::new(self.raw.raft.term), self.barriers))
    }

    fn close_barrier(&mut self, number: u64, effects: &mut Effects) {
        let applied = LogIndex::new(self.apply.applied());
        if let Some(barrier) = self.barrier.take_if(|barrier| barrier.number == number) {
            let drainers = barrier.drainers.into_iter();
            effects.drain_replies.extend(drainers.map(|waiter| (waiter, Ok(applied))));
        }
    }

    /// Notifies the callers that wait for everything before the barrier to be applied.
    pub(super) fn watch_barrier(&mut self, effects: &mut Effects) {
        let applied = self.apply.applied();
        let Some(barrier) = self.barrier.as_mut() else { return };
        if applied >= barrier.last {
            let last = LogIndex::new(barrier.last);
            let drainers = std::mem::take(&mut barrier.drainers).into_iter();
            effects.drain_replies.extend(drainers.map(|waiter| (waiter, Ok(last))));
        } else {
            barrier.drainers.retain(|waiter| !waiter.is_closed());
        }
    }

    /// The leadership that the barrier belonged to is over.
    pub(super) fn end_barrier(&mut self, effects: &mut Effects) {
        let group = self.id;
        if let Some(barrier) = self.barrier.take() {
            let ended = barrier.drainers.into_iter();
            effects
                .drain_replies
                .extend(ended.map(|waiter| (waiter, Err(BarrierError::Ended { group }))));
        }
    }

    pub(super) fn paused(group: GroupId) -> ProposeError {
        ProposeError::Rejected { group, reason: ProposalRejection::Paused }
    }
}

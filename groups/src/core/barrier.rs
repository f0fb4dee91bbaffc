//! A barrier holds back the proposals of users while an operator's go through, and can be waited
//! for until nothing of the users' is under way any more. It belongs to a term.

use shardhost_storage::{LogIndex, Term};

use super::GroupCore;
use crate::completion::Reply;
use crate::core::Effects;
use crate::error::BarrierError;

/// The term and the number of a barrier that was opened, or why none was.
pub type BarrierOutcome = Result<(Term, u64), BarrierError>;

/// Who waits for a barrier to be open.
pub type BarrierCompletion = Reply<BarrierOutcome>;

/// Answers when everything before the barrier is applied, with the last index of it.
pub type DrainCompletion = Reply<Result<LogIndex, BarrierError>>;

/// What is asked of the leader.
#[derive(Debug)]
pub enum BarrierOrder {
    Open(BarrierCompletion),
    /// Close the one with this number, if it is open.
    Close(u64),
    /// Tell when nothing of the users' is under way any more.
    Drain {
        number: u64,
        completion: DrainCompletion,
    },
}

/// A barrier that is open.
#[derive(Debug)]
struct Barrier {
    number: u64,
    /// The last entry that a user may have proposed.
    last: u64,
    drainers: Vec<DrainCompletion>,
}

/// Barriers of this replica. One is open at a time.
#[derive(Debug, Default)]
pub(super) struct Barriers {
    open: Option<Box<Barrier>>,
    /// Those that were opened; numbers them.
    opened: u64,
}

impl Barriers {
    pub(super) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Opens one behind this entry; gives its number.
    fn open(&mut self, last: u64) -> u64 {
        self.opened += 1;
        let barrier = Barrier { number: self.opened, last, drainers: Vec::new() };
        self.open = Some(Box::new(barrier));
        self.opened
    }

    /// Closes the one with this number, if it is open; gives those who waited for it.
    fn close(&mut self, number: u64) -> Vec<DrainCompletion> {
        let closed = self.open.take_if(|barrier| barrier.number == number);
        closed.map_or_else(Vec::new, |barrier| barrier.drainers)
    }

    /// Waits for everything before the barrier with this number; gives the completion back if that
    /// is not open.
    fn drain(&mut self, number: u64, completion: DrainCompletion) -> Result<(), DrainCompletion> {
        match self.open.as_mut() {
            Some(barrier) if barrier.number == number => barrier.drainers.push(completion),
            _ => return Err(completion),
        }
        Ok(())
    }

    /// When everything before the barrier is applied: those who wait for that, and where it ends.
    fn drained(&mut self, applied: u64) -> Option<(u64, Vec<DrainCompletion>)> {
        let barrier = self.open.as_mut()?;
        if applied < barrier.last {
            barrier.drainers.retain(|completion| !completion.is_closed());
            return None;
        }
        Some((barrier.last, std::mem::take(&mut barrier.drainers)))
    }

    /// The leadership that the barrier belonged to is over; gives those who waited.
    fn end(&mut self) -> Vec<DrainCompletion> {
        self.open.take().map_or_else(Vec::new, |barrier| barrier.drainers)
    }
}

impl GroupCore {
    /// Opens, closes, or waits for a barrier.
    pub fn barrier(&mut self, order: BarrierOrder, effects: &mut Effects) {
        match order {
            BarrierOrder::Open(completion) => {
                let opened = self.open_barrier(effects);
                effects.barrier_replies.push((completion, opened));
            }
            BarrierOrder::Close(number) => {
                let applied = LogIndex::new(self.apply.applied());
                effects.drained(self.barriers.close(number), &Ok(applied));
            }
            BarrierOrder::Drain { number, completion } => {
                if let Err(completion) = self.barriers.drain(number, completion) {
                    effects.drained(vec![completion], &Err(BarrierError::Ended { group: self.id }));
                }
            }
        }
    }

    fn open_barrier(&mut self, effects: &mut Effects) -> BarrierOutcome {
        let group = self.id;
        // A leadership that was won in this very step has no serving state yet.
        self.observe_leadership(effects);
        if !self.leads() {
            return Err(BarrierError::NotLeader { group, hint: self.leader_hint() });
        }
        if self.barriers.is_open() {
            return Err(BarrierError::AlreadyOpen { group });
        }
        self.wake();
        // What was queued before the barrier is before it.
        self.propose_queued(effects);
        let number = self.barriers.open(self.raw.raft.raft_log.last_index());
        Ok((Term::new(self.raw.raft.term), number))
    }

    /// Notifies the callers that wait for everything before the barrier to be applied.
    pub(super) fn watch_barrier(&mut self, effects: &mut Effects) {
        if let Some((last, drainers)) = self.barriers.drained(self.apply.applied()) {
            effects.drained(drainers, &Ok(LogIndex::new(last)));
        }
    }

    /// The leadership that the barrier belonged to is over.
    pub(super) fn end_barrier(&mut self, effects: &mut Effects) {
        effects.drained(self.barriers.end(), &Err(BarrierError::Ended { group: self.id }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion() -> DrainCompletion {
        crate::completion::answer().0
    }

    #[test]
    fn who_waits_for_a_barrier_waits_for_what_is_before_it() {
        let (sender, _caller) = crate::completion::answer();
        let mut barriers = Barriers::default();
        let number = barriers.open(10);
        assert!(barriers.drain(number + 1, completion()).is_err(), "another one");
        assert!(barriers.drain(number, sender).is_ok());
        assert!(barriers.drain(number, completion()).is_ok(), "a caller that is gone");
        assert!(barriers.drained(9).is_none());
        let (last, drainers) = barriers.drained(12).expect("all is applied");
        assert_eq!((last, drainers.len()), (10, 1));
        assert!(barriers.is_open());
    }

    #[test]
    fn a_barrier_is_closed_by_its_number_or_with_its_leadership() {
        let mut barriers = Barriers::default();
        let first = barriers.open(10);
        assert!(barriers.drain(first, completion()).is_ok());
        assert!(barriers.close(first + 1).is_empty() && barriers.is_open());
        assert_eq!(barriers.close(first).len(), 1);
        assert!(!barriers.is_open());
        let second = barriers.open(11);
        assert!(second > first && barriers.drain(second, completion()).is_ok());
        assert_eq!(barriers.end().len(), 1);
        assert!(!barriers.is_open());
    }
}

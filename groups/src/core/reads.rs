//! Linearizable reads: a leader proves with one round of heartbeats that it still leads, for all
//! reads that wait; then they wait until everything committed before is applied here.

use std::collections::VecDeque;

use shardhost_storage::LogIndex;
use tokio::sync::oneshot;

use super::GroupCore;
use crate::error::ReadError;
use crate::worker::Round;

/// A read may see everything that was acknowledged before it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "a barrier is what makes the read that follows it linearizable"]
pub struct ReadBarrier {
    /// What was committed when the read was confirmed.
    pub read_index: LogIndex,
    /// What is applied here; at or above `read_index`.
    pub applied: LogIndex,
}

impl ReadBarrier {
    /// What this replica has applied, whatever others have.
    pub(crate) const fn stale(applied: LogIndex) -> Self {
        Self { read_index: applied, applied }
    }
}

/// Who waits for a read.
pub type ReadWaiter = oneshot::Sender<Result<ReadBarrier, ReadError>>;

#[derive(Debug)]
struct WaitingRead {
    waiter: ReadWaiter,
    since: u64,
}

/// The reads of one group.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Not yet part of a quorum round.
    waiting: Vec<WaitingRead>,
    /// Part of the round under way, with its context.
    asked: Option<([u8; 24], Vec<WaitingRead>)>,
    /// Confirmed at an index that is not applied yet.
    confirmed: VecDeque<(u64, Vec<WaitingRead>)>,
    count: usize,
    rounds: u64,
}

impl Reads {
    fn take_all(&mut self) -> Vec<WaitingRead> {
        let mut all = std::mem::take(&mut self.waiting);
        all.extend(self.asked.take().into_iter().flat_map(|(_, reads)| reads));
        all.extend(std::mem::take(&mut self.confirmed).into_iter().flat_map(|(_, reads)| reads));
        self.count = 0;
        all
    }
}

impl GroupCore {
    /// Takes a read into this round.
    pub fn read(&mut self, waiter: ReadWaiter, round: &mut Round) {
        if let Some(error) = self.refuses_reads() {
            round.read_replies.push((waiter, Err(error)));
            return;
        }
        self.wake();
        let since = self.ticks;
        let reads = self.reads.get_or_insert_default();
        reads.count += 1;
        reads.waiting.push(WaitingRead { waiter, since });
    }

    fn refuses_reads(&self) -> Option<ReadError> {
        let group = self.id;
        if !self.leads() {
            return Some(ReadError::NotLeader { group, hint: self.leader_hint() });
        }
        if self.raw.raft.lead_transferee.is_some() {
            return Some(ReadError::Transferring { group });
        }
        let count = self.reads.as_ref().map_or(0, |reads| reads.count);
        (count >= self.config.max_reads_per_group).then_some(ReadError::Busy { group })
    }

    /// Starts a quorum round for everything that waits, unless one is under way.
    pub(super) fn start_read_round(&mut self) {
        let serving = self.led.as_ref().is_some_and(|led| led.ready);
        let Some(reads) = self.reads.as_mut() else { return };
        if !serving || reads.asked.is_some() || reads.waiting.is_empty() {
            return;
        }
        reads.rounds += 1;
        let mut context = [0; 24];
        context[..8].copy_from_slice(&self.config.incarnation.to_be_bytes());
        context[8..16].copy_from_slice(&self.epoch.to_be_bytes());
        context[16..].copy_from_slice(&reads.rounds.to_be_bytes());
        let raft = &self.raw.raft;
        let before = raft.pending_read_count() + raft.ready_read_count();
        self.raw.read_index(context.to_vec());
        let raft = &self.raw.raft;
        if raft.pending_read_count() + raft.ready_read_count() > before {
            let waiting = std::mem::take(&mut reads.waiting);
            reads.asked = Some((context, waiting));
        }
    }

    /// A quorum confirmed the round with this context.
    pub(super) fn confirm_reads(&mut self, context: &[u8], index: u64) {
        let Some(reads) = self.reads.as_mut() else { return };
        match reads.asked.take() {
            Some((asked, waiting)) if asked == context => {
                reads.confirmed.push_back((index, waiting));
            }
            other => reads.asked = other,
        }
    }

    /// Answers the reads whose index is applied.
    pub(super) fn resolve_confirmed_reads(&mut self, round: &mut Round) {
        let applied = self.apply.applied();
        let Some(reads) = self.reads.as_mut() else { return };
        while let Some((index, _)) = reads.confirmed.front() {
            if *index > applied {
                return;
            }
            let Some((index, ready)) = reads.confirmed.pop_front() else { return };
            reads.count -= ready.len();
            let barrier =
                ReadBarrier { read_index: LogIndex::new(index), applied: LogIndex::new(applied) };
            round.read_replies.extend(ready.into_iter().map(|read| (read.waiter, Ok(barrier))));
        }
        if reads.count == 0 {
            self.reads = None;
        }
    }

    /// Gives up the reads that waited too long, and starts anew a round that nobody answered.
    pub(super) fn expire_reads(&mut self, round: &mut Round) {
        let group = self.id;
        let limit = u64::from(self.config.give_up_ticks);
        let now = self.ticks;
        let Some(reads) = self.reads.as_mut() else { return };
        let live = |read: &WaitingRead| now - read.since < limit && !read.waiter.is_closed();
        let mut expired: Vec<_> = reads.waiting.extract_if(.., |read| !live(read)).collect();
        if let Some((_, asked)) = reads.asked.as_mut() {
            expired.extend(asked.extract_if(.., |read| !live(read)));
            if asked.is_empty() {
                reads.asked = None;
            }
        }
        for (_, confirmed) in &mut reads.confirmed {
            expired.extend(confirmed.extract_if(.., |read| !live(read)));
        }
        reads.count -= expired.len();
        let error = ReadError::Unconfirmed { group };
        round.read_replies.extend(expired.into_iter().map(|r| (r.waiter, Err(error.clone()))));
    }

    pub(super) fn fail_reads(&mut self, error: &ReadError, round: &mut Round) {
        let Some(mut reads) = self.reads.take() else { return };
        let all = reads.take_all();
        round.read_replies.extend(all.into_iter().map(|read| (read.waiter, Err(error.clone()))));
    }

    pub(super) const fn has_reads(&self) -> bool {
        self.reads.is_some()
    }
}

//! Linearizable reads: a leader proves with one round of heartbeats that it still leads, for all
//! reads that wait; then they wait until everything committed before is applied here. A follower
//! asks its leader for the index and waits for it here.

use std::collections::VecDeque;

use bytes::Bytes;
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{LogIndex, NodeId};
use tokio::sync::oneshot;

use super::GroupCore;
use crate::core::Effects;
use crate::error::ReadError;
use crate::known_bugs::KnownBug;
use crate::transport::{Lane, Outgoing};

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

/// What a read needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadNeed {
    /// This replica leads, and has applied everything that was committed when that was proved.
    Applied,
    /// This replica leads; what it has applied does not matter.
    Leadership,
    /// The leader reported its commit index, and this replica has applied that.
    FromLeader,
    /// This replica has applied everything up to here, whichever replica leads.
    At(LogIndex),
}

/// A read on its way to the core.
#[derive(Debug)]
pub struct ReadRequest {
    pub need: ReadNeed,
    pub waiter: ReadWaiter,
}

#[derive(Debug)]
enum Reader {
    Local {
        need: ReadNeed,
        waiter: ReadWaiter,
    },
    /// A replica on another node, and the words by which it knows its question.
    Peer {
        node: NodeId,
        replica: u64,
        context: Bytes,
    },
}

#[derive(Debug)]
struct WaitingRead {
    reader: Reader,
    since: u64,
}

impl WaitingRead {
    fn is_given_up(&self) -> bool {
        matches!(&self.reader, Reader::Local { waiter, .. } if waiter.is_closed())
    }

    fn needs_apply(&self) -> bool {
        matches!(&self.reader, Reader::Local { .. }) && !self.is_proof()
    }

    /// Whether it proves leadership only: that shows nothing of the state, so a caretaker may.
    fn is_proof(&self) -> bool {
        matches!(&self.reader, Reader::Local { need: ReadNeed::Leadership, .. })
    }
}

/// Ticks after which a follower asks its leader again.
const ASK_AGAIN_TICKS: u64 = 5;
/// Questions of followers that wait at a leader, at most; those above are refused.
const MAX_PEER_READS: usize = 1_024;

/// The reads of one group.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Not yet part of a round.
    waiting: Vec<WaitingRead>,
    /// Part of the round under way, with its context, and since when.
    asked: Option<([u8; 24], Vec<WaitingRead>)>,
    asked_at: u64,
    /// Confirmed at an index that is not applied yet.
    confirmed: VecDeque<(u64, Vec<WaitingRead>)>,
    count: usize,
}

impl Reads {
    fn take_all(&mut self) -> Vec<WaitingRead> {
        let mut all = std::mem::take(&mut self.waiting);
        all.extend(self.asked.take().into_iter().flat_map(|(_, reads)| reads));
        all.extend(std::mem::take(&mut self.confirmed).into_iter().flat_map(|(_, reads)| reads));
        self.count = 0;
        all
    }

    fn confirm(&mut self, index: u64, reads: Vec<WaitingRead>) {
        // Those behind do not see less than those before.
        let index = self.confirmed.back().map_or(index, |(last, _)| index.max(*last));
        self.confirmed.push_back((index, reads));
    }
}

impl GroupCore {
    /// Takes a read into this round.
    pub fn read(&mut self, request: ReadRequest, effects: &mut Effects) {
        let ReadRequest { need, waiter } = request;
        if let Some(error) = self.refuses_reads(need) {
            effects.read_replies.push((waiter, Err(error)));
            return;
        }
        if let ReadNeed::At(index) = need {
            let (since, reader) = (self.ticks, Reader::Local { need, waiter });
            let reads = self.reads.get_or_insert_default();
            reads.count += 1;
            return reads.confirm(index.get(), vec![WaitingRead { reader, since }]);
        }
        self.enqueue_read(Reader::Local { need, waiter });
    }

    fn enqueue_read(&mut self, reader: Reader) {
        self.wake();
        let since = self.ticks;
        let reads = self.reads.get_or_insert_default();
        reads.count += 1;
        reads.waiting.push(WaitingRead { reader, since });
    }

    fn refuses_reads(&self, need: ReadNeed) -> Option<ReadError> {
        let group = self.id;
        let count = self.reads.as_ref().map_or(0, |reads| reads.count);
        if count >= self.config.max_reads_per_group {
            return Some(ReadError::Busy { group });
        }
        if self.leads()
            && need != ReadNeed::Leadership
            && !self.config.bugs.has(KnownBug::CaretakerAnswersReads)
            && let Some(error) = self.refuses_service_to_readers()
        {
            return Some(error);
        }
        if matches!(need, ReadNeed::At(_)) {
            return None;
        }
        if need == ReadNeed::FromLeader && !self.leads() {
            let unknown = self.leader_hint().is_none();
            return unknown.then_some(ReadError::NotLeader { group, hint: None });
        }
        if !self.leads() {
            return Some(ReadError::NotLeader { group, hint: self.leader_hint() });
        }
        let handing_over = self.raw.raft.lead_transferee.is_some();
        handing_over.then_some(ReadError::Transferring { group })
    }

    /// Starts a round for everything that waits, unless one is under way.
    pub(super) fn start_read_round(&mut self, effects: &mut Effects) {
        let serving = self.serves() || (self.is_ready() && self.caretaker().is_some());
        let leads = self.leads();
        let Some(reads) = self.reads.as_mut() else { return };
        if reads.asked.is_some() || reads.waiting.is_empty() || (leads && !serving) {
            return;
        }
        self.read_rounds += 1;
        let mut context = [0; 24];
        context[..8].copy_from_slice(&self.config.incarnation.to_be_bytes());
        context[8..16].copy_from_slice(&self.epoch.to_be_bytes());
        context[16..].copy_from_slice(&self.read_rounds.to_be_bytes());
        let asked =
            if leads { self.ask_quorum(context) } else { self.ask_leader(context, effects) };
        let Some(reads) = self.reads.as_mut() else { return };
        if asked {
            let waiting = std::mem::take(&mut reads.waiting);
            reads.asked = Some((context, waiting));
            reads.asked_at = self.ticks;
        }
    }

    /// This replica leads from here on: what its reads asked another leader is asked of a quorum.
    pub(super) fn ask_anew(&mut self) {
        let Some(reads) = self.reads.as_mut() else { return };
        if let Some((_, asked)) = reads.asked.take() {
            reads.waiting.splice(..0, asked);
        }
    }

    fn ask_quorum(&mut self, context: [u8; 24]) -> bool {
        let raft = &self.raw.raft;
        let before = raft.pending_read_count() + raft.ready_read_count();
        self.raw.read_index(context.to_vec());
        let raft = &self.raw.raft;
        raft.pending_read_count() + raft.ready_read_count() > before
    }

    fn ask_leader(&self, context: [u8; 24], effects: &mut Effects) -> bool {
        let leader = self.raw.raft.leader_id;
        let Some(node) = self.node_of(leader) else { return false };
        let message = GroupMessage {
            context: Bytes::copy_from_slice(&context),
            ..self.own_message(MessageKind::ReadIndex, leader)
        };
        effects.messages.push(Outgoing { to: node, lane: Lane::Urgent, message });
        true
    }

    /// A follower asks what is committed.
    pub(super) fn take_read_index(
        &mut self,
        node: NodeId,
        message: &GroupMessage,
        effects: &mut Effects,
    ) {
        let (replica, context) = (message.from_replica, message.context.clone());
        let waiting = self.reads.as_ref().map_or(0, |reads| reads.count);
        if self.refuses_reads(ReadNeed::Applied).is_some() || waiting >= MAX_PEER_READS {
            return self.answer_peer(node, replica, context, None, effects);
        }
        self.enqueue_read(Reader::Peer { node, replica, context });
    }

    fn answer_peer(
        &self,
        node: NodeId,
        replica: u64,
        context: Bytes,
        index: Option<u64>,
        effects: &mut Effects,
    ) {
        let message = GroupMessage {
            context,
            reject: index.is_none(),
            index: index.unwrap_or(0),
            ..self.own_message(MessageKind::ReadIndexResponse, replica)
        };
        effects.messages.push(Outgoing { to: node, lane: Lane::Urgent, message });
    }

    /// The leader reports its commit index, or that it cannot.
    pub(super) fn take_read_answer(&mut self, message: &GroupMessage, effects: &mut Effects) {
        if self.leads() {
            return;
        }
        if !message.reject {
            return self.confirm_reads(&message.context, message.index);
        }
        let group = self.id;
        let Some(reads) = self.reads.as_mut() else { return };
        if let Some((_, asked)) = reads.asked.take_if(|(c, _)| c[..] == message.context[..]) {
            reads.count -= asked.len();
            let hint = self.leader_hint();
            let error = ReadError::NotLeader { group, hint };
            asked.into_iter().for_each(|read| self.answer(read, &Err(error.clone()), effects));
        }
    }

    /// The round with this context is confirmed.
    pub(super) fn confirm_reads(&mut self, context: &[u8], index: u64) {
        let Some(reads) = self.reads.as_mut() else { return };
        if let Some((_, waiting)) = reads.asked.take_if(|(asked, _)| asked == context) {
            let (applied, at_once): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(WaitingRead::needs_apply);
            let (proofs, of_peers): (Vec<_>, Vec<_>) =
                at_once.into_iter().partition(WaitingRead::is_proof);
            // Proofs come first: they do not wait for the serving state, as the others do.
            for first in [of_peers, proofs].into_iter().filter(|reads| !reads.is_empty()) {
                reads.confirmed.push_front((0, first));
            }
            if !applied.is_empty() {
                reads.confirm(index, applied);
            }
        }
    }

    /// Answers the reads whose index is applied. A leader that does not serve its users keeps them
    /// until it does, whatever confirmed them: it may have been another leader, or this one before
    /// policies were asked again.
    pub(super) fn resolve_confirmed_reads(&mut self, effects: &mut Effects) {
        let applied = self.apply.applied();
        let committed = self.raw.raft.raft_log.committed;
        let withheld = self.leads()
            && !self.serves()
            && !self.config.bugs.has(KnownBug::CaretakerAnswersReads);
        while let Some(reads) = self.reads.as_mut() {
            let due = |(index, waiting): &(u64, Vec<WaitingRead>)| {
                *index <= applied && (!withheld || waiting.iter().all(WaitingRead::is_proof))
            };
            if !reads.confirmed.front().is_some_and(due) {
                break;
            }
            let Some((index, ready)) = reads.confirmed.pop_front() else { break };
            reads.count -= ready.len();
            let index = if index == 0 { committed } else { index };
            let barrier =
                ReadBarrier { read_index: LogIndex::new(index), applied: LogIndex::new(applied) };
            ready.into_iter().for_each(|read| self.answer(read, &Ok(barrier), effects));
        }
        if self.reads.as_ref().is_some_and(|reads| reads.count == 0) {
            self.reads = None;
        }
    }

    fn answer(
        &self,
        read: WaitingRead,
        answer: &Result<ReadBarrier, ReadError>,
        effects: &mut Effects,
    ) {
        match read.reader {
            Reader::Local { waiter, .. } => effects.read_replies.push((waiter, answer.clone())),
            Reader::Peer { node, replica, context } => {
                let index = answer.as_ref().ok().map(|barrier| barrier.read_index.get());
                self.answer_peer(node, replica, context, index, effects);
            }
        }
    }

    /// Fails the reads that waited too long, and repeats a quorum round without an answer.
    pub(super) fn expire_reads(&mut self, effects: &mut Effects) {
        let group = self.id;
        let limit = u64::from(self.config.give_up_ticks);
        let now = self.ticks;
        let follows = !self.leads();
        let Some(reads) = self.reads.as_mut() else { return };
        let live = |read: &WaitingRead| now - read.since < limit && !read.is_given_up();
        let mut expired: Vec<_> = reads.waiting.extract_if(.., |read| !live(read)).collect();
        if let Some((_, asked)) = reads.asked.as_mut() {
            expired.extend(asked.extract_if(.., |read| !live(read)));
        }
        // A question to a leader, or its answer, may have been lost.
        let unanswered = follows && now - reads.asked_at >= ASK_AGAIN_TICKS;
        if let Some((_, asked)) = reads.asked.take_if(|(_, asked)| unanswered || asked.is_empty()) {
            reads.waiting.splice(..0, asked);
        }
        for (_, confirmed) in &mut reads.confirmed {
            expired.extend(confirmed.extract_if(.., |read| !live(read)));
        }
        reads.count -= expired.len();
        let error = Err(ReadError::Unconfirmed { group });
        expired.into_iter().for_each(|read| self.answer(read, &error, effects));
    }

    pub(super) fn fail_reads(&mut self, error: &ReadError, effects: &mut Effects) {
        let Some(mut reads) = self.reads.take() else { return };
        let error = Err(error.clone());
        reads.take_all().into_iter().for_each(|read| self.answer(read, &error, effects));
    }

    pub(super) const fn has_reads(&self) -> bool {
        self.reads.is_some()
    }
}

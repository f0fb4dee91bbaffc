//! Linearizable reads: a leader proves with one round of heartbeats that it still leads, for all
//! reads that wait; then they wait until everything committed before is applied here. A follower
//! asks its leader for the index and waits for it here.
//!
//! [`Reads`] knows who waits for what. The replica decides which reads it takes, and which round is
//! right: it asks a quorum as a leader, and its leader as a follower.

use std::collections::VecDeque;

use bytes::Bytes;
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{LogIndex, NodeId};

use super::GroupCore;
use crate::completion::Reply;
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
pub type ReadCompletion = Reply<Result<ReadBarrier, ReadError>>;

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
    pub completion: ReadCompletion,
}

#[derive(Debug)]
enum Reader {
    Local {
        need: ReadNeed,
        completion: ReadCompletion,
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
        matches!(&self.reader, Reader::Local { completion, .. } if completion.is_closed())
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

/// Names a round of reads.
type Context = [u8; 24];

/// The reads of one group.
#[derive(Debug, Default)]
pub(super) struct Reads {
    open: Option<Box<OpenReads>>,
    /// Rounds that were started. Never starts anew within an opening: an answer to an earlier step
    /// must not be taken for one to a later step.
    rounds: u64,
}

/// Reads that are not answered.
#[derive(Debug, Default)]
struct OpenReads {
    /// Not yet part of a round.
    waiting: Vec<WaitingRead>,
    /// Part of the round under way, with its context, and since when.
    asked: Option<(Context, Vec<WaitingRead>)>,
    asked_at: u64,
    /// Confirmed at an index that is not applied yet.
    confirmed: VecDeque<(u64, Vec<WaitingRead>)>,
    count: usize,
}

impl OpenReads {
    fn confirm(&mut self, index: u64, reads: Vec<WaitingRead>) {
        // Those behind do not see less than those before.
        let index = self.confirmed.back().map_or(index, |(last, _)| index.max(*last));
        self.confirmed.push_back((index, reads));
    }

    fn take_all(mut self) -> Vec<WaitingRead> {
        let mut all = std::mem::take(&mut self.waiting);
        all.extend(self.asked.take().into_iter().flat_map(|(_, reads)| reads));
        all.extend(self.confirmed.into_iter().flat_map(|(_, reads)| reads));
        all
    }
}

impl Reads {
    pub(super) const fn is_empty(&self) -> bool {
        self.open.is_none()
    }

    fn count(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.count)
    }

    fn add(&mut self) -> &mut OpenReads {
        let open = self.open.get_or_insert_default();
        open.count += 1;
        open
    }

    /// Waits for a round.
    fn wait(&mut self, reader: Reader, since: u64) {
        self.add().waiting.push(WaitingRead { reader, since });
    }

    /// Waits for an index only.
    fn wait_for(&mut self, index: u64, reader: Reader, since: u64) {
        self.add().confirm(index, vec![WaitingRead { reader, since }]);
    }

    /// Whether reads wait for a round, and none is under way.
    fn needs_round(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.asked.is_none() && !open.waiting.is_empty())
    }

    /// The name of another round of this opening of a replica.
    fn next_context(&mut self, incarnation: u64, open_id: u64) -> Context {
        self.rounds += 1;
        let mut context = [0; 24];
        context[..8].copy_from_slice(&incarnation.to_be_bytes());
        context[8..16].copy_from_slice(&open_id.to_be_bytes());
        context[16..].copy_from_slice(&self.rounds.to_be_bytes());
        context
    }

    /// All that wait are part of this round.
    fn begin_round(&mut self, context: Context, now: u64) {
        let Some(open) = self.open.as_mut() else { return };
        open.asked = Some((context, std::mem::take(&mut open.waiting)));
        open.asked_at = now;
    }

    /// The round under way is given up, and its reads wait for another.
    pub(super) fn ask_anew(&mut self) {
        let Some(open) = self.open.as_mut() else { return };
        if let Some((_, asked)) = open.asked.take() {
            open.waiting.splice(..0, asked);
        }
    }

    /// The round with this context is refused: gives its reads.
    fn refuse(&mut self, context: &[u8]) -> Vec<WaitingRead> {
        let Some(open) = self.open.as_mut() else { return Vec::new() };
        let Some((_, asked)) = open.asked.take_if(|(asked, _)| asked == context) else {
            return Vec::new();
        };
        open.count -= asked.len();
        asked
    }

    /// The round with this context is confirmed.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64) {
        let Some(open) = self.open.as_mut() else { return };
        let Some((_, waiting)) = open.asked.take_if(|(asked, _)| asked == context) else { return };
        let (applied, at_once): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(WaitingRead::needs_apply);
        let (proofs, of_peers): (Vec<_>, Vec<_>) =
            at_once.into_iter().partition(WaitingRead::is_proof);
        // Proofs come first: they do not wait for the serving state, as the others do.
        for first in [of_peers, proofs].into_iter().filter(|reads| !reads.is_empty()) {
            open.confirmed.push_front((0, first));
        }
        if !applied.is_empty() {
            open.confirm(index, applied);
        }
    }

    /// The next reads that are confirmed at an index that is applied, and that index; 0: what is
    /// committed now. `withheld`: only proofs of leadership are answered.
    fn next_due(&mut self, applied: u64, withheld: bool) -> Option<(u64, Vec<WaitingRead>)> {
        let open = self.open.as_mut()?;
        let (index, reads) = open.confirmed.front()?;
        let due = *index <= applied && (!withheld || reads.iter().all(WaitingRead::is_proof));
        let due = if due { open.confirmed.pop_front() } else { None };
        open.count -= due.as_ref().map_or(0, |(_, reads)| reads.len());
        due
    }

    /// Gives memory back when nothing waits.
    fn forget_answered(&mut self) {
        self.open.take_if(|open| open.count == 0);
    }

    /// Reads that waited for so many ticks, or that are given up. A question to a leader, or its
    /// answer, may have been lost: `follows` asks again.
    fn expire(&mut self, now: u64, limit: u64, follows: bool) -> Vec<WaitingRead> {
        let Some(open) = self.open.as_mut() else { return Vec::new() };
        let gone = |read: &mut WaitingRead| now - read.since >= limit || read.is_given_up();
        let mut expired: Vec<_> = open.waiting.extract_if(.., gone).collect();
        if let Some((_, asked)) = open.asked.as_mut() {
            expired.extend(asked.extract_if(.., gone));
        }
        let unanswered = follows && now - open.asked_at >= ASK_AGAIN_TICKS;
        if let Some((_, asked)) = open.asked.take_if(|(_, asked)| unanswered || asked.is_empty()) {
            open.waiting.splice(..0, asked);
        }
        for (_, confirmed) in &mut open.confirmed {
            expired.extend(confirmed.extract_if(.., gone));
        }
        open.count -= expired.len();
        expired
    }

    fn take_all(&mut self) -> Vec<WaitingRead> {
        self.open.take().map_or_else(Vec::new, |open| open.take_all())
    }
}

impl GroupCore {
    /// Takes a read into this round.
    pub fn read(&mut self, request: ReadRequest, effects: &mut Effects) {
        let ReadRequest { need, completion } = request;
        if let Some(error) = self.refuses_reads(need) {
            effects.read_replies.push((completion, Err(error)));
            return;
        }
        if let ReadNeed::At(index) = need {
            let reader = Reader::Local { need, completion };
            return self.reads.wait_for(index.get(), reader, self.ticks);
        }
        self.enqueue_read(Reader::Local { need, completion });
    }

    fn enqueue_read(&mut self, reader: Reader) {
        self.wake();
        self.reads.wait(reader, self.ticks);
    }

    fn refuses_reads(&self, need: ReadNeed) -> Option<ReadError> {
        let group = self.id;
        if self.reads.count() >= self.config.max_reads_per_group {
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
        let leads = self.leads();
        let serving = self.serves() || (self.is_ready() && self.caretaker().is_some());
        if !self.reads.needs_round() || (leads && !serving) {
            return;
        }
        let context = self.reads.next_context(self.config.incarnation, self.open_id);
        let asked =
            if leads { self.ask_quorum(context) } else { self.ask_leader(context, effects) };
        if asked {
            self.reads.begin_round(context, self.ticks);
        }
    }

    fn ask_quorum(&mut self, context: Context) -> bool {
        let raft = &self.raw.raft;
        let before = raft.pending_read_count() + raft.ready_read_count();
        self.raw.read_index(context.to_vec());
        let raft = &self.raw.raft;
        raft.pending_read_count() + raft.ready_read_count() > before
    }

    fn ask_leader(&self, context: Context, effects: &mut Effects) -> bool {
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
        let too_many = self.reads.count() >= MAX_PEER_READS;
        if too_many || self.refuses_reads(ReadNeed::Applied).is_some() {
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
            return self.reads.confirm(&message.context, message.index);
        }
        let refused = self.reads.refuse(&message.context);
        let error = Err(ReadError::NotLeader { group: self.id, hint: self.leader_hint() });
        refused.into_iter().for_each(|read| self.answer(read, &error, effects));
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
        while let Some((index, due)) = self.reads.next_due(applied, withheld) {
            let index = if index == 0 { committed } else { index };
            let barrier =
                ReadBarrier { read_index: LogIndex::new(index), applied: LogIndex::new(applied) };
            due.into_iter().for_each(|read| self.answer(read, &Ok(barrier), effects));
        }
        self.reads.forget_answered();
    }

    fn answer(
        &self,
        read: WaitingRead,
        answer: &Result<ReadBarrier, ReadError>,
        effects: &mut Effects,
    ) {
        match read.reader {
            Reader::Local { completion, .. } => {
                effects.read_replies.push((completion, answer.clone()))
            }
            Reader::Peer { node, replica, context } => {
                let index = answer.as_ref().ok().map(|barrier| barrier.read_index.get());
                self.answer_peer(node, replica, context, index, effects);
            }
        }
    }

    /// Fails the reads that waited too long, and repeats a round without an answer.
    pub(super) fn expire_reads(&mut self, effects: &mut Effects) {
        let limit = u64::from(self.config.give_up_ticks);
        let expired = self.reads.expire(self.ticks, limit, !self.leads());
        let error = Err(ReadError::Unconfirmed { group: self.id });
        expired.into_iter().for_each(|read| self.answer(read, &error, effects));
    }

    pub(super) fn fail_reads(&mut self, error: &ReadError, effects: &mut Effects) {
        let error = Err(error.clone());
        self.reads.take_all().into_iter().for_each(|read| self.answer(read, &error, effects));
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const CONTEXT: Context = [7; 24];

    /// A read, and its caller.
    type Asked = (Reader, oneshot::Receiver<Result<ReadBarrier, ReadError>>);

    fn local(need: ReadNeed) -> Asked {
        let (completion, caller) = crate::completion::answer();
        (Reader::Local { need, completion }, caller)
    }

    fn of_peer() -> Reader {
        Reader::Peer { node: NodeId::must(2), replica: 2, context: Bytes::new() }
    }

    /// The indexes at which reads are answered now, and how many of them.
    fn due(reads: &mut Reads, applied: u64, withheld: bool) -> Vec<(u64, usize)> {
        let due = std::iter::from_fn(|| reads.next_due(applied, withheld));
        due.map(|(index, reads)| (index, reads.len())).collect()
    }

    #[test]
    fn one_round_answers_all_that_wait_in_the_order_in_which_they_can_be_answered() {
        let mut reads = Reads::default();
        let (applied, _first) = local(ReadNeed::Applied);
        let (proof, _second) = local(ReadNeed::Leadership);
        reads.wait(applied, 0);
        reads.wait(of_peer(), 0);
        reads.wait(proof, 0);
        assert!(reads.needs_round());
        reads.begin_round(CONTEXT, 0);
        assert!(!reads.needs_round(), "it is under way");
        reads.confirm(&[8; 24], 9);
        assert_eq!(due(&mut reads, 20, false), [], "another round");
        reads.confirm(&CONTEXT, 9);
        assert_eq!(due(&mut reads, 20, true), [(0, 1)], "the proof only");
        assert_eq!(due(&mut reads, 8, false), [(0, 1)], "the peer waits for the index itself");
        assert_eq!(due(&mut reads, 9, false), [(9, 1)]);
        reads.forget_answered();
        assert!(reads.is_empty());
    }

    #[test]
    fn no_read_sees_less_than_one_before_it() {
        let mut reads = Reads::default();
        let ((first, _one), (second, _two)) = (local(ReadNeed::Applied), local(ReadNeed::Applied));
        reads.wait_for(12, first, 0);
        reads.wait(second, 0);
        reads.begin_round(CONTEXT, 0);
        reads.confirm(&CONTEXT, 9);
        assert_eq!(due(&mut reads, 11, false), []);
        assert_eq!(due(&mut reads, 12, false), [(12, 1), (12, 1)]);
    }

    #[test]
    fn a_follower_asks_again_and_a_leader_waits_for_its_quorum() {
        for (follows, again) in [(true, true), (false, false)] {
            let mut reads = Reads::default();
            let (read, _caller) = local(ReadNeed::FromLeader);
            reads.wait(read, 0);
            reads.begin_round(CONTEXT, 10);
            assert!(reads.expire(9 + ASK_AGAIN_TICKS, 100, follows).is_empty());
            assert!(!reads.needs_round());
            assert!(reads.expire(10 + ASK_AGAIN_TICKS, 100, follows).is_empty());
            assert_eq!(reads.needs_round(), again, "follows: {follows}");
        }
    }

    #[test]
    fn reads_expire_and_are_given_up_wherever_they_are() {
        let mut reads = Reads::default();
        let (old, _old_caller) = local(ReadNeed::Applied);
        let (gone, _) = local(ReadNeed::Applied);
        let (young, _young_caller) = local(ReadNeed::Applied);
        reads.wait(old, 0);
        reads.begin_round(CONTEXT, 0);
        reads.wait(gone, 90);
        reads.wait_for(12, young, 90);
        assert_eq!(reads.expire(99, 100, false).len(), 1, "its caller is gone");
        assert_eq!(reads.expire(100, 100, false).len(), 1);
        assert_eq!(reads.count(), 1);
        assert_eq!(reads.take_all().len(), 1);
        assert!(reads.is_empty());
    }

    #[test]
    fn rounds_of_different_lives_have_different_names() {
        let mut reads = Reads::default();
        let first = reads.next_context(1, 1);
        assert_ne!(first, reads.next_context(1, 1));
        assert_ne!(Reads::default().next_context(1, 2), first);
        assert_ne!(Reads::default().next_context(2, 1), first);
    }
}

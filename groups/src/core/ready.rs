//! What raft wants done after the inputs of a step: entries and votes to the log writer, messages
//! to the transport, committed entries to the state machine.
//!
//! The order is what keeps it right. A leader's messages leave at once. Everything that promises
//! durability (votes, acknowledgements) leaves only when what it promises is on disk: it travels
//! with the log task and is released by the writer after the sync.

use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use raft::{GetEntriesContext, ProgressState, Ready, Storage};
use shardhost_proto::peer::MessageKind;
use shardhost_storage::{Genesis, GroupWrite, LogPosition};

use super::GroupCore;
use crate::convert;
use crate::core::{Effects, PersistAck};
use crate::error::GroupFault;
use crate::known_bugs::KnownBug;
use crate::transport::Outgoing;

/// The answer to a candidate.
const VOTE_RESPONSE: MessageType = MessageType::MsgRequestVoteResponse;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Something,
    Nothing,
    /// The replica fails because of it: nothing of it was handed on.
    GivenUp,
}

impl Taken {
    fn from(ready: &Ready) -> Self {
        let nothing = ready.entries().is_empty()
            && ready.committed_entries().is_empty()
            && ready.messages().is_empty()
            && ready.persisted_messages().is_empty()
            && ready.read_states().is_empty()
            && ready.snapshot().is_empty()
            && ready.hs().is_none();
        if nothing { Self::Nothing } else { Self::Something }
    }
}

impl GroupCore {
    /// Handles one ready of raft.
    pub(super) fn take_ready(&mut self, effects: &mut Effects) -> Taken {
        // What is not handed over now is read again when its turn comes.
        let held_back = !self.hands_over_at_once();
        let hollow = held_back && !self.config.bugs.has(KnownBug::ReadBacklogAtOnce);
        self.raw.store().set_hollow(hollow);
        let mut ready = self.raw.ready();
        self.raw.store().set_hollow(false);
        let taken = Taken::from(&ready);
        let number = ready.number();
        let at_once = ready.take_messages();
        let after_sync = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        let entries = ready.take_entries();
        let must_sync = ready.must_sync();
        let snapshot = installed_position(ready.snapshot());

        if let Some(position) = snapshot
            && let Err(fault) = self.begin_install(position, number)
        {
            effects.fault(self.id, fault);
            if !self.config.bugs.has(KnownBug::GoOnAfterFault) {
                return Taken::GivenUp;
            }
        }
        self.raw.mut_store().append(&entries);
        let hard_state = self.raw.raft.hard_state();
        self.raw.advance_append_async(ready);

        let write = must_sync.then(|| self.write_of(snapshot, &hard_state, &entries));
        // A vote that was prepared is there already.
        let write = write.filter(|write| *write != GroupWrite::new(self.id));
        self.send_all(at_once, effects);
        self.persist(number, write, after_sync, effects);
        for state in read_states {
            self.reads.confirm(&state.request_ctx, state.index);
        }
        self.release(committed, held_back, effects);
        taken
    }

    fn write_of(
        &mut self,
        snapshot: Option<LogPosition>,
        hard_state: &HardState,
        entries: &[Entry],
    ) -> GroupWrite {
        let mut write = GroupWrite::new(self.id);
        write.reset = snapshot;
        write.meta = snapshot.map(|_| (*self.meta).clone());
        write.hard_state = self.hard_state_to_write(hard_state, entries);
        write.entries = entries.iter().map(convert::entry_to_log).collect();
        write
    }

    /// The hard state, if it must be written.
    fn hard_state_to_write(
        &mut self,
        state: &HardState,
        entries: &[Entry],
    ) -> Option<shardhost_storage::HardState> {
        let state = convert::hard_state_to_log(state);
        let must = self.durable.must_write(state, self.carries_a_change(entries));
        must.then(|| self.hard_state_with_commit())
    }

    fn carries_a_change(&self, entries: &[Entry]) -> bool {
        !self.config.bugs.has(KnownBug::ForgetCommit)
            && entries.iter().any(|entry| entry.entry_type != EntryType::EntryNormal)
    }

    /// The hard state as raft has it.
    pub(super) fn hard_state(&self) -> shardhost_storage::HardState {
        convert::hard_state_to_log(&self.raw.raft.hard_state())
    }

    /// The hard state as it is, to be written with the commit index.
    pub(super) fn hard_state_with_commit(&mut self) -> shardhost_storage::HardState {
        let mut state = self.durable.hand_state(self.hard_state());
        if self.config.bugs.has(KnownBug::ForgetVote) {
            state.vote = None;
        }
        state
    }

    /// Hands a write to the log writer, and with it the messages that must not leave before.
    fn persist(
        &mut self,
        number: u64,
        write: Option<GroupWrite>,
        after_sync: Vec<Message>,
        effects: &mut Effects,
    ) {
        let bugs = self.config.bugs;
        let idle = self.durable.is_idle(bugs);
        if bugs.has(KnownBug::AcknowledgeBeforeSync) || (write.is_none() && idle) {
            self.send_all(after_sync, effects);
            if write.is_none() {
                self.raw.on_persist_ready(number);
                return;
            }
            return self.hand_to_log(number, write, Vec::new(), effects);
        }
        let term = self.durable.term();
        let raft = &self.raw.raft;
        let voted = self.durable.preparation.covers(raft.term, raft.vote, bugs);
        let (early, held): (Vec<_>, Vec<_>) = after_sync.into_iter().partition(|message| {
            promises_nothing(message, term) || (voted && message.msg_type == VOTE_RESPONSE)
        });
        self.send_all(early, effects);
        if write.is_some() || !held.is_empty() {
            self.hand_to_log(number, write, held, effects);
        }
    }

    fn hand_to_log(
        &mut self,
        number: u64,
        write: Option<GroupWrite>,
        held: Vec<Message>,
        effects: &mut Effects,
    ) {
        self.durable.hand(number);
        let term = self.raw.raft.term;
        let (group, open_id) = (self.id, self.open_id);
        let ack = PersistAck { group, open_id, number, term, meta: 0, prepared: 0 };
        effects.log.acks.push(ack);
        effects.log.batch.writes.extend(write);
        for message in held {
            let outgoing = self.outgoing(message, effects);
            effects.log.releases.extend(outgoing);
        }
    }

    /// The log writer made everything up to this ready durable.
    pub fn on_persisted(&mut self, ack: &PersistAck, effects: &mut Effects) {
        if !self.durable.take_ack(ack) {
            return;
        }
        self.raw.on_persist_ready(ack.number);
        self.continue_install(effects);
        self.trim_tail();
    }

    fn send_all(&mut self, messages: Vec<Message>, effects: &mut Effects) {
        for message in messages {
            let outgoing = self.outgoing(message, effects);
            effects.messages.extend(outgoing);
        }
    }

    /// A message as it travels; a snapshot goes another way.
    fn outgoing(&mut self, message: Message, effects: &mut Effects) -> Option<Outgoing> {
        let to = self.node_of(message.to)?;
        let mut wire = convert::to_wire(self.id, message)?;
        if !self.stamp(&mut wire, effects) {
            return None;
        }
        let kind = wire.kind();
        // Why an ineligible replica asks for a pre-vote.
        wire.escape |= kind == MessageKind::PreVote && self.candidacy.is_escaping();
        if self.introduces_itself(kind, wire.to_replica) {
            wire.genesis = self.membership.genesis.map_or(0, Genesis::get);
        }
        if kind == MessageKind::Snapshot {
            self.ship(to, wire, effects);
            return None;
        }
        Some(Outgoing { to, lane: convert::lane(kind), message: wire })
    }

    /// Whether the receiver may not know yet which group of this id it hears from: a follower that
    /// took an append of this leader does.
    fn introduces_itself(&self, kind: MessageKind, to: u64) -> bool {
        match kind {
            MessageKind::Vote | MessageKind::PreVote | MessageKind::Heartbeat => true,
            MessageKind::Append => {
                let progress = self.raw.raft.prs().get(to);
                progress.is_none_or(|progress| progress.state != ProgressState::Replicate)
            }
            _ => false,
        }
    }

    /// Hands committed entries that were held back to the state machine, as far as its backlog
    /// allows.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) fn read_committed(&self, from: u64, to: u64) -> Result<Vec<Entry>, GroupFault> {
        let max = self.config.max_apply_bytes_per_group as u64;
        let context = GetEntriesContext::empty(false);
        self.raw.store().entries(from, to, max, context).map_err(|error| {
            match self.raw.store().take_fault() {
                Some(fault) => GroupFault::Log(fault),
                None => GroupFault::Invariant(
                    format!("{:?} cannot read its entries {from} to {to}: {error}", self.id).into(),
                ),
            }
        })
    }
}

/// Whether a message may leave before what is being written is durable: answers that neither
/// grant a vote nor acknowledge entries, in a term that is durable already.
fn promises_nothing(message: &Message, durable_term: u64) -> bool {
    let harmless =
        matches!(message.msg_type, MessageType::MsgHeartbeatResponse | MessageType::MsgReadIndex);
    harmless && message.term <= durable_term
}

fn installed_position(snapshot: &raft::eraftpb::Snapshot) -> Option<LogPosition> {
    let metadata = snapshot.get_metadata();
    (metadata.index != 0).then(|| LogPosition::new(metadata.term, metadata.index))
}

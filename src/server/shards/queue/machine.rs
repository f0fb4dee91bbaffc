//! The state machine of a queue shard.

use std::collections::HashMap;
use std::io::Read;

use bytes::Bytes;
use rocksdb::WriteBatch;
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{
    ApplyBatch, ApplyFault, ConsistencyView, Progress, SnapshotWriter, StateChecksum, StateMachine,
};
use shardhost_proto::client::{Acked, Deliveries, Delivery};
use shardhost_storage::{LogIndex, LogPosition};

use super::command::{QueueCommand, QueueOperation, Receipts};
use super::dedup::scoped;
use super::index::{Take, Taken};
use super::query::{QueueQuery, Receivable};
use super::record::{self, COUNTERS, DEDUP, DELIVERY, DedupRecord, Delivered, MESSAGE, Message};
use super::response::QueueResponse;
use super::store::{self, Loaded};
use super::{MAX_DELETED_PASSED, MAX_DELIVERY_BYTES, MAX_MESSAGES, MAX_SEQUENCE, Receipt};
use crate::shards::codec::DecodeError;
use crate::shards::session::{Admission, SessionTag};
use crate::shards::state_db::{COMPARED_FORMAT, GroupState, StateDbError};

/// A batch of commands ends with the receive whose answer brings the answers to more than this.
const MAX_BATCH_DELIVERY_BYTES: usize = 8 * 1024 * 1024;

/// A queue shard's replicated state. Keeps itself in the host's [`StateDb`]; what it needs in
/// memory is loaded with the first command.
///
/// [`StateDb`]: crate::shards::StateDb
pub struct QueueMachine {
    state: GroupState,
    loaded: Option<Box<Loaded>>,
}

impl QueueMachine {
    pub(crate) const fn new(state: GroupState) -> Self {
        Self { state, loaded: None }
    }

    #[cfg(test)]
    pub(super) const fn state(&self) -> &GroupState {
        &self.state
    }

    fn take_loaded(&mut self) -> Result<Box<Loaded>, StateDbError> {
        match self.loaded.take() {
            Some(loaded) => Ok(loaded),
            None => Ok(Box::new(store::load(&self.state)?)),
        }
    }
}

impl StateMachine for QueueMachine {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.state.applied()?)
    }

    fn begin(&mut self) -> Result<(), ApplyFault> {
        self.state.begin()?;
        self.state.time().opened(store::counters(&self.state)?.now_ms);
        Ok(())
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        if batch.is_empty() {
            return Ok(self.state.commit(WriteBatch::default(), batch.last())?);
        }
        // Taken out: should anything fail, no index stays that is ahead of what was written.
        let mut loaded = self.take_loaded()?;
        let mut work = Work::new(&self.state, &mut loaded);
        let mut run = 0;
        for command in batch.commands() {
            let index = command.position().index.get();
            let response = match Decoded::read(command.data()) {
                Ok(Decoded { tag: Some(tag), command }) => {
                    work.run_in_session(command, &tag, index)?
                }
                Ok(Decoded { tag: None, command }) => work.run(command)?.encode(),
                Err(error) => QueueResponse::Invalid { message: error.to_string() }.encode(),
            };
            command.respond(response);
            run += 1;
            if work.delivered_bytes > MAX_BATCH_DELIVERY_BYTES {
                break;
            }
        }
        batch.cut(run);
        let writes = work.finish();
        self.state.commit(writes, batch.last())?;
        self.state.time().applied(loaded.time_ms());
        self.loaded = Some(loaded);
        Ok(())
    }

    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        let query = QueueQuery::decode(request);
        match query.map_err(|error| QueryError::Invalid(error.to_string()))? {
            QueueQuery::Peek(peek) => {
                Ok(QueueQuery::encode_answer(&store::peek(&self.state, &peek, MAX_DELETED_PASSED)?))
            }
            QueueQuery::Receivable(Receivable { now_ms, partition_key }) => {
                let key = (!partition_key.is_empty()).then_some(&partition_key[..]);
                let takes_something = match &self.loaded {
                    Some(loaded) => loaded.index.would_deliver(now_ms, key),
                    None => store::has_messages(&self.state)?,
                };
                Ok(match takes_something {
                    true => Bytes::new(),
                    false => QueueQuery::encode_answer(&Deliveries::default()),
                })
            }
        }
    }

    /// What a receive would take is looked up in memory, once that is loaded.
    fn answers_at_once(&self, request: &Bytes) -> bool {
        self.loaded.is_some() && QueueQuery::is_receivable(request)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(self.state.snapshot()?)
    }

    fn consistency_view(&mut self) -> Result<Option<ConsistencyView>, ApplyFault> {
        let writer = self.state.snapshot()?;
        Ok(Some(ConsistencyView { format: COMPARED_FORMAT, writer }))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.loaded = None;
        self.state.restore(at, source, record::check)?;
        self.state.time().applied(store::counters(&self.state)?.now_ms);
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        Some(self.state.durable())
    }

    fn make_durable(&mut self) -> Result<(), ApplyFault> {
        Ok(self.state.flush()?)
    }

    fn removed(&mut self) -> Result<(), ApplyFault> {
        Ok(self.state.remove()?)
    }

    fn checksum(&self, progress: &Progress) -> Result<StateChecksum, QueryError> {
        Ok(store::checksum(&self.state, progress)?)
    }
}

/// A command, and its place in a session if it has one.
struct Decoded<'a> {
    tag: Option<SessionTag>,
    command: QueueCommand<'a>,
}

impl<'a> Decoded<'a> {
    fn read(data: &'a [u8]) -> Result<Self, DecodeError> {
        let (tag, command) = SessionTag::split(data)?;
        let command = QueueCommand::decode(command)?;
        match command.operation {
            // Its answer is too large to be kept.
            QueueOperation::Receive { .. } if tag.is_some() => {
                Err(DecodeError::Invalid("session of a receive"))
            }
            _ => Ok(Self { tag, command }),
        }
    }
}

/// One batch of commands being applied.
struct Work<'a> {
    state: &'a GroupState,
    loaded: &'a mut Loaded,
    writes: WriteBatch,
    /// Records of messages sent in this batch, which cannot be read from disk yet.
    sent: HashMap<u64, Bytes>,
    /// Bytes of the messages that the answers hold.
    delivered_bytes: usize,
}

impl<'a> Work<'a> {
    fn new(state: &'a GroupState, loaded: &'a mut Loaded) -> Self {
        Self {
            state,
            loaded,
            writes: WriteBatch::default(),
            sent: HashMap::new(),
            delivered_bytes: 0,
        }
    }

    /// Runs a command unless it was applied before.
    fn run_in_session(
        &mut self,
        command: QueueCommand<'_>,
        tag: &SessionTag,
        index: u64,
    ) -> Result<Bytes, StateDbError> {
        match self.loaded.sessions.admit(tag, index) {
            Admission::Fresh => {
                let response = self.run(command)?;
                let answer = response.encode();
                // A send to a full queue changed nothing: the same number may be sent again.
                if response != QueueResponse::Full {
                    self.loaded.sessions.remember(tag, answer.clone());
                }
                Ok(answer)
            }
            Admission::Duplicate(answer) => Ok(answer),
            Admission::Refused(refusal) => Ok(QueueResponse::Refused(refusal).encode()),
        }
    }

    fn run(&mut self, command: QueueCommand<'_>) -> Result<QueueResponse, StateDbError> {
        self.loaded.index.advance(command.now_ms);
        match command.operation {
            QueueOperation::Send { partition_key, body, dedup_id } => {
                Ok(self.send(partition_key, body, dedup_id))
            }
            QueueOperation::Receive { max_messages, visibility_ms, partition_key } => {
                self.receive(Take {
                    max_messages: max_messages as usize,
                    max_bytes: MAX_DELIVERY_BYTES,
                    visibility_ms,
                    partition_key: (!partition_key.is_empty()).then_some(partition_key),
                })
            }
            QueueOperation::Ack { receipts } => Ok(self.ack(receipts)),
        }
    }

    fn send(&mut self, partition_key: &[u8], body: &[u8], dedup_id: &[u8]) -> QueueResponse {
        let Loaded { index, dedup, .. } = &mut *self.loaded;
        let id = (!dedup_id.is_empty()).then(|| scoped(partition_key, dedup_id));
        let known = id.as_ref().and_then(|id| dedup.find(id, index.now_ms()));
        if let Some(sequence) = known {
            return QueueResponse::Sent { sequence, duplicate: true };
        }
        if index.len() >= MAX_MESSAGES || index.last_sequence() >= MAX_SEQUENCE {
            return QueueResponse::Full;
        }
        // A body is bounded far below 4 GiB.
        let sequence = index.push(partition_key, body.len() as u32);
        let record = Message::encode(partition_key, body);
        self.writes.put(self.state.space().number_key(MESSAGE, sequence), &record);
        self.sent.insert(sequence, record);
        if let Some(id) = id {
            self.remember(&id, sequence);
        }
        QueueResponse::Sent { sequence, duplicate: false }
    }

    fn remember(&mut self, id: &[u8], sequence: u64) {
        let space = self.state.space();
        let Loaded { index, dedup, .. } = &mut *self.loaded;
        let sent_ms = index.now_ms();
        let ordinal = dedup.insert(id, sequence, sent_ms);
        let record = DedupRecord { sent_ms, sequence, id };
        self.writes.put(space.number_key(DEDUP, ordinal), record.encode());
        for gone in dedup.evict(sent_ms) {
            self.writes.delete(space.number_key(DEDUP, gone));
        }
    }

    fn receive(&mut self, wanted: Take<'_>) -> Result<QueueResponse, StateDbError> {
        let taken = self.loaded.index.take(wanted);
        let messages =
            taken.into_iter().map(|taken| self.deliver(taken)).collect::<Result<_, _>>()?;
        let more = wanted.partition_key.is_none() && self.loaded.index.has_available();
        Ok(QueueResponse::Deliveries(Deliveries { messages, more }))
    }

    fn deliver(&mut self, taken: Taken) -> Result<Delivery, StateDbError> {
        let Taken { sequence, attempt, deadline_ms } = taken;
        let delivered = Delivered { attempt, deadline_ms };
        let key = self.state.space().number_key(DELIVERY, sequence);
        self.writes.put(key, delivered.encode());
        let message = match self.sent.get(&sequence) {
            Some(record) => store::decode_message(self.state, sequence, record)?,
            None => store::message(self.state, sequence)?,
        };
        self.delivered_bytes += message.body.len() + message.partition_key.len();
        Ok(Delivery {
            sequence,
            partition_key: message.partition_key,
            body: message.body,
            receipt: Receipt::new(sequence, attempt).number(),
            attempt,
        })
    }

    fn ack(&mut self, receipts: Receipts<'_>) -> QueueResponse {
        let space = self.state.space();
        let mut answer = Acked::default();
        for receipt in receipts.iter() {
            if self.loaded.index.ack(receipt) {
                answer.acked += 1;
                self.sent.remove(&receipt.sequence());
                self.writes.delete(space.number_key(MESSAGE, receipt.sequence()));
                self.writes.delete(space.number_key(DELIVERY, receipt.sequence()));
            } else {
                answer.stale += 1;
            }
        }
        QueueResponse::Acked(answer)
    }

    fn finish(mut self) -> WriteBatch {
        let counters = self.loaded.counters().encode();
        let space = self.state.space();
        self.writes.put(space.prefix(COUNTERS), counters);
        self.loaded.sessions.write(space, &mut self.writes);
        self.writes
    }
}

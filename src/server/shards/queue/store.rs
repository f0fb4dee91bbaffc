//! Reads a queue from its records: the index after a restart, a peek, a checksum.

use bytes::Bytes;
use shardhost_groups::machine::{Progress, StateChecksum};
use shardhost_proto::client::{Deliveries, Delivery, Peek};

use super::dedup::DedupWindow;
use super::index::{Index, Stored};
use super::query::messages_of;
use super::record::{
    COUNTERS, Counters, DEDUP, DELIVERY, DedupRecord, Delivered, MESSAGE, Message, number_of,
};
use super::{MAX_DELETED_PASSED, MAX_DELIVERY_BYTES};
use crate::shards::session::{self, Sessions};
use crate::shards::state_db::{GroupState, Scan, StateDbError};
use shardhost_proto::hash::SequenceSum;

/// What stands in memory of a queue in use.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) index: Index,
    pub(super) dedup: DedupWindow,
    pub(super) sessions: Sessions,
}

impl Loaded {
    /// The time of the shard.
    pub(super) fn time_ms(&self) -> u64 {
        self.index.now_ms().max(self.sessions.time_ms())
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            now_ms: self.index.now_ms(),
            last_sequence: self.index.last_sequence(),
            first_sequence: self.index.first_sequence(),
            dedup: self.dedup.ordinals(),
        }
    }
}

/// Rebuilds what stands in memory.
pub(super) fn load(state: &GroupState) -> Result<Loaded, StateDbError> {
    let counters = counters(state)?;
    let mut index = Index::at(counters.now_ms, counters.last_sequence);
    let first = counters.first_sequence.to_be_bytes();
    let mut deliveries = DeliveryCursor::open(state, &first, 0)?;
    let mut messages = state.scan(MESSAGE, &first, None);
    while let Some((key, value)) = messages.next()? {
        let sequence = number_of(key).map_err(|cause| corrupt(state, "a message", cause))?;
        if sequence > counters.last_sequence {
            let last = counters.last_sequence;
            let message = format!("a message stands at {sequence}, the last one sent is {last}");
            return Err(state.inconsistent(message));
        }
        let (partition_key, body) =
            Message::split(value).map_err(|cause| corrupt(state, "a message", cause))?;
        let Delivered { attempt, deadline_ms } = deliveries.of(sequence)?;
        // A body is bounded far below 4 GiB.
        let size = body.len() as u32;
        index.insert(Stored { sequence, partition_key, size, attempt, deadline_ms });
    }
    let dedup = load_dedup(state, &counters)?;
    Ok(Loaded { index, dedup, sessions: Sessions::load(state)? })
}

/// Whether a message is there, in flight or not.
pub(super) fn has_messages(state: &GroupState) -> Result<bool, StateDbError> {
    let first = counters(state)?.first_sequence.to_be_bytes();
    match state.scan_passing(MESSAGE, &first, None, MAX_DELETED_PASSED).next() {
        Ok(found) => Ok(found.is_some()),
        // Not found so soon: the caller has to do the rest.
        Err(StateDbError::TooManyDeleted { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

pub(super) fn counters(state: &GroupState) -> Result<Counters, StateDbError> {
    match state.get(&state.space().prefix(COUNTERS))? {
        Some(record) => {
            Counters::decode(&record).map_err(|cause| corrupt(state, "the counters", cause))
        }
        None => Ok(Counters::default()),
    }
}

fn load_dedup(state: &GroupState, counters: &Counters) -> Result<DedupWindow, StateDbError> {
    let mut window = DedupWindow::at(counters.dedup.start);
    let mut records = state.scan(DEDUP, &counters.dedup.start.to_be_bytes(), None);
    while let Some((_, value)) = records.next()? {
        let record = DedupRecord::decode(value).map_err(|cause| corrupt(state, "an id", cause))?;
        window.insert(record.id, record.sequence, record.sent_ms);
    }
    if window.ordinals() != counters.dedup {
        return Err(state.inconsistent(format!(
            "the window of ids holds {:?} and should hold {:?}",
            window.ordinals(),
            counters.dedup
        )));
    }
    Ok(window)
}

/// Walks the deliveries beside the messages.
struct DeliveryCursor<'a> {
    state: &'a GroupState,
    records: Scan<'a>,
    next: Option<(u64, Delivered)>,
}

impl<'a> DeliveryCursor<'a> {
    /// A step that would pass more than `deleted` deleted keys is an error; 0: any number.
    fn open(state: &'a GroupState, from: &[u8], deleted: u64) -> Result<Self, StateDbError> {
        let records = state.scan_passing(DELIVERY, from, None, deleted);
        let mut cursor = Self { state, records, next: None };
        cursor.step()?;
        Ok(cursor)
    }

    /// The newest delivery of `sequence`, which must grow from call to call.
    fn of(&mut self, sequence: u64) -> Result<Delivered, StateDbError> {
        while let Some((at, delivered)) = self.next
            && at <= sequence
        {
            if at == sequence {
                return Ok(delivered);
            }
            self.step()?;
        }
        Ok(Delivered::default())
    }

    fn step(&mut self) -> Result<(), StateDbError> {
        self.next = match self.records.next()? {
            None => None,
            Some((key, value)) => {
                let parts = number_of(key).and_then(|at| Ok((at, Delivered::decode(value)?)));
                Some(parts.map_err(|cause| corrupt(self.state, "a delivery", cause))?)
            }
        };
        Ok(())
    }
}

pub(super) fn message(state: &GroupState, sequence: u64) -> Result<Message, StateDbError> {
    let record = state.get(&state.space().number_key(MESSAGE, sequence))?.ok_or_else(|| {
        state.inconsistent(format!("message {sequence} is in the index and not on disk"))
    })?;
    decode_message(state, sequence, &Bytes::copy_from_slice(&record))
}

pub(super) fn decode_message(
    state: &GroupState,
    sequence: u64,
    record: &Bytes,
) -> Result<Message, StateDbError> {
    Message::decode(record).map_err(|cause| corrupt(state, &format!("message {sequence}"), cause))
}

/// The messages of the shard in order. Ends where more than `deleted` messages in a row were deleted, with
/// an error if none was found before.
pub(super) fn peek(
    state: &GroupState,
    peek: &Peek,
    deleted: u64,
) -> Result<Deliveries, StateDbError> {
    let first = counters(state)?.first_sequence.max(peek.from_sequence).to_be_bytes();
    let mut deliveries = DeliveryCursor::open(state, &first, deleted)?;
    let mut messages = state.scan_passing(MESSAGE, &first, None, deleted);
    let (mut answer, mut bytes) = (Deliveries::default(), 0);
    let mut step = |found: usize| {
        let Some((key, value)) = messages.next()? else { return Ok(Peeked::End) };
        bytes += value.len();
        if found == messages_of(peek) || (bytes > MAX_DELIVERY_BYTES && found > 0) {
            return Ok(Peeked::Full);
        }
        let sequence = number_of(key).map_err(|cause| corrupt(state, "a message", cause))?;
        let message = decode_message(state, sequence, &Bytes::copy_from_slice(value))?;
        Ok(Peeked::Message(Delivery {
            sequence,
            partition_key: message.partition_key,
            body: message.body,
            receipt: 0,
            attempt: deliveries.of(sequence)?.attempt,
        }))
    };
    loop {
        match step(answer.messages.len()) {
            Ok(Peeked::Message(message)) => answer.messages.push(message),
            Ok(Peeked::End) => break,
            Ok(Peeked::Full) => {
                answer.more = true;
                break;
            }
            // The caller continues behind the last message.
            Err(StateDbError::TooManyDeleted { .. }) if !answer.messages.is_empty() => {
                answer.more = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// What comes next of a shard's messages.
enum Peeked {
    Message(Delivery),
    /// There are more than an answer may have.
    Full,
    End,
}

/// Messages, and a checksum over them, their deliveries, the ids and the counters.
pub(super) fn checksum(
    state: &GroupState,
    progress: &Progress,
) -> Result<StateChecksum, StateDbError> {
    let mut sum = SequenceSum::default();
    let counters = counters(state)?;
    let numbers =
        [counters.now_ms, counters.last_sequence, counters.dedup.start, counters.dedup.end];
    numbers.into_iter().for_each(|number| sum.add_number(number));
    let mut records = |kind, from| add_records(state, (kind, from), progress, &mut sum);
    let items = records(MESSAGE, counters.first_sequence)?;
    records(DELIVERY, counters.first_sequence)?;
    records(DEDUP, counters.dedup.start)?;
    session::add_to_checksum(state, progress, &mut sum)?;
    Ok(StateChecksum { items, checksum: sum.value() })
}

fn add_records(
    state: &GroupState,
    (kind, from): (u8, u64),
    progress: &Progress,
    sum: &mut SequenceSum,
) -> Result<u64, StateDbError> {
    let mut count = 0;
    let mut records = state.scan(kind, &from.to_be_bytes(), None);
    while let Some((key, value)) = records.next()? {
        count += 1;
        progress.step();
        sum.add(key);
        sum.add(value);
    }
    sum.add_number(count);
    Ok(count)
}

fn corrupt(state: &GroupState, at: &str, cause: crate::shards::codec::DecodeError) -> StateDbError {
    state.corrupt(at, cause)
}

//! The commands of a queue as they stand in the Raft log.

use bytes::Bytes;

use super::{
    MAX_ACK, MAX_BODY_BYTES, MAX_DEDUP_ID_BYTES, MAX_PARTITION_KEY_BYTES, MAX_RECEIVE, MAX_TIME_MS,
    MAX_VISIBILITY_MS, Receipt,
};
use crate::shards::codec::{self, DecodeError, Reader, check_limit};

const SEND: u8 = 1;
const RECEIVE: u8 = 2;
const ACK: u8 = 3;

const RECEIPT_BYTES: usize = 8;
/// Time, lengths and numbers of any command.
const OVERHEAD_BYTES: usize = 40;

/// A change of a queue, with the proposer's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCommand<'a> {
    /// Milliseconds since 1970, by the proposer's clock. At most [`MAX_TIME_MS`].
    pub now_ms: u64,
    pub operation: QueueOperation<'a>,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueOperation<'a> {
    Send {
        /// At most [`MAX_PARTITION_KEY_BYTES`]; messages of one key keep their order.
        partition_key: &'a [u8],
        body: &'a [u8],
        /// At most [`MAX_DEDUP_ID_BYTES`]; empty: the message is never a duplicate. It counts for the
        /// partition key: another key may use it for another message.
        dedup_id: &'a [u8],
    },
    /// Takes messages, hiding them from others for a while.
    Receive {
        max_messages: u32,
        visibility_ms: u64,
        /// Only messages of this key; empty: any.
        partition_key: &'a [u8],
    },
    /// Removes messages that were received.
    Ack { receipts: Receipts<'a> },
}

/// Receipts, as they stand in a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipts<'a> {
    /// Little endian numbers, one behind the other.
    bytes: &'a [[u8; RECEIPT_BYTES]],
}

impl<'a> Receipts<'a> {
    /// The receipts one by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Receipt> + 'a {
        self.bytes.iter().map(|bytes| Receipt::from_number(u64::from_le_bytes(*bytes)))
    }
}

impl<'a> QueueCommand<'a> {
    /// Checks the limits, as every replica does before it applies the command.
    ///
    /// # Errors
    /// [`DecodeError::Limit`], [`DecodeError::Invalid`].
    pub fn check(&self) -> Result<(), DecodeError> {
        check_limit("time", self.now_ms, MAX_TIME_MS)?;
        match self.operation {
            QueueOperation::Send { partition_key, body, dedup_id } => {
                check_partition_key(partition_key)?;
                check_limit("body's length", body.len() as u64, MAX_BODY_BYTES as u64)?;
                check_limit("id's length", dedup_id.len() as u64, MAX_DEDUP_ID_BYTES as u64)
            }
            QueueOperation::Receive { max_messages, visibility_ms, partition_key } => {
                check_partition_key(partition_key)?;
                check_range("number of messages", max_messages.into(), MAX_RECEIVE.into())?;
                check_range("visibility", visibility_ms, MAX_VISIBILITY_MS)
            }
            QueueOperation::Ack { receipts } => {
                check_limit("number of receipts", receipts.bytes.len() as u64, MAX_ACK as u64)
            }
        }
    }

    /// A send as it is proposed.
    #[must_use]
    pub fn send(now_ms: u64, partition_key: &[u8], body: &[u8], dedup_id: &[u8]) -> Bytes {
        let room = partition_key.len() + body.len() + dedup_id.len();
        let mut out = start(SEND, now_ms, room);
        codec::put_bytes(&mut out, partition_key);
        codec::put_bytes(&mut out, dedup_id);
        out.extend_from_slice(body);
        out.into()
    }

    /// A receive as it is proposed. An empty partition key stands for any.
    #[must_use]
    pub fn receive(
        now_ms: u64,
        max_messages: u32,
        visibility_ms: u64,
        partition_key: &[u8],
    ) -> Bytes {
        let mut out = start(RECEIVE, now_ms, partition_key.len());
        codec::put_number(&mut out, max_messages.into());
        codec::put_number(&mut out, visibility_ms);
        out.extend_from_slice(partition_key);
        out.into()
    }

    /// An ack as it is proposed.
    #[must_use]
    pub fn ack(now_ms: u64, receipts: impl ExactSizeIterator<Item = Receipt>) -> Bytes {
        let mut out = start(ACK, now_ms, receipts.len() * RECEIPT_BYTES);
        receipts.for_each(|receipt| out.extend_from_slice(&receipt.number().to_le_bytes()));
        out.into()
    }

    /// Reads and checks a command.
    ///
    /// # Errors
    /// Every byte string that the constructors do not write, or that is over a limit.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut reader, kind) = Reader::versioned(data)?;
        let now_ms = reader.number()?;
        let operation = match kind {
            SEND => {
                let partition_key = reader.bytes()?;
                let dedup_id = reader.bytes()?;
                QueueOperation::Send { partition_key, dedup_id, body: reader.rest() }
            }
            RECEIVE => QueueOperation::Receive {
                max_messages: narrow(reader.number()?, "number of messages")?,
                visibility_ms: reader.number()?,
                partition_key: reader.rest(),
            },
            ACK => {
                let (bytes, rest) = reader.rest().as_chunks();
                Reader::new(rest).finish()?;
                QueueOperation::Ack { receipts: Receipts { bytes } }
            }
            other => return Err(DecodeError::Kind(other)),
        };
        let command = Self { now_ms, operation };
        command.check()?;
        Ok(command)
    }
}

fn start(kind: u8, now_ms: u64, room: usize) -> Vec<u8> {
    let mut out = codec::start(kind, OVERHEAD_BYTES + room);
    codec::put_number(&mut out, now_ms);
    out
}

fn narrow(number: u64, what: &'static str) -> Result<u32, DecodeError> {
    u32::try_from(number).map_err(|_| DecodeError::Limit {
        what,
        actual: number,
        limit: u32::MAX.into(),
    })
}

fn check_partition_key(key: &[u8]) -> Result<(), DecodeError> {
    check_limit("partition key's length", key.len() as u64, MAX_PARTITION_KEY_BYTES as u64)
}

fn check_range(what: &'static str, actual: u64, limit: u64) -> Result<(), DecodeError> {
    if actual == 0 {
        return Err(DecodeError::Invalid(what));
    }
    check_limit(what, actual, limit)
}

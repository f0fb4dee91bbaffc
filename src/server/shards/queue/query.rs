//! The questions a queue answers. They are not in the log.

use bytes::Bytes;
use shardhost_proto::client::{Deliveries, Peek};

use super::{DEFAULT_PEEK_LIMIT, MAX_PARTITION_KEY_BYTES, MAX_PEEK_LIMIT};
use crate::shards::codec::{self, DecodeError, Reader, check_limit};

const PEEK: u8 = 1;
const RECEIVABLE: u8 = 2;

/// A question to a queue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum QueueQuery {
    /// The messages in the shard by sequence, in flight or not. Receives none.
    Peek(Peek),
    /// Whether a receive would take nothing. Answered as such a receive is, or with nothing if it would
    /// take something, or that is not known.
    Receivable(Receivable),
}

/// A receive that is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receivable {
    /// The time that it would carry.
    pub now_ms: u64,
    /// Only messages of this key; empty: any.
    pub partition_key: Bytes,
}

impl QueueQuery {
    /// The question as it is given to a group.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Peek(peek) => codec::message(PEEK, peek),
            Self::Receivable(receivable) => {
                let mut out = codec::start(RECEIVABLE, 10 + receivable.partition_key.len());
                codec::put_number(&mut out, receivable.now_ms);
                out.extend_from_slice(&receivable.partition_key);
                out.into()
            }
        }
    }

    /// Whether a question is [`QueueQuery::Receivable`], as far as its first bytes tell.
    pub(super) fn is_receivable(data: &[u8]) -> bool {
        matches!(Reader::versioned(data), Ok((_, RECEIVABLE)))
    }

    /// Reads and checks a question.
    ///
    /// # Errors
    /// Malformed bytes, a limit over its bound.
    pub fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let (mut reader, kind) = Reader::versioned(data)?;
        let query = match kind {
            PEEK => Self::Peek(codec::read_message(data, reader)?),
            RECEIVABLE => {
                let now_ms = reader.number()?;
                let partition_key = data.slice_ref(reader.rest());
                Self::Receivable(Receivable { now_ms, partition_key })
            }
            other => return Err(DecodeError::Kind(other)),
        };
        query.check()?;
        Ok(query)
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// [`DecodeError::Limit`].
    pub fn check(&self) -> Result<(), DecodeError> {
        match self {
            Self::Peek(peek) => {
                check_limit("limit of a peek", peek.limit.into(), MAX_PEEK_LIMIT.into())
            }
            Self::Receivable(receivable) => {
                let length = receivable.partition_key.len() as u64;
                check_limit("partition key's length", length, MAX_PARTITION_KEY_BYTES as u64)
            }
        }
    }

    /// Writes an answer as the state machine gives it.
    pub(super) fn encode_answer(answer: &Deliveries) -> Bytes {
        codec::message(PEEK, answer)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Malformed bytes.
    pub fn decode_answer(data: &Bytes) -> Result<Deliveries, DecodeError> {
        let (reader, kind) = Reader::versioned(data)?;
        if kind != PEEK {
            return Err(DecodeError::Kind(kind));
        }
        codec::read_message(data, reader)
    }
}

/// How many messages a peek may return.
pub(super) const fn messages_of(peek: &Peek) -> usize {
    (if peek.limit == 0 { DEFAULT_PEEK_LIMIT } else { peek.limit }) as usize
}

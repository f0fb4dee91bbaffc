//! The one question a queue answers. It is not in the log, so it travels as a client message.

use bytes::Bytes;
use shardhost_proto::client::{Deliveries, Peek};

use super::{DEFAULT_PEEK_LIMIT, MAX_PEEK_LIMIT};
use crate::shards::codec::{self, DecodeError, Reader, check_limit};

const PEEK: u8 = 1;

/// A question to a queue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum QueueQuery {
    /// The messages in the shard by sequence, in flight or not. Receives none.
    Peek(Peek),
}

impl QueueQuery {
    /// The question as it is given to a group.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Self::Peek(peek) = self;
        codec::message(PEEK, peek)
    }

    /// Reads and checks a question.
    ///
    /// # Errors
    /// Malformed bytes, a limit over its bound.
    pub fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let (reader, kind) = Reader::versioned(data)?;
        if kind != PEEK {
            return Err(DecodeError::Kind(kind));
        }
        let query = Self::Peek(codec::read_message(data, reader)?);
        query.check()?;
        Ok(query)
    }

    /// Checks the bounds.
    ///
    /// # Errors
    /// [`DecodeError::Limit`].
    pub fn check(&self) -> Result<(), DecodeError> {
        let Self::Peek(peek) = self;
        check_limit("limit of a peek", peek.limit.into(), MAX_PEEK_LIMIT.into())
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

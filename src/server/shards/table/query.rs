//! The questions a table answers. They are not in the log, so they travel as client messages.

use bytes::Bytes;
use shardhost_proto::client::{Get, Pairs, Scan, Value};

use shardhost_proto::limits::{DEFAULT_SCAN_LIMIT, MAX_SCAN_LIMIT};

use super::MAX_KEY_BYTES;
use crate::shards::codec::{self, DecodeError, Reader};

const GET: u8 = 1;
const SCAN: u8 = 2;

/// A question to a table.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TableQuery {
    /// The value of a key.
    Get(Get),
    /// The pairs of a range, in the order of their keys.
    Scan(Scan),
}

/// What a table answers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TableAnswer {
    Value(Value),
    Pairs(Pairs),
}

impl TableQuery {
    /// The question as it is given to a group.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Get(get) => codec::message(GET, get),
            Self::Scan(scan) => codec::message(SCAN, scan),
        }
    }

    /// Whether a question is [`TableQuery::Get`], as far as its first bytes tell.
    pub(super) fn is_get(data: &[u8]) -> bool {
        matches!(Reader::versioned(data), Ok((_, GET)))
    }

    /// Reads and checks a question.
    ///
    /// # Errors
    /// Malformed bytes, a key or a limit over its bound.
    pub fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let (reader, kind) = Reader::versioned(data)?;
        let query = match kind {
            GET => Self::Get(codec::read_message(data, reader)?),
            SCAN => Self::Scan(codec::read_message(data, reader)?),
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
        let (longest, limit) = match self {
            Self::Get(get) => (get.key.len(), 0),
            Self::Scan(scan) => (scan.from.len().max(scan.to.len()), scan.limit),
        };
        codec::check_limit("key's length", longest as u64, MAX_KEY_BYTES as u64)?;
        codec::check_limit("limit of a scan", limit.into(), MAX_SCAN_LIMIT.into())
    }
}

impl TableAnswer {
    /// The answer as the state machine gives it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Value(value) => codec::message(GET, value),
            Self::Pairs(pairs) => codec::message(SCAN, pairs),
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Malformed bytes.
    pub fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let (reader, kind) = Reader::versioned(data)?;
        match kind {
            GET => codec::read_message(data, reader).map(Self::Value),
            SCAN => codec::read_message(data, reader).map(Self::Pairs),
            other => Err(DecodeError::Kind(other)),
        }
    }
}

/// How many pairs a scan may return.
pub(super) const fn pairs_of(scan: &Scan) -> usize {
    (if scan.limit == 0 { DEFAULT_SCAN_LIMIT } else { scan.limit }) as usize
}

//! What makes a command part of a session, as it stands in front of the command in the Raft log.

use bytes::Bytes;

use super::WINDOW;
use crate::shards::codec::{self, DecodeError, Reader, check_limit};
use crate::shards::queue::MAX_TIME_MS;

/// Kind byte of a command in a session; no kind of shard has a command of this kind.
const IN_SESSION: u8 = 0x40;
const TAG_BYTES: usize = 50;

/// Session and sequence number of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTag {
    /// The session, a random number.
    pub id: u64,
    /// Greater than 0; later than the start of every session that the shard dropped.
    pub start: u64,
    /// Number of the write in the session, from 1 on.
    pub sequence: u64,
    /// The lowest number that the client waits for; less than [`WINDOW`] below `sequence`.
    pub lowest_unanswered: u64,
    /// Milliseconds since 1970, by the proposer's clock. At most [`MAX_TIME_MS`].
    pub now_ms: u64,
}

impl SessionTag {
    /// Checks the limits, as every replica does before it applies the command.
    ///
    /// # Errors
    /// [`DecodeError::Limit`], [`DecodeError::Invalid`].
    pub fn check(&self) -> Result<(), DecodeError> {
        if self.start == 0 {
            return Err(DecodeError::Invalid("start of the session"));
        }
        let ahead = self.sequence.checked_sub(self.lowest_unanswered);
        match ahead {
            Some(ahead) if self.lowest_unanswered > 0 => {
                check_limit("number of unanswered writes of the session", ahead, WINDOW - 1)?;
            }
            _ => return Err(DecodeError::Invalid("lowest unanswered number of the session")),
        }
        check_limit("time", self.now_ms, MAX_TIME_MS)
    }

    /// A command of this session as it is proposed.
    #[must_use]
    pub fn wrap(&self, command: &[u8]) -> Bytes {
        let mut out = codec::start(IN_SESSION, TAG_BYTES + command.len());
        let numbers = [self.id, self.start, self.sequence, self.lowest_unanswered, self.now_ms];
        numbers.into_iter().for_each(|number| codec::put_number(&mut out, number));
        out.extend_from_slice(command);
        out.into()
    }

    /// Reads the tag of a command, if it has one, and returns the command behind it.
    ///
    /// # Errors
    /// A malformed tag, or one over its limits.
    pub fn split(data: &[u8]) -> Result<(Option<Self>, &[u8]), DecodeError> {
        let Ok((mut reader, IN_SESSION)) = Reader::versioned(data) else {
            return Ok((None, data));
        };
        let tag = Self {
            id: reader.number()?,
            start: reader.number()?,
            sequence: reader.number()?,
            lowest_unanswered: reader.number()?,
            now_ms: reader.number()?,
        };
        tag.check()?;
        Ok((Some(tag), reader.rest()))
    }

    /// Whether a command is part of a session, as far as its first bytes tell.
    pub(crate) fn is_in_session(data: &[u8]) -> bool {
        matches!(Reader::versioned(data), Ok((_, IN_SESSION)))
    }
}

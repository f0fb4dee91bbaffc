//! Sessions: a write that a client resends takes effect once.
//!
//! A write may carry a [`SessionTag`]: the session of its client, and its sequence number there.
//! The state machine of the shard keeps, per session, the answer of each number that the client
//! may still resend (`Sessions`). A number that was applied is answered with the first answer.
//! The sessions are records of the group's state: written in the same batch as the effects,
//! carried by snapshots, part of the checksum.
//!
//! **Bounds.** The client names the lowest number without an answer, and uses numbers less than
//! [`WINDOW`] above it, so a session keeps at most that many answers of [`MAX_ANSWER_BYTES`]. A
//! shard keeps [`MAX_SESSIONS`] sessions of [`MAX_SESSIONS_BYTES`] together; beyond that it drops
//! the least recently used one. A session unused for [`EXPIRY_MS`] is dropped, too. Time is the
//! largest `now_ms` of a tag, so it is part of the log.
//!
//! **Why a dropped session cannot return.** Each session has a start, a number that the client
//! chooses. The shard remembers the largest start of the sessions it dropped, the *horizon*, and
//! registers a session only if its start is larger. So no late copy of a write of a dropped
//! session registers it again, not even the copy of its first write. A client that is refused
//! learns a start that the shard accepts. The start is usually the client's time, but nothing
//! depends on its clock.
//!
//! Knows neither tables nor queues: commands and answers are bytes.

mod record;
mod sessions;
mod tag;
#[cfg(test)]
mod tests;

use crate::shards::codec::{self, DecodeError, Reader};

pub(crate) use self::record::{add_to_checksum, check as check_record};
pub(crate) use self::sessions::{Admission, Sessions, time_ms};
pub use self::tag::SessionTag;

pub use shardhost_proto::limits::SESSION_WINDOW as WINDOW;
/// Sessions that a shard keeps.
pub const MAX_SESSIONS: usize = 4_096;
/// Bytes of all sessions of a shard, with what each costs in memory.
pub const MAX_SESSIONS_BYTES: usize = 8 * 1024 * 1024;
/// Longest answer that is kept, in bytes.
pub const MAX_ANSWER_BYTES: usize = 128;
/// A session is dropped when it was unused for so long: 30 minutes, in milliseconds.
pub const EXPIRY_MS: u64 = 30 * 60 * 1_000;
/// How far a start may be ahead of the shard's time: one hour, in milliseconds. A client whose
/// clock is wrong must not move the horizon far into the future.
pub const MAX_START_LEAD_MS: u64 = 60 * 60 * 1_000;

/// Kind byte of the answer [`SessionRefusal`], the same in all kinds of shard.
pub(crate) const REFUSED: u8 = 0x40;

/// A write of a session was not applied, and this copy of it never will be. An earlier copy may
/// have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionRefusal {
    /// The session was dropped, or it starts too early or too late. Begin another one.
    Over {
        /// A start that the shard accepts.
        next_start: u64,
    },
    /// The client has declared that it does not wait for this number any more.
    Settled,
}

impl SessionRefusal {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = codec::start(REFUSED, 10);
        // No start is 0.
        codec::put_number(&mut out, self.next_start());
        out
    }

    /// Reads what follows the kind byte.
    pub(crate) fn decode(mut reader: Reader<'_>) -> Result<Self, DecodeError> {
        let next_start = reader.number()?;
        reader.finish()?;
        Ok(match next_start {
            0 => Self::Settled,
            next_start => Self::Over { next_start },
        })
    }

    /// A start that the shard accepts; 0: unknown.
    #[must_use]
    pub const fn next_start(self) -> u64 {
        match self {
            Self::Over { next_start } => next_start,
            Self::Settled => 0,
        }
    }
}

impl std::fmt::Display for SessionRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Over { next_start } => {
                write!(f, "the session is over; begin one that starts at {next_start}")
            }
            Self::Settled => f.write_str("the client has declared this write as answered"),
        }
    }
}

//! What a command answers, the same on every replica.

use bytes::Bytes;

use super::convert::{read_versioned, reply_from_message, reply_to_message, versioned};
use super::error::Refusal;
use super::record::Revision;

/// A command was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The revision of the record: what the next change of it may expect. Where the record is
    /// gone or none is named: the revision of the catalog.
    pub revision: Revision,
    pub effect: Effect,
    /// Of a group that was created: how many lives it had before.
    pub incarnation: Option<u32>,
}

/// Whether a command changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Changed,
    Unchanged,
}

/// The answer to a command.
pub type Reply = Result<Done, Refusal>;

impl Done {
    pub(super) const fn changed(revision: Revision) -> Self {
        Self { revision, effect: Effect::Changed, incarnation: None }
    }
    pub(super) const fn unchanged(revision: Revision) -> Self {
        Self { revision, effect: Effect::Unchanged, incarnation: None }
    }
}

/// The answer as the state machine gives it.
#[must_use]
pub fn encode_reply(reply: &Reply) -> Bytes {
    versioned(&reply_to_message(reply))
}

/// Reads an answer.
///
/// # Errors
/// The refusal that it is; or [`Refusal::Malformed`], [`Refusal::UnknownVersion`] when it cannot be read: then the effect of the command is unknown.
pub fn decode_reply(data: &Bytes) -> Reply {
    reply_from_message(read_versioned(data)?)
}

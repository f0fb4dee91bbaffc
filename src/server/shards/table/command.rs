//! The commands of a table as they stand in the Raft log, and their answers.

use bytes::Bytes;

use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::shards::codec::{self, DecodeError, Reader};
use crate::shards::session::{self, SessionRefusal};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const COMPARE_AND_SET: u8 = 3;

const EXPECT_PRESENT: u8 = 1;
const VALUE_PRESENT: u8 = 2;

const WRITTEN: u8 = 1;
const INVALID: u8 = 2;

const DONE: u8 = 1;
const EXISTED: u8 = 2;
const ACTUAL_PRESENT: u8 = 4;

/// Key, two lengths, kind: room that spares an encoder its second allocation.
const OVERHEAD_BYTES: usize = 16;

/// A change of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableCommand<'a> {
    /// Sets a value, whatever was there.
    Put { key: &'a [u8], value: &'a [u8] },
    /// Removes a key, if it is there.
    Delete { key: &'a [u8] },
    /// Sets or removes a value if what is there is what is expected.
    CompareAndSet {
        key: &'a [u8],
        /// What must be there; `None`: nothing.
        expect: Option<&'a [u8]>,
        /// What is put there; `None`: the key is removed.
        value: Option<&'a [u8]>,
    },
}

impl<'a> TableCommand<'a> {
    /// The key that is changed.
    #[must_use]
    pub const fn key(&self) -> &'a [u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::CompareAndSet { key, .. } => key,
        }
    }

    /// Checks the limits, as every replica does before it applies the command.
    ///
    /// # Errors
    /// [`DecodeError::Limit`].
    pub fn check(&self) -> Result<(), DecodeError> {
        codec::check_limit("key's length", self.key().len() as u64, MAX_KEY_BYTES as u64)?;
        let longest = match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } => 0,
            Self::CompareAndSet { expect, value, .. } => {
                expect.map_or(0, <[u8]>::len).max(value.map_or(0, <[u8]>::len))
            }
        };
        codec::check_limit("value's length", longest as u64, MAX_VALUE_BYTES as u64)
    }

    /// The command as it is proposed.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let out = match *self {
            Self::Put { key, value } => {
                let mut out = codec::start(PUT, OVERHEAD_BYTES + key.len() + value.len());
                codec::put_bytes(&mut out, key);
                out.extend_from_slice(value);
                out
            }
            Self::Delete { key } => {
                let mut out = codec::start(DELETE, key.len());
                out.extend_from_slice(key);
                out
            }
            Self::CompareAndSet { key, expect, value } => {
                encode_compare_and_set(key, expect, value)
            }
        };
        out.into()
    }

    /// Reads and checks a command.
    ///
    /// # Errors
    /// Every byte string that [`TableCommand::encode`] does not write, or that is over a limit.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut reader, kind) = Reader::versioned(data)?;
        let command = match kind {
            PUT => Self::Put { key: reader.bytes()?, value: reader.rest() },
            DELETE => Self::Delete { key: reader.rest() },
            COMPARE_AND_SET => decode_compare_and_set(reader)?,
            other => return Err(DecodeError::Kind(other)),
        };
        command.check()?;
        Ok(command)
    }
}

fn encode_compare_and_set(key: &[u8], expect: Option<&[u8]>, value: Option<&[u8]>) -> Vec<u8> {
    let room = expect.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
    let mut out = codec::start(COMPARE_AND_SET, OVERHEAD_BYTES + key.len() + room);
    codec::put_bytes(&mut out, key);
    out.push(flag(EXPECT_PRESENT, expect.is_some()) | flag(VALUE_PRESENT, value.is_some()));
    for part in [expect, value].into_iter().flatten() {
        codec::put_bytes(&mut out, part);
    }
    out
}

fn decode_compare_and_set(mut reader: Reader<'_>) -> Result<TableCommand<'_>, DecodeError> {
    let key = reader.bytes()?;
    let flags = reader.byte()?;
    if flags & !(EXPECT_PRESENT | VALUE_PRESENT) != 0 {
        return Err(DecodeError::Invalid("flags of a compare-and-set"));
    }
    let mut part = |bit| if flags & bit == 0 { Ok(None) } else { reader.bytes().map(Some) };
    let expect = part(EXPECT_PRESENT)?;
    let value = part(VALUE_PRESENT)?;
    reader.finish()?;
    Ok(TableCommand::CompareAndSet { key, expect, value })
}

const fn flag(bit: u8, set: bool) -> u8 {
    if set { bit } else { 0 }
}

/// What a command answers, the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableResponse {
    /// The command was carried out, or its expectation failed.
    Written {
        /// `false`: the expectation of a compare-and-set failed and nothing changed.
        done: bool,
        /// There was a value before.
        existed: bool,
        /// With a failed expectation: what is there.
        actual: Option<Bytes>,
    },
    /// The command makes no sense; nothing changed.
    Invalid { message: String },
    /// The command is not applied, because its session does not allow it.
    Refused(SessionRefusal),
}

impl TableResponse {
    /// The answer of a command that was carried out. Allocates nothing.
    pub(crate) const fn done(existed: bool) -> Bytes {
        Bytes::from_static(if existed {
            &[codec::VERSION, WRITTEN, DONE | EXISTED]
        } else {
            &[codec::VERSION, WRITTEN, DONE]
        })
    }

    /// The answer as the state machine gives it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Written { done: true, existed, actual: None } => Self::done(*existed),
            Self::Written { done, existed, actual } => {
                let mut out = codec::start(WRITTEN, 1 + actual.as_ref().map_or(0, Bytes::len));
                let flags = flag(DONE, *done)
                    | flag(EXISTED, *existed)
                    | flag(ACTUAL_PRESENT, actual.is_some());
                out.push(flags);
                out.extend_from_slice(actual.as_deref().unwrap_or_default());
                out.into()
            }
            Self::Invalid { message } => {
                let mut out = codec::start(INVALID, message.len());
                out.extend_from_slice(message.as_bytes());
                out.into()
            }
            Self::Refused(refusal) => refusal.encode().into(),
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Every byte string that [`TableResponse::encode`] does not write.
    pub fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let (mut reader, kind) = Reader::versioned(data)?;
        match kind {
            WRITTEN => {
                let flags = reader.byte()?;
                let actual = (flags & ACTUAL_PRESENT != 0).then(|| data.slice_ref(reader.rest()));
                if actual.is_none() {
                    reader.finish()?;
                }
                Ok(Self::Written { done: flags & DONE != 0, existed: flags & EXISTED != 0, actual })
            }
            session::REFUSED => SessionRefusal::decode(reader).map(Self::Refused),
            INVALID => {
                Ok(Self::Invalid { message: String::from_utf8_lossy(reader.rest()).into_owned() })
            }
            other => Err(DecodeError::Kind(other)),
        }
    }
}

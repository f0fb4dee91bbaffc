//! The records of sessions on disk and in snapshots.

use bytes::Bytes;
use shardhost_groups::machine::Progress;

use super::sessions::Session;
use super::{MAX_ANSWER_BYTES, WINDOW};
use crate::shards::codec::{self, DecodeError, Reader, check_limit};
use crate::shards::state_db::{GroupState, StateDbError};
use shardhost_proto::hash::SequenceSum;

/// Kind byte of the one record of numbers.
pub(super) const HEADER: u8 = 0x30;
/// Kind byte of the sessions, by id.
pub(super) const SESSION: u8 = 0x31;

/// The numbers of a shard's sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The largest time of a write.
    pub(super) now_ms: u64,
    /// The largest start of a session that was dropped.
    pub(super) horizon: u64,
}

impl Header {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = codec::start(HEADER, 20);
        codec::put_number(&mut out, self.now_ms);
        codec::put_number(&mut out, self.horizon);
        out
    }

    pub(super) fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = open(HEADER, data)?;
        let header = Self { now_ms: reader.number()?, horizon: reader.number()? };
        reader.finish()?;
        Ok(header)
    }
}

impl Session {
    pub(super) fn encode(&self) -> Vec<u8> {
        let answers = self.answers.values().map(|answer| 4 + answer.len()).sum::<usize>();
        let mut out = codec::start(SESSION, 40 + answers);
        let numbers = [self.start, self.used_ms, self.used_index, self.lowest_unanswered];
        numbers.into_iter().for_each(|number| codec::put_number(&mut out, number));
        let mut next = self.lowest_unanswered;
        for (sequence, answer) in &self.answers {
            codec::put_number(&mut out, sequence - next);
            codec::put_bytes(&mut out, answer);
            // Behind the last number there is none.
            next = sequence.saturating_add(1);
        }
        out
    }

    pub(super) fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = open(SESSION, data)?;
        let mut session = Self {
            start: reader.number()?,
            used_ms: reader.number()?,
            used_index: reader.number()?,
            lowest_unanswered: reader.number()?,
            ..Self::default()
        };
        let first = session.lowest_unanswered;
        let mut next = Some(first);
        while !reader.rest().is_empty() {
            let ahead = reader.number()?;
            let sequence = next.and_then(|next| next.checked_add(ahead));
            let sequence = sequence.ok_or(DecodeError::BadNumber)?;
            check_limit("answers of a session", sequence - first, WINDOW - 1)?;
            let answer = reader.bytes()?;
            check_limit("length of an answer", answer.len() as u64, MAX_ANSWER_BYTES as u64)?;
            session.answers.insert(sequence, Bytes::copy_from_slice(answer));
            next = sequence.checked_add(1);
        }
        Ok(session)
    }
}

fn open(kind: u8, data: &[u8]) -> Result<Reader<'_>, DecodeError> {
    match Reader::versioned(data)? {
        (reader, found) if found == kind => Ok(reader),
        (_, other) => Err(DecodeError::Kind(other)),
    }
}

/// The session that a key names.
pub(super) fn id_of(rest: &[u8]) -> Result<u64, DecodeError> {
    rest.try_into().map(u64::from_be_bytes).map_err(|_| DecodeError::Invalid("key"))
}

/// Checks a record of a snapshot.
pub(crate) fn check(kind: u8, rest: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    match kind {
        HEADER if rest.is_empty() => Header::decode(value).map(drop),
        HEADER => Err(DecodeError::Trailing(rest.len())),
        SESSION => Session::decode(value).and_then(|_| id_of(rest)).map(drop),
        other => Err(DecodeError::Kind(other)),
    }
}

/// Adds the sessions to a checksum; a shard that never had one keeps the sum that it had.
pub(crate) fn add_to_checksum(
    state: &GroupState,
    progress: &Progress,
    sum: &mut SequenceSum,
) -> Result<(), StateDbError> {
    if let Some(header) = state.get(&state.space().prefix(HEADER))? {
        sum.add(&header);
    }
    let mut records = state.scan(SESSION, &[], None);
    while let Some((key, value)) = records.next()? {
        progress.step();
        sum.add(key);
        sum.add(value);
    }
    Ok(())
}

//! The records of a queue on disk and in snapshots.

use std::ops::Range;

use bytes::Bytes;

use super::{
    MAX_ATTEMPT, MAX_BODY_BYTES, MAX_DEDUP_ID_BYTES, MAX_PARTITION_KEY_BYTES, MAX_SEQUENCE,
};
use crate::shards::codec::{self, DecodeError, Reader, check_limit};
use crate::shards::session;

/// Kind byte of the one record of counters.
pub(super) const COUNTERS: u8 = 0x20;
/// Kind byte of the messages, by sequence.
pub(super) const MESSAGE: u8 = 0x21;
/// Kind byte of the newest delivery of a message, by sequence.
pub(super) const DELIVERY: u8 = 0x22;
/// Kind byte of the ids in the window, by ordinal.
pub(super) const DEDUP: u8 = 0x23;

/// The numbers of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) now_ms: u64,
    pub(super) last_sequence: u64,
    /// No message stands below: where a scan starts, past what was acked.
    pub(super) first_sequence: u64,
    /// Ordinals in the window of ids.
    pub(super) dedup: Range<u64>,
}

impl Counters {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = codec::start(COUNTERS, 50);
        let numbers = [
            self.now_ms,
            self.last_sequence,
            self.first_sequence,
            self.dedup.start,
            self.dedup.end,
        ];
        numbers.into_iter().for_each(|number| codec::put_number(&mut out, number));
        out
    }

    pub(super) fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = open(COUNTERS, data)?;
        let counters = Self {
            now_ms: reader.number()?,
            last_sequence: reader.number()?,
            first_sequence: reader.number()?,
            dedup: reader.number()?..reader.number()?,
        };
        reader.finish()?;
        check_limit("sequence", counters.last_sequence, MAX_SEQUENCE)?;
        // An id is that of a message.
        check_limit(
            "ordinal of an id",
            counters.dedup.start.max(counters.dedup.end),
            MAX_SEQUENCE,
        )?;
        Ok(counters)
    }
}

/// A message: its partition key and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) partition_key: Bytes,
    pub(super) body: Bytes,
}

impl Message {
    pub(super) fn encode(partition_key: &[u8], body: &[u8]) -> Bytes {
        let mut out = codec::start(MESSAGE, 3 + partition_key.len() + body.len());
        codec::put_bytes(&mut out, partition_key);
        out.extend_from_slice(body);
        out.into()
    }

    /// Shares the memory of `data`.
    pub(super) fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let (partition_key, body) = Self::split(data)?;
        Ok(Self { partition_key: data.slice_ref(partition_key), body: data.slice_ref(body) })
    }

    pub(super) fn split(data: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
        let mut reader = open(MESSAGE, data)?;
        Ok((reader.bytes()?, reader.rest()))
    }
}

/// The newest delivery of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) attempt: u32,
    pub(super) deadline_ms: u64,
}

impl Delivered {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = codec::start(DELIVERY, 15);
        codec::put_number(&mut out, self.attempt.into());
        codec::put_number(&mut out, self.deadline_ms);
        out
    }

    pub(super) fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = open(DELIVERY, data)?;
        let attempt = u32::try_from(reader.number()?).map_err(|_| DecodeError::BadNumber)?;
        let deadline_ms = reader.number()?;
        reader.finish()?;
        check_limit("attempt", attempt.into(), MAX_ATTEMPT.into())?;
        Ok(Self { attempt, deadline_ms })
    }
}

/// An id in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DedupRecord<'a> {
    pub(super) sent_ms: u64,
    pub(super) sequence: u64,
    pub(super) id: &'a [u8],
}

impl<'a> DedupRecord<'a> {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = codec::start(DEDUP, 16 + self.id.len());
        codec::put_number(&mut out, self.sent_ms);
        codec::put_number(&mut out, self.sequence);
        out.extend_from_slice(self.id);
        out
    }

    pub(super) fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = open(DEDUP, data)?;
        let sent_ms = reader.number()?;
        Ok(Self { sent_ms, sequence: reader.number()?, id: reader.rest() })
    }
}

fn open(kind: u8, data: &[u8]) -> Result<Reader<'_>, DecodeError> {
    match Reader::versioned(data)? {
        (reader, found) if found == kind => Ok(reader),
        (_, other) => Err(DecodeError::Kind(other)),
    }
}

/// The number that a key of messages, deliveries or ids ends with.
pub(super) fn number_of(rest: &[u8]) -> Result<u64, DecodeError> {
    rest.try_into().map(u64::from_be_bytes).map_err(|_| DecodeError::Invalid("key"))
}

/// Checks a record of a snapshot.
pub(super) fn check(kind: u8, rest: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    match kind {
        COUNTERS if rest.is_empty() => Counters::decode(value).map(drop),
        COUNTERS => Err(DecodeError::Trailing(rest.len())),
        MESSAGE => {
            let (partition_key, body) = Message::split(value)?;
            let longest = MAX_PARTITION_KEY_BYTES as u64;
            check_limit("partition key's length", partition_key.len() as u64, longest)?;
            check_limit("body's length", body.len() as u64, MAX_BODY_BYTES as u64)?;
            check_limit("sequence", number_of(rest)?, MAX_SEQUENCE)
        }
        DELIVERY => Delivered::decode(value).and_then(|_| number_of(rest)).map(drop),
        DEDUP => {
            let id = DedupRecord::decode(value)?.id;
            // With the partition key that it counts for, and the length of that.
            let longest = (2 + MAX_PARTITION_KEY_BYTES + MAX_DEDUP_ID_BYTES) as u64;
            check_limit("id's length", id.len() as u64, longest)?;
            number_of(rest).map(drop)
        }
        other => session::check_record(other, rest, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot comes from another host: what a queue counts on must hold.
    #[test]
    fn numbers_that_no_queue_comes_to_are_refused() {
        let counters = |start, end| Counters { dedup: start..end, ..Counters::default() };
        for (start, end) in [(u64::MAX, u64::MAX), (0, MAX_SEQUENCE + 1)] {
            assert!(Counters::decode(&counters(start, end).encode()).is_err());
        }
        assert!(Counters::decode(&counters(3, MAX_SEQUENCE).encode()).is_ok());
        let delivered = |attempt| Delivered { attempt, deadline_ms: 5 }.encode();
        assert!(Delivered::decode(&delivered(MAX_ATTEMPT)).is_ok());
        assert!(Delivered::decode(&delivered(MAX_ATTEMPT + 1)).is_err());
    }
}

//! What the commands of a queue answer, the same on every replica.

use bytes::Bytes;
use shardhost_proto::client::{Acked, Deliveries};

use crate::shards::codec::{self, DecodeError, Reader};
use crate::shards::session::{self, SessionRefusal};

const SENT: u8 = 1;
const DELIVERIES: u8 = 2;
const ACKED: u8 = 3;
const INVALID: u8 = 4;
const FULL: u8 = 5;

/// The answer to a command.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum QueueResponse {
    Sent {
        /// The message's place in the shard.
        sequence: u64,
        /// The id was known: this is the place of the earlier message, nothing was stored.
        duplicate: bool,
    },
    Deliveries(Deliveries),
    Acked(Acked),
    /// The command makes no sense; nothing changed.
    Invalid {
        message: String,
    },
    /// The shard holds as many messages as it may; nothing was stored. Receive and ack some.
    Full,
    /// The command is not applied, because its session does not allow it.
    Refused(SessionRefusal),
}

impl QueueResponse {
    /// The answer as the state machine gives it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let out = match self {
            Self::Sent { sequence, duplicate } => {
                let mut out = codec::start(SENT, 11);
                out.push(u8::from(*duplicate));
                codec::put_number(&mut out, *sequence);
                out
            }
            Self::Deliveries(deliveries) => return codec::message(DELIVERIES, deliveries),
            Self::Acked(acked) => {
                let mut out = codec::start(ACKED, 10);
                codec::put_number(&mut out, acked.acked.into());
                codec::put_number(&mut out, acked.stale.into());
                out
            }
            Self::Invalid { message } => {
                let mut out = codec::start(INVALID, message.len());
                out.extend_from_slice(message.as_bytes());
                out
            }
            Self::Full => codec::start(FULL, 0),
            Self::Refused(refusal) => refusal.encode(),
        };
        out.into()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// Every byte string that [`QueueResponse::encode`] does not write.
    pub fn decode(data: &Bytes) -> Result<Self, DecodeError> {
        let (mut reader, kind) = Reader::versioned(data)?;
        let response = match kind {
            SENT => {
                let duplicate = reader.byte()? != 0;
                Self::Sent { duplicate, sequence: reader.number()? }
            }
            DELIVERIES => return codec::read_message(data, reader).map(Self::Deliveries),
            ACKED => Self::Acked(Acked {
                acked: narrow(reader.number()?)?,
                stale: narrow(reader.number()?)?,
            }),
            INVALID => {
                let message = String::from_utf8_lossy(reader.rest()).into_owned();
                return Ok(Self::Invalid { message });
            }
            FULL => Self::Full,
            session::REFUSED => return SessionRefusal::decode(reader).map(Self::Refused),
            other => return Err(DecodeError::Kind(other)),
        };
        reader.finish()?;
        Ok(response)
    }
}

fn narrow(number: u64) -> Result<u32, DecodeError> {
    u32::try_from(number).map_err(|_| DecodeError::BadNumber)
}

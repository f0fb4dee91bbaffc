//! How frames become bytes and bytes frames.
//!
//! Encoding reserves a frame's whole length at once. Decoding first walks the bytes and counts:
//! a message or an entry of two bytes on the wire takes a hundred times that in memory, so the
//! size of a frame alone is no bound. Raft's rules are not checked here, but by the groups'
//! validator.

use bytes::Buf;
use prost::Message;
use shardhost_proto::fields::{MalformedField, next_field};
use shardhost_proto::peer::{Frame, SnapshotFrame, SnapshotReceipt, Welcome};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::config::TransportConfig;

/// Most bytes of snapshot metadata in a frame. Snapshots have streams of their own.
const SNAPSHOT_META_MAX_BYTES: usize = 64 << 10;
/// Most members, memberships, capabilities and labels in a frame, for each message that it may
/// hold. Few messages have any.
const MEMBERS_PER_MESSAGE: usize = 16;
/// Most names in an advertisement, far above what is accepted from a node.
const ADVERTISEMENT_MAX_NAMES: usize = 1 << 10;
/// Most bytes of the header of a snapshot stream.
const SNAPSHOT_HEADER_MAX_BYTES: usize = 128 << 10;
/// Most bytes of a frame of a snapshot stream: the largest chunk and what goes around it.
pub(super) const SNAPSHOT_FRAME_MAX_BYTES: usize = (4 << 20) + SNAPSHOT_HEADER_MAX_BYTES;

/// What a frame may hold.
#[derive(Clone, Copy, Debug)]
pub struct FrameBounds {
    pub messages: usize,
    /// Entries of all messages together.
    pub entries: usize,
}

impl FrameBounds {
    pub(super) fn of(config: &TransportConfig) -> Self {
        Self { messages: config.frame_max_messages, entries: config.frame_max_entries }
    }
}

/// Why the bytes of a frame are refused. The stream that carried them ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// More of something than a frame may hold.
    #[error("a frame holds more than {most} {what}")]
    TooMany { what: &'static str, most: usize },
    /// The bytes are no frame.
    #[error("a frame cannot be read: {0}")]
    Malformed(String),
}

/// Appends the bytes of a frame.
///
/// # Errors
/// [`FrameError::Malformed`] when the buffer cannot take them.
pub fn encode(frame: &Frame, buffer: &mut impl bytes::BufMut) -> Result<(), FrameError> {
    frame.encode(buffer).map_err(|error| FrameError::Malformed(error.to_string()))
}

/// Reads a frame whose bytes are the whole of `buffer`, after checking that it holds no more
/// than `bounds`.
///
/// # Errors
/// [`FrameError::TooMany`], [`FrameError::Malformed`].
pub fn decode(mut buffer: impl Buf, bounds: FrameBounds) -> Result<Frame, FrameError> {
    let contiguous = buffer.chunk().len() == buffer.remaining();
    if !contiguous {
        let whole = buffer.copy_to_bytes(buffer.remaining());
        return decode(whole, bounds);
    }
    Census::new(bounds).frame(buffer.chunk())?;
    Frame::decode(buffer).map_err(|error| FrameError::Malformed(error.to_string()))
}

/// Reads a frame of a snapshot stream whose bytes are the whole of `buffer`.
pub(super) fn decode_snapshot(mut buffer: impl Buf) -> Result<SnapshotFrame, FrameError> {
    let whole = buffer.copy_to_bytes(buffer.remaining());
    let (mut bytes, mut header_bytes) = (&whole[..], 0);
    while let Some((number, content)) = next_field(&mut bytes).map_err(malformed)? {
        if number == field::SNAPSHOT_HEADER {
            header_bytes += content.len();
            within(header_bytes, SNAPSHOT_HEADER_MAX_BYTES, "bytes of snapshot header")?;
        }
    }
    SnapshotFrame::decode(whole).map_err(|error| FrameError::Malformed(error.to_string()))
}

/// Counts what a frame holds before anything is allocated for it.
struct Census {
    bounds: FrameBounds,
    messages: usize,
    entries: usize,
    snapshot_bytes: usize,
    names: usize,
    members: usize,
}

/// Field numbers of the messages in peer.proto.
mod field {
    pub const FRAME_HELLO: u64 = 1;
    pub const FRAME_HEARTBEAT: u64 = 2;
    pub const FRAME_MESSAGES: u64 = 3;
    pub const HELLO_ADVERTISEMENT: u64 = 8;
    pub const HEARTBEAT_ADVERTISEMENT: u64 = 2;
    pub const ADVERTISEMENT_NAMES: u64 = 1;
    pub const MESSAGE_ENTRIES: u64 = 15;
    pub const MESSAGE_SNAPSHOT: u64 = 16;
    pub const MESSAGE_CREATE_REQUEST: u64 = 19;
    pub const MESSAGE_RECOVERY: u64 = 24;
    pub const SNAPSHOT_MEMBERSHIP: u64 = 2;
    pub const CREATE_REQUEST_MEMBERSHIP: u64 = 1;
    pub const CREATE_REQUEST_LABELS: u64 = 3;
    pub const RECOVERY_APPLIED: u64 = 1;
    pub const RECOVERY_UNAPPLIED: u64 = 2;
    pub const MEMBERSHIP_MEMBERS: u64 = 2;
    pub const MEMBERSHIP_REQUIREMENT: u64 = 7;
    pub const REQUIREMENT_CAPABILITIES: u64 = 1;
    pub const SNAPSHOT_HEADER: u64 = 1;
}

impl Census {
    fn new(bounds: FrameBounds) -> Self {
        Self { bounds, messages: 0, entries: 0, snapshot_bytes: 0, names: 0, members: 0 }
    }

    fn frame(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while let Some((number, content)) = next_field(&mut bytes).map_err(malformed)? {
            match number {
                field::FRAME_MESSAGES => {
                    self.messages += 1;
                    within(self.messages, self.bounds.messages, "messages")?;
                    self.message(content)?;
                }
                field::FRAME_HELLO => self.advertisements(field::HELLO_ADVERTISEMENT, content)?,
                field::FRAME_HEARTBEAT => {
                    self.advertisements(field::HEARTBEAT_ADVERTISEMENT, content)?
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Counts the names in the advertisements in the field `advertisement` of a message.
    fn advertisements(&mut self, advertisement: u64, mut bytes: &[u8]) -> Result<(), FrameError> {
        while let Some((number, mut content)) = next_field(&mut bytes).map_err(malformed)? {
            if number != advertisement {
                continue;
            }
            while let Some((number, _)) = next_field(&mut content).map_err(malformed)? {
                self.names += usize::from(number == field::ADVERTISEMENT_NAMES);
                within(self.names, ADVERTISEMENT_MAX_NAMES, "names of capabilities")?;
            }
        }
        Ok(())
    }

    fn message(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while let Some((number, content)) = next_field(&mut bytes).map_err(malformed)? {
            match number {
                field::MESSAGE_ENTRIES => {
                    self.entries += 1;
                    within(self.entries, self.bounds.entries, "entries")?;
                }
                field::MESSAGE_SNAPSHOT => {
                    self.snapshot_bytes += content.len();
                    let most = SNAPSHOT_META_MAX_BYTES;
                    within(self.snapshot_bytes, most, "bytes of snapshot metadata")?;
                    self.memberships(content, |number| number == field::SNAPSHOT_MEMBERSHIP)?;
                }
                field::MESSAGE_CREATE_REQUEST => {
                    self.labels(content)?;
                    self.memberships(content, |number| number == field::CREATE_REQUEST_MEMBERSHIP)?;
                }
                field::MESSAGE_RECOVERY => self.memberships(content, |number| {
                    matches!(number, field::RECOVERY_APPLIED | field::RECOVERY_UNAPPLIED)
                })?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Census {
    /// Counts the memberships in a part of a message, and what they hold.
    fn memberships(&mut self, mut bytes: &[u8], is: fn(u64) -> bool) -> Result<(), FrameError> {
        while let Some((number, mut content)) = next_field(&mut bytes).map_err(malformed)? {
            if !is(number) {
                continue;
            }
            self.member()?;
            while let Some((number, mut content)) = next_field(&mut content).map_err(malformed)? {
                match number {
                    field::MEMBERSHIP_MEMBERS => self.member()?,
                    field::MEMBERSHIP_REQUIREMENT => {
                        while let Some((number, _)) = next_field(&mut content).map_err(malformed)? {
                            if number == field::REQUIREMENT_CAPABILITIES {
                                self.member()?;
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn labels(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while let Some((number, _)) = next_field(&mut bytes).map_err(malformed)? {
            if number == field::CREATE_REQUEST_LABELS {
                self.member()?;
            }
        }
        Ok(())
    }

    fn member(&mut self) -> Result<(), FrameError> {
        self.members += 1;
        let most = self.bounds.messages.saturating_mul(MEMBERS_PER_MESSAGE);
        within(self.members, most, "members, memberships and labels")
    }
}

fn malformed(error: MalformedField) -> FrameError {
    FrameError::Malformed(error.to_string())
}

fn within(count: usize, most: usize, what: &'static str) -> Result<(), FrameError> {
    if count > most { Err(FrameError::TooMany { what, most }) } else { Ok(()) }
}

/// Frames out, welcomes in: the sender's side of an exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct SenderCodec {
    /// Bytes that an encoding buffer is allocated with, and at which it is handed on.
    pub buffer_bytes: usize,
}

impl Codec for SenderCodec {
    type Encode = Frame;
    type Decode = Welcome;
    type Encoder = FrameEncoder;
    type Decoder = <ProstCodec<Frame, Welcome> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        FrameEncoder { settings: BufferSettings::new(self.buffer_bytes, self.buffer_bytes) }
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<Frame, Welcome>::raw_decoder(BufferSettings::new(256, 256))
    }
}

/// Welcomes out, frames in: the receiver's side of an exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiverCodec {
    pub bounds: FrameBounds,
}

impl Codec for ReceiverCodec {
    type Encode = Welcome;
    type Decode = Frame;
    type Encoder = <ProstCodec<Welcome, Frame> as Codec>::Encoder;
    type Decoder = FrameDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Welcome, Frame>::raw_encoder(BufferSettings::new(256, 256))
    }

    fn decoder(&mut self) -> Self::Decoder {
        FrameDecoder { bounds: self.bounds }
    }
}

#[derive(Debug)]
pub(super) struct FrameEncoder {
    settings: BufferSettings,
}

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(frame.encoded_len());
        encode(&frame, buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.settings
    }
}

#[derive(Debug)]
pub(super) struct FrameDecoder {
    bounds: FrameBounds,
}

impl Decoder for FrameDecoder {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        decode(buffer, self.bounds)
            .map(Some)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// Receipts out, snapshot frames in: the receiver's side of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct SnapshotCodec;

impl Codec for SnapshotCodec {
    type Encode = SnapshotReceipt;
    type Decode = SnapshotFrame;
    type Encoder = <ProstCodec<SnapshotReceipt, SnapshotFrame> as Codec>::Encoder;
    type Decoder = SnapshotDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<SnapshotReceipt, SnapshotFrame>::raw_encoder(BufferSettings::new(64, 64))
    }

    fn decoder(&mut self) -> Self::Decoder {
        SnapshotDecoder
    }
}

#[derive(Debug)]
pub(super) struct SnapshotDecoder;

impl Decoder for SnapshotDecoder {
    type Item = SnapshotFrame;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<SnapshotFrame>, Status> {
        decode_snapshot(buffer)
            .map(Some)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use shardhost_proto::log::Entry;
    use shardhost_proto::peer::{Advertisement, GroupMessage, Hello, NodeHeartbeat};

    const BOUNDS: FrameBounds = FrameBounds { messages: 4, entries: 8 };

    fn frame(messages: usize, entries: usize) -> Frame {
        let entry = Entry { term: 3, data: Bytes::from_static(b"put"), ..Entry::default() };
        let message =
            GroupMessage { group: 1, entries: vec![entry; entries], ..GroupMessage::default() };
        Frame { messages: vec![message; messages], ..Frame::default() }
    }

    fn bytes_of(frame: &Frame) -> Bytes {
        frame.encode_to_vec().into()
    }

    #[test]
    fn a_frame_within_bounds_comes_back_as_it_was() {
        let frame = Frame {
            heartbeat: Some(NodeHeartbeat {
                sequence: 9,
                advertisement: None,
                founding: 4,
                wall_ms: 0,
            }),
            ..frame(4, 2)
        };
        assert_eq!(decode(bytes_of(&frame), BOUNDS), Ok(frame));
    }

    #[test]
    fn too_many_messages_or_entries_are_refused_before_they_are_built() {
        let refused = |frame| decode(bytes_of(&frame), BOUNDS).unwrap_err().to_string();
        assert_eq!(refused(frame(5, 0)), "a frame holds more than 4 messages");
        assert_eq!(refused(frame(3, 3)), "a frame holds more than 8 entries");
    }

    #[test]
    fn too_many_names_of_capabilities_are_refused_wherever_they_stand() {
        let decoded = |capabilities: Vec<String>| {
            let advertisement = Some(Advertisement { capabilities, ..Advertisement::default() });
            let hello = Hello { advertisement: advertisement.clone(), ..Hello::default() };
            let greeting = Frame { hello: Some(hello), ..Frame::default() };
            let heartbeat =
                Some(NodeHeartbeat { sequence: 1, advertisement, founding: 0, wall_ms: 0 });
            let beat = Frame { heartbeat, ..Frame::default() };
            [greeting, beat].map(|frame| decode(bytes_of(&frame), BOUNDS).is_ok())
        };
        assert_eq!(decoded(vec![String::new(); ADVERTISEMENT_MAX_NAMES]), [true, true]);
        assert_eq!(decoded(vec![String::new(); ADVERTISEMENT_MAX_NAMES + 1]), [false, false]);
    }

    #[test]
    fn snapshot_metadata_has_a_bound_of_its_own() {
        let mut frame = frame(1, 0);
        let members = vec![shardhost_proto::log::Member::default(); SNAPSHOT_META_MAX_BYTES];
        let membership = shardhost_proto::log::Membership { members, ..Default::default() };
        frame.messages[0].snapshot = Some(shardhost_proto::peer::SnapshotMeta {
            membership: Some(membership),
            ..Default::default()
        });
        let error = decode(bytes_of(&frame), BOUNDS).unwrap_err();
        assert!(error.to_string().contains("snapshot metadata"), "{error}");
    }

    #[test]
    fn too_many_members_are_refused_wherever_they_stand() {
        use shardhost_proto::log::{Member, Membership, Requirement};
        use shardhost_proto::peer::{CreateRequest, RecoveryAnswer, SnapshotMeta};
        let most = BOUNDS.messages * MEMBERS_PER_MESSAGE;
        let members =
            |count| Membership { members: vec![Member::default(); count], ..Default::default() };
        let names = |count| {
            let requirement = Requirement { capabilities: vec![String::new(); count], soft: false };
            Membership { requirement: Some(requirement), ..Membership::default() }
        };
        let asked = |membership| GroupMessage {
            create_request: Some(CreateRequest {
                membership: Some(membership),
                ..Default::default()
            }),
            ..GroupMessage::default()
        };
        let snapshot = |membership| GroupMessage {
            snapshot: Some(SnapshotMeta { membership: Some(membership), ..Default::default() }),
            ..GroupMessage::default()
        };
        let answer = |unapplied| GroupMessage {
            recovery: Some(Box::new(RecoveryAnswer { unapplied, ..Default::default() })),
            ..GroupMessage::default()
        };
        let labels = |count: usize| {
            let labels = (0..count).map(|label| (label.to_string(), String::new())).collect();
            let create_request = Some(CreateRequest { labels, ..CreateRequest::default() });
            GroupMessage { create_request, ..GroupMessage::default() }
        };
        let decoded = |message| {
            let frame = Frame { messages: vec![message], ..Frame::default() };
            decode(bytes_of(&frame), BOUNDS).map(drop).map_err(|error| error.to_string())
        };
        for message in [
            asked(members(most - 1)),
            asked(names(most - 1)),
            snapshot(members(most - 1)),
            answer(vec![Membership::default(); most]),
            labels(most),
        ] {
            assert_eq!(decoded(message), Ok(()));
        }
        for message in [
            asked(members(most)),
            asked(names(most)),
            snapshot(members(most)),
            answer(vec![Membership::default(); most + 1]),
            labels(most + 1),
        ] {
            assert_eq!(
                decoded(message),
                Err(format!("a frame holds more than {most} members, memberships and labels"))
            );
        }
    }

    #[test]
    fn an_overlong_snapshot_header_is_refused_and_a_chunk_is_not() {
        let entries = vec![Entry::default(); SNAPSHOT_HEADER_MAX_BYTES];
        let message = Some(GroupMessage { entries, ..GroupMessage::default() });
        let header = shardhost_proto::peer::SnapshotHeader { message, ..Default::default() };
        let heavy = SnapshotFrame { header: Some(header), chunk: Bytes::new() };
        assert!(decode_snapshot(Bytes::from(heavy.encode_to_vec())).is_err());
        let chunk = SnapshotFrame { header: None, chunk: vec![7; 1 << 20].into() };
        assert_eq!(decode_snapshot(Bytes::from(chunk.encode_to_vec())), Ok(chunk));
    }

    #[test]
    fn a_frame_that_comes_in_pieces_is_read_whole() {
        let whole = bytes_of(&frame(2, 2));
        let pieces = whole.slice(..7).chain(whole.slice(7..));
        assert_eq!(decode(pieces, BOUNDS), Ok(frame(2, 2)));
    }

    #[test]
    fn every_truncation_is_refused_or_a_shorter_frame() {
        let whole = bytes_of(&frame(2, 2));
        let refused = (1..whole.len()).filter(|end| decode(whole.slice(..*end), BOUNDS).is_err());
        assert!(refused.count() >= whole.len() - 3);
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_never_exceeds_the_bounds(
            bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            if let Ok(frame) = decode(Bytes::from(bytes), BOUNDS) {
                let entries: usize = frame.messages.iter().map(|m| m.entries.len()).sum();
                prop_assert!(frame.messages.len() <= BOUNDS.messages);
                prop_assert!(entries <= BOUNDS.entries);
            }
        }
    }
}

//! Bytes from a peer: frames of a stream, from the greeting up to where messages are handed to the
//! groups, and the header of a snapshot.
//!
//! An input is a list of frames, each behind its length in four bytes; the first byte of all
//! selects whether they are those of a snapshot.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use shardhost_groups::nodes::{Advertisement, Impairment};
use shardhost_groups::testing::fuzz::check_message;
use shardhost_groups::transport::{Inbound, Lane, Recipient, ShipmentOutcome};
use shardhost_groups::{GroupId, LogPosition, NodeId, ReplicaId, RequirementMode};
use shardhost_proto::log::{self, Entry, EntryKind};
use shardhost_proto::peer::{
    self, CreateRequest, Frame, GroupMessage, MessageKind, NodeHeartbeat, RecoveryAnswer,
    SnapshotFrame, SnapshotHeader, SnapshotMeta,
};
use shardhost_storage::convert::membership_to_message;
use shardhost_storage::testing::fuzz::{Seed, Target, names_what_is_wrong};
use shardhost_storage::{Membership, MemorySnapshots};

use super::codec::{self, FrameBounds};
use super::directory::PeerDirectory;
use super::handshake::Identity;
use super::memory::Forgetful;
use super::peer::Peer;
use super::shared::{Peers, Shared};
use super::{TransportConfig, advertisement, receiver, snapshot};

/// Frames of a stream of messages.
const MESSAGES: u8 = 0;
/// Frames of a stream with a snapshot.
const SNAPSHOT: u8 = 1;

const OURS: NodeId = NodeId::must(1);
const THEIRS: NodeId = NodeId::must(2);

/// The target.
#[must_use]
pub fn peer_frames() -> Target {
    Target { name: "peer_frames", run: check, seeds, memory_factor: 64 }
}

/// Takes what would go to the groups through what they do first with it.
#[derive(Debug)]
struct Groups;

impl Inbound for Groups {
    fn deliver(&self, from: NodeId, messages: Vec<GroupMessage>) -> usize {
        messages.iter().map(|message| 3 - check_message(from, message)).sum()
    }
    fn snapshot_arrived(&self, _: NodeId, _: GroupMessage) {}
    fn wants_snapshot(&self, _: GroupId, _: ReplicaId, _: LogPosition) -> Option<Recipient> {
        Some(Recipient::endless())
    }
    fn snapshot_shipped(&self, _: GroupId, _: ReplicaId, _: ShipmentOutcome) {}
    fn peer_live(&self, node: NodeId, _: u64) {
        assert_eq!(node, THEIRS, "a node lives that nobody knows");
    }
    fn peer_lost(&self, _: NodeId) {}
    fn unreachable(&self, _: NodeId, _: Vec<(GroupId, ReplicaId)>) {}
}

/// A transport that knows one peer, and makes no connection.
fn shared() -> Arc<Shared> {
    let mut config = TransportConfig::new("shop", OURS, 1_000, "10.0.0.1:7400");
    config.earlier_starts = vec![900, 800];
    // Small bounds, so that allocations beside them are visible.
    config.frame_max_messages = 64;
    config.frame_max_entries = 256;
    let directory = PeerDirectory::new([(THEIRS, "10.0.0.2:7400".to_owned())]);
    let snapshots = Arc::new(MemorySnapshots::new());
    let shared = Shared::new(config, directory, snapshots, Arc::new(Forgetful));
    let stop = shared.stop.child_token();
    let peer = Peer::new(&shared.config, THEIRS, "10.0.0.2:7400".to_owned(), stop);
    shared.peers.store(Arc::new(Peers::from([(THEIRS, Arc::new(peer))])));
    Arc::new(shared)
}

fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind & 1 {
        SNAPSHOT => check_snapshot(frames_of(rest)),
        _ => check_messages(frames_of(rest)),
    }
}

/// The frames of an input; the last one may lack its end.
fn frames_of(mut input: &[u8]) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (frame, rest) = rest.split_at(rest.len().min(length));
        frames.push(Bytes::copy_from_slice(frame));
        input = rest;
    }
    frames
}

/// Reads a frame as a stream does, and checks that it is read as it was written.
fn decoded(bytes: Bytes, bounds: FrameBounds) -> Option<Frame> {
    match codec::decode(bytes, bounds) {
        Ok(frame) => {
            let mut again = Vec::new();
            codec::encode(&frame, &mut again).expect("a vector grows");
            assert_eq!(codec::decode(Bytes::from(again), bounds).as_ref(), Ok(&frame));
            Some(frame)
        }
        Err(error) => {
            names_what_is_wrong(&error);
            None
        }
    }
}

fn check_messages(frames: Vec<Bytes>) {
    let shared = shared();
    let inbound: Arc<dyn Inbound> = Arc::new(Groups);
    let bounds = FrameBounds::of(&shared.config);
    let mut frames = frames.into_iter();
    let Some(first) = frames.next().and_then(|bytes| decoded(bytes, bounds)) else { return };
    if let Some(hello) = &first.hello {
        let (known, latest) = (hello.known_incarnation, shared.horizon.latest());
        if let Err(refusal) = shared.identity.check_known(THEIRS, known, latest) {
            names_what_is_wrong(&refusal);
        }
    }
    let (peer, visit) = match receiver::admit(&shared, first, &inbound) {
        Ok(admitted) => admitted,
        Err(refusal) => return names_what_is_wrong(&refusal),
    };
    for bytes in frames {
        let Some(frame) = decoded(bytes, bounds) else { return };
        if let Err(status) = receiver::take(&shared, &peer, &visit, &inbound, frame) {
            return names_what_is_wrong(status.message());
        }
    }
}

fn check_snapshot(frames: Vec<Bytes>) {
    let shared = shared();
    let mut frames = frames.into_iter();
    let Some(first) = frames.next() else { return };
    let first = match codec::decode_snapshot(first) {
        Ok(frame) => frame,
        Err(error) => return names_what_is_wrong(&error),
    };
    if let Err(status) = snapshot::announced(&shared, first) {
        return names_what_is_wrong(status.message());
    }
    for bytes in frames {
        if let Err(error) = codec::decode_snapshot(bytes) {
            return names_what_is_wrong(&error);
        }
    }
}

fn stream(kind: u8, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![kind];
    for frame in frames {
        out.extend_from_slice(&u32::try_from(frame.len()).expect("short").to_be_bytes());
        out.extend_from_slice(frame);
    }
    out
}

fn identity() -> Identity {
    Identity {
        cluster: "shop".to_owned(),
        node: THEIRS,
        incarnation: 700,
        earlier_starts: vec![600, 500],
        address: "10.0.0.2:7400".to_owned(),
        client_address: Some("10.0.0.2:7500".to_owned()),
        admin_address: Some("10.0.0.2:7600".to_owned()),
        shard_map: None,
        founded: super::FoundedBy::default(),
        versions: super::Versions::up_to(shardhost_proto::version::ClusterVersion::NEWEST),
    }
}

fn greeting(lane: Option<Lane>) -> peer::Hello {
    let impaired = Some(Impairment { reason: "a disk".into(), mode: RequirementMode::Soft });
    let capabilities = ["fifo".to_owned()].into();
    let said = advertisement::to_wire(&Advertisement { capabilities, draining: true, impaired });
    identity().hello(OURS, lane, Some(said), 900)
}

/// A message of each kind, with what belongs to it.
fn messages() -> Vec<GroupMessage> {
    let membership = || membership_to_message(&Membership::initial((1..=3).map(NodeId::must)));
    let kinds = (1..=30).filter_map(|kind| MessageKind::try_from(kind).ok());
    let plain = kinds.map(|kind| {
        let mut message = GroupMessage {
            group: 7,
            from_replica: 2,
            to_replica: 1,
            kind: kind.into(),
            term: 3,
            log_term: 3,
            index: 9,
            commit: 9,
            stamp: 5,
            life: 6,
            ..GroupMessage::default()
        };
        let position = Some(log::LogPosition { term: 3, index: 20 });
        match kind {
            MessageKind::Append => {
                let entry = |kind: EntryKind, data: &'static [u8]| Entry {
                    kind: kind.into(),
                    term: 3,
                    data: Bytes::from_static(data),
                    context: Bytes::new(),
                };
                message.entries =
                    vec![entry(EntryKind::Command, b"put"), entry(EntryKind::Requirement, b"")];
            }
            MessageKind::Snapshot => {
                message.snapshot = Some(SnapshotMeta { position, membership: Some(membership()) });
            }
            MessageKind::CreateReplica | MessageKind::Removed => {
                let labels = [("zone".to_owned(), "a".to_owned())].into();
                let kind = "table".to_owned();
                message.create_request =
                    Some(CreateRequest { membership: Some(membership()), kind, labels });
            }
            MessageKind::RecoveryResponse => {
                message.recovery = Some(Box::new(RecoveryAnswer {
                    applied: Some(membership()),
                    unapplied: vec![membership()],
                    committed: 9,
                    matched: 9,
                    committed_term: 3,
                }));
            }
            MessageKind::Checksum | MessageKind::ChecksumVerdict => {
                message.checksum = Some(peer::StateChecksum { format: 1, bytes: 9, sum: 8 });
                message.verdict = 1;
            }
            MessageKind::TransferAsk => message.declined = vec![2, 3],
            _ => {}
        }
        message
    });
    plain.collect()
}

fn seeds() -> Vec<Seed> {
    let hello = |lane| Frame { hello: Some(greeting(lane)), ..Frame::default() }.encode_to_vec();
    let bulk = hello(Some(Lane::Bulk));
    let with = |frames: &[Frame]| {
        let rest = frames.iter().map(Frame::encode_to_vec);
        stream(MESSAGES, &std::iter::once(bulk.clone()).chain(rest).collect::<Vec<_>>())
    };
    let of = |messages: Vec<GroupMessage>| Frame { messages, ..Frame::default() };
    let mut seeds = vec![
        Seed::new("hello-bulk", stream(MESSAGES, std::slice::from_ref(&bulk))),
        Seed::new("hello-urgent", stream(MESSAGES, &[hello(Some(Lane::Urgent))])),
        Seed::new("hello-nowhere", stream(MESSAGES, &[hello(None)])),
        Seed::new("hello-twice", stream(MESSAGES, &[bulk.clone(), bulk.clone()])),
        Seed::new("no-hello", stream(MESSAGES, &[of(messages()).encode_to_vec()])),
        Seed::new("all-kinds", with(&[of(messages())])),
    ];
    for message in messages() {
        let name = format!("message-{}", message.kind().as_str_name().to_lowercase());
        seeds.push(Seed::new(name.replace("message_kind_", ""), with(&[of(vec![message])])));
    }
    let said = greeting(None).advertisement;
    let heartbeat =
        Some(NodeHeartbeat { sequence: 3, advertisement: said, founding: 9, wall_ms: 7 });
    seeds.push(Seed::new("heartbeat", with(&[Frame { heartbeat, ..Frame::default() }])));
    let heartbeat = Some(NodeHeartbeat {
        sequence: u64::MAX,
        advertisement: None,
        founding: u64::MAX,
        wall_ms: u64::MAX,
    });
    seeds.push(Seed::new("heartbeat-late", with(&[Frame { heartbeat, ..Frame::default() }])));
    seeds.extend(bombs().into_iter().map(|(name, message)| Seed::new(name, with(&[of(message)]))));
    let snapshot = messages().into_iter().find(|one| one.kind() == MessageKind::Snapshot);
    let header = |size| SnapshotFrame {
        header: Some(SnapshotHeader {
            hello: Some(greeting(None)),
            message: snapshot.clone(),
            size,
            crc: 5,
        }),
        chunk: Bytes::new(),
    };
    let chunk = SnapshotFrame { header: None, chunk: vec![7; 100].into() }.encode_to_vec();
    let framed = |size| vec![header(size).encode_to_vec(), chunk.clone()];
    seeds.push(Seed::new("snapshot", stream(SNAPSHOT, &framed(100))));
    seeds.push(Seed::new("snapshot-endless", stream(SNAPSHOT, &framed(u64::MAX))));
    seeds
}

/// Short on the wire and long in memory: empty parts, many times.
fn bombs() -> Vec<(&'static str, Vec<GroupMessage>)> {
    const MANY: usize = 8_000;
    let message = |kind: MessageKind| GroupMessage { kind: kind.into(), ..GroupMessage::default() };
    let members = log::Membership {
        members: vec![log::Member::default(); MANY],
        ..log::Membership::default()
    };
    let required = log::Requirement { capabilities: vec![String::new(); MANY], soft: false };
    let requiring = log::Membership { requirement: Some(required), ..log::Membership::default() };
    let create_request = |membership: &log::Membership| {
        let labels = (0..1_000).map(|label| (format!("{label}"), String::new())).collect();
        let kind = String::new();
        Some(CreateRequest { membership: Some(membership.clone()), kind, labels })
    };
    let unapplied = vec![log::Membership::default(); MANY];
    let recovery = Some(Box::new(RecoveryAnswer { unapplied, ..RecoveryAnswer::default() }));
    vec![
        ("bomb-messages", vec![GroupMessage::default(); MANY]),
        (
            "bomb-entries",
            vec![GroupMessage {
                entries: vec![Entry::default(); MANY],
                ..message(MessageKind::Append)
            }],
        ),
        (
            "bomb-unapplied",
            vec![GroupMessage { recovery, ..message(MessageKind::RecoveryResponse) }],
        ),
        (
            "bomb-members",
            vec![GroupMessage {
                create_request: create_request(&members),
                ..message(MessageKind::CreateReplica)
            }],
        ),
        (
            "bomb-requirement",
            vec![GroupMessage {
                create_request: create_request(&requiring),
                ..message(MessageKind::Removed)
            }],
        ),
        (
            "bomb-declined",
            vec![GroupMessage { declined: vec![0; MANY], ..message(MessageKind::TransferAsk) }],
        ),
    ]
}

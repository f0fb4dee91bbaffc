//! Snapshots between hosts: whole or not at all, and every shipment ends in one report.

use std::io::{Read, Write};

use bytes::Bytes;
use shardhost_groups::transport::ShipmentOutcome::{self, Delivered, Failed};
use shardhost_groups::transport::{SnapshotShipment, Transport};
use shardhost_proto::log::LogPosition as WirePosition;
use shardhost_proto::peer::{
    GroupMessage, MessageKind, SnapshotFrame, SnapshotHeader, SnapshotMeta,
};
use shardhost_storage::{LogPosition, MemorySnapshots, SnapshotFault, SnapshotStore};
use tonic::Code;

use crate::fixture::{Cluster, GROUP, Host, REPLICA, Stranger, hello, node};

const CHUNK: usize = 4096;
const POSITION: LogPosition = LogPosition::new(3, 40);

fn snapshot_message() -> GroupMessage {
    let position = Some(WirePosition { term: 3, index: 40 });
    GroupMessage {
        group: GROUP.get(),
        from_replica: 1,
        to_replica: REPLICA.get(),
        kind: MessageKind::Snapshot.into(),
        snapshot: Some(SnapshotMeta { position, membership: None }),
        ..GroupMessage::default()
    }
}

fn shipment() -> SnapshotShipment {
    SnapshotShipment { to: node(2), position: POSITION, message: snapshot_message() }
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

fn keep(store: &MemorySnapshots, bytes: &[u8]) {
    let mut writer = store.create(GROUP, POSITION).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap();
}

fn kept(store: &MemorySnapshots) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.open(GROUP, POSITION).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn pair() -> (Host, Host) {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| config.snapshot.chunk_bytes = CHUNK);
    let two = Host::start(&cluster, 2, 1, |config| config.snapshot.receiving = 1);
    one.wait_connected(2);
    (one, two)
}

fn outcome_of_a_shipment(from: &Host) -> ShipmentOutcome {
    let before = from.recorder.read(|told| told.shipped.len());
    from.transport.send_snapshot(shipment());
    from.recorder.wait("a report", |told| told.shipped.len() > before);
    let (group, to, outcome) = from.recorder.read(|told| told.shipped[before]);
    assert_eq!((group, to), (GROUP, REPLICA));
    outcome
}

fn assert_nothing_arrived(at: &Host) {
    assert!(at.recorder.read(|told| told.arrived.is_empty()));
    assert_eq!(at.snapshots.list(GROUP).unwrap(), []);
}

#[test]
fn s5_snapshots_of_every_size_arrive_as_they_were() {
    let (one, two) = pair();
    let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK, 300 * CHUNK + 5];
    for (number, size) in sizes.into_iter().enumerate() {
        keep(&one.snapshots, &content(size));
        assert_eq!(outcome_of_a_shipment(&one), Delivered, "of {size} bytes");
        assert_eq!(kept(&two.snapshots), content(size));
        let arrived = two.recorder.read(|told| told.arrived.clone());
        assert_eq!(arrived.len(), number + 1);
        assert_eq!(arrived[number], (one.id, snapshot_message()));
    }
    assert_eq!(one.transport.stats().snapshots_sent, sizes.len() as u64);
    assert_eq!(two.transport.stats().snapshots_received, sizes.len() as u64);
}

#[test]
fn a_missing_or_damaged_snapshot_is_not_sent() {
    let (one, two) = pair();
    assert_eq!(outcome_of_a_shipment(&one), Failed);
    keep(&one.snapshots, &content(3 * CHUNK));
    assert!(one.snapshots.corrupt(GROUP, POSITION));
    assert_eq!(outcome_of_a_shipment(&one), Failed);
    assert_nothing_arrived(&two);
    assert_eq!(one.transport.stats().snapshots_failed, 2);
}

#[test]
fn an_unwanted_snapshot_is_refused_before_its_bytes_are_read() {
    let (one, two) = pair();
    two.recorder.refuse_snapshots();
    keep(&one.snapshots, &content(3 * CHUNK));
    assert_eq!(outcome_of_a_shipment(&one), Failed);
    assert_nothing_arrived(&two);
}

#[test]
fn a_receiver_without_space_fails_the_shipment_and_keeps_nothing() {
    let (one, two) = pair();
    keep(&one.snapshots, &content(100 * CHUNK));
    two.snapshots.inject(SnapshotFault::NoSpace);
    assert_eq!(outcome_of_a_shipment(&one), Failed);
    two.snapshots.heal();
    assert_nothing_arrived(&two);
    assert_eq!(outcome_of_a_shipment(&one), Delivered);
}

#[test]
fn s8_a_shipment_to_nobody_or_to_the_dead_fails() {
    let (one, two) = pair();
    keep(&one.snapshots, &content(CHUNK));
    two.kill();
    assert_eq!(outcome_of_a_shipment(&one), Failed);
    one.transport.send_snapshot(SnapshotShipment { to: node(9), ..shipment() });
    one.recorder.wait("both reports", |told| told.shipped.len() == 2);
    assert_eq!(one.recorder.read(|told| told.shipped[1].2), Failed);
}

#[test]
fn s8_more_shipments_than_may_wait_each_get_their_one_report() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.snapshot.sending = 1;
        config.snapshot.waiting = 2;
    });
    keep(&one.snapshots, &content(CHUNK));
    for _ in 0..50 {
        one.transport.send_snapshot(shipment());
    }
    one.recorder.wait("fifty reports", |told| told.shipped.len() == 50);
    one.shut_down();
    assert_eq!(one.recorder.read(|told| told.shipped.len()), 50);
}

/// A stream as node 1 sends it, for tests that spoil it.
fn frames(bytes: &[u8]) -> Vec<SnapshotFrame> {
    let header = SnapshotHeader {
        hello: Some(hello()),
        message: Some(snapshot_message()),
        size: bytes.len() as u64,
        crc: crc32fast::hash(bytes),
    };
    let header = SnapshotFrame { header: Some(header), chunk: Bytes::new() };
    let chunks = bytes
        .chunks(CHUNK)
        .map(|chunk| SnapshotFrame { header: None, chunk: Bytes::copy_from_slice(chunk) });
    std::iter::once(header).chain(chunks).collect()
}

fn host_that_knows_node_1() -> Host {
    let cluster = Cluster::new();
    cluster.directory.set(node(1), "127.0.0.1:1");
    Host::start(&cluster, 2, 1, |config| config.snapshot.receiving = 1)
}

#[test]
fn s5_a_stream_that_breaks_the_form_is_refused_and_leaves_nothing() {
    type Spoil = fn(&mut Vec<SnapshotFrame>);
    fn header(frames: &mut [SnapshotFrame]) -> &mut SnapshotHeader {
        frames[0].header.as_mut().unwrap()
    }
    let cases: [(&str, Spoil, Code); 11] = [
        ("early end", |f| f.truncate(2), Code::InvalidArgument),
        ("nothing at all", |f| f.clear(), Code::InvalidArgument),
        ("payload before header", |f| f.swap(0, 1), Code::InvalidArgument),
        ("payload beside header", |f| f[0].chunk = f[1].chunk.clone(), Code::InvalidArgument),
        ("double header", |f| f.insert(2, f[0].clone()), Code::InvalidArgument),
        ("too long", |f| f.push(f[1].clone()), Code::InvalidArgument),
        ("wrong checksum", |f| header(f).crc ^= 1, Code::DataLoss),
        ("no message", |f| header(f).message = None, Code::InvalidArgument),
        (
            "no position",
            |f| header(f).message.as_mut().unwrap().snapshot = None,
            Code::InvalidArgument,
        ),
        (
            "another cluster",
            |f| header(f).hello.as_mut().unwrap().cluster = "red".into(),
            Code::FailedPrecondition,
        ),
        ("no greeting", |f| header(f).hello = None, Code::InvalidArgument),
    ];
    let two = host_that_knows_node_1();
    for (name, spoil, code) in cases {
        let mut frames = frames(&content(3 * CHUNK));
        spoil(&mut frames);
        let status = Stranger::at(&two).snapshot(frames).unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status}");
        assert_nothing_arrived(&two);
    }
    assert_eq!(two.transport.stats().snapshots_refused, 11);
}

#[test]
fn s5_an_empty_chunk_changes_nothing() {
    let two = host_that_knows_node_1();
    let mut frames = frames(&content(2 * CHUNK));
    frames.insert(2, SnapshotFrame::default());
    let receipt = Stranger::at(&two).snapshot(frames).unwrap();
    assert_eq!(receipt.size, 2 * CHUNK as u64);
    assert_eq!(kept(&two.snapshots), content(2 * CHUNK));
}

#[test]
fn an_interrupted_snapshot_leaves_nothing_and_gives_its_turn_back() {
    let two = host_that_knows_node_1();
    let mut half = frames(&content(4 * CHUNK));
    half.truncate(3);
    let interrupted = Stranger::at(&two).begin_snapshot(half);
    // A stream that ends early tells by its refusal whether the turn was free.
    let refusal = |host: &Host| {
        let mut short = frames(&content(CHUNK));
        short.truncate(1);
        Stranger::at(host).snapshot(short).unwrap_err().code()
    };
    two.wait("the turn to be taken", |host| refusal(host) == Code::ResourceExhausted);
    interrupted.leave();
    two.wait("the turn to be free", |host| refusal(host) == Code::InvalidArgument);
    assert_nothing_arrived(&two);
    Stranger::at(&two).snapshot(frames(&content(4 * CHUNK))).unwrap();
    assert_eq!(kept(&two.snapshots), content(4 * CHUNK));
}

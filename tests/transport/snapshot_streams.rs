//! Streams of snapshots that break the form, break off, or meet each other at the receiver.

use bytes::Bytes;
use shardhost::transport::{SnapshotRefusal, TransportConfig};
use shardhost_proto::peer::{SnapshotFrame, SnapshotHeader};
use shardhost_storage::SnapshotStore;
use std::time::Duration;
use tonic::Code;

use crate::fixture::{Cluster, GROUP, Host, Stranger, hello, node};
use crate::snapshots::{CHUNK, assert_nothing_arrived, content, kept, refusals, snapshot_message};

fn header(bytes: &[u8]) -> SnapshotHeader {
    SnapshotHeader {
        hello: Some(hello()),
        message: Some(snapshot_message()),
        size: bytes.len() as u64,
        crc: crc32fast::hash(bytes),
    }
}

fn header_frame(header: SnapshotHeader) -> SnapshotFrame {
    SnapshotFrame { header: Some(header), chunk: Bytes::new() }
}

fn chunks(bytes: &[u8]) -> Vec<SnapshotFrame> {
    let frame = |chunk| SnapshotFrame { header: None, chunk: Bytes::copy_from_slice(chunk) };
    bytes.chunks(CHUNK).map(frame).collect()
}

/// A stream as node 1 sends it, for tests that spoil it.
fn frames(bytes: &[u8]) -> Vec<SnapshotFrame> {
    std::iter::once(header_frame(header(bytes))).chain(chunks(bytes)).collect()
}

/// Node 2, which knows nodes 1 and 3.
fn receiver() -> Host {
    receiver_with(|config| config.snapshot.receiving = 1)
}

fn receiver_with(change: impl FnOnce(&mut TransportConfig)) -> Host {
    let cluster = Cluster::new();
    cluster.directory.set(node(1), "127.0.0.1:1");
    cluster.directory.set(node(3), "127.0.0.1:1");
    Host::start(&cluster, 2, 1, change)
}

/// A stream of node 1 that brought two chunks and does not continue.
fn two_chunks(two: &Host, bytes: &[u8]) -> Stranger {
    let stranger = Stranger::at(two).begin_snapshot(header_frame(header(bytes)), |begins| {
        assert_eq!(begins, 0);
        chunks(&bytes[..2 * CHUNK])
    });
    let came = 2 * CHUNK as u64;
    two.wait("two chunks", |two| two.transport.stats().snapshot_bytes_received == came);
    stranger
}

/// The rest from node 1: where it was to begin, and how much is there at the end.
fn rest(two: &Host, bytes: &[u8]) -> (u64, u64) {
    let rest = |begins: usize| chunks(&bytes[begins..]);
    Stranger::at(two).finish_snapshot(header_frame(header(bytes)), rest).unwrap()
}

#[test]
fn s5_a_stream_that_breaks_the_form_is_refused_and_leaves_nothing() {
    type Spoil = fn(&mut Vec<SnapshotFrame>);
    fn header(frames: &mut [SnapshotFrame]) -> &mut SnapshotHeader {
        frames[0].header.as_mut().unwrap()
    }
    let cases: [(&str, Spoil, Code); 14] = [
        ("early end", |f| f.truncate(2), Code::InvalidArgument),
        ("nothing at all", |f| f.clear(), Code::InvalidArgument),
        ("payload before header", |f| f.swap(0, 1), Code::InvalidArgument),
        ("payload beside header", |f| f[0].chunk = f[1].chunk.clone(), Code::InvalidArgument),
        ("double header", |f| f.insert(2, f[0].clone()), Code::InvalidArgument),
        ("too long", |f| f.push(f[1].clone()), Code::InvalidArgument),
        ("more than nothing", |f| header(f).size = 0, Code::InvalidArgument),
        ("half of all memory", |f| header(f).size = 1 << 63, Code::ResourceExhausted),
        ("all of it", |f| header(f).size = u64::MAX, Code::ResourceExhausted),
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
    for (name, spoil, code) in cases {
        let two = receiver();
        let mut frames = frames(&content(3 * CHUNK));
        spoil(&mut frames);
        let status = Stranger::at(&two).snapshot(frames).unwrap_err();
        assert_eq!(status.code(), code, "{name}: {status}");
        assert_nothing_arrived(&two);
        assert_eq!(two.transport.stats().snapshots_refused, 1, "{name}");
    }
}

#[test]
fn s5_an_empty_chunk_changes_nothing() {
    let two = receiver();
    let mut frames = frames(&content(2 * CHUNK));
    frames.insert(2, SnapshotFrame::default());
    let receipt = Stranger::at(&two).snapshot(frames).unwrap();
    assert_eq!(receipt.size, 2 * CHUNK as u64);
    assert_eq!(kept(&two.snapshots), content(2 * CHUNK));
}

#[test]
fn an_interrupted_snapshot_gives_its_turn_back_and_goes_on_where_it_stopped() {
    let (two, bytes) = (receiver(), content(4 * CHUNK));
    let interrupted = two_chunks(&two, &bytes);
    assert_eq!(two.transport.stats().snapshots_receiving, 1);
    interrupted.leave();
    two.wait("the turn to be free", |two| two.transport.stats().snapshots_receiving == 0);
    assert_nothing_arrived(&two);
    assert_eq!(rest(&two, &bytes), (2 * CHUNK as u64, 4 * CHUNK as u64));
    assert_eq!(kept(&two.snapshots), bytes);
}

#[test]
fn one_too_many_is_told_to_come_again() {
    let (two, bytes) = (receiver(), content(4 * CHUNK));
    let _under_way = two_chunks(&two, &bytes);
    let mut other = frames(&bytes);
    other[0].header.as_mut().unwrap().message.as_mut().unwrap().group += 1;
    let status = Stranger::at(&two).snapshot(other).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(refusals(&two, SnapshotRefusal::Busy), 1);
}

#[test]
fn a_sender_that_begins_anew_takes_over_from_its_dead_stream() {
    let (two, bytes) = (receiver(), content(4 * CHUNK));
    let _half_open = two_chunks(&two, &bytes);
    assert_eq!(rest(&two, &bytes), (2 * CHUNK as u64, 4 * CHUNK as u64));
    assert_eq!(refusals(&two, SnapshotRefusal::Superseded), 1);
    assert_eq!(kept(&two.snapshots), bytes);
}

#[test]
fn e1_a_second_sender_cannot_interleave_with_the_first() {
    let two = receiver_with(|config| config.snapshot.receiving = 8);
    let bytes = content(4 * CHUNK);
    let _first = two_chunks(&two, &bytes);
    let mut second = frames(&bytes);
    second[0].header.as_mut().unwrap().hello.as_mut().unwrap().node = 3;
    let status = Stranger::at(&two).snapshot(second).unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(refusals(&two, SnapshotRefusal::Duplicate), 1);
    assert_eq!(rest(&two, &bytes).0, 2 * CHUNK as u64, "the first was not disturbed");
}

#[test]
fn a_sender_that_falls_silent_loses_its_turn_and_may_go_on_later() {
    let two = receiver_with(|config| {
        config.snapshot.receiving = 1;
        config.snapshot.stall_timeout = Duration::from_millis(200);
    });
    let bytes = content(4 * CHUNK);
    let _silent = two_chunks(&two, &bytes);
    two.wait("the timeout", |two| refusals(two, SnapshotRefusal::Stalled) == 1);
    assert_eq!(rest(&two, &bytes), (2 * CHUNK as u64, 4 * CHUNK as u64));
}

#[test]
fn a_snapshot_that_is_here_already_arrives_without_a_byte() {
    let (two, bytes) = (receiver(), content(4 * CHUNK));
    assert_eq!(rest(&two, &bytes), (0, 4 * CHUNK as u64));
    assert_eq!(rest(&two, &bytes), (4 * CHUNK as u64, 4 * CHUNK as u64));
    assert_eq!(two.transport.stats().snapshot_bytes_received, 4 * CHUNK as u64);
    assert_eq!(two.recorder.read(|told| told.arrived.len()), 2);
}

#[test]
fn another_snapshot_of_the_group_does_not_continue_the_first() {
    let (two, bytes) = (receiver(), content(4 * CHUNK));
    two_chunks(&two, &bytes).leave();
    two.wait("the turn to be free", |two| two.transport.stats().snapshots_receiving == 0);
    let mut other = bytes.clone();
    other[0] ^= 1;
    assert_eq!(rest(&two, &other), (0, 4 * CHUNK as u64));
    assert_eq!(kept(&two.snapshots), other);
    assert_eq!(two.snapshots.list(GROUP).unwrap().len(), 1);
}

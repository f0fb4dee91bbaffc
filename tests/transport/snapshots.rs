//! Snapshots between hosts: whole or not at all, and every shipment ends in one report.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use shardhost::transport::{ShipmentFailure, SnapshotRefusal};
use shardhost_groups::transport::ShipmentOutcome::{self, Delivered, Failed, Unusable};
use shardhost_groups::transport::{Lane, SnapshotShipment, Transport};
use shardhost_proto::log::LogPosition as WirePosition;
use shardhost_proto::peer::{GroupMessage, MessageKind, SnapshotMeta};
use shardhost_storage::{GroupId, LogPosition, MemorySnapshots, SnapshotFault, SnapshotStore};

use crate::fixture::{Cluster, GROUP, Host, Proxy, REPLICA, message, node};

pub const CHUNK: usize = 4096;
pub const POSITION: LogPosition = LogPosition::new(3, 40);

pub fn snapshot_message() -> GroupMessage {
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

/// A shipment of a snapshot of another group, or at another index.
fn shipment_of(group: GroupId, position: LogPosition) -> SnapshotShipment {
    let wire = WirePosition { term: position.term.get(), index: position.index.get() };
    let mut message = GroupMessage { group: group.get(), ..snapshot_message() };
    message.snapshot = Some(SnapshotMeta { position: Some(wire), membership: None });
    SnapshotShipment { to: node(2), position, message }
}

pub fn content(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place % 251) as u8).collect()
}

fn keep(store: &MemorySnapshots, bytes: &[u8]) {
    keep_at(store, GROUP, POSITION, bytes);
}

fn keep_at(store: &MemorySnapshots, group: GroupId, position: LogPosition, bytes: &[u8]) {
    let mut writer = store.create(group, position).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap();
}

pub fn kept(store: &MemorySnapshots) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.open(GROUP, POSITION).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn pair() -> (Host, Host) {
    pair_at_rate(0)
}

/// Two hosts; the first sends snapshots at this many bytes per second.
fn pair_at_rate(bytes_per_second: u64) -> (Host, Host) {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.snapshot.chunk_bytes = CHUNK;
        config.snapshot.bytes_per_second = bytes_per_second;
    });
    let two = Host::start(&cluster, 2, 1, |config| config.snapshot.receiving = 2);
    one.wait_connected(2);
    (one, two)
}

fn failures(host: &Host, cause: ShipmentFailure) -> u64 {
    host.transport.stats().shipment_failures.get(&cause).copied().unwrap_or_default()
}

pub fn refusals(host: &Host, cause: SnapshotRefusal) -> u64 {
    host.transport.stats().snapshot_refusals.get(&cause).copied().unwrap_or_default()
}

fn outcome_of_a_shipment(from: &Host) -> ShipmentOutcome {
    let before = from.recorder.read(|told| told.shipped.len());
    from.transport.send_snapshot(shipment());
    from.recorder.wait("a report", |told| told.shipped.len() > before);
    let (group, to, outcome) = from.recorder.read(|told| told.shipped[before]);
    assert_eq!((group, to), (GROUP, REPLICA));
    outcome
}

pub fn assert_nothing_arrived(at: &Host) {
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
fn a_missing_or_damaged_snapshot_is_not_delivered() {
    let (one, two) = pair();
    assert_eq!(outcome_of_a_shipment(&one), Unusable);
    assert_eq!(failures(&one, ShipmentFailure::Missing), 1);
    // Damage shows with the last chunk when that is a short one, and else behind it.
    for (number, size) in [3 * CHUNK, 3 * CHUNK + 1].into_iter().enumerate() {
        keep(&one.snapshots, &content(size));
        assert!(one.snapshots.corrupt(GROUP, POSITION));
        assert_eq!(outcome_of_a_shipment(&one), Unusable);
        assert_eq!(failures(&one, ShipmentFailure::Damaged), 1 + number as u64);
        assert_nothing_arrived(&two);
    }
    assert_eq!(one.transport.stats().snapshots_failed, 3);
    assert_eq!(refusals(&two, SnapshotRefusal::WrongChecksum), 1);
    assert_eq!(refusals(&two, SnapshotRefusal::WrongSize), 1);
}

#[test]
fn damaged_bytes_that_were_kept_cost_one_more_attempt() {
    let (one, two) = pair();
    keep(&one.snapshots, &content(3 * CHUNK + 1));
    assert!(one.snapshots.corrupt(GROUP, POSITION));
    assert_eq!(outcome_of_a_shipment(&one), Unusable);
    keep(&one.snapshots, &content(3 * CHUNK + 1));
    assert_eq!(outcome_of_a_shipment(&one), Failed, "goes on behind damaged bytes");
    assert_eq!(failures(&one, ShipmentFailure::Refused), 1, "the snapshot here is sound");
    assert_eq!(outcome_of_a_shipment(&one), Delivered);
    assert_eq!(kept(&two.snapshots), content(3 * CHUNK + 1));
}

#[test]
fn s6_an_unwanted_snapshot_is_refused_before_its_bytes_are_read() {
    let (one, two) = pair();
    two.recorder.refuse_snapshots();
    keep(&one.snapshots, &content(3 * CHUNK));
    assert_eq!(outcome_of_a_shipment(&one), Failed);
    assert_nothing_arrived(&two);
    assert_eq!(refusals(&two, SnapshotRefusal::Unwanted), 1);
    assert_eq!(failures(&one, ShipmentFailure::Refused), 1);
    assert_eq!(one.transport.stats().snapshot_bytes_sent, 0);
}

#[test]
fn s9_a_receiver_without_space_refuses_before_the_first_byte_until_there_is_some() {
    let (one, two) = pair();
    keep(&one.snapshots, &content(100 * CHUNK));
    for fault in [SnapshotFault::NoSpace, SnapshotFault::Capacity(99 * CHUNK as u64)] {
        two.snapshots.inject(fault);
        assert_eq!(outcome_of_a_shipment(&one), Failed);
        two.snapshots.heal();
        assert_nothing_arrived(&two);
    }
    assert_eq!(refusals(&two, SnapshotRefusal::NoSpace), 2);
    assert_eq!(two.transport.stats().snapshot_bytes_received, 0);
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
    assert_eq!(failures(&one, ShipmentFailure::Unreachable), 1);
    assert_eq!(failures(&one, ShipmentFailure::UnknownNode), 1);
}

#[test]
fn s8_more_shipments_than_may_wait_each_get_their_one_report() {
    let cluster = Cluster::new();
    let one = Host::start(&cluster, 1, 1, |config| {
        config.snapshot.sending = 1;
        config.snapshot.waiting = 2;
    });
    for group in (0..50).map(GroupId::new) {
        keep_at(&one.snapshots, group, POSITION, &content(CHUNK));
        one.transport.send_snapshot(shipment_of(group, POSITION));
    }
    one.recorder.wait("fifty reports", |told| told.shipped.len() == 50);
    one.shut_down();
    let reported = one.recorder.read(|told| told.shipped.clone());
    let groups: std::collections::BTreeSet<_> = reported.iter().map(|(group, ..)| *group).collect();
    assert_eq!((reported.len(), groups.len()), (50, 50));
    assert!(failures(&one, ShipmentFailure::TooMany) > 0);
    assert_eq!(one.transport.stats().snapshots_waiting, 0);
}

#[test]
fn e5_many_groups_that_need_a_snapshot_get_it_a_few_at_a_time() {
    const GROUPS: usize = 200;
    let (one, two) = pair();
    for group in (0..GROUPS as u64).map(GroupId::new) {
        keep_at(&one.snapshots, group, POSITION, &content(3 * CHUNK));
        one.transport.send_snapshot(shipment_of(group, POSITION));
    }
    let most = std::cell::Cell::new(0);
    two.wait("every snapshot", |two| {
        let stats = two.transport.stats();
        most.set(most.get().max(stats.snapshots_receiving));
        stats.snapshots_received == GROUPS as u64
    });
    assert!((1..=2).contains(&most.get()), "{} at once", most.get());
    one.recorder.wait("every report", |told| told.shipped.len() == GROUPS);
    assert!(one.recorder.read(|told| told.shipped.iter().all(|(.., how)| *how == Delivered)));
}

#[test]
fn s8_a_shutdown_reports_what_it_interrupts() {
    let (one, two) = pair_at_rate(64 << 10);
    keep(&one.snapshots, &content(1000 * CHUNK));
    one.transport.send_snapshot(shipment());
    two.wait("the first bytes", |two| two.transport.stats().snapshot_bytes_received > 0);
    one.shut_down();
    assert_eq!(one.recorder.read(|told| told.shipped.clone()), [(GROUP, REPLICA, Failed)]);
    assert_eq!(failures(&one, ShipmentFailure::Stopping), 1);
    assert_nothing_arrived(&two);
}

#[test]
fn a_later_shipment_to_the_same_replica_takes_over_and_reports_for_both() {
    let (one, two) = pair_at_rate(256 << 10);
    keep(&one.snapshots, &content(1000 * CHUNK));
    one.transport.send_snapshot(shipment());
    two.wait("the first bytes", |two| two.transport.stats().snapshot_bytes_received > 0);
    let later = LogPosition::new(3, 41);
    keep_at(&one.snapshots, GROUP, later, b"a later state");
    one.transport.send_snapshot(shipment_of(GROUP, later));
    one.recorder.wait("two reports", |told| told.shipped.len() == 2);
    let delivered = (GROUP, REPLICA, Delivered);
    assert_eq!(one.recorder.read(|told| told.shipped.clone()), [delivered, delivered]);
    assert_eq!(two.recorder.read(|told| told.arrived.len()), 1);
    assert_eq!(two.snapshots.list(GROUP).unwrap(), [later]);
}

#[test]
fn s7_snapshots_sent_at_the_same_time_share_one_rate() {
    let rate = 1 << 20;
    let (one, two) = pair_at_rate(rate as u64);
    let groups = [GroupId::new(1), GroupId::new(2)];
    let began = Instant::now();
    for group in groups {
        keep_at(&one.snapshots, group, POSITION, &content(rate / 2));
        one.transport.send_snapshot(shipment_of(group, POSITION));
    }
    two.recorder.wait("both snapshots", |told| told.arrived.len() == 2);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900), "a second's worth of bytes came in {took:?}");
}

#[test]
fn s7_a_snapshot_under_way_delays_no_message_to_the_same_peer() {
    let (one, two) = pair_at_rate(64 << 10);
    keep(&one.snapshots, &content(1000 * CHUNK));
    one.transport.send_snapshot(shipment());
    two.wait("the first bytes", |two| two.transport.stats().snapshot_bytes_received > 0);
    one.send((0..1000).map(|index| message(2, Lane::Bulk, index, 1000)).collect());
    two.recorder.wait("a thousand messages", |told| told.indexes(Lane::Bulk).len() == 1000);
    let sending = one.transport.stats();
    assert_eq!((sending.snapshots_sending, sending.snapshots_sent), (1, 0), "it takes a minute");
    assert_eq!(two.transport.stats().snapshots_receiving, 1);
}

/// Node 1, and node 2 behind a wire that breaks connections after so many bytes. Node 2 names the wire's end as
/// its address: node 1 would go around the wire otherwise, where a greeting comes before it was reached.
fn pair_over_a_breaking_wire(limit: usize, breaks: usize) -> (Host, Host, Proxy) {
    let cluster = Cluster::new();
    let proxy = Proxy::start(limit, breaks);
    let two = Host::start(&cluster, 2, 1, |config| config.address.clone_from(&proxy.address));
    proxy.leads_to(&two.address);
    cluster.directory.set(node(2), &proxy.address);
    let one = Host::start(&cluster, 1, 1, |config| {
        config.snapshot.chunk_bytes = CHUNK;
        // So slow that the receiver has what was sent before the wire breaks.
        config.snapshot.bytes_per_second = 8 << 20;
    });
    one.wait_connected(2);
    (one, two, proxy)
}

#[test]
fn a_snapshot_whose_connection_breaks_goes_on_where_it_broke() {
    let (size, limit) = (4 << 20, 1 << 20);
    let (one, two, proxy) = pair_over_a_breaking_wire(limit, 2);
    keep(&one.snapshots, &content(size));
    assert_eq!(outcome_of_a_shipment(&one), Delivered);
    assert!(kept(&two.snapshots) == content(size));
    assert_eq!(proxy.breaks_left(), 0);
    assert_eq!(one.transport.stats().snapshots_resumed, 2);
    // The next stream may come before it shows that the one before is dead.
    let broken = refusals(&two, SnapshotRefusal::Broken);
    let superseded = refusals(&two, SnapshotRefusal::Superseded);
    assert_eq!(broken + superseded, 2, "{:?}", two.transport.stats());
    assert_eq!(two.transport.stats().snapshot_bytes_received, size as u64, "no byte came twice");
    assert_eq!(two.recorder.read(|told| told.arrived.len()), 1);
}

#[test]
fn e13_a_snapshot_that_is_removed_while_it_is_sent_arrives_even_if_its_stream_breaks() {
    let (size, limit) = (4 << 20, 1 << 20);
    let (one, two, proxy) = pair_over_a_breaking_wire(limit, 1);
    keep(&one.snapshots, &content(size));
    one.transport.send_snapshot(shipment());
    two.wait("the first bytes", |two| two.transport.stats().snapshot_bytes_received > 0);
    one.snapshots.remove_below(GROUP, None).unwrap();
    one.recorder.wait("a report", |told| told.shipped == [(GROUP, REPLICA, Delivered)]);
    assert!(kept(&two.snapshots) == content(size));
    assert_eq!(proxy.breaks_left(), 0);
}

#[test]
fn streams_that_bring_the_receiver_no_further_are_given_up() {
    // Less than the header and a chunk: nothing ever arrives.
    let (one, two, proxy) = pair_over_a_breaking_wire(2048, usize::MAX);
    keep(&one.snapshots, &content(1 << 20));
    assert_eq!(outcome_of_a_shipment(&one), Failed);
    assert_nothing_arrived(&two);
    assert!(proxy.breaks_left() > usize::MAX - 10, "a few attempts at most");
}

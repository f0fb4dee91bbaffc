//! The network alone, between hosts that only write down what reaches them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use shardhost_proto::log;
use shardhost_proto::peer::{GroupMessage, MessageKind, SnapshotMeta};
use shardhost_storage::{
    GroupId, LogPosition, MemorySnapshots, NodeId, ReplicaId, SnapshotFault, SnapshotStore,
};

use super::{Fate, Network, Port, Trouble};
use shardhost_groups::transport::{
    Inbound, Lane, Outgoing, Recipient, ShipmentOutcome, SnapshotShipment, Transport,
};

const TIMEOUT: Duration = Duration::from_secs(20);
const GROUP: GroupId = GroupId::new(5);
const AT: LogPosition = LogPosition::new(3, 40);

/// Something that reached a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Message(u64),
    Arrived,
    Shipped(ShipmentOutcome),
    Live(u64, u64),
    Lost(u64),
    Unreachable(u64),
}

#[derive(Debug)]
struct Host {
    port: Arc<Port>,
    snapshots: MemorySnapshots,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    events: Mutex<Vec<Event>>,
    changed: Condvar,
}

impl Seen {
    fn note(&self, event: Event) {
        self.events.lock().push(event);
        self.changed.notify_all();
    }
}

impl Inbound for Seen {
    fn deliver(&self, _: NodeId, messages: Vec<GroupMessage>) -> usize {
        messages.iter().for_each(|message| self.note(Event::Message(message.index)));
        0
    }
    fn snapshot_arrived(&self, _: NodeId, _: GroupMessage) {
        self.note(Event::Arrived);
    }
    fn wants_snapshot(&self, _: GroupId, _: ReplicaId, position: LogPosition) -> Option<Recipient> {
        (position == AT).then(Recipient::endless)
    }
    fn snapshot_shipped(&self, _: GroupId, _: ReplicaId, outcome: ShipmentOutcome) {
        self.note(Event::Shipped(outcome));
    }
    fn peer_live(&self, node: NodeId, incarnation: u64) {
        self.note(Event::Live(node.get(), incarnation));
    }
    fn peer_lost(&self, node: NodeId) {
        self.note(Event::Lost(node.get()));
    }
    fn unreachable(&self, node: NodeId, _: Vec<(GroupId, ReplicaId)>) {
        self.note(Event::Unreachable(node.get()));
    }
}

impl Host {
    fn join(network: &Network, id: u64, incarnation: u64) -> Self {
        let port = network.port(node(id));
        let (snapshots, seen) = (MemorySnapshots::new(), Arc::new(Seen::default()));
        port.attach(Arc::clone(&seen) as _, Arc::new(snapshots.clone()), incarnation);
        Self { port, snapshots, seen }
    }

    fn send(&self, to: u64, lane: Lane, index: u64) {
        let message = GroupMessage { to_replica: to, index, ..GroupMessage::default() };
        self.port.send(vec![Outgoing { to: node(to), lane, message }]);
    }

    fn send_snapshot(&self, to: u64, position: LogPosition) {
        let wire = log::LogPosition { term: position.term.get(), index: position.index.get() };
        let message = GroupMessage {
            group: GROUP.get(),
            to_replica: to,
            kind: MessageKind::Snapshot.into(),
            snapshot: Some(SnapshotMeta { position: Some(wire), membership: None }),
            ..GroupMessage::default()
        };
        self.port.send_snapshot(SnapshotShipment { to: node(to), position, message });
    }

    fn keep_snapshot(&self) {
        let mut writer = self.snapshots.create(GROUP, AT).unwrap();
        std::io::Write::write_all(&mut writer, &[7; 200_000]).unwrap();
        writer.finish().unwrap();
    }

    fn messages(&self) -> Vec<u64> {
        let events = self.seen.events.lock();
        let messages = events.iter().filter_map(|event| match event {
            Event::Message(index) => Some(*index),
            _ => None,
        });
        messages.collect()
    }

    fn has(&self, event: Event) -> bool {
        self.seen.events.lock().contains(&event)
    }

    fn wait(&self, event: Event) {
        let deadline = Instant::now() + TIMEOUT;
        let mut events = self.seen.events.lock();
        while !events.contains(&event) {
            let late = self.seen.changed.wait_until(&mut events, deadline).timed_out();
            assert!(!late, "{event:?} never came: {events:?}");
        }
    }
}

fn node(id: u64) -> NodeId {
    NodeId::must(id)
}

/// Two hosts that know that the other lives.
fn pair() -> (Network, Host, Host) {
    let network = Network::new(1);
    let (one, two) = (Host::join(&network, 1, 10), Host::join(&network, 2, 20));
    one.wait(Event::Live(2, 20));
    two.wait(Event::Live(1, 10));
    (network, one, two)
}

#[test]
fn messages_of_a_lane_arrive_in_order_however_late() {
    let (network, one, two) = pair();
    network.trouble(Trouble::none().late_by(Duration::from_millis(3)));
    (1..=200).for_each(|index| one.send(2, Lane::Bulk, index));
    two.wait(Event::Message(200));
    assert_eq!(two.messages(), (1..=200).collect::<Vec<_>>());
    assert_eq!(network.stats().delivered, 200);
}

#[test]
fn a_cut_way_loses_messages_and_says_so_and_the_other_way_goes_on() {
    let (network, one, two) = pair();
    network.cut_one_way(node(1), node(2));
    one.send(2, Lane::Urgent, 1);
    one.wait(Event::Unreachable(2));
    two.wait(Event::Lost(1));
    two.send(1, Lane::Urgent, 2);
    one.wait(Event::Message(2));
    assert!(!one.has(Event::Lost(2)), "it hears the other one");
    network.heal_one_way(node(1), node(2));
    one.send(2, Lane::Urgent, 3);
    two.wait(Event::Message(3));
    assert_eq!(two.messages(), [3]);
}

#[test]
fn a_short_silence_is_no_loss() {
    let (network, one, two) = pair();
    network.lost_after(TIMEOUT);
    network.cut(node(1), node(2));
    network.heal();
    one.send(2, Lane::Bulk, 1);
    two.wait(Event::Message(1));
    assert!(!one.has(Event::Lost(2)) && !two.has(Event::Lost(1)));
}

#[test]
fn an_isolated_node_is_lost_to_all_and_they_to_it() {
    let (network, one, two) = pair();
    let three = Host::join(&network, 3, 30);
    three.wait(Event::Live(1, 10));
    network.isolate(node(1));
    one.wait(Event::Lost(2));
    one.wait(Event::Lost(3));
    two.wait(Event::Lost(1));
    assert!(!two.has(Event::Lost(3)));
}

#[test]
fn a_dead_port_sends_and_receives_nothing_and_the_next_life_is_told() {
    let (network, one, two) = pair();
    two.port.detach();
    one.wait(Event::Lost(2));
    let again = Host::join(&network, 2, 21);
    one.wait(Event::Live(2, 21));
    two.send(1, Lane::Bulk, 1);
    two.port.attach(Arc::clone(&two.seen) as _, Arc::new(MemorySnapshots::new()), 22);
    again.send(1, Lane::Bulk, 2);
    one.wait(Event::Message(2));
    one.send(2, Lane::Bulk, 3);
    again.wait(Event::Message(3));
    assert_eq!(one.messages(), [2]);
    assert_eq!(two.messages(), [0; 0]);
}

#[test]
fn a_new_port_ends_the_life_of_the_old_one() {
    let (network, one, two) = pair();
    let again = Host::join(&network, 2, 21);
    one.wait(Event::Live(2, 21));
    two.send(1, Lane::Bulk, 1);
    again.send(1, Lane::Bulk, 2);
    one.wait(Event::Message(2));
    assert_eq!(one.messages(), [2]);
}

#[test]
fn a_tap_loses_holds_and_lets_go() {
    let (network, one, two) = pair();
    let tap = network.tap(|envelope| match envelope.message.index {
        1..=3 => Fate::Hold,
        4 => Fate::Lose,
        _ => Fate::Deliver,
    });
    (1..=5).for_each(|index| one.send(2, Lane::Bulk, index));
    two.wait(Event::Message(5));
    assert!(tap.wait_held(3, TIMEOUT));
    assert_eq!(two.messages(), [5]);
    tap.release();
    two.wait(Event::Message(3));
    assert_eq!(two.messages(), [5, 1, 2, 3]);
    let tap = network.tap(|_| Fate::Hold);
    one.send(2, Lane::Bulk, 6);
    assert!(!tap.wait_held(2, Duration::from_millis(1)));
    drop(tap);
    one.send(2, Lane::Bulk, 7);
    two.wait(Event::Message(7));
    assert!(!two.has(Event::Message(6)), "a dropped tap loses what it holds");
}

#[test]
fn chance_loses_about_as_many_as_it_should() {
    let (network, one, two) = pair();
    network.trouble(Trouble::none().lose(250));
    (1..=2_000).for_each(|index| one.send(2, Lane::Bulk, index));
    network.trouble(Trouble::none());
    one.send(2, Lane::Bulk, 2_001);
    two.wait(Event::Message(2_001));
    let came = two.messages().len();
    assert!((1_300..1_700).contains(&came), "{came} of 2,000 came");
}

#[test]
fn a_slow_bulk_lane_does_not_delay_the_urgent_one() {
    let (network, one, two) = pair();
    network.trouble(Trouble::none().bulk_bytes_per_second(1));
    (1..=10).for_each(|index| one.send(2, Lane::Bulk, index));
    one.send(2, Lane::Urgent, 100);
    two.wait(Event::Message(100));
    assert!(!two.has(Event::Message(10)));
}

#[test]
fn a_full_lane_refuses_and_reports() {
    let (network, one, two) = pair();
    network.trouble(Trouble::none().bulk_bytes_per_second(1));
    (1..=20_000).for_each(|index| one.send(2, Lane::Bulk, index));
    one.wait(Event::Unreachable(2));
    assert!(network.stats().refused >= 1_000, "{:?}", network.stats());
    one.send(2, Lane::Urgent, 30_000);
    two.wait(Event::Message(30_000));
}

#[test]
fn a_snapshot_is_copied_and_both_ends_are_told() {
    let (_network, one, two) = pair();
    one.keep_snapshot();
    one.send_snapshot(2, AT);
    two.wait(Event::Arrived);
    one.wait(Event::Shipped(ShipmentOutcome::Delivered));
    assert_eq!(two.snapshots.open(GROUP, AT).unwrap().size(), 200_000);
}

#[test]
fn a_shipment_fails_when_it_cannot_arrive_or_is_not_wanted() {
    use ShipmentOutcome::{Failed, Unusable};
    type Cause = fn(&Network, &Host, &Host);
    let troubles: [(&str, ShipmentOutcome, Cause); 5] = [
        ("a cut link", Failed, |network, _, _| network.cut_one_way(node(1), node(2))),
        ("a dead receiver", Failed, |_, _, two| two.port.detach()),
        ("a full disk", Failed, |_, _, two| two.snapshots.inject(SnapshotFault::NoSpace)),
        ("damage", Unusable, |_, one, _| assert!(one.snapshots.corrupt(GROUP, AT))),
        ("a tap", Failed, |network, _, _| std::mem::forget(network.tap(|_| Fate::Lose))),
    ];
    for (trouble, outcome, cause) in troubles {
        let (network, one, two) = pair();
        one.keep_snapshot();
        cause(&network, &one, &two);
        one.send_snapshot(2, AT);
        one.wait(Event::Shipped(outcome));
        assert!(!two.has(Event::Arrived), "{trouble}");
    }
    let (_network, one, two) = pair();
    one.send_snapshot(2, AT);
    one.wait(Event::Shipped(Unusable));
    one.send_snapshot(2, LogPosition::new(1, 1));
    one.wait(Event::Shipped(Failed));
    assert!(!two.has(Event::Arrived), "nobody wants it");
}

#[test]
fn a_held_shipment_goes_its_way_when_it_is_let_go_and_fails_when_it_is_dropped() {
    let (network, one, two) = pair();
    one.keep_snapshot();
    let tap = network.tap(|envelope| match envelope.kind() {
        MessageKind::Snapshot => Fate::Hold,
        _ => Fate::Deliver,
    });
    one.send_snapshot(2, AT);
    assert!(tap.wait_held(1, TIMEOUT));
    one.send(2, Lane::Bulk, 1);
    two.wait(Event::Message(1));
    tap.release();
    two.wait(Event::Arrived);
    one.wait(Event::Shipped(ShipmentOutcome::Delivered));
    let tap = network.tap(|_| Fate::Hold);
    one.send_snapshot(2, AT);
    assert!(tap.wait_held(1, TIMEOUT));
    drop(tap);
    one.wait(Event::Shipped(ShipmentOutcome::Failed));
}

#[test]
fn the_threads_end_with_the_last_handle() {
    let (network, one, _two) = pair();
    let clone = network.clone();
    drop(network);
    clone.cut(node(1), node(2));
    one.wait(Event::Lost(2));
    drop(clone);
    one.send(2, Lane::Bulk, 1);
}

//! Late work that was ordered by one replica of a group leaves the next one alone.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use shardhost_groups::storage::{MemorySnapshots, MemoryStore, SnapshotStore};
use shardhost_groups::transport::{Outgoing, SnapshotShipment, Transport};
use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupId, GroupSpec, Groups, GroupsBuilder, GroupsConfig,
    LogPosition, NodeId, SnapshotWriter, StateMachine,
};

const SOON: Duration = Duration::from_secs(20);
const OURS: GroupId = GroupId::new(7);
const OTHER: GroupId = GroupId::new(8);

#[derive(Debug)]
struct Alone;
impl Transport for Alone {
    fn send(&self, _: Vec<Outgoing>) {}
    fn send_snapshot(&self, _: SnapshotShipment) {}
}

/// Holds the next view that is written, from the moment it says so until the gate is dropped.
type Trap = Arc<Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>>;

fn set(trap: &Trap) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((reached, is_reached), (go, gate)) = (mpsc::channel(), mpsc::channel());
    *trap.lock().unwrap() = Some((reached, gate));
    (is_reached, go)
}

/// A machine without a state, whose views can be held up.
struct Machine(Trap, LogPosition);

impl StateMachine for Machine {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(None)
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.1 = batch.last();
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View(Arc::clone(&self.0))))
    }
    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Ok(())
    }
}

struct View(Trap);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        let trap = self.0.lock().unwrap().take();
        if let Some((reached, gate)) = trap {
            reached.send(()).ok();
            gate.recv().ok();
        }
        sink.write_all(b"state")
    }
}

struct Host {
    groups: Groups,
    snapshots: MemorySnapshots,
}

impl Host {
    fn start() -> Self {
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.tick = Duration::from_millis(2);
        let snapshots = MemorySnapshots::new();
        let store = Arc::new(MemoryStore::new());
        let built = GroupsBuilder::new(config);
        let groups = built.start(store, Arc::new(snapshots.clone()), Arc::new(Alone)).unwrap();
        Self { groups, snapshots }
    }

    async fn create(&self, id: GroupId, generation: u32) -> (Group, Trap) {
        let spec = GroupSpec::new(id, [NodeId::must(1)]).incarnation(generation);
        let trap = Trap::default();
        let machine = Box::new(Machine(Arc::clone(&trap), LogPosition::default()));
        let group = self.groups.create(spec, machine).unwrap();
        group.wait_for(|status| status.serving, SOON).await.unwrap();
        group.propose("one").await.unwrap();
        (group, trap)
    }

    /// Puts a snapshot into the store, as one that was received.
    fn receive(&self, id: GroupId, position: LogPosition) {
        let mut file = self.snapshots.create(id, position).unwrap();
        file.write_all(b"received").unwrap();
        file.finish().unwrap();
    }
}

/// Takes a snapshot on a task of its own.
fn snapshot(group: &Group) -> tokio::task::JoinHandle<LogPosition> {
    let group = group.clone();
    tokio::spawn(async move { group.snapshot().await.unwrap() })
}

/// The snapshot thread is late with a prune; meanwhile the group was destroyed, created again, and
/// restored from a received snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_prune_leaves_the_snapshot_of_the_next_life() {
    let host = Host::start();
    let (ours, our_trap) = host.create(OURS, 0).await;
    let (other, other_trap) = host.create(OTHER, 0).await;
    let first = ours.snapshot().await.unwrap();
    ours.propose("two").await.unwrap();

    // The thread writes our second snapshot, then it is held up with the other group's, and the
    // prune of our first one stands behind that.
    let (is_reached, go_on) = set(&our_trap);
    let second = snapshot(&ours);
    is_reached.recv_timeout(SOON).unwrap();
    let (is_held, release) = set(&other_trap);
    let held = snapshot(&other);
    drop(go_on);
    let second = second.await.unwrap();
    is_held.recv_timeout(SOON).unwrap();
    assert!(first < second);

    tokio::time::timeout(SOON, host.groups.destroy(OURS)).await.expect("waits for nobody").unwrap();
    assert_eq!(host.snapshots.list(OURS).unwrap(), [], "they go with the replica");
    host.create(OURS, 1).await;
    let received = LogPosition::new(1, 1);
    host.receive(OURS, received);

    drop(release);
    held.await.unwrap();
    // Behind everything that waited.
    other.propose("more").await.unwrap();
    other.snapshot().await.unwrap();
    assert_eq!(host.snapshots.list(OURS).unwrap(), [received], "the prune was for another life");
    host.groups.shutdown();
}

/// A snapshot that is still being written when its replica is destroyed never becomes visible.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_being_written_ends_with_its_replica() {
    let host = Host::start();
    let (ours, trap) = host.create(OURS, 0).await;
    let (is_reached, go_on) = set(&trap);
    let asked = ours.clone();
    let asked = tokio::spawn(async move { asked.snapshot().await });
    is_reached.recv_timeout(SOON).unwrap();
    tokio::time::timeout(SOON, host.groups.destroy(OURS)).await.expect("waits for nobody").unwrap();
    host.create(OURS, 1).await;
    drop(go_on);
    asked.await.unwrap().unwrap_err();
    let (other, _) = host.create(OTHER, 0).await;
    other.snapshot().await.unwrap();
    assert_eq!(host.snapshots.list(OURS).unwrap(), []);
    assert_eq!(host.groups.stats().snapshot_failures, 0, "nothing failed");
    host.groups.shutdown();
}

//! A replica whose machine must be restored first, on a disk that is full.

use std::io::{Read, Write};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use shardhost_storage::{
    GroupMeta, GroupWrite, HardState, LogBatch, LogIndex, LogStore, Membership, MemorySnapshots,
    MemoryStore, NodeId, ReplicaId, SnapshotStore, Term,
};

use super::*;
use crate::error::QueryError;
use crate::machine::SnapshotWriter;
use crate::runtime::GroupsBuilder;
use crate::testing::alone::Alone;
use crate::{GroupsConfig, ReadMode};

const GROUP: GroupId = GroupId::new(7);
const AT: LogPosition = LogPosition::new(1, 9);
const DEADLINE: Duration = Duration::from_secs(20);

/// Holds nothing before it is restored, and a full disk keeps it from that.
struct Register {
    value: Bytes,
    full: Arc<AtomicBool>,
    replayed: Arc<AtomicBool>,
    /// Each restore comes here twice: as it begins, and before it ends.
    gate: Option<Arc<Barrier>>,
}

impl StateMachine for Register {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(None)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        for command in batch.commands() {
            self.value = command.data().clone();
        }
        Ok(())
    }

    fn query(&self, _: &Bytes) -> Result<Bytes, QueryError> {
        Ok(self.value.clone())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("none"))
    }

    fn is_partly_volatile(&self) -> bool {
        true
    }

    fn is_volatile(&self, command: &Bytes) -> bool {
        command == "volatile"
    }

    fn replay(&mut self, _: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        assert_eq!(self.value, "kept", "after the restore");
        self.replayed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn restore(&mut self, _: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        if self.full.load(Ordering::Relaxed) {
            return Err(ApplyFault::passing("the disk is full"));
        }
        if let Some(gate) = &self.gate {
            gate.wait();
            gate.wait();
        }
        let mut value = Vec::new();
        source.read_to_end(&mut value).map_err(ApplyFault::new)?;
        self.value = value.into();
        Ok(())
    }
}

/// A host whose log begins behind entry 8, with a snapshot at 9 and one more entry.
fn host(members: &[u64]) -> Groups {
    let (store, snapshots) = (MemoryStore::new(), MemorySnapshots::new());
    let mut snapshot = snapshots.create(GROUP, AT).unwrap();
    snapshot.write_all(b"kept").unwrap();
    snapshot.finish().unwrap();
    let mut write = GroupWrite::new(GROUP);
    write.meta = Some(GroupMeta {
        group: GROUP,
        replica: ReplicaId::must(1),
        membership: Membership::initial(members.iter().map(|node| NodeId::must(*node))),
        snapshot: Some(AT),
        labels: Default::default(),
        kind: String::new(),
        skipping: None,
    });
    write.hard_state = Some(HardState { term: Term::new(1), vote: None, commit: LogIndex::new(9) });
    write.reset = Some(LogPosition::new(1, 8));
    let entry = |index, data: &'static [u8]| shardhost_storage::Entry {
        term: Term::new(1),
        index: LogIndex::new(index),
        kind: EntryKind::Command,
        data: Bytes::from_static(data),
        context: Bytes::new(),
    };
    write.entries = vec![entry(9, b"volatile"), entry(10, b"last")];
    store.write(&LogBatch { writes: vec![write] }).unwrap();
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.tick = Duration::from_millis(2);
    let (store, snapshots) = (Arc::new(store), Arc::new(snapshots));
    GroupsBuilder::new(config).start(store, snapshots, Arc::new(Alone)).unwrap()
}

/// Opens the replica while the disk is full.
fn open(groups: &Groups) -> (Group, Arc<AtomicBool>, Arc<AtomicBool>) {
    let (full, replayed) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicBool>::default());
    let value = Bytes::new();
    let (full, replayed) = (Arc::clone(&full), Arc::clone(&replayed));
    let machine =
        Register { value, full: Arc::clone(&full), replayed: Arc::clone(&replayed), gate: None };
    (groups.open(GROUP, Box::new(machine)).unwrap(), full, replayed)
}

#[tokio::test]
async fn a_restore_that_a_full_disk_refused_is_tried_again_and_nothing_is_lost() {
    let groups = host(&[1, 2, 3]);
    let (group, full, replayed) = open(&groups);
    let told = group.wait_for(|status| status.stalled.is_some(), DEADLINE).await.unwrap();
    assert!(told.stalled.as_ref().unwrap().contains("the disk is full"), "{told:?}");
    let refused = group.query(ReadMode::Stale, "").await.unwrap_err();
    assert!(refused.to_string().contains("lost or being replaced"), "{refused}");

    full.store(false, Ordering::Relaxed);
    group.wait_for(|status| status.stalled.is_none(), DEADLINE).await.expect("it is restored");
    assert_eq!(group.query(ReadMode::Stale, "").await.unwrap(), "kept");
    assert!(replayed.load(Ordering::Relaxed), "what it held in memory is back");
    groups.shutdown();
}

#[tokio::test]
async fn the_only_replica_waits_for_room_as_well() {
    let groups = host(&[1]);
    let (group, full, _) = open(&groups);
    group.wait_for(|status| status.stalled.is_some(), DEADLINE).await.unwrap();
    full.store(false, Ordering::Relaxed);
    group.wait_for(|status| status.serving, DEADLINE).await.expect("it serves");
    assert_eq!(group.query(ReadMode::Linearizable, "").await.unwrap(), "last");
    groups.shutdown();
}

/// A second machine beside the one that is restored would see, or take for leftovers, what that wrote.
#[tokio::test]
async fn nobody_looks_at_the_state_of_a_replica_that_is_being_opened() {
    let groups = host(&[1, 2, 3]);
    let gate = Arc::new(Barrier::new(2));
    let machine = Register {
        value: Bytes::new(),
        full: Arc::default(),
        replayed: Arc::default(),
        gate: Some(Arc::clone(&gate)),
    };
    let opening = std::thread::spawn({
        let groups = groups.clone();
        move || groups.open_with(GROUP, Box::new(move || Ok(Box::new(machine))))
    });
    gate.wait();
    let second = || -> MachineFactory { Box::new(|| panic!("a second machine")) };
    let looked = groups.applied_of_closed(GROUP, second());
    gate.wait();
    let busy = OpenGroupError::Busy { group: GROUP, step: GroupStep::Opening };
    assert_eq!(looked.unwrap_err(), busy);
    drop(opening.join().unwrap().unwrap());
    let looked = groups.applied_of_closed(GROUP, second());
    assert_eq!(looked.unwrap_err(), OpenGroupError::AlreadyOpen { group: GROUP });

    assert!(groups.close(GROUP).await);
    let factory =
        || -> MachineFactory { Box::new(|| Ok(Box::new(crate::testing::alone::Stateless))) };
    // The machine has nothing; the snapshot on the disk shows what was applied.
    assert_eq!(groups.applied_of_closed(GROUP, factory()), Ok(Some(AT)));
    groups.open_with(GROUP, factory()).expect("a look opens nothing and holds nothing");
    groups.shutdown();
}

//! The disks of a simulated node, and the opening of a replica from them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use shardhost_groups::apply::{Applier, ApplyReport, Summed, restore_machine, sum_of};
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::{GroupCore, Opened, Prune, ReplicaStart};
use shardhost_groups::policy::Policies;
use shardhost_groups::worker::GroupEvent;
use shardhost_groups::{
    GroupId, LogIndex, LogPosition, Membership, NodeId, SnapshotWriter, StateMachine, Term,
};
use shardhost_storage::{
    GroupMeta, GroupWrite, HardState, LogBatch, LogStore, MemorySnapshots, MemoryStore,
    SnapshotError, SnapshotStore,
};

use super::machine::{Command, ListMachine, MachineDisk};

/// What outlives the process of a node: its log, its snapshots, and what its state machines keep.
#[derive(Debug, Default)]
pub struct Disks<C> {
    pub store: MemoryStore,
    pub snapshots: MemorySnapshots,
    pub machines: BTreeMap<GroupId, Arc<Mutex<MachineDisk<C>>>>,
}

/// A replica that was opened.
#[derive(Debug)]
pub struct OpenedReplica {
    pub core: GroupCore,
    pub applier: Applier,
    /// The position of its state.
    pub applied: LogPosition,
}

impl<C: Command> Disks<C> {
    #[must_use]
    pub fn new() -> Self {
        Self {
            store: MemoryStore::new(),
            snapshots: MemorySnapshots::new(),
            machines: BTreeMap::new(),
        }
    }

    /// Writes the first state of a replica, as its creation does. False: the node is no member, or
    /// held that replica before.
    ///
    /// # Panics
    /// The store refuses the write.
    pub fn create(
        &mut self,
        group: GroupId,
        node: NodeId,
        membership: &Membership,
        keeps: bool,
    ) -> bool {
        let Some(replica) = membership.replica_on(node) else { return false };
        if self.store.tombstone(group).unwrap().is_some_and(|buried| buried >= replica) {
            return false;
        }
        let mut write = GroupWrite::new(group);
        write.meta = Some(GroupMeta {
            group,
            replica,
            membership: membership.clone(),
            snapshot: None,
            labels: BTreeMap::new(),
            kind: String::new(),
            skipping: None,
        });
        write.hard_state =
            Some(HardState { term: Term::new(1), vote: None, commit: LogIndex::new(0) });
        write.reset = Some(LogPosition::default());
        self.store.write(&LogBatch { writes: vec![write] }).unwrap();
        self.empty_machine(group, keeps);
        true
    }

    /// Gives a state machine an empty disk.
    pub fn empty_machine(&mut self, group: GroupId, keeps: bool) {
        self.machines.insert(group, Arc::new(Mutex::new(MachineDisk::new(keeps))));
    }

    /// The process dies. Of the writes that were not synced, `keep` survive.
    ///
    /// # Panics
    /// A machine panicked while it held its disk.
    pub fn crash(&mut self, keep: usize) {
        self.store.crash(keep);
        self.snapshots.crash();
        self.machines.values().for_each(|disk| disk.lock().unwrap().crash());
    }

    /// State machines that keep themselves write what they hold.
    ///
    /// # Panics
    /// A machine panicked while it held its disk.
    pub fn flush(&self) {
        self.machines.values().for_each(|disk| disk.lock().unwrap().flush());
    }

    /// Removes what a state machine keeps, and its snapshots.
    ///
    /// # Errors
    /// The snapshots cannot be removed.
    pub fn lose_state(&mut self, group: GroupId, keeps: bool) -> Result<(), SnapshotError> {
        self.empty_machine(group, keeps);
        self.snapshots.remove_below(group, None)
    }

    /// Opens a replica from what is here.
    ///
    /// # Errors
    /// The replica cannot be opened: the text says why.
    pub fn open(
        &self,
        config: &Arc<GroupsConfig>,
        group: GroupId,
        open_id: u64,
        policies: &Policies,
    ) -> Result<OpenedReplica, String> {
        let persisted = self.store.load(group).map_err(text)?;
        let persisted = persisted.ok_or("the group vanished")?;
        let disk = self.machines.get(&group).ok_or("there is no disk of a state machine")?;
        let mut machine = ListMachine { disk: Arc::clone(disk) };
        let stands = machine.applied().map_err(text)?;
        let mut lost = false;
        let applied = match Opened::decide(&persisted, stands).map_err(text)? {
            Opened::Continue(at) => at,
            Opened::Lost(at) => {
                lost = true;
                at
            }
            Opened::Restore(at) => {
                let restored = restore_machine(&mut machine, &self.snapshots, group, at);
                lost = restored.is_err() && persisted.meta.membership.members.len() > 1;
                match lost {
                    true => persisted.base,
                    false => restored.map(|()| at).map_err(text)?,
                }
            }
        };
        let durable = machine.durable_index();
        let policies = policies.clone();
        let start = ReplicaStart { persisted, applied, durable, lost, open_id, policies };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let store = Arc::new(self.store.clone());
        let core = GroupCore::open(Arc::clone(config), store, &logger, start).map_err(text)?;
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(self.snapshots.clone());
        let applier = Applier::new(group, Box::new(machine), snapshots, applied);
        let applier = if lost { applier.lost() } else { applier };
        Ok(OpenedReplica { core, applier, applied })
    }

    /// Removes old snapshots, unless the replica that ordered it is another one than `running`.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn prune(&self, prune: &Prune, running: Option<u64>) -> Result<(), SnapshotError> {
        match running == Some(prune.open_id) {
            true => self.snapshots.remove_below(prune.group, Some(prune.keep)),
            false => Ok(()),
        }
    }

    /// Writes a snapshot of a state machine.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_snapshot(
        &self,
        group: GroupId,
        position: LogPosition,
        view: Box<dyn SnapshotWriter>,
    ) -> Result<(), SnapshotError> {
        let mut sink = self.snapshots.create(group, position)?;
        view.write_to(&mut sink).map_err(|error| SnapshotError::Io {
            group,
            action: "writing the state",
            message: error.to_string(),
        })?;
        sink.finish().map(|_| ())
    }

    /// Copies a snapshot to another node. False: it cannot be read, as when another one replaced it.
    ///
    /// # Errors
    /// It cannot be written there.
    pub fn copy_snapshot(
        &self,
        to: &Self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<bool, String> {
        let Ok(mut source) = self.snapshots.open(group, position) else { return Ok(false) };
        let mut sink = to.snapshots.create(group, position).map_err(text)?;
        std::io::copy(&mut source, &mut sink).map_err(text)?;
        sink.finish().map_err(text)?;
        Ok(true)
    }

    /// The event that a worker gets for work that a state machine did. `None`: none.
    ///
    /// # Errors
    /// The machine gave no view, it cannot be written, or the machine stalls, which the caller sees to.
    pub fn event_of(
        &self,
        group: GroupId,
        report: ApplyReport,
    ) -> Result<Option<GroupEvent>, String> {
        Ok(Some(match report {
            ApplyReport::Applied { last, durable } => GroupEvent::Applied { last, durable },
            ApplyReport::Restored { position, durable } => {
                GroupEvent::Restored { position, durable }
            }
            ApplyReport::Durable(durable) => GroupEvent::Durable(durable),
            ApplyReport::Failed(fault) => GroupEvent::Failed(fault),
            ApplyReport::SnapshotTaken { position, view } => {
                self.keep_snapshot(group, position, view.map_err(text)?).map_err(text)?;
                GroupEvent::SnapshotMade(Some(position))
            }
            ApplyReport::CheckTaken { position, view } => {
                let summed = match view.map_err(text)? {
                    None => Summed::Unsupported,
                    Some(view) => Summed::Sum(sum_of(view, &mut |_| Ok(())).map_err(text)?),
                };
                GroupEvent::Summed { position, summed }
            }
            ApplyReport::Stalled { fault, .. } => return Err(format!("it stalls: {fault}")),
            ApplyReport::Removed | ApplyReport::Nothing => return Ok(None),
        }))
    }
}

impl<C: Command> Disks<C> {
    /// A copy of what is durable, without snapshots, as a copy of the data directory is.
    ///
    /// # Panics
    /// A machine panicked while it held its disk.
    #[must_use]
    pub fn copy_of_durable(&self) -> Self {
        let copy = |disk: &Arc<Mutex<MachineDisk<C>>>| {
            let copied = disk.lock().unwrap().copy();
            Arc::new(Mutex::new(copied))
        };
        Self {
            store: self.store.copy_of_durable(),
            snapshots: self.snapshots.clone(),
            machines: self.machines.iter().map(|(group, disk)| (*group, copy(disk))).collect(),
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

//! One simulated process: a worker, its disks, its state machines, and what waits there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use shardhost_groups::apply::{Applier, ApplyWork};
use shardhost_groups::clock::Moment;
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::{LeaseSign, LogTask, Prune};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::{AdmissionRequest, Policies, PolicyGuard};
use shardhost_groups::storage::{LogStore, SnapshotStore};
use shardhost_groups::worker::{Input, WorkerCore};
use shardhost_groups::{GroupId, GroupStatus, LogIndex, Membership, NodeId};
use shardhost_testing::simulation::{Disks, OpenedReplica};

use crate::world::text::Text;

/// A replica's machine and the work that waits for it.
pub struct Machine {
    pub open_id: u64,
    pub applier: Applier,
    pub work: VecDeque<ApplyWork>,
    /// The last index that the trace said to be applied.
    pub told: LogIndex,
}

/// What dies with the process.
pub struct Process {
    pub core: WorkerCore,
    pub machines: BTreeMap<GroupId, Machine>,
    /// Rounds that wait for the log writer.
    pub to_write: VecDeque<LogTask>,
    /// Written, and not synced yet.
    pub written: Vec<LogTask>,
    /// Leaderships that policies are asked about.
    pub admissions: VecDeque<AdmissionRequest>,
    /// The last line of the trace about each group.
    pub told: BTreeMap<GroupId, Arc<GroupStatus>>,
    /// What each group last published of its lease.
    pub leases: BTreeMap<GroupId, LeaseSign>,
    /// How long groups stood still for transfers.
    pub froze: Vec<Duration>,
}

impl Process {
    pub fn has_writes(&self) -> bool {
        !self.to_write.is_empty() || !self.written.is_empty()
    }

    pub fn has_work(&self) -> bool {
        self.machines.values().any(|machine| !machine.work.is_empty())
    }
}

/// A part of a node that can stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Disk,
    Machine,
    Worker,
    Policies,
}

/// A node: a process that comes and goes, and disks that stay.
pub struct Node {
    pub id: NodeId,
    pub life: u64,
    pub disks: Disks<Text>,
    /// A copy of the data directory.
    copy: Option<Disks<Text>>,
    pub process: Option<Process>,
    pub stalled: BTreeSet<Part>,
    /// The clock of leases, in nanoseconds. Every node has its own.
    pub clock: u64,
    /// Whether machines keep themselves on disk.
    pub keeps: bool,
    /// What it says of itself.
    pub advertisement: Advertisement,
    pub policies: Policies,
    /// Policies that a script registered.
    pub guards: Vec<PolicyGuard>,
}

impl Node {
    pub fn new(id: NodeId, keeps: bool) -> Self {
        Self {
            id,
            life: 0,
            disks: Disks::new(),
            copy: None,
            process: None,
            stalled: BTreeSet::new(),
            clock: 1_000_000_000,
            keeps,
            advertisement: Advertisement::default(),
            policies: Policies::new(),
            guards: Vec::new(),
        }
    }

    /// Lays the first state of a replica on the disk, as its creation does. False when this node
    /// is no member, holds a replica, or held that one before.
    pub fn create(&mut self, group: GroupId, membership: &Membership) -> bool {
        !self.disks.machines.contains_key(&group)
            && self.disks.create(group, self.id, membership, self.keeps)
    }

    /// The process dies. Of the writes that were not synced, `keep` survive.
    pub fn crash(&mut self, keep: usize) {
        self.process = None;
        self.disks.crash(keep);
        self.stalled.clear();
        self.life += 1;
    }

    /// Remembers what is durable, as a copy of the data directory does.
    pub fn back_up(&mut self) {
        self.copy = Some(self.disks.copy_of_durable());
    }

    /// Puts the copy back.
    pub fn put_back(&mut self) -> Result<(), String> {
        if self.process.is_some() {
            return Err("the node is up".to_owned());
        }
        self.disks = self.copy.take().ok_or("there is no copy")?;
        Ok(())
    }

    /// Replaces the disks by empty ones.
    pub fn wipe(&mut self) -> Result<(), String> {
        if self.process.is_some() {
            return Err("the node is up".to_owned());
        }
        self.disks = Disks::new();
        Ok(())
    }

    /// Starts the process from what the disks hold.
    pub fn start(&mut self, config: &Arc<GroupsConfig>) -> Result<(), String> {
        self.process = Some(Process {
            core: WorkerCore::new(self.advertisement.clone(), self.policies.clone()),
            machines: BTreeMap::new(),
            to_write: VecDeque::new(),
            admissions: VecDeque::new(),
            written: Vec::new(),
            told: BTreeMap::new(),
            leases: BTreeMap::new(),
            froze: Vec::new(),
        });
        let groups = self.disks.store.groups().map_err(|error| error.to_string())?;
        groups.into_iter().try_for_each(|group| self.open(config, group))
    }

    /// Brings a replica to life from what the disks hold.
    pub fn open(&mut self, config: &Arc<GroupsConfig>, group: GroupId) -> Result<(), String> {
        let replica = self.disks.store.load(group).map_err(|error| error.to_string())?;
        let replica = replica.ok_or("the group vanished")?.meta.replica;
        let open_id = self.life * 1_000_000 + group.get() * 1_000 + replica.get();
        let opened = self.disks.open(config, group, open_id, &self.policies)?;
        let OpenedReplica { core, applier, applied } = opened;
        let (work, told) = (VecDeque::new(), applied.index);
        let process = self.process.as_mut().ok_or("the node is down")?;
        process.machines.insert(group, Machine { open_id, applier, work, told });
        process.told.insert(group, Arc::clone(core.status()));
        process.core.handle(Input::Open(Box::new(core)));
        Ok(())
    }

    pub const fn now(&self) -> Moment {
        Moment::new(self.clock)
    }

    /// Whether a replica may answer reads without a round trip.
    pub fn holds_lease(&self, group: GroupId) -> bool {
        let process = self.process.as_ref();
        let sign = process.and_then(|process| process.leases.get(&group));
        sign.is_some_and(|sign| self.now() < sign.until)
    }

    /// Old snapshots go, unless the replica that ordered it is over.
    pub fn prune(&self, prune: &Prune) {
        self.disks.prune(prune, self.open_id_of(prune.group)).unwrap();
    }

    /// Which opening of a group's replica runs here.
    pub fn open_id_of(&self, group: GroupId) -> Option<u64> {
        Some(self.process.as_ref()?.machines.get(&group)?.open_id)
    }

    /// A replica ended and its log is destroyed: its state goes too.
    pub fn bury(&mut self, group: GroupId, open_id: u64) {
        let Some(process) = self.process.as_mut() else { return };
        if let Some(mut machine) = process.machines.remove(&group) {
            assert_eq!(machine.open_id, open_id, "another replica of {group:?} was buried");
            machine.applier.run(ApplyWork::Removed);
        }
        self.disks.machines.remove(&group);
        self.disks.snapshots.remove_below(group, None).unwrap();
    }

    /// Changes a word in what a state machine holds.
    pub fn corrupt_machine(&self, group: GroupId) -> Result<(), String> {
        let disk = self.disks.machines.get(&group).ok_or("there is no machine")?;
        let mut disk = disk.lock().unwrap();
        let (_, Text(word)) = disk.live.commands.last_mut().ok_or("the machine is empty")?;
        *word = word.to_uppercase();
        Ok(())
    }

    /// What the state machine of a node that is down keeps is gone, and its snapshots.
    pub fn lose_state(&mut self, group: GroupId) -> Result<(), String> {
        if self.process.is_some() {
            return Err("the node is up".to_owned());
        }
        if !self.disks.machines.contains_key(&group) {
            return Err("there is no machine".to_owned());
        }
        self.disks.lose_state(group, self.keeps).map_err(|error| error.to_string())
    }

    /// Damages every snapshot of a group that is kept here.
    pub fn corrupt_snapshots(&self, group: GroupId) {
        for position in self.disks.snapshots.list(group).unwrap_or_default() {
            assert!(self.disks.snapshots.corrupt(group, position));
        }
    }

    /// What a group last published, if it runs here.
    pub fn status(&self, group: GroupId) -> Option<&GroupStatus> {
        let core = self.process.as_ref()?.core.group(group)?;
        Some(core.status())
    }
}

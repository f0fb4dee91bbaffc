//! One simulated process: a worker, its disks, its state machines, and what is under way there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use shardhost_groups::apply::{Applier, ApplyWork};
use shardhost_groups::clock::Moment;
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::{LeaseSign, LogTask, ReadNeed};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::{Policies, PolicyGuard};
use shardhost_groups::testing::mix;
use shardhost_groups::worker::{Input, WorkerCore};
use shardhost_groups::{ApplyFault, GroupId, Membership, NodeId, ReadBarrier, ReadError, Term};
use shardhost_storage::{Certainty, LogStore};
use tokio::sync::oneshot;

use super::disks::{Disks, OpenedReplica};
use super::machine::Command;

/// Commands of the simulation are numbers; whatever follows is ballast.
impl Command for u64 {
    fn read(bytes: &[u8]) -> Result<Self, ApplyFault> {
        let number = bytes.first_chunk::<8>();
        let number = number.ok_or_else(|| ApplyFault::new("a command of something else"))?;
        Ok(Self::from_be_bytes(*number))
    }
    fn bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
    fn answer(&self, _: usize) -> Vec<u8> {
        self.bytes()
    }
}

/// A read under way: its group, what it must see, and where the answer comes.
pub struct PendingRead {
    pub group: GroupId,
    pub need: ReadNeed,
    /// The moment of the call, in the histories.
    pub called: u64,
    pub needed: u64,
    pub answer: oneshot::Receiver<Result<ReadBarrier, ReadError>>,
}

/// A replica's machine and the work that waits for it.
pub struct Machine {
    pub open_id: u64,
    pub applier: Applier,
    pub work: VecDeque<ApplyWork>,
    pub scheduled: bool,
    /// It does nothing before this moment.
    pub hangs_until: u64,
    /// It refuses to apply before this moment, as on a full disk.
    pub stalls_until: u64,
    /// Its replica was notified that it stalls.
    pub stalled: bool,
}

/// What dies with the process.
pub struct Process {
    pub core: WorkerCore,
    pub machines: BTreeMap<GroupId, Machine>,
    pub log_queue: VecDeque<LogTask>,
    /// The write under way: it becomes durable when the disk says so.
    pub log_running: Option<LogTask>,
    pub reads: Vec<PendingRead>,
    /// What is published of leases.
    pub leases: BTreeMap<GroupId, LeaseSign>,
}

/// A node: a process that comes and goes, and disks that stay.
pub struct Node {
    pub id: NodeId,
    pub life: u64,
    pub disks: Disks<u64>,
    pub process: Option<Process>,
    pub stalled_until: u64,
    /// Until when its state machines take their time.
    pub machines_slow_until: u64,
    pub disk_delay: u64,
    /// There is no room for what its state machines would apply or restore before.
    pub full_until: u64,
    /// No sync of its log ends before.
    pub log_hangs_until: u64,
    pub heard: BTreeMap<NodeId, (u64, u64)>,
    pub live: BTreeMap<NodeId, u64>,
    /// Its advertisement, and those that it received.
    pub advertisement: Arc<Advertisement>,
    pub told: BTreeMap<NodeId, Arc<Advertisement>>,
    pub policies: Policies,
    /// Whether its policy refuses leaderships, if it has one of its own.
    pub refuses: Arc<AtomicBool>,
    /// Groups whose replica here is closed, over restarts too.
    pub closed: BTreeSet<GroupId>,
    pub guard: Option<PolicyGuard>,
    /// How fast its clock runs, in thousandths.
    pub pace: u64,
    openings: u64,
    /// Microseconds that its last slot was too short or too long.
    slot_debt: u64,
    /// Whether its state machines keep themselves: by group.
    pub keeps: fn(u64, GroupId) -> bool,
    pub keeping: u64,
    /// Its clock cannot be read.
    pub blind: bool,
    /// Of a thousand windows of its time, in how many its clock cannot be read.
    pub blind_windows: u64,
}

/// Milliseconds of a window in which a clock can be read, or cannot.
const BLIND_WINDOW: u64 = 20;

impl Node {
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            life: 0,
            disks: Disks::new(),
            process: None,
            stalled_until: 0,
            machines_slow_until: 0,
            full_until: 0,
            disk_delay: 4,
            log_hangs_until: 0,
            heard: BTreeMap::new(),
            live: BTreeMap::new(),
            advertisement: Arc::default(),
            told: BTreeMap::new(),
            policies: Policies::new(),
            refuses: Arc::default(),
            guard: None,
            closed: BTreeSet::new(),
            pace: 1_000,
            openings: 0,
            slot_debt: 0,
            keeps: |keeping, group| keeping + group.get() % 2 >= 2,
            keeping: 0,
            blind: false,
            blind_windows: 0,
        }
    }

    /// What its clock says at a moment of the world, in milliseconds.
    pub fn clock(&self, now: u64) -> Moment {
        // Clocks of different nodes have nothing to do with each other.
        Moment::new(1_000_000_000_000 * self.id.get() + now * self.pace * 1_000)
    }

    /// The same as its worker reads it; `None`: it cannot be read now.
    pub fn read_clock(&self, now: u64) -> Option<Moment> {
        let window = mix(self.id.get() ^ mix(now / BLIND_WINDOW));
        let fails = self.blind || window % 1_000 < self.blind_windows;
        (!fails).then(|| self.clock(now))
    }

    /// Milliseconds of the world until its worker's next slot.
    pub fn next_slot(&mut self, length: u64) -> u64 {
        self.slot_debt += length * 1_000_000 / self.pace;
        let whole = self.slot_debt / 1_000;
        self.slot_debt %= 1_000;
        whole
    }

    /// Writes the first state of a group, as its creation does.
    pub fn create(&mut self, group: GroupId, membership: &Membership) -> bool {
        let keeps = self.keeps(group);
        self.disks.create(group, self.id, membership, keeps)
    }

    fn keeps(&self, group: GroupId) -> bool {
        (self.keeps)(self.keeping, group)
    }

    /// Opens a replica in the running process.
    pub fn open_replica(&mut self, config: &GroupsConfig, group: GroupId) -> Result<(), String> {
        self.openings += 1;
        let open_id = self.life * 1_000_000 + self.openings;
        let config = self.own_config(config);
        let opened = self.disks.open(&config, group, open_id, &self.policies);
        let OpenedReplica { core, applier, .. } =
            opened.map_err(|error| format!("{:?} {group:?}: {error}", self.id))?;
        let machine = Machine {
            open_id,
            applier,
            work: VecDeque::new(),
            scheduled: false,
            hangs_until: 0,
            stalls_until: 0,
            stalled: false,
        };
        if let Some(process) = self.process.as_mut() {
            process.core.handle(Input::Open(Box::new(core)));
            process.machines.insert(group, machine);
        }
        Ok(())
    }

    fn own_config(&self, config: &GroupsConfig) -> Arc<GroupsConfig> {
        let mut config = config.clone();
        config.node = self.id;
        config.incarnation = self.life + 1;
        Arc::new(config)
    }

    /// The process dies. Of the writes that were not synced, `keep` survive.
    pub fn crash(&mut self, keep: usize) {
        self.process = None;
        self.disks.crash(keep);
        self.life += 1;
        self.heard.clear();
        self.live.clear();
        self.told.clear();
    }

    /// Replaces the disks of a node that is down by empty ones.
    pub fn wipe(&mut self) {
        self.disks = Disks::new();
    }

    /// Removes what a state machine of a node that is down keeps, and its snapshots.
    pub fn lose_state(&mut self, group: GroupId) {
        let keeps = self.keeps(group);
        if let Err(error) = self.disks.lose_state(group, keeps) {
            tracing::debug!(%error, "no snapshots");
        }
    }

    /// Starts the process from what the disks hold.
    pub fn start(&mut self, config: &GroupsConfig) -> Result<(), String> {
        self.process = Some(Process {
            core: WorkerCore::new((*self.advertisement).clone(), self.policies.clone()),
            machines: BTreeMap::new(),
            log_queue: VecDeque::new(),
            log_running: None,
            reads: Vec::new(),
            leases: BTreeMap::new(),
        });
        let mut groups = self.disks.store.groups().map_err(|error| error.to_string())?;
        groups.retain(|group| !self.closed.contains(group));
        groups.retain(|group| !self.differs(*group));
        for group in &groups {
            // A log that lost its end may have forgotten that a replica was destroyed, with its
            // state.
            let keeps = self.keeps(*group);
            if !self.disks.machines.contains_key(group) {
                self.disks.empty_machine(*group, keeps);
            }
        }
        groups.into_iter().try_for_each(|group| self.open_replica(config, group))
    }

    /// A host parks such a replica.
    fn differs(&self, group: GroupId) -> bool {
        let known = self.disks.store.load(group);
        known.is_ok_and(|known| known.is_some_and(|one| one.certainty == Certainty::Differs))
    }

    /// The term of its replica.
    pub fn term_of(&self, group: GroupId) -> Option<Term> {
        Some(self.process.as_ref()?.core.group(group)?.status().term)
    }

    /// The groups that this node leads and serves.
    pub fn serves(&self, group: GroupId) -> bool {
        let core = self.process.as_ref().and_then(|process| process.core.group(group));
        core.is_some_and(|core| core.status().serving)
    }
}

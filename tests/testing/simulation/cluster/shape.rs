//! What a cluster is made of, and what goes wrong in it: the shapes that seeds draw.

use shardhost_groups::config::GroupsConfig;
use shardhost_groups::{Membership, NodeId, ReplicaId};
use shardhost_storage::Member;

use super::super::chance::Chance;
use super::super::network::Weather;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Nodes that belong to groups at first.
    pub nodes: u64,
    /// Of these, so many belong to each group, beginning with another one for each; 0: all.
    pub replicas: u64,
    /// Groups, which are numbered from 1.
    pub groups: u64,
    /// Whether there is a group 0 besides, of all nodes that belong to groups, which clients do not
    /// know.
    pub system_group: bool,
    /// Milliseconds of a run with faults.
    pub duration: u64,
    /// What every node is configured with, but for its number and incarnation.
    pub config: GroupsConfig,
    pub weather: Weather,
    /// Whether state machines keep themselves on disk: in none, in every second group, or in all.
    pub keeping: u64,
    /// Whether disks say that something is durable which is not.
    pub lying_disks: bool,
    /// Whether each message is compared with what is durable where it comes from.
    pub check_messages: bool,
    /// Milliseconds between two proposals, about.
    pub load_every: u64,
    /// Milliseconds between two faults, about.
    pub fault_every: u64,
    /// Milliseconds between two other reads, at most.
    pub read_every: u64,
    /// Milliseconds between two reads under a lease, at most.
    pub lease_read_every: u64,
    /// Nodes that belong to no group at first.
    pub spares: u64,
    /// Of these, so many hold a learner of each group all the same.
    pub learners: u64,
    /// By how much the speeds of clocks may differ from the world's, in thousandths.
    pub drift: u64,
    /// Of a thousand short windows of a node's time, in how many its clock cannot be read.
    pub blind_windows: u64,
    pub changes: bool,
    /// Whether state machines fall behind for seconds.
    pub slow_machines: bool,
    /// Whether disks of nodes that vote in no group are replaced by empty ones.
    pub lost_disks: bool,
    /// Whether the first node loses what its state machines keep.
    pub lost_states: bool,
    /// Whether disks fill up and states are lost on any node, while others are down and members are
    /// removed; and one of it lasts.
    pub impairs: bool,
    /// Whether logs lose their ends, of one node at a time.
    pub lost_tails: bool,
    /// Whether leadership is handed over all the time.
    pub transfers: bool,
    /// Whether nodes win and lose capabilities, and groups change what they require.
    pub policies: bool,
    /// Whether every node has a policy that is asked about leaderships and changes its mind.
    pub asks_policies: bool,
    /// Whether replicas are closed while their nodes live, and opened again later.
    pub closes: bool,
}

impl Shape {
    /// No faults are injected.
    pub fn calm() -> Self {
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.hibernate_after_ticks = 10;
        config.snapshot_entries = 30;
        config.log_trail_entries = 8;
        config.log_keep_entries = 40;
        config.max_cached_bytes_per_group = 4_096;
        Self {
            nodes: 3,
            replicas: 0,
            groups: 3,
            system_group: false,
            duration: 20_000,
            config,
            weather: Weather::CALM,
            keeping: 1,
            lying_disks: false,
            check_messages: true,
            load_every: 60,
            fault_every: 900,
            lease_read_every: 60,
            read_every: 200,
            spares: 0,
            learners: 0,
            drift: 0,
            blind_windows: 0,
            changes: false,
            slow_machines: false,
            lost_disks: false,
            impairs: false,
            lost_tails: false,
            transfers: false,
            lost_states: false,
            policies: false,
            asks_policies: false,
            closes: false,
        }
    }

    /// Much that leases have to stand: transfers, late orders, partitions, clocks that differ.
    pub fn leasing(seed: u64) -> Self {
        let mut shape = Self::from_seed(seed);
        let mut chance = Chance::new(seed ^ 0x1ea5e);
        shape.nodes = 3 + 2 * chance.below(2);
        shape.groups = 1;
        shape.drift = 50;
        shape.blind_windows = 30 * (seed % 3);
        shape.duration = chance.between(5_000, 9_000);
        shape.load_every = 25;
        shape.transfers = true;
        shape.fault_every = 500;
        shape.lease_read_every = 8;
        shape.weather.delay = chance.between(5, 80);
        shape.weather.late = chance.below(100);
        shape.config.hibernate_after_ticks = if chance.per_mille(500) { 0 } else { 10 };
        shape
    }

    /// As a seed draws it, with spare nodes and changes of membership.
    pub fn changing(seed: u64) -> Self {
        let mut shape = Self::from_seed(seed);
        let mut chance = Chance::new(seed ^ 0xcafe);
        shape.spares = chance.between(1, 3);
        shape.changes = true;
        shape
    }

    /// Members change while nodes crash, and now and then a log loses its end with the power: of
    /// one node at a time, so that what was acknowledged stands elsewhere.
    pub fn doubting(seed: u64) -> Self {
        let mut shape = Self::changing(seed);
        let mut chance = Chance::new(seed ^ 0xd0b7);
        shape.nodes = chance.between(3, 5);
        shape.groups = 1;
        shape.duration = chance.between(8_000, 16_000);
        shape.lost_tails = true;
        shape.fault_every = 500;
        shape.load_every = 40;
        // A machine that keeps more than the log, or a log that begins behind a snapshot that it
        // forgot, is parked.
        shape.keeping = 0;
        shape.config.log_keep_entries = 1_000_000;
        shape.config.log_trail_entries = 1_000_000;
        shape
    }

    /// Members change while state machines fall behind, nodes crash, and disks are lost on which no
    /// group counts.
    pub fn forgetting(seed: u64) -> Self {
        let mut shape = Self::changing(seed);
        let mut chance = Chance::new(seed ^ 0xf09e7);
        shape.nodes = chance.between(3, 4);
        shape.groups = 1;
        shape.slow_machines = true;
        shape.lost_disks = chance.per_mille(500);
        shape.fault_every = 400;
        shape.config.max_apply_bytes_per_group = 1;
        shape
    }

    /// Now and then the first node loses the state of its machines, and their snapshots, not its
    /// log.
    pub fn losing_state(seed: u64) -> Self {
        let mut shape = Self::from_seed(seed);
        let mut chance = Chance::new(seed ^ 0x105e);
        shape.nodes = chance.between(2, 5);
        shape.lost_states = true;
        shape.fault_every = 500;
        shape.load_every = 30;
        shape
    }

    /// State machines stand still and lose their states at any time and anywhere, as long as
    /// another one has it, while members come and go.
    pub fn impairing(seed: u64) -> Self {
        let mut shape = Self::from_seed(seed);
        let mut chance = Chance::new(seed ^ 0x1a9a1);
        shape.nodes = chance.between(3, 5);
        shape.groups = 1;
        shape.spares = 1;
        shape.impairs = true;
        shape.changes = chance.per_mille(600);
        shape.transfers = chance.per_mille(300);
        shape.duration = chance.between(4_000, 10_000);
        shape.fault_every = 500;
        shape.load_every = 30;
        shape.config.max_unapplied_entries = chance.between(20, 200);
        shape
    }

    /// As a seed draws it, with capabilities that come and go.
    pub fn choosing(seed: u64) -> Self {
        let mut shape = Self::from_seed(seed);
        shape.nodes = 3 + 2 * (seed % 2);
        shape.policies = true;
        shape.asks_policies = seed.is_multiple_of(2);
        shape.transfers = seed.is_multiple_of(3);
        shape
    }

    /// Groups that are idle most of the time, so that they hibernate while nodes and replicas come
    /// and go and messages come late.
    pub fn hibernating(seed: u64) -> Self {
        let mut shape = Self::from_seed(seed);
        let mut chance = Chance::new(seed ^ 0x51ee9);
        shape.nodes = 3 + 2 * chance.below(2);
        shape.groups = chance.between(3, 6);
        shape.duration = 25_000;
        shape.config.hibernate_after_ticks = 5;
        shape.load_every = chance.between(1_000, 4_000);
        shape.read_every = chance.between(1_000, 4_000);
        shape.lease_read_every = 500;
        shape.fault_every = chance.between(500, 1_500);
        shape.weather.late = chance.below(100);
        shape.closes = true;
        shape.learners = u64::from(seed % 4 == 3);
        shape.spares = shape.learners;
        shape
    }

    /// The members of a group at first.
    pub(super) fn founders(&self, group: u64) -> Membership {
        let few = self.replicas > 0 && group > 0;
        let (first, count) = if few { (group, self.replicas) } else { (0, self.nodes) };
        let nodes = (first..first + count).map(|at| NodeId::must(1 + at % self.nodes));
        let mut membership = Membership::initial(nodes);
        let learners = (1..=self.learners).map(|at| self.nodes + at).map(NodeId::must);
        for (replica, node) in (count + 1..).map(ReplicaId::must).zip(learners) {
            membership.members.insert(replica, Member::learner(node));
        }
        membership
    }

    /// A shape that a seed draws.
    pub fn from_seed(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0xc0ffee);
        let mut shape = Self::calm();
        shape.nodes = [3, 3, 3, 5, 1, 2, 4][usize::try_from(chance.below(7)).unwrap_or(0)];
        shape.groups = chance.between(1, 4);
        shape.duration = chance.between(8_000, 25_000);
        shape.keeping = chance.below(3);
        shape.load_every = chance.between(15, 120);
        shape.config.seed = seed;
        shape.drift = chance.below(50);
        shape.config.max_append_bytes = chance.between(1, 2_000);
        shape.config.max_inflight_appends = usize::try_from(chance.between(1, 16)).unwrap_or(1);
        shape.config.max_apply_bytes_per_group = usize::try_from(chance.between(1, 4_000)).unwrap();
        shape.weather = Weather {
            loss: chance.below(60),
            duplication: chance.below(60),
            delay: chance.between(1, 30),
            late: chance.below(10),
            late_orders: chance.below(500),
        };
        shape
    }
}

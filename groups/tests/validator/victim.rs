//! A worker on a memory store, whose disk and state machines answer when the test says so, and
//! whose peers are the test.

use std::collections::VecDeque;
use std::sync::Arc;

use shardhost_groups::apply::ApplyWork;
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::{Effects, GroupCore, LogTask, Opened, ReplicaStart};
use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::Policies;
use shardhost_groups::storage::{
    GroupMeta, GroupWrite, HardState, LogBatch, LogStore, MemoryStore,
};
use shardhost_groups::worker::{GroupEvent, Input, WorkerCore};
use shardhost_groups::{
    GroupId, GroupStatus, LogIndex, LogPosition, Membership, NodeId, ReplicaId, Term,
};
use shardhost_proto::log::{Entry, EntryKind};
use shardhost_proto::peer::{GroupMessage, MessageKind};

/// The node of the replicas under test; their peers live on the nodes 2 and 3.
pub const OWN: u64 = 1;

/// A worker that holds replica 1 of groups with the replicas 1, 2 and 3, each on its namesake.
pub struct Victim {
    pub core: WorkerCore,
    pub store: MemoryStore,
    config: Arc<GroupsConfig>,
    unwritten: VecDeque<LogTask>,
    unapplied: VecDeque<(GroupId, u64, GroupEvent)>,
}

impl Victim {
    pub fn new() -> Self {
        // Orders to campaign are made up here, and name no life of the replica.
        Self::with_bugs(KnownBugs::from([KnownBug::LateTimeoutNow]))
    }

    /// With these bugs.
    pub fn with_bugs(bugs: KnownBugs) -> Self {
        let mut config = GroupsConfig::new(NodeId::must(OWN));
        config.bugs = bugs;
        let config = Arc::new(config);
        Self {
            core: WorkerCore::new(Advertisement::default(), Policies::new()),
            store: MemoryStore::new(),
            config,
            unwritten: VecDeque::new(),
            unapplied: VecDeque::new(),
        }
    }

    /// Creates and opens a group whose log starts after `base`.
    pub fn open(&mut self, group: u64, base: LogPosition) {
        let membership = Membership::initial((1..=3).map(NodeId::must));
        self.open_with(group, base, membership);
    }

    /// The same with another membership.
    pub fn open_with(&mut self, group: u64, base: LogPosition, membership: Membership) {
        let group = GroupId::new(group);
        let mut write = GroupWrite::new(group);
        write.meta = Some(GroupMeta {
            group,
            replica: membership.replica_on(NodeId::must(OWN)).unwrap(),
            membership,
            snapshot: (base.index > LogIndex::new(0)).then_some(base),
            labels: Default::default(),
            kind: String::new(),
            skipping: None,
        });
        let term = base.term.max(Term::new(1));
        write.hard_state = Some(HardState { term, vote: None, commit: base.index });
        write.reset = Some(base);
        self.store.write(&LogBatch { writes: vec![write] }).unwrap();
        self.reopen(group.get());
    }

    /// Opens a group from what the store holds.
    pub fn reopen(&mut self, group: u64) {
        let group = GroupId::new(group);
        let persisted = self.store.load(group).unwrap().unwrap();
        let stands = Some(persisted.base);
        let Opened::Continue(applied) = Opened::decide(&persisted, stands).unwrap() else {
            panic!("a machine at the base needs no restore");
        };
        let policies = Policies::new();
        let start =
            ReplicaStart { persisted, applied, durable: None, lost: false, open_id: 1, policies };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let store = Arc::new(self.store.clone());
        let core = GroupCore::open(Arc::clone(&self.config), store, &logger, start).unwrap();
        self.core.handle(Input::Open(Box::new(core)));
        self.step_once();
    }

    /// Delivers a message, from the node that its sender lives on.
    pub fn deliver(&mut self, message: GroupMessage) {
        let from = NodeId::new(message.from_replica).unwrap_or(NodeId::must(2));
        self.deliver_from(from, message);
    }

    pub fn deliver_from(&mut self, from: NodeId, message: GroupMessage) {
        self.core.handle(Input::Peer { from, messages: vec![message] });
        self.step_once();
    }

    /// A whole tick.
    pub fn tick(&mut self) {
        for _ in 0..shardhost_groups::worker::TICK_SLOTS {
            self.core.tick_slot();
            self.step_once();
        }
    }

    /// Everything that waits for the disk becomes durable.
    pub fn persist(&mut self) {
        while let Some(task) = self.unwritten.pop_front() {
            self.store.write(&task.batch).unwrap();
            self.core.handle(Input::Persisted(task.acks));
            self.step_once();
        }
    }

    /// The state machines do everything that waits for them.
    pub fn apply(&mut self) {
        while let Some((group, open_id, event)) = self.unapplied.pop_front() {
            self.core.handle(Input::Group { group, open_id, event });
            self.step_once();
        }
    }

    /// Disk and state machines do everything.
    pub fn settle(&mut self) {
        while !self.unwritten.is_empty() || !self.unapplied.is_empty() {
            self.persist();
            self.apply();
        }
    }

    fn step_once(&mut self) {
        let effects = self.core.finish_step(None);
        let Effects { log, work, .. } = effects;
        if !log.is_empty() {
            self.unwritten.push_back(log);
        }
        for (group, open_id, work) in work {
            let event = match work {
                ApplyWork::Commands { last, .. } => GroupEvent::Applied { last, durable: None },
                ApplyWork::Restore { position } => GroupEvent::Restored { position, durable: None },
                _ => GroupEvent::SnapshotMade(None),
            };
            self.unapplied.push_back((group, open_id, event));
        }
    }

    pub fn status(&self, group: u64) -> Arc<GroupStatus> {
        Arc::clone(self.core.group(GroupId::new(group)).expect("the group runs").status())
    }

    pub fn failures(&self) -> u64 {
        self.core.counters().failures
    }

    /// Lets a follower of `leader` in `term` hold entries of that term up to `last`.
    pub fn follow(&mut self, group: u64, leader: u64, term: u64, last: u64, commit: u64) {
        let base = self.status(group).last;
        let before = self.store.load(GroupId::new(group)).unwrap().unwrap().last;
        let entries = (base.get() + 1..=last).map(|n| command(term, &n.to_be_bytes())).collect();
        self.deliver(GroupMessage {
            kind: MessageKind::Append.into(),
            log_term: before.term.get(),
            index: base.get(),
            commit,
            entries,
            ..message(group, leader, term)
        });
    }

    /// Makes a follower campaign at once, in the term after `term`, as its leader orders it.
    pub fn campaign(&mut self, group: u64, leader: u64, term: u64) {
        let order = message(group, leader, term);
        self.deliver(GroupMessage { kind: MessageKind::TimeoutNow.into(), ..order });
    }

    /// Replica 3 votes.
    pub fn vote(&mut self, group: u64, term: u64) {
        let vote = message(group, 3, term);
        self.deliver(GroupMessage { kind: MessageKind::VoteResponse.into(), ..vote });
    }

    /// A leader of `term` + 1, with its log durable, committed and applied.
    pub fn lead(&mut self, group: u64, term: u64) {
        self.follow(group, 2, term, 3, 3);
        self.settle();
        self.campaign(group, 2, term);
        self.settle();
        self.vote(group, term + 1);
        self.settle();
        let last = self.status(group).last.get();
        self.deliver(GroupMessage {
            kind: MessageKind::AppendResponse.into(),
            index: last,
            ..message(group, 3, term + 1)
        });
        self.settle();
    }
}

/// A message from `replica`, of no kind yet.
pub fn message(group: u64, replica: u64, term: u64) -> GroupMessage {
    GroupMessage {
        group,
        from_replica: replica,
        to_replica: ReplicaId::must(OWN).get(),
        term,
        ..GroupMessage::default()
    }
}

/// An entry on the wire.
pub fn command(term: u64, data: &[u8]) -> Entry {
    let data = bytes::Bytes::copy_from_slice(data);
    Entry { kind: EntryKind::Command.into(), term, data, context: Default::default() }
}

//! A replica whose state machine is far behind what is committed: after a restart, or because the
//! machine takes its time. What is to be applied may be many times what fits into memory, and its
//! reading may take longer than a step may take. All groups of the worker would pay for it.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use shardhost_groups::apply::ApplyWork;
use shardhost_groups::core::{Effects, GroupCore, ReplicaStart};
use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::Policies;
use shardhost_groups::storage::{
    Entry, EntryKind, GroupMeta, GroupWrite, HardState, LogBatch, LogError, LogStore, MemoryStore,
};
use shardhost_groups::worker::{GroupEvent, Input, TICK_SLOTS, WorkerCore};
use shardhost_groups::{
    GroupId, GroupsConfig, LogIndex, LogPosition, Membership, NodeId, ReplicaId, Role, Term,
};
use shardhost_proto::log as wire;
use shardhost_proto::peer::{GroupMessage, MessageKind};

const GROUP: GroupId = GroupId::new(7);
const NODE: NodeId = NodeId::must(1);
/// Commands that are committed and not applied, and bytes of each. All share one allocation.
const COMMANDS: u64 = 512;
const COMMAND_BYTES: usize = 1 << 20;
/// What the state machine may have waiting for it, as `GroupsConfig` says: a batch more at most.
const WAITING_BYTES: u64 = 2 * (8 << 20);
/// What a replica looks through before it campaigns, with room for what it read in the same step.
const LOOKED_THROUGH_BYTES: u64 = (64 << 20) + WAITING_BYTES;
/// Ticks in which a lone voter stands for election several times.
const TICKS: usize = 60;

/// A store that counts what is read from it.
#[derive(Clone, Debug)]
struct Counting {
    store: MemoryStore,
    read: Arc<AtomicU64>,
}

impl shardhost_storage::LogLayer for Counting {
    fn below(&self) -> &dyn LogStore {
        &self.store
    }
    fn entries(
        &self,
        group: GroupId,
        from: LogIndex,
        to: LogIndex,
        max_bytes: u64,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogError> {
        let before = out.len();
        self.store.entries(group, from, to, max_bytes, out)?;
        let bytes = out[before..].iter().map(Entry::payload_bytes).sum();
        self.read.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// A host with one group, whose machine has applied nothing.
struct Host {
    worker: WorkerCore,
    log: Counting,
    /// How far the state machine gets with the work that it has.
    waiting: Option<(u64, LogPosition)>,
    /// Commands that the state machine got.
    commands: Vec<LogIndex>,
    /// The most that one step read.
    most_read: u64,
}

impl Host {
    /// With what `first` says of the replica.
    fn open(first: GroupWrite, bugs: KnownBugs) -> Self {
        let log = Counting { store: MemoryStore::new(), read: Arc::default() };
        log.store.write(&LogBatch { writes: vec![first] }).unwrap();
        let mut config = GroupsConfig::new(NODE);
        config.bugs = bugs;
        let persisted = log.load(GROUP).unwrap().unwrap();
        let (applied, policies) = (LogPosition::default(), Policies::new());
        let start =
            ReplicaStart { persisted, applied, durable: None, lost: false, open_id: 1, policies };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let store: Arc<dyn LogStore> = Arc::new(log.clone());
        let core = GroupCore::open(Arc::new(config), store, &logger, start).unwrap();
        let mut worker = WorkerCore::new(Advertisement::default(), Policies::new());
        worker.handle(Input::Open(Box::new(core)));
        let (waiting, commands) = (None, Vec::new());
        let mut host = Self { worker, log, waiting, commands, most_read: 0 };
        host.step_once();
        host
    }

    /// A step, and what it wants written.
    fn step_once(&mut self) {
        let before = self.log.read.load(Ordering::Relaxed);
        let Effects { log, work, .. } = self.worker.finish_step(None);
        let read = self.log.read.load(Ordering::Relaxed) - before;
        self.most_read = self.most_read.max(read);
        for (_, open_id, work) in work {
            if let ApplyWork::Commands { last, commands } = work {
                self.commands.extend(commands.iter().map(|command| command.position().index));
                self.waiting = Some((open_id, last));
            }
        }
        if !log.is_empty() {
            self.log.write(&log.batch).unwrap();
            self.worker.handle(Input::Persisted(log.acks));
            self.step_once();
        }
    }

    fn tick(&mut self) {
        for _ in 0..TICK_SLOTS {
            let before = self.log.read.load(Ordering::Relaxed);
            self.worker.tick_slot();
            let read = self.log.read.load(Ordering::Relaxed) - before;
            self.most_read = self.most_read.max(read);
            self.step_once();
        }
    }

    /// The state machine does what it has, and what it gets because of that.
    fn apply_all(&mut self) {
        while let Some((open_id, last)) = self.waiting.take() {
            let event = GroupEvent::Applied { last, durable: None };
            self.worker.handle(Input::Group { group: GROUP, open_id, event });
            self.step_once();
        }
    }

    fn role(&self) -> Role {
        self.worker.group(GROUP).unwrap().status().role.clone()
    }
}

/// A replica of which the log holds nothing else.
fn created(voters: impl IntoIterator<Item = NodeId>) -> GroupWrite {
    let mut write = GroupWrite::new(GROUP);
    write.meta = Some(GroupMeta {
        group: GROUP,
        replica: ReplicaId::must(1),
        membership: Membership::initial(voters),
        snapshot: None,
        labels: Default::default(),
        kind: String::new(),
        skipping: None,
    });
    let commit = LogIndex::default();
    write.hard_state = Some(HardState { term: Term::new(2), vote: None, commit });
    write.reset = Some(LogPosition::default());
    write
}

/// A lone voter whose commands are all committed.
fn committed() -> GroupWrite {
    let (term, data) = (Term::new(2), Bytes::from(vec![7; COMMAND_BYTES]));
    let entry = |index| Entry {
        term,
        index: LogIndex::new(index),
        kind: EntryKind::Command,
        data: data.clone(),
        context: Bytes::new(),
    };
    let mut write = created([NODE]);
    write.hard_state = Some(HardState { term, vote: None, commit: LogIndex::new(COMMANDS) });
    write.entries = (1..=COMMANDS).map(entry).collect();
    write
}

/// What one step reads at most: when the replica opens, and while elections are due and its
/// machine does nothing.
fn most_read(bugs: KnownBugs) -> (u64, u64) {
    let mut host = Host::open(committed(), bugs);
    let at_opening = std::mem::take(&mut host.most_read);
    for _ in 0..TICKS {
        host.tick();
    }
    (at_opening, host.most_read)
}

#[test]
fn a_round_reads_no_more_than_a_bound_of_what_is_to_be_applied() {
    let (at_opening, before_campaigns) = most_read(KnownBugs::none());
    assert!(at_opening <= WAITING_BYTES, "{at_opening} bytes when it opened");
    assert!(before_campaigns <= LOOKED_THROUGH_BYTES, "{before_campaigns} bytes at a campaign");
}

#[test]
fn reading_all_of_it_is_noticed() {
    let (at_opening, before_campaigns) = most_read(KnownBugs::from([KnownBug::ReadBacklogAtOnce]));
    assert!(at_opening > WAITING_BYTES, "{at_opening} bytes when it opened");
    assert!(before_campaigns > LOOKED_THROUGH_BYTES, "{before_campaigns} bytes at a campaign");
}

/// It does not campaign while it could serve no users, and leads when everything is applied.
#[test]
fn it_leads_when_its_machine_has_caught_up() {
    let mut host = Host::open(committed(), KnownBugs::none());
    for _ in 0..TICKS {
        host.tick();
    }
    assert_eq!(host.role(), Role::Follower);
    host.apply_all();
    for _ in 0..TICKS {
        host.tick();
        host.apply_all();
    }
    assert_eq!(host.role(), Role::Leader);
    let status = Arc::clone(host.worker.group(GROUP).unwrap().status());
    assert!(status.serving && status.applied > LogIndex::new(COMMANDS), "{status:?}");
}

/// What a follower keeps in memory after its leader sent it all commands, committed, of which its
/// machine applies none.
fn follow(bugs: KnownBugs) -> (Host, usize) {
    let nodes = [1, 2, 3].map(NodeId::must);
    let mut host = Host::open(created(nodes), bugs);
    let data = Bytes::from(vec![7; COMMAND_BYTES]);
    for before in 0..COMMANDS {
        let command = wire::Entry {
            kind: wire::EntryKind::Command.into(),
            term: 2,
            data: data.clone(),
            context: Bytes::new(),
        };
        let append = GroupMessage {
            group: GROUP.get(),
            from_replica: 2,
            to_replica: 1,
            kind: MessageKind::Append.into(),
            term: 2,
            log_term: if before == 0 { 0 } else { 2 },
            index: before,
            commit: before + 1,
            entries: vec![command],
            ..GroupMessage::default()
        };
        host.worker.handle(Input::Peer { from: nodes[1], messages: vec![append] });
        host.step_once();
    }
    let cached = host.worker.group(GROUP).unwrap().cached_bytes();
    (host, cached)
}

/// Beside the 1 MiB for followers a little behind, and entries that are being written.
const CACHED_BYTES: usize = (8 << 20) + 4 * COMMAND_BYTES;

#[test]
fn what_waits_for_a_machine_waits_in_the_log_and_is_applied_in_order() {
    let (mut host, cached) = follow(KnownBugs::none());
    assert!(cached <= CACHED_BYTES, "{cached} bytes are in memory");
    assert!(host.commands.len() < 64, "{} commands wait for the machine", host.commands.len());
    host.apply_all();
    assert!(host.commands.iter().copied().eq((1..=COMMANDS).map(LogIndex::new)), "in order");
}

#[test]
fn keeping_it_in_memory_is_noticed() {
    let (_, cached) = follow(KnownBugs::from([KnownBug::KeepBacklogInMemory]));
    assert!(cached > CACHED_BYTES, "{cached} bytes are in memory");
}

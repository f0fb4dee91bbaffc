//! What a proposal costs three workers that are wired together in memory: Raft and everything
//! that the host decides around it, without disk, network and state machine.
//!
//! A figure is the time of proposals of 16 bytes, from the leader's inbox until the entry is
//! handed to the state machines of all three replicas, on one thread.
//! `cargo bench --bench worker_round`; to see that it runs:
//! `cargo bench --bench worker_round -- --test`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shardhost_groups::apply::{Applier, ApplyReport};
use shardhost_groups::completion::{Charge, Completion, Pending};
use shardhost_groups::config::GroupsConfig;
use shardhost_groups::core::{Effects, GroupCore, Proposal, ReplicaStart};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::Policies;
use shardhost_groups::storage::{
    GroupMeta, HardState, LogError, LogStore, MemorySnapshots, PersistedGroup, SnapshotStore,
    StoreStats,
};
use shardhost_groups::worker::{GroupEvent, Input, TICK_SLOTS, WorkerCore};
use shardhost_groups::{
    ApplyBatch, ApplyFault, GroupId, LogIndex, LogPosition, Membership, NodeId, ProposalSink,
    ProposeOutcome, ReplicaId, SnapshotWriter, StateMachine, Term,
};
use shardhost_proto::peer::GroupMessage;
use shardhost_proto::version::ClusterVersion;

const NODES: u64 = 3;
/// Groups, and proposals to each in one batch.
const SHAPES: [(u64, u64); 6] = [(1, 1), (1, 64), (48, 1), (48, 85), (1_000, 1), (1_000, 4)];

/// A log that keeps nothing: what the replicas need is in their memory.
#[derive(Debug)]
struct NoLog;

impl LogStore for NoLog {
    fn id(&self) -> u64 {
        1
    }
    fn version(&self) -> ClusterVersion {
        ClusterVersion::NEWEST
    }
    fn raise_version(&self, _: ClusterVersion) -> Result<(), LogError> {
        Ok(())
    }
    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(Vec::new())
    }
    fn load(&self, _: GroupId) -> Result<Option<PersistedGroup>, LogError> {
        Ok(None)
    }
    fn tombstone(&self, _: GroupId) -> Result<Option<ReplicaId>, LogError> {
        Ok(None)
    }
    fn entries(
        &self,
        group: GroupId,
        _: LogIndex,
        _: LogIndex,
        _: u64,
        _: &mut Vec<shardhost_groups::storage::Entry>,
    ) -> Result<(), LogError> {
        Err(LogError::UnknownGroup { group })
    }
    fn term(&self, group: GroupId, _: LogIndex) -> Result<Term, LogError> {
        Err(LogError::UnknownGroup { group })
    }
    fn write(&self, _: &shardhost_groups::storage::LogBatch) -> Result<(), LogError> {
        Ok(())
    }
    fn stats(&self) -> StoreStats {
        StoreStats::default()
    }
}

#[derive(Default)]
struct Count(AtomicU64);

impl ProposalSink for Count {
    fn complete(&self, _: u64, outcome: ProposeOutcome) {
        outcome.expect("a committed proposal");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Three workers and the messages between them.
struct Trio {
    workers: Vec<WorkerCore>,
    appliers: Vec<HashMap<GroupId, Applier>>,
    under_way: VecDeque<(usize, Input)>,
    groups: u64,
    done: Arc<Count>,
    sink: Arc<dyn ProposalSink>,
}

impl Trio {
    fn new(groups: u64) -> Self {
        let done = Arc::new(Count::default());
        let sink = Arc::clone(&done) as Arc<dyn ProposalSink>;
        let workers = (1..=NODES).map(|node| worker(NodeId::must(node), groups)).collect();
        let appliers = (0..NODES).map(|_| appliers(groups)).collect();
        let mut trio = Self { workers, appliers, under_way: VecDeque::new(), groups, done, sink };
        while !trio.leader().all_serve(groups) {
            // The first worker alone knows that time passes, and so leads all groups.
            for _ in 0..TICK_SLOTS {
                trio.workers[0].tick_slot();
                trio.finish(0);
            }
            trio.settle();
        }
        trio
    }

    fn leader(&self) -> Leader<'_> {
        Leader(&self.workers[0])
    }

    /// Lets the first worker propose, and all work until nothing is under way.
    fn propose(&mut self, count: u64, command: &Bytes) {
        let before = self.done.0.load(Ordering::Relaxed);
        let submitted = Instant::now();
        for group in (1..=self.groups).map(GroupId::new) {
            let proposal = |token| {
                let completion = Completion::Sink { sink: Arc::clone(&self.sink), token };
                let pending = Pending::new(group, completion, Charge::default(), submitted);
                Proposal {
                    command: command.clone(),
                    in_term: None,
                    through_barrier: false,
                    pending,
                }
            };
            let proposals = (0..count).map(proposal).collect();
            self.workers[0].handle(Input::Propose { group, open_id: None, proposals });
        }
        self.finish(0);
        self.settle();
        let ended = self.done.0.load(Ordering::Relaxed) - before;
        assert_eq!(ended, count * self.groups, "every proposal is applied");
    }

    /// Every worker takes all that waits for it before its step ends, as it does in production.
    fn settle(&mut self) {
        while !self.under_way.is_empty() {
            for worker in 0..self.workers.len() {
                let (own, others): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.under_way)
                    .into_iter()
                    .partition(|(to, _)| *to == worker);
                self.under_way = others;
                if !own.is_empty() {
                    own.into_iter().for_each(|(_, input)| self.workers[worker].handle(input));
                    self.finish(worker);
                }
            }
        }
    }

    fn finish(&mut self, worker: usize) {
        let effects = self.workers[worker].finish_step(None);
        let Effects { messages, log, work, failed, .. } = effects;
        failed.into_iter().for_each(|(pending, error)| pending.resolve(Err(error)));
        let mut mail: [Vec<GroupMessage>; NODES as usize] = Default::default();
        for outgoing in messages.into_iter().chain(log.releases) {
            mail[index_of(outgoing.to)].push(outgoing.message);
        }
        let from = NodeId::must(worker as u64 + 1);
        for (to, messages) in mail.into_iter().enumerate().filter(|(_, mail)| !mail.is_empty()) {
            self.under_way.push_back((to, Input::Peer { from, messages }));
        }
        if !log.acks.is_empty() {
            self.under_way.push_back((worker, Input::Persisted(log.acks)));
        }
        for (group, open_id, work) in work {
            let applier = self.appliers[worker].get_mut(&group).expect("a known group");
            if let ApplyReport::Applied { last, durable } = applier.run(work) {
                let event = GroupEvent::Applied { last, durable };
                self.under_way.push_back((worker, Input::Group { group, open_id, event }));
            }
        }
    }
}

struct Leader<'a>(&'a WorkerCore);

impl Leader<'_> {
    fn all_serve(&self, groups: u64) -> bool {
        let serves = |id| self.0.group(GroupId::new(id)).is_some_and(|core| core.status().serving);
        (1..=groups).all(serves)
    }
}

fn index_of(node: NodeId) -> usize {
    usize::try_from(node.get() - 1).expect("a small number")
}

/// A state machine that does nothing, and claims to be durable.
struct Nothing(LogPosition);

impl StateMachine for Nothing {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(Some(self.0))
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.0 = batch.last();
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("it has no state"))
    }
    fn restore(&mut self, _: LogPosition, _: &mut dyn std::io::Read) -> Result<(), ApplyFault> {
        Err(ApplyFault::new("it has no state"))
    }
    fn durable_index(&self) -> Option<LogIndex> {
        Some(self.0.index)
    }
}

fn appliers(groups: u64) -> HashMap<GroupId, Applier> {
    let snapshots: Arc<dyn SnapshotStore> = Arc::new(MemorySnapshots::new());
    let applier = |group| {
        let start = LogPosition::default();
        (group, Applier::new(group, Box::new(Nothing(start)), Arc::clone(&snapshots), start))
    };
    (1..=groups).map(GroupId::new).map(applier).collect()
}

fn worker(node: NodeId, groups: u64) -> WorkerCore {
    let mut config = GroupsConfig::new(node);
    config.hibernate_after_ticks = 0;
    let config = Arc::new(config);
    let mut worker = WorkerCore::new(Advertisement::default(), Policies::new());
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    for group in (1..=groups).map(GroupId::new) {
        let core =
            GroupCore::open(Arc::clone(&config), Arc::new(NoLog), &logger, start(group, node));
        worker.handle(Input::Open(Box::new(core.expect("a fresh replica"))));
    }
    worker
}

fn start(group: GroupId, node: NodeId) -> ReplicaStart {
    let membership = Membership::initial((1..=NODES).map(NodeId::must));
    let replica = membership.replica_on(node).expect("a member");
    let meta = GroupMeta {
        group,
        replica,
        membership,
        snapshot: None,
        labels: Default::default(),
        kind: String::new(),
        skipping: None,
    };
    let hard_state = HardState { term: Term::new(1), vote: None, commit: LogIndex::new(0) };
    let base = LogPosition::default();
    let persisted =
        PersistedGroup { meta, hard_state, base, last: base, certainty: Default::default() };
    ReplicaStart {
        persisted,
        applied: base,
        durable: Some(LogIndex::new(0)),
        lost: false,
        open_id: 1,
        policies: Policies::new(),
    }
}

fn worker_round(criterion: &mut Criterion) {
    let command = Bytes::from_static(b"sixteen bytes of");
    let mut group = criterion.benchmark_group("three_workers_in_memory");
    for (groups, each) in SHAPES {
        let mut trio = Trio::new(groups);
        group.throughput(Throughput::Elements(groups * each));
        let name = BenchmarkId::new(format!("{groups}_groups"), each);
        group.bench_function(name, |bencher| bencher.iter(|| trio.propose(each, &command)));
    }
    group.finish();
}

criterion_group!(benches, worker_round);
criterion_main!(benches);

//! The threads around the groups: workers, the log writer, the apply pool, the snapshot writer,
//! and the dispatcher of leadership hooks. They move things and decide nothing.
//!
//! | thread | takes | gives |
//! |---|---|---|
//! | worker (a few) | inputs from everywhere | rounds, carried out in order |
//! | log writer (one) | the log tasks of all workers | one durable write for all that wait |
//! | apply (a few) | work of state machines | applied positions, answers |
//! | snapshot writer (one) | views of state machines | files |
//! | consistency (one) | views of state machines | their checksums; a word to groups that hibernate |
//! | dispatcher (one) | edges of leadership | calls of hooks |
//! | watchdog (one) | where each worker, the log writer and each apply thread is | a fault of the host, when a round does not end; an impairment, when a write or a call of a state machine does not |
//! | asking (one) | replicas that are parked or failed | questions to members whether they still belong to their groups |
//! | admission (a few) | leaderships that policies are asked about | what they decided |

mod additions;
mod admissions;
mod apply_pool;
mod builder;
mod checker;
mod create;
mod create_requests;
mod doubt;
mod end;
mod handle;
mod impairments;
mod inbound;
mod inbox;
mod leadership;
mod log_writer;
mod machine_watch;
mod open;
mod parked;
mod skip;
mod snapshot_writer;
mod stored;
mod watchdog;
mod worker_thread;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use dashmap::DashMap;
use parking_lot::Mutex;
use shardhost_storage::{
    DatabaseStats, GroupId, LogError, LogStore, Membership, NodeId, SnapshotStore,
};
use tokio::sync::watch;

use crate::activity::Activity;
use crate::apply::ApplyWork;
use crate::clock::Clock;
use crate::completion::Budget;
use crate::config::GroupsConfig;
use crate::error::HostFault;
use crate::latency::Latency;
use crate::leadership::LeadershipHub;
use crate::nodes::Impairment;
use crate::panics::Watched;
use crate::policy::Policies;
use crate::selector::GroupSelector;
use crate::transport::{Outgoing, Transport};
use crate::worker::WorkerCounters;

pub use crate::lives::Destruction;
pub use additions::{AdditionGuard, AdditionHooks};
pub(crate) use apply_pool::Mailbox;
pub use builder::GroupsBuilder;
pub use create_requests::{CreateRequest, CreateRequestHandler, CreateRequestSink};
pub use handle::{
    Barrier, Group, GroupSpec, LeaderScope, LeaderTaskGuard, LeaseStatus, NotServing, Propose,
    ProposeFuture, ReadMode, Transferred,
};
pub(crate) use handle::{GroupShared, LeaseCell, supervise};
pub use inbound::GroupsInbound;
pub use open::{MachineFactory, StateMachineBox};
pub use parked::ParkedReplica;
pub use skip::{MAX_REWRITTEN_BYTES, SkipEnd, StoredEntry};

use crate::lives::Lives;
use create_requests::CreateRequests;
use inbox::Inbox;

/// What all threads and handles share.
pub(crate) struct RuntimeShared {
    pub(crate) config: Arc<GroupsConfig>,
    pub(crate) inboxes: Vec<Inbox>,
    pub(crate) registry: DashMap<GroupId, Group>,
    pub(crate) hub: Arc<LeadershipHub>,
    pub(crate) budget: Arc<Budget>,
    /// Until the shutdown: afterwards another process may open it.
    store: Mutex<Option<Arc<dyn LogStore>>>,
    pub(crate) snapshots: Arc<dyn SnapshotStore>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) latency: Arc<Latency>,
    /// How long proposals were paused for transfers.
    freezes: Latency,
    /// How long writes of the log took, each with its sync.
    log_writes: Latency,
    /// How long rounds of the workers took.
    rounds: Latency,
    apply: apply_pool::ApplyQueue,
    log: log_writer::LogQueue,
    snapshot_tasks: snapshot_writer::SnapshotQueue,
    checks: checker::CheckQueue,
    counters: Mutex<Vec<WorkerCounters>>,
    activities: Vec<Arc<Activity>>,
    /// Where each apply thread is.
    apply_activities: Vec<machine_watch::ApplyActivity>,
    population: Mutex<Vec<(usize, usize)>>,
    /// Who owns what is done with each group.
    lives: Arc<Lives>,
    /// Replicas that could not be opened.
    parked: parked::Parked,
    stopping: AtomicBool,
    /// A doubt about the log that was raised.
    doubts: doubt::Doubts,
    health: Watched<Option<HostFault>>,
    /// Why this host should lead nothing for now.
    impairments: impairments::Impairments,
    /// Nothing that peers send may make the log longer.
    pub(crate) takes_no_entries: AtomicBool,
    /// Nothing is sent to peers, and nothing of theirs is taken: as if this host were stopped.
    silent: AtomicBool,
    /// Whether the log writer is at a write.
    log_activity: log_writer::LogActivity,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) policies: Policies,
    admissions: admissions::AdmissionQueue,
    pub(crate) additions: AdditionHooks,
    create_requests: CreateRequests,
}

impl fmt::Debug for RuntimeShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RuntimeShared")
    }
}

impl RuntimeShared {
    /// The log.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] after the shutdown.
    pub(crate) fn store(&self) -> Result<Arc<dyn LogStore>, LogError> {
        self.store.lock().clone().ok_or(LogError::Poisoned)
    }

    pub(crate) fn worker_of(&self, group: GroupId) -> usize {
        // The slot of a group within its worker takes the low bits; the worker takes others.
        let spread = group.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(spread).unwrap_or(0) % self.inboxes.len()
    }

    /// Queues work for a group's state machine. Work is bounded by what the replica hands out.
    pub(crate) fn push_work(&self, group: &Arc<GroupShared>, work: ApplyWork) {
        self.apply.push(group, work);
    }

    /// Queues a question to a group's state machine.
    pub(crate) fn ask_machine(
        &self,
        group: &Arc<GroupShared>,
        question: ApplyWork,
    ) -> Result<(), apply_pool::NoRoom> {
        self.apply.ask(group, question, self.config.max_reads_per_group)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Sends messages to other nodes, unless this host is silent.
    fn send(&self, messages: Vec<Outgoing>) {
        if !self.is_silent() {
            self.transport.send(messages);
        }
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// This host takes no part from here on, as if it were stopped, or does again. Its peers then
    /// receive nothing from it, and elect others.
    fn set_silent(&self, silent: bool) {
        if self.silent.swap(silent, Ordering::Relaxed) != silent {
            self.transport.set_silent(silent);
        }
    }

    /// Something is wrong with this host, or is not any more.
    pub(crate) fn impair(&self, source: &'static str, cause: Option<Impairment>) {
        self.impairments.set(source, cause, &self.inboxes);
    }

    /// The host cannot continue: nothing more is acknowledged, and it must end.
    fn fail(&self, fault: &HostFault) {
        tracing::error!(%fault, "the host stops");
        self.health.change(|health| {
            let first = health.is_none();
            health.get_or_insert_with(|| fault.clone());
            first
        });
        for inbox in &self.inboxes {
            inbox.complete(crate::worker::Input::HostFailed(fault.clone()));
        }
    }
}

/// Counters of a host's groups since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupsStats {
    pub workers: WorkerCounters,
    pub groups: usize,
    pub awake: usize,
    /// Batches written to the log, each with one sync.
    pub log_writes: u64,
    pub log_group_writes: u64,
    pub log_entries: u64,
    pub log_bytes: u64,
    pub acknowledged: u64,
    pub hook_panics: u64,
    /// Inline hooks that took too long.
    pub slow_inline_hooks: u64,
    /// Policies of leadership that panicked.
    pub policy_panics: u64,
    /// Their answers on Raft threads that took too long.
    pub slow_policies: u64,
    /// Checksums of state machines that were computed to compare replicas.
    pub checksums: u64,
    /// Those that were not, for the host was busy with others or a machine could not show its
    /// state.
    pub checksums_skipped: u64,
    /// Snapshots of state machines that were made here.
    pub snapshots_made: u64,
    /// Snapshots that could not be made: the disk is full, or a state machine failed. The log of
    /// the host has the cause; they are tried again.
    pub snapshot_failures: u64,
}

#[derive(Debug, Default)]
struct Threads {
    workers: Vec<JoinHandle<()>>,
    log: Option<JoinHandle<()>>,
    apply: Vec<JoinHandle<()>>,
    snapshots: Vec<JoinHandle<()>>,
    checks: Option<JoinHandle<()>>,
    dispatcher: Option<JoinHandle<()>>,
    admissions: Vec<JoinHandle<()>>,
    /// Ends when the channel does.
    watchdog: Option<(crossbeam_channel::Sender<()>, JoinHandle<()>)>,
    /// The same.
    asking: Option<(crossbeam_channel::Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct GroupsInner {
    shared: Arc<RuntimeShared>,
    threads: Mutex<Threads>,
    /// Held while the groups are shut down: another caller waits for the end.
    ending: Mutex<()>,
}

/// The groups of one host, and the threads that run them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Groups {
    inner: Arc<GroupsInner>,
}

impl Groups {
    fn shared(&self) -> &Arc<RuntimeShared> {
        &self.inner.shared
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &GroupsConfig {
        &self.shared().config
    }

    /// A group that is open here.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<Group> {
        self.shared().registry.get(&id).map(|group| group.clone())
    }

    /// All groups that are open here, by id.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<_> = self.shared().registry.iter().map(|g| g.clone()).collect();
        groups.sort_unstable_by_key(Group::id);
        groups
    }

    /// Why this host should lead nothing for now: a disk that hangs, or a cause of
    /// [`Groups::impair`]. The transport has to send it to the others.
    #[must_use]
    pub fn impairment(&self) -> watch::Receiver<Option<Impairment>> {
        self.shared().impairments.watch()
    }

    /// Declares that this host should lead nothing for now, for a reason of this source, or that
    /// the reason is gone. The groups that it leads are transferred to others; its replicas
    /// continue to follow.
    pub fn impair(&self, source: &'static str, cause: Option<Impairment>) {
        self.shared().impair(source, cause);
    }

    /// From here on the replicas of this host take no entries of their leaders, or take them again.
    /// For a disk that is about to be full: a write of the log that fails ends the host.
    pub fn take_entries(&self, takes: bool) {
        self.shared().takes_no_entries.store(!takes, Ordering::Relaxed);
    }

    /// Ends the host because of a fault that its state machines share. Nothing more is
    /// acknowledged; the owner of the host sees the fault and ends it. The first fault counts.
    pub fn fail(&self, fault: &HostFault) {
        self.shared().fail(fault);
    }

    /// What takes messages from other nodes, for the transport.
    #[must_use]
    pub fn inbound(&self) -> Arc<GroupsInbound> {
        Arc::new(GroupsInbound::new(Arc::clone(self.shared())))
    }

    /// Asks `hook` before a node is added to one of these groups by this host; what it refuses is
    /// not proposed. Hooks are asked in the order in which they were registered.
    #[must_use = "dropping the guard removes the hook"]
    pub fn before_addition<F>(&self, groups: GroupSelector, hook: F) -> AdditionGuard
    where
        F: Fn(GroupId, NodeId, &Membership) -> Result<(), String> + Send + Sync + 'static,
    {
        let hub = Arc::clone(&self.shared().hub);
        self.shared().additions.register(move |group, node, membership| {
            if hub.selects(&groups, group) { hook(group, node, membership) } else { Ok(()) }
        })
    }

    /// What keeps the host from going on, once something does. It must be shut down then.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Option<HostFault>> {
        self.shared().health.subscribe()
    }

    /// Latency of acknowledged proposals.
    #[must_use]
    pub fn latency(&self) -> &Latency {
        &self.shared().latency
    }

    /// How long the proposals of a group were paused for a transfer away from here: until this node
    /// knew the new leader. Since the start.
    #[must_use]
    pub fn freezes(&self) -> &Latency {
        &self.shared().freezes
    }

    /// How long writes of the log took, each with its sync, since the start.
    #[must_use]
    pub fn log_writes(&self) -> &Latency {
        &self.shared().log_writes
    }

    /// How long rounds of the workers took since the start, from the first input to the last effect: what a group
    /// waits for others on its thread.
    #[must_use]
    pub fn rounds(&self) -> &Latency {
        &self.shared().rounds
    }

    /// The database under the log; `None`: there is none, or the host was shut down.
    #[must_use]
    pub fn log_database(&self) -> Option<DatabaseStats> {
        self.shared().store().ok()?.database()
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> GroupsStats {
        let shared = self.shared();
        let mut stats = GroupsStats::default();
        for one in shared.counters.lock().iter() {
            stats.workers.rounds += one.rounds;
            stats.workers.messages += one.messages;
            stats.workers.unknown_group += one.unknown_group;
            stats.workers.proposals += one.proposals;
            stats.workers.failures += one.failures;
            stats.workers.stale += one.stale;
            stats.workers.policy += &one.policy;
            for (refusal, count) in &one.refused {
                *stats.workers.refused.entry(*refusal).or_default() += count;
            }
        }
        for (groups, awake) in shared.population.lock().iter() {
            stats.groups += groups;
            stats.awake += awake;
        }
        let log = shared.store().map(|store| store.stats()).unwrap_or_default();
        stats.log_writes = log.writes;
        stats.log_group_writes = log.group_writes;
        stats.log_entries = log.entries;
        stats.log_bytes = log.bytes;
        stats.acknowledged = shared.latency.count();
        (stats.hook_panics, stats.slow_inline_hooks) = shared.hub.complaints();
        (stats.policy_panics, stats.slow_policies) = shared.policies.complaints();
        let snapshots = &shared.snapshot_tasks.counters;
        stats.snapshots_made = snapshots.made.load(Ordering::Relaxed);
        stats.snapshot_failures = snapshots.failures.load(Ordering::Relaxed);
        stats.checksums = shared.checks.made.load(Ordering::Relaxed);
        stats.checksums_skipped = shared.checks.skipped.load(Ordering::Relaxed);
        stats
    }

    /// Stops every group, lets what was handed to the log become durable, and ends the threads.
    /// Creations and openings that have begun are waited for, and refused at their end; no other
    /// begins. Blocks until then, whichever caller was first.
    pub fn shutdown(&self) {
        let shared = self.shared();
        let _ending = self.inner.ending.lock();
        if shared.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        shared.lives.stop();
        let mut threads = std::mem::take(&mut *self.inner.threads.lock());
        if matches!(&*shared.health.borrow(), Some(HostFault::Stuck { .. })) {
            // The stuck thread may hold what the others wait for: there is no end to wait for, and
            // the process is to end.
            return;
        }
        shared.lives.wait_for_starts();
        shared.inboxes.iter().for_each(|inbox| inbox.complete(crate::worker::Input::Stop));
        threads.workers.drain(..).for_each(join);
        for (alive, thread) in
            [threads.watchdog.take(), threads.asking.take()].into_iter().flatten()
        {
            drop(alive);
            join(thread);
        }
        shared.log.stop();
        threads.log.take().into_iter().for_each(join);
        shared.apply.stop(threads.apply.len());
        threads.apply.drain(..).for_each(join);
        shared.apply.clear();
        threads.snapshots.iter().for_each(|_| shared.snapshot_tasks.stop_one());
        threads.snapshots.drain(..).for_each(join);
        shared.checks.stop();
        threads.checks.take().into_iter().for_each(join);
        // A policy that hangs does not delay the end: these threads are not waited for.
        threads.admissions.drain(..).for_each(|_| shared.admissions.stop_one());
        shared.hub.stop();
        threads.dispatcher.take().into_iter().for_each(join);
        shared.registry.iter().for_each(|group| group.shared().mailbox.close());
        shared.registry.clear();
        shared.lives.end();
        drop(shared.store.lock().take());
    }
}

fn join(thread: JoinHandle<()>) {
    if let Err(panic) = thread.join() {
        tracing::error!(panic = %crate::panics::panic_text(&*panic), "a thread panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use shardhost_storage::{MemorySnapshots, MemoryStore};

    use super::*;
    use crate::activity::Phase;
    use crate::leadership::HookKind;
    use crate::runtime::GroupSpec;
    use crate::testing::alone::{Alone, Stateless};

    /// A host that lost a thread reports it, and can still be shut down.
    #[test]
    fn a_thread_that_panics_fails_the_host_and_hangs_nobody() {
        let groups = GroupsBuilder::new(GroupsConfig::new(NodeId::must(1)))
            .start(Arc::new(MemoryStore::new()), Arc::new(MemorySnapshots::new()), Arc::new(Alone))
            .unwrap();
        let health = groups.health();
        let thread =
            builder::spawn(groups.shared(), "doomed".to_owned(), || panic!("told to panic"));
        join(thread.unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while health.borrow().is_none() {
            assert!(Instant::now() < deadline, "the host does not say that it lost a thread");
            std::thread::yield_now();
        }
        let fault = health.borrow().clone().unwrap().to_string();
        assert!(fault.contains("doomed") && fault.contains("told to panic"), "{fault}");
        groups.shutdown();
    }

    /// A host whose worker hangs reports it with the place, and can still be dropped.
    #[test]
    fn a_worker_that_hangs_is_noticed_and_hangs_nobody() {
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.tick = Duration::from_millis(5);
        config.round_limit = Some(Duration::from_millis(100));
        let groups = GroupsBuilder::new(config)
            .start(Arc::new(MemoryStore::new()), Arc::new(MemorySnapshots::new()), Arc::new(Alone))
            .unwrap();
        let (let_go, held) = crossbeam_channel::bounded::<()>(0);
        let hang = move |_: &_| assert!(held.recv().is_err(), "nothing is sent");
        let _hook = groups.on_leadership(GroupSelector::All, HookKind::Inline, hang);
        let spec = GroupSpec::new(GroupId::new(7), [NodeId::must(1)]);
        groups.create(spec, Box::new(Stateless)).unwrap();
        let mut health = groups.health();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let stuck = health.wait_for(Option::is_some);
            tokio::time::timeout(Duration::from_secs(20), stuck).await.unwrap().unwrap();
        });
        let fault = health.borrow().clone().unwrap();
        let HostFault::Stuck { worker, group, phase, .. } = &fault else { panic!("{fault}") };
        assert_eq!((*worker, *group, *phase), (0, GroupId::new(7), Phase::Effects), "{fault}");
        groups.shutdown();
        drop(let_go);
    }
}

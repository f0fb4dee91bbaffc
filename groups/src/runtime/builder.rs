//! The start of a host's groups: what they share, and their threads.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use dashmap::DashMap;
use parking_lot::Mutex;
use shardhost_storage::{LogStore, SnapshotStore};

use super::create_requests::{CreateRequestHandler, CreateRequests};
use super::inbox::Inbox;
use super::{
    AdditionHooks, Groups, GroupsInner, RuntimeShared, Threads, admissions, apply_pool, checker,
    doubt, impairments, log_writer, parked, snapshot_writer, watchdog, worker_thread,
};
use crate::clock::{Clock, SystemClock};
use crate::completion::Budget;
use crate::config::GroupsConfig;
use crate::error::HostFault;
use crate::latency::Latency;
use crate::leadership::LeadershipHub;
use crate::nodes::Advertisement;
use crate::panics::Watched;
use crate::policy::Policies;
use crate::transport::Transport;
use crate::worker::WorkerCounters;

/// Starts the groups of a host.
#[derive(Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct GroupsBuilder {
    config: GroupsConfig,
    workers: usize,
    apply_threads: usize,
    clock: Arc<dyn Clock>,
    create_requests: Option<CreateRequestHandler>,
    policies: Policies,
}

impl GroupsBuilder {
    /// A builder with one worker and two apply threads.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(config: GroupsConfig) -> Self {
        let clock = Arc::new(SystemClock);
        let policies = Policies::new();
        Self { config, workers: 1, apply_threads: 2, clock, create_requests: None, policies }
    }
    /// The clock of leases. All hosts' clocks must run at about the same speed.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
    /// Who is asked who may lead, from the first election on.
    pub fn policies(mut self, policies: Policies) -> Self {
        self.policies = policies;
        self
    }
    /// Called for replicas that this node should hold and does not: it was added to a group. Called
    /// by Raft threads, repeatedly until the replica exists: must not block.
    pub fn on_create_request(mut self, handler: CreateRequestHandler) -> Self {
        self.create_requests = Some(handler);
        self
    }
    /// Worker threads. One serves some hundred thousand proposals a second; more than a quarter
    /// of the cores is seldom of use.
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count.max(1);
        self
    }
    /// Threads for state machines, at least one. So many slow machines can be borne at the same
    /// time. One of them is kept free of restores and checksums, which take as long as a state is
    /// large; with a single thread, all groups of the host wait for those.
    pub fn apply_threads(mut self, count: usize) -> Self {
        self.apply_threads = count.max(1);
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        self,
        store: Arc<dyn LogStore>,
        snapshots: Arc<dyn SnapshotStore>,
        transport: Arc<dyn Transport>,
    ) -> std::io::Result<Groups> {
        let config = Arc::new(self.config);
        let (inboxes, outlets): (Vec<_>, Vec<_>) = (0..self.workers).map(|_| Inbox::new()).unzip();
        let (apply, apply_outlet) = apply_pool::ApplyQueue::new(self.apply_threads);
        let (log, log_outlet) = log_writer::LogQueue::new();
        let (admissions, admission_outlet) = admissions::AdmissionQueue::new();
        let (snapshot_tasks, snapshot_outlet) = snapshot_writer::SnapshotQueue::new();
        let (checks, check_outlet) = checker::CheckQueue::new();
        snapshot_writer::remove_unnamed(&*store, &*snapshots);
        let shared = Arc::new(RuntimeShared {
            inboxes,
            registry: DashMap::new(),
            hub: LeadershipHub::new(),
            budget: Arc::new(Budget::new(config.max_inflight_bytes, None)),
            store: Mutex::new(Some(store)),
            snapshots,
            transport,
            latency: Arc::default(),
            freezes: Latency::default(),
            log_writes: Latency::default(),
            rounds: Latency::default(),
            apply,
            log,
            snapshot_tasks,
            checks,
            counters: Mutex::new(vec![WorkerCounters::default(); self.workers]),
            activities: (0..self.workers).map(|_| Arc::default()).collect(),
            apply_activities: (0..self.apply_threads).map(|_| Default::default()).collect(),
            population: Mutex::new(vec![(0, 0); self.workers]),
            lives: Arc::default(),
            parked: parked::Parked::default(),
            stopping: AtomicBool::new(false),
            doubts: doubt::Doubts::default(),
            health: Watched::new(None),
            impairments: impairments::Impairments::new(first_advertisement(&config)),
            takes_no_entries: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            log_activity: log_writer::LogActivity::default(),
            clock: self.clock,
            policies: self.policies,
            admissions,
            additions: AdditionHooks::default(),
            create_requests: CreateRequests::new(self.create_requests),
            config,
        });
        let mut threads = Threads::default();
        let watched = Arc::clone(&shared);
        for (index, outlet) in outlets.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let run = move || worker_thread::run(&shared, index, &outlet);
            threads.workers.push(spawn(&watched, format!("worker-{index}"), run)?);
        }
        let writer = Arc::clone(&shared);
        threads.log = Some(spawn(&watched, "log-writer".to_owned(), move || {
            log_writer::run(&writer, &log_outlet);
        })?);
        for index in 0..self.apply_threads {
            let (shared, outlet) = (Arc::clone(&shared), apply_outlet.clone());
            let run = move || apply_pool::run(&shared, index, &outlet);
            threads.apply.push(spawn(&watched, format!("apply-{index}"), run)?);
        }
        for index in 0..snapshot_writer::THREADS {
            let (shared, outlet) = (Arc::clone(&shared), snapshot_outlet.clone());
            let run = move || snapshot_writer::run(&shared, &outlet);
            threads.snapshots.push(spawn(&watched, format!("snapshots-{index}"), run)?);
        }
        let checked = Arc::clone(&shared);
        let run = move || checker::run(&checked, &check_outlet);
        threads.checks = Some(spawn(&watched, "consistency".to_owned(), run)?);
        for index in 0..admissions::THREADS {
            let (shared, outlet) = (Arc::clone(&shared), admission_outlet.clone());
            let run = move || admissions::run(&shared, &outlet);
            threads.admissions.push(spawn(&watched, format!("admission-{index}"), run)?);
        }
        let hub = Arc::clone(&shared.hub);
        threads.dispatcher =
            Some(spawn(&watched, "leadership".to_owned(), move || hub.dispatch())?);
        let (alive, stop) = crossbeam_channel::bounded(0);
        let watching = Arc::clone(&shared);
        let run = move || watchdog::run(&watching, &stop);
        threads.watchdog = Some((alive, spawn(&watched, "watchdog".to_owned(), run)?));
        let (alive, stop) = crossbeam_channel::bounded(0);
        let asking = Arc::clone(&shared);
        let run = move || parked::asking::run(&asking, &stop);
        threads.asking = Some((alive, spawn(&watched, "asking".to_owned(), run)?));
        let inner = GroupsInner { shared, threads: Mutex::new(threads), ending: Mutex::new(()) };
        Ok(Groups { inner: Arc::new(inner) })
    }
}

/// The advertisement of a host when it starts.
pub(super) fn first_advertisement(config: &GroupsConfig) -> Advertisement {
    Advertisement { capabilities: config.capabilities.clone(), ..Advertisement::default() }
}

/// Starts a thread; when it panics, the host fails instead of going on without it.
pub(super) fn spawn(
    shared: &Arc<RuntimeShared>,
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let (shared, thread) = (Arc::clone(shared), Arc::from(name.as_str()));
    let watched = move || {
        if let Err(message) = crate::panics::contain(run) {
            shared.fail(&HostFault::Thread { thread, message: message.into() });
        }
    };
    std::thread::Builder::new().name(name).spawn(watched)
}

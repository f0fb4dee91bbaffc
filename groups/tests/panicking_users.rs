//! What users give a host and panics when it is called, named or dropped: it costs them what they
//! asked for, and no thread of the host.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::Read;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use shardhost_groups::leadership::{HookGuard, HookKind};
use shardhost_groups::nodes::Impairment;
use shardhost_groups::policy::{Candidate, LeadershipPolicy, Opinion, PolicyGuard};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::testing::alone::{Alone, Stateless};
use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig, LogPosition,
    MembershipChange, ProposalSink, ProposeOutcome, ReadMode, RequirementMode, SnapshotWriter,
    StateMachine,
};
use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore, NodeId};

const SOON: Duration = Duration::from_secs(20);

/// Panics when it is dropped, as the last thing that refers to a user's code may be.
#[derive(Debug)]
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("told to panic when it is dropped");
    }
}

/// A host of groups with one voter each.
struct Host {
    groups: Groups,
    dropped: Arc<AtomicUsize>,
}

impl Host {
    fn start() -> Self {
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.tick = Duration::from_millis(5);
        let (store, snapshots) = (Arc::new(MemoryStore::new()), Arc::new(MemorySnapshots::new()));
        let builder = GroupsBuilder::new(config).workers(1).apply_threads(1);
        let groups = builder.start(store, snapshots, Arc::new(Alone)).unwrap();
        Self { groups, dropped: Arc::default() }
    }

    fn bomb(&self) -> Bomb {
        Bomb(Arc::clone(&self.dropped))
    }

    fn create(&self, group: u64) -> Group {
        let spec = GroupSpec::new(GroupId::new(group), [NodeId::must(1)]);
        self.groups.create(spec, Box::new(Stateless)).unwrap()
    }

    fn until_dropped(&self) {
        wait_until("it is not dropped", || self.dropped.load(Ordering::SeqCst) == 1);
    }

    /// Another group is created, led and written to: every thread that this takes is there.
    async fn serves(&self, group: u64) {
        let other = self.create(group);
        write(&other).await;
        assert_eq!(*self.groups.health().borrow(), None);
        self.groups.shutdown();
    }
}

async fn write(group: &Group) {
    let led = group.wait_for(|status| status.is_leader(), SOON).await;
    assert!(led.is_some(), "{:?}", group.status());
    let written = tokio::time::timeout(SOON, group.propose("a command")).await;
    written.expect("nothing answers").unwrap();
}

fn wait_until(otherwise: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < SOON, "{otherwise}");
        std::thread::yield_now();
    }
}

/// Panics at every outcome, and when it is dropped.
#[derive(Debug)]
struct BadSink {
    outcomes: Arc<AtomicUsize>,
    _bomb: Bomb,
}

impl ProposalSink for BadSink {
    fn complete(&self, _: u64, _: ProposeOutcome) {
        self.outcomes.fetch_add(1, Ordering::SeqCst);
        panic!("told to panic at an outcome");
    }
}

/// Applies nothing while the gate is held.
#[derive(Debug)]
struct Gated(Arc<Mutex<()>>);

impl StateMachine for Gated {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(None)
    }

    fn apply(&mut self, _: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        drop(self.0.lock());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("it has none"))
    }

    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Ok(())
    }
}

#[tokio::test]
async fn a_sink_that_panics_when_it_is_called_and_dropped_ends_no_thread() {
    let host = Host::start();
    let gate = Arc::new(Mutex::new(()));
    let spec = GroupSpec::new(GroupId::new(7), [NodeId::must(1)]);
    let group = host.groups.create(spec, Box::new(Gated(Arc::clone(&gate)))).unwrap();
    write(&group).await;
    let outcomes = Arc::default();
    let sink = BadSink { outcomes: Arc::clone(&outcomes), _bomb: host.bomb() };
    let sink: Arc<dyn ProposalSink> = Arc::new(sink);
    // Nothing is applied before this caller let go of the sink: the last to hold it is the thread
    // that completes the last proposal.
    let closed = gate.lock().unwrap();
    group.submit((0..3).map(|token| (token, "a command".into())), &sink);
    drop(sink);
    drop(closed);
    host.until_dropped();
    assert_eq!(outcomes.load(Ordering::SeqCst), 3);
    write(&group).await;
    host.serves(9).await;
}

/// The guard of a hook that is dropped inside another one leaves the hook to a thread of the host.
#[tokio::test]
async fn a_hook_that_panics_when_it_is_dropped_ends_no_thread() {
    let host = Host::start();
    let bomb = host.bomb();
    let hook = host.groups.on_leadership(GroupSelector::All, HookKind::Inline, move |_| {
        assert!(bomb.0.load(Ordering::SeqCst) == 0);
    });
    let slot: Arc<Mutex<Option<HookGuard>>> = Arc::new(Mutex::new(Some(hook)));
    let _other = host.groups.on_leadership(GroupSelector::All, HookKind::Inline, move |_| {
        drop(slot.lock().unwrap().take());
    });
    write(&host.create(7)).await;
    write(&host.create(8)).await;
    host.until_dropped();
    host.serves(9).await;
}

/// A hook whose guard is dropped while it is called is dropped by the thread that calls hooks.
#[tokio::test]
async fn a_hook_that_panics_when_the_dispatcher_drops_it_ends_no_thread() {
    let host = Host::start();
    let bomb = host.bomb();
    let slot: Arc<Mutex<Option<HookGuard>>> = Arc::default();
    let own = Arc::clone(&slot);
    let hook = host.groups.on_leadership(GroupSelector::All, HookKind::Dispatched, move |_| {
        assert!(bomb.0.load(Ordering::SeqCst) == 0);
        drop(own.lock().unwrap().take());
    });
    *slot.lock().unwrap() = Some(hook);
    write(&host.create(7)).await;
    host.until_dropped();
    let (called, calls) = std::sync::mpsc::channel();
    let _second = host.groups.on_leadership(GroupSelector::All, HookKind::Dispatched, move |_| {
        called.send(()).unwrap();
    });
    calls.recv_timeout(SOON).expect("hooks are called");
    host.serves(9).await;
}

/// Panics whenever it is asked, named after its registration, or dropped.
#[derive(Debug)]
struct BadPolicy {
    named: AtomicUsize,
    guard: Arc<Mutex<Option<PolicyGuard>>>,
    _bomb: Bomb,
}

impl LeadershipPolicy for BadPolicy {
    fn name(&self) -> &'static str {
        assert_eq!(self.named.fetch_add(1, Ordering::SeqCst), 0, "told to panic when it is named");
        "bad"
    }

    fn may_lead(&self, _: &Candidate<'_>) -> Opinion {
        drop(self.guard.lock().unwrap().take());
        panic!("told to panic when it is asked");
    }
}

#[tokio::test]
async fn a_policy_that_panics_when_it_is_asked_named_and_dropped_ends_no_thread() {
    let host = Host::start();
    let guard: Arc<Mutex<Option<PolicyGuard>>> = Arc::default();
    let policy =
        BadPolicy { named: AtomicUsize::new(0), guard: Arc::clone(&guard), _bomb: host.bomb() };
    let registered = host.groups.register_policy(GroupSelector::All, policy);
    *guard.lock().unwrap() = Some(registered);
    // A vote is asked for with the policy; where it panics nothing is known.
    write(&host.create(7)).await;
    host.until_dropped();
    host.serves(9).await;
}

/// A panic whose own message panics when it is dropped.
#[tokio::test]
async fn a_panic_that_panics_when_it_is_dropped_ends_no_thread() {
    let host = Host::start();
    let dropped = Arc::clone(&host.dropped);
    let _hook = host.groups.on_leadership(GroupSelector::All, HookKind::Inline, move |event| {
        if event.group() == GroupId::new(7) && dropped.load(Ordering::SeqCst) == 0 {
            std::panic::panic_any(Bomb(Arc::clone(&dropped)));
        }
    });
    write(&host.create(7)).await;
    host.until_dropped();
    host.serves(9).await;
}

/// Panics when it wakes its task.
struct BadWaker(AtomicUsize);

impl Wake for BadWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("told to panic when a task is woken");
    }
}

type Waits = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task of an executor that is not ours waits for something.
fn wait<F>(future: F) -> Waits
where
    F: Future<Output: Send> + Send + 'static,
{
    Box::pin(async { drop(future.await) })
}

/// Has an executor whose wakers panic wait for something that is not there yet.
struct BadExecutor {
    _task: Waits,
    waker: Arc<BadWaker>,
}

impl BadExecutor {
    fn wait(what: &str, mut task: Waits) -> Self {
        let bad = Arc::new(BadWaker(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&bad));
        let looked = task.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(looked.is_pending(), "{what} is there already");
        Self { _task: task, waker: bad }
    }

    fn until_woken(self, what: &str) {
        let woken = || self.waker.0.load(Ordering::SeqCst) > 0;
        wait_until(&format!("{what}: it is not woken"), woken);
    }
}

/// Keeps the worker of a host in an inline hook.
struct HeldWorker {
    go: Option<mpsc::Sender<()>>,
    _hook: HookGuard,
}

impl HeldWorker {
    /// The worker is in the hook of the leadership of a group that is created for it.
    fn hold(host: &Host, group: u64) -> Self {
        let (go, gone) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let gone = Mutex::new(gone);
        let only = GroupSelector::One(GroupId::new(group));
        let hook = host.groups.on_leadership(only, HookKind::Inline, move |_| {
            begun.send(()).unwrap_or(());
            gone.lock().unwrap().recv().unwrap_or(());
        });
        host.create(group);
        begins.recv_timeout(SOON).expect("the worker leads it");
        Self { go: Some(go), _hook: hook }
    }

    fn release(&mut self) {
        drop(self.go.take());
    }
}

/// Who is woken by a worker while it answers.
async fn a_bad_waker_ends_no_worker(what: &str, ask: impl FnOnce(&Host, Group) -> Waits) {
    let host = Host::start();
    let group = host.create(7);
    write(&group).await;
    let task = ask(&host, group);
    let mut held = HeldWorker::hold(&host, 8);
    let asked = BadExecutor::wait(what, task);
    held.release();
    asked.until_woken(what);
    host.serves(9).await;
}

#[tokio::test]
async fn an_executor_whose_wakers_panic_ends_no_worker() {
    a_bad_waker_ends_no_worker("a read", |_, group| {
        wait(async move { group.query(ReadMode::Linearizable, "").await })
    })
    .await;
    a_bad_waker_ends_no_worker("a transfer", |_, group| {
        wait(async move { group.transfer_leadership(None).await })
    })
    .await;
    a_bad_waker_ends_no_worker("a change of members", |_, group| {
        let change = MembershipChange::default();
        wait(async move { group.change_membership(change).await })
    })
    .await;
    a_bad_waker_ends_no_worker("a snapshot", |_, group| {
        wait(async move { group.snapshot().await })
    })
    .await;
    a_bad_waker_ends_no_worker("a barrier", |_, group| {
        wait(async move { group.open_barrier().await })
    })
    .await;
    a_bad_waker_ends_no_worker("who can lead", |_, group| {
        wait(async move { group.eligibility().await })
    })
    .await;
    a_bad_waker_ends_no_worker("a status", |_, group| {
        wait(async move {
            let last = group.status().last;
            let sink: Arc<dyn ProposalSink> = Arc::new(Forgotten);
            group.submit([(0, "a command".into())], &sink);
            group.wait_for(|status| status.last > last, SOON).await
        })
    })
    .await;
    a_bad_waker_ends_no_worker("the stream of leadership", |host, _| {
        let mut events = host.groups.leadership(GroupSelector::One(GroupId::new(8)));
        wait(async move { events.recv().await })
    })
    .await;
    a_bad_waker_ends_no_worker("the end of a replica", |host, group| {
        let groups = host.groups.clone();
        wait(async move { groups.close(group.id()).await })
    })
    .await;
    a_bad_waker_ends_no_worker("the removal of a replica", |host, group| {
        let groups = host.groups.clone();
        wait(async move { groups.destroy(group.id()).await })
    })
    .await;
}

/// Takes no notice of outcomes.
struct Forgotten;

impl ProposalSink for Forgotten {
    fn complete(&self, _: u64, _: ProposeOutcome) {}
}

/// Who is woken by an apply thread, or by whatever publishes what is wrong with the host.
#[tokio::test]
async fn an_executor_whose_wakers_panic_ends_no_apply_thread() {
    for what in ["a question", "a checksum"] {
        let host = Host::start();
        let gate = Arc::new(Mutex::new(()));
        let spec = GroupSpec::new(GroupId::new(7), [NodeId::must(1)]);
        let group = host.groups.create(spec, Box::new(Gated(Arc::clone(&gate)))).unwrap();
        write(&group).await;
        let closed = gate.lock().unwrap();
        let sink: Arc<dyn ProposalSink> = Arc::new(Forgotten);
        let committed = group.status().committed;
        group.submit([(0, "a command".into())], &sink);
        wait_until("it is not committed", || group.status().committed > committed);
        let asks = group.clone();
        let task = match what {
            "a question" => wait(async move { asks.query(ReadMode::Stale, "").await }),
            _ => wait(async move { asks.checksum().await }),
        };
        let asked = BadExecutor::wait(what, task);
        drop(closed);
        asked.until_woken(what);
        write(&group).await;
        host.serves(9).await;
    }
}

#[tokio::test]
async fn an_executor_whose_wakers_panic_keeps_no_impairment_from_others() {
    let host = Host::start();
    let mut other = host.groups.impairment();
    let mut impairment = host.groups.impairment();
    let bad = BadExecutor::wait("an impairment", wait(async move { impairment.changed().await }));
    let cause = Impairment { reason: "a test".into(), mode: RequirementMode::Soft };
    host.groups.impair("a test", Some(cause));
    bad.until_woken("an impairment");
    assert!(other.has_changed().unwrap());
    assert!(other.borrow_and_update().is_some());
    host.groups.impair("a test", None);
    host.serves(9).await;
}

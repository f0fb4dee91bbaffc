//! What users give a host and panics when it is called, named or dropped: it costs them what they
//! asked for, and no thread of the host.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shardhost_groups::leadership::{HookGuard, HookKind};
use shardhost_groups::policy::{Candidate, LeadershipPolicy, Opinion, PolicyGuard};
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::testing::alone::{Alone, Stateless};
use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig, LogPosition,
    ProposalSink, ProposeOutcome, SnapshotWriter, StateMachine,
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
        let groups = GroupsBuilder::new(config).start(store, snapshots, Arc::new(Alone)).unwrap();
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

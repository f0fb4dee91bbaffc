//! A snapshot that cannot be made harms no other, is counted, and is tried again later.

use std::io::Read;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_storage::{
    GroupId, GroupWrite, LogBatch, LogIndex, MemorySnapshots, MemoryStore, NodeId, SnapshotFault,
};

use super::*;
use crate::GroupsConfig;
use crate::error::TakeSnapshotError;
use crate::machine::{ApplyBatch, ApplyFault, StateMachine};
use crate::runtime::{Group, GroupSpec, Groups, GroupsBuilder};
use crate::testing::alone::Alone;

const DEADLINE: Duration = Duration::from_secs(20);
const GROUP: GroupId = GroupId::new(1);

/// What the view of a machine does when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Write,
    Panic,
    Fail,
    /// Writes until stopped, or until something else is requested.
    Endless,
}

#[derive(Clone)]
struct Machine {
    applied: Option<LogPosition>,
    behaviour: Arc<Mutex<Behaviour>>,
    open_views: OpenViews,
    /// Claims to be durable, so that the log needs no snapshots.
    keeps: bool,
}

/// Counts views that are not closed.
type OpenViews = Arc<AtomicUsize>;

impl StateMachine for Machine {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.applied = Some(batch.last());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        self.open_views.fetch_add(1, Ordering::SeqCst);
        let (open_views, now) = (Arc::clone(&self.open_views), Arc::clone(&self.behaviour));
        let behaviour = *now.lock();
        Ok(Box::new(View { behaviour, now, open_views }))
    }

    fn restore(&mut self, at: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        self.applied = Some(at);
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        self.applied.filter(|_| self.keeps).map(|applied| applied.index)
    }
}

struct View {
    behaviour: Behaviour,
    now: Arc<Mutex<Behaviour>>,
    open_views: OpenViews,
}

impl Drop for View {
    fn drop(&mut self) {
        self.open_views.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(b"state")?;
        match self.behaviour {
            Behaviour::Write => Ok(()),
            Behaviour::Panic => panic!("a view on purpose"),
            Behaviour::Fail => Err(io::Error::other("cannot be serialised")),
            Behaviour::Endless => {
                while *self.now.lock() == Behaviour::Endless {
                    sink.write_all(b"and so on")?;
                    std::thread::yield_now();
                }
                Ok(())
            }
        }
    }
}

/// A host of one group that leads alone.
struct Host {
    groups: Groups,
    group: Group,
    snapshots: MemorySnapshots,
    behaviour: Arc<Mutex<Behaviour>>,
    open_views: OpenViews,
}

impl Host {
    async fn start(change: impl FnOnce(&mut GroupsConfig)) -> Self {
        Self::start_with(false, change).await
    }

    async fn start_with(keeps: bool, change: impl FnOnce(&mut GroupsConfig)) -> Self {
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.tick = Duration::from_millis(2);
        config.hibernate_after_ticks = 0;
        change(&mut config);
        let snapshots = MemorySnapshots::new();
        let groups = GroupsBuilder::new(config)
            .start(Arc::new(MemoryStore::new()), Arc::new(snapshots.clone()), Arc::new(Alone))
            .unwrap();
        let behaviour = Arc::new(Mutex::new(Behaviour::Write));
        let open_views = OpenViews::default();
        let machine = Machine {
            applied: None,
            behaviour: Arc::clone(&behaviour),
            open_views: Arc::clone(&open_views),
            keeps,
        };
        let spec = GroupSpec::new(GROUP, [NodeId::must(1)]);
        let group = groups.create(spec, Box::new(machine)).unwrap();
        group.wait_for(|status| status.serving, DEADLINE).await.expect("it leads alone");
        Self { groups, group, snapshots, behaviour, open_views }
    }

    async fn take(&self) -> Result<LogPosition, TakeSnapshotError> {
        tokio::time::timeout(DEADLINE, self.group.snapshot()).await.expect("an answer in time")
    }

    fn counted(&self) -> (u64, u64) {
        let stats = self.groups.stats();
        (stats.snapshots_made, stats.snapshot_failures)
    }

    fn open_views(&self) -> usize {
        self.open_views.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn s2_s9_a_view_that_cannot_be_written_is_closed_counted_and_tried_again() {
    let host = Host::start(|_| ()).await;
    for (failures, trouble) in [Behaviour::Fail, Behaviour::Panic].into_iter().enumerate() {
        *host.behaviour.lock() = trouble;
        let refused = host.take().await.unwrap_err();
        assert!(matches!(refused, TakeSnapshotError::Failed { .. }), "{trouble:?}: {refused}");
        assert_eq!(host.counted(), (failures as u64, 1 + failures as u64), "{trouble:?}");
        *host.behaviour.lock() = Behaviour::Write;
        let made = host.take().await.unwrap();
        assert!(host.snapshots.open(GROUP, made).is_ok());
        host.group.propose("on it goes").await.unwrap();
    }
    assert_eq!(host.open_views(), 0);
    assert!(host.groups.health().borrow().is_none());
    host.groups.shutdown();
}

#[tokio::test]
async fn s9_a_full_disk_fails_no_group() {
    let host = Host::start(|_| ()).await;
    host.snapshots.inject(SnapshotFault::NoSpace);
    assert!(matches!(host.take().await, Err(TakeSnapshotError::Failed { .. })));
    host.group.propose("on it goes").await.unwrap();
    host.snapshots.heal();
    host.take().await.unwrap();
    assert_eq!(host.counted(), (1, 1));
    assert_eq!(host.open_views(), 0);
    host.groups.shutdown();
}

#[tokio::test]
async fn s9_failures_in_a_row_are_further_and_further_apart() {
    let host = Host::start(|config| config.snapshot_entries = 1).await;
    host.snapshots.inject(SnapshotFault::NoSpace);
    let began = Instant::now();
    while host.counted().1 < 5 {
        assert!(began.elapsed() < DEADLINE, "{:?}", host.counted());
        host.group.propose("grow").await.unwrap();
    }
    // 10, 20, 40 and 80 ticks of 2 ms.
    assert!(began.elapsed() > Duration::from_millis(300), "{:?}", began.elapsed());
    host.snapshots.heal();
    let healed = host.counted().1;
    while host.counted().0 == 0 {
        assert!(began.elapsed() < DEADLINE, "{:?}", host.counted());
        host.group.propose("grow").await.unwrap();
    }
    assert_eq!(host.counted().1, healed);
    host.groups.shutdown();
}

#[tokio::test]
async fn e6_the_log_stays_from_where_a_snapshot_is_being_made() {
    const TRAIL: u64 = 10;
    let host = Host::start_with(true, |config| {
        (config.log_trail_entries, config.log_keep_entries) = (TRAIL, TRAIL);
    });
    let host = host.await;
    let first = || host.group.status().first.get();
    for _ in 0..50 {
        host.group.propose("before").await.unwrap();
    }
    *host.behaviour.lock() = Behaviour::Endless;
    let applied = host.group.status().applied.get();
    let group = host.group.clone();
    let asked = tokio::spawn(async move { group.snapshot().await });
    let began = Instant::now();
    // It is not truncated for less than half of the trail, so it may stay so far from the snapshot.
    while first() + TRAIL.div_ceil(2) <= applied {
        assert!(began.elapsed() < DEADLINE, "the log is not truncated: {:?}", host.group.status());
        host.group.propose("meanwhile").await.unwrap();
    }
    // The log is looked at every ten ticks of 2 ms.
    let reached = Instant::now();
    while reached.elapsed() < Duration::from_millis(100) {
        host.group.propose("meanwhile").await.unwrap();
    }
    let held = first();
    *host.behaviour.lock() = Behaviour::Write;
    let made = asked.await.unwrap().unwrap().index.get();
    assert!(held <= made + 1, "a snapshot at {made} and a log from {held}");
    while first() <= made + 1 {
        assert!(began.elapsed() < DEADLINE, "the log stays: {:?}", host.group.status());
        host.group.propose("after").await.unwrap();
    }
    host.groups.shutdown();
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_large_snapshot() {
    let host = Host::start(|_| ()).await;
    *host.behaviour.lock() = Behaviour::Endless;
    let group = host.group.clone();
    let asked = tokio::spawn(async move { group.snapshot().await });
    let began = Instant::now();
    while host.open_views() == 0 {
        assert!(began.elapsed() < DEADLINE, "nobody writes");
        tokio::task::yield_now().await;
    }
    let groups = host.groups.clone();
    let stopped = tokio::task::spawn_blocking(move || groups.shutdown());
    tokio::time::timeout(DEADLINE, stopped).await.expect("it stops").unwrap();
    assert!(asked.await.unwrap().is_err());
    assert_eq!((host.counted(), host.open_views()), ((0, 0), 0));
    assert_eq!(host.snapshots.list(GROUP), Ok(vec![]));
}

#[test]
fn s3_snapshots_that_no_replica_names_are_removed_at_the_start() {
    let (log, snapshots) = (MemoryStore::new(), MemorySnapshots::new());
    let positions = [3, 7, 9].map(|index| LogPosition::new(1, index));
    let [named, unnamed, unknown] = [1, 2, 3].map(GroupId::new);
    for group in [named, unnamed, unknown] {
        for position in positions {
            let mut writer = snapshots.create(group, position).unwrap();
            writer.write_all(b"state").unwrap();
            writer.finish().unwrap();
        }
    }
    for (group, snapshot) in [(named, Some(positions[1])), (unnamed, None)] {
        let mut write = GroupWrite::new(group);
        let membership = shardhost_storage::Membership::initial([NodeId::must(1)]);
        write.meta = Some(shardhost_storage::GroupMeta {
            group,
            replica: shardhost_storage::ReplicaId::must(1),
            membership,
            snapshot,
            labels: Default::default(),
            kind: String::new(),
            skipping: None,
        });
        write.reset = Some(LogPosition::default());
        log.write(&LogBatch { writes: vec![write] }).unwrap();
    }
    remove_unnamed(&log, &snapshots);
    assert_eq!(snapshots.list(named), Ok(vec![positions[1]]));
    assert_eq!(snapshots.groups(), Ok(vec![named]));
}

#[test]
fn a_view_that_takes_long_keeps_no_other_waiting() {
    let turns = Turns::new(Duration::from_millis(50));
    let (order, hangs) = (Mutex::new(Vec::new()), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            turns.take(|| {
                order.lock().push("hangs");
                hangs.wait();
                // Until the others are done.
                hangs.wait();
            });
        });
        hangs.wait();
        let began = Instant::now();
        turns.take(|| order.lock().push("first"));
        assert!(began.elapsed() >= Duration::from_millis(40), "it waited for its turn");
        turns.take(|| order.lock().push("second"));
        hangs.wait();
    });
    assert_eq!(*order.lock(), ["hangs", "first", "second"]);
    // The one whose turn was long over ended no other's.
    assert_eq!(turns.current.lock().number, 3);
    assert!(turns.current.lock().began.is_none());
}

#[test]
fn views_are_written_one_at_a_time() {
    let (turns, running) = (Turns::new(DEADLINE), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    turns.take(|| {
                        assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        }
    });
}

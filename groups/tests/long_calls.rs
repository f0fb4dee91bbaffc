//! Restores and checksums take as long as a state is large: they hold up no other group, and none
//! of them counts as a call that hangs while it gets on.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig, LogPosition,
    Progress, QueryError, ReadMode, SnapshotWriter, StateChecksum, StateMachine,
};
use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore, NodeId};
use shardhost_testing::network::Network;

const SOON: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_millis(200);
/// More than any test takes away of it while it waits.
const STATE_BYTES: usize = 1 << 20;

/// What long calls of some machines do.
#[derive(Debug, Default)]
struct Switch {
    /// They go on to their end.
    ends: AtomicBool,
    /// They get on meanwhile.
    gets_on: AtomicBool,
    begun: AtomicUsize,
}

impl Switch {
    fn new(gets_on: bool) -> Arc<Self> {
        Arc::new(Self { gets_on: gets_on.into(), ..Self::default() })
    }

    fn end(&self) {
        self.ends.store(true, Ordering::SeqCst);
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// A long call: `step` by `step`.
    fn take(&self, mut step: impl FnMut()) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        while !self.ends.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
            if self.gets_on.load(Ordering::SeqCst) {
                step();
            }
        }
    }

    async fn until_begun(&self, count: usize) {
        let began = Instant::now();
        while self.begun() < count {
            assert!(began.elapsed() < SOON, "{} of {count} began", self.begun());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Counts commands, and takes long for a restore and a checksum.
#[derive(Debug)]
struct Large {
    applied: Option<LogPosition>,
    switch: Arc<Switch>,
}

impl StateMachine for Large {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.applied = Some(batch.last());
        Ok(())
    }

    fn query(&self, request: &bytes::Bytes) -> Result<bytes::Bytes, QueryError> {
        Ok(request.clone())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(Zeros))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        self.switch.take(|| {
            let read = source.read(&mut [0; 8]);
            assert_eq!(read.unwrap(), 8, "the state is too small for the test");
        });
        let rest = io::copy(source, &mut io::sink());
        rest.map_err(ApplyFault::new)?;
        self.applied = Some(at);
        Ok(())
    }

    fn checksum(&self, progress: &Progress) -> Result<StateChecksum, QueryError> {
        self.switch.take(|| progress.step());
        Ok(StateChecksum::default())
    }
}

struct Zeros;

impl SnapshotWriter for Zeros {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(&vec![0; STATE_BYTES])
    }
}

fn host(network: &Network, node: u64, apply_threads: usize) -> Groups {
    let mut config = GroupsConfig::new(NodeId::must(node));
    config.tick = Duration::from_millis(10);
    config.hibernate_after_ticks = 0;
    config.machine_limit = Some(LIMIT);
    (config.log_trail_entries, config.log_keep_entries, config.snapshot_entries) = (1, 1, 5);
    let (incarnation, node) = (config.incarnation, config.node);
    let (snapshots, port) = (Arc::new(MemorySnapshots::new()), network.port(node));
    let groups = GroupsBuilder::new(config)
        .apply_threads(apply_threads)
        .start(Arc::new(MemoryStore::new()), snapshots.clone(), port.clone())
        .unwrap();
    port.attach(groups.inbound(), snapshots, incarnation);
    groups
}

/// A group on these hosts.
fn create(hosts: &[&Groups], id: u64, switch: &Arc<Switch>) -> Vec<Group> {
    let nodes: Vec<NodeId> = hosts.iter().map(|host| host.config().node).collect();
    let created = hosts.iter().map(|host| {
        let machine = Large { applied: None, switch: Arc::clone(switch) };
        let spec = GroupSpec::new(GroupId::new(id), nodes.iter().copied());
        host.create(spec, Box::new(machine)).unwrap()
    });
    created.collect()
}

/// The replica that serves, of some.
async fn served_by(replicas: &[&Group]) -> Group {
    let waits = replicas.iter();
    let waits = waits.map(|one| Box::pin(one.wait_for(|status| status.serving, SOON)));
    let (served, at, _) = futures::future::select_all(waits).await;
    served.expect("nobody serves it");
    replicas[at].clone()
}

/// Has the first of three replicas of each group, all of them on one host, restore a snapshot.
async fn restore(network: &Network, groups: &[Vec<Group>], host: &Groups) {
    network.isolate(host.config().node);
    for replicas in groups {
        let leader = served_by(&[&replicas[1], &replicas[2]]).await;
        for _ in 0..20 {
            leader.propose("many").await.unwrap();
        }
        let behind = replicas[0].status().applied;
        let cut = leader.wait_for(|status| status.first > behind.next(), SOON).await;
        cut.expect("its log is cut");
    }
    network.heal();
}

/// Commands of a group are answered, its host is well, and other replicas there do not hang, for
/// several times the limit.
async fn served_meanwhile(host: &Groups, group: &Group, others: &[&Group]) {
    let began = Instant::now();
    while began.elapsed() < 8 * LIMIT {
        let answer = tokio::time::timeout(SOON, group.propose("meanwhile").into_future()).await;
        answer.expect("it waits for other groups").unwrap();
        assert_eq!(*host.impairment().borrow(), None);
        for other in others {
            assert_eq!(other.status().stalled, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_hold_up_no_other_group_and_do_not_hang_while_they_get_on() {
    let network = Network::new(7);
    let hosts = [1, 2, 3].map(|node| host(&network, node, 2));
    let (first, second) = (Switch::new(true), Switch::new(true));
    let all: Vec<&Groups> = hosts.iter().collect();
    let groups = [create(&all, 1, &first), create(&all, 2, &second)];
    let alone = create(&all[..1], 3, &first).remove(0);
    served_by(&[&alone]).await;
    restore(&network, &groups, &hosts[0]).await;
    let begun = || (first.begun() + second.begun(), first.begun() > 0);
    let began = Instant::now();
    while begun().0 == 0 {
        assert!(began.elapsed() < SOON, "no restore begins");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    served_meanwhile(&hosts[0], &alone, &[&groups[0][0], &groups[1][0]]).await;
    let (count, is_first) = begun();
    assert_eq!(count, 1, "one thread of two is kept free");
    // Questions are answered by the replica that waits.
    let waits = &groups[usize::from(is_first)][0];
    assert_eq!(waits.query(ReadMode::Stale, "old").await.unwrap(), "old");
    // The other one has its turn, and both come to their end.
    let (this, other) = if is_first { (&first, &second) } else { (&second, &first) };
    this.end();
    other.until_begun(1).await;
    other.end();
    for replicas in &groups {
        let leader = served_by(&[&replicas[1], &replicas[2]]).await;
        let applied = leader.propose("after").await.unwrap().index;
        let level = replicas[0].wait_for(|status| status.applied >= applied, SOON).await;
        level.expect("it is restored and goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_that_gets_on_does_not_hang_and_one_that_stands_still_does() {
    let network = Network::new(7);
    let host = host(&network, 1, 2);
    let (long, quick) = (Switch::new(true), Switch::default());
    let (long, quick) = (long, Arc::new(quick));
    let [summed, other] =
        [(1, &long), (2, &quick)].map(|(id, switch)| create(&[&host], id, switch).remove(0));
    for group in [&summed, &other] {
        served_by(&[group]).await;
    }
    let sum = tokio::spawn({
        let summed = summed.clone();
        async move { summed.checksum().await.map(drop) }
    });
    long.until_begun(1).await;
    served_meanwhile(&host, &other, &[&summed]).await;
    long.gets_on.store(false, Ordering::SeqCst);
    let hangs = summed.wait_for(|status| status.stalled.is_some(), SOON).await;
    let why = hangs.expect("it does not say so").stalled.clone().unwrap();
    assert!(why.contains("a checksum takes its state machine longer"), "{why}");
    long.end();
    sum.await.unwrap().unwrap();
    summed.wait_for(|status| status.stalled.is_none(), SOON).await.expect("it hangs for ever");
}

/// A read-only question holds up no commands of its own group while it waits for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_that_waits_for_its_turn_lets_the_commands_of_its_group_pass() {
    let network = Network::new(7);
    let host = host(&network, 1, 2);
    let switches = [Switch::new(true), Switch::new(true)];
    let groups = [1, 2].map(|id| create(&[&host], id, &switches[id as usize - 1]).remove(0));
    for group in &groups {
        served_by(&[group]).await;
    }
    let ask = |group: &Group| {
        let group = group.clone();
        tokio::spawn(async move { group.checksum().await })
    };
    let first = ask(&groups[0]);
    switches[0].until_begun(1).await;
    let second = ask(&groups[1]);
    served_meanwhile(&host, &groups[1], &[]).await;
    assert_eq!(switches[1].begun(), 0, "one thread of two is kept free");
    let passed = groups[1].status().applied;
    switches.iter().for_each(|switch| switch.end());
    first.await.unwrap().unwrap();
    let (at, _) = second.await.unwrap().unwrap();
    assert!(at.index >= passed, "{at} is not that of its turn, behind {passed}");
}

/// Who waits for a turn and goes away leaves it to the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_ends_while_it_waits_for_its_turn_keeps_nobody_from_theirs() {
    let network = Network::new(7);
    let host = host(&network, 1, 2);
    let switches = [(); 3].map(|()| Switch::new(true));
    let groups = [1, 2, 3].map(|id| create(&[&host], id, &switches[id as usize - 1]).remove(0));
    for group in &groups {
        served_by(&[group]).await;
    }
    let ask = |group: &Group| {
        let group = group.clone();
        tokio::spawn(async move { group.checksum().await.map(drop) })
    };
    let first = ask(&groups[0]);
    switches[0].until_begun(1).await;
    let ended = ask(&groups[1]);
    // It is put aside before a command is answered that came later.
    groups[1].propose("behind").await.unwrap();
    let third = ask(&groups[2]);
    groups[2].propose("behind").await.unwrap();
    let closed = tokio::time::timeout(SOON, host.close(groups[1].id())).await;
    assert!(closed.expect("it waits for another group's call"));
    assert!(ended.await.unwrap().is_err());
    switches.iter().for_each(|switch| switch.end());
    first.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    assert_eq!(switches[1].begun(), 0);
}

/// Nothing can be kept free of a single thread; all calls end.
#[tokio::test(flavor = "multi_thread")]
async fn with_one_thread_long_calls_have_their_turn_one_after_the_other() {
    let network = Network::new(7);
    let host = host(&network, 1, 1);
    let switches = [(); 3].map(|()| Switch::new(true));
    let groups = [1, 2, 3].map(|id| create(&[&host], id, &switches[id as usize - 1]).remove(0));
    for group in &groups {
        served_by(&[group]).await;
    }
    let asked = groups.clone().map(|group| tokio::spawn(async move { group.checksum().await }));
    switches.iter().for_each(|switch| switch.end());
    for sum in asked {
        sum.await.unwrap().unwrap();
    }
    for group in &groups {
        group.propose("after").await.unwrap();
    }
}

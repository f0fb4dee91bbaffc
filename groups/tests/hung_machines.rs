//! State machines whose calls do not return, on real hosts: others lead what they keep from being
//! served, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig, LogPosition,
    RejectReason, SnapshotWriter, StateMachine, TransferError,
};
use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore, NodeId};
use shardhost_testing::network::Network;

const SOON: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_millis(400);
const GROUPS: u64 = 4;
const APPLY_THREADS: usize = 2;

/// Applies when it can have its gate, and no faster than allowed.
#[derive(Clone, Debug, Default)]
struct Gated {
    applied: Option<LogPosition>,
    gate: Arc<Mutex<()>>,
    delay: Arc<Mutex<Duration>>,
}

impl StateMachine for Gated {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let delay = *self.delay.lock();
        std::thread::sleep(delay);
        drop(self.gate.lock());
        self.applied = Some(batch.last());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(Empty))
    }

    fn restore(&mut self, at: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        self.applied = Some(at);
        Ok(())
    }
}

struct Empty;

impl SnapshotWriter for Empty {
    fn write_to(self: Box<Self>, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// Three hosts with a replica of each group, all led by the first host.
struct Trio {
    _network: Network,
    hosts: Vec<Groups>,
    /// The gates of the first host's machines.
    gates: Vec<Arc<Mutex<()>>>,
    /// Those of the others' machines of the first group.
    others: Vec<Arc<Mutex<()>>>,
    /// How long each machine takes for a batch.
    delay: Arc<Mutex<Duration>>,
}

impl Trio {
    async fn start(limit: Option<Duration>) -> Self {
        Self::with_limits([limit; 3]).await
    }

    async fn with_limits(limits: [Option<Duration>; 3]) -> Self {
        let (network, nodes) = (Network::new(7), [1, 2, 3].map(NodeId::must));
        let hosts = nodes.iter().zip(limits).map(|(node, limit)| host(&network, *node, limit));
        let hosts: Vec<Groups> = hosts.collect();
        let (mut gates, mut others) = (Vec::new(), Vec::new());
        let delay = Arc::<Mutex<Duration>>::default();
        for group in 0..GROUPS {
            for host in &hosts {
                let machine = Gated { delay: Arc::clone(&delay), ..Gated::default() };
                if host.config().node == nodes[0] {
                    gates.push(Arc::clone(&machine.gate));
                } else if group == 0 {
                    others.push(Arc::clone(&machine.gate));
                }
                let spec = GroupSpec::new(GroupId::new(group), nodes);
                host.create(spec, Box::new(machine)).unwrap();
            }
        }
        let trio = Self { _network: network, hosts, gates, others, delay };
        for group in 0..GROUPS {
            trio.lead(group, 0).await;
        }
        trio
    }

    fn replica(&self, host: usize, group: u64) -> Group {
        self.hosts[host].group(GroupId::new(group)).unwrap()
    }

    /// Where a group is served.
    async fn served_at(&self, group: u64, hosts: &[usize]) -> usize {
        let replicas: Vec<Group> = hosts.iter().map(|host| self.replica(*host, group)).collect();
        let waits = replicas.iter();
        let waits = waits.map(|one| Box::pin(one.wait_for(|status| status.serving, SOON)));
        let (served, at, _) = futures::future::select_all(waits).await;
        served.expect("nobody serves it");
        hosts[at]
    }

    /// Has a host lead a group.
    async fn lead(&self, group: u64, host: usize) {
        let (began, node) = (Instant::now(), self.hosts[host].config().node);
        loop {
            let leader = self.served_at(group, &[0, 1, 2]).await;
            let done = self.replica(leader, group).transfer_leadership(Some(node)).await;
            if leader == host || done.is_ok() {
                return;
            }
            assert!(began.elapsed() < SOON, "{:?}", done.map(|_| ()));
        }
    }

    /// Has so many of the first host's machines hang in an apply. They go on when this is dropped.
    async fn hang(&self, groups: u64) -> Vec<MutexGuard<'_, ()>> {
        let gates = self.gates[..usize::try_from(groups).unwrap()].iter();
        let held: Vec<_> = gates.map(|gate| gate.lock()).collect();
        for group in 0..groups {
            let replica = self.replica(0, group);
            tokio::spawn({
                let replica = replica.clone();
                async move { replica.propose("hangs").await.map(|_| ()) }
            });
            let hangs = replica.wait_for(|status| status.applied < status.committed, SOON).await;
            hangs.expect("the command is committed");
        }
        held
    }

    /// What is acknowledged is applied by the first host, too, and it may lead again.
    async fn comes_back(&self) {
        for group in 0..GROUPS {
            let replica = self.replica(0, group);
            let well = |status: &shardhost_groups::GroupStatus| {
                status.stalled.is_none() && status.applied == status.committed
            };
            replica.wait_for(well, SOON).await.expect("it does not go on");
            self.lead(group, 0).await;
            self.replica(0, group).propose("after").await.unwrap();
        }
    }
}

fn host(network: &Network, node: NodeId, limit: Option<Duration>) -> Groups {
    let mut config = GroupsConfig::new(node);
    config.tick = Duration::from_millis(20);
    config.hibernate_after_ticks = 0;
    config.machine_limit = limit;
    let incarnation = config.incarnation;
    let (snapshots, port) = (Arc::new(MemorySnapshots::new()), network.port(node));
    let groups = GroupsBuilder::new(config)
        .apply_threads(APPLY_THREADS)
        .start(Arc::new(MemoryStore::new()), snapshots.clone(), port.clone())
        .unwrap();
    port.attach(groups.inbound(), snapshots, incarnation);
    groups
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_hangs_costs_its_host_that_leadership_and_no_other() {
    let trio = Trio::start(Some(LIMIT)).await;
    let held = trio.hang(1).await;
    let leader = trio.served_at(0, &[1, 2]).await;
    trio.replica(leader, 0).propose("meanwhile").await.unwrap();
    let told = trio.replica(0, 0).status();
    let why = told.stalled.clone().expect("it does not say so");
    assert!(why.contains("applying commands takes its state machine longer"), "{why}");
    // Nothing is handed to it as long as it hangs.
    let order = trio.replica(leader, 0).transfer_leadership(Some(NodeId::must(1))).await;
    assert!(matches!(order, Err(TransferError::TargetRefused { .. })), "{:?}", order.map(|_| ()));
    for group in 1..GROUPS {
        assert!(trio.replica(0, group).status().serving, "group {group} was taken, too");
        trio.replica(0, group).propose("others").await.unwrap();
    }
    assert_eq!(*trio.hosts[0].impairment().borrow(), None, "one thread is left");
    drop(held);
    trio.comes_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_hold_every_apply_thread_cost_their_host_all_leaderships() {
    let trio = Trio::start(Some(LIMIT)).await;
    let held = trio.hang(APPLY_THREADS as u64).await;
    for group in 0..GROUPS {
        let leader = trio.served_at(group, &[1, 2]).await;
        trio.replica(leader, group).propose("meanwhile").await.unwrap();
    }
    let mut impairment = trio.hosts[0].impairment();
    let why = impairment.borrow().clone().expect("the host does not say so");
    assert!(why.reason.contains("applying commands of group 0"), "{why:?}");
    drop(held);
    let well = tokio::time::timeout(SOON, impairment.wait_for(Option::is_none)).await;
    well.expect("the host stays impaired").unwrap();
    trio.comes_back().await;
}

/// What the tests above would find without a watchdog.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_a_machine_that_hangs_keeps_its_group() {
    let trio = Trio::start(None).await;
    let held = trio.hang(1).await;
    let leads = trio.replica(0, 0);
    let lost = leads.wait_for(|status| !status.serving, 5 * LIMIT).await;
    assert!(lost.is_none(), "somebody took it");
    drop(held);
    trio.comes_back().await;
}

/// Machines that take long for every batch, at all hosts alike, move nothing as long as each call
/// ends within the limit.
#[tokio::test(flavor = "multi_thread")]
async fn machines_that_are_slow_within_the_limit_move_nothing() {
    let trio = Trio::start(Some(LIMIT)).await;
    *trio.delay.lock() = LIMIT / 4;
    let term = trio.replica(0, 0).status().term;
    for _ in 0..10 {
        trio.replica(0, 0).propose("slow").await.unwrap();
    }
    assert_eq!(trio.replica(0, 0).status().term, term);
}

/// They are served all the same when a call does not: by the one that leads, for no leadership goes
/// back and forth between machines of which none is better.
#[tokio::test(flavor = "multi_thread")]
async fn slow_machines_are_served() {
    let trio = Trio::start(Some(LIMIT)).await;
    *trio.delay.lock() = LIMIT * 3 / 2;
    let term = trio.replica(0, 0).status().term;
    let mut lost = Vec::new();
    let mut served = 0;
    while served < 8 {
        let leader = trio.served_at(0, &[0, 1, 2]).await;
        match trio.replica(leader, 0).propose("slower").await {
            Ok(_) => served += 1,
            Err(error) => lost.push(error.to_string()),
        }
        assert!(lost.len() <= 1, "more than one move of the leadership costs: {lost:?}");
    }
    let now = [0, 1, 2].map(|host| trio.replica(host, 0).status().term.get());
    assert!(now.iter().all(|now| *now <= term.get() + 1), "from {term} to {now:?}");
}

/// The others are about to be as slow: they are found so later, because they began later.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_about_to_be_slow_takes_no_leadership_from_one_that_is() {
    let (limit, longer) = (Some(5 * LIMIT), Some(6 * LIMIT));
    let trio = Trio::with_limits([limit, longer, longer]).await;
    let term = trio.replica(0, 0).status().term;
    let others: Vec<_> = trio.others.iter().map(|gate| gate.lock()).collect();
    let held = trio.hang(1).await;
    let leader = trio.replica(0, 0);
    let (began, mut declined) = (Instant::now(), Vec::new());
    while declined.len() < 2 {
        let told = || format!("{:?}, {declined:?} declined", leader.status());
        assert!(began.elapsed() < SOON && leader.status().serving, "{}", told());
        let voters = leader.eligibility().await.unwrap().voters.into_iter();
        declined = voters.filter_map(|voter| voter.declined?.reason).collect();
    }
    assert_eq!(declined, [RejectReason::ApplyBacklog; 2]);
    assert_eq!(leader.status().term, term);
    drop((held, others));
    trio.comes_back().await;
}

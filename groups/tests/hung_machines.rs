//! State machines whose calls do not return, on real hosts: others lead what they keep from being
//! served, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig, LogPosition,
    SnapshotWriter, StateMachine, TransferError,
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
    delay: Duration,
}

impl StateMachine for Gated {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        std::thread::sleep(self.delay);
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
}

impl Trio {
    async fn start(limit: Option<Duration>, delay: Duration) -> Self {
        let (network, nodes) = (Network::new(7), [1, 2, 3].map(NodeId::must));
        let hosts: Vec<Groups> = nodes.iter().map(|node| host(&network, *node, limit)).collect();
        let mut gates = Vec::new();
        for group in 0..GROUPS {
            for host in &hosts {
                let machine = Gated { delay, ..Gated::default() };
                if host.config().node == nodes[0] {
                    gates.push(Arc::clone(&machine.gate));
                }
                let spec = GroupSpec::new(GroupId::new(group), nodes);
                host.create(spec, Box::new(machine)).unwrap();
            }
        }
        let trio = Self { _network: network, hosts, gates };
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
    config.sleep_after_ticks = 0;
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
    let trio = Trio::start(Some(LIMIT), Duration::ZERO).await;
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
    let trio = Trio::start(Some(LIMIT), Duration::ZERO).await;
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
    let trio = Trio::start(None, Duration::ZERO).await;
    let held = trio.hang(1).await;
    let leads = trio.replica(0, 0);
    let lost = leads.wait_for(|status| !status.serving, 5 * LIMIT).await;
    assert!(lost.is_none(), "somebody took it");
    drop(held);
    trio.comes_back().await;
}

/// Machines that take long for every batch, at all hosts alike, move nothing as long as each call ends
/// within the limit, and are served all the same when it does not.
#[tokio::test(flavor = "multi_thread")]
async fn slow_machines_are_served() {
    let trio = Trio::start(Some(LIMIT), LIMIT / 4).await;
    let term = trio.replica(0, 0).status().term;
    for _ in 0..10 {
        trio.replica(0, 0).propose("slow").await.unwrap();
    }
    assert_eq!(trio.replica(0, 0).status().term, term);
    drop(trio);
    let trio = Trio::start(Some(LIMIT), LIMIT * 3 / 2).await;
    for _ in 0..5 {
        let began = Instant::now();
        loop {
            let leader = trio.served_at(0, &[0, 1, 2]).await;
            match trio.replica(leader, 0).propose("slower").await {
                Ok(_) => break,
                Err(error) => assert!(began.elapsed() < SOON, "{error}"),
            }
        }
    }
}

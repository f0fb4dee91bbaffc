//! Replicas of real hosts are compared: on the threads that do it, and through the public handle.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shardhost_groups::{
    ApplyBatch, ApplyFault, ConsistencyView, Group, GroupFault, GroupSpec, Groups, GroupsBuilder,
    GroupsConfig, LogPosition, ReadMode, Role, SnapshotWriter, StateMachine,
};
use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore, NodeId};
use shardhost_testing::network::Network;

const SOON: Duration = Duration::from_secs(120);
const ID: GroupId = GroupId::new(7);

/// What a machine holds; the test may change it behind the back of the group.
#[derive(Clone, Debug, Default)]
struct State {
    words: Vec<u8>,
    /// Whether its views panic when they are written.
    panics: bool,
}

#[derive(Clone, Debug, Default)]
struct Words {
    applied: Option<LogPosition>,
    state: Arc<Mutex<State>>,
}

impl StateMachine for Words {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        for command in batch.commands() {
            self.state.lock().unwrap().words.extend_from_slice(command.data());
        }
        self.applied = Some(batch.last());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View(self.state.lock().unwrap().clone())))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut words = Vec::new();
        source.read_to_end(&mut words).map_err(ApplyFault::new)?;
        self.state.lock().unwrap().words = words;
        self.applied = Some(at);
        Ok(())
    }

    fn consistency_view(&mut self) -> Result<Option<ConsistencyView>, ApplyFault> {
        Ok(Some(ConsistencyView { format: 1, writer: self.snapshot()? }))
    }
}

struct View(State);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        assert!(!self.0.panics, "a view on purpose");
        sink.write_all(&self.0.words)
    }
}

/// Three hosts with a replica each, and what their machines hold.
struct Trio {
    /// Carries messages as long as it is there.
    _network: Network,
    hosts: Vec<Groups>,
    replicas: Vec<Group>,
    states: Vec<Arc<Mutex<State>>>,
}

impl Trio {
    fn start(change: fn(&mut GroupsConfig)) -> Self {
        let (network, nodes) = (Network::new(7), [1, 2, 3].map(NodeId::must));
        let hosts: Vec<Groups> = nodes.iter().map(|node| host(&network, *node, change)).collect();
        let machines = [(); 3].map(|()| Words::default());
        let states = machines.iter().map(|machine| Arc::clone(&machine.state)).collect();
        let create = |(host, machine): (&Groups, &Words)| {
            host.create(GroupSpec::new(ID, nodes), Box::new(machine.clone())).unwrap()
        };
        let replicas = hosts.iter().zip(&machines).map(create).collect();
        Self { _network: network, hosts, replicas, states }
    }

    /// Writes where the group is led by then; returns the place of that replica.
    async fn write(&self, word: &'static str) -> usize {
        let began = Instant::now();
        while began.elapsed() < SOON {
            let waits = self.replicas.iter();
            let waits = waits.map(|one| Box::pin(one.wait_for(|status| status.serving, SOON)));
            let (_, leader, _) = futures::future::select_all(waits).await;
            // Leadership may go elsewhere at any moment, on a machine that is busy.
            if self.replicas[leader].propose(word).await.is_ok() {
                return leader;
            }
        }
        panic!("nobody takes a write");
    }

    /// Writes, and damages a follower's state.
    async fn damage_a_follower(&self) -> usize {
        let leader = self.write("words").await;
        let follower = (leader + 1) % 3;
        let own = self.replicas[leader].status().last;
        self.replicas[follower].wait_for(move |status| status.applied >= own, SOON).await.unwrap();
        self.states[follower].lock().unwrap().words[0] ^= 1;
        follower
    }
}

fn host(network: &Network, node: NodeId, change: fn(&mut GroupsConfig)) -> Groups {
    let mut config = GroupsConfig::new(node);
    config.tick = Duration::from_millis(30);
    config.hibernate_after_ticks = 0;
    config.consistency_ticks = 20;
    change(&mut config);
    let incarnation = config.incarnation;
    let (snapshots, port) = (Arc::new(MemorySnapshots::new()), network.port(node));
    let groups = GroupsBuilder::new(config)
        .start(Arc::new(MemoryStore::new()), snapshots.clone(), port.clone())
        .unwrap();
    port.attach(groups.inbound(), snapshots, incarnation);
    groups
}

const fn is_inconsistent(role: &Role) -> bool {
    matches!(role, Role::Failed(GroupFault::Inconsistent { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_state_was_damaged_stops_and_answers_no_reads() {
    let trio = Trio::start(|_| {});
    let damaged = trio.damage_a_follower().await;
    let replica = &trio.replicas[damaged];
    replica.wait_for(|status| is_inconsistent(&status.role), SOON).await.unwrap();
    replica.query(ReadMode::Stale, "words").await.expect_err("it answers nothing");
    for other in (0..3).filter(|one| *one != damaged) {
        let replica = &trio.replicas[other];
        let equal = replica.wait_for(|status| status.checked.is_some(), SOON).await.unwrap();
        assert!(equal.differs.is_none(), "{equal:?}");
        assert!(trio.hosts[other].stats().checksums > 0);
    }
    trio.write("more").await;

    // No restart makes it right; it can be destroyed.
    let host = &trio.hosts[damaged];
    host.close(ID).await;
    let state = Arc::clone(&trio.states[damaged]);
    let refused = host.open(ID, Box::new(Words { applied: None, state })).unwrap_err();
    assert!(refused.to_string().contains("was found to differ"), "{refused}");
    assert!(host.parked().iter().any(|parked| parked.group == ID), "{:?}", host.parked());
    host.destroy(ID).await.unwrap();
    assert!(!host.is_stored(ID).unwrap());
}

/// The group has no requests: it hibernates, is woken to be compared, and hibernates again.
#[tokio::test(flavor = "multi_thread")]
async fn a_hibernating_group_is_compared_too() {
    let trio = Trio::start(|config| {
        config.hibernate_after_ticks = 5;
        // A hibernating group does not tick, so this comes from elsewhere.
        config.consistency_ticks = 1_000_000;
        config.consistency_hibernating = Some(Duration::from_secs(3));
    });
    let damaged = trio.damage_a_follower().await;
    let replica = &trio.replicas[damaged];
    replica.wait_for(|status| is_inconsistent(&status.role), SOON).await.unwrap();
    for other in (0..3).filter(|one| *one != damaged) {
        let replica = &trio.replicas[other];
        replica.wait_for(|status| status.checked.is_some(), SOON).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_panics_costs_its_replica_the_comparison_and_nothing_else() {
    let trio = Trio::start(|_| {});
    let broken = (trio.write("x").await + 1) % 3;
    trio.states[broken].lock().unwrap().panics = true;
    let began = Instant::now();
    while trio.hosts[broken].stats().checksums_skipped < 2 {
        assert!(began.elapsed() < SOON, "it was never asked");
        trio.write("x").await;
    }
    let status = trio.replicas[broken].status();
    assert!(!matches!(status.role, Role::Failed(_)) && status.differs.is_none(), "{status:?}");
}

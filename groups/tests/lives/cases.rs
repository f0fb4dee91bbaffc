//! What callers of one host do to each other: through the public interface, with memory stores.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use shardhost_groups::machine::{ApplyBatch, ApplyFault, SnapshotWriter, StateMachine};
use shardhost_groups::runtime::{Destruction, MachineFactory};
use shardhost_groups::testing::alone::Alone;
use shardhost_groups::{
    Group, GroupSpec, Groups, GroupsBuilder, GroupsConfig, OpenGroupError, Role,
};
use shardhost_storage::{
    Doubt, GroupId, GroupWrite, LogBatch, LogIndex, LogPosition, LogStore, MemorySnapshots,
    MemoryStore, NodeId, ReplicaId,
};
use shardhost_testing::conformance::Journal;
use shardhost_testing::network::Network;

const SOON: Duration = Duration::from_secs(5);
const ID: GroupId = GroupId::new(7);

/// Remembers what it applied; may wait or fail at chosen places.
#[derive(Default)]
struct Words {
    words: Vec<String>,
    /// Says that the opening has begun, and waits.
    at_opening: Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
    before_apply: Option<mpsc::Receiver<()>>,
    broken: bool,
    bad_durable: bool,
}
impl StateMachine for Words {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        if let Some((begun, gate)) = &self.at_opening {
            begun.send(()).ok();
            gate.recv().ok();
        }
        if self.broken { Err(ApplyFault::passing("cannot be read just now")) } else { Ok(None) }
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        if let Some(gate) = &self.before_apply {
            gate.recv().ok();
        }
        for command in batch.commands() {
            self.words.push(String::from_utf8_lossy(command.data()).into_owned());
            let all = self.words.join(" ");
            command.respond(all);
        }
        Ok(())
    }
    fn durable_index(&self) -> Option<LogIndex> {
        assert!(!self.bad_durable || self.words.is_empty(), "a fault of one state machine");
        None
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("none"))
    }
    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Err(ApplyFault::new("none"))
    }
}

fn host() -> Groups {
    host_on(MemoryStore::new())
}
fn host_on(log: MemoryStore) -> Groups {
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.tick = Duration::from_millis(2);
    GroupsBuilder::new(config)
        .start(Arc::new(log), Arc::new(MemorySnapshots::new()), Arc::new(Alone))
        .unwrap()
}
/// Hosts that reach each other as long as the network is there.
fn three_hosts(nodes: [NodeId; 3]) -> (Network, Vec<Groups>) {
    let network = Network::new(7);
    let host = |node: NodeId| {
        let mut config = GroupsConfig::new(node);
        config.tick = Duration::from_millis(10);
        let (snapshots, port) = (Arc::new(MemorySnapshots::new()), network.port(node));
        let groups = GroupsBuilder::new(config)
            .start(Arc::new(MemoryStore::new()), snapshots.clone(), port.clone())
            .unwrap();
        port.attach(groups.inbound(), snapshots, 1);
        groups
    };
    let hosts = nodes.map(host).into();
    (network, hosts)
}

/// Looks again and again until it is so.
async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON * 4;
    while !is() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn spec(id: GroupId) -> GroupSpec {
    GroupSpec::new(id, [NodeId::must(1)])
}
async fn created(groups: &Groups) -> Group {
    let group = groups.create(spec(ID), Box::<Words>::default()).unwrap();
    group.wait_for(|s| s.serving, SOON).await.unwrap();
    group
}

/// Two closes of one group, and an opening as soon as the first has returned.
#[tokio::test]
async fn a1_a_second_close_does_not_hide_the_reopened_replica() {
    let groups = host();
    created(&groups).await;
    let mut second = Box::pin(groups.close(ID));
    assert!(futures::poll!(second.as_mut()).is_pending(), "it has asked the worker");
    assert!(groups.close(ID).await);
    let again = groups.open(ID, Box::<Words>::default()).expect("closed, so it may be opened");
    second.await;
    let seen = groups.group(ID).is_some();
    let serves = again.wait_for(|s| s.serving, SOON).await.is_some();
    let third = groups.open(ID, Box::<Words>::default()).is_ok();
    println!("registered {seen}, serves {serves}, a second replica beside it opens {third}");
    assert!(seen && serves && !third);
}

/// A close whose caller gave up.
#[tokio::test]
async fn a2_a_close_that_is_given_up_leaves_a_replica_that_can_be_opened() {
    let groups = host();
    let group = created(&groups).await;
    {
        let mut close = Box::pin(groups.close(ID));
        assert!(futures::poll!(close.as_mut()).is_pending());
    }
    drop(group);
    until("it can be opened", || groups.open(ID, Box::<Words>::default()).is_ok()).await;
    let again = groups.group(ID).expect("it is open");
    again.wait_for(|s| s.serving, SOON).await.expect("serves");
}

/// A slow opening; beside it the group is opened, written, and closed.
#[tokio::test]
async fn b_a_slow_opening_loses_no_acknowledged_write() {
    let groups = host();
    created(&groups).await;
    groups.close(ID).await;

    let (go, gate) = mpsc::channel();
    let (begins, begun) = mpsc::channel();
    let slow = std::thread::spawn({
        let groups = groups.clone();
        let at_opening = Some((begins, gate));
        move || groups.open(ID, Box::new(Words { at_opening, ..Words::default() }))
    });
    begun.recv().expect("the opening asks the machine where it stands");
    let quick = groups.open(ID, Box::<Words>::default()).unwrap();
    quick.wait_for(|s| s.serving, SOON).await.unwrap();
    for word in ["one", "two", "three"] {
        quick.propose(word).await.expect("acknowledged");
    }
    groups.close(ID).await;

    go.send(()).unwrap();
    drop(go);
    let late = slow.join().unwrap().expect("it opens");
    late.wait_for(|s| s.serving, SOON).await.expect("serves");
    let all = late.propose("four").await.unwrap().response;
    println!("after three acknowledged words and a fourth: {all:?}");
    assert_eq!(all, "one two three four");
}

/// The second machine of a creation cannot be opened.
#[tokio::test]
async fn c_of_many_creations_none_is_made_when_one_fails() {
    let groups = host();
    let other = GroupId::new(8);
    let broken = || Box::new(Words { broken: true, ..Words::default() });
    let failed = groups
        .create_many(vec![(spec(ID), Box::<Words>::default() as _), (spec(other), broken() as _)])
        .map(|_| ())
        .unwrap_err();
    let left = (groups.group(ID).is_some(), groups.is_stored(other).unwrap());
    let again = groups
        .create_many(vec![
            (spec(ID), Box::<Words>::default() as _),
            (spec(other), Box::<Words>::default() as _),
        ])
        .map(|_| ())
        .map_err(|e| e.to_string());
    println!("{failed}; first runs {}, second stored {}; again: {again:?}", left.0, left.1);
    assert!(left == (false, false) && again.is_ok());
}

/// A panic in one method of one group's machine.
#[tokio::test]
async fn d_a_machine_that_panics_stops_its_group_alone() {
    let groups = host();
    let good = created(&groups).await;
    let bad = Box::new(Words { bad_durable: true, ..Words::default() });
    let bad = groups.create(spec(GroupId::new(8)), bad).unwrap();
    bad.wait_for(|s| s.serving, SOON).await.unwrap();
    println!("bad: {:?}", bad.propose("x").within(SOON).await.map(|_| ()));
    until("it fails", || matches!(bad.status().role, Role::Failed(_))).await;
    let outcome = good.propose("y").within(SOON).await.map(|_| ());
    println!("good: {outcome:?}, host: {:?}", groups.health().borrow().clone());
    assert!(outcome.is_ok());
}

/// The same as a1 among three hosts, and then the hidden replica is asked to lead.
#[tokio::test(flavor = "multi_thread")]
async fn a3_a_group_goes_on_after_leadership_went_to_a_reopened_replica() {
    let nodes = [1, 2, 3].map(NodeId::must);
    let (_network, hosts) = three_hosts(nodes);
    let spec = GroupSpec::new(ID, nodes);
    let replicas: Vec<Group> = hosts
        .iter()
        .map(|h| h.create(spec.clone(), Box::new(Journal::default())).unwrap())
        .collect();
    let waits = replicas.iter().map(|g| Box::pin(g.wait_for(|s| s.serving, SOON * 4)));
    let (_, at, _) = futures::future::select_all(waits).await;
    let leader = &replicas[at];
    leader.propose("add 1").await.ok();
    let target = (at + 1) % 3;
    let follower = &hosts[target];

    let mut second = Box::pin(follower.close(ID));
    assert!(futures::poll!(second.as_mut()).is_pending());
    follower.close(ID).await;
    let again = follower.open(ID, Box::new(Journal::default())).unwrap();
    second.await;
    again.wait_for(|status| status.leader.is_some(), SOON * 4).await.expect("it follows");

    let moved = leader.transfer_leadership(Some(nodes[target])).await.map(|_| ());
    let third = &replicas[(at + 2) % 3];
    let deadline = Instant::now() + SOON * 4;
    let mut refused = Vec::new();
    while Instant::now() < deadline {
        for group in [leader, third, &again] {
            match group.propose("add 2").within(SOON / 10).await {
                Ok(_) => return,
                Err(error) => refused.push(error.to_string()),
            }
        }
    }
    panic!(
        "after a transfer, which ended with {moved:?}, no replica takes a proposal: {refused:?}"
    );
}

/// A leader that has not caught up; the configuration says after how many ticks it gives up.
#[tokio::test]
async fn e_a_proposal_is_given_up_after_the_ticks_of_the_configuration() {
    let groups = host();
    let group = created(&groups).await;
    group.propose("one").await.unwrap();
    groups.close(ID).await;
    let (open, gate) = mpsc::channel::<()>();
    let behind = Words { before_apply: Some(gate), ..Words::default() };
    let group = groups.open(ID, Box::new(behind)).unwrap();
    group.wait_for(|status| status.is_leader(), SOON).await.expect("it leads");
    let wait = groups.config().tick * u32::from(groups.config().propose_give_up_ticks) * 20;
    let answer = group.propose("two").within(wait).await.expect_err("it is not ready");
    drop(open);
    assert!(answer.is_definite(), "it never entered the log: {answer}");
}

/// Keeps state that outlives it; may fail when it applies, and so often when it is to remove it.
struct Keeper {
    state: Arc<AtomicBool>,
    refuses: Arc<AtomicUsize>,
    panics: bool,
}
impl Keeper {
    fn new(panics: bool, refuses: usize) -> (Arc<AtomicBool>, Box<Self>) {
        let (state, refuses) = (Arc::new(AtomicBool::new(true)), Arc::new(refuses.into()));
        (Arc::clone(&state), Box::new(Self { state, refuses, panics }))
    }
}
impl StateMachine for Keeper {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(None)
    }
    fn apply(&mut self, _: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        assert!(!self.panics, "told to panic");
        Ok(())
    }
    fn removed(&mut self) -> Result<(), ApplyFault> {
        let refuses = |left: usize| left.checked_sub(1);
        if self.refuses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refuses).is_ok() {
            return Err(ApplyFault::new("the disk is busy"));
        }
        self.state.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("none"))
    }
    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Err(ApplyFault::new("none"))
    }
}

/// A machine that failed has state all the same.
#[tokio::test]
async fn f1_destroying_a_failed_replica_removes_its_state() {
    let groups = host();
    let (state, machine) = Keeper::new(true, 0);
    let group = groups.create(spec(ID), machine).unwrap();
    group.wait_for(|s| s.serving, SOON).await.unwrap();
    group.propose("x").within(SOON).await.expect_err("its machine panics");
    group.wait_for(|s| matches!(s.role, Role::Failed(_)), SOON).await.expect("it fails");
    groups.destroy(ID).await.expect("a failed replica can be destroyed");
    assert!(!state.load(Ordering::SeqCst), "its state stays");
}

/// A caller that destroys a replica whose state cannot be removed learns it, and can do it again.
#[tokio::test]
async fn f2_a_destruction_whose_state_remains_is_repeated() {
    let groups = host();
    let (state, machine) = Keeper::new(false, 2);
    let group = groups.create(spec(ID), machine).unwrap();
    group.wait_for(|s| s.serving, SOON).await.unwrap();
    for _ in 0..2 {
        let remains = groups.destroy(ID).await.expect_err("its state remains");
        assert!(matches!(remains, OpenGroupError::StateRemains { .. }), "{remains}");
        assert!(!groups.is_stored(ID).unwrap() && groups.has_remains(ID));
        assert!(state.load(Ordering::SeqCst));
    }
    groups.destroy(ID).await.expect("it can be removed at last");
    assert!(!state.load(Ordering::SeqCst) && groups.remains().is_empty());
    let gone = groups.destroy(ID).await.expect_err("nothing is left");
    assert!(matches!(gone, OpenGroupError::Unknown { .. }), "{gone}");
}

/// The means to remove the state come with the order, also with the one that repeats it.
#[tokio::test]
async fn f3_what_clears_the_state_may_fail_and_be_given_again() {
    let groups = host();
    created(&groups).await;
    let order = |outcome: Result<(), String>| {
        groups.destroy_replica(Destruction::new(ID).generation(0).clear(move || outcome))
    };
    let remains = order(Err("the disk is full".to_owned())).await.unwrap_err();
    assert!(remains.to_string().contains("the disk is full"), "{remains}");
    order(Ok(())).await.expect("it is removed");
    assert!(groups.remains().is_empty());
    // The next replica begins without what remained of this one.
    let again = groups.create(spec(ID).incarnation(1), Box::<Words>::default()).unwrap();
    again.wait_for(|s| s.serving, SOON).await.expect("it serves");
}

/// An order for an earlier generation may have destroyed a replica that could not be read, and that may
/// have been of a later one: a replica that is created then may have voted before.
#[tokio::test]
async fn f6_after_an_unreadable_replica_the_next_asks_its_peers_first() {
    for (tombstone, doubt) in [(u32::MAX, Some(Doubt::Unreadable)), (3, None)] {
        let store = MemoryStore::new();
        let mut write = GroupWrite::new(ID);
        write.destroy = ReplicaId::new(u64::from(tombstone));
        store.write(&LogBatch { writes: vec![write] }).unwrap();
        let groups = host_on(store);
        let spec = GroupSpec::new(ID, [1, 2, 3].map(NodeId::must)).incarnation(1).on_known_disk();
        let group = groups.create(spec, Box::<Words>::default()).unwrap();
        assert_eq!(group.status().doubt, doubt, "tombstone {tombstone}");
    }
}

/// Neither an opening that finds nothing nor a creation that is refused forgets what remains.
#[tokio::test]
async fn f4_what_remains_is_known_until_a_replica_is_created() {
    let groups = host();
    let (state, machine) = Keeper::new(false, 1);
    let group = groups.create(spec(ID), machine).unwrap();
    group.wait_for(|s| s.serving, SOON).await.unwrap();
    groups.destroy(ID).await.expect_err("its state remains");
    let none = groups.open(ID, Box::<Words>::default()).expect_err("none is stored");
    assert!(matches!(none, OpenGroupError::Unknown { .. }), "{none}");
    let machine: MachineFactory = Box::new(|| Ok(Box::<Words>::default()));
    groups.reopen_with(ID, machine).expect_err("none is stored");
    groups.create(spec(ID), Box::<Words>::default()).expect_err("that generation is over");
    assert_eq!(groups.remains(), [ID]);
    groups.destroy(ID).await.expect("it can be removed now");
    assert!(!state.load(Ordering::SeqCst) && groups.remains().is_empty());

    let (_, machine) = Keeper::new(false, 1);
    let group = groups.create(spec(ID).incarnation(1), machine).unwrap();
    group.wait_for(|s| s.serving, SOON).await.unwrap();
    groups.destroy(ID).await.expect_err("its state remains");
    let unmade: MachineFactory = Box::new(|| Err("of no known kind".to_owned()));
    groups.create_with(spec(ID).incarnation(2), unmade).expect_err("it is not made");
    assert_eq!(groups.remains(), [ID], "it is there all the same");
    groups.create(spec(ID).incarnation(2), Box::<Words>::default()).unwrap();
    assert!(groups.remains().is_empty(), "it is the new replica's");
}

/// A creation that a stop of the host overtakes.
#[tokio::test]
async fn f5_a_creation_that_is_refused_for_a_stop_has_written_nothing() {
    let store = Arc::new(MemoryStore::new());
    let (snapshots, alone) = (Arc::new(MemorySnapshots::new()), Arc::new(Alone));
    let config = GroupsConfig::new(NodeId::must(1));
    let groups = GroupsBuilder::new(config).start(store.clone(), snapshots, alone).unwrap();
    let stopping = groups.clone();
    let machine: MachineFactory = Box::new(move || {
        let stopped = stopping.clone();
        std::thread::spawn(move || stopped.shutdown());
        let other = GroupId::new(8);
        while !matches!(
            stopping.open(other, Box::<Words>::default()),
            Err(OpenGroupError::Stopping)
        ) {
            std::thread::yield_now();
        }
        Ok(Box::<Words>::default())
    });
    let refused = groups.create_with(spec(ID), machine).expect_err("the host stops");
    assert_eq!(refused, OpenGroupError::Stopping);
    groups.shutdown();
    assert!(store.groups().unwrap().is_empty(), "nothing was created");
}

/// A replica whose machine cannot be opened is parked: it is named with the cause, delays no other,
/// and can be destroyed, or opened when the cause is gone.
#[tokio::test]
async fn g_a_replica_that_cannot_be_opened_is_parked() {
    let groups = host();
    let other = GroupId::new(8);
    created(&groups).await;
    groups.create(spec(other), Box::<Words>::default()).unwrap();
    groups.close(ID).await;
    groups.close(other).await;
    let broken = || Box::new(Words { broken: true, ..Words::default() });
    groups.open(ID, broken()).expect_err("it cannot be read");
    let nobody: MachineFactory = Box::new(|| Err("of no known kind".to_owned()));
    groups.open_with(other, nobody).expect_err("nobody makes it");
    let parked = groups.parked();
    let causes: Vec<String> = parked.iter().map(|one| one.cause.to_string()).collect();
    assert_eq!(parked.iter().map(|one| one.group).collect::<Vec<_>>(), [ID, other]);
    assert!(causes[0].contains("cannot be read just now"), "{causes:?}");
    assert!(causes[1].contains("of no known kind"), "{causes:?}");
    assert!(parked.iter().all(|one| one.meta.is_some() && one.replica.is_some()));
    assert!(parked[0].passes && !parked[1].passes, "it is worth a try to open the first one again");

    let again = groups.open(ID, Box::<Words>::default()).expect("the cause is gone");
    again.wait_for(|s| s.serving, SOON).await.expect("it serves");
    groups.destroy(other).await.expect("one that is parked can be destroyed");
    assert!(groups.parked().is_empty() && !groups.is_stored(other).unwrap());
}

/// A replica that does not run cannot ask whether it is still needed; it ends when it gets the
/// notice.
#[tokio::test(flavor = "multi_thread")]
async fn h_a_failed_replica_ends_when_its_group_goes_on_without_it() {
    use shardhost_groups::MembershipChange;
    let nodes = [1, 2, 3].map(NodeId::must);
    let (_network, hosts) = three_hosts(nodes);
    let spec = GroupSpec::new(ID, nodes);
    let (state, bad) = Keeper::new(true, 0);
    let bad = hosts[2].create(spec.clone(), bad).unwrap();
    let good: Vec<Group> = hosts[..2]
        .iter()
        .map(|host| host.create(spec.clone(), Box::new(Journal::default())).unwrap())
        .collect();
    // Whichever replica leads first, the command fails the third and one of the others leads.
    let deadline = Instant::now() + SOON * 4;
    while !matches!(bad.status().role, Role::Failed(_)) {
        assert!(Instant::now() < deadline, "it does not fail: {:?}", bad.status().role);
        for group in good.iter().chain([&bad]) {
            drop(group.propose("add 1").within(SOON / 10).await);
        }
    }
    let waits = good.iter().map(|group| Box::pin(group.wait_for(|s| s.serving, SOON * 4)));
    let (_, at, _) = futures::future::select_all(waits).await;
    good[at].change_membership(MembershipChange::new().remove(nodes[2])).await.unwrap();
    let gone = || !hosts[2].is_stored(ID).unwrap() && hosts[2].group(ID).is_none();
    until("it is gone", gone).await;
    assert!(!state.load(Ordering::SeqCst), "its state stays");
}

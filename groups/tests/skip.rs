//! A command that fails the state machine of every replica, and how an operator gets past it.

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shardhost_groups::runtime::{SkipEnd, StoredEntry};
use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupSpec, GroupStatus, Groups, GroupsBuilder, GroupsConfig,
    LogIndex, LogPosition, OpenGroupError, Role, SnapshotWriter, StateMachine,
};
use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore, NodeId};
use shardhost_testing::network::Network;

const SOON: Duration = Duration::from_secs(20);
const ID: GroupId = GroupId::new(7);

/// What the disk of a machine holds.
#[derive(Debug, Default)]
struct Disk {
    applied: Option<LogPosition>,
    words: Vec<String>,
    /// Why it cannot be read.
    fault: Option<ApplyFault>,
}

/// Keeps words, and cannot bear `poison`.
#[derive(Debug, Default)]
struct Words(Arc<Mutex<Disk>>);

impl StateMachine for Words {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        let disk = self.0.lock().unwrap();
        disk.fault.clone().map_or(Ok(disk.applied), Err)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let mut disk = self.0.lock().unwrap();
        for command in batch.commands() {
            let word = String::from_utf8_lossy(command.data()).into_owned();
            if word == "poison" {
                return Err(ApplyFault::new("poison"));
            }
            disk.words.push(word);
            disk.applied = Some(command.position());
        }
        disk.applied = Some(batch.last());
        Ok(())
    }

    fn durable_index(&self) -> Option<LogIndex> {
        self.0.lock().unwrap().applied.map(|at| at.index)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("none is taken here"))
    }

    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Err(ApplyFault::new("none is taken here"))
    }
}

struct Trio {
    _network: Network,
    hosts: Vec<Groups>,
    disks: Vec<Arc<Mutex<Disk>>>,
}

impl Trio {
    fn start() -> (Self, Vec<Group>) {
        let (network, nodes) = (Network::new(7), [1, 2, 3].map(NodeId::must));
        let start = |node: &NodeId| {
            let mut config = GroupsConfig::new(*node);
            config.tick = Duration::from_millis(10);
            let (snapshots, port) = (Arc::new(MemorySnapshots::new()), network.port(*node));
            let groups = GroupsBuilder::new(config)
                .start(Arc::new(MemoryStore::new()), snapshots.clone(), port.clone())
                .unwrap();
            port.attach(groups.inbound(), snapshots, 1);
            groups
        };
        let hosts: Vec<Groups> = nodes.iter().map(start).collect();
        let disks: Vec<Arc<Mutex<Disk>>> = nodes.iter().map(|_| Arc::default()).collect();
        let create = |(host, disk): (&Groups, &Arc<Mutex<Disk>>)| {
            host.create(GroupSpec::new(ID, nodes), Box::new(Words(Arc::clone(disk)))).unwrap()
        };
        let replicas = hosts.iter().zip(&disks).map(create).collect();
        (Self { _network: network, hosts, disks }, replicas)
    }

    fn machine(&self, at: usize) -> Box<Words> {
        Box::new(Words(Arc::clone(&self.disks[at])))
    }

    fn open(&self, at: usize, skipped: LogIndex) -> Group {
        self.hosts[at].finish_skip(ID, skipped, SkipEnd::Skipped).unwrap();
        self.hosts[at].open(ID, self.machine(at)).unwrap()
    }

    fn begin(&self, at: usize, entry: StoredEntry) -> Result<(), OpenGroupError> {
        let machine = self.machine(at);
        self.hosts[at].begin_skip(ID, entry, Box::new(move || Ok(machine)))
    }

    fn skip(&self, at: usize, entry: StoredEntry) -> Result<(), OpenGroupError> {
        let machine = self.machine(at);
        self.hosts[at].skip_entry(ID, entry, Box::new(move || Ok(machine)))
    }

    /// As code that closed a replica opens it again; `None`: it stays closed.
    fn reopen(&self, at: usize) -> Option<Group> {
        let machine = self.machine(at);
        self.hosts[at].reopen_with(ID, Box::new(move || Ok(machine))).unwrap()
    }

    /// Has `poison` fail every replica, closes them, and finds its entry.
    async fn poisoned() -> (Self, StoredEntry) {
        let (trio, replicas) = Self::start();
        leader_of(&replicas).await.propose("poison").await.expect_err("its machine fails");
        for replica in &replicas {
            let failed = |status: &GroupStatus| matches!(status.role, Role::Failed(_));
            replica.wait_for(failed, SOON).await.expect("each of them fails");
        }
        let index = LogIndex::new(replicas[0].status().applied.get() + 1);
        for host in &trio.hosts {
            assert!(host.close(ID).await);
        }
        let entry = trio.hosts[0].stored_entry(ID, index).unwrap().expect("it is there");
        (trio, entry)
    }
}

async fn leader_of(replicas: &[Group]) -> &Group {
    let waits = replicas.iter().map(|one| Box::pin(one.wait_for(|status| status.serving, SOON)));
    let (served, at, _) = futures::future::select_all(waits).await;
    served.expect("somebody serves");
    &replicas[at]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gets_past_a_command_that_fails_every_replica() {
    let (trio, replicas) = Trio::start();
    leader_of(&replicas).await.propose("one").await.unwrap();
    let poisoned = leader_of(&replicas).await;
    poisoned.propose("poison").await.expect_err("its machine fails");
    for replica in &replicas {
        let failed = replica.wait_for(|status| matches!(status.role, Role::Failed(_)), SOON).await;
        failed.expect("each of them fails");
    }
    // An operator finds it behind what was applied.
    let index = LogIndex::new(replicas[0].status().applied.get() + 1);
    for host in &trio.hosts {
        assert!(host.close(ID).await);
    }
    let entry = trio.hosts[0].stored_entry(ID, index).unwrap().expect("it is there");
    assert!(!entry.is_empty && entry.bytes == 6);
    let unprepared = trio.skip(0, entry).unwrap_err().to_string();
    assert!(unprepared.contains("no skip of entry"), "{unprepared}");
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    trio.skip(1, entry).unwrap();
    // Interrupted: nothing opens a replica, whether its log is rewritten or not.
    for at in 0..3 {
        let refused = trio.hosts[at].open(ID, trio.machine(at)).unwrap_err().to_string();
        assert!(refused.contains("not all members have done so"), "{refused}");
    }
    // Again, from the beginning.
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    (0..3).for_each(|at| trio.skip(at, entry).unwrap());
    // Nothing but an order opens it meanwhile, as a repair of what is damaged beside it.
    for at in 0..3 {
        assert!(trio.reopen(at).is_none() && trio.hosts[at].parked_replica(ID).unwrap().ordered);
    }
    let replicas: Vec<Group> = (0..3).map(|at| trio.open(at, index)).collect();
    let two = leader_of(&replicas).await.propose("two").await.unwrap().index;
    let all = |at: usize| {
        let replica = &replicas[at];
        replica.wait_for(move |status| status.applied >= two, SOON)
    };
    for at in 0..3 {
        all(at).await.expect("it applies what follows");
        assert_eq!(trio.disks[at].lock().unwrap().words, ["one", "two"]);
        let here = trio.hosts[at].stored_entry(ID, index).unwrap().expect("it is there");
        assert!(here.is_empty && here.term == entry.term);
    }

    // A replica that was opened by order is opened again by the code that closed it, whatever was
    // ordered before.
    assert!(trio.hosts[1].close(ID).await);
    assert!(trio.reopen(1).is_some() && trio.hosts[1].parked_replica(ID).is_none());

    // Done twice, it changes nothing but that the state machine is past it.
    assert!(trio.hosts[0].close(ID).await);
    let message = trio.begin(0, entry).expect_err("it is applied").to_string();
    assert!(message.contains("has applied entry"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_very_entry_that_was_meant_is_skipped() {
    let (trio, replicas) = Trio::start();
    leader_of(&replicas).await.propose("poison").await.expect_err("its machine fails");
    let failed = replicas[1].wait_for(|status| matches!(status.role, Role::Failed(_)), SOON).await;
    failed.expect("each of them fails");
    let index = LogIndex::new(replicas[1].status().applied.get() + 1);
    let entry = trio.hosts[1].stored_entry(ID, index).unwrap().unwrap();
    trio.begin(1, entry).expect_err("it is open");
    assert!(trio.hosts[1].close(ID).await);

    for other in [
        StoredEntry { checksum: entry.checksum ^ 1, ..entry },
        StoredEntry { bytes: 7, ..entry },
        StoredEntry { term: shardhost_groups::Term::new(entry.term.get() + 1), ..entry },
    ] {
        let message = trio.begin(1, other).expect_err("another entry").to_string();
        assert!(message.contains("another entry is at"), "{message}");
    }
    assert_eq!(trio.hosts[1].stored_entry(ID, index).unwrap(), Some(entry), "nothing changed");
    // Where the log ends before it there is nothing to skip: it comes from the others, empty.
    let behind = StoredEntry { index: LogIndex::new(index.get() + 100), ..entry };
    assert_eq!(trio.hosts[1].stored_entry(ID, behind.index).unwrap(), None);
    trio.begin(1, behind).unwrap();
    trio.skip(1, behind).unwrap();
    assert_eq!(trio.hosts[1].stored_entry(ID, index).unwrap(), Some(entry), "nothing changed");
    // The note keeps this member from applying what others may have skipped: no other skip removes it.
    let message = trio.begin(1, entry).expect_err("one is not finished").to_string();
    assert!(message.contains(&format!("--index {}", behind.index)), "{message}");
    // Nor does an order to open the replica that is meant for another one.
    let message = trio.hosts[1]
        .finish_skip(ID, index, SkipEnd::Skipped)
        .expect_err("another one")
        .to_string();
    assert!(message.contains(&format!("--index {}", behind.index)), "{message}");
    trio.hosts[1].abandon_skip(ID, behind.index).unwrap();
    trio.hosts[1].finish_skip(ID, behind.index, SkipEnd::Abandoned).unwrap();
    trio.begin(1, entry).unwrap();
    trio.skip(1, entry).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_is_refused_leaves_the_replica_as_it_was() {
    let (trio, entry) = Trio::poisoned().await;
    let another = StoredEntry { checksum: entry.checksum ^ 1, ..entry };
    trio.begin(0, another).expect_err("another entry");
    assert!(trio.hosts[0].parked_replica(ID).is_none(), "nothing keeps it closed");
    trio.skip(0, entry).expect_err("it was not begun");
    assert!(trio.hosts[0].parked_replica(ID).is_none(), "nothing keeps it closed");
    assert!(trio.reopen(0).is_some(), "whatever closed it opens it again");
    // One that an operator parked stays so.
    trio.hosts[1].park(ID, "by order");
    trio.begin(1, another).expect_err("another entry");
    assert!(trio.hosts[1].parked_replica(ID).unwrap().cause.to_string().contains("by order"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_be_read_for_now_may_hold_the_command() {
    let (trio, entry) = Trio::poisoned().await;
    let fails = |fault| trio.disks[0].lock().unwrap().fault = fault;
    fails(Some(ApplyFault::passing("too many open files")));
    let refused = trio.begin(0, entry).expect_err("it may have applied it").to_string();
    assert!(refused.contains("too many open files"), "{refused}");
    let stored = trio.hosts[0].stored_group(ID).unwrap().unwrap();
    assert!(stored.skipping.is_none() && trio.hosts[0].parked_replica(ID).is_none());

    fails(None);
    trio.begin(0, entry).unwrap();
    fails(Some(ApplyFault::passing("too many open files")));
    trio.skip(0, entry).expect_err("it may have applied it");
    assert_eq!(trio.hosts[0].stored_entry(ID, entry.index).unwrap(), Some(entry), "unchanged");

    // What is damaged is replaced by the state of another replica.
    fails(Some(ApplyFault::damaged("a checksum is wrong")));
    trio.skip(0, entry).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_begun_at_some_members_is_abandoned() {
    let (trio, entry) = Trio::poisoned().await;
    let index = entry.index;
    trio.hosts[0].abandon_skip(ID, index).expect("nothing is noted, so nothing is to do");
    assert!(trio.hosts[0].parked_replica(ID).is_none());
    (0..2).for_each(|at| trio.begin(at, entry).unwrap());
    // An order to open it is not enough: it would apply what others may skip.
    let refused = trio.hosts[0]
        .finish_skip(ID, index, SkipEnd::Skipped)
        .expect_err("it is not skipped")
        .to_string();
    assert!(refused.contains("is not skipped here") && refused.contains("--abandon"), "{refused}");
    let other = LogIndex::new(index.get() + 1);
    let refused = trio.hosts[0].abandon_skip(ID, other).expect_err("another one").to_string();
    assert!(refused.contains(&format!("--index {index}")), "{refused}");

    (0..2).for_each(|at| trio.hosts[at].abandon_skip(ID, index).unwrap());
    for at in 0..2 {
        assert!(trio.reopen(at).is_none(), "not before all have agreed");
        let refused = trio.skip(at, entry).expect_err("it is abandoned").to_string();
        assert!(refused.contains("is being abandoned"), "{refused}");
    }
    for at in 0..2 {
        trio.hosts[at].finish_skip(ID, index, SkipEnd::Skipped).expect_err("it is not skipped");
        trio.hosts[at].finish_skip(ID, index, SkipEnd::Abandoned).unwrap();
        let stored = trio.hosts[at].stored_group(ID).unwrap().unwrap();
        assert_eq!(stored.skipping, None);
        trio.hosts[at].open(ID, trio.machine(at)).expect("nothing keeps it closed");
        assert_eq!(trio.hosts[at].stored_entry(ID, index).unwrap(), Some(entry), "unchanged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_is_not_abandoned_where_the_entry_is_rewritten_and_begins_anew_where_it_is_not() {
    let (trio, entry) = Trio::poisoned().await;
    let index = entry.index;
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    trio.hosts[0].abandon_skip(ID, index).unwrap();
    trio.skip(1, entry).unwrap();
    let refused = trio.hosts[1].abandon_skip(ID, index).expect_err("it is skipped").to_string();
    assert!(refused.contains("is skipped here already"), "{refused}");
    assert!(trio.hosts[0].open(ID, trio.machine(0)).is_err(), "it notes the skip all the time");
    // So the operator finishes it.
    (0..3).for_each(|at| trio.begin(at, entry).unwrap());
    (0..3).for_each(|at| trio.skip(at, entry).unwrap());
    let replicas: Vec<Group> = (0..3).map(|at| trio.open(at, index)).collect();
    leader_of(&replicas).await.propose("two").await.unwrap();
}

//! A command that fails the state machine of every replica, and how an operator gets past it.
//!
//! | file | what |
//! |---|---|
//! | `course` | from the beginning to the end, or to its abandonment |
//! | `refused` | another entry than is meant, and what a state may hold already |
//! | `late` | a member that lacks the command, which is on its way to it |
//! | `kept_closed` | replicas that are not open, and what ends them |

#![expect(clippy::unwrap_used, reason = "a test that broke ends with a panic")]

mod course;
mod kept_closed;
mod late;
mod refused;

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shardhost_groups::known_bugs::KnownBugs;
use shardhost_groups::runtime::{SkipEnd, StoredEntry};
use shardhost_groups::{
    ApplyBatch, ApplyFault, Group, GroupSpec, GroupStatus, Groups, GroupsBuilder, GroupsConfig,
    LogIndex, LogPosition, OpenGroupError, Role, SnapshotWriter, StateMachine, Term,
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
    /// `poison` fails the machine only when this ends.
    gate: Option<Receiver<()>>,
    /// It applies nothing more.
    fails: bool,
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
            if disk.fails {
                return Err(ApplyFault::new("it fails alone"));
            }
            if word == "poison" {
                let gate = disk.gate.take();
                drop(disk);
                if let Some(gate) = gate {
                    gate.recv_timeout(SOON).expect("the test ends it");
                }
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
        Ok(Box::new(View(self.0.lock().unwrap().words.join(" "))))
    }

    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Err(ApplyFault::new("none is restored here"))
    }
}

struct View(String);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        sink.write_all(self.0.as_bytes())
    }
}

struct Trio {
    network: Network,
    hosts: Vec<Groups>,
    disks: Vec<Arc<Mutex<Disk>>>,
}

impl Trio {
    fn start() -> (Self, Vec<Group>) {
        Self::start_with(KnownBugs::none())
    }

    fn start_with(bugs: KnownBugs) -> (Self, Vec<Group>) {
        let (network, nodes) = (Network::new(7), [1, 2, 3].map(NodeId::must));
        let start = |node: &NodeId| {
            let mut config = GroupsConfig::new(*node);
            config.tick = Duration::from_millis(10);
            config.bugs = bugs;
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
        (Self { network, hosts, disks }, replicas)
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
        self.skip_in(at, entry, self.later_term())
    }

    fn skip_in(&self, at: usize, entry: StoredEntry, term: Term) -> Result<(), OpenGroupError> {
        let machine = self.machine(at);
        self.hosts[at].skip_entry(ID, entry, term, Box::new(move || Ok(machine)))
    }

    /// The latest term of a member.
    fn term(&self) -> Term {
        self.hosts.iter().map(|host| host.stored_term(ID).unwrap()).max().unwrap()
    }

    /// A term in which no member was.
    fn later_term(&self) -> Term {
        Term::new(self.term().get() + 1)
    }

    /// As code that closed a replica opens it again; `None`: it stays closed.
    fn reopen(&self, at: usize) -> Option<Group> {
        let machine = self.machine(at);
        self.hosts[at].reopen_with(ID, Box::new(move || Ok(machine))).unwrap()
    }

    /// Has `poison` fail every replica. None fails before each knows that it is committed: the last
    /// one would not learn that from those that failed.
    async fn poison(&self, replicas: &[Group]) {
        let leader = leader_of(replicas).await;
        let quiet = |status: &GroupStatus| status.applied == status.last;
        let last = leader.wait_for(quiet, SOON).await.expect("it applies what is there").last;
        let close = |disk: &Arc<Mutex<Disk>>| {
            let (open, gate) = channel();
            disk.lock().unwrap().gate = Some(gate);
            open
        };
        let gates: Vec<Sender<()>> = self.disks.iter().map(close).collect();
        let proposed = leader.propose("poison");
        let known = async {
            for replica in replicas {
                let committed = replica.wait_for(|status| status.committed > last, SOON).await;
                committed.expect("each learns that it is committed");
            }
            drop(gates);
        };
        let (proposed, ()) = tokio::join!(proposed, known);
        proposed.expect_err("its machine fails");
        for replica in replicas {
            replica.wait_for(is_failed, SOON).await.expect("each of them fails");
        }
    }

    /// Has `poison` fail every replica, closes them, and finds its entry.
    async fn poisoned() -> (Self, StoredEntry) {
        let (trio, replicas) = Self::start();
        trio.poison(&replicas).await;
        let index = LogIndex::new(replicas[0].machine_applied().get() + 1);
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

fn is_failed(status: &GroupStatus) -> bool {
    matches!(status.role, Role::Failed(_))
}

fn at_of(replicas: &[Group], leader: &Group) -> usize {
    replicas.iter().position(|one| std::ptr::eq(one, leader)).unwrap()
}

//! What a replica promised stands, although it is closed and opened again, or created twice at
//! once, while the log is slow.
//!
//! `close`, or the `open` behind it, waits until the log writer is done with all that the replica
//! handed to it; a call of `create` that is refused wrote nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use shardhost_groups::storage::*;
use shardhost_groups::testing::alone::Stateless;
use shardhost_groups::transport::{Inbound, Outgoing, SnapshotShipment, Transport};
use shardhost_groups::*;
use shardhost_proto::log::{Entry as WireEntry, EntryKind as WireKind};
use shardhost_proto::peer::{GroupMessage, MessageKind};
use tokio::runtime::Runtime;

const GROUP: GroupId = GroupId::new(7);

/// Holds the next call until what `set` gave is dropped; those that come after it pass.
type Trap = Mutex<Option<Receiver<()>>>;

pub(super) fn set(trap: &Trap) -> Sender<()> {
    let (hold, held) = channel();
    *trap.lock().unwrap() = Some(held);
    hold
}
fn pass(trap: &Trap) {
    let held = trap.lock().unwrap().take();
    held.map(|held| held.recv());
}
pub(super) fn caught(trap: &Trap) -> bool {
    wait(|| trap.lock().unwrap().is_none())
}

/// What is around the node: a log with one slow write, or one slow look at a tombstone, and a
/// network that keeps what is sent.
#[derive(Debug, Default)]
pub(super) struct Around {
    log: MemoryStore,
    pub(super) write: Trap,
    tombstone: Trap,
    sent: Mutex<Vec<Outgoing>>,
    /// Peers get no heartbeats of the node.
    pub(super) silent: AtomicBool,
}

type Logged<T> = Result<T, LogError>;
#[rustfmt::skip]
impl shardhost_storage::LogLayer for Around {
    fn below(&self) -> &dyn LogStore { &self.log }
    fn tombstone(&self, group: GroupId) -> Logged<Option<ReplicaId>> { pass(&self.tombstone); self.log.tombstone(group) }
    fn write(&self, batch: &LogBatch) -> Logged<()> { pass(&self.write); self.log.write(batch) }
}
#[rustfmt::skip]
impl Transport for Around {
    fn send(&self, messages: Vec<Outgoing>) { self.sent.lock().unwrap().extend(messages); }
    fn send_snapshot(&self, _: SnapshotShipment) {}
    fn set_silent(&self, silent: bool) { self.silent.store(silent, Ordering::SeqCst); }
}

/// Waits until it is so, for a second or two at most.
pub(super) fn wait(what: impl Fn() -> bool) -> bool {
    (0..200).any(|_| {
        thread::sleep(Duration::from_millis(5));
        what()
    })
}

/// Node 1 of three. The test speaks for nodes 2 and 3.
pub(super) struct Node {
    groups: Groups,
    pub(super) around: Arc<Around>,
}

impl Node {
    fn start() -> Self {
        Self::ticking(GroupsConfig::new(NodeId::must(1)).tick)
    }
    pub(super) fn ticking(tick: Duration) -> Self {
        let around = Arc::new(Around::default());
        let mut config = GroupsConfig::new(NodeId::must(1));
        config.tick = tick;
        let built = GroupsBuilder::new(config);
        let groups = built.start(around.clone(), Arc::<MemorySnapshots>::default(), around.clone());
        Self { groups: groups.unwrap(), around }
    }
    /// A replica with a message of term 5 from node 2 whose effect is held on its way to the log.
    fn with_held(kind: MessageKind) -> (Self, Sender<()>) {
        let node = Self::start();
        node.create().join().unwrap().unwrap();
        let held = set(&node.around.write);
        node.deliver(kind, 2, 5);
        assert!(caught(&node.around.write));
        (node, held)
    }
    pub(super) fn create(&self) -> JoinHandle<Result<Group, OpenGroupError>> {
        let groups = self.groups.clone();
        let spec = GroupSpec::new(GROUP, [1, 2, 3].map(NodeId::must));
        thread::spawn(move || groups.create(spec, Box::new(Stateless)))
    }
    /// Closes and opens the replica. Held operations continue when that is done, or wait.
    fn reopen(&self, held: impl Sized) -> Group {
        let groups = self.groups.clone();
        let reopened = thread::spawn(move || {
            assert!(Runtime::new().unwrap().block_on(groups.close(GROUP)));
            groups.open(GROUP, Box::new(Stateless)).unwrap()
        });
        println!("opened before the log went on: {}", wait(|| reopened.is_finished()));
        drop(held);
        reopened.join().unwrap()
    }
    /// `false`: the caller has to look again.
    pub(super) fn deliver(&self, kind: MessageKind, from: u64, term: u64) -> bool {
        let mut message = GroupMessage { group: 7, to_replica: 1, term, ..Default::default() };
        (message.kind, message.from_replica) = (kind.into(), from);
        if kind == MessageKind::Append {
            let (kind, data) = (WireKind::Command.into(), "x".into());
            message.entries.push(WireEntry { kind, term, data, ..Default::default() });
        }
        self.groups.inbound().deliver(NodeId::must(from), vec![message]) > 0
    }
    /// Sends entry 1 until it is acknowledged.
    pub(super) fn append(&self) -> bool {
        wait(|| self.has_acknowledged() || self.deliver(MessageKind::Append, 2, 5))
    }
    /// The nodes that got this, and did not refuse it: a vote (index 0), or an entry in the log.
    pub(super) fn told(&self, kind: MessageKind, term: u64, index: u64) -> Vec<u64> {
        let is = |one: &&Outgoing| {
            let one = &one.message;
            (one.kind(), one.term, one.index, one.reject) == (kind, term, index, false)
        };
        self.around.sent.lock().unwrap().iter().filter(is).map(|one| one.to.get()).collect()
    }
    fn votes(&self, term: u64) -> Vec<u64> {
        self.told(MessageKind::VoteResponse, term, 0)
    }
    fn has_acknowledged(&self) -> bool {
        self.told(MessageKind::AppendResponse, 5, 1).contains(&2)
    }
    /// Entry 1 was acknowledged: the replica has it, and elects no candidate without it.
    fn assert_entry_is_kept(&self, opened: &Group) {
        assert!(wait(|| self.has_acknowledged()));
        self.deliver(MessageKind::Vote, 3, 6);
        wait(|| !self.votes(6).is_empty());
        let (last, votes) = (opened.status().last.get(), self.votes(6));
        println!("entry 1 is acknowledged; the log ends at {last}; votes without it: {votes:?}");
        assert!(last >= 1 && votes.is_empty(), "an acknowledged entry is forgotten");
    }
}

#[test]
fn a_vote_is_given_once() {
    let (node, held) = Node::with_held(MessageKind::Vote);
    node.reopen(held);
    node.deliver(MessageKind::Vote, 3, 5);
    wait(|| node.votes(5).len() > 1);
    assert!(node.votes(5).len() < 2, "one term, votes for {:?}", node.votes(5));
}

#[test]
fn an_acknowledged_entry_is_kept() {
    let (node, held) = Node::with_held(MessageKind::Append);
    node.assert_entry_is_kept(&node.reopen(held));
}

#[test]
fn a_second_creation_leaves_the_log_alone() {
    let node = Node::start();
    let held = set(&node.around.tombstone);
    let slow = node.create();
    assert!(caught(&node.around.tombstone), "the first call found no such group");
    let quick = node.create();
    wait(|| quick.is_finished());
    let early = node.append();
    drop(held);
    let outcomes = [slow, quick].map(|call| call.join().unwrap().map(drop));
    println!("the two calls: {outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(early || node.append());
    node.assert_entry_is_kept(&node.reopen(()));
}

//! One host with a slow log, and a network that keeps what is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use shardhost_groups::known_bugs::KnownBugs;
use shardhost_groups::storage::{
    GroupWrite, LogBatch, LogError, LogStore, MemorySnapshots, MemoryStore,
};
use shardhost_groups::transport::{Inbound, Outgoing, SnapshotShipment, Transport};
use shardhost_groups::{
    ApplyBatch, ApplyFault, GroupId, Groups, GroupsBuilder, GroupsConfig, LogPosition, NodeId,
    SnapshotWriter, StateMachine,
};
use shardhost_proto::hash::{MIX_STEP, mix};
use shardhost_proto::peer::{GroupMessage, MessageKind};

/// Numbers from a seed, for many threads. What each of them draws depends on who is first; what is
/// done does not.
#[derive(Debug)]
pub struct Dice(AtomicU64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A number below `sides`.
    pub fn roll(&self, sides: u64) -> u64 {
        mix(self.0.fetch_add(MIX_STEP, Ordering::Relaxed)) % sides
    }

    /// What a state machine takes: mostly nothing.
    fn think(&self) {
        match self.roll(8) {
            0 => thread::sleep(Duration::from_millis(4)),
            1 => thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }

    /// What a write to the log takes.
    fn sync(&self) {
        let slow = self.roll(3) == 0;
        thread::sleep(Duration::from_millis(if slow { 20 } else { 1 }));
    }
}

/// What is around the host.
#[derive(Debug)]
pub struct Around {
    pub log: MemoryStore,
    pub dice: Arc<Dice>,
    /// The receivers of votes: by group, replica, term.
    votes: Mutex<BTreeMap<(u64, u64, u64), BTreeSet<NodeId>>>,
}

impl Around {
    pub fn new(dice: &Arc<Dice>) -> Arc<Self> {
        let (log, dice) = (MemoryStore::new(), Arc::clone(dice));
        Arc::new(Self { log, dice, votes: Mutex::default() })
    }

    /// Terms in which one replica voted for two.
    pub fn double_votes(&self) -> Vec<String> {
        let votes = self.votes.lock().unwrap();
        let doubles = votes.iter().filter(|(_, given)| given.len() > 1);
        doubles.map(|(of, given)| format!("(group, replica, term) {of:?}: {given:?}")).collect()
    }

    pub fn votes(&self) -> usize {
        self.votes.lock().unwrap().len()
    }
}

type Logged<T> = Result<T, LogError>;

impl shardhost_storage::LogLayer for Around {
    fn below(&self) -> &dyn LogStore {
        &self.log
    }
    fn write(&self, batch: &LogBatch) -> Logged<()> {
        let creates = |write: &GroupWrite| write.reset.is_some();
        if !batch.writes.iter().all(creates) {
            self.dice.sync();
        }
        self.log.write(batch)
    }
}

impl Transport for Around {
    fn send(&self, messages: Vec<Outgoing>) {
        let mut votes = self.votes.lock().unwrap();
        for Outgoing { to, message, .. } in messages {
            if message.kind() == MessageKind::VoteResponse && !message.reject {
                let of = (message.group, message.from_replica, message.term);
                votes.entry(of).or_default().insert(to);
            }
        }
    }
    fn send_snapshot(&self, _: SnapshotShipment) {}
}

/// Starts node 1 around which this is.
pub fn host(around: &Arc<Around>, bugs: KnownBugs) -> Groups {
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.tick = Duration::from_millis(2);
    config.bugs = bugs;
    GroupsBuilder::new(config)
        .apply_threads(3)
        .start(around.clone(), Arc::<MemorySnapshots>::default(), around.clone())
        .unwrap()
}

/// A candidate on `from` asks the replica of a group for its vote.
pub fn ask_for_vote(groups: &Groups, group: GroupId, replica: u64, from: u64, term: u64) {
    let mut message =
        GroupMessage { group: group.get(), to_replica: replica, term, ..GroupMessage::default() };
    message.kind = MessageKind::Vote.into();
    message.from_replica = replica >> 32 << 32 | from;
    // An inbox that is full is no error: candidates ask again.
    groups.inbound().deliver(NodeId::must(from), vec![message]);
}

/// Remembers words, and answers with all of them. Takes its time.
pub struct Words {
    pub words: Vec<String>,
    applied: LogPosition,
    dice: Arc<Dice>,
}

impl Words {
    pub fn new(dice: &Arc<Dice>) -> Box<Self> {
        let dice = Arc::clone(dice);
        Box::new(Self { words: Vec::new(), applied: LogPosition::default(), dice })
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.dice.think();
    }
}

impl StateMachine for Words {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        self.dice.think();
        Ok(Some(self.applied).filter(|at| *at != LogPosition::default()))
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.dice.think();
        for command in batch.commands() {
            self.words.push(String::from_utf8_lossy(command.data()).into_owned());
            command.respond(self.words.join(" "));
        }
        self.applied = batch.last();
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View(self.words.join(" "))))
    }
    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut text = String::new();
        source.read_to_string(&mut text).map_err(ApplyFault::new)?;
        self.words = text.split_whitespace().map(str::to_owned).collect();
        self.applied = at;
        Ok(())
    }
}

struct View(String);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        sink.write_all(self.0.as_bytes())
    }
}

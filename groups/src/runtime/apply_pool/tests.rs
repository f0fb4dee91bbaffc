//! Work is merged, done in order, and one slow state machine holds up no other group.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use shardhost_storage::{
    GroupId, LogPosition, MemorySnapshots, MemoryStore, NodeId, SnapshotStore,
};
use tokio::sync::oneshot;

use super::mailbox::{QUESTIONS_PER_LOOK, WORK_PER_TURN};
use super::*;
use crate::error::{GroupFault, QueryError};
use crate::machine::{ApplyBatch, ApplyFault, Command, SnapshotWriter, StateMachine};
use crate::runtime::{Group, GroupSpec, Groups, GroupsBuilder};
use crate::status::Role;
use crate::testing::alone::Alone;
use crate::{GroupsConfig, ProposeError, ReadMode};

const DEADLINE: Duration = Duration::from_secs(20);

fn commands(from: u64, to: u64) -> ApplyWork {
    let command = |index| Command::new(LogPosition::new(1, index), Bytes::from_static(b"x"));
    ApplyWork::Commands {
        commands: (from..=to).map(command).collect(),
        last: LogPosition::new(1, to),
    }
}

fn shape(work: &[ApplyWork]) -> Vec<String> {
    work.iter().map(|work| format!("{work:?}")).collect()
}

#[test]
fn commands_that_follow_each_other_become_one_batch() {
    let merged = merge([commands(1, 3), commands(4, 4), commands(5, 9)].into());
    let [ApplyWork::Commands { commands, last }] = &merged[..] else {
        panic!("one batch: {:?}", shape(&merged));
    };
    let indexes: Vec<u64> = commands.iter().map(|c| c.position().index.get()).collect();
    assert_eq!(indexes, (1..=9).collect::<Vec<_>>(), "in order");
    assert_eq!(*last, LogPosition::new(1, 9));
}

#[test]
fn what_stands_between_commands_keeps_its_place() {
    let between = || [commands(1, 2), ApplyWork::Snapshot, commands(3, 4), ApplyWork::Durable];
    let merged = merge(between().into());
    assert_eq!(shape(&merged), shape(&between()));
}

fn mailbox() -> Mailbox {
    let snapshots: Arc<dyn SnapshotStore> = Arc::new(MemorySnapshots::new());
    let machine = Box::new(Echo::default());
    Mailbox::new(Applier::new(GroupId::new(1), machine, snapshots, LogPosition::default()))
}

/// A question, and who asks it.
fn question() -> (ApplyWork, oneshot::Receiver<Result<Bytes, QueryError>>) {
    let (reply, asker) = crate::completion::answer();
    (ApplyWork::Query { request: Bytes::from_static(b"x"), reply }, asker)
}

#[test]
fn questions_of_those_who_went_away_do_not_pile_up_before_a_machine_that_hangs() {
    let mailbox = mailbox();
    mailbox.add(commands(1, 1));
    for _ in 0..10 * QUESTIONS_PER_LOOK {
        let (question, asker) = question();
        drop(asker);
        mailbox.ask(question, usize::MAX).unwrap();
    }
    let waiting = mailbox.state.lock().work.len();
    assert!(waiting <= QUESTIONS_PER_LOOK, "{waiting} wait");
    let first = mailbox.state.lock().work.pop_front();
    assert!(matches!(first, Some(ApplyWork::Commands { .. })), "what is no question stays");
}

#[test]
fn a_question_that_finds_no_room_is_refused_until_others_are_given_up() {
    let (mailbox, most) = (mailbox(), 2 * QUESTIONS_PER_LOOK);
    let ask = || {
        let (question, asker) = question();
        mailbox.ask(question, most).map(|_| asker)
    };
    let askers: Vec<_> = (0..most).map(|_| ask().unwrap()).collect();
    assert_eq!(ask().err(), Some(NoRoom));
    drop(askers);
    let refused = (0..most).take_while(|_| ask().is_err()).count();
    assert!(refused < QUESTIONS_PER_LOOK, "{refused} were refused although nobody waits");
}

#[test]
fn a_turn_takes_a_bounded_share_and_comes_back_for_the_rest() {
    let snapshots: Arc<dyn SnapshotStore> = Arc::new(MemorySnapshots::new());
    let machine = Box::new(Echo::default());
    let start = LogPosition::default();
    let mailbox = Mailbox::new(Applier::new(GroupId::new(1), machine, snapshots, start));

    assert!(mailbox.add(ApplyWork::Durable), "the first work schedules the mailbox");
    for _ in 0..WORK_PER_TURN {
        assert!(!mailbox.add(ApplyWork::Durable), "it is scheduled once");
    }
    assert_eq!(mailbox.take().len(), WORK_PER_TURN);
    assert_eq!(mailbox.end_turn(false), Next::Again, "there is more");
    assert_eq!(mailbox.take().len(), 1);
    assert_eq!(mailbox.end_turn(false), Next::Nothing);
    assert!(mailbox.add(ApplyWork::Durable), "it must be scheduled again");

    mailbox.close();
    assert!(mailbox.take().is_empty());
    assert!(!mailbox.add(ApplyWork::Durable), "a closed one takes nothing");
}

#[test]
fn only_questions_that_are_quick_are_answered_on_the_thread_of_whoever_asks() {
    let snapshots: Arc<dyn SnapshotStore> = Arc::new(MemorySnapshots::new());
    let machine = Box::new(Echo::default());
    let start = LogPosition::default();
    let mailbox = Mailbox::new(Applier::new(GroupId::new(1), machine, snapshots, start));
    let ask = |question: &'static [u8]| mailbox.query_at_once(&Bytes::from_static(question));
    assert_eq!(ask(b"quick"), Some(Ok(Bytes::from_static(b"quick"))));
    assert_eq!(ask(b"slow"), None, "it queues");
}

/// Answers as set. With a gate, it waits there before it applies anything.
#[derive(Default)]
struct Echo {
    applied: LogPosition,
    gate: Option<mpsc::Receiver<()>>,
    disk: Disk,
    heard: u64,
}

/// What an [`Echo`] would write to.
#[derive(Clone, Default)]
struct Disk {
    full: Arc<AtomicBool>,
    damaged: Arc<AtomicBool>,
}

impl StateMachine for Echo {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok((self.applied != LogPosition::default()).then_some(self.applied))
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        if let Some(gate) = self.gate.take() {
            gate.recv_timeout(DEADLINE).map_err(ApplyFault::new)?;
        }
        let heard = self.heard;
        for command in batch.commands() {
            let data = command.data().clone();
            assert_ne!(data, "panic", "a state machine on purpose");
            self.heard += 1;
            command.respond(data);
        }
        if self.disk.full.load(Ordering::Relaxed) {
            self.heard = heard;
            return Err(ApplyFault::passing("the disk is full"));
        }
        self.applied = batch.last();
        Ok(())
    }

    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        if self.disk.damaged.load(Ordering::Relaxed) {
            return Err(QueryError::Damaged("a block of it".to_owned()));
        }
        if request == "heard" {
            return Ok(self.heard.to_string().into());
        }
        Ok(request.clone())
    }

    fn answers_at_once(&self, request: &Bytes) -> bool {
        request == "quick"
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Err(ApplyFault::new("none"))
    }

    fn restore(&mut self, _: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        Err(ApplyFault::new("none"))
    }
}

fn host(apply_threads: usize) -> Groups {
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.tick = Duration::from_millis(2);
    config.propose_give_up_ticks = u16::MAX;
    let store = Arc::new(MemoryStore::new());
    let snapshots = Arc::new(MemorySnapshots::new());
    GroupsBuilder::new(config)
        .apply_threads(apply_threads)
        .start(store, snapshots, Arc::new(Alone))
        .unwrap()
}

async fn open(groups: &Groups, id: u64, gate: Option<mpsc::Receiver<()>>) -> Group {
    open_machine(groups, id, Echo { gate, ..Echo::default() }).await
}

async fn open_on(groups: &Groups, id: u64, disk: &Disk) -> Group {
    open_machine(groups, id, Echo { disk: disk.clone(), ..Echo::default() }).await
}

async fn open_machine(groups: &Groups, id: u64, machine: Echo) -> Group {
    let spec = GroupSpec::new(GroupId::new(id), [NodeId::must(1)]);
    let machine = Box::new(machine);
    let group = groups.create(spec, machine).unwrap();
    group.wait_for(|status| status.serving, DEADLINE).await.expect("it leads alone");
    group
}

async fn echo(group: &Group, word: &'static str) -> Result<Bytes, ProposeError> {
    let proposal = group.propose(word).into_future();
    let outcome = tokio::time::timeout(DEADLINE, proposal).await.expect("an answer in time");
    outcome.map(|applied| applied.response)
}

#[tokio::test]
async fn a_slow_machine_holds_up_no_other_group() {
    let groups = host(2);
    let (open_gate, gate) = mpsc::channel();
    let slow = open(&groups, 1, Some(gate)).await;
    let quick = open(&groups, 2, None).await;

    let waiting = tokio::spawn({
        let slow = slow.clone();
        async move { echo(&slow, "slow").await }
    });
    let behind = slow.wait_for(|status| status.committed > status.applied, DEADLINE).await;
    behind.expect("the command is committed");
    for _ in 0..200 {
        assert_eq!(echo(&quick, "quick").await.unwrap(), "quick");
    }
    assert!(!waiting.is_finished(), "the slow one is still at it");

    open_gate.send(()).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), "slow");
    groups.shutdown();
}

#[tokio::test]
async fn a_machine_that_panics_stops_its_group_alone() {
    let groups = host(1);
    let bad = open(&groups, 1, None).await;
    let good = open(&groups, 2, None).await;

    let failed = echo(&bad, "panic").await.unwrap_err();
    assert!(matches!(failed, ProposeError::Faulted { .. }), "{failed}");
    for _ in 0..20 {
        assert_eq!(echo(&good, "fine").await.unwrap(), "fine");
    }
    let later = echo(&bad, "after").await.unwrap_err();
    assert!(later.is_definite() && later.to_string().contains("on purpose"), "{later}");
    groups.shutdown();
}

#[tokio::test]
async fn what_a_full_disk_refuses_is_done_once_when_there_is_room() {
    let groups = host(1);
    let disk = Disk::default();
    let stalled = open_on(&groups, 1, &disk).await;
    let other = open(&groups, 2, None).await;
    assert_eq!(echo(&stalled, "first").await.unwrap(), "first");

    disk.full.store(true, Ordering::Relaxed);
    let waiting = tokio::spawn({
        let stalled = stalled.clone();
        async move { echo(&stalled, "second").await }
    });
    let told = stalled.wait_for(|status| status.stalled.is_some(), DEADLINE).await.unwrap();
    assert!(told.stalled.as_ref().unwrap().contains("the disk is full"));
    assert!(!told.serving && told.role == Role::Leader, "nobody else can lead it");
    let refused = echo(&stalled, "third").await.unwrap_err();
    assert!(refused.is_definite() && refused.to_string().contains("the disk is full"), "{refused}");
    let heard = stalled.query(ReadMode::Stale, "heard").await.unwrap();
    assert_eq!(heard, "1", "what was refused changed nothing");
    assert_eq!(echo(&other, "fine").await.unwrap(), "fine");
    assert!(!waiting.is_finished(), "it waits");

    disk.full.store(false, Ordering::Relaxed);
    assert_eq!(waiting.await.unwrap().unwrap(), "second");
    stalled.wait_for(|status| status.serving, DEADLINE).await.expect("it serves again");
    assert_eq!(echo(&stalled, "fourth").await.unwrap(), "fourth");
    assert_eq!(stalled.query(ReadMode::Stale, "heard").await.unwrap(), "3", "each once");
    groups.shutdown();
}

#[tokio::test]
async fn a_replica_that_stands_still_can_end() {
    let groups = host(1);
    let disk = Disk::default();
    let group = open_on(&groups, 1, &disk).await;
    disk.full.store(true, Ordering::Relaxed);
    let waiting = tokio::spawn({
        let group = group.clone();
        async move { echo(&group, "lost").await }
    });
    group.wait_for(|status| status.stalled.is_some(), DEADLINE).await.unwrap();
    let closing = groups.close(GroupId::new(1));
    assert!(tokio::time::timeout(DEADLINE, closing).await.expect("it ends in time"));
    assert!(!waiting.await.unwrap().unwrap_err().is_definite(), "it is committed");
    groups.shutdown();
}

#[tokio::test]
async fn a_question_that_finds_damage_stops_its_replica() {
    let groups = host(1);
    let disk = Disk::default();
    let group = open_on(&groups, 1, &disk).await;
    disk.damaged.store(true, Ordering::Relaxed);
    let answer = group.query(ReadMode::Linearizable, "quick").await.unwrap_err();
    assert!(answer.to_string().contains("damaged"), "{answer}");
    let failed = |role: &Role| matches!(role, Role::Failed(GroupFault::StateDamaged(_)));
    group.wait_for(|status| failed(&status.role), DEADLINE).await.expect("it goes on");
    groups.shutdown();
}

//! The machines of both kinds of shard against models, under random commands, batches, crashes,
//! replays and snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use shardhost_groups::machine::{Command, Progress, StateMachine, apply_all};
use shardhost_proto::client::{Acked, Peek, Scan};
use shardhost_server::shards::queue::{
    QueueCommand, QueueOperation, QueueQuery, QueueResponse, Receipt,
};
use shardhost_server::shards::session::SessionTag;
use shardhost_server::shards::table::{TableAnswer, TableCommand, TableQuery, TableResponse};
use shardhost_server::shards::{StateDb, StateDbOptions};
use shardhost_storage::{GroupId, LogPosition};
use tempfile::TempDir;

const GROUP: GroupId = GroupId::new(3);

/// What happens to a replica between two batches.
#[derive(Clone, Copy, Debug)]
enum Event {
    Flush,
    /// The process dies; the disk holds what it holds; the log is replayed.
    Crash,
    /// The machine is dropped and opened again.
    Reopen,
    /// Another replica is restored from a snapshot and takes over.
    MoveBySnapshot,
}

/// How many commands go into the next batch, and what happens behind it.
type Schedule = Vec<(usize, Option<Event>)>;

fn schedule() -> impl Strategy<Value = Schedule> {
    let event = prop_oneof![
        4 => Just(None),
        2 => Just(Some(Event::Flush)),
        1 => Just(Some(Event::Crash)),
        1 => Just(Some(Event::Reopen)),
        1 => Just(Some(Event::MoveBySnapshot)),
    ];
    prop::collection::vec((1..12usize, event), 1..24)
}

/// A replica that suffers: its machine, its disk, and the log it replays from.
struct Replica<M> {
    machine: M,
    state: Arc<StateDb>,
    directory: TempDir,
    make: fn(&Arc<StateDb>) -> M,
    log: Vec<Bytes>,
    /// What the model answered to each entry of the log.
    answers: Vec<Bytes>,
}

impl<M: StateMachine> Replica<M> {
    fn new(make: fn(&Arc<StateDb>) -> M) -> Self {
        let directory = scratch_directory();
        let state = open(directory.path());
        let machine = make(&state);
        assert_eq!(machine.applied().unwrap(), None);
        Self { machine, state, directory, make, log: Vec::new(), answers: Vec::new() }
    }

    /// Applies one batch and checks its answers.
    fn apply(&mut self, commands: &[(Bytes, Bytes)]) {
        let first = self.log.len();
        for (command, answer) in commands {
            self.log.push(command.clone());
            self.answers.push(answer.clone());
        }
        self.apply_range(first, self.log.len());
    }

    fn apply_range(&mut self, from: usize, to: usize) {
        let mut commands: Vec<Command> = (from..to)
            .map(|place| Command::new(position(place + 1), self.log[place].clone()))
            .collect();
        apply_all(&mut self.machine, GROUP, position(to), &mut commands).unwrap();
        for (command, expected) in commands.iter().zip(&self.answers[from..to]) {
            assert_eq!(command.response(), expected, "at {}", command.position());
        }
    }

    fn suffer(&mut self, event: Event) {
        match event {
            Event::Flush => self.state.flush_now().unwrap(),
            Event::Crash => self.crash(),
            Event::Reopen => {
                self.machine = (self.make)(&self.state);
                assert_eq!(self.machine.applied().unwrap(), self.end());
            }
            Event::MoveBySnapshot => self.move_by_snapshot(),
        }
    }

    fn end(&self) -> Option<LogPosition> {
        (!self.log.is_empty()).then(|| position(self.log.len()))
    }

    fn crash(&mut self) {
        let durable = self.machine.durable_index().unwrap().get();
        let before = self.machine.checksum(&Progress::default()).unwrap();
        let image = copy_of(self.directory.path());
        self.state = open(image.path());
        self.machine = (self.make)(&self.state);
        self.directory = image;
        let applied = self.machine.applied().unwrap().map_or(0, |at| at.index.get());
        assert!(applied >= durable, "{applied} found, {durable} was called durable");
        if applied < self.log.len() as u64 {
            self.apply_range(applied as usize, self.log.len());
        }
        assert_eq!(self.machine.checksum(&Progress::default()).unwrap(), before);
    }

    fn move_by_snapshot(&mut self) {
        let Some(end) = self.end() else { return };
        let before = self.machine.checksum(&Progress::default()).unwrap();
        let mut snapshot = Vec::new();
        self.machine.snapshot().unwrap().write_to(&mut snapshot).unwrap();
        let mut other = Self::new(self.make);
        // What stands there before must not shine through.
        other.apply_range_of(&self.log[..self.log.len() / 2]);
        other.machine.restore(end, &mut &snapshot[..]).unwrap();
        assert_eq!(other.machine.applied().unwrap(), Some(end));
        assert_eq!(other.machine.checksum(&Progress::default()).unwrap(), before);
        (self.machine, self.state, self.directory) = (other.machine, other.state, other.directory);
    }

    fn apply_range_of(&mut self, log: &[Bytes]) {
        let mut commands: Vec<Command> = (1..)
            .zip(log)
            .map(|(index, data)| Command::new(position(index), data.clone()))
            .collect();
        let last = position(log.len().max(1));
        apply_all(&mut self.machine, GROUP, last, &mut commands).unwrap();
    }
}

fn position(index: usize) -> LogPosition {
    LogPosition::new(1, index as u64)
}

fn open(path: &Path) -> Arc<StateDb> {
    StateDb::open(path, StateDbOptions::small().flushed_by_hand()).unwrap()
}

/// In memory where the system has such a place: hundreds of stores are opened here, and a crash
/// is a copy, not a power failure.
fn scratch_directory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().unwrap())
}

/// A copy of a directory as it is at one moment: made again while files come and go.
fn copy_of(directory: &Path) -> TempDir {
    for _ in 0..1_000 {
        let copy = scratch_directory();
        let before = files_in(directory);
        let copied = |name: &PathBuf| {
            let to = copy.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(directory.join(name), to).is_ok()
        };
        if before.iter().all(copied) && files_in(directory) == before {
            return copy;
        }
    }
    panic!("{} does not hold still", directory.display());
}

/// The files of a directory and of those in it, by their paths within.
fn files_in(directory: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut to_visit = vec![PathBuf::new()];
    while let Some(within) = to_visit.pop() {
        for entry in fs::read_dir(directory.join(&within)).unwrap() {
            let path = within.join(entry.unwrap().file_name());
            match directory.join(&path).is_dir() {
                true => to_visit.push(path),
                false => drop(files.insert(path)),
            }
        }
    }
    files
}

/// Runs the commands on a suffering replica and on a calm one that gets them one by one.
fn run<M: StateMachine>(
    make: fn(&Arc<StateDb>) -> M,
    commands: &[(Bytes, Bytes)],
    schedule: &Schedule,
) -> Replica<M> {
    let mut tried = Replica::new(make);
    let mut left = commands;
    for (size, event) in schedule.iter().cycle() {
        let (batch, rest) = left.split_at((*size).min(left.len()));
        tried.apply(batch);
        if let Some(event) = event {
            tried.suffer(*event);
        }
        left = rest;
        if left.is_empty() {
            break;
        }
    }
    let mut calm = Replica::new(make);
    commands.iter().for_each(|command| calm.apply(std::slice::from_ref(command)));
    assert_eq!(
        tried.machine.checksum(&Progress::default()).unwrap(),
        calm.machine.checksum(&Progress::default()).unwrap()
    );
    tried
}

#[derive(Clone, Debug)]
enum TableStep {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    CompareAndSet(Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>),
    Garbage(Vec<u8>),
}

fn table_steps() -> impl Strategy<Value = Vec<TableStep>> {
    let key = || prop::collection::vec(prop_oneof![Just(0), Just(1), Just(255)], 0..3);
    let value = || prop::collection::vec(0..3u8, 0..3);
    let step = prop_oneof![
        5 => (key(), value()).prop_map(|(key, value)| TableStep::Put(key, value)),
        2 => key().prop_map(TableStep::Delete),
        4 => (key(), prop::option::of(value()), prop::option::of(value()))
            .prop_map(|(key, expect, value)| TableStep::CompareAndSet(key, expect, value)),
        1 => prop::collection::vec(any::<u8>(), 0..4).prop_map(TableStep::Garbage),
    ];
    prop::collection::vec(step, 1..120)
}

type TableModel = BTreeMap<Vec<u8>, Vec<u8>>;

/// The command of a step, and the answer after the model.
fn table_command(model: &mut TableModel, step: &TableStep) -> (Bytes, Bytes) {
    let written = |done, existed, actual: Option<Vec<u8>>| {
        TableResponse::Written { done, existed, actual: actual.map(Bytes::from) }.encode()
    };
    match step {
        TableStep::Put(key, value) => {
            let existed = model.insert(key.clone(), value.clone()).is_some();
            (TableCommand::Put { key, value }.encode(), written(true, existed, None))
        }
        TableStep::Delete(key) => {
            let existed = model.remove(key).is_some();
            (TableCommand::Delete { key }.encode(), written(true, existed, None))
        }
        TableStep::CompareAndSet(key, expect, value) => {
            let actual = model.get(key).cloned();
            let (expect, value) = (expect.as_deref(), value.as_deref());
            let command = TableCommand::CompareAndSet { key, expect, value }.encode();
            if actual.as_deref() != expect {
                return (command, written(false, actual.is_some(), actual));
            }
            match value {
                Some(value) => drop(model.insert(key.clone(), value.to_vec())),
                None => drop(model.remove(key)),
            }
            (command, written(true, actual.is_some(), None))
        }
        TableStep::Garbage(data) => {
            // Version 0 exists nowhere.
            let data = Bytes::from([&[0], &data[..]].concat());
            let message = TableCommand::decode(&data).unwrap_err().to_string();
            (data, TableResponse::Invalid { message }.encode())
        }
    }
}

fn pairs_in(machine: &impl StateMachine) -> TableModel {
    let query = TableQuery::Scan(Scan { limit: 10_000, ..Scan::default() });
    match TableAnswer::decode(&machine.query(&query.encode()).unwrap()).unwrap() {
        TableAnswer::Pairs(found) => {
            found.pairs.iter().map(|pair| (pair.key.to_vec(), pair.value.to_vec())).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[derive(Clone, Debug)]
enum QueueStep {
    Send {
        key: u8,
        id: Option<u8>,
    },
    Receive {
        max: u32,
        visibility_ms: u64,
        key: Option<u8>,
    },
    /// Some of the receipts that were ever given out, by their place.
    Ack(Vec<usize>),
}

fn queue_steps() -> impl Strategy<Value = Vec<(u64, QueueStep)>> {
    let step = prop_oneof![
        5 => (0..4u8, prop::option::weighted(0.4, 0..12u8))
            .prop_map(|(key, id)| QueueStep::Send { key, id }),
        3 => (1..6u32, 1..100u64, prop::option::weighted(0.3, 0..4u8))
            .prop_map(|(max, visibility_ms, key)| QueueStep::Receive { max, visibility_ms, key }),
        3 => prop::collection::vec(0..64usize, 0..5).prop_map(QueueStep::Ack),
    ];
    // Mostly small steps of time, sometimes past the window of ids, sometimes backwards.
    let time = prop_oneof![10 => 0..30u64, 1 => Just(200_000), 1 => Just(0)];
    prop::collection::vec((time, step), 1..120)
}

/// The queue as one would write it down: a list that is walked each time.
#[derive(Default)]
struct QueueModel {
    now_ms: u64,
    sent: u64,
    messages: Vec<ModelMessage>,
    /// Partition key and id, time, sequence, in the order they came.
    ids: Vec<((u8, u8), u64, u64)>,
    receipts: Vec<u64>,
}

struct ModelMessage {
    sequence: u64,
    key: u8,
    attempt: u32,
    hidden_until_ms: u64,
}

impl QueueModel {
    fn command(&mut self, elapsed_ms: u64, step: &QueueStep) -> (Bytes, Bytes) {
        let now_ms = self.now_ms + elapsed_ms;
        self.now_ms = now_ms;
        let (command, answer) = match step {
            QueueStep::Send { key, id } => self.send(*key, *id),
            QueueStep::Receive { max, visibility_ms, key } => {
                self.receive(*max, *visibility_ms, *key)
            }
            QueueStep::Ack(places) => self.ack(places),
        };
        (command, answer.encode())
    }

    fn send(&mut self, key: u8, id: Option<u8>) -> (Bytes, QueueResponse) {
        let id_bytes: &[u8] = match &id {
            Some(id) => std::slice::from_ref(id),
            None => &[],
        };
        let command = QueueCommand::send(self.now_ms, &[key], &body(self.sent + 1), id_bytes);
        let known = self.ids.iter().rev().find(|(known, sent_ms, _)| {
            Some(*known) == id.map(|id| (key, id)) && self.now_ms - sent_ms < 5 * 60 * 1_000
        });
        if let Some((_, _, sequence)) = known {
            return (command, QueueResponse::Sent { sequence: *sequence, duplicate: true });
        }
        self.sent += 1;
        let sequence = self.sent;
        self.messages.push(ModelMessage { sequence, key, attempt: 0, hidden_until_ms: 0 });
        self.ids.extend(id.map(|id| ((key, id), self.now_ms, sequence)));
        (command, QueueResponse::Sent { sequence, duplicate: false })
    }

    fn receive(&mut self, max: u32, visibility_ms: u64, key: Option<u8>) -> (Bytes, QueueResponse) {
        let key_bytes: &[u8] = match &key {
            Some(key) => std::slice::from_ref(key),
            None => &[],
        };
        let command = QueueCommand::receive(self.now_ms, max, visibility_ms, key_bytes);
        let now_ms = self.now_ms;
        let blocked: Vec<u8> = self
            .messages
            .iter()
            .filter(|message| message.hidden_until_ms > now_ms)
            .map(|message| message.key)
            .collect();
        let mut messages = Vec::new();
        let mut left_over = Vec::new();
        for message in &mut self.messages {
            let wanted = key.is_none_or(|key| key == message.key);
            if !wanted || blocked.contains(&message.key) {
                continue;
            }
            if messages.len() == max as usize {
                left_over.push(message.key);
                continue;
            }
            message.attempt += 1;
            message.hidden_until_ms = now_ms + visibility_ms;
            messages.push(delivery(message));
        }
        self.receipts.extend(messages.iter().map(|message| message.receipt));
        let taken: Vec<&[u8]> = messages.iter().map(|message| &message.partition_key[..]).collect();
        let more = key.is_none() && left_over.iter().any(|key| !taken.contains(&&[*key][..]));
        let answer = shardhost_proto::client::Deliveries { more, messages };
        (command, QueueResponse::Deliveries(answer))
    }

    fn ack(&mut self, places: &[usize]) -> (Bytes, QueueResponse) {
        let given = |place: &usize| self.receipts.get(*place).copied().unwrap_or(12_345);
        let receipts: Vec<Receipt> = places.iter().map(given).map(Receipt::from_number).collect();
        let mut answer = Acked::default();
        for receipt in &receipts {
            let good = self.messages.iter().position(|message| {
                message.attempt > 0 && Receipt::new(message.sequence, message.attempt) == *receipt
            });
            match good {
                Some(place) => {
                    self.messages.remove(place);
                    answer.acked += 1;
                }
                None => answer.stale += 1,
            }
        }
        let command = QueueCommand::ack(self.now_ms, receipts.into_iter());
        (command, QueueResponse::Acked(answer))
    }
}

fn body(sequence: u64) -> Vec<u8> {
    format!("message {sequence}").into_bytes()
}

fn delivery(message: &ModelMessage) -> shardhost_proto::client::Delivery {
    shardhost_proto::client::Delivery {
        sequence: message.sequence,
        partition_key: Bytes::copy_from_slice(&[message.key]),
        body: body(message.sequence).into(),
        receipt: Receipt::new(message.sequence, message.attempt).number(),
        attempt: message.attempt,
    }
}

fn messages_in(machine: &impl StateMachine) -> Vec<(u64, u32)> {
    let query = QueueQuery::Peek(Peek { limit: 10_000, ..Peek::default() });
    let answer = QueueQuery::decode_answer(&machine.query(&query.encode()).unwrap()).unwrap();
    answer.messages.iter().map(|message| (message.sequence, message.attempt)).collect()
}

/// The commands as writes of three sessions, each followed by a copy of it or of an earlier one
/// that its client still waits for. A copy gets the first answer.
fn in_sessions(commands: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
    let mut sent = Vec::new();
    let mut all = Vec::new();
    for (command, answer) in commands {
        // A table's delete may read as one, and is then no part of a session either.
        let is_receive = QueueCommand::decode(&command)
            .is_ok_and(|command| matches!(command.operation, QueueOperation::Receive { .. }));
        if is_receive {
            all.push((command, answer));
            continue;
        }
        let sequence = sent.len() as u64 + 1;
        let lowest_unanswered = sequence.saturating_sub(5).max(1);
        let id = sequence % 3;
        let tag = SessionTag { id, start: 1, sequence, lowest_unanswered, now_ms: 1_000 };
        sent.push((tag.wrap(&command), answer));
        all.push(sent[sent.len() - 1].clone());
        let back = (sequence % 3) as usize;
        all.push(sent[sent.len().saturating_sub(1 + back)].clone());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_table_in_sessions_applies_no_copy_through_crashes_and_snapshots(
        steps in table_steps(), schedule in schedule(),
    ) {
        let mut model = TableModel::new();
        let commands = steps.iter().map(|step| table_command(&mut model, step)).collect();
        let tried = run(|state| state.table(GROUP), &in_sessions(commands), &schedule);
        prop_assert_eq!(pairs_in(&tried.machine), model);
    }

    #[test]
    fn a_queue_in_sessions_applies_no_copy_through_crashes_and_snapshots(
        steps in queue_steps(), schedule in schedule(),
    ) {
        let mut model = QueueModel::default();
        let commands =
            steps.iter().map(|(elapsed_ms, step)| model.command(*elapsed_ms, step)).collect();
        let tried = run(|state| state.queue(GROUP), &in_sessions(commands), &schedule);
        let expected: Vec<_> =
            model.messages.iter().map(|message| (message.sequence, message.attempt)).collect();
        prop_assert_eq!(messages_in(&tried.machine), expected);
    }

    #[test]
    fn a_table_answers_as_its_model_through_crashes_and_snapshots(
        steps in table_steps(), schedule in schedule(),
    ) {
        let mut model = TableModel::new();
        let commands: Vec<_> =
            steps.iter().map(|step| table_command(&mut model, step)).collect();
        let tried = run(|state| state.table(GROUP), &commands, &schedule);
        prop_assert_eq!(pairs_in(&tried.machine), model);
    }

    #[test]
    fn a_queue_answers_as_its_model_through_crashes_and_snapshots(
        steps in queue_steps(), schedule in schedule(),
    ) {
        let mut model = QueueModel::default();
        let commands: Vec<_> =
            steps.iter().map(|(elapsed_ms, step)| model.command(*elapsed_ms, step)).collect();
        let tried = run(|state| state.queue(GROUP), &commands, &schedule);
        let expected: Vec<_> =
            model.messages.iter().map(|message| (message.sequence, message.attempt)).collect();
        prop_assert_eq!(messages_in(&tried.machine), expected);
    }
}

//! Bytes as what the log and a snapshot hold for the machines of tables and queues.
//!
//! The first byte of an input says which machine. Of commands, each stands behind its length in two
//! bytes. Of a snapshot, the rest are the records behind the header, and may lack the end.

use std::cell::RefCell;
use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use shardhost_groups::machine::{Command, Progress, StateMachine, apply_all};
use shardhost_proto::client::{Get, Peek, Scan};
use shardhost_storage::testing::fuzz::{Seed, Target, names_what_is_wrong};
use shardhost_storage::{GroupId, LogPosition};
use tempfile::TempDir;

use super::codec;
use super::queue::{MAX_SEQUENCE, QueueCommand, QueueQuery, QueueResponse, Receipt};
use super::session::SessionTag;
use super::state_db::{StateDb, StateDbOptions};
use super::table::{TableAnswer, TableCommand, TableQuery, TableResponse};

const TABLE: u8 = 0;
const QUEUE: u8 = 1;
/// Set: the state is carried to another machine by a snapshot, too.
const CARRIED: u8 = 2;
/// Commands of an input at most: time is bounded by them.
const MOST_COMMANDS: usize = 64;

/// Commands that every replica applies.
#[must_use]
pub fn shard_commands() -> Target {
    // A command is there as bytes, in a batch, as an answer, and in what stands in memory of a queue.
    Target { name: "shard_commands", run: check_commands, seeds: command_seeds, memory_factor: 64 }
}

/// Snapshots that a replica restores.
#[must_use]
pub fn shard_snapshots() -> Target {
    // A record is read, checked, and put into a batch.
    Target {
        name: "shard_snapshots",
        run: check_snapshot,
        seeds: snapshot_seeds,
        memory_factor: 64,
    }
}

/// The state of this thread. Each input has groups of its own.
struct Scratch {
    state: Arc<StateDb>,
    next_group: u64,
    _directory: TempDir,
}

thread_local! {
    static SCRATCH: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Groups after which a state begins anew: emptying each would take longer than what is tried.
const GROUPS_PER_STATE: u64 = 3_000;

/// Runs with an unknown state and group, and the two behind it.
fn with_groups(run: impl FnOnce(&Arc<StateDb>, [GroupId; 3])) {
    let (state, groups) = SCRATCH.with_borrow_mut(|scratch| {
        if scratch.as_ref().is_some_and(|scratch| scratch.next_group > GROUPS_PER_STATE) {
            *scratch = None;
        }
        let scratch = scratch.get_or_insert_with(|| {
            let directory = TempDir::new().expect("a directory");
            let options = StateDbOptions::small().flushed_by_hand();
            let state = StateDb::open(directory.path(), options).expect("opened");
            Scratch { state, next_group: 1, _directory: directory }
        });
        let first = scratch.next_group;
        scratch.next_group += 3;
        (Arc::clone(&scratch.state), [first, first + 1, first + 2].map(GroupId::new))
    });
    run(&state, groups);
}

fn machine(state: &Arc<StateDb>, kind: u8, group: GroupId) -> Box<dyn StateMachine> {
    match kind & QUEUE {
        TABLE => Box::new(state.table(group)),
        _ => Box::new(state.queue(group)),
    }
}

fn commands_of(mut input: &[u8]) -> Vec<Bytes> {
    let mut commands = Vec::new();
    while commands.len() < MOST_COMMANDS
        && let Some((length, rest)) = input.split_first_chunk::<2>()
    {
        let length = usize::from(u16::from_be_bytes(*length));
        let (command, rest) = rest.split_at(rest.len().min(length));
        commands.push(Bytes::copy_from_slice(command));
        input = rest;
    }
    commands
}

/// Applies commands in batches of `size` and returns the answers. No bytes make a machine fail.
fn applied(machine: &mut dyn StateMachine, commands: &[Bytes], size: usize) -> Vec<Bytes> {
    let mut answers = Vec::new();
    let mut index = machine.applied().expect("readable").map_or(0, |at| at.index.get());
    for chunk in commands.chunks(size.max(1)) {
        let mut batch: Vec<Command> = (index + 1..)
            .zip(chunk)
            .map(|(index, data)| Command::new(LogPosition::new(1, index), data.clone()))
            .collect();
        index += chunk.len() as u64;
        let last = LogPosition::new(1, index);
        apply_all(machine, GroupId::new(1), last, &mut batch).expect("no command stops a machine");
        answers.extend(batch.iter().map(|command| command.response().clone()));
    }
    answers
}

fn check_commands(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let commands = commands_of(rest);
    if commands.is_empty() {
        return;
    }
    commands.iter().for_each(|command| check_codec(*kind, command));
    with_groups(|state, [one, two, three]| {
        let mut whole = machine(state, *kind, one);
        let mut cut = machine(state, *kind, two);
        let answers = applied(&mut *whole, &commands, commands.len());
        assert_eq!(answers, applied(&mut *cut, &commands, 1), "batches make a difference");
        answers.iter().for_each(|answer| check_answer(*kind, answer));
        let sum = whole.checksum(&Progress::default()).expect("a sum");
        assert_eq!(cut.checksum(&Progress::default()), Ok(sum), "two replicas differ");
        check_queries(*kind, &*whole, &*cut);
        if kind & CARRIED != 0 {
            let mut snapshot = Vec::new();
            whole.snapshot().expect("a view").write_to(&mut snapshot).expect("written");
            let mut restored = machine(state, *kind, three);
            let at = LogPosition::new(1, commands.len() as u64);
            restored.restore(at, &mut Cursor::new(&snapshot)).expect("what was written is read");
            assert_eq!(
                restored.checksum(&Progress::default()),
                Ok(sum),
                "a snapshot lost something"
            );
            let again = applied(&mut *restored, &commands, 3);
            assert_eq!(again, applied(&mut *cut, &commands, 5), "a snapshot makes a difference");
        }
    });
}

/// What is decoded is encoded, and decoded as the same.
fn check_codec(kind: u8, data: &Bytes) {
    let (tag, command) = match SessionTag::split(data) {
        Ok(split) => split,
        Err(error) => return names_what_is_wrong(&error),
    };
    if let Some(tag) = tag {
        let again = tag.wrap(command);
        assert_eq!(SessionTag::split(&again), Ok((Some(tag), command)));
    }
    let refused = match kind & QUEUE {
        TABLE => TableCommand::decode(command)
            .map(|read| {
                let again = read.encode();
                assert_eq!(TableCommand::decode(&again), Ok(read));
            })
            .err(),
        _ => QueueCommand::decode(command).map(|read| assert!(read.check().is_ok())).err(),
    };
    if let Some(error) = refused {
        names_what_is_wrong(&error);
    }
}

fn check_answer(kind: u8, answer: &Bytes) {
    let read = match kind & QUEUE {
        TABLE => TableResponse::decode(answer).map(|read| read.encode()),
        _ => QueueResponse::decode(answer).map(|read| read.encode()),
    };
    assert_eq!(read.as_ref(), Ok(answer), "an answer is not read as it was written");
}

/// Both machines answer the same, and what they answer can be read.
fn check_queries(kind: u8, one: &dyn StateMachine, two: &dyn StateMachine) {
    let queries = match kind & QUEUE {
        TABLE => vec![
            TableQuery::Get(Get { key: Bytes::from_static(b"apple"), consistency: 0 }).encode(),
            TableQuery::Scan(Scan { limit: 100, ..Scan::default() }).encode(),
        ],
        _ => vec![QueueQuery::Peek(Peek { limit: 100, ..Peek::default() }).encode()],
    };
    for query in queries {
        let answer = one.query(&query);
        assert_eq!(answer, two.query(&query));
        let answer = answer.expect("a question that makes sense is answered");
        match kind & QUEUE {
            TABLE => assert!(TableAnswer::decode(&answer).is_ok()),
            _ => assert!(QueueQuery::decode_answer(&answer).is_ok()),
        }
    }
}

/// A snapshot is refused, or a machine restored from it works.
fn check_snapshot(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let header = [&b"SHSTATE\x01"[..], &[1 + (kind & QUEUE)]].concat();
    let whole = [&header, rest].concat();
    with_groups(|state, [one, two, _]| {
        let mut restored = machine(state, *kind, one);
        let at = LogPosition::new(1, 10);
        if let Err(fault) = restored.restore(at, &mut Cursor::new(&whole)) {
            return names_what_is_wrong(&fault);
        }
        // A state that no machine writes may be refused when it is used; it must not panic.
        if let Some(written) = written(&mut *restored) {
            let mut other = machine(state, *kind, two);
            other.restore(at, &mut Cursor::new(&written)).expect("what was written is read");
            assert_eq!(
                other.checksum(&Progress::default()),
                restored.checksum(&Progress::default()),
                "a snapshot lost something"
            );
        }
        let commands = commands(*kind);
        let mut batch: Vec<Command> = (11..)
            .zip(&commands)
            .map(|(index, data)| Command::new(LogPosition::new(1, index), data.clone()))
            .collect();
        let last = LogPosition::new(1, 10 + commands.len() as u64);
        if let Err(fault) = apply_all(&mut *restored, one, last, &mut batch) {
            names_what_is_wrong(&fault);
        }
    });
}

fn written(machine: &mut dyn StateMachine) -> Option<Vec<u8>> {
    let mut snapshot = Vec::new();
    machine.snapshot().ok()?.write_to(&mut snapshot).ok()?;
    Some(snapshot)
}

fn commands(kind: u8) -> Vec<Bytes> {
    let tag = SessionTag { id: 9, start: 4, sequence: 3, lowest_unanswered: 2, now_ms: 1_000 };
    if kind & QUEUE == TABLE {
        let put = TableCommand::Put { key: b"apple", value: b"red" }.encode();
        let (expect, value) = (Some(&b"red"[..]), Some(&b"green"[..]));
        return vec![
            put.clone(),
            TableCommand::CompareAndSet { key: b"apple", expect, value }.encode(),
            TableCommand::CompareAndSet { key: b"pear", expect, value: None }.encode(),
            tag.wrap(&put),
            tag.wrap(&put),
            TableCommand::Delete { key: b"apple" }.encode(),
            TableCommand::Put { key: b"", value: b"" }.encode(),
        ];
    }
    let send = QueueCommand::send(2_000, b"anna", b"hello", b"1");
    vec![
        send.clone(),
        QueueCommand::send(2_001, b"anna", b"again", b""),
        QueueCommand::send(2_002, b"bert", b"hello", b"1"),
        tag.wrap(&send),
        QueueCommand::receive(2_003, 2, 1_000, b""),
        QueueCommand::receive(2_004, 9, 5, b"bert"),
        QueueCommand::ack(2_005, [Receipt::new(1, 1), Receipt::new(9, 1)].into_iter()),
        QueueCommand::receive(9_003, 9, 1_000, b""),
        QueueCommand::send(2_000, b"anna", b"hello", b"1"),
    ]
}

fn framed(kind: u8, commands: &[Bytes]) -> Vec<u8> {
    let mut out = vec![kind];
    for command in commands {
        out.extend_from_slice(&u16::try_from(command.len()).expect("short").to_be_bytes());
        out.extend_from_slice(command);
    }
    out
}

fn command_seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, kind) in [("table", TABLE), ("queue", QUEUE)] {
        let all = commands(kind);
        seeds.push(Seed::new(format!("{name}-all"), framed(kind, &all)));
        seeds.push(Seed::new(format!("{name}-carried"), framed(kind | CARRIED, &all)));
        for (at, command) in all.iter().enumerate() {
            let one = framed(kind, std::slice::from_ref(command));
            seeds.push(Seed::new(format!("{name}-{at}"), one));
        }
    }
    let late = QueueCommand::send(u64::MAX, b"anna", b"hello", b"");
    seeds.push(Seed::new("queue-late", framed(QUEUE, &[late])));
    let long = QueueCommand::receive(5, u32::MAX, u64::MAX, b"");
    seeds.push(Seed::new("queue-long", framed(QUEUE, &[long])));
    let first = SessionTag { id: 0, start: 1, sequence: 1, lowest_unanswered: 1, now_ms: 0 };
    let last =
        SessionTag { start: u64::MAX, sequence: u64::MAX, lowest_unanswered: u64::MAX, ..first };
    let inner = TableCommand::Delete { key: b"apple" }.encode();
    let both = [first.wrap(&inner), last.wrap(&inner), first.wrap(&inner)];
    seeds.push(Seed::new("table-sessions", framed(TABLE | CARRIED, &both)));
    let number = SessionTag { sequence: u64::MAX, lowest_unanswered: u64::MAX, ..first };
    let last = [number.wrap(&inner), number.wrap(&inner)];
    seeds.push(Seed::new("table-last-number-of-a-session", framed(TABLE | CARRIED, &last)));
    seeds
}

/// The records of a snapshot, and its end.
fn records(kind: u8, records: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![kind];
    for (key, value) in records {
        for length in [key.len(), value.len()] {
            out.extend_from_slice(&u32::try_from(length).expect("short").to_le_bytes());
        }
        out.extend_from_slice(key);
        out.extend_from_slice(value);
    }
    out.extend_from_slice(&u32::MAX.to_le_bytes());
    out.extend_from_slice(&(records.len() as u64).to_le_bytes());
    out
}

/// Snapshots whose numbers are as large as can be.
fn last_numbers() -> Vec<Seed> {
    let numbers = |kind: u8, numbers: &[u64]| {
        let mut out = codec::start(kind, 0);
        numbers.iter().for_each(|number| codec::put_number(&mut out, *number));
        out
    };
    let (counters, message, delivery, dedup) = (0x20, 0x21, 0x22, 0x23);
    let at = |kind: u8, number: u64| [&[kind][..], &number.to_be_bytes()].concat();
    let mut hello = codec::start(message, 0);
    codec::put_bytes(&mut hello, b"anna");
    let id = [&numbers(dedup, &[5, 1])[..], b"id"].concat();
    let ids = records(
        QUEUE,
        &[
            (&[counters], numbers(counters, &[9, 1, 1, u64::MAX, u64::MAX])),
            (&at(dedup, u64::MAX), id),
        ],
    );
    let attempts = records(
        QUEUE,
        &[
            (&[counters], numbers(counters, &[9, 1, 1, 0, 0])),
            (&at(message, 1), hello.clone()),
            (&at(delivery, 1), numbers(delivery, &[u32::MAX.into(), 0])),
        ],
    );
    let late = records(
        QUEUE,
        &[
            (&[counters], numbers(counters, &[u64::MAX, MAX_SEQUENCE, u64::MAX, 0, 0])),
            (&at(message, MAX_SEQUENCE), hello),
            (&at(delivery, MAX_SEQUENCE), numbers(delivery, &[3, u64::MAX])),
        ],
    );
    let (header, session) = (0x30, 0x31);
    let mut answers = numbers(session, &[1, u64::MAX, u64::MAX, u64::MAX - 1]);
    for answer in [0, 0] {
        codec::put_number(&mut answers, answer);
        codec::put_bytes(&mut answers, b"answer");
    }
    let sessions = records(
        TABLE,
        &[(&[header], numbers(header, &[u64::MAX, u64::MAX])), (&at(session, 9), answers)],
    );
    [("queue-last-id", ids), ("queue-last-attempt", attempts), ("queue-late", late)]
        .into_iter()
        .chain([("table-last-session", sessions)])
        .map(|(name, bytes)| Seed::new(name, bytes))
        .collect()
}

fn snapshot_seeds() -> Vec<Seed> {
    let mut seeds = last_numbers();
    for (name, kind) in [("table", TABLE), ("queue", QUEUE)] {
        with_groups(|state, [one, _, _]| {
            let mut machine = machine(state, kind, one);
            applied(&mut *machine, &commands(kind), 4);
            let snapshot = written(&mut *machine).expect("written");
            let records = [&[kind][..], &snapshot[9..]].concat();
            seeds.push(Seed::new(format!("{name}-cut"), records[..records.len() - 20].to_vec()));
            let mut longer = records.clone();
            longer.push(7);
            seeds.push(Seed::new(format!("{name}-longer"), longer));
            seeds.push(Seed::new(name, records));
        });
        let mut empty = vec![kind];
        empty.extend_from_slice(&u32::MAX.to_le_bytes());
        empty.extend_from_slice(&0u64.to_le_bytes());
        seeds.push(Seed::new(format!("{name}-empty"), empty));
        let mut long = vec![kind];
        long.extend_from_slice(&1u32.to_le_bytes());
        long.extend_from_slice(&(2u32 << 20).to_le_bytes());
        seeds.push(Seed::new(format!("{name}-announces-much"), long));
    }
    seeds
}

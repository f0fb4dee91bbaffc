use bytes::Bytes;
use proptest::prelude::*;
use shardhost_groups::error::QueryError;
use shardhost_groups::machine::{ApplyBatch, Command, Progress, StateMachine};
use shardhost_proto::client::{Get, Pairs, Scan, Value};
use shardhost_storage::LogPosition;

use super::*;
use crate::shards::session::{SessionRefusal, SessionTag};
use shardhost_proto::limits::MAX_SCAN_LIMIT;

use crate::shards::testing::{GROUP, Scratch, apply, restore, snapshot_of};
use crate::shards::{DecodeError, StateDbError};

fn put(key: &str, value: &str) -> Bytes {
    TableCommand::Put { key: key.as_bytes(), value: value.as_bytes() }.encode()
}

fn delete(key: &str) -> Bytes {
    TableCommand::Delete { key: key.as_bytes() }.encode()
}

fn compare_and_set(key: &str, expect: Option<&str>, value: Option<&str>) -> Bytes {
    let (expect, value) = (expect.map(str::as_bytes), value.map(str::as_bytes));
    TableCommand::CompareAndSet { key: key.as_bytes(), expect, value }.encode()
}

fn done(existed: bool) -> TableResponse {
    TableResponse::Written { done: true, existed, actual: None }
}

fn failed(actual: Option<&str>) -> TableResponse {
    let actual = actual.map(|value| Bytes::copy_from_slice(value.as_bytes()));
    TableResponse::Written { done: false, existed: actual.is_some(), actual }
}

fn answers(machine: &mut TableMachine, first: u64, commands: &[Bytes]) -> Vec<TableResponse> {
    let answers = apply(machine, first, commands);
    answers.iter().map(|answer| TableResponse::decode(answer).unwrap()).collect()
}

fn get(machine: &TableMachine, key: &str) -> Option<Bytes> {
    let query = TableQuery::Get(Get { key: key.to_owned().into(), consistency: 0 });
    match TableAnswer::decode(&machine.query(&query.encode()).unwrap()).unwrap() {
        TableAnswer::Value(Value { value }) => value,
        other => panic!("{other:?}"),
    }
}

fn scan(machine: &TableMachine, from: &str, to: &str, limit: u32) -> (Vec<String>, bool) {
    let (from, to) = (from.to_owned().into(), to.to_owned().into());
    let query = TableQuery::Scan(Scan { from, to, limit, consistency: 0 });
    match TableAnswer::decode(&machine.query(&query.encode()).unwrap()).unwrap() {
        TableAnswer::Pairs(Pairs { pairs, more }) => {
            let keys = pairs.iter().map(|pair| String::from_utf8_lossy(&pair.key).into_owned());
            (keys.collect(), more)
        }
        other => panic!("{other:?}"),
    }
}

/// A scan passes the keys that were deleted, however many, and returns none of them: it must not
/// run where the network of the whole host is served.
#[test]
fn only_gets_are_answered_on_the_thread_of_whoever_asks() {
    let scratch = Scratch::new();
    let table = scratch.state.table(GROUP);
    let get = TableQuery::Get(Get { key: "a".into(), consistency: 0 }).encode();
    assert!(table.answers_at_once(&get));
    let scan = TableQuery::Scan(Scan { limit: 1, ..Scan::default() }).encode();
    for question in [scan, Bytes::from_static(b"??"), Bytes::new()] {
        assert!(!table.answers_at_once(&question), "{question:?}");
    }
}

/// A disk may hang: a get that has to read one goes to the threads of state machines.
#[test]
fn a_get_that_takes_a_read_of_the_disk_is_not_answered_at_once() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let question = TableQuery::Get(Get { key: "a".into(), consistency: 0 }).encode();
    let at_once = |table: &TableMachine| table.answer_at_once(&question).map(Result::unwrap);
    assert!(at_once(&table).is_some(), "an empty table has nothing to read");
    apply(&mut table, 1, &[put("a", "1")]);
    let answer = at_once(&table);
    assert!(answer.is_some(), "it is in memory");
    table.make_durable().unwrap();
    drop(table);
    let directory = scratch.close();
    let state = crate::shards::testing::open(directory.path());
    let table = state.table(GROUP);
    assert_eq!(at_once(&table), None, "it is on the disk alone");
    assert_eq!(Some(table.query(&question).unwrap()), answer);
    assert_eq!(at_once(&table), answer, "it is in the cache");
}

#[test]
fn commands_of_one_batch_see_the_effects_of_the_ones_before() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let commands = [
        put("k", "1"),
        put("k", "2"),
        delete("k"),
        delete("k"),
        compare_and_set("k", None, Some("3")),
        compare_and_set("k", Some("2"), Some("4")),
        compare_and_set("k", Some("3"), Some("5")),
    ];
    let expected = [
        done(false),
        done(true),
        done(true),
        done(false),
        done(false),
        failed(Some("3")),
        done(true),
    ];
    assert_eq!(answers(&mut table, 1, &commands), expected);
    assert_eq!(get(&table, "k").as_deref(), Some(&b"5"[..]));
}

#[test]
fn the_same_commands_one_by_one_answer_the_same() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let steps = [
        (put("k", "1"), done(false)),
        (put("k", "2"), done(true)),
        (compare_and_set("k", None, Some("x")), failed(Some("2"))),
        (compare_and_set("k", Some("2"), None), done(true)),
        (compare_and_set("k", Some("2"), Some("x")), failed(None)),
        (compare_and_set("k", None, None), done(false)),
        (delete("k"), done(false)),
    ];
    for (index, (command, expected)) in (1..).zip(steps) {
        assert_eq!(answers(&mut table, index, &[command]), [expected], "step {index}");
    }
    assert_eq!(get(&table, "k"), None);
}

#[test]
fn an_invalid_command_is_answered_and_changes_nothing() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let long_key = "k".repeat(MAX_KEY_BYTES + 1);
    let long_value = "v".repeat(MAX_VALUE_BYTES + 1);
    let commands = [
        Bytes::from_static(b"garbage"),
        put(&long_key, "v"),
        put("k", &long_value),
        Bytes::from_static(&[1, 99]),
        put("good", "v"),
    ];
    let answers = answers(&mut table, 1, &commands);
    for answer in &answers[..4] {
        assert!(matches!(answer, TableResponse::Invalid { .. }), "{answer:?}");
    }
    assert_eq!(answers[4], done(false));
    assert_eq!(table.checksum(&Progress::default()).unwrap().items, 1);
    assert_eq!(table.applied().unwrap().map(|at| at.index.get()), Some(5));
}

#[test]
fn keys_and_values_at_their_limits_are_taken() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let key = "k".repeat(MAX_KEY_BYTES);
    let value = "v".repeat(MAX_VALUE_BYTES);
    let answers = answers(&mut table, 1, &[put(&key, &value), put("", "")]);
    assert_eq!(answers, [done(false), done(false)]);
    assert_eq!(get(&table, &key).map(|value| value.len()), Some(MAX_VALUE_BYTES));
    assert_eq!(get(&table, "").as_deref(), Some(&b""[..]));
}

#[test]
fn a_scan_goes_from_inclusive_to_exclusive_in_order() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let keys = ["b", "a", "c", "ab", "d"];
    apply(&mut table, 1, &keys.map(|key| put(key, "v")));
    let cases: [(&str, &str, u32, &[&str], bool); 7] = [
        ("", "", 0, &["a", "ab", "b", "c", "d"], false),
        ("a", "c", 0, &["a", "ab", "b"], false),
        ("aa", "", 0, &["ab", "b", "c", "d"], false),
        ("a", "", 2, &["a", "ab"], true),
        ("a", "c", 3, &["a", "ab", "b"], false),
        ("x", "", 0, &[], false),
        ("c", "a", 0, &[], false),
    ];
    for (from, to, limit, expected, more) in cases {
        let (keys, actual_more) = scan(&table, from, to, limit);
        assert_eq!((&keys[..], actual_more), (&expected.map_to_owned()[..], more), "{from}..{to}");
    }
}

trait MapToOwned {
    fn map_to_owned(&self) -> Vec<String>;
}
impl MapToOwned for &[&str] {
    fn map_to_owned(&self) -> Vec<String> {
        self.iter().map(|&word| word.to_owned()).collect()
    }
}

#[test]
fn a_scan_ends_before_its_answer_grows_too_large() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let value = "v".repeat(MAX_VALUE_BYTES);
    apply(&mut table, 1, &["a", "b", "c"].map(|key| put(key, &value)));
    assert_eq!(scan(&table, "", "", 0), (vec!["a".to_owned()], true));
}

#[test]
fn a_scan_sees_no_key_of_another_group() {
    let scratch = Scratch::new();
    let neighbours = [GROUP.get() - 1, GROUP.get(), GROUP.get() + 1];
    let mut tables = neighbours.map(|id| scratch.state.table(id.into()));
    for table in &mut tables {
        apply(table, 1, &[put("\0", "v"), put("\u{10ffff}", "v")]);
    }
    assert_eq!(scan(&tables[1], "", "", 0).0.len(), 2);
}

#[test]
fn an_invalid_query_is_refused() {
    let scratch = Scratch::new();
    let table = scratch.state.table(GROUP);
    let too_many = Scan { limit: MAX_SCAN_LIMIT + 1, ..Scan::default() };
    for query in [Bytes::from_static(b"??"), Bytes::new(), TableQuery::Scan(too_many).encode()] {
        assert!(matches!(table.query(&query), Err(QueryError::Invalid(_))), "{query:?}");
    }
}

#[test]
fn an_unknown_version_is_named() {
    assert_eq!(TableCommand::decode(&[9, 1, 0]), Err(DecodeError::Version(9)));
}

proptest! {
    #[test]
    fn commands_are_read_as_they_were_written(
        key in prop::collection::vec(any::<u8>(), 0..20),
        expect: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
    ) {
        let put = TableCommand::Put { key: &key, value: value.as_deref().unwrap_or_default() };
        let delete = TableCommand::Delete { key: &key };
        let (expect, value) = (expect.as_deref(), value.as_deref());
        let compare_and_set = TableCommand::CompareAndSet { key: &key, expect, value };
        for command in [put, delete, compare_and_set] {
            let encoded = command.encode();
            prop_assert_eq!(TableCommand::decode(&encoded), Ok(command));
        }
    }

    #[test]
    fn garbage_is_refused_and_panics_nowhere(mut data: Vec<u8>) {
        for kind in 0..5 {
            data.splice(0..0, [1, kind]);
            let bytes = Bytes::copy_from_slice(&data);
            drop((TableCommand::decode(&data), TableResponse::decode(&bytes)));
            drop((TableQuery::decode(&bytes), TableAnswer::decode(&bytes)));
            data.drain(..2);
        }
    }
}

#[test]
fn a_batch_without_a_valid_command_is_answered() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let garbage = [Bytes::new(), in_session(1, 1, &Bytes::from_static(b"garbage"))];
    for answer in answers(&mut table, 1, &garbage) {
        assert!(matches!(answer, TableResponse::Invalid { .. }), "{answer:?}");
    }
}

fn in_session(sequence: u64, lowest_unanswered: u64, command: &Bytes) -> Bytes {
    let tag = SessionTag { id: 77, start: 1, sequence, lowest_unanswered, now_ms: 1_000 };
    tag.wrap(command)
}

/// The first put was held up on its way, was sent again, and arrives once more at the end.
#[test]
fn a_late_copy_of_a_put_overwrites_nothing_in_a_session_and_does_without() {
    let scratch = Scratch::new();
    let mut plain = scratch.state.table(GROUP);
    let (old, new) = (put("k", "old"), put("k", "new"));
    apply(&mut plain, 1, &[old.clone(), new.clone(), old.clone()]);
    assert_eq!(get(&plain, "k").as_deref(), Some(&b"old"[..]));

    let mut table = scratch.state.table(8.into());
    let late = in_session(1, 1, &old);
    let commands = [late.clone(), late.clone(), in_session(2, 1, &new), late.clone()];
    assert_eq!(answers(&mut table, 1, &commands), [false, false, true, false].map(done));
    // Once more in another batch, and when the client has declared it as answered.
    assert_eq!(answers(&mut table, 5, std::slice::from_ref(&late)), [done(false)]);
    let settling = in_session(3, 3, &delete("x"));
    let settled = TableResponse::Refused(SessionRefusal::Settled);
    assert_eq!(answers(&mut table, 6, &[settling, late]), [done(false), settled]);
    assert_eq!(get(&table, "k").as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_failed_compare_and_set_stays_failed_and_leaves_out_a_long_value() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let long = "v".repeat(500);
    let set = in_session(1, 1, &compare_and_set("k", None, Some("mine")));
    let commands = [put("k", &long), set.clone(), delete("k"), set];
    let first = failed(Some(&long));
    let again = TableResponse::Written { done: false, existed: true, actual: None };
    assert_eq!(answers(&mut table, 1, &commands), [done(false), first, done(true), again]);
    assert_eq!(get(&table, "k"), None);
}

#[test]
fn sessions_survive_a_crash_and_travel_with_a_snapshot() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let plain = table.checksum(&Progress::default()).unwrap();
    let write = in_session(1, 1, &compare_and_set("k", None, Some("1")));
    apply(&mut table, 1, std::slice::from_ref(&write));
    let sum = table.checksum(&Progress::default()).unwrap();
    assert_eq!((sum.items, plain.items), (1, 0));
    assert_ne!(sum.checksum, plain.checksum);
    scratch.state.flush_now().unwrap();

    let crashed = scratch.crashed();
    let mut found = crashed.state.table(GROUP);
    let other = Scratch::new();
    let mut restored = other.state.table(GROUP);
    // What it remembers in memory is replaced, too.
    apply(&mut restored, 1, &[in_session(1, 1, &delete("k"))]);
    restore(&mut restored, 1, &snapshot_of(&mut table));
    for machine in [&mut found, &mut restored] {
        assert_eq!(machine.checksum(&Progress::default()).unwrap(), sum);
        assert_eq!(answers(machine, 2, std::slice::from_ref(&write)), [done(false)]);
        assert_eq!(get(machine, "k").as_deref(), Some(&b"1"[..]));
    }
    assert_eq!(
        found.checksum(&Progress::default()).unwrap(),
        restored.checksum(&Progress::default()).unwrap()
    );
}

/// Applies commands as one batch, and says how many of them the machine took of it.
fn taken_of(machine: &mut TableMachine, first: u64, data: &[Bytes]) -> (usize, Vec<Bytes>) {
    let mut commands: Vec<Command> = (first..)
        .zip(data)
        .map(|(index, data)| Command::new(LogPosition::new(1, index), data.clone()))
        .collect();
    let last = LogPosition::new(1, first + data.len() as u64 - 1);
    let mut batch = ApplyBatch::new(GROUP, last, &mut commands);
    machine.apply(&mut batch).unwrap();
    let (count, reached) = (batch.len(), batch.last());
    assert_eq!(reached.index.get(), first + count as u64 - 1);
    assert_eq!(machine.applied().unwrap(), Some(reached));
    (count, commands.iter().map(|command| command.response().clone()).collect())
}

/// A few bytes of commands that read and answer many MiB are applied in parts, each of bounded size.
#[test]
fn a_batch_ends_where_it_would_read_too_much() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let large = "v".repeat(MAX_VALUE_BYTES);
    let keys: Vec<String> = (0..100).map(|number| format!("key {number:03}")).collect();
    let puts: Vec<Bytes> = keys.iter().map(|key| put(key, &large)).collect();
    apply(&mut table, 1, &puts);
    // Backwards, and with other commands between them.
    let fail = |key: &String| [compare_and_set(key, Some("?"), None), put("other", "1")];
    let commands: Vec<Bytes> = keys.iter().rev().flat_map(fail).collect();
    let (mut at, mut parts) = (0, 0);
    while at < commands.len() {
        let (count, answers) = taken_of(&mut table, 101 + at as u64, &commands[at..]);
        let bytes: usize = answers.iter().map(Bytes::len).sum();
        assert!(bytes <= batch::MAX_READ_BYTES + 33 * MAX_VALUE_BYTES, "{bytes} bytes");
        for (command, answer) in commands[at..at + count].iter().zip(&answers) {
            let fails = TableCommand::decode(command).unwrap().key() != b"other";
            assert_eq!(answer.len() > MAX_VALUE_BYTES, fails);
        }
        at += count;
        parts += 1;
    }
    assert!(parts > 2, "{parts} parts");
}

/// The value that many failed expectations name is in memory once.
#[test]
fn answers_that_name_the_same_value_share_its_bytes() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    apply(&mut table, 1, &[put("k", &"v".repeat(MAX_VALUE_BYTES))]);
    let mut commands = vec![compare_and_set("k", Some("?"), None); 1_000];
    commands.push(put("k", "w"));
    commands.push(compare_and_set("k", Some("?"), None));
    let (count, answers) = taken_of(&mut table, 2, &commands);
    assert_eq!(count, commands.len());
    let shared = answers[..1_000].iter().all(|answer| answer.as_ptr() == answers[0].as_ptr());
    assert!(shared && answers[0].len() > MAX_VALUE_BYTES);
    assert_eq!(TableResponse::decode(&answers[1_001]).unwrap(), failed(Some("w")));
}

/// A scan does a bounded work however many keys were deleted, and says that there is more.
#[test]
fn a_scan_ends_where_too_many_deleted_keys_are_in_the_way() {
    const KEYS: u64 = 20_000;
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let keys = (0..KEYS).map(|number| format!("k{number}"));
    let mut commands = vec![put("a", "1"), put("z", "2")];
    commands.extend(keys.flat_map(|key| [put(&key, ""), delete(&key)]));
    apply(&mut table, 1, &commands);
    let from = |key: &str| Scan { from: Bytes::copy_from_slice(key.as_bytes()), ..Scan::default() };
    let found = table.scan(&from(""), KEYS / 2).unwrap();
    assert_eq!((found.pairs.len(), found.more), (1, true));
    let refused = table.scan(&from("b"), KEYS / 2).unwrap_err();
    assert_eq!(refused, StateDbError::TooManyDeleted { limit: KEYS / 2 });
    assert!(matches!(QueryError::from(refused), QueryError::TooMuch(_)));
    assert_eq!(table.scan(&from("b"), 2 * KEYS).unwrap().pairs.len(), 1);
}

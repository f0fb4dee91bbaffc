//! Damage inside values, which RocksDB's own checksums cannot see: it concerns one group.

use std::path::Path;

use rocksdb::{DB, Options, WriteBatch};
use shardhost_storage::{GroupId, LogError, LogStore, ReplicaId};

use crate::fixtures::{
    GROUP, OnDisk, append, create, create_replica, destroy, entries, index, load, read, reset,
    view, write, write_all,
};

const OTHER: GroupId = GroupId::new(8);

fn run_key(group: GroupId, first: u64) -> Vec<u8> {
    [group.get().to_be_bytes(), first.to_be_bytes()].concat()
}

fn part_key(group: GroupId, part: u8) -> Vec<u8> {
    [&group.get().to_be_bytes()[..], &[part]].concat()
}

/// A closed store of two groups with three runs each, after `tamper` changed its values.
fn tampered(tamper: impl FnOnce(&DB, &mut WriteBatch)) -> OnDisk {
    let mut subject = OnDisk::default();
    for group in [GROUP, OTHER] {
        let runs = [append(group, 1, 1..=3), append(group, 1, 4..=6), append(group, 2, 7..=9)];
        write_all(subject.rocks(), [create(group)].into_iter().chain(runs));
    }
    subject.close();
    let path = subject.path().join("db");
    let database = DB::open_cf(&Options::default(), path, ["default", "replicas", "log"]);
    let database = database.expect("a database");
    let mut batch = WriteBatch::default();
    tamper(&database, &mut batch);
    database.write(batch).expect("written");
    drop(database);
    subject.open().expect("a store with a damaged group");
    subject
}

fn put(database: &DB, batch: &mut WriteBatch, family: &str, key: Vec<u8>, value: &[u8]) {
    batch.put_cf(database.cf_handle(family).expect("a family"), key, value);
}

fn flipped(database: &DB, family: &str, key: &[u8]) -> Vec<u8> {
    let family = database.cf_handle(family).expect("a family");
    let mut value = database.get_cf(family, key).expect("readable").expect("a value");
    let last = value.len() - 1;
    value[last] ^= 1;
    value
}

fn with_a_flipped_run() -> OnDisk {
    tampered(|database, batch| {
        let key = run_key(GROUP, 4);
        let value = flipped(database, "log", &key);
        put(database, batch, "log", key, &value);
    })
}

fn assert_damaged(subject: &OnDisk, words: &str) {
    let store = subject.rocks();
    let corrupt = |error: LogError| {
        assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("group 7") && message.contains(words), "{message}");
    };
    corrupt(store.load(GROUP).expect_err("damaged"));
    corrupt(read(store, GROUP, 1, 2).expect_err("damaged"));
    corrupt(store.term(GROUP, index(1)).expect_err("damaged"));
    corrupt(write(store, [append(GROUP, 2, 10..=10)]).expect_err("damaged"));
    assert_eq!(store.groups(), Ok(vec![GROUP, OTHER]), "it is listed");
    // The other group continues.
    write_all(store, [append(OTHER, 2, 10..=10)]);
    assert_eq!(load(store, OTHER).last.index, index(10));
}

#[test]
fn a_flipped_bit_in_a_run_is_the_damage_of_its_group() {
    assert_damaged(&with_a_flipped_run(), "from 4: run: checksum");
}

#[test]
fn a_run_of_another_group_or_place_is_damage() {
    let subject = tampered(|database, batch| {
        let log = database.cf_handle("log").expect("a family");
        let value = database.get_cf(log, run_key(OTHER, 4)).expect("readable").expect("a run");
        put(database, batch, "log", run_key(GROUP, 4), &value);
    });
    assert_damaged(&subject, "checksum");
    let subject = tampered(|database, batch| {
        let log = database.cf_handle("log").expect("a family");
        let value = database.get_cf(log, run_key(GROUP, 7)).expect("readable").expect("a run");
        put(database, batch, "log", run_key(GROUP, 4), &value);
    });
    assert_damaged(&subject, "it starts elsewhere");
}

#[test]
fn a_missing_run_is_damage() {
    let subject = tampered(|database, batch| {
        batch.delete_cf(database.cf_handle("log").expect("a family"), run_key(GROUP, 4));
    });
    assert_damaged(&subject, "from 7: the entries before it are missing");
}

#[test]
fn a_missing_or_damaged_part_of_a_replica_is_damage() {
    for part in [b'm', b's'] {
        let subject = tampered(|database, batch| {
            let key = part_key(GROUP, part);
            let value = flipped(database, "replicas", &key);
            put(database, batch, "replicas", key, &value);
        });
        assert_damaged(&subject, "checksum");
        let subject = tampered(|database, batch| {
            let family = database.cf_handle("replicas").expect("a family");
            batch.delete_cf(family, part_key(GROUP, part));
        });
        assert_damaged(&subject, "");
    }
}

#[test]
fn a_damaged_replica_can_be_destroyed_and_made_again() {
    let mut subject = with_a_flipped_run();
    write_all(subject.rocks(), [destroy(GROUP, 1), create_replica(GROUP, 2)]);
    write_all(subject.rocks(), [append(GROUP, 5, 1..=2)]);
    for _ in 0..2 {
        assert_eq!(view(subject.rocks(), GROUP).expect("readable").entries, entries(5, 1..=2));
        subject.close();
        subject.open().expect("a store");
    }
}

#[test]
fn a_replica_with_a_damaged_log_still_knows_which_one_it_is() {
    let mut subject = with_a_flipped_run();
    for _ in 0..2 {
        assert!(subject.rocks().load(GROUP).is_err());
        let meta = subject.rocks().meta(GROUP).expect("readable").expect("there");
        assert_eq!((meta.group, meta.replica), (GROUP, ReplicaId::must(1)));
        subject.close();
        subject.open().expect("a store");
    }
}

#[test]
fn a_damaged_log_is_cured_by_a_reset() {
    let mut subject = with_a_flipped_run();
    write_all(subject.rocks(), [reset(GROUP, 5, 50), append(GROUP, 5, 51..=52)]);
    for _ in 0..2 {
        assert_eq!(view(subject.rocks(), GROUP).expect("readable").entries, entries(5, 51..=52));
        subject.close();
        subject.open().expect("a store");
    }
}

/// Puts a key of another shape into the log of a store that is closed.
pub fn put_strange_key(store: &Path) {
    let database =
        DB::open_cf(&Options::default(), store.join("db"), ["default", "replicas", "log"]);
    let database = database.expect("a database");
    let log = database.cf_handle("log").expect("a family");
    database.put_cf(log, b"strange", b"").expect("written");
    drop(database);
}

#[test]
fn a_key_of_another_shape_is_refused_at_open() {
    let mut subject = OnDisk::default();
    subject.close();
    put_strange_key(subject.path());
    let refused = subject.open().expect_err("a strange key");
    assert!(matches!(refused, LogError::Corrupt { .. }), "{refused}");
    assert!(refused.to_string().contains("strange"), "{refused}");
}

//! A tail that cannot be read, and a mark beside the log that says how far it had come: nothing is cut
//! before it is known that the store opens.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use shardhost_storage::{Certainty, Doubt, LogError, RocksOptions, RocksStore};
use tempfile::TempDir;

use crate::crash::{live_log, ten_batches};
use crate::damage::put_strange_key;
use crate::fixtures::{
    GROUP, OnDisk, append, create, entries, identity, load, open, open_after_power_loss, small,
    view, write_all,
};
use crate::images::{image, names};
use crate::torn::die_at_every_step;

const IN_DOUBT: Certainty = Certainty::InDoubt(Doubt::TornTail);

/// Closed in order: the mark is where the log ends.
fn closed() -> (OnDisk, Vec<usize>) {
    let (mut subject, lengths) = ten_batches();
    subject.close();
    (subject, lengths)
}

/// The mark was renewed with the last write, and the host died.
fn marked_with_every_write() -> (TempDir, Vec<usize>) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = RocksOptions { high_water_bytes: 1, ..small() };
    let store = RocksStore::open(directory.path(), identity(), options).expect("a new store");
    write_all(&store, [create(GROUP)]);
    let lengths = (1..=10).map(|at| {
        write_all(&store, [append(GROUP, 1, at..=at)]);
        fs::metadata(live_log(directory.path())).expect("a log file").len() as usize
    });
    let lengths = lengths.collect();
    (image(directory.path()), lengths)
}

/// A copy with another content of the live log.
fn with_log(directory: &Path, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let image = image(directory);
    let log = live_log(image.path());
    let mut bytes = fs::read(&log).expect("a log file");
    change(&mut bytes);
    fs::write(&log, bytes).expect("written");
    image
}

/// All files, with the checksums of what they hold.
fn contents(directory: &Path) -> BTreeMap<PathBuf, u32> {
    let files = names(directory).into_iter().filter(|name| directory.join(name).is_file());
    let checksum = |name: &Path| crc32fast::hash(&fs::read(directory.join(name)).expect("a file"));
    files.map(|name| (name.clone(), checksum(&name))).collect()
}

/// What opening after a loss of power says, again and again, without changing anything.
fn refusal(directory: &Path) -> LogError {
    let before = contents(directory);
    let refused = open_after_power_loss(directory).map(|_| ()).expect_err("refused");
    for reopen in [open_after_power_loss, open] {
        let again = reopen(directory).map(|_| ()).expect_err("refused again");
        let is_same = std::mem::discriminant(&again) == std::mem::discriminant(&refused);
        assert!(is_same || matches!(again, LogError::Corrupt { .. }), "{refused}, then {again}");
    }
    assert_eq!(contents(directory), before, "{refused}");
    refused
}

fn expect_doubt(store: &RocksStore, what: &str) {
    assert_eq!(view(store, GROUP).expect("readable").entries, entries(1, 1..=9), "{what}");
    assert_eq!(load(store, GROUP).certainty, IN_DOUBT, "{what}");
}

#[test]
fn a_last_write_that_the_mark_knows_and_power_garbled_leaves_doubt() {
    let (subject, lengths) = closed();
    let (marked, same) = marked_with_every_write();
    for (directory, lengths) in [(subject.path(), lengths), (marked.path(), same)] {
        for lost in
            [lengths[8]..lengths[9], lengths[8] + 20..lengths[9], lengths[9] - 1..lengths[9]]
        {
            let torn = with_log(directory, |log| {
                log[lost.clone()].iter_mut().for_each(|byte| *byte ^= 0xff);
            });
            for _ in 0..2 {
                let store = open_after_power_loss(torn.path());
                let store = store.unwrap_or_else(|error| panic!("{lost:?}: {error}"));
                expect_doubt(&store, &format!("{lost:?}"));
            }
        }
    }
}

#[test]
fn a_crash_anywhere_in_the_cutting_of_a_write_that_the_mark_knows_keeps_the_doubt() {
    let (subject, lengths) = closed();
    let torn = with_log(subject.path(), |log| log[lengths[8] + 20..].fill(0));
    die_at_every_step(&torn, open_after_power_loss, &expect_doubt);
}

#[test]
fn a_log_that_ends_within_a_write_that_the_mark_knows_is_a_lost_past_and_left_alone() {
    let (subject, lengths) = closed();
    for length in [lengths[8] + 3, lengths[8] + 20, lengths[9] - 1] {
        let torn = with_log(subject.path(), |log| log.truncate(length));
        let refused = refusal(torn.path());
        assert!(matches!(refused, LogError::LostPast { .. }), "cut at {length}: {refused}");
    }
}

#[test]
fn a_garbled_tail_that_cannot_hold_what_the_mark_knows_is_a_lost_past_and_left_alone() {
    let (mut subject, lengths) = ten_batches();
    let many = |at| append(GROUP, 1, at..=at);
    write_all(subject.rocks(), (11..=200).map(many));
    subject.close();
    let torn = with_log(subject.path(), |log| {
        log.truncate(lengths[9]);
        log.extend([0xa5; 100]);
    });
    let refused = refusal(torn.path());
    assert!(matches!(refused, LogError::LostPast { .. }), "{refused}");
}

#[test]
fn a_torn_log_of_another_store_is_refused_and_left_alone() {
    let ((first, lengths), (second, _)) = (closed(), closed());
    fs::remove_dir_all(first.path().join("db")).expect("removed");
    fs::rename(second.path().join("db"), first.path().join("db")).expect("moved");
    let cut = with_log(first.path(), |log| log.truncate(lengths[9] - 5));
    let garbled = with_log(first.path(), |log| log[lengths[8] + 20..].fill(0));
    for torn in [cut, garbled] {
        let refused = refusal(torn.path());
        assert!(matches!(refused, LogError::Foreign { .. }), "{refused}");
    }
}

#[test]
fn a_torn_log_that_cannot_be_recovered_is_refused_and_left_alone() {
    let (subject, _) = closed();
    put_strange_key(subject.path());
    let torn = with_log(subject.path(), |log| log.extend([0xa5; 100]));
    let refused = refusal(torn.path());
    assert!(matches!(refused, LogError::Corrupt { .. }), "{refused}");
    assert!(refused.to_string().contains("strange"), "{refused}");
}

//! A last write that cannot be read: cut, refused, or in doubt; and crashes while it is cut.

use std::fs;
use std::path::{Path, PathBuf};

use shardhost_storage::{Certainty, Doubt, GroupId, GroupWrite, LogError, RocksStore};
use tempfile::TempDir;

use crate::crash::{live_log, ten_batches, with_log};
use crate::fixtures::{
    GROUP, OnDisk, append, create, destroy, entries, load, open, open_after_power_loss, view,
    write_all,
};
use crate::images::{image, names};

const OTHER: GroupId = GroupId::new(8);
/// The record that RocksDB puts into a new log file before it removes a torn one.
const EMPTY_RECORD_BYTES: usize = 7 + 12;
const IN_DOUBT: Certainty = Certainty::InDoubt(Doubt::TornTail);

/// How a store is opened.
pub type Open = fn(&Path) -> Result<RocksStore, LogError>;

/// A state between two images of a directory, and what it is.
struct Step {
    name: String,
    image: TempDir,
}

/// The states that a directory goes through while a torn tail is cut: the store notes that it may
/// have been acknowledged; RocksDB writes new files, points to them, and removes the old ones.
fn steps(before: &Path, after: &Path, reopen: Open) -> Vec<Step> {
    let (old, new) = (names(before), names(after));
    let of = |name: &Path, kinds: &[&str]| {
        let name = name.to_string_lossy().into_owned();
        kinds.iter().any(|kind| name.contains(kind))
    };
    let made = |kinds: &'static [&'static str]| {
        new.difference(&old).filter(move |name| of(name, kinds)).cloned()
    };
    let mut walk = Walk { after, now: image(before), steps: Vec::new() };
    walk.note("before anything".to_owned());
    fs::write(walk.now.path().join("identity"), identity_before_the_cut(before, reopen))
        .expect("written");
    walk.note("the identity before the cut".to_owned());
    for name in made(&[".sst"]).chain(made(&[".log"])).chain(made(&["MANIFEST"])) {
        walk.write_by_and_by(&name);
    }
    walk.replace(&PathBuf::from("db/CURRENT"));
    for name in made(&["OPTIONS"]) {
        walk.write_by_and_by(&name);
    }
    for name in old.difference(&new) {
        fs::remove_file(walk.now.path().join(name)).expect("removed");
        walk.note(format!("without {}", name.display()));
    }
    walk.steps
}

/// What the store notes before it lets RocksDB cut anything: here RocksDB cannot.
fn identity_before_the_cut(before: &Path, reopen: Open) -> Vec<u8> {
    let blocked = image(before);
    let lock = blocked.path().join("db/LOCK");
    fs::remove_file(&lock).expect("removed");
    fs::create_dir(&lock).expect("created");
    assert!(reopen(blocked.path()).is_err(), "RocksDB opened without its lock");
    fs::read(blocked.path().join("identity")).expect("an identity file")
}

struct Walk<'a> {
    after: &'a Path,
    now: TempDir,
    steps: Vec<Step>,
}

impl Walk<'_> {
    fn note(&mut self, name: String) {
        self.steps.push(Step { name, image: image(self.now.path()) });
    }

    fn write_by_and_by(&mut self, name: &Path) {
        let mut bytes = fs::read(self.after.join(name)).expect("a new file");
        if name.extension().is_some_and(|extension| extension == "log") {
            // Nothing else is written before the torn file is gone.
            bytes.truncate(EMPTY_RECORD_BYTES);
        }
        for length in [0, bytes.len() / 2, bytes.len()] {
            fs::write(self.now.path().join(name), &bytes[..length]).expect("written");
            self.note(format!("{length} bytes of {}", name.display()));
        }
    }

    fn replace(&mut self, name: &Path) {
        fs::copy(self.after.join(name), self.now.path().join(name)).expect("copied");
        self.note(format!("another {}", name.display()));
    }
}

/// Opens a torn store, dies at every step, opens what that left, dies again at one step in four,
/// another four each time, and expects the same content whatever happened. Returns how many steps
/// there were.
pub fn die_at_every_step(
    torn: &TempDir,
    reopen: Open,
    expect: &dyn Fn(&RocksStore, &str),
) -> usize {
    let first = steps_of_opening(torn.path(), reopen);
    for (turn, step) in first.iter().enumerate() {
        let again = steps_of_opening(step.image.path(), reopen);
        for again in again.into_iter().skip(turn % 4).step_by(4) {
            let what = format!("{}, then {}", step.name, again.name);
            let store = reopen(again.image.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
            expect(&store, &what);
            drop(store);
            let store = reopen(again.image.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
            expect(&store, &format!("{what}, then closed"));
        }
    }
    first.len()
}

fn steps_of_opening(directory: &Path, reopen: Open) -> Vec<Step> {
    let opened = image(directory);
    let store = reopen(opened.path()).unwrap_or_else(|error| panic!("{error}"));
    let after = image(opened.path());
    drop(store);
    steps(directory, after.path(), reopen)
}

#[test]
fn a_crash_anywhere_in_the_cutting_of_a_torn_tail_is_repaired_by_the_next_opening() {
    let (subject, lengths) = ten_batches();
    let torn = with_log(&subject, |log| log.truncate(lengths[9] - 5));
    let count = die_at_every_step(&torn, open, &|store, what| {
        let found = view(store, GROUP).expect("readable").entries;
        assert_eq!(found, entries(1, 1..=9), "{what}");
        assert_eq!(load(store, GROUP).certainty, Certainty::Sure, "{what}");
    });
    assert!(count > 8, "there were {count} steps only");
}

#[test]
fn a_crash_anywhere_in_the_cutting_of_a_doubtful_tail_keeps_the_doubt() {
    let (subject, lengths) = ten_batches();
    let torn = with_log(&subject, |log| log[lengths[8] + 20..].fill(0));
    die_at_every_step(&torn, open_after_power_loss, &|store, what| {
        let found = view(store, GROUP).expect("readable").entries;
        assert_eq!(found, entries(1, 1..=9), "{what}");
        assert_eq!(load(store, GROUP).certainty, IN_DOUBT, "{what}");
    });
}

#[test]
fn a_torn_tail_beside_the_file_that_follows_it_is_no_damage() {
    // The state in which a host that is killed at the removal of the torn file leaves its log.
    let (subject, lengths) = ten_batches();
    let torn = with_log(&subject, |log| log.truncate(lengths[9] - 5));
    let both = image(torn.path());
    drop(open(torn.path()).expect("a store"));
    let next = live_log(torn.path());
    let name = next.file_name().expect("a name");
    let bytes = fs::read(&next).expect("a log file");
    fs::write(both.path().join("db").join(name), &bytes[..EMPTY_RECORD_BYTES]).expect("written");
    for _ in 0..2 {
        let store = open(both.path()).expect("a store");
        assert_eq!(view(&store, GROUP).expect("readable").entries, entries(1, 1..=9));
    }
}

#[test]
fn a_flipped_bit_in_the_last_write_is_damage_while_the_machine_stays_up() {
    let (subject, lengths) = ten_batches();
    for byte in lengths[8]..lengths[9] {
        let image = with_log(&subject, |log| log[byte] ^= 1 << (byte % 8));
        let before = fs::read(live_log(image.path())).expect("a log file");
        for _ in 0..2 {
            let Err(LogError::Corrupt { place, .. }) = open(image.path()) else {
                panic!("a flipped bit in byte {byte} was not noticed");
            };
            assert!(place.ends_with(&format!("offset {}", lengths[8])), "byte {byte}: {place}");
        }
        assert_eq!(fs::read(live_log(image.path())).expect("a log file"), before);
    }
}

#[test]
fn after_a_loss_of_power_a_last_write_that_cannot_be_read_leaves_every_replica_in_doubt() {
    let (subject, _) = ten_batches();
    write_all(subject.rocks(), [create(OTHER)]);
    write_all(subject.rocks(), [append(GROUP, 1, 11..=11)]);
    let image = with_log(&subject, |log| {
        let last = log.len() - 3;
        log[last] ^= 4;
    });
    let store = open_after_power_loss(image.path()).expect("a store");
    for group in [GROUP, OTHER] {
        assert_eq!(load(&store, group).certainty, IN_DOUBT);
    }
    assert_eq!(view(&store, GROUP).expect("readable").entries, entries(1, 1..=10));
    // It stays so until it is settled, for each replica separately; new ones have lost nothing.
    write_all(&store, [create(GroupId::new(9)), append(GROUP, 2, 11..=11)]);
    write_all(&store, [settle(OTHER)]);
    for _ in 0..2 {
        drop(open(crate::images::image(image.path()).path()).map(|store| {
            let found = [GROUP, OTHER, GroupId::new(9)].map(|group| load(&store, group).certainty);
            assert_eq!(found, [IN_DOUBT, Certainty::Sure, Certainty::Sure]);
        }));
    }
    // A replica that is made anew has lost nothing either.
    write_all(&store, [destroy(GROUP, 1), crate::fixtures::create_replica(GROUP, 2)]);
    assert_eq!(load(&store, GROUP).certainty, Certainty::Sure);
    drop(store);
    let store = open(image.path()).expect("a store");
    assert_eq!(load(&store, GROUP).certainty, Certainty::Sure);
}

fn settle(group: GroupId) -> GroupWrite {
    GroupWrite { certainty: Some(Certainty::Sure), ..GroupWrite::new(group) }
}

#[test]
fn a_write_that_was_cut_short_is_in_no_doubt_also_after_a_loss_of_power() {
    let (subject, lengths) = ten_batches();
    for length in [lengths[8] + 3, lengths[8] + 20, lengths[9] - 1] {
        let image = with_log(&subject, |log| log.truncate(length));
        let store = open_after_power_loss(image.path()).expect("a store");
        assert_eq!(load(&store, GROUP).certainty, Certainty::Sure, "cut at {length}");
    }
}

#[test]
fn a_log_without_a_boot_id_may_have_lost_power() {
    let (subject, lengths) = ten_batches();
    let image = with_log(&subject, |log| log[lengths[9] - 1] ^= 1);
    let options = shardhost_storage::RocksOptions { boot: None, ..crate::fixtures::small() };
    let store = RocksStore::open(image.path(), crate::fixtures::identity(), options);
    assert_eq!(load(&store.expect("a store"), GROUP).certainty, IN_DOUBT);
}

/// A write whose value holds what ends a record of nothing, and the records that will follow it, and
/// where its record starts in the log.
fn write_that_looks_like_others() -> (OnDisk, usize) {
    let (twin, lengths) = ten_batches();
    write_all(twin.rocks(), [append(GROUP, 1, 11..=11)]);
    let end = fs::read(live_log(twin.path())).expect("a log file").len();
    write_all(twin.rocks(), [append(GROUP, 1, 12..=12), append(GROUP, 1, 13..=13)]);
    let following = &fs::read(live_log(twin.path())).expect("a log file")[end..];
    let (subject, same) = ten_batches();
    assert_eq!(lengths, same);
    const EMPTY: [u8; 7] = [0x05, 0x2b, 0x28, 0x43, 0, 0, 1];
    let mut write = append(GROUP, 1, 11..=11);
    write.entries[0].context = Default::default();
    write.entries[0].data =
        [&[0x5a; 30], &EMPTY[..], &[0x5a; 30], following, &[0x5a; 30], following].concat().into();
    write_all(subject.rocks(), [write]);
    (subject, lengths[9])
}

#[test]
fn no_value_in_a_write_that_was_cut_short_keeps_a_store_from_opening() {
    let (subject, start) = write_that_looks_like_others();
    let end = fs::read(live_log(subject.path())).expect("a log file").len();
    for length in (start + 1..end).step_by(5) {
        for reopen in [open, open_after_power_loss] {
            let image = with_log(&subject, |log| log.truncate(length));
            let store = reopen(image.path()).unwrap_or_else(|e| panic!("cut at {length}: {e}"));
            assert_eq!(view(&store, GROUP).expect("readable").entries, entries(1, 1..=10));
            assert_eq!(load(&store, GROUP).certainty, Certainty::Sure, "cut at {length}");
        }
    }
}

#[test]
fn no_value_in_a_write_that_was_half_written_is_taken_for_the_writes_that_follow() {
    let (subject, start) = write_that_looks_like_others();
    for lost in [start + 7..start + 30, start + 30..start + 60] {
        let image = with_log(&subject, |log| log[lost.clone()].fill(0));
        let store = open_after_power_loss(image.path()).expect("a store");
        assert_eq!(view(&store, GROUP).expect("readable").entries, entries(1, 1..=10));
        assert_eq!(load(&store, GROUP).certainty, IN_DOUBT, "{lost:?} was lost");
    }
}

#[test]
fn damage_in_a_write_whose_value_looks_like_others_is_found() {
    let (subject, start) = write_that_looks_like_others();
    let end = fs::read(live_log(subject.path())).expect("a log file").len();
    write_all(subject.rocks(), [append(GROUP, 1, 12..=12)]);
    for byte in (start..start + 7).chain((start + 7..end).step_by(5)) {
        for change in [1, 0x10, 0xff] {
            let image = with_log(&subject, |log| log[byte] ^= change);
            let Err(LogError::Corrupt { place, .. }) = open_after_power_loss(image.path()) else {
                panic!("a change of byte {byte} was not noticed");
            };
            assert!(place.ends_with(&format!("offset {start}")), "byte {byte}: {place}");
        }
    }
}

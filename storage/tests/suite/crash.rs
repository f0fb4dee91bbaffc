//! Crashes of RocksDB's store: what is left of the write-ahead log, and what is made of it.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use shardhost_storage::{GroupId, LogError, LogStore, RocksOptions, RocksStore};
use tempfile::TempDir;

use crate::fixtures::{
    GROUP, OnDisk, append, create, entries, identity, index, load, open, open_after_power_loss,
    small, view, write, write_all,
};
use crate::images::image;

/// The log file that is being written.
pub fn live_log(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory.join("db")).expect("a database");
    let logs = files.map(|file| file.expect("a file").path());
    logs.filter(|path| path.extension().is_some_and(|e| e == "log")).max().expect("a log file")
}

/// A store with ten batches of one entry each, and the length of the log after each of them.
pub fn ten_batches() -> (OnDisk, Vec<usize>) {
    let subject = OnDisk::default();
    write_all(subject.rocks(), [create(GROUP)]);
    let log = live_log(subject.path());
    let lengths = (1..=10).map(|at| {
        write_all(subject.rocks(), [append(GROUP, 1, at..=at)]);
        fs::metadata(&log).expect("a log file").len() as usize
    });
    let lengths = lengths.collect();
    (subject, lengths)
}

/// A crash image with another content of the live log.
pub fn with_log(subject: &OnDisk, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let image = image(subject.path());
    let log = live_log(image.path());
    let mut bytes = fs::read(&log).expect("a log file");
    change(&mut bytes);
    fs::write(&log, bytes).expect("written");
    image
}

/// Opens the state after a crash and expects the entries up to `last`; then writes more, crashes
/// again and expects that too.
fn expect_up_to(image: &TempDir, last: u64, what: &str) {
    let store = open(image.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
    expect_entries(image, &store, last, what);
}

/// The same after a loss of power.
fn expect_up_to_after_power_loss(image: &TempDir, last: u64, what: &str) {
    let store = open_after_power_loss(image.path());
    let store = store.unwrap_or_else(|error| panic!("{what}: {error}"));
    expect_entries(image, &store, last, what);
}

fn expect_entries(image: &TempDir, store: &RocksStore, last: u64, what: &str) {
    assert_eq!(view(store, GROUP).expect("readable").entries, entries(1, 1..=last), "{what}");
    write_all(store, [append(GROUP, 2, last + 1..=last + 1)]);
    let again = crate::images::image(image.path());
    let store = open(again.path()).unwrap_or_else(|error| panic!("again after {what}: {error}"));
    assert_eq!(load(&store, GROUP).last.index, index(last + 1), "again after {what}");
}

#[test]
fn a_log_cut_at_any_byte_of_its_last_batches_loses_only_what_was_cut() {
    let (subject, lengths) = ten_batches();
    for length in lengths[7] + 1..=lengths[9] {
        let whole = lengths.iter().filter(|end| **end <= length).count();
        let image = with_log(&subject, |log| log.truncate(length));
        expect_up_to(&image, whole as u64, &format!("cut at {length}"));
    }
}

#[test]
fn what_follows_the_last_batch_is_cut() {
    let (subject, _) = ten_batches();
    for (name, byte) in [("zeros", 0), ("garbage", 0xa5), ("garbage like a header", 1)] {
        for length in [1, 6, 7, 8, 500, 40_000, 100_000] {
            let image = with_log(&subject, |log| log.resize(log.len() + length, byte));
            expect_up_to_after_power_loss(&image, 10, &format!("{length} bytes of {name}"));
        }
    }
}

#[test]
fn a_last_batch_that_was_half_written_is_cut() {
    let (subject, lengths) = ten_batches();
    for at in [lengths[8], lengths[8] + 3, lengths[8] + 20, lengths[9] - 1] {
        let image = with_log(&subject, |log| log[at..].fill(0));
        expect_up_to_after_power_loss(&image, 9, &format!("zeros from {at}"));
    }
}

#[test]
fn a_flipped_bit_before_the_last_batch_is_refused_by_file_and_offset() {
    let (subject, lengths) = ten_batches();
    for byte in 0..lengths[8] {
        let image = with_log(&subject, |log| log[byte] ^= 1 << (byte % 8));
        let start = lengths.iter().rev().find(|end| **end <= byte).copied().unwrap_or(0);
        let Err(LogError::Corrupt { place, .. }) = open(image.path()) else {
            panic!("a flipped bit in byte {byte} was not noticed");
        };
        let log = live_log(image.path());
        let expected = format!("{} offset ", log.display());
        let offset = place.strip_prefix(&expected).expect("the file").parse::<usize>();
        let offset = offset.expect("an offset");
        // The first batches, up to the length that was noted first, are one record each too.
        assert!(offset <= byte && (offset == start || start == 0), "byte {byte}: {place}");
    }
}

#[test]
fn damage_is_refused_again_and_again_and_changes_nothing() {
    let (subject, lengths) = ten_batches();
    let image = with_log(&subject, |log| log[lengths[4] + 9] ^= 2);
    let before = fs::read(live_log(image.path())).expect("a log file");
    for _ in 0..3 {
        assert!(matches!(open(image.path()), Err(LogError::Corrupt { .. })));
    }
    assert_eq!(fs::read(live_log(image.path())).expect("a log file"), before);
}

#[test]
fn a_live_log_that_was_deleted_is_a_lost_past() {
    let (mut subject, _) = ten_batches();
    let crashed = image(subject.path());
    subject.close();
    let closed = image(subject.path());
    for image in [crashed, closed] {
        fs::remove_file(live_log(image.path())).expect("removed");
        for _ in 0..2 {
            assert!(matches!(open(image.path()), Err(LogError::LostPast { .. })));
        }
    }
}

#[test]
fn a_log_older_than_the_high_water_mark_is_a_lost_past() {
    // The mark is renewed with every batch here.
    let directory = tempfile::tempdir().expect("a directory");
    let options = RocksOptions { high_water_bytes: 1, ..small() };
    let store = RocksStore::open(directory.path(), identity(), options).expect("a new store");
    write_all(&store, [create(GROUP), append(GROUP, 1, 1..=1)]);
    let length = fs::metadata(live_log(directory.path())).expect("a log file").len();
    write_all(&store, [append(GROUP, 1, 2..=2)]);
    let image = image(directory.path());
    let log = fs::File::options().write(true).open(live_log(image.path())).expect("a log file");
    log.set_len(length).expect("cut");
    assert!(matches!(open(image.path()), Err(LogError::LostPast { .. })));
}

#[test]
fn a_store_survives_crashes_while_it_recovers() {
    // Each image is opened and copied again before anything was written.
    let (subject, lengths) = ten_batches();
    let mut crashed = with_log(&subject, |log| log.truncate(lengths[9] - 5));
    for _ in 0..5 {
        let store = open(crashed.path()).expect("a store");
        let next = image(crashed.path());
        drop(store);
        crashed = next;
    }
    expect_up_to(&crashed, 9, "five recoveries");
}

#[test]
fn a_crash_after_flushes_and_rotations_loses_nothing() {
    let subject = OnDisk::default();
    write_all(subject.rocks(), [create(GROUP)]);
    let big = |at| {
        let mut write = append(GROUP, 1, at..=at);
        write.entries[0].data = vec![at as u8; 100_000].into();
        write
    };
    for at in 1..=60 {
        write_all(subject.rocks(), [big(at)]);
        if at % 7 == 0 {
            let store = open(image(subject.path()).path()).expect("a store");
            assert_eq!(load(&store, GROUP).last.index, index(at));
        }
    }
    assert!(live_log(subject.path()) != subject.path().join("db/000004.log"), "it was rotated");
}

const CHILD: &str = "SHARDHOST_STORAGE_TEST_CHILD";

/// What the killed process does: one batch after the other over several groups, each announced
/// when it is durable.
#[test]
#[ignore = "run by the test that kills it"]
fn a_process_that_writes_until_it_is_killed() {
    let directory = std::env::var_os(CHILD).expect("run by the test that kills it");
    let store = open(Path::new(&directory)).expect("a store");
    let groups = [1, 2, 3].map(GroupId::new);
    let known = store.groups().expect("readable");
    let new = groups.into_iter().filter(|group| !known.contains(group));
    write_all(&store, new.map(create));
    let first = load(&store, groups[0]).last.index.get() + 1;
    for at in first.. {
        write(&store, groups.map(|group| append(group, 1, at..=at))).expect("written");
        println!("durable {at}");
    }
}

fn spawn(directory: &Path) -> Child {
    child("crash::a_process_that_writes_until_it_is_killed", directory, "exec \"$0\" \"$@\"")
}

/// Runs one test of this program, started by a line of shell.
fn child(test: &str, directory: &Path, line: &str) -> Child {
    Command::new("sh")
        .args(["-c", line])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process")
}

/// Lets the process announce some batches, kills it, and returns the last one it announced.
fn kill_after(mut child: Child, batches: usize) -> u64 {
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let seen = last_announced(&mut lines.by_ref().take(batches + 5));
    child.kill().expect("killed");
    child.wait().expect("ended");
    last_announced(&mut lines).or(seen).expect("something was announced")
}

fn last_announced(lines: &mut dyn Iterator<Item = io::Result<String>>) -> Option<u64> {
    let number = |line: String| line.strip_prefix("durable ")?.parse().ok();
    lines.map_while(Result::ok).filter_map(number).last()
}

#[test]
fn a_killed_process_loses_nothing_that_it_announced() {
    let directory = tempfile::tempdir().expect("a directory");
    for round in 1..=4 {
        let announced = kill_after(spawn(directory.path()), 40 * round);
        let store = open(directory.path()).expect("a store");
        let lasts = [1, 2, 3].map(|group| load(&store, GroupId::new(group)).last.index);
        assert_eq!(lasts, [lasts[0]; 3], "a batch is there as a whole");
        assert!(lasts[0] >= index(announced), "{announced} was announced, {} is there", lasts[0]);
    }
}

#[test]
fn a_store_that_another_process_holds_is_locked() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = spawn(directory.path());
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("durable")));
    let path = directory.path().display().to_string();
    assert_eq!(open(directory.path()).map(|_| ()), Err(LogError::Locked { path }));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(open(directory.path()).is_ok());
}

/// What the process does whose files may not grow: it writes until that fails.
#[test]
#[ignore = "run by the test that limits it"]
fn a_process_that_writes_until_it_cannot() {
    let directory = std::env::var_os(CHILD).expect("run by the test that limits it");
    let store = open(Path::new(&directory)).expect("a store");
    write_all(&store, [create(GROUP)]);
    for at in 1.. {
        let mut large = append(GROUP, 1, at..=at);
        large.entries[0].data = vec![at as u8; 10_000].into();
        match write(&store, [large]) {
            Ok(()) => println!("durable {at}"),
            Err(LogError::Io { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    let last = load(&store, GROUP).last.index;
    assert_eq!(write(&store, [append(GROUP, 1, 1..=1)]), Err(LogError::Poisoned));
    assert_eq!(load(&store, GROUP).last.index, last, "reads see what they saw before");
}

#[test]
fn after_a_failed_write_a_store_takes_no_other_and_a_restart_finds_what_was_durable() {
    let directory = tempfile::tempdir().expect("a directory");
    let line = "trap '' XFSZ; ulimit -f 500; exec \"$0\" \"$@\"";
    let mut child = child("crash::a_process_that_writes_until_it_cannot", directory.path(), line);
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let announced = last_announced(&mut lines).expect("something was announced");
    assert!(child.wait().expect("ended").success(), "what the process itself expects");
    let store = open(directory.path()).expect("a store");
    assert!(load(&store, GROUP).last.index >= index(announced));
    write_all(&store, [append(GROUP, 2, announced + 1..=announced + 1)]);
}

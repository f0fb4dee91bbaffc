//! What can happen to snapshot files.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shardhost_storage::{
    GroupId, LogPosition, SnapshotAnnouncement, SnapshotError, SnapshotFiles, SnapshotFilesOptions,
    SnapshotStore,
};
use shardhost_testing::snapshot_store::{announce, content, get, put};

use crate::fixtures::GROUP;

const AT: LogPosition = LogPosition::new(3, 40);

fn store_with(options: SnapshotFilesOptions) -> (SnapshotFiles, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    (SnapshotFiles::open_with(directory.path(), options).expect("a new store"), directory)
}

fn store() -> (SnapshotFiles, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    (SnapshotFiles::open(directory.path()).expect("a new store"), directory)
}

fn file_of(directory: &Path) -> PathBuf {
    directory.join("7-40-3.snap")
}

fn names(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory)
        .expect("a directory")
        .map(|file| file.expect("a file").file_name().into_string().expect("a readable name"));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn a_file_is_named_after_its_group_and_position() {
    let (store, directory) = store();
    put(&store, GROUP, AT, b"state");
    assert_eq!(names(directory.path()), ["7-40-3.snap"]);
}

#[test]
fn a_file_with_any_flipped_bit_is_refused_before_a_byte_is_handed_out() {
    let (store, directory) = store();
    put(&store, GROUP, AT, b"some state");
    let whole = fs::read(file_of(directory.path())).expect("a file");
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(file_of(directory.path()), damaged).expect("written");
        let refused = store.open(GROUP, AT).map(|_| ()).expect_err("damaged");
        assert!(matches!(refused, SnapshotError::Corrupt { .. }), "bit {bit}: {refused}");
    }
}

#[test]
fn a_file_of_any_other_length_is_refused() {
    let (store, directory) = store();
    put(&store, GROUP, AT, b"some state");
    let whole = fs::read(file_of(directory.path())).expect("a file");
    let shorter = (0..whole.len()).map(|length| whole[..length].to_vec());
    let longer = [[whole.as_slice(), b"x"].concat(), [b"x", whole.as_slice()].concat()];
    for bytes in shorter.chain(longer) {
        fs::write(file_of(directory.path()), bytes).expect("written");
        let refused = store.open(GROUP, AT).map(|_| ()).expect_err("of another length");
        assert!(matches!(refused, SnapshotError::Corrupt { .. }), "{refused}");
    }
}

#[test]
fn the_file_of_another_group_or_position_is_refused() {
    let (store, directory) = store();
    for (group, position) in [(GroupId::new(8), AT), (GROUP, LogPosition::new(3, 41))] {
        put(&store, group, position, b"state");
        let name = format!("{}-{}-{}.snap", group, position.index, position.term);
        fs::rename(directory.path().join(name), file_of(directory.path())).expect("renamed");
        let refused = store.open(GROUP, AT).map(|_| ()).expect_err("another one's");
        assert!(matches!(refused, SnapshotError::Corrupt { .. }), "{refused}");
    }
}

#[test]
fn a_file_that_changes_after_the_check_is_noticed_while_it_is_read() {
    let (store, directory) = store();
    put(&store, GROUP, AT, &[1; 1_000_000]);
    let mut reader = store.open(GROUP, AT).expect("a snapshot");
    let mut file = fs::File::options().write(true).open(file_of(directory.path())).expect("a file");
    file.write_all(b"changed").expect("written");
    let error = reader.read_to_end(&mut Vec::new()).expect_err("changed");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[test]
fn a_dropped_writer_leaves_no_file() {
    let (store, directory) = store();
    let mut writer = store.create(GROUP, AT).expect("a writer");
    writer.write_all(&[1; 200_000]).expect("written");
    assert_eq!(names(directory.path()).len(), 1);
    drop(writer);
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn leftovers_are_removed_at_open_and_nothing_else() {
    let (store, directory) = store();
    put(&store, GROUP, AT, b"state");
    let writer = store.create(GROUP, AT).expect("a writer");
    std::mem::forget(writer);
    fs::write(directory.path().join("notes.txt"), "of an operator").expect("written");
    assert_eq!(names(directory.path()).len(), 3);
    let store = SnapshotFiles::open(directory.path()).expect("a store");
    assert_eq!(names(directory.path()), ["7-40-3.snap", "notes.txt"]);
    assert_eq!(get(&store, GROUP, AT), Ok(b"state".to_vec()));
}

#[test]
fn two_writers_of_one_snapshot_do_not_mix() {
    let (store, directory) = store();
    let mut first = store.create(GROUP, AT).expect("a writer");
    let mut second = store.create(GROUP, AT).expect("another writer");
    first.write_all(&[1; 100_000]).expect("written");
    second.write_all(&[2; 90_000]).expect("written");
    first.finish().expect("finished");
    assert!(get(&store, GROUP, AT) == Ok(vec![1; 100_000]));
    second.finish().expect("finished");
    assert!(get(&store, GROUP, AT) == Ok(vec![2; 90_000]));
    assert_eq!(names(directory.path()), ["7-40-3.snap"]);
}

#[test]
fn a_file_that_somebody_removed_is_missing() {
    let (store, directory) = store();
    put(&store, GROUP, AT, b"state");
    fs::remove_file(file_of(directory.path())).expect("removed");
    let missing = SnapshotError::Missing { group: GROUP, position: AT };
    assert_eq!(get(&store, GROUP, AT), Err(missing));
    assert_eq!(store.remove_below(GROUP, None), Ok(()));
    assert_eq!(store.list(GROUP), Ok(vec![]));
}

#[test]
fn a_directory_that_is_a_file_is_refused_by_its_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    fs::write(&path, "").expect("written");
    let error = SnapshotFiles::open(&path).expect_err("not a directory");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
}

/// What the file system set aside for the only file.
fn allocated(directory: &Path) -> u64 {
    let [name] = names(directory).try_into().expect("one file");
    fs::metadata(directory.join(name)).expect("a file").blocks() * 512
}

fn received(store: &SnapshotFiles, announced: SnapshotAnnouncement) -> u64 {
    store.receive(announced).expect("a reception").received()
}

fn pause_half(store: &SnapshotFiles, announced: SnapshotAnnouncement, bytes: &[u8]) {
    let mut reception = store.receive(announced).expect("a reception");
    reception.append(&bytes[..bytes.len() / 2]).expect("taken");
    reception.pause().expect("paused");
}

/// Announcements of the same bytes for the groups 1 to `count`.
fn announced(count: u64, bytes: &[u8]) -> Vec<SnapshotAnnouncement> {
    let announce = |id| SnapshotAnnouncement { group: GroupId::new(id), ..announce(bytes) };
    (1..=count).map(announce).collect()
}

#[test]
fn e10_a_nearly_full_disk_refuses_before_a_file_is_made() {
    let full = SnapshotFilesOptions { keep_free_bytes: u64::MAX, ..Default::default() };
    let (store, directory) = store_with(full);
    let refused = store.receive(announce(b"state")).map(|_| ()).expect_err("no space");
    // The trailer of 52 bytes needs room too.
    assert_eq!(refused, SnapshotError::NoSpace { group: GROUP, needed: 57, available: 0 });
    let refused = store.create(GROUP, AT).map(|_| ()).expect_err("no space");
    assert!(matches!(refused, SnapshotError::NoSpace { available: 0, .. }), "{refused}");
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn room_is_set_aside_before_the_first_byte_and_given_back_in_a_pause() {
    let (store, directory) = store();
    let bytes = content(4 << 20);
    let mut reception = store.receive(announce(&bytes)).expect("a reception");
    assert!(allocated(directory.path()) >= 4 << 20);
    reception.append(&bytes[..10_000]).expect("taken");
    reception.pause().expect("paused");
    assert!(allocated(directory.path()) < 1 << 20);
    let reception = store.receive(announce(&bytes)).expect("a reception");
    assert!(allocated(directory.path()) >= 4 << 20);
    drop(reception);
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn a_finished_reception_is_a_file_like_any_other() {
    let (store, directory) = store();
    put(&store, GROUP, AT, b"some state");
    let written = fs::read(file_of(directory.path())).expect("a file");
    fs::remove_file(file_of(directory.path())).expect("removed");
    let mut reception = store.receive(announce(b"some state")).expect("a reception");
    reception.append(b"some state").expect("taken");
    reception.finish().expect("finished");
    assert_eq!(fs::read(file_of(directory.path())).expect("a file"), written);
}

#[test]
fn the_oldest_paused_receptions_give_way_to_newer_ones() {
    let bytes = content(10_000);
    let by_number = SnapshotFilesOptions { most_paused: 2, ..Default::default() };
    let by_bytes = SnapshotFilesOptions { most_paused_bytes: 14_999, ..Default::default() };
    for options in [by_number, by_bytes] {
        let (store, directory) = store_with(options);
        let announced = announced(3, &bytes);
        announced.iter().for_each(|announced| pause_half(&store, *announced, &bytes));
        assert_eq!(names(directory.path()).len(), 2);
        let left: Vec<u64> = announced.iter().map(|one| received(&store, *one)).collect();
        assert_eq!(left, [0, 5_000, 5_000]);
    }
}

#[test]
fn a_reception_too_large_to_be_kept_is_not() {
    let small = SnapshotFilesOptions { most_paused_bytes: 4_999, ..Default::default() };
    let (store, directory) = store_with(small);
    pause_half(&store, announce(&content(10_000)), &content(10_000));
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn paused_receptions_are_forgotten_when_their_time_is_over() {
    let bytes = content(10_000);
    for (keep_paused_for, files) in [(Duration::from_secs(3600), 1), (Duration::ZERO, 0)] {
        let (store, directory) =
            store_with(SnapshotFilesOptions { keep_paused_for, ..Default::default() });
        assert_eq!(store.forget_stale(), None);
        pause_half(&store, announce(&bytes), &bytes);
        let due = store.forget_stale();
        assert_eq!(names(directory.path()).len(), files);
        assert_eq!(due.is_some(), files > 0);
        assert!(due.is_none_or(|due| due <= keep_paused_for));
    }
}

#[test]
fn what_is_paused_gives_way_to_a_snapshot_that_needs_the_room() {
    let (store, directory) = store();
    let bytes = content(10_000);
    pause_half(&store, announce(&bytes), &bytes);
    let absurd = SnapshotAnnouncement { group: GroupId::new(8), size: 1 << 60, ..announce(&bytes) };
    assert!(store.receive(absurd).is_err());
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn a_snapshot_longer_than_a_sync_interval_is_whole() {
    let often = SnapshotFilesOptions { sync_bytes: 10_000, ..Default::default() };
    let (store, _directory) = store_with(often);
    let bytes = content(1_000_000);
    put(&store, GROUP, AT, &bytes);
    assert!(get(&store, GROUP, AT) == Ok(bytes.clone()));
    let later = SnapshotAnnouncement { position: LogPosition::new(3, 41), ..announce(&bytes) };
    let mut reception = store.receive(later).expect("a reception");
    bytes.chunks(4_001).for_each(|chunk| reception.append(chunk).expect("taken"));
    reception.finish().expect("finished");
    assert!(get(&store, GROUP, later.position) == Ok(bytes));
}

#[test]
fn a_file_damaged_after_its_trailer_was_written_fails_its_unchecked_reader_at_the_end() {
    let (store, directory) = store();
    put(&store, GROUP, AT, &content(100_000));
    damage(&file_of(directory.path()));
    let mut reader = store.open_unchecked(GROUP, AT).expect("its trailer is right");
    let error = reader.read_to_end(&mut Vec::new()).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let told = SnapshotError::from_io(GROUP, "reading", &error);
    assert!(matches!(told, SnapshotError::Corrupt { .. }), "{told}");
}

#[test]
fn a_damaged_snapshot_that_is_here_is_received_again() {
    let (store, directory) = store();
    let bytes = content(10_000);
    put(&store, GROUP, AT, &bytes);
    assert_eq!(received(&store, announce(&bytes)), 10_000);
    damage(&file_of(directory.path()));
    let mut again = store.receive(announce(&bytes)).expect("a reception");
    assert_eq!(again.received(), 0);
    again.append(&bytes).expect("taken");
    again.finish().expect("finished");
    assert_eq!(get(&store, GROUP, AT), Ok(bytes));
}

#[test]
fn s7_snapshots_that_are_written_share_one_rate() {
    let bytes_per_second = 8 << 20;
    let (store, _directory) =
        store_with(SnapshotFilesOptions { bytes_per_second, ..Default::default() });
    let bytes = content(2 << 20);
    let began = std::time::Instant::now();
    let mut own = store.create(GROUP, AT).expect("a writer");
    let later = SnapshotAnnouncement { position: LogPosition::new(3, 41), ..announce(&bytes) };
    let mut received = store.receive(later).expect("a reception");
    for chunk in bytes.chunks(128 << 10) {
        own.write_all(chunk).expect("written");
        received.append(chunk).expect("taken");
    }
    own.finish().expect("finished");
    received.finish().expect("finished");
    let took = began.elapsed();
    assert!(took > Duration::from_millis(400), "half a second's worth of bytes in {took:?}");
}

/// What the first release wrote must open for ever.
#[test]
fn j1_a_file_of_format_1_opens() {
    let hex = concat!(
        "736f6d6520737461746573687264736e61700000000100000000000000070000",
        "0000000000030000000000000028000000000000000a8d53ee60777a25a1",
    );
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    let file: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(file_of(directory.path()), file).expect("written");
    let store = SnapshotFiles::open(directory.path()).expect("a store");
    assert_eq!(store.list(GROUP), Ok(vec![AT]));
    assert_eq!(get(&store, GROUP, AT), Ok(b"some state".to_vec()));
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).expect("a file");
    bytes[0] ^= 1;
    fs::write(file, bytes).expect("written");
}

//! What can happen to snapshot files.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use shardhost_storage::{GroupId, LogPosition, SnapshotError, SnapshotFiles, SnapshotStore};

use crate::fixtures::GROUP;
use crate::snapshots::{get, put};

const AT: LogPosition = LogPosition::new(3, 40);

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

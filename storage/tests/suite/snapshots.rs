//! The rules of the snapshot seam. Every store passes all of it.

use std::io::{Read, Write};

use shardhost_storage::{
    GroupId, LogPosition, MemorySnapshots, SnapshotError, SnapshotFiles, SnapshotStore,
};

use crate::fixtures::GROUP;

/// A snapshot store under test.
pub trait Subject {
    /// The store.
    fn store(&self) -> &dyn SnapshotStore;
    /// The host dies and starts again.
    fn crash(&mut self);
}

#[derive(Default)]
struct InMemory(MemorySnapshots);

impl Subject for InMemory {
    fn store(&self) -> &dyn SnapshotStore {
        &self.0
    }
    fn crash(&mut self) {
        self.0.crash();
    }
}

struct InFiles {
    store: SnapshotFiles,
    directory: tempfile::TempDir,
}

impl Default for InFiles {
    fn default() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { store: SnapshotFiles::open(directory.path()).expect("a new store"), directory }
    }
}

impl Subject for InFiles {
    fn store(&self) -> &dyn SnapshotStore {
        &self.store
    }
    fn crash(&mut self) {
        self.store = SnapshotFiles::open(self.directory.path()).expect("a store");
    }
}

/// Makes each function a test of each store.
macro_rules! suite {
    ($($test:ident)*) => {
        mod memory {
            $(#[test]
            fn $test() {
                super::$test(&mut super::InMemory::default());
            })*
        }
        mod files {
            $(#[test]
            fn $test() {
                super::$test(&mut super::InFiles::default());
            })*
        }
    };
}

suite! {
    a_finished_snapshot_is_read_as_it_was_written
    an_empty_snapshot_is_a_snapshot
    a_large_snapshot_written_in_pieces_is_one
    an_unfinished_snapshot_does_not_exist
    what_was_unfinished_in_a_crash_is_gone
    a_snapshot_can_be_written_again
    positions_are_listed_in_order_and_by_group
    snapshots_below_one_or_all_are_removed
    a_removed_snapshot_can_be_read_to_its_end
}

/// Writes a whole snapshot.
pub fn put(
    store: &dyn SnapshotStore,
    group: GroupId,
    position: LogPosition,
    bytes: &[u8],
) -> (u64, u32) {
    let mut writer = store.create(group, position).expect("a writer");
    writer.write_all(bytes).expect("written");
    writer.finish().expect("finished")
}

/// Reads a whole snapshot.
pub fn get(
    store: &dyn SnapshotStore,
    group: GroupId,
    position: LogPosition,
) -> Result<Vec<u8>, SnapshotError> {
    let mut bytes = Vec::new();
    store.open(group, position)?.read_to_end(&mut bytes).expect("read");
    Ok(bytes)
}

const AT: LogPosition = LogPosition::new(3, 40);

fn missing(position: LogPosition) -> SnapshotError {
    SnapshotError::Missing { group: GROUP, position }
}

fn a_finished_snapshot_is_read_as_it_was_written(subject: &mut dyn Subject) {
    let (size, crc) = put(subject.store(), GROUP, AT, b"state");
    assert_eq!((size, crc), (5, crc32fast::hash(b"state")));
    for _ in 0..2 {
        let reader = subject.store().open(GROUP, AT).expect("a snapshot");
        assert_eq!((reader.size(), reader.crc()), (size, crc));
        assert_eq!(get(subject.store(), GROUP, AT), Ok(b"state".to_vec()));
        subject.crash();
    }
}

fn an_empty_snapshot_is_a_snapshot(subject: &mut dyn Subject) {
    assert_eq!(put(subject.store(), GROUP, AT, b""), (0, 0));
    subject.crash();
    assert_eq!(get(subject.store(), GROUP, AT), Ok(vec![]));
}

fn a_large_snapshot_written_in_pieces_is_one(subject: &mut dyn Subject) {
    let whole: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    let mut writer = subject.store().create(GROUP, AT).expect("a writer");
    for (number, piece) in whole.chunks(7_001).enumerate() {
        writer.write_all(piece).expect("written");
        if number % 10 == 0 {
            writer.flush().expect("flushed");
        }
    }
    assert_eq!(writer.finish(), Ok((1_000_000, crc32fast::hash(&whole))));
    subject.crash();
    assert!(get(subject.store(), GROUP, AT) == Ok(whole));
}

fn an_unfinished_snapshot_does_not_exist(subject: &mut dyn Subject) {
    let mut writer = subject.store().create(GROUP, AT).expect("a writer");
    writer.write_all(&[1; 100_000]).expect("written");
    assert_eq!(get(subject.store(), GROUP, AT), Err(missing(AT)));
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    drop(writer);
    assert_eq!(get(subject.store(), GROUP, AT), Err(missing(AT)));
}

fn what_was_unfinished_in_a_crash_is_gone(subject: &mut dyn Subject) {
    let mut writer = subject.store().create(GROUP, AT).expect("a writer");
    writer.write_all(b"half").expect("written");
    subject.crash();
    assert!(writer.finish().is_err(), "its process is dead");
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    assert_eq!(get(subject.store(), GROUP, AT), Err(missing(AT)));
}

fn a_snapshot_can_be_written_again(subject: &mut dyn Subject) {
    put(subject.store(), GROUP, AT, b"first");
    put(subject.store(), GROUP, AT, b"second");
    assert_eq!(subject.store().list(GROUP), Ok(vec![AT]));
    subject.crash();
    assert_eq!(get(subject.store(), GROUP, AT), Ok(b"second".to_vec()));
}

fn positions_are_listed_in_order_and_by_group(subject: &mut dyn Subject) {
    let positions = [(1, 9), (1, 10), (2, 100), (300, 101)].map(|(t, i)| LogPosition::new(t, i));
    let groups = [0, 1, 10, 11, u64::MAX].map(GroupId::new);
    for group in groups {
        for position in positions.into_iter().rev() {
            put(subject.store(), group, position, b"state");
        }
    }
    for _ in 0..2 {
        for group in groups {
            assert_eq!(subject.store().list(group), Ok(positions.to_vec()));
        }
        assert_eq!(subject.store().list(GroupId::new(2)), Ok(vec![]));
        subject.crash();
    }
}

fn snapshots_below_one_or_all_are_removed(subject: &mut dyn Subject) {
    let positions = [(1, 9), (1, 10), (2, 11)].map(|(term, at)| LogPosition::new(term, at));
    let other = GroupId::new(8);
    for position in positions {
        put(subject.store(), GROUP, position, b"state");
        put(subject.store(), other, position, b"state");
    }
    assert_eq!(subject.store().remove_below(GROUP, Some(positions[1])), Ok(()));
    assert_eq!(subject.store().list(GROUP), Ok(positions[1..].to_vec()));
    assert_eq!(get(subject.store(), GROUP, positions[0]), Err(missing(positions[0])));
    assert_eq!(subject.store().remove_below(GROUP, None), Ok(()));
    subject.crash();
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    assert_eq!(subject.store().list(other), Ok(positions.to_vec()));
}

fn a_removed_snapshot_can_be_read_to_its_end(subject: &mut dyn Subject) {
    put(subject.store(), GROUP, AT, b"state");
    let mut reader = subject.store().open(GROUP, AT).expect("a snapshot");
    assert_eq!(subject.store().remove_below(GROUP, None), Ok(()));
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes, b"state");
}

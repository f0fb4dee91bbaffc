//! Crashes and faults on command of the stores in memory.

use std::io::{ErrorKind, Read, Write};

use shardhost_storage::{
    LogBatch, LogError, LogPosition, LogStore, MemorySnapshots, MemoryStore, SnapshotAnnouncement,
    SnapshotError, SnapshotFault, SnapshotStore, StoreFault,
};
use shardhost_testing::snapshot_store::{announce, content, get, put};

use crate::fixtures::{
    GROUP, append, compact, create, entries, hard_state, index, load, read, reset, view, write,
    write_all,
};

fn batch(writes: impl Into<Vec<shardhost_storage::GroupWrite>>) -> LogBatch {
    LogBatch { writes: writes.into() }
}

/// A store with one synced batch and three that are not: entry 2, entry 3, entry 4.
fn half_synced() -> MemoryStore {
    let store = MemoryStore::new();
    write_all(&store, [create(GROUP), append(GROUP, 1, 1..=1)]);
    for at in 2..=4 {
        store.write_unsynced(&batch([append(GROUP, 1, at..=at)])).expect("written");
    }
    store
}

#[test]
fn unsynced_writes_are_visible_and_a_crash_loses_them() {
    let store = half_synced();
    assert_eq!(store.unsynced(), 3);
    assert_eq!(read(&store, GROUP, 1, 5), Ok(entries(1, 1..=4)));
    assert_eq!(store.load_durable(GROUP).expect("a replica").last, LogPosition::new(1, 1));
    assert_eq!(store.crash(0), 3);
    assert_eq!(view(&store, GROUP).expect("readable").entries, entries(1, 1..=1));
}

#[test]
fn a_crash_may_keep_the_oldest_unsynced_writes() {
    for keep in 0..=5 {
        let store = half_synced();
        assert_eq!(store.crash(keep), 3usize.saturating_sub(keep));
        let last = 1 + keep.min(3) as u64;
        assert_eq!(view(&store, GROUP).expect("readable").entries, entries(1, 1..=last));
        assert_eq!(store.crash(0), 0, "what was kept is durable");
        assert_eq!(load(&store, GROUP).last, LogPosition::new(1, last));
    }
}

#[test]
fn a_sync_makes_everything_before_it_durable() {
    let store = half_synced();
    store.sync().expect("synced");
    assert_eq!(store.unsynced(), 0);
    assert_eq!(store.crash(0), 0);
    assert_eq!(view(&store, GROUP).expect("readable").entries, entries(1, 1..=4));
}

#[test]
fn a_crash_brings_back_what_was_replaced_without_a_sync() {
    let store = MemoryStore::new();
    write_all(&store, [create(GROUP), append(GROUP, 1, 1..=9)]);
    let before = view(&store, GROUP);
    let state = shardhost_storage::GroupWrite {
        hard_state: Some(hard_state(2, 1, 3)),
        ..append(GROUP, 2, 5..=6)
    };
    for write in [state, compact(GROUP, 1, 3), reset(GROUP, 5, 50)] {
        store.write_unsynced(&batch([write])).expect("written");
    }
    assert_eq!(store.crash(0), 3);
    assert_eq!(view(&store, GROUP), before);
}

#[test]
fn a_failed_write_poisons_and_leaves_nothing() {
    let store = half_synced();
    store.inject(StoreFault::Write);
    let write = || write(&store, [append(GROUP, 1, 5..=5)]);
    assert!(matches!(write(), Err(LogError::Io { .. })));
    assert_eq!(write(), Err(LogError::Poisoned));
    assert_eq!(store.sync(), Err(LogError::Poisoned));
    assert_eq!(load(&store, GROUP).last, LogPosition::new(1, 4), "reads go on");
    assert_eq!(store.crash(usize::MAX), 0);
    assert_eq!(load(&store, GROUP).last, LogPosition::new(1, 4));
    assert_eq!(write(), Ok(()), "the store works again after a restart");
}

#[test]
fn after_a_failed_sync_a_crash_decides_what_is_kept() {
    for keep in [0, 1] {
        let store = MemoryStore::new();
        write_all(&store, [create(GROUP)]);
        store.inject(StoreFault::Sync);
        assert!(matches!(write(&store, [append(GROUP, 1, 1..=1)]), Err(LogError::Io { .. })));
        assert_eq!(write(&store, [append(GROUP, 1, 1..=1)]), Err(LogError::Poisoned));
        store.crash(keep);
        assert_eq!(load(&store, GROUP).last.index, index(keep as u64));
    }
}

#[test]
fn a_lying_sync_loses_what_it_said_it_kept() {
    let store = MemoryStore::new();
    write_all(&store, [create(GROUP), append(GROUP, 1, 1..=1)]);
    store.inject(StoreFault::LyingSync);
    write_all(&store, [append(GROUP, 1, 2..=2), append(GROUP, 1, 3..=3)]);
    assert_eq!(store.crash(1), 1);
    assert_eq!(load(&store, GROUP).last, LogPosition::new(1, 2));
    store.heal();
    write_all(&store, [append(GROUP, 1, 3..=3)]);
    assert_eq!(store.crash(0), 0);
}

#[test]
fn failing_reads_concern_one_group_until_healed() {
    let store = MemoryStore::new();
    let other = shardhost_storage::GroupId::new(8);
    write_all(&store, [create(GROUP), create(other), append(GROUP, 1, 1..=3)]);
    store.inject(StoreFault::Reads(GROUP));
    assert!(matches!(store.load(GROUP), Err(LogError::Io { .. })));
    assert!(matches!(read(&store, GROUP, 1, 2), Err(LogError::Io { .. })));
    assert!(matches!(store.term(GROUP, index(1)), Err(LogError::Io { .. })));
    assert!(store.load(other).is_ok());
    write_all(&store, [append(GROUP, 1, 4..=4)]);
    store.heal();
    assert_eq!(read(&store, GROUP, 1, 5), Ok(entries(1, 1..=4)));
}

#[test]
fn a_damaged_entry_fails_reads_that_reach_it_until_it_is_replaced() {
    let store = MemoryStore::new();
    write_all(&store, [create(GROUP), append(GROUP, 1, 1..=9)]);
    store.inject(StoreFault::DamagedEntry(GROUP, index(5)));
    assert_eq!(read(&store, GROUP, 1, 5), Ok(entries(1, 1..=4)));
    assert!(matches!(read(&store, GROUP, 1, 6), Err(LogError::Corrupt { .. })));
    assert_eq!(read(&store, GROUP, 6, 10), Ok(entries(1, 6..=9)));
    write_all(&store, [append(GROUP, 2, 6..=6)]);
    assert!(matches!(read(&store, GROUP, 1, 6), Err(LogError::Corrupt { .. })));
    write_all(&store, [append(GROUP, 3, 5..=6)]);
    assert_eq!(read(&store, GROUP, 5, 7), Ok(entries(3, 5..=6)));
}

#[test]
fn handles_share_one_store() {
    let store = MemoryStore::new();
    let handle = store.clone();
    write_all(&store, [create(GROUP)]);
    assert_eq!(handle.groups(), Ok(vec![GROUP]));
}

const AT: LogPosition = LogPosition::new(3, 40);

#[test]
fn a_full_disk_fails_snapshots_until_there_is_room() {
    let store = MemorySnapshots::new();
    let full = SnapshotError::DiskFull { group: GROUP };
    let mut writer = store.create(GROUP, AT).expect("a writer");
    store.inject(SnapshotFault::NoSpace);
    let error = writer.write_all(b"state").expect_err("full");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(writer.finish(), Err(full.clone()));
    assert_eq!(store.create(GROUP, AT).map(|_| ()), Err(full));
    store.heal();
    put(&store, GROUP, AT, b"state");
}

#[test]
fn a_capacity_bounds_what_is_kept_written_and_promised() {
    let store = MemorySnapshots::new();
    store.inject(SnapshotFault::Capacity(100));
    put(&store, GROUP, AT, &content(40));
    let later = LogPosition::new(3, 41);
    let of = |size, position| SnapshotAnnouncement { position, ..announce(&content(size)) };
    let promised = store.receive(of(50, later)).expect("a reception");
    let refused = store.receive(of(11, AT)).map(|_| ());
    assert_eq!(refused, Err(SnapshotError::NoSpace { group: GROUP, needed: 11, available: 10 }));
    let mut writer = store.create(GROUP, later).expect("a writer");
    writer.write_all(&content(10)).expect("the last ten");
    let error = writer.write_all(b"x").expect_err("full");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    drop((promised, writer));
    put(&store, GROUP, later, &content(60));
}

#[test]
fn a_damaged_snapshot_fails_its_unchecked_reader_at_the_end() {
    let store = MemorySnapshots::new();
    put(&store, GROUP, AT, &content(100));
    assert!(store.corrupt(GROUP, AT));
    assert_eq!(store.receive(announce(&content(100))).map(|r| r.received()), Ok(0));
    let mut reader = store.open_unchecked(GROUP, AT).expect("nobody looked yet");
    let error = reader.read_to_end(&mut Vec::new()).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[test]
fn a_corrupted_snapshot_is_refused() {
    let store = MemorySnapshots::new();
    assert!(!store.corrupt(GROUP, AT), "there is none");
    for bytes in [&b"state"[..], b""] {
        put(&store, GROUP, AT, bytes);
        assert!(store.corrupt(GROUP, AT));
        assert!(matches!(get(&store, GROUP, AT), Err(SnapshotError::Corrupt { .. })));
    }
}

#[test]
fn failing_snapshots_concern_one_group_until_healed() {
    let store = MemorySnapshots::new();
    put(&store, GROUP, AT, b"state");
    store.inject(SnapshotFault::Io(GROUP));
    assert!(matches!(get(&store, GROUP, AT), Err(SnapshotError::Io { .. })));
    assert!(matches!(store.list(GROUP), Err(SnapshotError::Io { .. })));
    assert!(store.list(shardhost_storage::GroupId::new(8)).is_ok());
    store.heal();
    assert_eq!(get(&store, GROUP, AT), Ok(b"state".to_vec()));
}

//! Steady writing reaches a steady size on disk; an idle group takes little memory.

use std::path::Path;

use shardhost_storage::{GroupId, GroupWrite, LogStore, RocksOptions, RocksStore};

use crate::fixtures::{
    OnDisk, append, create, entries, identity, index, load, small, write, write_all,
};
use crate::images::names;

const MIB: u64 = 1024 * 1024;

fn bytes_on_disk(directory: &Path) -> u64 {
    let size = |name| directory.join(name).metadata().map_or(0, |file| file.len());
    names(directory).into_iter().map(size).sum()
}

/// Entries of one KiB for each group, and a truncation that leaves the last eight.
fn round(groups: &[GroupId], last: u64) -> Vec<GroupWrite> {
    let write = |group: &GroupId| {
        let mut write = append(*group, 1, last + 1..=last + 4);
        for entry in &mut write.entries {
            entry.data = vec![entry.index.get() as u8; 1024].into();
        }
        write.compact = entries(1, last.saturating_sub(3)..=last)
            .first()
            .filter(|entry| entry.index > index(0))
            .map(|entry| shardhost_storage::LogPosition { term: entry.term, index: entry.index });
        write
    };
    groups.iter().map(write).collect()
}

#[test]
fn hours_of_writing_reach_a_steady_size() {
    let mut subject = OnDisk::default();
    let groups: Vec<_> = (0..64).map(GroupId::new).collect();
    write_all(subject.rocks(), groups.iter().copied().map(create));
    let (mut peak, mut last) = (0, 0);
    while subject.rocks().stats().bytes < 400 * MIB {
        write(subject.rocks(), round(&groups, last)).expect("written");
        last += 4;
        if last % 64 == 0 {
            peak = peak.max(bytes_on_disk(subject.path()));
        }
    }
    println!("peak {} KiB for 512 KiB of live entries", peak / 1024);
    // Three memtables and their logs of one MiB, and the files that wait for a compaction.
    assert!(peak < 24 * MIB, "{peak} bytes");
    subject.close();
    subject.open().expect("a store");
    assert_eq!(load(subject.rocks(), groups[0]).last.index, index(last));
}

#[test]
fn an_idle_group_takes_less_than_300_bytes() {
    let subject = OnDisk::default();
    let groups: Vec<_> = (0..10_000).map(GroupId::new).collect();
    for some in groups.chunks(500) {
        write(subject.rocks(), some.iter().copied().map(create).collect::<Vec<_>>())
            .expect("written");
        let appends = some.iter().map(|group| append(*group, 1, 1..=3));
        write(subject.rocks(), appends.collect::<Vec<_>>()).expect("written");
    }
    let bytes = subject.rocks().memory_bytes() / groups.len();
    println!("{bytes} bytes per idle group");
    assert!(bytes < 300, "{bytes} bytes");
}

#[test]
fn a_group_that_was_busy_gives_its_memory_back() {
    let subject = OnDisk::default();
    let group = GroupId::new(1);
    write_all(subject.rocks(), [create(group)]);
    for at in 1..=5_000 {
        // Every entry in a separate run and term.
        write(subject.rocks(), [append(group, at, at..=at)]).expect("written");
    }
    let busy = subject.rocks().memory_bytes();
    let last = load(subject.rocks(), group).last;
    write_all(subject.rocks(), [GroupWrite { compact: Some(last), ..GroupWrite::new(group) }]);
    let idle = subject.rocks().memory_bytes();
    assert!(busy > 100_000 && idle < 2_000, "{busy} bytes busy, {idle} idle");
}

#[test]
fn the_files_of_one_large_write_stay_bounded() {
    // Larger than a memtable: it must go through all the same.
    let directory = tempfile::tempdir().expect("a directory");
    let options = RocksOptions { run_bytes: 128 * 1024, ..small() };
    let store = RocksStore::open(directory.path(), identity(), options).expect("a new store");
    let group = GroupId::new(1);
    let mut large = append(group, 1, 1..=64);
    for entry in &mut large.entries {
        entry.data = vec![7; 128 * 1024].into();
    }
    write_all(&store, [create(group), large]);
    assert_eq!(load(&store, group).last.index, index(64));
    assert!(bytes_on_disk(directory.path()) < 32 * MIB);
}

//! Snapshots: views of a moment, and restores that are interrupted, wrong or damaged.

use shardhost_groups::machine::StateMachine as _;
use std::io;

use bytes::Bytes;
use shardhost_groups::machine::Progress;
use shardhost_storage::{GroupId, LogPosition};

use super::super::*;
use super::{applied, durable, put_all};
use crate::shards::table::TableCommand;
use crate::shards::testing::{GROUP, Scratch, apply, restore, snapshot_of};

#[test]
fn a_snapshot_holds_the_state_of_its_moment() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=3);
    let before = table.checksum(&Progress::default()).unwrap();
    let writer = table.snapshot().unwrap();
    put_all(&mut table, 4..=9);
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();

    let other = Scratch::new();
    let mut copy = other.state.table(GroupId::new(1));
    restore(&mut copy, 3, &bytes);
    assert_eq!(copy.checksum(&Progress::default()).unwrap(), before);
    assert_eq!(applied(&copy), Some(3));
}

#[test]
fn a_restore_replaces_what_was_there_and_touches_no_other_group() {
    let scratch = Scratch::new();
    let mut source = scratch.state.table(GROUP);
    put_all(&mut source, 1..=2);
    let snapshot = snapshot_of(&mut source);
    let mut target = scratch.state.table(GroupId::new(GROUP.get() + 1));
    put_all(&mut target, 10..=19);
    restore(&mut target, 30, &snapshot);
    assert_eq!(
        target.checksum(&Progress::default()).unwrap(),
        source.checksum(&Progress::default()).unwrap()
    );
    assert_eq!((applied(&target), applied(&source)), (Some(30), Some(2)));
}

#[test]
fn a_snapshot_of_many_chunks_arrives_whole() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let value = vec![7; 10_000];
    let puts: Vec<Bytes> = (0..300u64)
        .map(|key| TableCommand::Put { key: &key.to_be_bytes(), value: &value }.encode())
        .collect();
    apply(&mut table, 1, &puts);
    let snapshot = snapshot_of(&mut table);
    let mut copy = scratch.state.table(GroupId::new(1));
    restore(&mut copy, 300, &snapshot);
    assert_eq!(
        copy.checksum(&Progress::default()).unwrap(),
        table.checksum(&Progress::default()).unwrap()
    );
}

#[test]
fn an_empty_group_has_a_snapshot() {
    let scratch = Scratch::new();
    let snapshot = snapshot_of(&mut scratch.state.table(GROUP));
    let mut copy = scratch.state.table(GroupId::new(1));
    restore(&mut copy, 5, &snapshot);
    assert_eq!((applied(&copy), copy.checksum(&Progress::default()).unwrap().items), (Some(5), 0));
}

/// Lets a restore read some bytes, then flushes the state, as a crash behind it would find it.
struct FlushMidway<'a> {
    snapshot: &'a [u8],
    left_before_flush: usize,
    state: &'a StateDb,
}

impl io::Read for FlushMidway<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left_before_flush == 0 {
            self.state.flush_now().map_err(io::Error::other)?;
            return Err(io::Error::other("the crash"));
        }
        let room = buffer.len().min(self.left_before_flush);
        let count = self.snapshot.read(&mut buffer[..room])?;
        self.left_before_flush -= count;
        Ok(count)
    }
}

#[test]
fn a_crash_during_a_restore_leaves_no_position_and_no_leftovers() {
    let scratch = Scratch::new();
    let mut source = scratch.state.table(GroupId::new(1));
    let value = vec![7; 100_000];
    let puts: Vec<Bytes> = (0..40u64)
        .map(|key| TableCommand::Put { key: &key.to_be_bytes(), value: &value }.encode())
        .collect();
    apply(&mut source, 1, &puts);
    let snapshot = snapshot_of(&mut source);

    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=9);
    scratch.state.flush_now().unwrap();
    let midway = snapshot.len() / 2;
    let mut torn =
        FlushMidway { snapshot: &snapshot, left_before_flush: midway, state: &scratch.state };
    let fault = table.restore(LogPosition::new(1, 40), &mut torn).unwrap_err();
    assert!(fault.message.contains("the crash"), "{fault}");
    assert_eq!(durable(&table), 0, "nothing of the old state is on disk any more");

    let crashed = scratch.crashed();
    let mut table = crashed.state.table(GROUP);
    assert!(
        table.checksum(&Progress::default()).unwrap().items > 0,
        "the restore had written something"
    );
    assert_eq!((applied(&table), durable(&table)), (None, 0));
    assert!(table.checksum(&Progress::default()).unwrap().items > 0, "a look changes nothing");
    table.begin().unwrap();
    assert_eq!(
        table.checksum(&Progress::default()).unwrap().items,
        0,
        "leftovers would mix with a replay"
    );
    restore(&mut table, 40, &snapshot);
    assert_eq!(
        table.checksum(&Progress::default()).unwrap(),
        source.checksum(&Progress::default()).unwrap()
    );
    assert_eq!(applied(&table), Some(40));
}

/// Asks another machine of the group where it stands, again and again while it is restored.
struct LookMidway<'a> {
    snapshot: &'a [u8],
    state: &'a Arc<StateDb>,
    looks: usize,
}

impl io::Read for LookMidway<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.snapshot.len() < 2_000_000 {
            assert_eq!(applied(&self.state.table(GROUP)), None, "it is being restored");
            self.looks += 1;
        }
        self.snapshot.read(buffer)
    }
}

#[test]
fn whoever_asks_where_a_state_stands_takes_nothing_from_its_restore() {
    let scratch = Scratch::new();
    let mut source = scratch.state.table(GroupId::new(1));
    let value = vec![7; 100_000];
    let puts: Vec<Bytes> = (0..40u64)
        .map(|key| TableCommand::Put { key: &key.to_be_bytes(), value: &value }.encode())
        .collect();
    apply(&mut source, 1, &puts);
    let snapshot = snapshot_of(&mut source);

    let mut table = scratch.state.table(GROUP);
    let mut looked = LookMidway { snapshot: &snapshot, state: &scratch.state, looks: 0 };
    table.restore(LogPosition::new(1, 40), &mut looked).unwrap();
    assert!(looked.looks > 0, "the first batches were written by then");
    assert_eq!(
        table.checksum(&Progress::default()).unwrap(),
        source.checksum(&Progress::default()).unwrap()
    );
    table.begin().unwrap();
    assert_eq!(
        table.checksum(&Progress::default()).unwrap().items,
        40,
        "what is at a position is no leftover"
    );
}

#[test]
fn a_wrong_snapshot_is_refused_before_anything_changes() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=3);
    let of_a_queue = snapshot_of(&mut scratch.state.queue(GroupId::new(1)));
    for wrong in [&b""[..], b"SHSTATE", b"SHSTATE\x02\x01", b"something else", &of_a_queue] {
        let fault = table.restore(LogPosition::new(1, 9), &mut &wrong[..]).unwrap_err();
        assert!(fault.message.contains("nothing was changed"), "{fault}");
    }
    assert_eq!(
        (applied(&table), table.checksum(&Progress::default()).unwrap().items),
        (Some(3), 3)
    );
}

#[test]
fn a_damaged_snapshot_leaves_no_position() {
    let scratch = Scratch::new();
    let mut source = scratch.state.table(GroupId::new(1));
    put_all(&mut source, 1..=3);
    let good = snapshot_of(&mut source);
    let short = good[..good.len() - 1].to_vec();
    let long = [&good[..], b"x"].concat();
    let mut miscounted = good.clone();
    *miscounted.iter_mut().rev().nth(7).unwrap() += 1;
    let mut foreign_key = good;
    foreign_key[9 + 8] = 0x55;
    for (name, damaged) in
        [("short", short), ("long", long), ("miscounted", miscounted), ("foreign key", foreign_key)]
    {
        let mut table = scratch.state.table(GROUP);
        put_all(&mut table, 1..=2);
        let fault = table.restore(LogPosition::new(1, 9), &mut &damaged[..]).unwrap_err();
        assert!(fault.message.contains("waits for a good one"), "{name}: {fault}");
        assert_eq!(applied(&table), None, "{name}");
    }
}

#[test]
fn views_are_bounded_and_free_their_place() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let mut open: Vec<_> = (0..MAX_OPEN_VIEWS).map(|_| table.snapshot().unwrap()).collect();
    let fault = table.snapshot().map(drop).unwrap_err();
    assert!(fault.message.contains("open already"), "{fault}");
    open.pop();
    assert!(table.snapshot().is_ok());
}

#[test]
fn a_view_fails_when_the_state_is_closed() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    let writer = table.snapshot().unwrap();
    drop((table, scratch));
    assert!(writer.write_to(&mut Vec::new()).is_err());
}

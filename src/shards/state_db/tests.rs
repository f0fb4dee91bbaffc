use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shardhost_groups::machine::StateMachine;
use shardhost_storage::{GroupId, LogPosition};

use super::*;
use crate::shards::table::TableCommand;
use crate::shards::testing::{GROUP, Scratch, apply, open, restore, snapshot_of};

fn put(key: u64) -> Bytes {
    TableCommand::Put { key: &key.to_be_bytes(), value: b"value" }.encode()
}

fn put_all(table: &mut TableMachine, indexes: std::ops::RangeInclusive<u64>) {
    let first = *indexes.start();
    apply(table, first, &indexes.map(put).collect::<Vec<_>>());
}

fn applied(machine: &impl StateMachine) -> Option<u64> {
    machine.applied().unwrap().map(|at| at.index.get())
}

fn durable(machine: &impl StateMachine) -> u64 {
    machine.durable_index().unwrap().get()
}

#[test]
fn only_what_was_flushed_is_called_durable_and_survives_a_crash() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=3);
    assert_eq!((applied(&table), durable(&table)), (Some(3), 0));
    scratch.state.flush_now().unwrap();
    put_all(&mut table, 4..=5);
    assert_eq!((applied(&table), durable(&table)), (Some(5), 3));

    let after = scratch.crashed();
    let table = after.state.table(GROUP);
    assert_eq!((applied(&table), durable(&table)), (Some(3), 3));
    assert_eq!(table.checksum().unwrap().items, 3);
}

#[test]
fn closing_flushes() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    let directory = scratch.close();
    let table = open(directory.path()).table(GROUP);
    assert_eq!((applied(&table), durable(&table)), (Some(3), 3));
}

#[test]
fn a_machine_opened_again_does_not_take_unflushed_writes_for_durable() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    let again = scratch.state.table(GROUP);
    assert_eq!((applied(&again), durable(&again)), (Some(3), 0));
}

#[test]
fn an_empty_batch_moves_the_position() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    apply_nothing(&mut table, 4);
    assert_eq!(applied(&table), Some(4));
}

fn apply_nothing(table: &mut TableMachine, index: u64) {
    use shardhost_groups::machine::ApplyBatch;
    let last = LogPosition::new(1, index);
    table.apply(&mut ApplyBatch::new(GROUP, last, &mut [])).unwrap();
}

#[test]
fn the_state_becomes_durable_by_itself_after_enough_bytes() {
    let options = StateDbOptions { flush_bytes: 1, ..StateDbOptions::small().flushed_by_hand() };
    becomes_durable(options);
}

#[test]
fn the_state_becomes_durable_by_itself_after_a_while() {
    let mut options = StateDbOptions::small().flushed_by_hand();
    options.flush_interval = Duration::from_millis(1);
    becomes_durable(options);
}

fn becomes_durable(options: StateDbOptions) {
    let directory = tempfile::TempDir::new().unwrap();
    let state = StateDb::open(directory.path(), options).unwrap();
    let mut flushes = state.flushes();
    let mut table = state.table(GROUP);
    put_all(&mut table, 1..=3);
    let deadline = Instant::now() + Duration::from_secs(20);
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
        while durable(&table) < 3 {
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::time::timeout(left, flushes.changed()).await.unwrap().unwrap();
        }
    });
}

#[test]
fn flushes_during_writes_never_claim_more_than_a_crash_leaves() {
    const FLUSHES: usize = 50;
    let scratch = Scratch::new();
    let (begun, stop) = (Barrier::new(2), AtomicBool::new(false));
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut table = scratch.state.table(GROUP);
            put_all(&mut table, 1..=1);
            begun.wait();
            let put = |index: &u64| put_all(&mut table, *index..=*index);
            (2..).inspect(put).find(|_| stop.load(Ordering::Relaxed)).unwrap()
        });
        begun.wait();
        (0..FLUSHES).for_each(|_| scratch.state.flush_now().unwrap());
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let claimed = durable(&scratch.state.table(GROUP));
    let crashed = scratch.crashed();
    let table = crashed.state.table(GROUP);
    let found = applied(&table).unwrap();
    assert!(1 <= claimed && claimed <= found && found <= written, "{claimed} {found} {written}");
    assert_eq!(table.checksum().unwrap().items, found);
}

#[test]
fn a_snapshot_holds_the_state_of_its_moment() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=3);
    let before = table.checksum().unwrap();
    let writer = table.snapshot().unwrap();
    put_all(&mut table, 4..=9);
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();

    let other = Scratch::new();
    let mut copy = other.state.table(GroupId::new(1));
    restore(&mut copy, 3, &bytes);
    assert_eq!(copy.checksum().unwrap(), before);
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
    assert_eq!(target.checksum().unwrap(), source.checksum().unwrap());
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
    assert_eq!(copy.checksum().unwrap(), table.checksum().unwrap());
}

#[test]
fn an_empty_group_has_a_snapshot() {
    let scratch = Scratch::new();
    let snapshot = snapshot_of(&mut scratch.state.table(GROUP));
    let mut copy = scratch.state.table(GroupId::new(1));
    restore(&mut copy, 5, &snapshot);
    assert_eq!((applied(&copy), copy.checksum().unwrap().items), (Some(5), 0));
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
    assert!(table.checksum().unwrap().items > 0, "the restore had written something");
    assert_eq!((applied(&table), durable(&table)), (None, 0));
    assert_eq!(table.checksum().unwrap().items, 0, "leftovers would mix with a replay");
    restore(&mut table, 40, &snapshot);
    assert_eq!(table.checksum().unwrap(), source.checksum().unwrap());
    assert_eq!(applied(&table), Some(40));
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
    assert_eq!((applied(&table), table.checksum().unwrap().items), (Some(3), 3));
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
fn a_destroyed_group_never_comes_back() {
    let scratch = Scratch::new();
    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=3);
    scratch.state.flush_now().unwrap();
    scratch.state.destroy(GROUP).unwrap();

    let mut commands = [];
    let last = LogPosition::new(1, 4);
    let mut batch = shardhost_groups::machine::ApplyBatch::new(GROUP, last, &mut commands);
    let fault = table.apply(&mut batch).unwrap_err();
    assert!(fault.message.contains("destroyed"), "{fault}");

    for state in [&scratch.state, &scratch.crashed().state] {
        let table = state.table(GROUP);
        assert_eq!((applied(&table), table.checksum().unwrap().items), (None, 0));
    }
}

/// A flush takes milliseconds, and a host begins ten thousand groups at once.
#[test]
fn a_group_that_left_nothing_begins_without_a_flush() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GroupId::new(8)), 1..=3);
    let flushes = scratch.state.flushes();
    let before = *flushes.borrow();
    scratch.state.make_empty(GROUP).unwrap();
    assert_eq!(*flushes.borrow(), before);
    assert_eq!(applied(&scratch.state.table(GROUP)), None);
}

#[test]
fn what_an_earlier_group_left_is_gone_for_good_when_the_next_one_begins() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    scratch.state.flush_now().unwrap();
    scratch.state.make_empty(GROUP).unwrap();
    for state in [&scratch.state, &scratch.crashed().state] {
        let table = state.table(GROUP);
        assert_eq!((applied(&table), table.checksum().unwrap().items), (None, 0));
    }
}

/// As after a flush that failed: what is seen is not what a crash would leave.
#[test]
fn a_removal_that_is_not_durable_is_made_so_before_the_next_group_begins() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    scratch.state.flush_now().unwrap();
    scratch.state.shared.remove(Space::new(GROUP)).unwrap();
    assert_eq!(applied(&scratch.crashed().state.table(GROUP)), Some(3));
    scratch.state.make_empty(GROUP).unwrap();
    assert_eq!(applied(&scratch.crashed().state.table(GROUP)), None);
}

#[test]
fn a_group_is_not_opened_as_another_kind() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    let fault = scratch.state.queue(GROUP).applied().unwrap_err();
    assert!(fault.message.contains("is of kind 1, not 2"), "{fault}");
}

#[test]
fn a_directory_is_opened_by_one_process_at_a_time() {
    let scratch = Scratch::new();
    let second = StateDb::open(scratch.path(), StateDbOptions::small());
    assert!(matches!(second, Err(StateDbError::Open { .. })), "{second:?}");
}

#[test]
fn a_directory_of_another_format_is_refused() {
    let directory = tempfile::TempDir::new().unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    rocksdb::DB::open(&options, directory.path()).unwrap().put(keys::FORMAT_KEY, [9]).unwrap();
    let opened = StateDb::open(directory.path(), StateDbOptions::small());
    let Err(StateDbError::Format { found: 9, expected: 1, .. }) = opened else {
        panic!("{opened:?}");
    };
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

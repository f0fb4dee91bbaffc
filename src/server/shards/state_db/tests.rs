use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shardhost_groups::machine::{Progress, StateMachine};
use shardhost_storage::{GroupId, LogPosition};

use super::*;
use crate::disk_space::DiskSpace;
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
    assert_eq!(table.checksum(&Progress::default()).unwrap().items, 3);
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
    assert_eq!(table.checksum(&Progress::default()).unwrap().items, found);
}

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
        assert_eq!(
            (applied(&table), table.checksum(&Progress::default()).unwrap().items),
            (None, 0)
        );
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
        assert_eq!(
            (applied(&table), table.checksum(&Progress::default()).unwrap().items),
            (None, 0)
        );
    }
}

/// As after a flush that failed: what is seen is not what a crash would leave.
#[test]
fn a_removal_that_is_not_durable_is_made_so_before_the_next_group_begins() {
    let scratch = Scratch::new();
    put_all(&mut scratch.state.table(GROUP), 1..=3);
    scratch.state.flush_now().unwrap();
    scratch.state.cells.of(GROUP).unwrap().shared.remove(keys::Space::new(GROUP)).unwrap();
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

/// Two groups of one cell, each with more than a block of records, closed and on disk. Returns the
/// directory and the file that holds them.
fn two_on_disk() -> (tempfile::TempDir, PathBuf) {
    let scratch = Scratch::new();
    for group in [GROUP, NEIGHBOUR] {
        let mut table = scratch.state.table(group);
        let value = noise(group.get(), 1_000);
        let put = |key: u64| TableCommand::Put { key: &key.to_be_bytes(), value: &value }.encode();
        apply(&mut table, 1, &(1..=100).map(put).collect::<Vec<_>>());
    }
    assert_eq!(scratch.state.cell_of(GROUP), scratch.state.cell_of(NEIGHBOUR));
    let cell = scratch.path().join(format!("cell-{:02}", scratch.state.cell_of(GROUP)));
    let directory = scratch.close();
    let is_table = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
    let files = std::fs::read_dir(&cell).unwrap().map(|file| file.unwrap().path());
    let largest = files.filter(is_table).max_by_key(|path| path.metadata().unwrap().len());
    (directory, largest.unwrap())
}

const NEIGHBOUR: GroupId = GroupId::new(GROUP.get() + 2);

/// Bytes that no compression makes smaller.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

/// Damages the first block that holds this value.
fn damage(file: &Path, value: &[u8]) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = bytes.windows(value.len()).position(|window| window == value).expect("the value");
    bytes[at] ^= 0xff;
    std::fs::write(file, bytes).unwrap();
}

fn items(state: &Arc<StateDb>, group: GroupId) -> Result<u64, String> {
    let sum = state.table(group).checksum(&Progress::default());
    sum.map(|sum| sum.items).map_err(|error| error.to_string())
}

#[test]
fn damage_to_a_group_costs_that_group_alone() {
    let (directory, file) = two_on_disk();
    damage(&file, &noise(GROUP.get(), 1_000));
    let state = open(directory.path());
    let cell = state.cell_of(GROUP);
    assert!(state.damaged_cells().borrow().is_empty(), "nobody has looked");
    let fault = items(&state, GROUP).unwrap_err();
    assert!(fault.contains("is damaged"), "{fault}");
    assert_eq!(items(&state, NEIGHBOUR), Ok(100));
    assert!(state.damaged_cells().borrow().contains(&cell));

    let table = state.table(NEIGHBOUR);
    let busy = state.recover(cell, &[GROUP, NEIGHBOUR]).unwrap_err();
    assert_eq!(busy, StateDbError::Busy { cell });
    drop(table);
    let salvaged = state.recover(cell, &[GROUP, NEIGHBOUR]).unwrap();
    assert_eq!(salvaged.lost, [GROUP].into());
    assert!(salvaged.aside.join("CURRENT").exists(), "what was there is kept");
    assert!(state.damaged_cells().borrow().is_empty());
    assert_eq!(applied(&state.table(GROUP)), None, "it is at no position");
    assert_eq!((items(&state, NEIGHBOUR), applied(&state.table(NEIGHBOUR))), (Ok(100), Some(100)));
    put_all(&mut state.table(GROUP), 1..=3);
    drop(state);
    let state = open(directory.path());
    assert_eq!((items(&state, GROUP), items(&state, NEIGHBOUR)), (Ok(3), Ok(100)));
}

/// A compaction of the damaged cell meets the damage, and stops it.
fn meet_damage(state: &Arc<StateDb>) {
    // A second file, of some of the same keys: the first is read to be merged with it.
    apply(&mut state.table(NEIGHBOUR), 101, &(1..=100).map(put).collect::<Vec<_>>());
    state.flush_now().unwrap();
    state.cells.of(NEIGHBOUR).unwrap().shared.db.compact_range(None::<&[u8]>, None::<&[u8]>);
}

#[test]
fn a_compaction_that_meets_damage_stops_the_cell_and_no_other() {
    let (directory, file) = two_on_disk();
    damage(&file, &noise(GROUP.get(), 1_000));
    let state = open(directory.path());
    let (mut neighbour, mut other) = (state.table(NEIGHBOUR), state.table(GroupId::new(8)));
    meet_damage(&state);
    let mut command = [shardhost_groups::machine::Command::new(LogPosition::new(1, 201), put(1))];
    let last = LogPosition::new(1, 201);
    let mut batch = shardhost_groups::machine::ApplyBatch::new(NEIGHBOUR, last, &mut command);
    let fault = neighbour.apply(&mut batch).unwrap_err();
    assert_eq!(fault.kind, shardhost_groups::machine::FaultKind::Damaged, "{fault}");
    put_all(&mut other, 1..=3);
    drop(neighbour);
    let salvaged = state.recover(state.cell_of(GROUP), &[GROUP, NEIGHBOUR]).unwrap();
    assert_eq!(salvaged.lost, [GROUP].into());
    assert_eq!(items(&state, NEIGHBOUR), Ok(100));
    put_all(&mut state.table(NEIGHBOUR), 201..=201);
}

/// The state of a destroyed replica remains where it cannot be removed, and may be removed later.
#[test]
fn a_state_that_cannot_be_removed_keeps_no_cell_from_being_recovered() {
    let (directory, file) = two_on_disk();
    damage(&file, &noise(GROUP.get(), 1_000));
    let state = open(directory.path());
    let mut remains = state.table(GROUP);
    meet_damage(&state);
    let fault = remains.removed().unwrap_err();
    assert!(fault.message.contains("damaged"), "{fault}");
    let salvaged = state.recover(state.cell_of(GROUP), &[NEIGHBOUR]).unwrap();
    assert_eq!(salvaged.lost, BTreeSet::new());
    assert_eq!(items(&state, NEIGHBOUR), Ok(100));
    remains.removed().unwrap();
    assert_eq!(items(&state, GROUP), Ok(0));
}

/// What cannot be opened for now, as by a process with too many files, is not lost.
#[test]
fn what_passes_is_not_taken_for_loss() {
    let (directory, file) = two_on_disk();
    let cell = file.parent().unwrap();
    let state = open(directory.path());
    let (options, pools) = (state.cells.options(), state.cells.pools());
    let disk = &state.cells.common().disk;
    // Another user has it open: its lock is refused.
    let outcome = salvage::salvage(cell, &[GROUP, NEIGHBOUR], options, pools, disk);
    assert!(matches!(outcome, Err(StateDbError::Passing { .. })), "{outcome:?}");
    assert!(!cell.with_extension("new").exists(), "what was begun holds no room");
    assert!(!cell.with_extension("damaged-1").exists());
    assert_eq!(items(&state, GROUP), Ok(100));
}

/// Little is 10 MiB of this disk.
fn disk_with(free_mib: u64) -> Option<DiskSpace> {
    Some(DiskSpace { free: free_mib << 20, all: 200 << 20 })
}

#[test]
fn a_cell_for_which_there_is_no_room_stays_open_and_nothing_is_written() {
    let (directory, file) = two_on_disk();
    let cell = file.parent().unwrap();
    damage(&file, &noise(GROUP.get(), 1_000));
    let state = open(directory.path());
    assert!(items(&state, GROUP).is_err());
    let index = state.cell_of(GROUP);
    let neighbour = state.table(NEIGHBOUR);
    *state.cells.common().disk.pretended.lock() = disk_with(10);
    let refused = state.has_room_to_recover(index).unwrap_err();
    assert!(matches!(refused, StateDbError::NoRoom { available: 0, .. }), "{refused:?}");
    assert!(refused.to_string().contains("may be taken"), "{refused}");
    let refused = state.recover(index, &[GROUP, NEIGHBOUR]).unwrap_err();
    assert!(matches!(refused, StateDbError::NoRoom { .. }), "it is not even closed: {refused:?}");
    assert_eq!(neighbour.checksum(&Progress::default()).unwrap().items, 100);
    assert!(!cell.with_extension("new").exists());

    assert!(state.note_unrecovered(index, refused.to_string()), "said for the first time");
    assert!(!state.note_unrecovered(index, refused.to_string()));
    drop(neighbour);
    *state.cells.common().disk.pretended.lock() = disk_with(100);
    state.recover(index, &[GROUP, NEIGHBOUR]).unwrap();
    assert!(state.unrecovered().is_empty());
}

#[test]
fn a_restore_leaves_the_log_what_it_needs_and_is_done_when_there_is_room() {
    let scratch = Scratch::new();
    let mut source = scratch.state.table(GroupId::new(1));
    put_all(&mut source, 1..=3);
    let snapshot = snapshot_of(&mut source);
    let mut table = scratch.state.table(GROUP);
    put_all(&mut table, 1..=9);
    let disk = &scratch.state.cells.common().disk.pretended;
    *disk.lock() = disk_with(5);
    let fault = table.restore(LogPosition::new(1, 30), &mut &snapshot[..]).unwrap_err();
    assert_eq!(fault.kind, shardhost_groups::machine::FaultKind::Passing, "{fault}");
    assert_eq!(
        (applied(&table), table.checksum(&Progress::default()).unwrap().items),
        (Some(9), 9),
        "as it was"
    );
    *disk.lock() = disk_with(6);
    restore(&mut table, 30, &snapshot);
    assert_eq!(
        (applied(&table), table.checksum(&Progress::default()).unwrap().items),
        (Some(30), 3)
    );
}

#[test]
fn what_an_unfinished_recovery_left_holds_no_room_at_the_next_start() {
    let (directory, file) = two_on_disk();
    let cell = file.parent().unwrap();
    copy_directory(cell, &cell.with_extension("new"));
    assert_eq!(items(&open(directory.path()), GROUP), Ok(100));
    assert!(!cell.with_extension("new").exists());
}

#[test]
fn a_cell_that_cannot_be_opened_keeps_no_other_from_it() {
    let (directory, file) = two_on_disk();
    let current = file.with_file_name("CURRENT");
    let manifest = std::fs::read_to_string(&current).unwrap();
    let manifest = file.with_file_name(manifest.trim());
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[20] ^= 0xff;
    std::fs::write(&manifest, bytes).unwrap();
    let state = open(directory.path());
    let fault = state.table(GROUP).applied().unwrap_err();
    assert_eq!(fault.kind, shardhost_groups::machine::FaultKind::Damaged, "{fault}");
    put_all(&mut state.table(GroupId::new(8)), 1..=3);
    let cell = state.cell_of(GROUP);
    assert!(state.damaged_cells().borrow().contains(&cell));
    let salvaged = state.recover(cell, &[GROUP, NEIGHBOUR]).unwrap();
    assert_eq!(salvaged.lost, [GROUP, NEIGHBOUR].into());
    put_all(&mut state.table(GROUP), 1..=3);
}

#[test]
fn a_cell_that_lost_files_keeps_no_other_from_being_opened() {
    let losses: [fn(&Path); 2] = [
        |cell| std::fs::remove_file(cell.join("CURRENT")).unwrap(),
        |cell| std::fs::write(cell.join("CURRENT"), "MANIFEST-999999\n").unwrap(),
    ];
    for lose in losses {
        let (directory, file) = two_on_disk();
        lose(file.parent().unwrap());
        let state = open(directory.path());
        let fault = state.table(GROUP).applied().unwrap_err();
        assert_eq!(fault.kind, shardhost_groups::machine::FaultKind::Damaged, "{fault}");
        put_all(&mut state.table(GroupId::new(8)), 1..=3);
        let salvaged = state.recover(state.cell_of(GROUP), &[GROUP, NEIGHBOUR]).unwrap();
        let kept = salvaged.aside.join(file.file_name().unwrap());
        assert!(kept.exists(), "what was there is kept");
        put_all(&mut state.table(GROUP), 1..=3);
    }
}

/// A group in a file of its own is not lost with the file of another, once both are compacted.
#[test]
fn a_file_that_cannot_be_used_costs_the_groups_that_are_in_it() {
    let losses: [fn(&Path); 3] = [
        |file| {
            let mut bytes = std::fs::read(file).unwrap();
            let at = bytes.len() - 20;
            bytes[at] ^= 0xff;
            std::fs::write(file, bytes).unwrap();
        },
        |file| std::fs::remove_file(file).unwrap(),
        |file| std::fs::write(file, b"short").unwrap(),
    ];
    for lose in losses {
        let scratch = Scratch::new();
        let mut files = Vec::new();
        let cell = scratch.path().join(format!("cell-{:02}", scratch.state.cell_of(GROUP)));
        for group in [GROUP, NEIGHBOUR] {
            apply(&mut scratch.state.table(group), 1, &(1..=100).map(put).collect::<Vec<_>>());
            scratch.state.flush_now().unwrap();
            // Files of the newest level are all needed to read any group.
            let open = scratch.state.cells.of(group).unwrap();
            open.shared.db.compact_range(None::<&[u8]>, None::<&[u8]>);
            let known: Vec<_> =
                std::fs::read_dir(&cell).unwrap().map(|f| f.unwrap().path()).collect();
            let is_new = |path: &PathBuf| {
                path.extension().is_some_and(|extension| extension == "sst")
                    && !files.contains(path)
            };
            let new = known.into_iter().filter(is_new).max().unwrap();
            files.push(new);
        }
        let directory = scratch.close();
        lose(&files[1]);
        let state = open(directory.path());
        let salvaged = state.recover(state.cell_of(GROUP), &[GROUP, NEIGHBOUR]).unwrap();
        assert_eq!(salvaged.lost, [NEIGHBOUR].into());
        assert_eq!(items(&state, GROUP), Ok(100));
    }
}

#[test]
fn damage_that_comes_again_and_again_is_left_to_an_operator() {
    let (directory, _) = two_on_disk();
    let state = open(directory.path());
    let cell = state.cell_of(GROUP);
    for _ in 0..3 {
        state.recover(cell, &[GROUP, NEIGHBOUR]).unwrap();
    }
    let refused = state.recover(cell, &[GROUP, NEIGHBOUR]).unwrap_err();
    assert!(refused.to_string().contains("stand beside"), "{refused}");
}

#[test]
fn a_crash_between_the_steps_of_a_recovery_leaves_one_cell_or_the_other() {
    let (directory, file) = two_on_disk();
    let cell = file.parent().unwrap().to_owned();
    let with = |suffix: &str| cell.with_extension(suffix);
    // The new one is ready, the old one still stands.
    copy_directory(&cell, &with("ready"));
    assert_eq!(items(&open(directory.path()), GROUP), Ok(100));
    assert!(with("damaged-1").exists() && !with("ready").exists());
    // The old one was put aside already.
    std::fs::rename(&cell, with("ready")).unwrap();
    assert_eq!(items(&open(directory.path()), GROUP), Ok(100));
    // A new one that was not finished counts for nothing.
    std::fs::create_dir(with("new")).unwrap();
    assert_eq!(items(&open(directory.path()), GROUP), Ok(100));
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[test]
fn the_state_of_an_earlier_version_opens_as_one_cell() {
    let (directory, file) = two_on_disk();
    let earlier = tempfile::TempDir::new().unwrap();
    let earlier = earlier.path().join("state");
    copy_directory(file.parent().unwrap(), &earlier);
    let state = open(&earlier);
    assert_eq!((items(&state, GROUP), items(&state, NEIGHBOUR)), (Ok(100), Ok(100)));
    assert_eq!(state.cell_of(GROUP), state.cell_of(GroupId::new(8)));
    state.recover(0, &[GROUP, NEIGHBOUR]).unwrap();
    assert_eq!(items(&state, GROUP), Ok(100));
    drop((state, directory));
    assert_eq!(items(&open(&earlier), NEIGHBOUR), Ok(100));
}

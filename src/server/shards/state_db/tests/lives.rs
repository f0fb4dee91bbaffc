//! Groups that end and come again, and whose a directory is.

use shardhost_groups::machine::Progress;
use shardhost_groups::machine::StateMachine as _;
use shardhost_storage::{GroupId, LogPosition};

use super::super::*;
use super::{NEIGHBOUR, applied, copy_directory, items, put_all, two_on_disk};
use crate::shards::testing::{GROUP, Scratch, open};

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

//! What needs room on the disk asks for it first, and leaves nothing where there is none.

use shardhost_groups::machine::Progress;
use shardhost_groups::machine::StateMachine as _;
use shardhost_storage::{GroupId, LogPosition};

use super::super::*;
use super::copy_directory;
use super::{NEIGHBOUR, applied, damage, items, noise, put_all, two_on_disk};
use crate::disk_space::DiskSpace;
use crate::shards::testing::{GROUP, Scratch, open, restore, snapshot_of};

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

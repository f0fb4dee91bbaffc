//! Damage costs the groups that it is in, and no other cell.

use shardhost_groups::machine::StateMachine as _;
use shardhost_storage::{GroupId, LogPosition};

use super::super::*;
use super::copy_directory;
use super::{NEIGHBOUR, applied, damage, items, meet_damage, noise, put, put_all, two_on_disk};
use crate::shards::testing::{GROUP, Scratch, apply, open};

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

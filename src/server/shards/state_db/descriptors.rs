//! Whether the process may open files again, before a database is closed to be opened anew.

use std::fs::File;
use std::path::Path;

use super::error::StateDbError;

/// What a database opens at least, and a little more.
const NEEDED: usize = 16;

/// Whether so many files can be opened. Blocks for the disk.
pub(crate) fn are_free(directory: &Path) -> Result<(), StateDbError> {
    let opened: Result<Vec<File>, _> = (0..NEEDED).map(|_| File::open(directory)).collect();
    opened.map(drop).map_err(|error| StateDbError::Passing {
        action: "waiting for file descriptors",
        message: format!("{NEEDED} files cannot be opened: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use shardhost_groups::machine::{ApplyBatch, ApplyFault, Command, FaultKind, StateMachine};
    use shardhost_storage::LogPosition;
    use shardhost_storage::testing::process::{is_alone, limit_files};

    use super::*;
    use crate::shards::StateHealth;
    use crate::shards::table::{TableCommand, TableMachine};
    use crate::shards::testing::{GROUP, Scratch, open};

    fn put(table: &mut TableMachine, index: u64) -> Result<(), ApplyFault> {
        let put = TableCommand::Put { key: &index.to_be_bytes(), value: b"value" }.encode();
        let at = LogPosition::new(1, index);
        table.apply(&mut ApplyBatch::new(GROUP, at, &mut [Command::new(at, put)]))
    }

    fn applied(table: &TableMachine) -> u64 {
        table.applied().unwrap().unwrap().index.get()
    }

    /// RocksDB keeps a flush that found no descriptor for good: the cell is opened anew, and what it
    /// had not written comes again from the log.
    #[test]
    fn a_cell_whose_flush_found_no_descriptor_goes_on_once_it_is_opened_anew() {
        if !is_alone(
            module_path!(),
            "a_cell_whose_flush_found_no_descriptor_goes_on_once_it_is_opened_anew",
        ) {
            return;
        }
        let scratch = Scratch::new();
        let state = &scratch.state;
        let cell = state.cell_of(GROUP);
        let (health, halted) = (state.health(), state.halted_cells());
        let mut table = state.table(GROUP);
        put(&mut table, 1).unwrap();
        put(&mut table, 2).unwrap();
        state.flush_now().unwrap();
        put(&mut table, 3).unwrap();

        let before = limit_files(3);
        let refused = state.flush_now().unwrap_err();
        assert!(matches!(refused, StateDbError::Halted { .. }), "{refused}");
        assert!(matches!(&*health.borrow(), StateHealth::Waits(_)), "{:?}", *health.borrow());
        assert!(halted.borrow().contains(&cell));
        let fault = put(&mut table, 4).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Passing, "{fault}");
        assert_eq!(applied(&table), 3, "it is read as before");
        let early = state.reopen(cell).unwrap_err();
        assert!(matches!(early, StateDbError::Passing { .. }), "{early}");

        limit_files(before);
        let kept = state.flush_now().unwrap_err();
        assert!(matches!(kept, StateDbError::Halted { .. }), "{kept}");
        let busy = state.reopen(cell).unwrap_err();
        assert!(matches!(busy, StateDbError::Busy { .. }), "{busy}");
        drop(table);
        state.reopen(cell).unwrap();
        assert!(halted.borrow().is_empty());
        let mut table = state.table(GROUP);
        assert_eq!(applied(&table), 2, "what was flushed");
        put(&mut table, 3).unwrap();
        put(&mut table, 4).unwrap();
        state.flush_now().unwrap();
        assert_eq!(*health.borrow(), StateHealth::Well);
        drop(table);
        let directory = scratch.close();
        assert_eq!(applied(&open(directory.path()).table(GROUP)), 4);
    }

    #[test]
    fn descriptors_are_free_where_files_can_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        are_free(directory.path()).unwrap();
        let error = are_free(&directory.path().join("missing")).unwrap_err();
        assert!(matches!(error, StateDbError::Passing { .. }), "{error}");
    }
}

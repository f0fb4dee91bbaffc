//! What the tests of the machines share: a state in a temporary directory, and its crash image.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use shardhost_groups::machine::{Command, StateMachine, apply_all};
use shardhost_storage::{GroupId, LogPosition};
use tempfile::TempDir;

use super::state_db::{StateDb, StateDbOptions};

pub(crate) const GROUP: GroupId = GroupId::new(7);

/// A state that is flushed by hand only.
pub(crate) struct Scratch {
    pub(crate) state: Arc<StateDb>,
    directory: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self::open(TempDir::new().unwrap())
    }

    fn open(directory: TempDir) -> Self {
        let state = open(directory.path());
        Self { state, directory }
    }

    /// The state as a crash at this moment would leave it. Copied again while files come and go.
    pub(crate) fn crashed(&self) -> Self {
        loop {
            let image = TempDir::new().unwrap();
            let before = files_in(self.path());
            let whole = before
                .iter()
                .all(|name| fs::copy(self.path().join(name), image.path().join(name)).is_ok());
            if whole && files_in(self.path()) == before {
                return Self::open(image);
            }
        }
    }

    /// Closes the state and keeps its directory.
    pub(crate) fn close(self) -> TempDir {
        self.directory
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn files_in(directory: &Path) -> BTreeSet<OsString> {
    fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name()).collect()
}

pub(crate) fn open(path: &Path) -> Arc<StateDb> {
    StateDb::open(path, StateDbOptions::small().flushed_by_hand()).unwrap()
}

/// Applies commands as one batch that starts at `first`, in term 1, and returns the answers.
pub(crate) fn apply(machine: &mut impl StateMachine, first: u64, data: &[Bytes]) -> Vec<Bytes> {
    let mut commands: Vec<Command> = (first..)
        .zip(data)
        .map(|(index, data)| Command::new(LogPosition::new(1, index), data.clone()))
        .collect();
    let last = LogPosition::new(1, first + data.len() as u64 - 1);
    apply_all(machine, GROUP, last, &mut commands).unwrap();
    commands.iter().map(|command| command.response().clone()).collect()
}

pub(crate) fn snapshot_of(machine: &mut impl StateMachine) -> Vec<u8> {
    let mut bytes = Vec::new();
    machine.snapshot().unwrap().write_to(&mut bytes).unwrap();
    bytes
}

pub(crate) fn restore(machine: &mut impl StateMachine, index: u64, snapshot: &[u8]) {
    machine.restore(LogPosition::new(1, index), &mut Cursor::new(snapshot)).unwrap();
}

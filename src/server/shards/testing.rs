//! What the tests of the machines share: a state in a temporary directory, and its crash image.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
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
            let copy = |name: &PathBuf| {
                let to = image.path().join(name);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(self.path().join(name), to).is_ok()
            };
            if before.iter().all(copy) && files_in(self.path()) == before {
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

/// The files of a directory and of those in it, by their paths within.
fn files_in(directory: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut to_visit = vec![PathBuf::new()];
    while let Some(within) = to_visit.pop() {
        for entry in fs::read_dir(directory.join(&within)).unwrap() {
            let path = within.join(entry.unwrap().file_name());
            match directory.join(&path).is_dir() {
                true => to_visit.push(path),
                false => drop(files.insert(path)),
            }
        }
    }
    files
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

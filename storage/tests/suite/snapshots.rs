//! The rules of the snapshot seam, for each store.

use shardhost_storage::{MemorySnapshots, SnapshotFiles, SnapshotStore};
use shardhost_testing::snapshot_store::Subject;

mod memory {
    shardhost_testing::snapshot_store_tests!(super::InMemory::default());
}

mod files {
    shardhost_testing::snapshot_store_tests!(super::InFiles::default());
}

#[derive(Default)]
struct InMemory(MemorySnapshots);

impl Subject for InMemory {
    fn store(&self) -> &dyn SnapshotStore {
        &self.0
    }
    fn crash(&mut self) {
        self.0.crash();
    }
}

struct InFiles {
    store: SnapshotFiles,
    directory: tempfile::TempDir,
}

impl Default for InFiles {
    fn default() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { store: SnapshotFiles::open(directory.path()).expect("a new store"), directory }
    }
}

impl Subject for InFiles {
    fn store(&self) -> &dyn SnapshotStore {
        &self.store
    }
    fn crash(&mut self) {
        self.store = SnapshotFiles::open(self.directory.path()).expect("a store");
    }
}

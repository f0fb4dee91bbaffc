//! The stores under test.

use shardhost_storage::{LogStore, MemoryStore};
use shardhost_testing::log_store::Subject;

pub use shardhost_storage::testing::fixtures::*;

/// The store in memory.
#[derive(Default)]
pub struct InMemory(pub MemoryStore);

impl Subject for InMemory {
    fn store(&self) -> &dyn LogStore {
        &self.0
    }
    fn reopen(&mut self) {
        assert_eq!(self.0.crash(0), 0, "every write was synced");
    }
}

#[cfg(feature = "rocksdb")]
pub use on_disk::{OnDisk, identity, open, open_after_power_loss, small};

#[cfg(feature = "rocksdb")]
mod on_disk {
    use std::path::Path;

    use shardhost_storage::{
        BootId, Identity, LogError, LogStore, NodeId, RocksOptions, RocksStore,
    };
    use tempfile::TempDir;

    use super::Subject;

    /// The store on RocksDB, in a separate directory.
    pub struct OnDisk {
        store: Option<RocksStore>,
        directory: TempDir,
    }

    impl Default for OnDisk {
        fn default() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let store = open(directory.path()).expect("a new store");
            Self { store: Some(store), directory }
        }
    }

    impl OnDisk {
        /// The directory of the store.
        pub fn path(&self) -> &Path {
            self.directory.path()
        }
        /// The store itself.
        pub fn rocks(&self) -> &RocksStore {
            self.store.as_ref().expect("an open store")
        }
        /// Closes the store.
        pub fn close(&mut self) {
            self.store = None;
        }
        /// Opens the closed store.
        pub fn open(&mut self) -> Result<(), LogError> {
            self.store = Some(open(self.path())?);
            Ok(())
        }
    }

    impl Subject for OnDisk {
        fn store(&self) -> &dyn LogStore {
            self.rocks()
        }
        fn reopen(&mut self) {
            self.close();
            self.open().expect("a store that was closed");
        }
    }

    /// Whose stores the tests open.
    pub fn identity() -> Identity {
        Identity { cluster: "test".to_owned(), node: NodeId::must(1) }
    }

    /// Buffers that are full after little was written, so that tests reach the files behind.
    pub fn small() -> RocksOptions {
        RocksOptions {
            write_buffer_bytes: 1024 * 1024,
            block_cache_bytes: 1024 * 1024,
            run_bytes: 4096,
            ..RocksOptions::default()
        }
    }

    /// Opens a store of ours, in the same run of the machine.
    pub fn open(path: &Path) -> Result<RocksStore, LogError> {
        RocksStore::open(path, identity(), small())
    }

    /// Opens a store of ours as if the machine had been started anew since.
    pub fn open_after_power_loss(path: &Path) -> Result<RocksStore, LogError> {
        let current = BootId::current().map_or(0, BootId::get);
        let boot = BootId::new(current.wrapping_add(1).max(1));
        RocksStore::open(path, identity(), RocksOptions { boot, ..small() })
    }
}

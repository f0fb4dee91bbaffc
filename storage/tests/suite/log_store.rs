//! The rules of the log seam, for each store.

mod memory {
    shardhost_testing::log_store_tests!(crate::fixtures::InMemory::default());
}

#[cfg(feature = "rocksdb")]
mod rocks {
    shardhost_testing::log_store_tests!(crate::fixtures::OnDisk::default());
}

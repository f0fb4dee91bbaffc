//! What every store must do, and what only one of them can.
//!
//! | module | what it shows |
//! |---|---|
//! | `log_store` | the rules of the log seam, for each store |
//! | `snapshots` | the rules of the snapshot seam, for each store |
//! | `memory_faults` | crashes and faults on command of the stores in memory |
//! | `snapshot_files` | what can happen to files |
//! | `differential` | random batches: RocksDB's store against the one in memory |
//! | `crash`, `identity`, `damage` | how RocksDB's store treats damaged and foreign directories |
//! | `torn` | what becomes of a last write that cannot be read, and of crashes while it is cut |
//! | `mark` | the same when the mark beside the log knows of that write; nothing is cut before a refusal |
//! | `space` | its size on disk and in memory |
//!
//! The rules of both seams are part of the library: `shardhost_storage::testing`.

mod fixtures;
mod log_store;
mod memory_faults;
mod snapshot_files;
mod snapshots;

#[cfg(feature = "rocksdb")]
mod crash;
#[cfg(feature = "rocksdb")]
mod damage;
#[cfg(feature = "rocksdb")]
mod differential;
#[cfg(feature = "rocksdb")]
mod identity;
#[cfg(feature = "rocksdb")]
mod images;
#[cfg(feature = "rocksdb")]
mod mark;
#[cfg(feature = "rocksdb")]
mod space;
#[cfg(feature = "rocksdb")]
mod torn;

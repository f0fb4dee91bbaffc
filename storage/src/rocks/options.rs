//! How RocksDB is set up to be a log: large memtables, so that an entry is mostly truncated
//! before it would be flushed, and everything that grows has a bound.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options};
use shardhost_proto::version::ClusterVersion;

use super::boot::BootId;

const MIB: usize = 1024 * 1024;

/// What can be chosen about a [`super::RocksStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RocksOptions {
    /// Size of one memtable in bytes. Entries that are truncated before it is full never reach
    /// a table file. At least 64 KiB.
    pub write_buffer_bytes: usize,
    /// Memtables that may exist at once, the one being written included. At least 2; when all
    /// are full, writes wait for a flush.
    pub write_buffers: u8,
    /// Cache for blocks of table files, in bytes.
    pub block_cache_bytes: usize,
    /// Threads that flush and compact.
    pub background_jobs: u8,
    /// Table files that may be open at once.
    pub max_open_files: usize,
    /// Payload bytes after which a run of entries is ended and the next one started: a read in
    /// the middle of a run reads all of it.
    pub run_bytes: u64,
    /// Bytes written after which the high-water mark outside the database is renewed.
    pub high_water_bytes: u64,
    /// The identity of this run of the machine; `None`: not known. By default the system's. When it
    /// is not the one in which the log was written, power may have been lost since, and an
    /// unreadable last write is no proof of damage.
    pub boot: Option<BootId>,
    /// The version of a cluster that a program must know to open a store that is created with these
    /// options. By default the latest.
    pub version: ClusterVersion,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            write_buffer_bytes: 64 * MIB,
            write_buffers: 3,
            block_cache_bytes: 16 * MIB,
            background_jobs: 2,
            max_open_files: 512,
            run_bytes: 128 * 1024,
            high_water_bytes: 16 * MIB as u64,
            boot: BootId::current(),
            version: ClusterVersion::NEWEST,
        }
    }
}

impl RocksOptions {
    /// Options of the database. `mode` is the treatment of a log that does not end cleanly.
    pub(super) fn database(&self, mode: DBRecoveryMode) -> Options {
        let mut options = Options::default();
        options.set_wal_recovery_mode(mode);
        options.set_track_and_verify_wals_in_manifest(true);
        // Both column families share the write-ahead log: flushing them together lets go of it.
        options.set_atomic_flush(true);
        // There is one writer.
        options.set_allow_concurrent_memtable_write(false);
        options.set_enable_write_thread_adaptive_yield(false);
        options.set_max_background_jobs(i32::from(self.background_jobs));
        options.set_max_open_files(i32::try_from(self.max_open_files).unwrap_or(i32::MAX));
        options.set_max_total_wal_size(self.memtable_bytes() as u64);
        options.set_bytes_per_sync(MIB as u64);
        options.set_max_manifest_file_size(16 * MIB);
        options.set_max_log_file_size(4 * MIB);
        options.set_keep_log_file_num(4);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options
    }

    /// Options of every column family; clones share one cache.
    pub(super) fn column_family(&self) -> Options {
        let mut options = Options::default();
        options.set_write_buffer_size(self.write_buffer_bytes);
        options.set_max_write_buffer_number(i32::from(self.write_buffers.max(2)));
        options.set_compression_type(DBCompressionType::None);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_level_zero_file_num_compaction_trigger(4);
        options.set_target_file_size_base(self.write_buffer_bytes.max(MIB) as u64);
        options.set_max_bytes_for_level_base(4 * self.write_buffer_bytes.max(MIB) as u64);
        options.set_block_based_table_factory(&self.tables());
        options
    }

    fn tables(&self) -> BlockBasedOptions {
        let mut tables = BlockBasedOptions::default();
        tables.set_block_size(16 * 1024);
        tables.set_block_cache(&Cache::new_lru_cache(self.block_cache_bytes));
        tables.set_cache_index_and_filter_blocks(true);
        tables
    }

    fn memtable_bytes(&self) -> usize {
        self.write_buffer_bytes * usize::from(self.write_buffers.max(2))
    }
}

//! How much memory and how much of the disk the state of the shards may take.

use std::time::Duration;

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, LogLevel, Options, WriteBufferManager};

use super::cells::Pools;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Part of a memtable that is given to its bloom filter: a look-up of a key that is not there,
/// the usual one before a put, then seldom walks the skip list.
const MEMTABLE_BLOOM_RATIO: f64 = 0.02;
/// Of all memtables together, what one of a cell may be.
const MEMTABLE_SHARE: usize = 4;
const INFO_LOG_FILES: usize = 2;
const INFO_LOG_BYTES: usize = 4 * MIB;

/// How blocks on disk are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    None,
    /// LZ4: fast, and halves text.
    #[default]
    Lz4,
}

/// Limits of a [`super::StateDb`]. Memory at most: memtables, cache, and a few MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDbOptions {
    /// Databases that the groups are spread over, so that damage to one concerns few groups. Counts
    /// when the directory is new; 1 to 256.
    pub cells: usize,
    /// Bytes of memtables of all cells together; a cell has one of a quarter of it at most.
    pub memtable_bytes: usize,
    /// Memtables of a cell in memory: one being written, the others being flushed. At least 2.
    pub memtables: usize,
    /// Bytes of the cache of blocks read from disk.
    pub block_cache_bytes: usize,
    /// After so many written bytes the state is made durable.
    pub flush_bytes: u64,
    /// After this long with unflushed writes the state is made durable.
    pub flush_interval: Duration,
    /// Threads of RocksDB for flushes and compactions.
    pub background_jobs: usize,
    /// Files RocksDB holds open at most, about.
    pub max_open_files: usize,
    pub compression: Compression,
}

impl Default for StateDbOptions {
    /// For a host that has a few hundred MiB to spare.
    fn default() -> Self {
        Self {
            cells: 8,
            memtable_bytes: 256 * MIB,
            memtables: 4,
            block_cache_bytes: 128 * MIB,
            flush_bytes: 48 * MIB as u64,
            flush_interval: Duration::from_secs(5),
            background_jobs: 2,
            max_open_files: 512,
            compression: Compression::Lz4,
        }
    }
}

impl StateDbOptions {
    /// For tests, demos and small machines: under 32 MiB.
    #[must_use]
    pub fn small() -> Self {
        Self {
            cells: 2,
            memtable_bytes: 12 * MIB,
            memtables: 3,
            block_cache_bytes: 8 * MIB,
            flush_bytes: 3 * MIB as u64,
            max_open_files: 128,
            ..Self::default()
        }
    }

    /// Nothing becomes durable but by [`super::StateDb::flush_now`] and on close. For tests.
    #[must_use]
    pub const fn flushed_by_hand(mut self) -> Self {
        self.flush_bytes = u64::MAX;
        self.flush_interval = Duration::MAX;
        self
    }

    const fn write_buffer_bytes(&self) -> usize {
        self.memtable_bytes / MEMTABLE_SHARE
    }

    /// Free bytes of the disk with which a cell surely resumes that ran out of space: RocksDB waits until it
    /// finds as much as a memtable may be. The same again, for what others write meanwhile.
    pub(crate) const fn resumes_with(&self) -> u64 {
        2 * self.write_buffer_bytes() as u64
    }

    pub(crate) fn pools(&self) -> Pools {
        Pools {
            cache: Cache::new_lru_cache(self.block_cache_bytes),
            memtables: WriteBufferManager::new_write_buffer_manager(self.memtable_bytes, false),
        }
    }

    pub(crate) fn rocks(&self, pools: &Pools) -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(self.write_buffer_bytes());
        options.set_write_buffer_manager(&pools.memtables);
        options.set_max_write_buffer_number(as_c_int(self.memtables.max(2)));
        options.set_max_background_jobs(as_c_int(self.background_jobs.max(1)));
        options
            .set_max_open_files(as_c_int(self.max_open_files.div_ceil(self.cells.max(1)).max(16)));
        options.set_compression_type(match self.compression {
            Compression::None => DBCompressionType::None,
            Compression::Lz4 => DBCompressionType::Lz4,
        });
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_RATIO);
        options.set_memtable_whole_key_filtering(true);
        options.set_block_based_table_factory(&blocks(pools));
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_keep_log_file_num(INFO_LOG_FILES);
        options.set_max_log_file_size(INFO_LOG_BYTES);
        options.set_log_level(LogLevel::Warn);
        options
    }
}

fn blocks(pools: &Pools) -> BlockBasedOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&pools.cache);
    blocks.set_block_size(16 * KIB);
    blocks.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    // Counted against the cache, so that memory stays bounded whatever the data.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks
}

fn as_c_int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

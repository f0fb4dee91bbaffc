//! What RocksDB says of a database that is open. Asks for nothing that is read from disk.

use rocksdb::{ColumnFamily, DB, properties};

use crate::store::DatabaseStats;

/// A database at this moment, with these families beside the default one, which counts where it is used.
/// What RocksDB does not say counts as 0.
#[must_use]
pub fn database_stats<'a>(
    database: &'a DB,
    families: impl IntoIterator<Item = &'a ColumnFamily>,
) -> DatabaseStats {
    let whole = |property| database.property_int_value(property).ok().flatten().unwrap_or(0);
    let mut stats = DatabaseStats {
        table_bytes: whole(properties::LIVE_SST_FILES_SIZE),
        memtable_bytes: whole(properties::CUR_SIZE_ALL_MEM_TABLES),
        pending_compaction_bytes: whole(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
        // Of all families together.
        cache_bytes: whole(properties::BLOCK_CACHE_USAGE),
        running_compactions: whole(properties::NUM_RUNNING_COMPACTIONS),
        running_flushes: whole(properties::NUM_RUNNING_FLUSHES),
        background_errors: whole(properties::BACKGROUND_ERRORS),
        write_stops: whole(properties::IS_WRITE_STOPPED),
    };
    for family in families {
        let of =
            |property| database.property_int_value_cf(family, property).ok().flatten().unwrap_or(0);
        stats.table_bytes += of(properties::LIVE_SST_FILES_SIZE);
        stats.memtable_bytes += of(properties::CUR_SIZE_ALL_MEM_TABLES);
        stats.pending_compaction_bytes += of(properties::ESTIMATE_PENDING_COMPACTION_BYTES);
    }
    stats
}

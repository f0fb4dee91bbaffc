//! The log, and the databases under it and under the state.

use std::fmt;

use shardhost::host::Host;
use shardhost_groups::runtime::GroupsStats;
use shardhost_storage::DatabaseStats;

use super::families::{Families, Labels};

pub(crate) fn write(families: &mut Families<'_>, host: &Host, stats: &GroupsStats) -> fmt::Result {
    let writes = [(Labels::new(), host.runtime().log_writes().snapshot())];
    families.durations(
        "log_write_duration_seconds",
        "Writes of the log, each with its sync.",
        writes,
    )?;
    families.counter(
        "log_writes",
        "Batches written to the log, each with one sync.",
        stats.log_writes,
    )?;
    families.counter(
        "log_group_writes",
        "Writes of single groups in the batches of the log.",
        stats.log_group_writes,
    )?;
    families.counter("log_entries", "Entries written to the log.", stats.log_entries)?;
    families.counter("log_bytes", "Bytes of the entries written to the log.", stats.log_bytes)
}

/// The databases of a process, by what is in them.
///
/// # Errors
/// The sink failed.
pub fn write_database(
    families: &mut Families<'_>,
    databases: &[(&'static str, DatabaseStats)],
) -> fmt::Result {
    type Part = fn(&DatabaseStats) -> u64;
    let gauges: [(&str, &str, Part); 8] = [
        ("database_table_bytes", "Bytes of table files that are in use.", |one| one.table_bytes),
        ("database_memtable_bytes", "Memory for what is not in table files yet.", |one| {
            one.memtable_bytes
        }),
        ("database_cache_bytes", "Memory for blocks of table files.", |one| one.cache_bytes),
        (
            "database_pending_compaction_bytes",
            "Bytes that are to be rewritten before the table files are in order.",
            |one| one.pending_compaction_bytes,
        ),
        ("database_running_compactions", "Compactions under way.", |one| one.running_compactions),
        ("database_running_flushes", "Flushes under way.", |one| one.running_flushes),
        ("database_background_errors", "Flushes and compactions that failed.", |one| {
            one.background_errors
        }),
        ("database_write_stops", "Databases that take no writes now.", |one| one.write_stops),
    ];
    for (name, help, part) in gauges {
        let series = databases.iter().map(|(of, one)| (vec![("database", *of)], part(one) as f64));
        families.gauges(name, help, series)?;
    }
    Ok(())
}

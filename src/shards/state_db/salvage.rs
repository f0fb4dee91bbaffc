//! Getting a cell going again of which a part cannot be read.
//!
//! RocksDB reads every block again in some compaction, and stops the database at the first one that
//! is damaged. So the cell is written anew, without it: each group that can be read from one end to
//! the other is copied, the others are left out. What was there is put aside, never removed.
//!
//! A crash leaves the old cell, or the new one under its first name, which the next opening puts in its
//! place.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{DB, ReadOptions, WriteBatch};
use shardhost_storage::GroupId;

use super::cells::Pools;
use super::error::StateDbError;
use super::group::clearing;
use super::keys::Space;
use super::options::StateDbOptions;
use super::shared::{Common, Shared};

/// Copies are written in batches of about this size.
const BATCH_BYTES: usize = 1024 * 1024;
/// Cells that were put aside, at most: beyond it the disk is not worth another try.
const MAX_ASIDE: usize = 3;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Groups whose state could not be read. Nothing of it is there any more.
    pub lost: BTreeSet<GroupId>,
    /// Where the damaged cell was put.
    pub aside: PathBuf,
}

/// Writes the cell in `path` anew, with the groups that can be read of these. The cell is closed.
pub(crate) fn salvage(
    path: &Path,
    groups: &[GroupId],
    options: &StateDbOptions,
    pools: &Pools,
) -> Result<Salvaged, StateDbError> {
    let file_error = |error: io::Error| StateDbError::Io {
        action: "putting a damaged cell aside",
        message: error.to_string(),
    };
    let aside = place_aside(path).map_err(file_error)?;
    let Some(aside) = aside else {
        return Err(StateDbError::Damaged {
            action: "recovering a cell",
            message: format!("{MAX_ASIDE} damaged ones stand beside {} already", path.display()),
        });
    };
    let fresh = with_suffix(path, "new");
    remove(&fresh).map_err(file_error)?;
    let mut lost = BTreeSet::new();
    {
        let common = Arc::new(Common::alone());
        let into = Shared::open(&fresh, 0, options, pools, &common)?;
        match open_damaged(path, options, pools) {
            Ok(from) => {
                for group in groups {
                    copy(&from, &into, *group, &mut lost)?;
                }
            }
            Err(error) => {
                tracing::error!(%error, "nothing of a damaged cell can be read");
                lost.extend(groups);
            }
        }
        into.flush()?;
    }
    fs::rename(&fresh, with_suffix(path, "ready")).map_err(file_error)?;
    fs::rename(path, &aside).map_err(file_error)?;
    finish(path).map_err(file_error)?;
    Ok(Salvaged { lost, aside })
}

/// Puts a cell that was written anew in its place, if a crash came before.
pub(crate) fn finish(path: &Path) -> io::Result<()> {
    let ready = with_suffix(path, "ready");
    if !ready.exists() {
        return Ok(());
    }
    if path.exists() {
        let aside = place_aside(path)?.ok_or_else(|| {
            io::Error::other(format!("too many damaged cells stand beside {}", path.display()))
        })?;
        fs::rename(path, aside)?;
    }
    fs::rename(ready, path)?;
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn copy(
    from: &DB,
    into: &Shared,
    group: GroupId,
    lost: &mut BTreeSet<GroupId>,
) -> Result<(), StateDbError> {
    let (first, end) = Space::new(group).whole();
    let mut options = ReadOptions::default();
    options.set_iterate_range(first.to_vec()..end.to_vec());
    options.fill_cache(false);
    let mut records = from.raw_iterator_opt(options);
    records.seek_to_first();
    let mut batch = WriteBatch::default();
    while let Some((key, value)) = records.item() {
        batch.put(key, value);
        if batch.size_in_bytes() >= BATCH_BYTES {
            into.write(std::mem::take(&mut batch))?;
        }
        records.next();
    }
    match records.status() {
        Ok(()) => into.write(batch),
        Err(error) => {
            tracing::error!(%group, %error, "the state of this group cannot be read");
            lost.insert(group);
            into.write(clearing(Space::new(group)))
        }
    }
}

/// Without compactions, which would stop at the damage; and though some of its files cannot be used,
/// which costs the groups that are in them.
fn open_damaged(path: &Path, options: &StateDbOptions, pools: &Pools) -> Result<DB, StateDbError> {
    let mut rocks = options.rocks(pools);
    rocks.create_if_missing(false);
    rocks.set_disable_auto_compactions(true);
    rocks.set_skip_stats_update_on_db_open(true);
    let opened = DB::open(&rocks, path).or_else(|error| {
        tracing::warn!(%error, "a damaged cell is opened without the files that cannot be used");
        rocks.set_paranoid_checks(false);
        DB::open(&rocks, path)
    });
    opened.map_err(StateDbError::io("opening a damaged cell"))
}

/// Whether another cell may be put aside.
pub(crate) fn has_place(path: &Path) -> bool {
    place_aside(path).is_ok_and(|place| place.is_some())
}

/// Where the damaged cell goes; `None`: as many were put aside as may be.
fn place_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    for number in 1..=MAX_ASIDE {
        let place = with_suffix(path, &format!("damaged-{number}"));
        if !place.try_exists()? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

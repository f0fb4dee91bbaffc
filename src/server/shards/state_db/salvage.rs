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
use super::error::{StateDbError, damage_or_passing, is_damage};
use super::group::clearing;
use super::keys::Space;
use super::options::StateDbOptions;
use super::room::{self, Disk};
use super::shared::{Common, Shared, check_whole};

/// Copies are written in batches of about this size.
const BATCH_BYTES: usize = 1024 * 1024;
/// The name of a cell that is being written anew, behind that of the old one,
const NEW: &str = "new";
/// and of one that is whole and not in its place yet.
const READY: &str = "ready";
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
///
/// Only what the disk does not give counts as lost. Anything else is returned, and leaves the cell as
/// it was: a process that has no files left, or a disk that is full, could read it later.
pub(crate) fn salvage(
    path: &Path,
    groups: &[GroupId],
    options: &StateDbOptions,
    pools: &Pools,
    disk: &Disk,
) -> Result<Salvaged, StateDbError> {
    let aside = place_aside(path).map_err(file_error)?;
    let Some(aside) = aside else {
        return Err(StateDbError::Damaged {
            action: "recovering a cell",
            message: format!("{MAX_ASIDE} damaged ones stand beside {} already", path.display()),
        });
    };
    let (fresh, ready) = (with_suffix(path, NEW), with_suffix(path, READY));
    remove(&fresh).map_err(file_error)?;
    match path.try_exists().map_err(file_error)? {
        // Older than what stands there: it did not come to its place.
        true => remove(&ready),
        // All that there is.
        false if ready.try_exists().map_err(file_error)? => fs::rename(&ready, path),
        false => Ok(()),
    }
    .map_err(file_error)?;
    has_room(path, disk)?;
    let copying = Copying { fresh: &fresh, options, pools, disk };
    let written = copying
        .write(path, groups)
        .and_then(|lost| put_in_place(path, &fresh, &aside).map_err(file_error).map(|()| lost));
    if written.is_err()
        && let Err(error) = remove(&fresh)
    {
        let fresh = fresh.display();
        tracing::error!(%fresh, %error, "what was written of a damaged cell holds room: remove it");
    }
    written.map(|lost| Salvaged { lost, aside })
}

fn file_error(error: io::Error) -> StateDbError {
    let (action, message) = ("putting a damaged cell aside", error.to_string());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StateDbError::Passing { action, message }
        }
        _ => StateDbError::Io { action, message },
    }
}

/// Whether there is room for the cell in `path` to be written once more.
pub(crate) fn has_room(path: &Path, disk: &Disk) -> Result<(), StateDbError> {
    match room::bytes_of(path) {
        Ok(bytes) => disk.has_room_for_cell(bytes),
        // Nothing of it is there to be copied.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let action = "looking how large a damaged cell is";
            Err(StateDbError::Passing { action, message: error.to_string() })
        }
    }
}

/// The old cell goes aside, and the new one takes its place. An error leaves the old one where it was:
/// it is written again, so no older copy of it may take its place later.
fn put_in_place(path: &Path, fresh: &Path, aside: &Path) -> io::Result<()> {
    let ready = with_suffix(path, READY);
    fs::rename(fresh, &ready)?;
    let is_there = path.exists();
    let mut exchanged = if is_there { fs::rename(path, aside) } else { Ok(()) };
    if exchanged.is_ok() {
        exchanged = fs::rename(&ready, path);
        if exchanged.is_err() && is_there {
            report(fs::rename(aside, path), path);
        }
    }
    if let Err(error) = exchanged {
        if path.exists() {
            report(fs::rename(&ready, fresh), &ready);
        }
        return Err(error);
    }
    // Either name is good after a crash.
    report(sync_parent(path), path);
    Ok(())
}

/// Nothing more can be done about it here; the next start puts it right.
fn report(outcome: io::Result<()>, path: &Path) {
    if let Err(error) = outcome {
        tracing::error!(path = %path.display(), %error, "a cell is not where it should be");
    }
}

/// Puts a cell that was written anew in its place, if a crash came before, and removes one that was not
/// finished.
pub(crate) fn finish(path: &Path) -> io::Result<()> {
    let fresh = with_suffix(path, NEW);
    if let Err(error) = remove(&fresh) {
        let fresh = fresh.display();
        tracing::error!(%fresh, %error, "what an unfinished recovery left holds room: remove it");
    }
    let ready = with_suffix(path, READY);
    if !ready.try_exists()? {
        return Ok(());
    }
    if path.try_exists()? {
        let aside = place_aside(path)?.ok_or_else(|| {
            io::Error::other(format!("too many damaged cells stand beside {}", path.display()))
        })?;
        fs::rename(path, aside)?;
    }
    fs::rename(ready, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes the cells that were not finished, of the state in `directory`.
pub(crate) fn remove_unfinished(directory: &Path) -> io::Result<()> {
    // Of a single cell the directory itself is the old one.
    remove(&with_suffix(directory, NEW))?;
    let files = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.strip_suffix(NEW).is_some_and(|cell| is_cell(cell.strip_suffix('.'))) {
            remove(&file.path())?;
        }
    }
    Ok(())
}

fn is_cell(name: Option<&str>) -> bool {
    let number = name.and_then(|name| name.strip_prefix("cell-"));
    number.is_some_and(|number| number.parse::<usize>().is_ok())
}

/// Where a cell is written anew, and with what.
struct Copying<'a> {
    fresh: &'a Path,
    options: &'a StateDbOptions,
    pools: &'a Pools,
    disk: &'a Disk,
}

impl Copying<'_> {
    /// Copies what can be read of these groups; returns the others.
    fn write(&self, path: &Path, groups: &[GroupId]) -> Result<BTreeSet<GroupId>, StateDbError> {
        let common = Arc::new(Common::alone());
        let into = Shared::open(self.fresh, 0, self.options, self.pools, &common)?;
        let mut lost = BTreeSet::new();
        match open_damaged(path, self.options, self.pools) {
            Ok(from) => {
                for group in groups {
                    if !self.copy(&from, &into, *group)? {
                        lost.insert(*group);
                    }
                }
            }
            Err(error @ StateDbError::Damaged { .. }) => {
                tracing::error!(%error, "nothing of a damaged cell can be read");
                lost.extend(groups);
            }
            Err(error) => return Err(error),
        }
        into.flush()?;
        Ok(lost)
    }

    /// Copies a group; false: it is damaged, and nothing of it is in the copy.
    fn copy(&self, from: &DB, into: &Shared, group: GroupId) -> Result<bool, StateDbError> {
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
                self.disk.has_room_for_cell(BATCH_BYTES as u64)?;
                into.write(std::mem::take(&mut batch))?;
            }
            records.next();
        }
        match records.status().map_err(damage_or_passing("reading a damaged cell")) {
            Ok(()) => into.write(batch).map(|()| true),
            Err(error @ StateDbError::Damaged { .. }) => {
                tracing::error!(%group, %error, "the state of this group cannot be read");
                into.write(clearing(Space::new(group))).map(|()| false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Without compactions, which would stop at the damage; and though some of its files cannot be used,
/// which costs the groups that are in them.
fn open_damaged(path: &Path, options: &StateDbOptions, pools: &Pools) -> Result<DB, StateDbError> {
    const ACTION: &str = "opening a damaged cell";
    check_whole(path)?;
    if !path.join("CURRENT").try_exists().map_err(file_error)? {
        let message = format!("{} has no CURRENT", path.display());
        return Err(StateDbError::Damaged { action: ACTION, message });
    }
    let mut rocks = options.rocks(pools);
    rocks.create_if_missing(false);
    rocks.set_disable_auto_compactions(true);
    rocks.set_skip_stats_update_on_db_open(true);
    match DB::open(&rocks, path) {
        Err(error) if is_damage(&error) => {
            tracing::warn!(%error, "a damaged cell is opened without the files that cannot be used");
        }
        opened => return opened.map_err(damage_or_passing(ACTION)),
    }
    rocks.set_paranoid_checks(false);
    DB::open(&rocks, path).map_err(damage_or_passing(ACTION))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The old cell is written again: a copy that could not take its place never does.
    #[test]
    fn a_cell_that_cannot_be_put_aside_stays_and_its_copy_goes() {
        let directory = tempfile::tempdir().unwrap();
        let [cell, fresh] = ["cell-00", "cell-00.new"].map(|name| directory.path().join(name));
        for one in [&cell, &fresh] {
            fs::create_dir(one).unwrap();
        }
        fs::write(cell.join("old"), "").unwrap();
        let nowhere = directory.path().join("missing/cell-00.damaged-1");
        put_in_place(&cell, &fresh, &nowhere).unwrap_err();
        assert!(cell.join("old").exists());
        assert!(fresh.exists() && !with_suffix(&cell, READY).exists());

        let aside = with_suffix(&cell, "damaged-1");
        put_in_place(&cell, &fresh, &aside).unwrap();
        assert!(aside.join("old").exists() && cell.exists() && !fresh.exists());
    }

    #[test]
    fn only_what_a_recovery_left_is_removed_before_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        remove_unfinished(&state).unwrap();
        let names = ["cell-00", "cell-00.new", "cell-00.ready", "cell-01.damaged-1", "my.new"];
        for name in names {
            fs::create_dir_all(state.join(name)).unwrap();
            fs::write(state.join(name).join("file"), "").unwrap();
        }
        fs::create_dir(directory.path().join("state.new")).unwrap();
        remove_unfinished(&state).unwrap();
        let left = names.map(|name| state.join(name).exists());
        assert_eq!(left, [true, false, true, true, true]);
        assert!(!directory.path().join("state.new").exists());
    }
}

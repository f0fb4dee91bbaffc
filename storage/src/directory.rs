//! Directories that outlive a loss of power.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Creates a directory, and those above it, where there is none, durably: acknowledged data in it
/// must not vanish with it. An existing one is synced into its parent all the same, for an earlier
/// attempt may have died before its sync.
///
/// # Errors
/// When a directory can be neither made nor synced. A parent that may not be read is another user's,
/// and left alone.
pub fn create_directory(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if !path.is_dir() {
        if !parent.is_dir() {
            create_directory(parent)?;
        }
        fs::create_dir(path)?;
    }
    match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        parent => parent?.sync_all(),
    }
}

/// Replaces a file: after a crash it has either the old or the new content. Blocks for two syncs.
///
/// # Errors
/// When it cannot be written; the old content is still there, unless only the sync of the directory failed.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

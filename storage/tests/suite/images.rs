//! Copies of directories as a crash would leave them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Copies a directory, which may be one of an open store: every write was synced, so that this
/// is what a crash leaves. A copy during which files came or went is no image, so that it is
/// made again.
pub fn image(directory: &Path) -> TempDir {
    for _ in 0..1000 {
        let image = tempfile::tempdir().expect("a directory");
        if copy(directory, image.path()).is_ok() && names(directory) == names(image.path()) {
            return image;
        }
    }
    panic!("the files never rested");
}

/// Names of all files, with those in directories below.
pub fn names(directory: &Path) -> BTreeSet<PathBuf> {
    let mut names = BTreeSet::new();
    for file in fs::read_dir(directory).expect("a directory").flatten() {
        let name = PathBuf::from(file.file_name());
        if file.path().is_dir() {
            names.extend(names_below(&file.path(), &name));
        }
        names.insert(name);
    }
    names
}

fn names_below(directory: &Path, name: &Path) -> impl Iterator<Item = PathBuf> {
    names(directory).into_iter().map(|below| name.join(below))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for file in fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            fs::create_dir(&target)?;
            copy(&file.path(), &target)?;
        } else {
            fs::copy(file.path(), target)?;
        }
    }
    Ok(())
}

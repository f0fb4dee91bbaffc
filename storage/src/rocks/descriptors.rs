//! The files that RocksDB opens behind a write: a new log file, tables of a flush and of a compaction.
//!
//! A flush that finds no descriptor stops a database for good, and with it the host. What takes the
//! last descriptors is elsewhere in the process or in the system, and may give them back. So a
//! write waits for some, which to others looks like a disk that hangs: groups are led elsewhere.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

/// More than a flush and a compaction open at once.
const NEEDED: usize = 8;
/// Between two looks while there are too few.
const PAUSE: Duration = Duration::from_millis(100);
/// How long there being enough is taken for granted: a look costs as much as a small write.
const ENOUGH_FOR: Duration = Duration::from_millis(10);

/// When there were enough of them last.
#[derive(Debug, Default)]
pub(super) struct Descriptors(Mutex<Option<Instant>>);

impl Descriptors {
    /// Waits until so many files can be opened.
    pub(super) fn wait_for_some(&self, directory: &Path) {
        let mut enough = self.0.lock();
        if enough.is_some_and(|last| last.elapsed() < ENOUGH_FOR) {
            return;
        }
        let mut waited = false;
        while lacks(directory) {
            if !waited {
                tracing::error!(
                    "the log waits: the process, or the system, has as many files open as it may"
                );
            }
            waited = true;
            thread::sleep(PAUSE);
        }
        if waited {
            tracing::info!("the log is written again: files can be opened");
        }
        *enough = Some(Instant::now());
    }
}

/// Whether there are too few. Another fault of the disk is for the write to meet.
fn lacks(directory: &Path) -> bool {
    let opened: io::Result<Vec<File>> = (0..NEEDED).map(|_| File::open(directory)).collect();
    let errno = opened.err().and_then(|error| Errno::from_io_error(&error));
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::rocks::{Identity, RocksOptions, RocksStore};
    use crate::testing::fixtures::{GROUP, append, create};
    use crate::testing::process::{is_alone, limit_files};
    use crate::{LogBatch, LogStore, NodeId};

    fn batch(write: crate::GroupWrite) -> LogBatch {
        LogBatch { writes: vec![write] }
    }

    /// Memtables of 64 KiB are flushed again and again by such writes.
    #[test]
    fn a_log_whose_flush_would_find_no_descriptor_waits_and_goes_on() {
        if !is_alone(module_path!(), "a_log_whose_flush_would_find_no_descriptor_waits_and_goes_on")
        {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: "north".to_owned(), node: NodeId::must(1) };
        let options = RocksOptions { write_buffer_bytes: 64 << 10, ..RocksOptions::default() };
        let store = RocksStore::open(directory.path(), identity.clone(), options.clone()).unwrap();
        store.write(&batch(create(GROUP))).unwrap();

        let before = limit_files(3);
        // There were enough at the write before.
        thread::sleep(ENOUGH_FOR);
        let written = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let (store, done) = (&store, Arc::clone(&written));
            let writer = scope.spawn(move || {
                for at in 0..100 {
                    let indexes = at * 100 + 1..=(at + 1) * 100;
                    store.write(&batch(append(GROUP, 1, indexes))).unwrap();
                    done.store(true, Ordering::SeqCst);
                }
            });
            // As long as three looks.
            thread::sleep(3 * PAUSE);
            assert!(!written.load(Ordering::SeqCst), "nothing is written meanwhile");
            limit_files(before);
            writer.join().unwrap();
        });
        drop(store);
        let store = RocksStore::open(directory.path(), identity, options).unwrap();
        assert_eq!(store.load(GROUP).unwrap().unwrap().last.index.get(), 10_000);
    }
}

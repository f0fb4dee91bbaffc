//! Reads while the log writer continues: each sees the log as it was at some moment.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use shardhost_storage::testing::fixtures::{
    GROUP, append, compact, create, entries, load, read, write, write_all,
};
use shardhost_storage::{Entry, GroupId, LogError};

use super::Subject;

const READERS: usize = 2;

/// Runs `write` while threads repeat `check`, which returns whether it saw anything; the final
/// state can be seen.
fn while_writing(write: impl FnOnce(), check: impl Fn() -> bool + Sync) {
    let (begin, done) = (Barrier::new(READERS + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                begin.wait();
                let mut saw = false;
                while !(saw && done.load(Ordering::Relaxed)) {
                    saw |= check();
                }
            });
        }
        begin.wait();
        write();
        done.store(true, Ordering::Relaxed);
    });
}

fn terms(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.term.get()).collect()
}

/// A read sees the log as it was at one moment, while entries are overwritten.
pub fn a_read_never_mixes_what_was_overwritten_with_what_replaced_it(subject: &mut dyn Subject) {
    let store = subject.store();
    let other = GroupId::new(8);
    write_all(store, [create(GROUP), append(GROUP, 1, 1..=60), create(other)]);
    let overwrite = || {
        for term in 2..300 {
            // Several runs, the first of them inside an older one, and not always as many. The
            // other group makes the batch take its time.
            let (from, last) = (20 + term % 7, 42 + term % 20);
            let parts = [append(GROUP, term, from..=40), append(GROUP, term, 41..=last)];
            let slow = append(other, term, 1..=3000);
            write(store, [&parts[..], &[slow]].concat()).expect("written");
        }
    };
    while_writing(overwrite, || {
        let last = load(store, GROUP).last.index.get();
        let seen = match read(store, GROUP, 1, last + 1) {
            Err(LogError::OutOfRange { .. }) => return false,
            seen => seen.expect("readable"),
        };
        let indexes: Vec<_> = seen.iter().map(|entry| entry.index.get()).collect();
        assert_eq!(indexes, (1..=last).collect::<Vec<_>>());
        let tail = terms(&seen[26..]);
        assert_eq!(tail, vec![tail[0]; tail.len()], "entries of two moments");
        true
    });
}

/// A read sees the entries, or that they went, while the log is compacted.
pub fn a_read_sees_the_entries_or_that_they_are_compacted(subject: &mut dyn Subject) {
    let store = subject.store();
    write_all(store, [create(GROUP), append(GROUP, 1, 1..=20)]);
    let move_on = || {
        for round in 1..200 {
            write_all(store, [append(GROUP, 1, 20 * round + 1..=20 * round + 20)]);
            write_all(store, [compact(GROUP, 1, 20 * round - 5)]);
        }
    };
    while_writing(move_on, || {
        let persisted = load(store, GROUP);
        let (from, to) = (persisted.base.index.get() + 1, persisted.last.index.get() + 1);
        match read(store, GROUP, from, to) {
            Ok(seen) => assert_eq!(seen, entries(1, from..=to - 1)),
            Err(LogError::Compacted { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        true
    });
}

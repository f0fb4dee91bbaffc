//! The rules of [`SnapshotStore`], for stores of any maker.
//!
//! Each rule is a function that wants a new store. [`check`] runs all of them;
//! [`snapshot_store_tests!`](crate::snapshot_store_tests) makes a test of each. Rules panic when
//! they do not hold.
//!
//! ```
//! use shardhost_testing::snapshot_store::{self, Subject};
//! use shardhost_storage::{MemorySnapshots, SnapshotStore};
//!
//! #[derive(Default)]
//! struct Mine(MemorySnapshots);
//!
//! impl Subject for Mine {
//!     fn store(&self) -> &dyn SnapshotStore {
//!         &self.0
//!     }
//!     fn crash(&mut self) {
//!         // A store of files would be dropped and opened again here.
//!         self.0.crash();
//!     }
//! }
//!
//! snapshot_store::check(Mine::default);
//! ```

mod receptions;

use std::io::{Read, Write};

pub use receptions::*;

use crate::Running;
use shardhost_storage::testing::fixtures::GROUP;
use shardhost_storage::{GroupId, LogPosition, SnapshotError, SnapshotStore};

/// A snapshot store under test.
pub trait Subject {
    fn store(&self) -> &dyn SnapshotStore;
    /// The host dies and starts again: what was finished is there, nothing else is.
    fn crash(&mut self);
}

/// One rule: a test of a new store.
pub type Rule = fn(&mut dyn Subject);

/// Every rule by its name.
pub const RULES: &[(&str, Rule)] = crate::__snapshot_store_rules!(list);

/// Runs every rule on a separate store.
///
/// # Panics
/// When a rule does not hold; its name goes to standard error.
pub fn check<S: Subject>(mut new: impl FnMut() -> S) {
    for (name, rule) in RULES {
        let running = Running(name);
        rule(&mut new());
        drop(running);
    }
}

/// Makes a test of each rule of [`SnapshotStore`]; the expression makes a new
/// [`Subject`] for each.
#[macro_export]
macro_rules! snapshot_store_tests {
    ($subject:expr) => {
        $crate::__snapshot_store_rules!(tests $subject);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __snapshot_store_rules {
    ($mode:ident $($subject:tt)*) => {
        $crate::__each_snapshot_store_rule! {
            $mode ($($subject)*)
            a_finished_snapshot_is_read_as_it_was_written
            an_empty_snapshot_is_a_snapshot
            a_large_snapshot_written_in_pieces_is_one
            an_unfinished_snapshot_does_not_exist
            what_was_unfinished_in_a_crash_is_gone
            a_snapshot_can_be_written_again
            positions_are_listed_in_order_and_by_group
            snapshots_below_one_or_all_are_removed
            a_removed_snapshot_can_be_read_to_its_end
            snapshots_but_one_are_removed
            the_groups_with_snapshots_are_known
            an_unchecked_snapshot_can_be_read_from_anywhere
            a_received_snapshot_is_read_as_it_was_sent
            an_empty_snapshot_can_be_received
            a_reception_is_no_snapshot_before_it_is_finished
            s4_bytes_that_were_not_announced_are_refused
            more_bytes_than_announced_are_refused_at_once
            a_paused_reception_goes_on_where_it_stopped
            a_paused_reception_of_anything_else_is_forgotten
            a_later_snapshot_of_the_group_forgets_what_was_paused
            removing_the_snapshots_of_a_group_forgets_what_was_paused
            what_was_paused_is_gone_after_a_crash
            a_snapshot_that_is_here_already_is_not_wanted_again
            e9_absurd_sizes_are_refused_before_anything_is_written
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __each_snapshot_store_rule {
    (list () $($rule:ident)*) => {
        &[$((stringify!($rule), $rule as Rule),)*]
    };
    (tests ($subject:expr) $($rule:ident)*) => {
        $(
            #[test]
            fn $rule() {
                $crate::snapshot_store::$rule(&mut $subject);
            }
        )*
    };
}

/// Writes a whole snapshot.
pub fn put(
    store: &dyn SnapshotStore,
    group: GroupId,
    position: LogPosition,
    bytes: &[u8],
) -> (u64, u32) {
    let mut writer = store.create(group, position).expect("a writer");
    writer.write_all(bytes).expect("written");
    writer.finish().expect("finished")
}

/// Reads a whole snapshot.
pub fn get(
    store: &dyn SnapshotStore,
    group: GroupId,
    position: LogPosition,
) -> Result<Vec<u8>, SnapshotError> {
    let mut bytes = Vec::new();
    store.open(group, position)?.read_to_end(&mut bytes).expect("read");
    Ok(bytes)
}

const AT: LogPosition = LogPosition::new(3, 40);

fn missing(position: LogPosition) -> SnapshotError {
    SnapshotError::Missing { group: GROUP, position }
}

/// A snapshot has the bytes, size and checksum that it was finished with, also after a crash.
pub fn a_finished_snapshot_is_read_as_it_was_written(subject: &mut dyn Subject) {
    let (size, crc) = put(subject.store(), GROUP, AT, b"state");
    assert_eq!((size, crc), (5, crc32fast::hash(b"state")));
    for _ in 0..2 {
        let reader = subject.store().open(GROUP, AT).expect("a snapshot");
        assert_eq!((reader.size(), reader.crc()), (size, crc));
        assert_eq!(get(subject.store(), GROUP, AT), Ok(b"state".to_vec()));
        subject.crash();
    }
}

/// A snapshot may have no bytes.
pub fn an_empty_snapshot_is_a_snapshot(subject: &mut dyn Subject) {
    assert_eq!(put(subject.store(), GROUP, AT, b""), (0, 0));
    subject.crash();
    assert_eq!(get(subject.store(), GROUP, AT), Ok(vec![]));
}

/// Pieces and flushes make no difference.
pub fn a_large_snapshot_written_in_pieces_is_one(subject: &mut dyn Subject) {
    let whole: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    let mut writer = subject.store().create(GROUP, AT).expect("a writer");
    for (number, piece) in whole.chunks(7_001).enumerate() {
        writer.write_all(piece).expect("written");
        if number % 10 == 0 {
            writer.flush().expect("flushed");
        }
    }
    assert_eq!(writer.finish(), Ok((1_000_000, crc32fast::hash(&whole))));
    subject.crash();
    assert!(get(subject.store(), GROUP, AT) == Ok(whole));
}

/// Before it is finished it is invisible; dropped, it is gone.
pub fn an_unfinished_snapshot_does_not_exist(subject: &mut dyn Subject) {
    let mut writer = subject.store().create(GROUP, AT).expect("a writer");
    writer.write_all(&[1; 100_000]).expect("written");
    assert_eq!(get(subject.store(), GROUP, AT), Err(missing(AT)));
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    drop(writer);
    assert_eq!(get(subject.store(), GROUP, AT), Err(missing(AT)));
}

/// A crash leaves nothing of what was not finished, and its writer fails.
pub fn what_was_unfinished_in_a_crash_is_gone(subject: &mut dyn Subject) {
    let mut writer = subject.store().create(GROUP, AT).expect("a writer");
    writer.write_all(b"half").expect("written");
    subject.crash();
    assert!(writer.finish().is_err(), "its process is dead");
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    assert_eq!(get(subject.store(), GROUP, AT), Err(missing(AT)));
}

/// The later one replaces the earlier one.
pub fn a_snapshot_can_be_written_again(subject: &mut dyn Subject) {
    put(subject.store(), GROUP, AT, b"first");
    put(subject.store(), GROUP, AT, b"second");
    assert_eq!(subject.store().list(GROUP), Ok(vec![AT]));
    subject.crash();
    assert_eq!(get(subject.store(), GROUP, AT), Ok(b"second".to_vec()));
}

/// Each group's snapshots are listed ascending, and no other group's.
pub fn positions_are_listed_in_order_and_by_group(subject: &mut dyn Subject) {
    let positions = [(1, 9), (1, 10), (2, 100), (300, 101)].map(|(t, i)| LogPosition::new(t, i));
    let groups = [0, 1, 10, 11, u64::MAX].map(GroupId::new);
    for group in groups {
        for position in positions.into_iter().rev() {
            put(subject.store(), group, position, b"state");
        }
    }
    for _ in 0..2 {
        for group in groups {
            assert_eq!(subject.store().list(group), Ok(positions.to_vec()));
        }
        assert_eq!(subject.store().list(GroupId::new(2)), Ok(vec![]));
        subject.crash();
    }
}

/// Removing spares what is not below, and other groups.
pub fn snapshots_below_one_or_all_are_removed(subject: &mut dyn Subject) {
    let positions = [(1, 9), (1, 10), (2, 11)].map(|(term, at)| LogPosition::new(term, at));
    let other = GroupId::new(8);
    for position in positions {
        put(subject.store(), GROUP, position, b"state");
        put(subject.store(), other, position, b"state");
    }
    assert_eq!(subject.store().remove_below(GROUP, Some(positions[1])), Ok(()));
    assert_eq!(subject.store().list(GROUP), Ok(positions[1..].to_vec()));
    assert_eq!(get(subject.store(), GROUP, positions[0]), Err(missing(positions[0])));
    assert_eq!(subject.store().remove_below(GROUP, None), Ok(()));
    subject.crash();
    assert_eq!(subject.store().list(GROUP), Ok(vec![]));
    assert_eq!(subject.store().list(other), Ok(positions.to_vec()));
}

/// The reader of a snapshot continues when it is removed.
pub fn a_removed_snapshot_can_be_read_to_its_end(subject: &mut dyn Subject) {
    put(subject.store(), GROUP, AT, b"state");
    let mut reader = subject.store().open(GROUP, AT).expect("a snapshot");
    assert_eq!(subject.store().remove_below(GROUP, None), Ok(()));
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes, b"state");
}

/// All but one go, also later ones; other groups stay.
pub fn snapshots_but_one_are_removed(subject: &mut dyn Subject) {
    let positions = [(1, 9), (1, 10), (2, 11)].map(|(term, at)| LogPosition::new(term, at));
    let other = GroupId::new(8);
    for position in positions {
        put(subject.store(), GROUP, position, b"state");
        put(subject.store(), other, position, b"state");
    }
    assert_eq!(subject.store().remove_except(GROUP, Some(positions[1])), Ok(()));
    assert_eq!(subject.store().list(other), Ok(positions.to_vec()));
    assert_eq!(subject.store().remove_except(other, None), Ok(()));
    subject.crash();
    assert_eq!(subject.store().list(GROUP), Ok(vec![positions[1]]));
    assert_eq!(subject.store().list(other), Ok(vec![]));
}

/// Each group with a snapshot is named once, ascending.
pub fn the_groups_with_snapshots_are_known(subject: &mut dyn Subject) {
    for group in [u64::MAX, 0, 300].map(GroupId::new) {
        put(subject.store(), group, AT, b"state");
        put(subject.store(), group, LogPosition::new(4, 41), b"state");
    }
    subject.crash();
    let ascending = [0, 300, u64::MAX].map(GroupId::new).to_vec();
    assert_eq!(subject.store().groups(), Ok(ascending));
}

/// Opened without a check, it can be read from any byte.
pub fn an_unchecked_snapshot_can_be_read_from_anywhere(subject: &mut dyn Subject) {
    let whole = content(200_000);
    let (size, crc) = put(subject.store(), GROUP, AT, &whole);
    let mut reader = subject.store().open_unchecked(GROUP, AT).expect("a snapshot");
    assert_eq!((reader.size(), reader.crc()), (size, crc));
    for offset in [150_000, 0, 200_000, 1] {
        let mut rest = Vec::new();
        reader.read_from(offset).expect("within the snapshot");
        reader.read_to_end(&mut rest).expect("read");
        assert!(rest == whole[usize::try_from(offset).expect("small")..], "from {offset}");
    }
    assert!(reader.read_from(200_001).is_err());
    let absent = LogPosition::new(9, 9);
    let opened = subject.store().open_unchecked(GROUP, absent).map(|_| ());
    assert_eq!(opened, Err(missing(absent)));
}

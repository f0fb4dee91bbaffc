//! The rules of [`LogStore`], for stores of any maker.
//!
//! Each rule is a function that wants a new store. [`check`] runs all of them;
//! [`log_store_tests!`](crate::log_store_tests) makes a test of each. Rules panic when they do
//! not hold.
//!
//! A store of one's own, here one that only counts and leaves the work to another:
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use shardhost_testing::log_store::{self, Subject};
//! use shardhost_storage::{LogBatch, LogError, LogStore, MemoryStore};
//!
//! #[derive(Debug, Default)]
//! struct Counting {
//!     inner: MemoryStore,
//!     writes: AtomicU64,
//! }
//!
//! impl shardhost_storage::LogLayer for Counting {
//!     fn below(&self) -> &dyn LogStore {
//!         &self.inner
//!     }
//!     fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
//!         self.writes.fetch_add(1, Ordering::Relaxed);
//!         self.inner.write(batch)
//!     }
//! }
//!
//! impl Subject for Counting {
//!     fn store(&self) -> &dyn LogStore {
//!         self
//!     }
//!     fn reopen(&mut self) {
//!         // A store on disk would be dropped and opened again here.
//!         assert_eq!(self.inner.crash(0), 0, "every write was synced");
//!     }
//! }
//!
//! log_store::check(Counting::default);
//! ```
//!
//! In a file of tests, a test per rule reads better than one for all:
//!
//! ```
//! # use shardhost_testing::log_store::Subject;
//! # use shardhost_storage::{LogStore, MemoryStore};
//! # #[derive(Default)]
//! # struct Mine(MemoryStore);
//! # impl Subject for Mine {
//! #     fn store(&self) -> &dyn LogStore {
//! #         &self.0
//! #     }
//! #     fn reopen(&mut self) {}
//! # }
//! mod log_store {
//!     shardhost_testing::log_store_tests!(super::Mine::default());
//! }
//! ```

pub mod concurrent;
pub mod refusals;
pub mod rules;

use crate::Running;
use shardhost_storage::LogStore;

/// A store under test.
pub trait Subject {
    fn store(&self) -> &dyn LogStore;
    /// The host dies and starts again: what was written is there.
    fn reopen(&mut self);
}

/// One rule: a test of a new store.
pub type Rule = fn(&mut dyn Subject);

/// Every rule by its name.
pub const RULES: &[(&str, Rule)] = crate::__log_store_rules!(list);

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

/// Makes a test of each rule of [`LogStore`]; the expression makes a new
/// [`Subject`] for each.
#[macro_export]
macro_rules! log_store_tests {
    ($subject:expr) => {
        $crate::__log_store_rules!(tests $subject);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log_store_rules {
    ($mode:ident $($subject:tt)*) => {
        $crate::__each_log_store_rule! {
            $mode ($($subject)*)
            rules {
                a_new_store_is_empty
                a_new_replica_starts_with_an_empty_log
                what_was_written_is_read_again_and_survives
                the_parts_of_a_write_replace_what_was_there
                an_overwrite_inside_a_run_cuts_what_was_behind
                an_overwrite_of_exactly_one_run_replaces_it
                an_overwrite_may_replace_the_whole_log
                overwrites_pile_up
                an_overwrite_moves_where_terms_begin
                reads_start_and_end_inside_runs
                a_compaction_inside_a_run_keeps_the_rest
                a_compaction_may_take_everything
                a_late_compaction_does_nothing
                appends_continue_after_a_compaction
                a_reset_drops_all_entries
                a_reset_to_the_same_base_drops_all_entries
                a_reset_and_entries_take_effect_in_order
                entries_and_their_compaction_fit_in_one_write
                a_destroyed_replica_leaves_a_tombstone
                a_tombstone_needs_no_replica_and_never_shrinks
                a_new_replica_may_follow_in_the_same_batch
                merged_writes_of_a_group_take_effect_in_order
                max_bytes_counts_payload_but_never_stops_before_the_first
                groups_at_the_borders_of_their_keys_do_not_touch
                large_runs_are_read_whole_and_in_part
                what_is_in_doubt_stays_so_until_it_is_settled
                what_was_found_to_differ_stays_so
                an_empty_batch_is_fine
                the_counters_count
                a_store_keeps_its_number_for_ever
            }
            refusals {
                a_replica_id_is_never_used_again
                a_batch_that_breaks_a_rule_leaves_no_trace
                the_first_write_must_carry_the_meta
                a_meta_must_fit_its_replica
                entries_must_be_contiguous_and_attached
                a_compaction_must_name_an_entry
                no_log_reaches_the_last_index
                reads_outside_the_log_say_so
                a_failed_read_leaves_the_buffer_alone
                unknown_groups_say_so
            }
            concurrent {
                a_read_never_mixes_what_was_overwritten_with_what_replaced_it
                a_read_sees_the_entries_or_that_they_are_compacted
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __each_log_store_rule {
    (list () $($part:ident { $($rule:ident)* })*) => {
        &[$($((stringify!($rule), $part::$rule as Rule),)*)*]
    };
    (tests ($subject:expr) $($part:ident { $($rule:ident)* })*) => {
        $($(
            #[test]
            fn $rule() {
                $crate::log_store::$part::$rule(&mut $subject);
            }
        )*)*
    };
}

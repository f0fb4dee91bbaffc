//! The lines, a file per chapter of the contract.

mod propose;

use super::{Line, Place};

/// Every line, by chapter.
pub(super) const LINES: &[Line] = crate::__conformance_lines!(list () []);

/// The group that lines look at.
const GROUP: shardhost_storage::GroupId = shardhost_storage::GroupId::new(1);
/// Another one.
const OTHER: shardhost_storage::GroupId = shardhost_storage::GroupId::new(2);

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_lines {
    ($mode:ident $factory:tt $skipped:tt) => {
        $crate::__each_conformance_line! {
            $mode $factory $skipped
            propose {
                (Anywhere) p1_a_proposal_on_one_voter_is_answered_after_it_is_applied
                (Anywhere) p2_what_was_acknowledged_is_there_after_close_and_reopen
                (Anywhere) p2_what_was_acknowledged_survives_the_kill_of_every_node
                (Cluster) p3_every_state_machine_gets_it
                (Calm) p4_a_dropped_or_late_waiter_leaves_nothing_behind
                (Cluster) p5_a_follower_refuses_with_a_hint_and_forwards_nothing
                (CalmCluster) p6_a_proposal_during_a_transfer_is_refused_at_once
                (Cluster) p7_waiters_fail_before_the_loss_is_told
                (Cluster) p8_an_inherited_entry_resolves_nobody_elses_waiter
                (Cluster) p9_definite_and_unknown_outcomes_are_what_they_say
                (Cluster) p10_closing_fails_every_waiter_with_the_cause
                (Calm) p10_a_failure_fails_every_waiter_with_the_cause
                (Anywhere) p11_a_halting_apply_stops_that_group_only
                (Calm) p12_commands_over_a_limit_are_refused_before_anything_is_written
                (Calm) p12_proposals_over_the_budget_are_refused_and_the_budget_comes_back
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __each_conformance_line {
    (list () [] $($chapter:ident { $(($place:ident) $line:ident)* })*) => {
        &[$($(Line {
            name: stringify!($line),
            place: Place::$place,
            run: |trial| Box::pin($chapter::$line(trial)),
        },)*)*]
    };
    (tests ($factory:expr) $skipped:tt $($chapter:ident { $(($place:ident) $line:ident)* })*) => {
        $($(
            #[test]
            fn $line() {
                let factory = $factory;
                $crate::testing::conformance::demand(stringify!($line), factory, &$skipped);
            }
        )*)*
    };
}

//! The lines, a file per chapter of the contract.

mod barrier;
mod groups;
mod held;
mod history;
mod leadership;
mod leases;
mod membership;
mod propose;
mod reads;
mod restart;
mod snapshots;
mod transfer;
mod wire;

use super::{Line, Place};

pub(super) const LINES: &[Line] = crate::__conformance_lines!(list () []);

/// The group that lines look at.
const GROUP: shardhost_storage::GroupId = shardhost_storage::GroupId::new(1);
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
                (Calm) p4_a_dropped_or_late_completion_leaves_nothing_behind
                (Cluster) p5_a_follower_refuses_with_a_hint_and_forwards_nothing
                (CalmCluster) p6_a_proposal_during_a_transfer_is_held_until_it_ends
                (Cluster) p7_completions_fail_before_the_loss_is_told
                (Cluster) p8_an_inherited_entry_resolves_nobody_elses_completion
                (Cluster) p9_definite_and_unknown_outcomes_are_what_they_say
                (Cluster) p10_closing_fails_every_completion_with_the_cause
                (Calm) p10_a_host_that_stops_leaves_nobody_waiting
                (Calm) p10_a_failure_fails_every_completion_with_the_cause
                (Anywhere) p11_a_halting_apply_stops_that_group_only
                (Calm) p12_commands_over_a_limit_are_refused_before_anything_is_written
                (Calm) p12_proposals_over_the_budget_are_refused_and_the_budget_comes_back
            }
            barrier {
                (Calm) b1_without_a_barrier_both_ways_of_proposing_are_one
                (Calm) b2_an_open_barrier_holds_back_users_and_no_operator
                (CalmCluster) b2_whoever_does_not_lead_opens_no_barrier
                (Calm) b3_after_a_drain_nothing_of_users_is_under_way
                (Calm) b4_a_drain_of_nothing_returns_at_once
                (Calm) b5_a_barrier_is_closed_once_and_whoever_drained_is_free
                (CalmCluster) b6_a_barrier_ends_with_its_leadership
            }
            reads {
                (Anywhere) r1_a_read_sees_everything_that_was_acknowledged_before
                (Cluster) r1_reads_and_writes_are_linearizable_whatever_happens
                (Calm) r2_a_proof_of_leadership_does_not_wait_for_the_state_machine
                (Cluster) r3_whoever_does_not_lead_refuses_reads_with_a_hint
                (CalmCluster) r4_reads_fail_at_once_during_a_transfer
                (Cluster) r5_a_leader_without_its_quorum_answers_no_read
                (Cluster) r6_every_read_ends
                (Calm) r7_cancelled_reads_leave_nothing
                (CalmCluster) r8_no_read_before_an_entry_of_the_own_term_is_applied
                (CalmCluster) r9_many_reads_share_a_round
                (CalmCluster) r10_followers_and_learners_read_through_their_leader
            }
            leases {
                (Calm) l1_a_lease_is_an_election_timeout_less_a_margin
                (Calm) l1_without_leases_reads_ask_a_quorum
                (CalmCluster) l2_only_a_leader_that_a_quorum_answered_has_a_lease
                (Calm) l2_a_failed_replica_has_no_lease
                (CalmCluster) l3_a_lease_needs_a_quorum_and_no_more
                (CalmCluster) l4_learners_do_not_count
                (CalmCluster) l5_a_change_of_voters_recomputes_the_lease
                (Calm) l6_the_lease_of_a_lone_voter_follows_the_clock
                (CalmCluster) l7_a_fresh_lease_asks_nobody_and_a_stale_one_a_quorum
                (CalmCluster) l8_a_lease_is_void_from_the_start_of_a_transfer
                (CalmCluster) l9_the_lease_is_gone_when_the_loss_is_told
            }
            leadership {
                (Cluster) c1_every_acquisition_reaches_each_listener_once
                (CalmCluster) c2_every_loss_is_told_whatever_the_cause
                (Calm) c2_the_loss_of_a_failed_replica_is_told
                (CalmCluster) c3_when_the_loss_is_told_completions_have_failed_and_the_lease_is_empty
                (Calm) c4_listeners_are_called_in_order_and_a_panic_harms_no_other
                (Calm) c5_deregistering_removes_one_listener_also_from_within
                (Cluster) c6_a_registration_is_told_what_is_and_misses_nothing
                (CalmCluster) c7_a_transfer_is_told_when_it_is_done_and_not_when_it_begins
                (Cluster) c8_edges_alternate_and_nothing_is_told_after_the_shutdown
                (Calm) c9_a_listener_that_blocks_delays_nobody
            }
            transfer {
                (Cluster) t1_a_transfer_is_done_when_the_old_leader_knows_the_next_one
                (CalmCluster) t2_itself_strangers_and_learners_are_refused_at_once
                (CalmCluster) t3_whoever_does_not_lead_refuses
                (CalmCluster) t4_a_transfer_waits_for_no_pending_change
                (CalmCluster) t5_the_same_target_joins_and_another_is_refused
                (CalmCluster) t6_only_fit_candidates_are_taken_in_their_order
                (CalmCluster) t6_a_dead_candidate_is_not_taken
                (Calm) t7_an_empty_list_of_candidates_is_an_error
                (CalmCluster) t8_an_abandoned_transfer_is_aborted_and_proposals_work_again
                (CalmCluster) t11_a_transfer_goes_on_without_its_completion
                (CalmCluster) t12_what_becomes_of_transfers_is_counted_by_reason
            }
            membership {
                (Cluster) m1_an_added_voter_replicates_and_shows_up
                (Cluster) m2_a_removed_replica_ends_when_it_learns_of_it
                (Cluster) m2_a_replica_that_was_down_when_it_was_removed_ends_as_well
                (CalmCluster) m3_a_change_that_expects_another_configuration_is_refused
                (CalmCluster) m4_one_change_at_a_time
                (CalmCluster) m5_the_fence_goes_with_an_entry_that_is_overwritten
                (Cluster) m7_the_configuration_index_is_what_the_change_returned_and_survives
                (CalmCluster) m8_impossible_changes_are_refused_by_name
                (CalmCluster) m9_answers_of_removed_peers_change_nothing
                (CalmCluster) m10_a_hook_is_asked_before_a_node_is_added
                (Cluster) m11_several_members_change_in_one_step
                (CalmCluster) n1_learners_apply_and_do_not_count
                (CalmCluster) n2_only_learners_that_have_caught_up_are_promoted
                (Cluster) n3_a_node_joins_catches_up_is_promoted_and_restarts
                (Cluster) n4_a_removed_node_comes_back_as_a_fresh_learner
                (CalmCluster) n5_learners_never_campaign_and_are_no_targets
                (Cluster) n7_a_dead_member_is_replaced
                (CalmCluster) n7_without_a_quorum_nobody_is_replaced
            }
            snapshots {
                (Calm) s1_a_snapshot_is_taken_while_proposals_go_on
                (Calm) s2_every_view_is_dropped
                (CalmCluster) s4_a_damaged_snapshot_restores_nobody
                (Calm) s6_only_snapshots_that_help_are_wanted
                (CalmCluster) s7_a_shipment_under_way_delays_no_other_group
                (CalmCluster) s8_a_shipment_that_fails_is_made_again
                (Cluster) s8_a_follower_behind_the_log_gets_a_snapshot
                (Calm) s9_a_snapshot_that_cannot_be_made_is_tried_again
                (CalmCluster) s9_a_receiver_without_room_gets_it_later
                (CalmCluster) s10_a_follower_a_little_behind_needs_no_snapshot
            }
            restart {
                (Calm) k1_a_fresh_state_machine_is_not_restored
                (Calm) k2_a_stale_state_machine_is_restored
                (Anywhere) k3_no_entry_is_applied_twice
                (Calm) k4_volatile_commands_are_replayed_and_move_nothing
                (CalmCluster) k5_changes_of_membership_that_the_machine_has_passed_still_count
            }
            wire {
                (CalmCluster) x1_heartbeats_and_votes_do_not_queue_behind_appends
                (Cluster) x2_a_peer_that_takes_nothing_slows_nobody_down
                (CalmCluster) x3_bad_messages_are_refused_one_by_one
                (CalmCluster) x4_a_node_is_followed_to_another_address
            }
            groups {
                (Calm) g1_many_groups_come_from_one_declaration
                (Calm) g2_what_makes_no_sense_is_refused_and_creates_nothing
                (Cluster) g3_the_order_of_members_does_not_matter
                (Cluster) g3_groups_with_other_first_members_are_told_apart
                (Calm) g4_a_restart_follows_what_is_stored
                (Cluster) g5_groups_may_have_different_members
                (CalmCluster) g6_a_joiner_opens_empty_and_never_campaigns
                (CalmCluster) g7_the_data_of_another_node_is_refused
                (CalmCluster) h1_a_group_serves_where_it_is_led
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
                $crate::conformance::demand(stringify!($line), factory, &$skipped);
            }
        )*)*
    };
}

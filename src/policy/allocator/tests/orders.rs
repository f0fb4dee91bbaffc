//! How orders end, and what of that is remembered for the next pass.

use super::*;

/// A group of three on these nodes that just lost one.
fn with_one_lost(zones: &[&str]) -> World {
    let mut world = World::new(zones);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    world
}

/// The same, and a pass ordered that it is replaced.
fn losing_one() -> World {
    let mut world = with_one_lost(&["", "", "", "", ""]);
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER)), [(7, 3, 4)]);
    world
}

#[test]
fn a_group_that_refuses_is_left_alone_for_longer_and_longer() {
    let mut world = with_one_lost(&["", "", "", ""]);
    let (mut now, mut pauses) = (REPLACE_AFTER, Vec::new());
    for _ in 0..2 {
        assert_eq!(world.pass_at(now).len(), 1);
        world.ended(group(7), now, Outcome::Refused("it changes".to_owned()));
        let refused = now;
        while world.pass_at(now + 1).is_empty() {
            now += 1;
        }
        now += 1;
        pauses.push(now - refused);
        world.allocator.moving.clear();
    }
    assert_eq!(pauses, [2_000, 4_000]);
}

#[test]
fn an_order_of_unknown_outcome_is_decided_anew_after_a_while() {
    let mut world = with_one_lost(&["", "", "", ""]);
    assert_eq!(world.pass_at(REPLACE_AFTER).len(), 1);
    world.ended(group(7), REPLACE_AFTER, Outcome::Unknown);
    assert_eq!(world.pass_at(REPLACE_AFTER + UNKNOWN_FOR_MS - 1), []);
    assert_eq!(world.pass_at(REPLACE_AFTER + UNKNOWN_FOR_MS).len(), 1);
}

#[test]
fn a_change_whose_target_is_lost_is_decided_anew() {
    let mut world = losing_one();
    world.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    world.lose(4);
    assert_eq!(world.pass_at(REPLACE_AFTER + 1), []);
    assert_eq!(world.pass_at(REPLACE_AFTER + SILENT_FOR_MS), []);
    let changes = world.pass_at(REPLACE_AFTER + 1 + SILENT_FOR_MS);
    assert_eq!((moves(&changes), changes[0].instead_of), (vec![(7, 3, 5)], Some(node(4))));
}

#[test]
fn refusals_leave_no_node_out() {
    let mut world = losing_one();
    let mut now = REPLACE_AFTER;
    for _ in 0..10 {
        world.ended(group(7), now, Outcome::Refused("it has no leader that answers".to_owned()));
        now += LONGEST_REST_MS;
        assert_eq!(moves(&world.pass_at(now)), [(7, 3, 4)]);
    }
}

/// The target answers, and its replica does not come: the addition is given up for another one.
#[test]
fn a_change_that_does_not_end_is_given_up_for_another_node() {
    let mut world = losing_one();
    world.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    world.report(7, &[1, 2, 3, 4]);
    assert_eq!(world.pass_at(REPLACE_AFTER + MOVING_FOR_MS - 1), []);
    let changes = world.pass_at(REPLACE_AFTER + MOVING_FOR_MS);
    assert_eq!(moves(&changes), [(7, 3, 5)]);
    assert_eq!(changes[0].instead_of, Some(node(4)));
}

#[test]
fn an_answer_that_comes_after_its_order_was_decided_anew_counts_for_nothing() {
    let mut world = losing_one();
    let first = world.orders[&group(7)];
    let again = REPLACE_AFTER + UNKNOWN_FOR_MS;
    assert_eq!(moves(&world.pass_at(again)), [(7, 3, 4)]);
    assert_eq!(world.orders[&group(7)].change, first.change, "it is the same change again");
    world.allocator.ended(first, again + 1, Outcome::Refused("it changes".to_owned()));
    world.allocator.ended(first, again + 1, Outcome::Begun);
    assert_eq!(world.pass_at(again + UNKNOWN_FOR_MS - 1), []);
    assert_eq!(world.pass_at(again + UNKNOWN_FOR_MS).len(), 1, "it was not begun");
}

#[test]
fn a_change_that_an_operator_gave_up_is_decided_anew_for_another_node() {
    let mut world = losing_one();
    world.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    world.report(7, &[1, 2, 3, 4]);
    assert_eq!(world.pass_at(REPLACE_AFTER + 5_000), []);
    world.report(7, &[1, 2, 3]);
    let changes = world.pass_at(REPLACE_AFTER + 10_000);
    assert_eq!((moves(&changes), changes[0].instead_of), (vec![(7, 3, 5)], None));
}

#[test]
fn a_change_that_was_given_up_before_it_was_reported_is_decided_anew_soon() {
    let mut world = losing_one();
    world.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    assert_eq!(world.pass_at(REPLACE_AFTER + UNSEEN_FOR_MS - 1), []);
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER + UNSEEN_FOR_MS)), [(7, 3, 5)]);
}

/// It was ordered under another leader of the system group, or by an operator.
#[test]
fn an_addition_that_stands_in_the_way_is_given_up_when_it_does_not_end() {
    let mut world = losing_one();
    let mut now = REPLACE_AFTER;
    let mut instead = Vec::new();
    while now < REPLACE_AFTER + MOVING_FOR_MS + LONGEST_REST_MS {
        world.ended(group(7), now, Outcome::InTheWay(node(5)));
        now += LONGEST_REST_MS;
        let changes = world.pass_at(now);
        assert_eq!(moves(&changes), [(7, 3, 4)]);
        instead.push(changes[0].instead_of.map(NodeId::get));
    }
    assert_eq!(instead, [None, None, None, None, Some(5), Some(5)]);
    assert!(world.allocator.avoided.contains_key(&(group(7), node(5))));
}

#[test]
fn an_addition_in_the_way_to_a_node_that_is_gone_is_given_up_at_once() {
    let mut world = losing_one();
    world.lose(5);
    world.pass_at(REPLACE_AFTER + 1);
    world.ended(group(7), REPLACE_AFTER + 2, Outcome::InTheWay(node(5)));
    let changes = world.pass_at(REPLACE_AFTER + 1 + FIRST_REST_MS + 1);
    assert_eq!(changes[0].instead_of, None, "it may come back");
    world.ended(group(7), REPLACE_AFTER + 3_000, Outcome::InTheWay(node(5)));
    let changes = world.pass_at(REPLACE_AFTER + 1 + REPLACE_AFTER);
    assert_eq!((moves(&changes), changes[0].instead_of), (vec![(7, 3, 4)], Some(node(5))));
}

/// Each addition may take longer than the one before, so that one of a large group ends.
#[test]
fn the_second_addition_that_does_not_end_is_the_one_that_is_given_up() {
    let mut world = losing_one();
    world.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    world.report(7, &[1, 2, 3, 4]);
    let mut now = REPLACE_AFTER + MOVING_FOR_MS;
    let changes = world.pass_at(now);
    assert_eq!((moves(&changes), changes[0].instead_of), (vec![(7, 3, 5)], Some(node(4))));
    world.report(7, &[1, 2, 3, 5]);
    world.ended(group(7), now, Outcome::Begun);
    world.add(6, "");
    assert_eq!(world.pass_at(now + 2 * MOVING_FOR_MS - 1), []);
    now += 2 * MOVING_FOR_MS;
    let changes = world.pass_at(now);
    assert_eq!((moves(&changes), changes[0].instead_of), (vec![(7, 3, 6)], Some(node(5))));
}

/// Its rule asks for one learner, which is on node 4 and is to be on node 5: that was ordered.
fn with_a_learner_to_move() -> World {
    let mut world = World::new(&["a", "a", "a", "a", "b"]);
    world.create(7, &[1, 2, 3], &[]);
    world.report_with(7, &[1, 2, 3, 4], &[4]);
    // What the learner is for is elsewhere.
    set_rule(&mut world, Selection::Group(group(7)), |rule| {
        (rule.learners, rule.capabilities) = (Some(1), Box::from([name("ssd")]));
    });
    for number in [1, 2, 3, 5] {
        world.has(number, &["ssd"]);
    }
    world.pass_at(0);
    assert_eq!(steps(&world.pass_at(REPLACE_AFTER)), [LEARNER_MOVES]);
    world
}

const LEARNER_MOVES: Step =
    Step::ReplaceLearner { old: NodeId::must(4), new: NodeId::must(5), has: 1 };

fn steps(changes: &[Change]) -> Vec<Step> {
    changes.iter().map(|change| change.step).collect()
}

#[test]
fn a_learner_that_runs_is_asked_about_until_the_other_one_has_its_place() {
    let mut world = with_a_learner_to_move();
    let mut now = REPLACE_AFTER;
    let ticket = world.orders[&group(7)].ticket;
    world.ended(group(7), now, Outcome::Begun);
    assert_eq!(world.pass_at(now + 1_000), [], "it is not seen yet");
    world.report_with(7, &[1, 2, 3, 4, 5], &[4, 5]);
    now += 4_000;
    assert_eq!(steps(&world.pass_at(now)), [LEARNER_MOVES]);
    assert_eq!(world.orders[&group(7)].ticket, ticket, "it is the same order");
    world.ended(group(7), now, Outcome::Refused("its leader changed".to_owned()));
    assert_eq!(world.pass_at(now + 1_000), [], "it is under way all the same");
    world.report_with(7, &[1, 2, 3, 5], &[5]);
    assert_eq!(world.pass_at(now + 10_000), []);
    assert_eq!((world.allocator.moving.len(), world.allocator.moved), (0, 1));
}

/// Otherwise the group would keep it, or the one that works would go.
#[test]
fn a_learner_that_does_not_come_goes_again() {
    let mut world = with_a_learner_to_move();
    world.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    world.report_with(7, &[1, 2, 3, 4, 5], &[4, 5]);
    let undone = Step::Remove { old: node(5), learner: true, wanted: 1 };
    assert_eq!(steps(&world.pass_at(REPLACE_AFTER + MOVING_FOR_MS)), [undone]);
    world.ended(group(7), REPLACE_AFTER + MOVING_FOR_MS, Outcome::Begun);
    world.report_with(7, &[1, 2, 3, 4], &[4]);
    assert_eq!(world.pass_at(REPLACE_AFTER + MOVING_FOR_MS + 1), [], "its node is left out");
}

/// The leader of a group does not take away for a gone node what answers.
#[test]
fn a_learner_on_a_node_that_is_gone_goes_before_one_that_does_not_come() {
    let mut world = with_a_learner_to_move();
    world.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    world.report_with(7, &[1, 2, 3, 4, 5], &[4, 5]);
    world.pass_at(REPLACE_AFTER + 1);
    world.lose(4);
    let lost = MOVING_FOR_MS + 2;
    world.pass_at(lost);
    assert_eq!(world.pass_at(REPLACE_AFTER + MOVING_FOR_MS), [], "it may come back");
    let gone = Step::Remove { old: node(4), learner: true, wanted: 1 };
    assert_eq!(steps(&world.pass_at(lost + REPLACE_AFTER)), [gone]);
}

/// The system group got another leader while a learner was moved: which of the two is new is not known to it.
#[test]
fn of_two_learners_the_one_that_does_not_come_goes_whoever_added_it() {
    let mut world = with_a_learner_to_move();
    world.report_with(7, &[1, 2, 3, 4, 5], &[4, 5]);
    world.allocator = Allocator::default();
    // Both may be there now.
    world.has(4, &["ssd"]);
    world.pass_at(REPLACE_AFTER);
    let mut now = 2 * REPLACE_AFTER;
    let mut tried = Vec::new();
    while now < 2 * REPLACE_AFTER + MOVING_FOR_MS + 2 * LONGEST_REST_MS {
        let chosen = steps(&world.pass_at(now));
        assert_eq!(chosen.len(), 1);
        tried.push(chosen[0].old().unwrap().get());
        // The one on node 4 takes part, and stays while the other one does not.
        let refused = Outcome::InTheWay(node(5));
        world.ended(group(7), now, refused);
        now += LONGEST_REST_MS;
    }
    assert_eq!((tried[0], tried.last()), (4, Some(&5)), "{tried:?}");
}

/// An operator added it by hand, where it is to be.
#[test]
fn a_learner_that_no_rule_counts_stays_where_it_is() {
    let mut world = World::new(&["a", "a", "a", "a", "b"]);
    for number in 7..=12 {
        world.create(number, &[1, 2, 3], &[]);
        world.report_with(number, &[1, 2, 3, 4], &[4]);
    }
    world.pass_at(0);
    let changes = world.pass_at(REPLACE_AFTER);
    assert!(!changes.is_empty());
    assert!(changes.iter().all(|change| change.step.old() != Some(node(4))), "{changes:?}");
    // Where it may not be it goes, in one change of its group: that leaves no learner more.
    let mut world = World::new(&["", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.report_with(7, &[1, 2, 3, 4], &[4]);
    set_rule(&mut world, Selection::All, |rule| rule.capabilities = Box::from([name("ssd")]));
    for number in [1, 2, 3, 5] {
        world.has(number, &["ssd"]);
    }
    world.pass_at(0);
    let in_one_change = Step::Replace { old: node(4), new: node(5) };
    assert_eq!(steps(&world.pass_at(REPLACE_AFTER)), [in_one_change]);
}

/// It was given a vote, or given up, long ago: the next one to the same node has its own time.
#[test]
fn an_addition_that_was_in_the_way_once_says_nothing_of_the_next_one_to_its_node() {
    let mut world = losing_one();
    world.ended(group(7), REPLACE_AFTER, Outcome::InTheWay(node(5)));
    world.report_with(7, &[1, 2, 3, 5], &[5]);
    world.pass_at(REPLACE_AFTER + 1);
    world.report(7, &[1, 2, 3]);
    world.live.insert(node(3));
    assert_eq!(world.pass_at(REPLACE_AFTER + LONGEST_REST_MS + UNSEEN_FOR_MS), []);
    world.lose(3);
    let mut now = REPLACE_AFTER + 10 * MOVING_FOR_MS;
    world.pass_at(now);
    now += REPLACE_AFTER;
    let changes = world.pass_at(now);
    assert_eq!((moves(&changes), changes[0].instead_of), (vec![(7, 3, 4)], None));
    // An operator added another one there a moment ago.
    world.ended(group(7), now, Outcome::InTheWay(node(5)));
    let changes = world.pass_at(now + LONGEST_REST_MS);
    assert_eq!((moves(&changes), changes[0].instead_of), (vec![(7, 3, 4)], None));
}

#[test]
fn a_refusal_is_forgotten_when_nothing_is_to_be_changed_any_more() {
    let mut world = with_one_lost(&["", "", "", ""]);
    assert_eq!(world.pass_at(REPLACE_AFTER).len(), 1);
    world.ended(group(7), REPLACE_AFTER, Outcome::Refused("it changes".to_owned()));
    world.live.insert(node(3));
    world.pass_at(REPLACE_AFTER + 1);
    assert_eq!(world.allocator.status(0).stuck_total, 1);
    world.pass_at(REPLACE_AFTER + FIRST_REST_MS);
    assert_eq!(world.allocator.status(0).stuck_total, 0);
}

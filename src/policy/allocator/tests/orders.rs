//! How orders end, and what of that is remembered for the next pass.

use super::*;

#[test]
fn a_group_that_refuses_is_left_alone_for_longer_and_longer() {
    let mut world = World::new(&["", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    let (mut now, mut pauses) = (REPLACE_AFTER, Vec::new());
    for _ in 0..2 {
        assert_eq!(world.pass_at(now).len(), 1);
        world.allocator.ended(group(7), now, Outcome::Refused("it changes".to_owned()));
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
    let mut world = World::new(&["", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    assert_eq!(world.pass_at(REPLACE_AFTER).len(), 1);
    world.allocator.ended(group(7), REPLACE_AFTER, Outcome::Unknown);
    assert_eq!(world.pass_at(REPLACE_AFTER + UNKNOWN_FOR_MS - 1), []);
    assert_eq!(world.pass_at(REPLACE_AFTER + UNKNOWN_FOR_MS).len(), 1);
}

#[test]
fn a_change_whose_target_is_lost_is_decided_anew() {
    let mut world = World::new(&["", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER)), [(7, 3, 4)]);
    world.allocator.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    world.lose(4);
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER + 1)), [(7, 3, 5)]);
}

#[test]
fn a_node_that_a_group_gets_no_replica_on_is_left_out_for_a_while() {
    let mut world = World::new(&["", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    let mut now = REPLACE_AFTER;
    for _ in 0..MOST_REFUSALS {
        let changes = world.pass_at(now);
        assert_eq!(moves(&changes), [(7, 3, 4)]);
        world.allocator.ended(group(7), now, Outcome::Refused("a hook".to_owned()));
        now += LONGEST_REST_MS;
    }
    assert_eq!(moves(&world.pass_at(now)), [(7, 3, 5)]);
}

/// The target answers, and its replica does not come: the addition is given up for another one.
#[test]
fn a_change_that_does_not_end_is_given_up_for_another_node() {
    let mut world = World::new(&["", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER)), [(7, 3, 4)]);
    world.allocator.ended(group(7), REPLACE_AFTER, Outcome::Begun);
    assert_eq!(world.pass_at(REPLACE_AFTER + MOVING_FOR_MS - 1), []);
    let changes = world.pass_at(REPLACE_AFTER + MOVING_FOR_MS);
    assert_eq!(moves(&changes), [(7, 3, 5)]);
    assert_eq!(changes[0].instead_of, Some(node(4)));
}

#[test]
fn a_refusal_is_forgotten_when_nothing_is_to_be_changed_any_more() {
    let mut world = World::new(&["", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    assert_eq!(world.pass_at(REPLACE_AFTER).len(), 1);
    world.allocator.ended(group(7), REPLACE_AFTER, Outcome::Refused("it changes".to_owned()));
    world.live.insert(node(3));
    world.pass_at(REPLACE_AFTER + 1);
    assert_eq!(world.allocator.status(0).stuck_total, 1);
    world.pass_at(REPLACE_AFTER + FIRST_REST_MS);
    assert_eq!(world.allocator.status(0).stuck_total, 0);
}

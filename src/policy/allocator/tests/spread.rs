//! Replicas that move between nodes that run.

use super::*;

#[test]
fn a_new_node_gets_its_part_once_all_have_run_for_a_while() {
    let mut world = World::new(&["", "", ""]);
    for number in 10..22 {
        world.create(number, &[1, 2, 3], &[]);
    }
    world.pass_at(0);
    world.add(4, "");
    world.pass_at(1_000);
    assert_eq!(world.pass_at(REPLACE_AFTER / 2 + 999), []);
    let (mut now, mut total) = (REPLACE_AFTER / 2 + 1_000, 0);
    loop {
        let changes = world.pass_at(now);
        if changes.is_empty() {
            break;
        }
        assert!(changes.len() <= MIN_SPREADING);
        total += changes.len();
        for change in &changes {
            assert_eq!(change.step.new_node(), Some(node(4)));
            assert_eq!(change.reason, Reason::Count);
            world.swapped(change);
        }
        now += 1_000;
    }
    assert_eq!(total, 9, "a quarter of 36, and no more");
}

/// A thousand groups of three nodes, and a fourth one that is empty, when that is looked at.
fn one_joins() -> (World, u64) {
    let mut world = World::new(&["", "", ""]);
    for number in 10..1_010 {
        world.create(number, &[1, 2, 3], &[]);
    }
    world.pass_at(0);
    world.add(4, "");
    world.pass_at(1_000);
    (world, REPLACE_AFTER / 2 + 1_000)
}

/// How many changes are ordered by passes this far apart, where all those of one have ended at the next.
fn ordered(world: &mut World, from_ms: u64, apart_ms: &[u64]) -> Vec<usize> {
    let (mut now, mut changes) = (from_ms, world.pass_at(from_ms));
    let mut counts = vec![changes.len()];
    for apart in apart_ms {
        changes.iter().for_each(|change| world.swapped(change));
        now += apart;
        changes = world.pass_at(now);
        counts.push(changes.len());
    }
    counts
}

#[test]
fn replicas_that_move_quickly_move_by_the_dozen_and_those_that_take_long_a_few_at_a_time() {
    let (mut world, now) = one_joins();
    let apart = [QUICK_MS, QUICK_MS, QUICK_MS, SLOW_MS - 1, SLOW_MS];
    assert_eq!(ordered(&mut world, now, &apart), [8, 16, 32, 64, 64, 8]);
    assert!(world.allocator.has_more(), "others wait");
}

#[test]
fn what_is_only_shown_waits_for_nothing() {
    let (mut world, now) = one_joins();
    world.set(PlannerMode::Shadow);
    assert_eq!(world.pass_at(now), []);
    assert!(!world.allocator.has_more());
}

#[test]
fn nothing_is_spread_while_a_node_is_missing() {
    let mut world = World::new(&["", "", "", ""]);
    for number in 10..22 {
        world.create(number, &[1, 2, 3], &[]);
    }
    world.pass_at(0);
    world.lose(2);
    world.pass_at(1);
    assert_eq!(world.pass_at(REPLACE_AFTER), []);
}

#[test]
fn two_replicas_of_a_group_leave_the_zone_that_they_share() {
    let mut world = World::new(&["a", "a", "b", "c"]);
    world.create(7, &[1, 2, 3], &[]);
    world.pass_at(0);
    let changes = world.pass_at(REPLACE_AFTER);
    assert_eq!(moves(&changes), [(7, 2, 4)]);
    assert_eq!(changes[0].reason, Reason::Zone);
    world.swapped(&changes[0]);
    assert_eq!(world.pass_at(REPLACE_AFTER + 1_000), []);
}

#[test]
fn a_group_that_lacks_a_member_is_not_spread() {
    let mut world = World::new(&["a", "a", "b", "c"]);
    world.create(7, &[1, 2, 3], &[]);
    world.run(Operation::RecordMembers {
        group: group(7),
        config_index: shardhost_storage::LogIndex::new(5),
        nodes: [1, 2].map(node).into(),
        founding: None,
        learners: None,
        generation: None,
    });
    world.pass_at(0);
    assert_eq!(world.pass_at(REPLACE_AFTER), []);
}

#[test]
fn the_place_where_a_leader_is_wanted_is_not_left_for_balance() {
    let mut world = World::new(&["", "", "", ""]);
    for number in 7..10 {
        world.create(number, &[1, 2, 3], &[]);
        world.run(Operation::SetPlacement {
            group: group(number),
            placement: catalog::Placement { pin: Some(node(1)), ..catalog::Placement::default() },
        });
    }
    world.pass_at(0);
    world.now_ms = REPLACE_AFTER;
    let moved = settled(&mut world);
    assert!(!moved.is_empty() && moved.iter().all(|(_, old, _)| *old != 1), "{moved:?}");
}

//! Replicas on nodes that are gone: when they are replaced, and where they go.

use super::*;

#[test]
fn a_node_that_is_gone_for_long_enough_is_replaced_and_the_catalog_comes_first() {
    let mut world = World::new(&["", "", "", ""]);
    for number in 7..9 {
        world.create(number, &[1, 2, 3], &[]);
    }
    assert_eq!(world.pass_at(0), []);
    world.lose(3);
    assert_eq!(world.pass_at(1_000), []);
    assert_eq!(world.pass_at(REPLACE_AFTER + 999), []);
    let changes = world.pass_at(REPLACE_AFTER + 1_000);
    assert_eq!(moves(&changes), [(0, 3, 4), (7, 3, 4), (8, 3, 4)]);
    assert!(changes.iter().all(|change| change.reason == Reason::Gone));
    assert_eq!(world.pass_at(REPLACE_AFTER + 2_000), [], "they are under way");
    for change in &changes {
        world.ended(change.group, world.now_ms, Outcome::Begun);
        world.swapped(change);
    }
    assert_eq!(world.pass_at(REPLACE_AFTER + 3_000), []);
    assert_eq!(world.allocator.status(0).moved, 3);
}

#[test]
fn a_node_that_comes_back_in_time_is_not_replaced() {
    let mut world = World::new(&["", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.lose(3);
    world.pass_at(0);
    world.pass_at(REPLACE_AFTER - 1);
    world.live.insert(node(3));
    world.pass_at(REPLACE_AFTER);
    world.lose(3);
    assert_eq!(world.pass_at(REPLACE_AFTER + 1), [], "the time begins anew");
}

#[test]
fn nothing_moves_while_it_is_off_and_in_shadow_it_is_only_shown() {
    let mut world = World::new(&["", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.lose(3);
    for mode in [PlannerMode::Off, PlannerMode::Shadow] {
        world.set(mode);
        world.pass_at(0);
        assert_eq!(world.pass_at(REPLACE_AFTER), []);
    }
    assert_eq!(world.allocator.status(0).chosen_total, 2, "the catalog's and that of group 7");
    assert!(world.why(7).contains("planned: a replica from node 3 to node 4"));
}

#[test]
fn a_replica_goes_to_another_zone_and_to_a_node_that_has_what_the_leader_needs() {
    let mut world = World::new(&["a", "b", "c", "a", "c", "c"]);
    world.create(7, &[1, 2, 3], &["fifo"]);
    world.create(8, &[1, 2, 3], &[]);
    for number in [1, 2, 3, 6] {
        world.has(number, &["fifo"]);
    }
    world.system = [1, 2].map(node).into();
    world.lose(3);
    world.pass_at(0);
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER)), [(7, 3, 6), (8, 3, 5)]);
}

#[test]
fn a_group_that_no_other_node_can_take_is_named() {
    let mut world = World::new(&["", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.create(8, &[1, 2, 3, 4], &[]);
    world.lose(3);
    world.drain(4);
    world.system = [1, 2].map(node).into();
    world.pass_at(0);
    assert_eq!(world.pass_at(REPLACE_AFTER), []);
    assert!(world.why(7).contains("end a drain"));
    assert!(world.why(8).contains("add a node"));
    assert_eq!(world.allocator.status(0).stuck_total, 2);
}

#[test]
fn a_member_on_a_removed_node_is_replaced() {
    let mut world = World::new(&["", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.run(Operation::RemoveNode { node: node(5) });
    world.lose(5);
    // The report of an addition came late.
    world.run(Operation::RecordMembers {
        group: group(7),
        config_index: shardhost_storage::LogIndex::new(5),
        nodes: [1, 2, 5].map(node).into(),
        founding: None,
        learners: None,
        generation: None,
    });
    assert_eq!(moves(&world.pass_at(0)), [(7, 5, 3)]);
}

/// Its disk is nearly full: it gets none, whatever is lost elsewhere, and that is said.
#[test]
fn a_node_that_is_impaired_gets_no_replicas_until_it_is_well() {
    let mut world = World::new(&["", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2].map(node).into();
    world.impaired.insert(node(4));
    world.lose(3);
    world.pass_at(0);
    assert_eq!(world.pass_at(REPLACE_AFTER), []);
    let status = world.allocator.status(REPLACE_AFTER);
    assert!(status.stuck[0].why.contains("impaired"), "{status:?}");
    world.impaired.clear();
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER + 1_000)), [(7, 3, 4)]);
}

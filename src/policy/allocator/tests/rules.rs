//! What rules ask for: how many voters and learners, and where.

use super::*;

#[test]
fn a_group_gets_the_voters_and_learners_that_its_rule_asks_for() {
    let mut world = World::new(&["", "", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    let set = |world: &mut World, voters, learners| {
        set_rule(world, Selection::All, |rule| (rule.voters, rule.learners) = (voters, learners));
    };
    set(&mut world, Some(5), Some(1));
    assert_eq!(settled(&mut world), [(7, 0, 4), (7, 0, 5), (7, 0, 6)]);
    let record = &world.catalog.view().groups()[&group(7)];
    assert_eq!((record.members().len(), record.learners()), (6, Some(&[node(6)][..])));
    // Fewer: while all answer, and not before they have for a while.
    set(&mut world, Some(3), Some(0));
    world.lose(6);
    assert_eq!(world.pass_at(world.now_ms + 1_000), []);
    world.live.insert(node(6));
    world.now_ms += REPLACE_AFTER;
    let removed = settled(&mut world);
    assert_eq!(removed.len(), 3);
    assert!(removed.iter().all(|(_, old, new)| *old != 0 && *new == 0), "{removed:?}");
    let record = &world.catalog.view().groups()[&group(7)];
    assert_eq!((record.members().len(), record.learners()), (3, Some(&[][..])));
}

#[test]
fn replicas_go_where_the_rule_allows_and_are_named_where_they_cannot() {
    let mut world = World::new(&["a", "b", "c", "a", "a"]);
    world.create(7, &[1, 2, 3], &[]);
    set_rule(&mut world, Selection::Group(group(7)), |rule| rule.zones = [name("a")].into());
    world.pass_at(0);
    world.now_ms = REPLACE_AFTER;
    assert_eq!(settled(&mut world), [(7, 2, 4), (7, 3, 5)]);
    // The one of zone a is gone, and the others are not allowed.
    world.lose(4);
    world.pass_at(world.now_ms + 1_000);
    assert_eq!(world.pass_at(world.now_ms + REPLACE_AFTER), []);
    let status = world.allocator.status(world.now_ms);
    assert_eq!(status.stuck_total, 1);
    assert!(status.stuck[0].why.contains("its rule allows no other node"), "{status:?}");
    world.run(Operation::RemoveRule { name: name("rule") });
    assert_eq!(moves(&world.pass_at(world.now_ms + 1_000)), [(7, 4, 2)]);
}

#[test]
fn a_rule_asks_for_nodes_that_have_something() {
    let mut world = World::new(&["", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    for number in [1, 2, 5] {
        world.has(number, &["ssd"]);
    }
    set_rule(&mut world, Selection::All, |rule| rule.capabilities = [name("ssd")].into());
    world.pass_at(0);
    world.now_ms = REPLACE_AFTER;
    assert_eq!(settled(&mut world), [(7, 3, 5)]);
}

/// A group that outlives no further loss does not wait for those that are only moved.
#[test]
fn a_group_with_two_voters_is_completed_before_others_grow() {
    let mut world = World::new(&["", "", "", "", ""]);
    for number in 7..27 {
        world.create(number, &[1, 2, 3], &[]);
    }
    world.create(30, &[1], &[]);
    set_rule(&mut world, Selection::All, |rule| rule.voters = Some(5));
    let changes = world.pass_at(0);
    assert_eq!(changes[0].group, group(30));
    assert!(changes[0].urgent);
    assert_eq!(changes.len(), 1 + MIN_SPREADING);
}

/// A cluster that has grown gives its catalog more voters by a rule for group 0.
#[test]
fn the_catalog_has_a_rule_of_its_own() {
    let mut world = World::new(&["", "", "", "", ""]);
    set_rule(&mut world, Selection::All, |rule| rule.voters = Some(3));
    assert_eq!(world.pass_at(0), []);
    let mut five = ReplicaRule {
        name: name("catalog"),
        groups: Selection::Group(SYSTEM_GROUP),
        voters: Some(5),
        learners: None,
        zones: Box::default(),
        capabilities: Box::default(),
    };
    world.run(Operation::PutRule(five.clone()));
    assert_eq!(settled(&mut world), [(0, 0, 4), (0, 0, 5)]);
    assert_eq!(world.system.len(), 5);
    five.voters = Some(3);
    world.run(Operation::PutRule(five));
    world.now_ms += REPLACE_AFTER;
    assert_eq!(settled(&mut world).len(), 2);
    assert_eq!(world.system.len(), 3);
}

/// It holds nothing else: a node that is missing is missing all the same.
#[test]
fn the_catalog_loses_no_voter_while_a_node_of_it_does_not_answer() {
    let mut world = World::new(&["", "", "", "", ""]);
    world.create(7, &[1, 2, 3], &[]);
    world.system = [1, 2, 3, 4, 5].map(node).into();
    set_rule(&mut world, Selection::Group(SYSTEM_GROUP), |rule| rule.voters = Some(3));
    world.lose(5);
    world.pass_at(0);
    assert_eq!(world.pass_at(REPLACE_AFTER - 1), []);
    // It is gone: it is the one that goes.
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER)), [(0, 5, 0)]);
}

#[test]
fn a_replica_that_can_go_where_the_rule_allows_does_not_wait_for_one_that_cannot() {
    let mut world = World::new(&["b", "b", "a", "a"]);
    world.has(1, &["fifo"]);
    world.create(7, &[1, 2, 3], &["fifo"]);
    set_rule(&mut world, Selection::All, |rule| rule.zones = [name("a")].into());
    world.pass_at(0);
    // The one on node 1 is the only one that may lead.
    assert_eq!(moves(&world.pass_at(REPLACE_AFTER)), [(7, 2, 4)]);
}

/// What is asked about a group names what its rule lacks, whether anything is done about it or not.
#[test]
fn a_rule_that_is_not_met_is_said_and_what_keeps_it_so() {
    let mut world = World::new(&["a", "a", "b", "b"]);
    world.create(7, &[1, 2, 3], &[]);
    world.create(8, &[1, 2], &[]);
    set_rule(&mut world, Selection::Group(group(7)), |rule| {
        (rule.voters, rule.learners) = (Some(1), Some(1));
        rule.zones = [name("a")].into();
    });
    world.set(PlannerMode::Off);
    world.pass_at(0);
    let why = world.why(7);
    for says in ["rule rule", "voters: 1, and has 3", "learners: 1, and has 0", "node 3"] {
        assert!(why.contains(says), "{why}");
    }
    assert!(why.contains("the mode is off"), "{why}");
    assert!(world.why(8).contains("the mode is off"), "{}", world.why(8));
    // Nothing is refused, and nothing has its turn: a node came a moment ago.
    set_rule(&mut world, Selection::Group(group(7)), |rule| rule.zones = [name("a")].into());
    world.set(PlannerMode::On);
    world.pass_at(1_000);
    assert!(world.why(7).contains("its turn comes"), "{}", world.why(7));
    assert!(world.why(8).contains("where they should be"), "{}", world.why(8));
}

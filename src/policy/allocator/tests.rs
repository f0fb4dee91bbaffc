//! Single passes, and what is remembered between them.

use super::*;
use crate::catalog::DrainFallback;
use crate::catalog::{
    Catalog, Command, Name, NewDrain, NewGroup, NewNode, Operation, Selection, Stranding, Subject,
};
use shardhost_proto::version::ClusterVersion;

const REPLACE_AFTER: u64 = 10_000;

fn node(number: u64) -> NodeId {
    NodeId::must(number)
}

fn group(number: u64) -> GroupId {
    GroupId::new(number)
}

fn name(text: &str) -> Name {
    Name::new(Subject::Zone, text).unwrap()
}

/// A cluster, and the allocator that looks at it.
struct World {
    catalog: Catalog,
    live: BTreeSet<NodeId>,
    system: BTreeSet<NodeId>,
    impaired: BTreeSet<NodeId>,
    allocator: Allocator,
    now_ms: u64,
}

impl World {
    /// Nodes with these zones, numbered from 1, all of which answer.
    fn new(zones: &[&str]) -> Self {
        let mut world = Self {
            catalog: Catalog::default(),
            live: BTreeSet::new(),
            system: [1, 2, 3].map(node).into(),
            impaired: BTreeSet::new(),
            allocator: Allocator::default(),
            now_ms: 0,
        };
        for (number, zone) in (1..).zip(zones) {
            world.add(number, zone);
        }
        let prepared = world.live.iter().map(|node| (*node, node.get())).collect();
        world.run(Operation::RaiseVersion { version: ClusterVersion::NEWEST, prepared });
        world.set(PlannerMode::On);
        world
    }

    fn run(&mut self, operation: Operation) {
        self.catalog.apply(&Command::new(1_000, operation)).unwrap();
    }

    fn set(&mut self, mode: PlannerMode) {
        let replicas = ReplicaSettings { mode, replace_after_ms: REPLACE_AFTER };
        self.run(Operation::SetReplicas { replicas });
    }

    fn add(&mut self, number: u64, zone: &str) {
        let zone = (!zone.is_empty()).then(|| name(zone));
        let (id, address) = (node(number), format!("n{number}:1"));
        self.run(Operation::PutNode(NewNode { id, address, zone, weight: 1, store: number }));
        self.live.insert(id);
    }

    fn has(&mut self, number: u64, list: &[&str]) {
        let capabilities = list.iter().map(|text| name(text)).collect();
        self.run(Operation::Advertise { node: node(number), incarnation: 1, capabilities });
    }

    fn create(&mut self, number: u64, founders: &[u64], requires: &[&str]) {
        let kind = Name::new(Subject::Kind, "table").unwrap();
        let mut new = NewGroup::new(group(number), kind, founders.iter().map(|id| node(*id)));
        new.requirement = shardhost_storage::Requirement::hard(requires.iter().copied()).unwrap();
        self.run(Operation::CreateGroup(new));
    }

    fn drain(&mut self, number: u64) {
        self.run(Operation::BeginDrain(NewDrain {
            node: node(number),
            owner: "anna".to_owned(),
            deadline_ms: 2_000,
            expires_ms: 3_000,
            fallback: DrainFallback::Proceed,
            stranding: Stranding::Accept,
        }));
    }

    /// A group's change ended.
    fn swapped(&mut self, change: &Change) {
        let (old, new) = (change.step.old(), change.step.new_node());
        if change.group == SYSTEM_GROUP {
            self.system.retain(|node| Some(*node) != old);
            self.system.extend(new);
            return;
        }
        let record = &self.catalog.view().groups()[&change.group];
        let config = record.reported.as_ref().map_or(1, |members| members.config_index.get() + 1);
        let nodes = record.members().iter().copied().filter(|node| Some(*node) != old);
        let nodes: BTreeSet<NodeId> = nodes.chain(new).collect();
        let adds_learner = matches!(change.step, Step::Add { learner: true, .. });
        let learners = record.learners().unwrap_or_default().iter().copied();
        let learners = learners.chain(new.filter(|_| adds_learner));
        let learners = learners.filter(|node| nodes.contains(node)).collect();
        self.run(Operation::RecordMembers {
            group: change.group,
            config_index: shardhost_storage::LogIndex::new(config),
            nodes,
            founding: None,
            learners: Some(learners),
            generation: None,
        });
    }

    fn pass_at(&mut self, now_ms: u64) -> Vec<Change> {
        self.now_ms = now_ms;
        let (view, live, system) = (self.catalog.view(), &self.live, &self.system);
        let impaired = &self.impaired;
        self.allocator.pass(&Observation {
            now_ms,
            view,
            live,
            impaired,
            system,
            system_learners: &[],
        })
    }

    fn lose(&mut self, number: u64) {
        self.live.remove(&node(number));
    }
}

/// The nodes that groups lose and get replicas on; 0: none.
fn moves(changes: &[Change]) -> Vec<(u64, u64, u64)> {
    let number = |node: Option<NodeId>| node.map_or(0, NodeId::get);
    let nodes = |step: Step| (number(step.old()), number(step.new_node()));
    let each = changes.iter().map(|one| (one.group.get(), nodes(one.step)));
    each.map(|(group, (old, new))| (group, old, new)).collect()
}

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
        world.allocator.ended(change.group, world.now_ms, Outcome::Begun);
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
    assert!(world.allocator.why(group(7)).contains("planned: a replica from node 3 to node 4"));
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
    assert!(world.allocator.why(group(7)).contains("end a drain"));
    assert!(world.allocator.why(group(8)).contains("add a node"));
    assert_eq!(world.allocator.status(0).stuck_total, 2);
}

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

fn set_rule(world: &mut World, groups: Selection, rule: impl FnOnce(&mut ReplicaRule)) {
    let mut new = ReplicaRule {
        name: name("rule"),
        groups,
        voters: None,
        learners: None,
        zones: Box::default(),
        capabilities: Box::default(),
    };
    rule(&mut new);
    world.run(Operation::PutRule(new));
}

/// What a pass orders, carried out until it orders nothing more.
fn settled(world: &mut World) -> Vec<(u64, u64, u64)> {
    let mut all = Vec::new();
    for _ in 0..50 {
        let changes = world.pass_at(world.now_ms + 1_000);
        all.extend(moves(&changes));
        for change in &changes {
            world.allocator.ended(change.group, world.now_ms, Outcome::Begun);
            world.swapped(change);
        }
    }
    assert_eq!(world.pass_at(world.now_ms + 1_000), []);
    all
}

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

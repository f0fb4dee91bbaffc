//! Single passes, and what is remembered between them.

use super::*;
use crate::catalog::DrainFallback;
use crate::catalog::{
    Catalog, Command, Name, NewDrain, NewGroup, NewNode, Operation, Stranding, Subject,
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
        if change.group == SYSTEM_GROUP {
            self.system.remove(&change.old);
            self.system.insert(change.new);
            return;
        }
        let record = &self.catalog.view().groups()[&change.group];
        let config = record.reported.as_ref().map_or(1, |members| members.config_index.get() + 1);
        let nodes = record.members().iter().copied().filter(|node| *node != change.old);
        let nodes = nodes.chain([change.new]).collect();
        self.run(Operation::RecordMembers {
            group: change.group,
            config_index: shardhost_storage::LogIndex::new(config),
            nodes,
            founding: None,
            generation: None,
        });
    }

    fn pass_at(&mut self, now_ms: u64) -> Vec<Change> {
        self.now_ms = now_ms;
        let (view, live, system) = (self.catalog.view(), &self.live, &self.system);
        self.allocator.pass(&Observation { now_ms, view, live, system })
    }

    fn lose(&mut self, number: u64) {
        self.live.remove(&node(number));
    }
}

fn moves(changes: &[Change]) -> Vec<(u64, u64, u64)> {
    changes.iter().map(|one| (one.group.get(), one.old.get(), one.new.get())).collect()
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
    assert!(world.allocator.why(group(7)).contains("would move from node 3 to node 4"));
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
        assert!(changes.len() <= MAX_SPREADING);
        total += changes.len();
        for change in &changes {
            assert_eq!((change.new, change.reason), (node(4), Reason::Count));
            world.swapped(change);
        }
        now += 1_000;
    }
    assert_eq!(total, 9, "a quarter of 36, and no more");
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

//! Stories that must end in a certain way.

use shardhost_groups::core::TransferTarget;
use shardhost_groups::{GroupId, MembershipChange, NodeId, Requirement};

use super::faults::Ambush;
use super::host::Version;
use super::sabotage::Sabotage;
use super::shape::{Shape, advertisement};
use super::world::World;
use crate::catalog::{Operation, Placement, PlannedMoves};

const GROUP: GroupId = GroupId::new(1);

fn node(id: u64) -> NodeId {
    NodeId::must(id)
}

fn for_seeds(scenario: impl Fn(u64) -> Result<(), String>) {
    for seed in 0..20 {
        scenario(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}

/// A cluster at rest, in which these nodes have what the first group strictly requires.
fn at_rest(seed: u64, nodes: u64, groups: u64, able: &[u64]) -> Result<World, String> {
    sabotaged(seed, nodes, groups, able, Sabotage::Nothing)
}

fn sabotaged(
    seed: u64,
    nodes: u64,
    groups: u64,
    able: &[u64],
    sabotage: Sabotage,
) -> Result<World, String> {
    let mut shape = Shape::calm(nodes, groups, seed);
    for id in (1..=nodes).filter(|id| !able.contains(id)) {
        shape.advertisements.insert(node(id), advertisement(&["ssd"]));
    }
    let fifo = Requirement::hard(["fifo"]).map_err(|error| error.to_string())?;
    shape.requirements.insert(GROUP, fifo);
    let mut world = World::new(seed, shape, sabotage);
    world.begin()?;
    world.settle(30_000)?;
    Ok(world)
}

fn served_by(world: &World, expected: NodeId) -> Result<(), String> {
    match world.server_of(GROUP) {
        Some(server) if server == expected => Ok(()),
        other => Err(format!("{GROUP} is served by {other:?}, not by {expected}")),
    }
}

/// How many of all groups a node leads.
fn led_by(world: &World, node: NodeId) -> usize {
    world.groups.iter().filter(|group| world.server_of(**group) == Some(node)).count()
}

/// Of the first group's voters only one has what it requires, and that one is lost: the group takes
/// a new member that has it, and is served by it.
#[test]
fn a_group_that_nobody_may_lead_is_repaired_by_a_new_member() {
    for_seeds(|seed| {
        // Its voters are the nodes 2, 3 and 4.
        let mut world = at_rest(seed, 5, 4, &[1, 2])?;
        served_by(&world, node(2))?;
        world.cluster.crash(node(2), 0);
        world.pass(15_000)?;
        if let Some(server) = world.server_of(GROUP) {
            return Err(format!("{server} serves"));
        }
        let leads = |id: &NodeId| world.cluster.status(*id, GROUP).is_some_and(|s| s.is_leader());
        let leader = world.cluster.node_ids().into_iter().find(leads).ok_or("no leader")?;
        let why = world.planner().map(|planner_instance| {
            planner_instance.executor.why(GROUP, world.clock()).to_string()
        });
        if !why.as_ref().is_some_and(|why| why.contains("INCAPABLE")) {
            return Err(format!("the planner says {why:?}"));
        }
        let change = MembershipChange::new().add_voter(node(1));
        world.cluster.change_members(leader, GROUP, change)?;
        world.pass(10_000)?;
        served_by(&world, node(1))?;
        world.settle(30_000)
    });
}

/// The time of day of all nodes jumps a day ahead for five seconds: orders afterwards are executed
/// as soon as ever. A planner that uses the time of day takes every report for a day old from then
/// on.
#[test]
fn a_time_of_day_that_jumps_holds_no_planner() {
    let story = |seed, sabotage| {
        let mut world = sabotaged(seed, 5, 2, &[1, 2, 3, 4, 5], sabotage)?;
        world.ahead_ms = 24 * 60 * 60 * 1_000;
        world.pass(5_000)?;
        world.ahead_ms = 0;
        let server = world.server_of(GROUP).ok_or("no leader that serves")?;
        let pin = (2..=4).map(node).find(|id| *id != server);
        let placement = Placement { pin, ..Placement::default() };
        world.change(Operation::SetPlacement { group: GROUP, placement })?;
        world.pass(30_000)?;
        served_by(&world, pin.ok_or("no other voter")?)
    };
    for_seeds(|seed| story(seed, Sabotage::Nothing));
    let held = (0..20).filter(|seed| story(*seed, Sabotage::TimeOfDay).is_err()).count();
    assert_eq!(held, 20, "a planner that goes by the time of day is held");
}

/// A follower loses what the group requires, and the leader dies: the other follower is elected. If
/// the loss is not advertised, either may be, and the check of elections notices.
#[test]
fn an_election_that_the_wrong_one_wins_is_noticed() {
    let story = |seed, sabotage| {
        let mut world = sabotaged(seed, 5, 2, &[1, 2, 3, 4, 5], sabotage)?;
        let leader = world.server_of(GROUP).ok_or("no leader that serves")?;
        let follower = (2..=4).map(node).find(|id| *id != leader).ok_or("no follower")?;
        world.advertise(follower, advertisement(&["ssd"]))?;
        world.pass(9_000)?;
        world.cluster.crash(leader, 0);
        world.pass(9_000)
    };
    for_seeds(|seed| story(seed, Sabotage::Nothing));
    let complaints: Vec<String> =
        (0..20).filter_map(|seed| story(seed, Sabotage::KeepAdvertisements).err()).collect();
    assert!(complaints.iter().any(|text| text.contains("lacks what")), "{complaints:?}");
}

/// Of two that have what the group requires one fell far behind, and the leader lost its quorum.
/// When the two others come back, the one that is behind cannot win; that is no reason for the
/// ineligible one to campaign, as long as the third can win.
#[test]
fn a_fit_candidate_that_is_behind_does_not_make_an_unfit_one_stand() {
    let story = |seed| {
        let mut world = at_rest(seed, 5, 1, &[1, 2, 3, 5])?;
        let leader = world.server_of(GROUP).ok_or("no leader that serves")?;
        let behind = [2, 3].map(node).into_iter().find(|id| *id != leader).ok_or("no other")?;
        world.cluster.crash(behind, 0);
        world.pass(500)?;
        for _ in 0..20 {
            world.cluster.write(leader, GROUP, 5)?;
            world.pass(50)?;
        }
        world.cluster.crash(node(4), 1);
        world.pass(8_000)?;
        world.cluster.restart(behind)?;
        world.cluster.restart(node(4))?;
        world.pass(5_000)
    };
    for_seeds(story);
}

/// A planner is partitioned when its orders have just left, and they arrive when a later one is
/// known: they are refused, and leaders reach the best places all the same.
#[test]
fn orders_of_a_planner_that_was_replaced_move_nothing() {
    let mut refused = 0;
    for seed in 0..20 {
        let story = || -> Result<u64, String> {
            let mut world = at_rest(seed, 5, 6, &[1, 2, 3, 4, 5])?;
            let leader = world.server_of(GROUP).ok_or("no leader that serves")?;
            let target = (2..=4).map(node).find(|id| *id != leader);
            world.ambush = Some(if seed % 2 == 0 { Ambush::CutOff } else { Ambush::Crash });
            world.pin(GROUP, target)?;
            world.pass(12_000)?;
            world.heal()?;
            world.settle(60_000)?;
            Ok(world.checks.coverage.stale_planner_terms + world.checks.coverage.stale_terms)
        };
        refused += story().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
    assert!(refused > 5, "only {refused} late orders met a later planner");
}

/// While an order is on its way, its group is handed on and comes back: the order is for another
/// term, and is refused. A host that did not look at the term would be noticed.
#[test]
fn orders_for_an_earlier_term_move_nothing() {
    let story = |seed, sabotage| -> Result<u64, String> {
        let mut world = sabotaged(seed, 4, 4, &[1, 2, 3, 4], sabotage)?;
        let leader = world.server_of(GROUP).ok_or("no leader that serves")?;
        let target = (2..=4).map(node).find(|id| *id != leader);
        world.ambush = Some(Ambush::Delay);
        world.pin(GROUP, target)?;
        let ordered = world.checks.coverage.ordered;
        while world.checks.coverage.ordered == ordered && world.cluster.now() < 60_000 {
            world.pass(10)?;
        }
        let other = (2..=4).map(node).find(|id| *id != leader && Some(*id) != target);
        let other = other.ok_or("no third voter")?;
        world.watch.ordered(GROUP, world.cluster.now());
        for (from, to) in [(leader, other), (other, leader)] {
            let to = TransferTarget::Node(to);
            world.cluster.hand_over(from, GROUP, to).map(drop)?;
            world.pass(200)?;
        }
        world.pass(8_000)?;
        Ok(world.checks.coverage.stale_terms)
    };
    let refused: u64 = (0..20).map(|seed| story(seed, Sabotage::Nothing).unwrap()).sum();
    assert!(refused > 5, "only {refused} orders met a later term");
    let complaint = (0..20).find_map(|seed| story(seed, Sabotage::IgnoreTerm).err());
    assert!(complaint.as_ref().is_some_and(|text| text.contains("is obeyed by")), "{complaint:?}");
}

/// A node that drains leads nothing soon, also of what was in its way; afterwards it gets its part.
#[test]
fn a_drained_node_is_emptied_and_gets_its_part_again() {
    for_seeds(|seed| {
        let mut world = at_rest(seed, 4, 8, &[1, 2, 3, 4])?;
        world.drain(node(3), true)?;
        world.pass(3_000)?;
        let left = led_by(&world, node(3));
        if left > 0 {
            return Err(format!("node 3 drains and leads {left}"));
        }
        world.settle(30_000)?;
        world.drain(node(3), false)?;
        world.settle(60_000)?;
        match led_by(&world, node(3)) {
            2 => Ok(()),
            other => Err(format!("of 8 groups on 4 nodes node 3 leads {other}")),
        }
    });
}

/// While the kill switch is set no leader is moved, whatever would be better; afterwards it is.
#[test]
fn nothing_planned_moves_while_the_kill_switch_is_set() {
    for_seeds(|seed| {
        let mut world = at_rest(seed, 4, 8, &[1, 2, 3, 4])?;
        let reason = "for the test".to_owned();
        world.change(Operation::SetPlannedMoves { moves: PlannedMoves::Stopped, reason })?;
        let leader = world.server_of(GROUP).ok_or("no leader that serves")?;
        let target = (2..=4).map(node).find(|id| *id != leader).ok_or("no target")?;
        world.pass(1_000)?;
        world.pin(GROUP, Some(target))?;
        let ordered = world.checks.coverage.ordered;
        world.pass(15_000)?;
        served_by(&world, leader)?;
        if world.checks.coverage.ordered != ordered {
            return Err("an order was given".to_owned());
        }
        world.let_planners_go_on()?;
        world.settle(30_000)?;
        served_by(&world, target)
    });
}

/// A host of a version that knows of no planner is given nothing and asked for nothing.
#[test]
fn a_host_that_reports_nothing_is_no_target() {
    for_seeds(|seed| {
        let mut world = at_rest(seed, 4, 8, &[1, 2, 3, 4])?;
        let leader = world.server_of(GROUP).ok_or("no leader that serves")?;
        let old = (2..=4).map(node).find(|id| *id != leader).ok_or("no target")?;
        world.versions.insert(old, Version::Old);
        world.cluster.crash(old, 0);
        world.cluster.restart(old)?;
        world.pass(15_000)?;
        world.pin(GROUP, Some(old))?;
        world.pass(10_000)?;
        served_by(&world, leader)?;
        world.versions.clear();
        world.cluster.crash(old, 0);
        world.cluster.restart(old)?;
        world.settle(60_000)?;
        served_by(&world, old)
    });
}

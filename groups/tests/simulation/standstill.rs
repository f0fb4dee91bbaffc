//! Replicas that stand still, without their state or with one that is not restored yet, hold
//! nothing up that the group can do without them. Each world leads to one such moment, at times
//! that its seed draws.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::{CaughtUp, GroupId, MembershipChange, NodeId, Requirement};
use shardhost_testing::simulation::{Cluster, Shape};

const GROUP: GroupId = GroupId::new(1);
/// Milliseconds after which the group has to be served again.
const WITHIN: u64 = 25_000;

/// One group on nodes 1 to 3, which works, and whose logs were truncated.
fn working(seed: u64, spares: u64, bugs: KnownBugs) -> Result<Cluster, String> {
    let mut shape = Shape::calm();
    (shape.groups, shape.spares, shape.keeping) = (1, spares, 2);
    (shape.config.seed, shape.config.bugs, shape.config.hibernate_after_ticks) = (seed, bugs, 0);
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    cluster.clients_work(true);
    settle(&mut cluster, 6)?;
    Ok(cluster)
}

/// Time passes, and machines keep what they hold.
fn settle(cluster: &mut Cluster, seconds: u64) -> Result<(), String> {
    for _ in 0..seconds {
        cluster.pass(1_000)?;
        cluster.node_ids().into_iter().for_each(|node| cluster.flush_machines(node));
    }
    Ok(())
}

/// The leader, and the two others in an order that the seed draws.
fn roles(cluster: &Cluster, seed: u64) -> Result<[NodeId; 3], String> {
    let leader = cluster.leader_of(GROUP).ok_or("nobody serves the group")?;
    let others: Vec<NodeId> =
        [1, 2, 3].map(NodeId::must).into_iter().filter(|node| *node != leader).collect();
    let [one, other] = others[..] else { return Err("there are three".to_owned()) };
    Ok(if seed.is_multiple_of(2) { [leader, one, other] } else { [leader, other, one] })
}

fn is_served(cluster: &mut Cluster) -> Result<NodeId, String> {
    cluster.pass(WITHIN)?;
    cluster.leader_of(GROUP).ok_or_else(|| {
        let said = cluster.node_ids().into_iter().map(|node| {
            cluster.status(node, GROUP).map_or(format!("{node:?} has none"), |status| {
                let (role, joint) = (status.role.name(), status.membership.is_joint());
                format!("{node:?} {role} joint={joint} {:?} {:?}", status.stalled, status.caretaker)
            })
        });
        format!("nobody serves the group: {}", said.collect::<Vec<_>>().join("; "))
    })
}

/// The first seed that notices a bug; without the bug it holds, as all others do.
fn is_caught(world: fn(u64, KnownBugs) -> Result<(), String>, bug: KnownBug) {
    for seed in 0..60 {
        world(seed, KnownBugs::none()).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    let found = (0..60).find_map(|seed| world(seed, KnownBugs::from([bug])).err());
    println!("{}", found.expect("no seed noticed the bug"));
}

/// One voter is far behind, and another loses its state and has to lead these two. Then the third
/// is back, which has everything, and does not answer when it is asked to take over.
fn an_unlevel_one_is_not_waited_for(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, lost, behind] = roles(&cluster, seed)?;
    cluster.crash(behind, usize::MAX);
    for _ in 0..30 {
        cluster.write(leader, GROUP, 50)?;
        cluster.pass(200)?;
    }
    settle(&mut cluster, 3)?;
    cluster.clients_work(false);
    cluster.pass(2_000)?;
    cluster.crash(leader, usize::MAX);
    cluster.crash(lost, usize::MAX);
    cluster.lose_state(lost, GROUP);
    cluster.restart(lost)?;
    cluster.restart(behind)?;
    cluster.pass(12_000)?;
    // It hears the leader, and what it says comes too late for the leader to wait for. Its state does not come
    // at all: with that, the leader would serve.
    cluster.ship_nothing(120_000);
    cluster.restart(leader)?;
    cluster.slow_link(leader, lost, 600 + seed * 5);
    cluster.heal_network_later(4_000 + seed % 7 * 300);
    cluster.pass(5_000)?;
    is_served(&mut cluster).map(|_| ())
}

#[test]
fn a_leader_that_waits_for_one_that_lags_is_caught() {
    is_caught(an_unlevel_one_is_not_waited_for, KnownBug::KeepForTheUnlevel);
}

/// The leader dies when a joint configuration is on its way, and who has to lead next has no room.
fn a_joint_configuration_is_left(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 1, bugs)?;
    let [leader, full, behind] = roles(&cluster, seed)?;
    let spare = NodeId::must(4);
    cluster.change_members(leader, GROUP, MembershipChange::new().add_learner(spare))?;
    cluster.pass(3_000)?;
    cluster.fill_disk(full, 120_000);
    cluster.crash(behind, usize::MAX);
    cluster.pass(2_000)?;
    let change = MembershipChange::new().promote(spare, CaughtUp::Unchecked).remove(behind);
    cluster.change_members(leader, GROUP, change)?;
    cluster.pass(1 + seed)?;
    cluster.crash(leader, usize::MAX);
    cluster.restart(behind)?;
    is_served(&mut cluster).map(|_| ())
}

#[test]
fn a_stalled_leader_that_keeps_a_joint_configuration_is_caught() {
    is_caught(a_joint_configuration_is_left, KnownBug::JointWaitsForMachine);
}

/// A follower gets a snapshot and has no room for it. It acknowledges what stands behind; then the
/// leader dies, and the other voter lacks that.
fn an_installing_follower_leads(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, other, behind] = roles(&cluster, seed)?;
    cluster.crash(behind, usize::MAX);
    settle(&mut cluster, 6)?;
    cluster.fill_disk(behind, 120_000);
    cluster.restart(behind)?;
    cluster.pass(4_000)?;
    cluster.isolate(other);
    cluster.pass(500 + seed * 20)?;
    cluster.crash(leader, usize::MAX);
    cluster.heal_network_later(0);
    is_served(&mut cluster).map(|_| ())
}

#[test]
fn a_follower_that_stays_out_while_it_installs_is_caught() {
    is_caught(an_installing_follower_leads, KnownBug::InstallStaysOut);
}

/// All but the leader lose their states, and an operator removes the leader just then. There are
/// two voters or three.
fn the_last_state_stays(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, one, other] = roles(&cluster, seed)?;
    let alone = seed.is_multiple_of(3);
    if alone {
        cluster.change_members(leader, GROUP, MembershipChange::new().remove(other))?;
        cluster.pass(3_000)?;
    }
    cluster.ship_nothing(4_000);
    let lost = if alone { vec![one] } else { vec![one, other] };
    for node in lost {
        cluster.crash(node, usize::MAX);
        cluster.lose_state(node, GROUP);
        cluster.restart_later(node, seed * 7 % 400);
    }
    for _ in 0..20 {
        cluster.pass(100)?;
        let leads = cluster.leader_of(GROUP) == Some(leader);
        if leads {
            cluster.change_members(leader, GROUP, MembershipChange::new().remove(leader))?;
        }
    }
    is_served(&mut cluster).map(|_| ())
}

/// A follower restores a snapshot for long, and gets on. The leader dies: the voter that has
/// everything leads.
fn a_restore_that_lasts_leads_last(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, whole, behind] = roles(&cluster, seed)?;
    cluster.crash(behind, usize::MAX);
    settle(&mut cluster, 6)?;
    cluster.restart(behind)?;
    cluster.hang_machine(behind, GROUP, 120_000);
    cluster.pass(4_000 + seed * 30)?;
    cluster.crash(leader, usize::MAX);
    let served = is_served(&mut cluster)?;
    if served == whole { Ok(()) } else { Err(format!("{served:?} serves, and restores")) }
}

#[test]
fn leading_while_a_state_is_restored_is_caught() {
    is_caught(a_restore_that_lasts_leads_last, KnownBug::LeadImpaired);
}

#[test]
fn removing_the_last_state_is_caught() {
    is_caught(the_last_state_stays, KnownBug::ForgetLostStates);
}

/// Two voters without a state are all that is left for a while. One of them leads, and neither can
/// give the other what it lacks: how many terms that takes.
fn leads_on_without_a_state(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, one, other] = roles(&cluster, seed)?;
    for node in [leader, one, other] {
        cluster.crash(node, usize::MAX);
    }
    for node in [one, other] {
        cluster.lose_state(node, GROUP);
        cluster.restart_later(node, seed * 7 % 400);
    }
    // Each lets election timeouts go by, in case one with a state is there.
    cluster.pass(25_000)?;
    let term = |cluster: &Cluster| {
        let term = |node| cluster.status(node, GROUP).map_or(0, |status| status.term.get());
        term(one).max(term(other))
    };
    let before = term(&cluster);
    cluster.pass(20_000)?;
    let terms = term(&cluster) - before;
    if terms > 0 {
        return Err(format!("{terms} new terms in 20 s among two that can serve nobody"));
    }
    cluster.restart(leader)?;
    is_served(&mut cluster).map(|_| ())
}

#[test]
fn leaders_without_a_state_that_leave_to_their_like_are_caught() {
    is_caught(leads_on_without_a_state, KnownBug::ForgetLostStates);
}

/// The replica of a voter ends, and its node runs on. Then the leader is asked for changes that would leave it with that
/// one, awake or not.
fn a_change_beside_a_failed_replica(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, whole, failed] = roles(&cluster, seed)?;
    cluster.clients_work(seed.is_multiple_of(3));
    cluster.pass(seed % 5 * 1_000)?;
    cluster.close(failed, GROUP)?;
    // As long as it was heard it may be about to answer.
    cluster.pass(1_500 + seed * 10)?;
    let change = match seed % 4 {
        0 => MembershipChange::new().demote(whole),
        _ => MembershipChange::new().remove(whole),
    };
    cluster.change_members(leader, GROUP, change)?;
    is_served(&mut cluster).map(|_| ())
}

#[test]
fn a_change_that_counts_on_a_replica_that_failed_is_caught() {
    is_caught(a_change_beside_a_failed_replica, KnownBug::CountNodesForReplicas);
}

/// A voter is cut off, or its disk hangs, and a moment later the leader is asked for a change that would leave it with
/// that one.
fn a_change_beside_one_that_is_gone(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, whole, gone] = roles(&cluster, seed)?;
    if seed.is_multiple_of(2) {
        cluster.isolate(gone);
    } else {
        cluster.hang_log(gone, 120_000);
        cluster.write(leader, GROUP, 1)?;
    }
    cluster.pass(50 + seed * 13)?;
    let change = match seed % 4 {
        0 => MembershipChange::new().demote(whole),
        _ => MembershipChange::new().remove(whole),
    };
    cluster.change_members(leader, GROUP, change)?;
    is_served(&mut cluster)?;
    cluster.clients_work(false);
    cluster.pass(2_000)?;
    // A leader is there as long as it is answered, whether anything is written or not.
    cluster.write_to_every_group()
}

#[test]
fn a_change_that_counts_on_what_was_answered_before_is_caught() {
    is_caught(a_change_beside_one_that_is_gone, KnownBug::CountEarlierAnswers);
}

#[test]
fn a_change_that_counts_on_one_that_takes_nothing_is_caught() {
    is_caught(a_change_beside_one_that_is_gone, KnownBug::CountVotersThatTakeNothing);
}

/// A leader that should not lead asks the only voter that could, which is impaired itself: it lost its state,
/// or has no room either. That passes, the impairment of the leader does not.
fn an_impaired_one_is_asked_again(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 0, bugs)?;
    let [leader, one, other] = roles(&cluster, seed)?;
    let wanted = if seed.is_multiple_of(4) { one } else { leader };
    if seed.is_multiple_of(2) {
        only_one_may_serve(&mut cluster, seed, wanted)?;
    } else {
        cluster.crash(other, usize::MAX);
        cluster.pass(2_000)?;
        cluster.fill_disk(one, 3_000 + seed * 100);
        cluster.fill_disk(leader, 120_000);
        cluster.pass(3_000 + seed * 100)?;
    }
    is_served(&mut cluster).map(|_| ())
}

/// A group requires what one node has, which loses the state, and gets no other one for a while.
fn only_one_may_serve(cluster: &mut Cluster, seed: u64, wanted: NodeId) -> Result<(), String> {
    let capabilities = ["fifo".to_owned()].into_iter().collect();
    cluster.advertise(wanted, Advertisement { capabilities, ..Advertisement::default() })?;
    for node in cluster.node_ids().into_iter().filter(|node| *node != wanted) {
        cluster.advertise(node, Advertisement::default())?;
    }
    cluster.pass(1_000)?;
    let requirement = Requirement::hard(["fifo"]).map_err(|error| error.to_string())?;
    cluster.require(GROUP, requirement)?;
    settle(cluster, 8)?;
    let serves = cluster.leader_of(GROUP);
    if serves != Some(wanted) {
        return Err(format!("{serves:?} serves, not {wanted:?}"));
    }
    cluster.crash(wanted, usize::MAX);
    cluster.lose_state(wanted, GROUP);
    cluster.pass(5_000)?;
    cluster.ship_nothing(seed * 50);
    cluster.restart(wanted)
}

#[test]
fn an_impaired_successor_that_is_not_asked_again_is_caught() {
    is_caught(an_impaired_one_is_asked_again, KnownBug::ImpairedForGood);
}

/// The last replica that has the state is none that could lead: a learner, a voter that was removed while it
/// was down, or one that goes with a joint configuration. All others lose theirs.
fn the_last_state_is_given_by_any(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut cluster = working(seed, 1, bugs)?;
    let [leader, _, other] = roles(&cluster, seed)?;
    let spare = NodeId::must(4);
    if seed % 3 != 1 {
        cluster.change_members(leader, GROUP, MembershipChange::new().add_learner(spare))?;
    }
    cluster.pass(3_000)?;
    cluster.clients_work(false);
    settle(&mut cluster, 2)?;
    let last = if seed.is_multiple_of(3) { spare } else { other };
    cluster.crash(last, usize::MAX);
    cluster.pass(100 + seed * 20)?;
    let change = match seed % 3 {
        0 => None,
        1 => Some(MembershipChange::new().remove(other)),
        _ => Some(MembershipChange::new().promote(spare, CaughtUp::Unchecked).remove(other)),
    };
    if let Some(change) = change {
        cluster.change_members(leader, GROUP, change)?;
        // A joint configuration is left within about 20 ms.
        cluster.pass(seed)?;
    }
    let lost: Vec<NodeId> = cluster.node_ids().into_iter().filter(|node| *node != last).collect();
    for (at, node) in (0..).zip(lost) {
        cluster.crash(node, usize::MAX);
        cluster.lose_state(node, GROUP);
        cluster.restart_later(node, seed * (7 + at) % 400);
    }
    cluster.restart_later(last, seed * 131 % 9_000);
    is_served(&mut cluster).map(|_| ())
}

#[test]
fn a_last_state_that_only_a_leader_may_give_is_caught() {
    is_caught(the_last_state_is_given_by_any, KnownBug::OnlyLeadersGiveState);
}

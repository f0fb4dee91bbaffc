//! Who leads: seeded runs with capabilities that come and go, and scenarios in which it must be a
//! certain one.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::{GroupId, NodeId, Requirement, RequirementMode};
use shardhost_testing::simulation::{Cluster, Shape};

use crate::{all_seeds_hold, run};

const GROUP: GroupId = GroupId::new(1);

fn having(names: &[&str]) -> Advertisement {
    let capabilities = names.iter().map(|name| (*name).to_owned()).collect();
    Advertisement { capabilities, ..Advertisement::default() }
}

fn draining() -> Advertisement {
    Advertisement { draining: true, ..having(&["fifo"]) }
}

/// A calm cluster in which these nodes have what the group requires of its leader.
fn cluster(seed: u64, nodes: u64, able: &[u64]) -> Result<Cluster, String> {
    let mut shape = Shape::calm();
    shape.nodes = nodes;
    shape.groups = 1;
    shape.config.seed = seed;
    shape.config.hibernate_after_ticks = if seed.is_multiple_of(2) { 0 } else { 10 };
    let mut cluster = Cluster::new(seed, &shape);
    for node in 1..=nodes {
        let advertisement = if able.contains(&node) { having(&["fifo"]) } else { having(&[]) };
        cluster.advertise(NodeId::must(node), advertisement)?;
    }
    cluster.pass(4_000)?;
    cluster.require(GROUP, Requirement::hard(["fifo"]).unwrap())?;
    cluster.pass(2_000)?;
    Ok(cluster)
}

fn led_by(cluster: &Cluster, able: &[u64]) -> Result<NodeId, String> {
    let leader = cluster.leader_of(GROUP).ok_or("nobody serves the group")?;
    match able.contains(&leader.get()) {
        true => Ok(leader),
        false => Err(format!("{leader:?} leads")),
    }
}

fn for_seeds(scenario: impl Fn(u64) -> Result<(), String>) {
    for seed in 0..60 {
        scenario(seed).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}

#[test]
fn clusters_keep_their_promises_while_capabilities_come_and_go() {
    all_seeds_hold(Shape::choosing, |coverage, runs| {
        assert!(coverage.caretakers > runs, "{coverage:?}");
        assert!(coverage.acknowledged > runs * 50 && coverage.transfers > runs / 2, "{coverage:?}");
    });
}

/// What the users of a group get while its leader is impaired: another leader, within seconds, and
/// none on that node before it is over; the writes go on.
fn an_impaired_leader_hands_over(
    seed: u64,
    bug: Option<KnownBug>,
    impair: impl Fn(&mut Cluster, NodeId) -> Result<(), String>,
    heal: impl Fn(&mut Cluster, NodeId) -> Result<(), String>,
) -> Result<(), String> {
    let mut shape = Shape::calm();
    shape.groups = 1;
    shape.config.seed = seed;
    shape.config.hibernate_after_ticks = if seed.is_multiple_of(2) { 0 } else { 10 };
    shape.config.bugs = bug.map_or_else(KnownBugs::none, |bug| KnownBugs::from([bug]));
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(4_000)?;
    let leader = led_by(&cluster, &[1, 2, 3])?;
    cluster.clients_work(true);
    impair(&mut cluster, leader)?;
    cluster.pass(4_000)?;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader.get()).collect();
    let next = led_by(&cluster, &others)?;
    let before = cluster.status(next, GROUP).ok_or("no status")?.applied;
    cluster.pass(4_000)?;
    let next = led_by(&cluster, &others)?;
    let applied = cluster.status(next, GROUP).ok_or("no status")?.applied;
    if applied <= before {
        return Err(format!("{next:?} leads and applies nothing behind {before}"));
    }
    heal(&mut cluster, leader)?;
    cluster.pass(2_000)?;
    cluster.clients_work(false);
    // The others cannot go on: it leads again, and what it applies is what they applied.
    for node in others {
        cluster.crash(NodeId::must(node), usize::MAX);
    }
    cluster.restart_later(next, 500);
    cluster.pass(8_000)?;
    led_by(&cluster, &[leader.get(), next.get()])?;
    Ok(())
}

/// Its disk takes nothing, which the host notices.
fn hangs(cluster: &mut Cluster, node: NodeId) -> Result<(), String> {
    cluster.hang_log(node, 60_000);
    cluster.impair(node, RequirementMode::Hard)
}

fn recovers(cluster: &mut Cluster, node: NodeId) -> Result<(), String> {
    cluster.hang_log(node, 0);
    cluster.advertise(node, Advertisement::default())
}

fn stalls(cluster: &mut Cluster, node: NodeId) -> Result<(), String> {
    cluster.stall_machine(node, GROUP, 8_000);
    Ok(())
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_and_comes_back() {
    for_seeds(|seed| an_impaired_leader_hands_over(seed, None, hangs, recovers));
}

#[test]
fn a_leader_whose_machine_stands_still_hands_over_and_goes_on() {
    for_seeds(|seed| an_impaired_leader_hands_over(seed, None, stalls, |_, _| Ok(())));
}

#[test]
fn an_impaired_leader_that_leads_on_is_caught() {
    let bug = Some(KnownBug::LeadImpaired);
    for impair in [hangs, stalls] {
        let found = an_impaired_leader_hands_over(1, bug, impair, |_, _| Ok(()));
        let found = found.expect_err("it handed over all the same");
        assert!(found.contains("while it is impaired") || found.contains("leads"), "{found}");
    }
}

#[test]
fn a_leader_that_waits_for_its_own_disk_is_caught() {
    let bug = Some(KnownBug::WaitForOwnDisk);
    let found = an_impaired_leader_hands_over(1, bug, hangs, recovers);
    let found = found.expect_err("it handed over all the same");
    assert!(found.contains("nobody serves") || found.contains("leads"), "{found}");
}

/// A seed notices the bug, in these words, in clusters in which capabilities and policies change.
fn a_seed_notices(bug: KnownBug, words: &str) {
    let found = (0..2_000).find_map(|seed| {
        let mut shape = Shape::choosing(seed);
        shape.config.bugs = KnownBugs::from([bug]);
        let violation = run(seed, &shape).0.err()?;
        violation.contains(words).then(|| format!("seed {seed}: {violation}"))
    });
    println!("{}", found.expect("no seed noticed the bug"));
}

#[test]
fn a_caretaker_that_answers_reads_is_caught() {
    a_seed_notices(KnownBug::CaretakerAnswersReads, "serves no users, and answered");
}

#[test]
fn an_answer_to_an_earlier_question_that_counts_is_caught() {
    a_seed_notices(KnownBug::AnyAnswerCounts, "against its policy");
}

#[test]
fn a_silent_policy_that_keeps_the_leadership_is_caught() {
    a_seed_notices(KnownBug::SilentPolicyKeepsLeadership, "is not led");
}

/// Whenever the leader dies, an eligible replica is elected, and no other even for a moment.
#[test]
fn an_election_is_won_by_one_that_has_what_is_required() {
    for_seeds(|seed| {
        let able = [1, 2, 4];
        let mut cluster = cluster(seed, 5, &able)?;
        for _ in 0..2 {
            let leader = led_by(&cluster, &able)?;
            let before = cluster.checks().leadership_of(GROUP).len();
            cluster.crash(leader, 0);
            cluster.pass(7_000)?;
            led_by(&cluster, &able)?;
            let elected = cluster.checks().leadership_of(GROUP)[before..].to_vec();
            if elected.iter().any(|(_, node)| !able.contains(&node.get())) {
                return Err(format!("elected were {elected:?}"));
            }
            cluster.restart(leader)?;
            cluster.pass(2_000)?;
        }
        Ok(())
    });
}

/// All nodes advertise the required capability, and none has it when it is asked: leadership goes
/// to each voter once at most.
#[test]
fn without_news_leadership_is_handed_on_once_per_voter_at_most() {
    for_seeds(|seed| {
        let mut cluster = cluster(seed, 5, &[1, 2, 3, 4, 5])?;
        let before = cluster.checks().leadership_of(GROUP).len();
        cluster.hush(true);
        for node in 1..=5 {
            cluster.advertise(NodeId::must(node), having(&[]))?;
        }
        cluster.pass(60_000)?;
        let moves = cluster.checks().leadership_of(GROUP).len() - before;
        if moves > 5 {
            return Err(format!("leadership moved {moves} times"));
        }
        cluster.hush(false);
        cluster.advertise(NodeId::must(3), having(&["fifo"]))?;
        cluster.pass(3_000)?;
        led_by(&cluster, &[3]).map(|_| ())
    });
}

/// No remaining voter has the required capability: the group has a leader that serves no users,
/// takes a change of the requirement, and serves then.
#[test]
fn a_group_that_nobody_may_lead_can_be_repaired() {
    for_seeds(|seed| {
        let mut cluster = cluster(seed, 3, &[1])?;
        led_by(&cluster, &[1])?;
        cluster.crash(NodeId::must(1), 0);
        cluster.pass(25_000)?;
        if let Some(leader) = cluster.leader_of(GROUP) {
            return Err(format!("{leader:?} serves"));
        }
        cluster.require(GROUP, Requirement::default())?;
        cluster.pass(2_000)?;
        cluster.write_to_every_group()?;
        cluster.require(GROUP, Requirement::hard(["fifo"]).unwrap())?;
        cluster.restart(NodeId::must(1))?;
        cluster.pass(8_000)?;
        led_by(&cluster, &[1]).map(|_| ())
    });
}

/// The one that has what is required comes to lack it while it leads, and another comes to have it.
#[test]
fn leadership_follows_what_is_required() {
    for_seeds(|seed| {
        let mut cluster = cluster(seed, 3, &[1])?;
        for able in [2, 3, 1, 2] {
            for node in 1..=3 {
                let advertisement = if node == able { having(&["fifo"]) } else { having(&["ssd"]) };
                cluster.advertise(NodeId::must(node), advertisement)?;
            }
            cluster.pass(6_000)?;
            led_by(&cluster, &[able])?;
            cluster.write_to_every_group()?;
        }
        Ok(())
    });
}

/// A node that drains is elected last, and is elected when no other is left.
#[test]
fn a_draining_node_leads_when_nobody_else_can() {
    for_seeds(|seed| {
        let mut cluster = cluster(seed, 3, &[1, 2, 3])?;
        let leader = led_by(&cluster, &[1, 2, 3])?;
        let others: Vec<NodeId> =
            cluster.node_ids().into_iter().filter(|node| *node != leader).collect();
        cluster.advertise(others[0], draining())?;
        cluster.pass(1_000)?;
        cluster.crash(leader, 0);
        cluster.pass(7_000)?;
        led_by(&cluster, &[others[1].get()])?;
        cluster.advertise(others[1], draining())?;
        cluster.crash(others[1], 0);
        cluster.restart(leader)?;
        cluster.advertise(leader, draining())?;
        cluster.pass(12_000)?;
        led_by(&cluster, &[leader.get(), others[0].get()]).map(|_| ())
    });
}

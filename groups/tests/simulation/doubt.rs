//! A replica that lost the end of its log must not help to elect one that never had it.

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{GroupId, NodeId};
use shardhost_testing::simulation::{Cluster, Shape};

use crate::{all_seeds_hold, run};

const GROUP: GroupId = GroupId::new(1);

/// Acknowledged by the leader and one follower, which loses it in a loss of power, while the leader
/// stays down and the other follower never had it.
fn play(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut shape = Shape::calm();
    shape.groups = 1;
    shape.config.seed = seed;
    shape.config.bugs = bugs;
    let mut cluster = Cluster::new(seed, &shape);
    cluster.clients_work(false);
    cluster.pass(4_000)?;
    let leader = cluster.leader_of(GROUP).ok_or("no leader")?;
    let mut others = cluster.node_ids().into_iter().filter(|id| *id != leader);
    let (Some(loser), Some(lagging)) = (others.next(), others.next()) else {
        return Err("there are three nodes".to_owned());
    };
    cut_off(&mut cluster, lagging, [leader, loser]);
    cluster.lose_tail_at_crash(loser);
    cluster.write(leader, GROUP, 1)?;
    // Long enough for the acknowledgement, too short for a new leader.
    cluster.pass(300)?;
    cluster.crash(leader, 0);
    cluster.crash(loser, 0);
    cluster.network.heal();
    cluster.restart(loser)?;
    cluster.pass(10_000)?;
    cluster.restart(leader)?;
    cluster.heal_and_settle()
}

fn cut_off(cluster: &mut Cluster, one: NodeId, others: [NodeId; 2]) {
    for other in others {
        cluster.network.block(one, other);
        cluster.network.block(other, one);
    }
}

#[test]
fn an_acknowledged_write_survives_that_one_replica_loses_its_tail() {
    let bugs = KnownBugs::from([KnownBug::IgnoreDoubt]);
    let complaints: Vec<String> = (0..20).filter_map(|seed| play(seed, bugs).err()).collect();
    assert!(complaints.len() > 5, "{complaints:?}");
    for seed in 0..20 {
        play(seed, KnownBugs::default()).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}

#[test]
fn clusters_keep_their_promises_while_logs_lose_their_ends() {
    all_seeds_hold(Shape::doubting, |coverage, runs| {
        assert!(coverage.changes > runs / 2, "{coverage:?}");
        assert!(coverage.lost_tails > runs / 3, "{coverage:?}");
    });
}

fn a_seed_notices(bug: KnownBug) {
    let found = (0..2_000).find_map(|seed| {
        let mut shape = Shape::doubting(seed);
        shape.config.bugs = KnownBugs::from([bug]);
        run(seed, &shape).0.err().map(|violation| format!("seed {seed}: {violation}"))
    });
    println!("{}", found.expect("no seed noticed the bug"));
}

#[test]
fn a_seed_notices_that_lost_ends_are_ignored() {
    a_seed_notices(KnownBug::IgnoreDoubt);
}

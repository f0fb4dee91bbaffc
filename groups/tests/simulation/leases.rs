//! Every rule of leases is needed: with one of them taken away, a client reads what is out of date.

use std::time::Duration;

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_groups::{CaughtUp, GroupId, MembershipChange, NodeId};
use shardhost_testing::simulation::{Cluster, Shape};

use crate::{all_seeds_hold, run};

const GROUP: GroupId = GroupId::new(1);

#[test]
fn leases_keep_their_promise_while_clocks_differ_and_orders_come_late() {
    all_seeds_hold(Shape::leasing, |coverage, runs| {
        coverage.demand(runs);
        assert!(coverage.stood_again > runs / 20, "{coverage:?}");
    });
}

/// One group on three nodes, a leader and two followers, and what a scenario does to them.
struct Trio {
    cluster: Cluster,
    leader: NodeId,
    followers: [NodeId; 2],
}

impl Trio {
    fn new(seed: u64, bugs: KnownBugs) -> Result<Self, String> {
        let mut shape = Shape::calm();
        shape.groups = 1;
        shape.load_every = 10;
        shape.lease_read_every = 3;
        shape.read_every = 20;
        shape.config.hibernate_after_ticks = 0;
        shape.config.seed = seed;
        shape.config.bugs = bugs;
        let mut cluster = Cluster::new(seed, &shape);
        // Every heartbeat falls differently into what follows.
        cluster.pass(4_000 + seed * 37)?;
        let leader = cluster.leader_of(GROUP).ok_or("no leader")?;
        let mut others = cluster.node_ids().into_iter().filter(|id| *id != leader);
        let followers = [others.next(), others.next()].map(|id| id.unwrap_or(leader));
        Ok(Self { cluster, leader, followers })
    }

    fn cut(&mut self, follower: NodeId) {
        self.cluster.network.block(self.leader, follower);
        self.cluster.network.block(follower, self.leader);
    }

    fn cut_leader_off(&mut self) {
        self.followers.into_iter().for_each(|follower| self.cut(follower));
    }

    /// A transfer comes so far that the target is about to get TimeoutNow.
    fn freeze_for(&mut self, target: NodeId) -> Result<(), String> {
        self.cluster.transfer(self.leader, GROUP, target);
        for _ in 0..200 {
            self.cluster.pass(1)?;
            if self.cluster.is_frozen(self.leader, GROUP) {
                return Ok(());
            }
        }
        Err(format!("{target:?} was not asked, or did not answer"))
    }

    /// Messages to the leader come this late.
    fn slow_to_leader(&mut self, delay: u64) {
        for follower in self.followers {
            self.cluster.network.slow(follower, self.leader, delay);
        }
    }
}

/// The scenario holds with all rules, and shows a stale read without one of them.
fn needs_the_rule(bugs: KnownBugs, scenario: fn(&mut Trio) -> Result<(), String>) {
    let play = |seed, bugs| Trio::new(seed, bugs).and_then(|mut trio| scenario(&mut trio));
    let complaints: Vec<String> = (0..40).filter_map(|seed| play(seed, bugs).err()).collect();
    assert!(complaints.iter().any(|text| text.contains("a read of")), "{complaints:?}");
    for seed in 0..40 {
        play(seed, KnownBugs::default()).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}

/// Answers that were long on their way arrive when the followers have elected another leader.
#[test]
fn a_lease_counts_from_the_sending_of_its_heartbeat() {
    let bugs = KnownBugs::from([KnownBug::LeaseFromAnswer]);
    needs_the_rule(bugs, |trio| {
        trio.slow_to_leader(950);
        trio.cluster.pass(700)?;
        trio.cut_leader_off();
        trio.cluster.clients_work(true);
        trio.cluster.pass(3_000)
    });
}

#[test]
fn a_lease_is_shorter_than_the_vote_lock_behind_it() {
    let bugs = KnownBugs::from([KnownBug::LeaseWithoutMargin]);
    needs_the_rule(bugs, |trio| {
        trio.cut_leader_off();
        trio.cluster.clients_work(true);
        trio.cluster.pass(3_000)
    });
}

/// The target leads long before the old leader hears of it.
#[test]
fn a_lease_is_void_during_a_transfer() {
    let bugs = KnownBugs::from([KnownBug::LeaseInTransfer]);
    needs_the_rule(bugs, |trio| {
        trio.freeze_for(trio.followers[0])?;
        trio.slow_to_leader(1_500);
        trio.cluster.clients_work(true);
        trio.cluster.pass(1_200)
    });
}

/// A leader lives by the promise of one follower alone. That one is killed and comes back at
/// once, cut off from the leader, while the other follower campaigns.
#[test]
fn a_vote_lock_outlives_a_restart() {
    needs_the_rule(KnownBugs::from([KnownBug::ForgetVoteLock]), |trio| {
        a_lone_supporter_restarts(trio, |_, _| {})
    });
}

/// The same, and the follower cannot read its clock when it comes back.
#[test]
fn a_vote_lock_holds_without_a_clock() {
    needs_the_rule(KnownBugs::from([KnownBug::UnlockWithoutClock]), |trio| {
        a_lone_supporter_restarts(trio, Cluster::lose_clock)
    });
}

/// A leader lives by the vote lock of one follower alone. That one is killed and comes back at
/// once, cut off from the leader, while the other follower campaigns.
fn a_lone_supporter_restarts(
    trio: &mut Trio,
    meanwhile: impl FnOnce(&mut Cluster, NodeId),
) -> Result<(), String> {
    let [stranded, faithful] = trio.followers;
    trio.cut(stranded);
    trio.cluster.pass(2_000)?;
    trio.cluster.crash(faithful, 2);
    trio.cut(faithful);
    trio.cluster.clients_work(true);
    trio.cluster.pass(10)?;
    meanwhile(&mut trio.cluster, faithful);
    trio.cluster.restart(faithful)?;
    trio.cluster.pass(3_000)
}

/// A group that grew from one voter: two learners are promoted while the machine of one of them is
/// so slow that it does not apply that.
fn grown(seed: u64, bugs: KnownBugs) -> Result<Trio, String> {
    let mut shape = Shape::calm();
    (shape.groups, shape.nodes, shape.spares) = (1, 1, 2);
    (shape.load_every, shape.lease_read_every, shape.read_every) = (10, 3, 20);
    shape.config.hibernate_after_ticks = 0;
    shape.config.max_apply_bytes_per_group = 1;
    (shape.config.seed, shape.config.bugs) = (seed, bugs);
    let mut cluster = Cluster::new(seed, &shape);
    cluster.pass(1_500 + seed * 37)?;
    let [leader, stranded, slow] = [1, 2, 3].map(NodeId::must);
    for change in [stranded, slow].map(|node| MembershipChange::new().add_learner(node)) {
        cluster.change_members(leader, GROUP, change)?;
        cluster.pass(2_000)?;
    }
    cluster.hang_machine(slow, GROUP, 60_000);
    cluster.write(leader, GROUP, 3)?;
    cluster.pass(500)?;
    for node in [slow, stranded] {
        let change = MembershipChange::new().promote(node, CaughtUp::Unchecked);
        cluster.change_members(leader, GROUP, change)?;
        cluster.pass(500)?;
    }
    Ok(Trio { cluster, leader, followers: [stranded, slow] })
}

/// A leader counts the answers of a voter that does not know yet that it is one.
#[test]
fn a_vote_lock_does_not_depend_on_what_the_voter_knows_of_the_others() {
    let play = |seed, bugs: KnownBugs| {
        grown(seed, bugs).and_then(|mut trio| a_lone_supporter_restarts(&mut trio, |_, _| {}))
    };
    let bug = KnownBugs::from([KnownBug::LockOnlyAmongVoters]);
    let complaints: Vec<String> = (0..40).filter_map(|seed| play(seed, bug).err()).collect();
    assert!(complaints.iter().any(|text| text.contains("a read of")), "{complaints:?}");
    for seed in 0..40 {
        play(seed, KnownBugs::default()).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}

/// Answers to the heartbeats of one round of reads come when that round is long over and the
/// leader is cut off: they confirm no later one.
#[test]
fn a_round_of_reads_is_not_confirmed_by_answers_to_an_earlier_one() {
    for seed in 0..60 {
        let mut trio = Trio::new(seed, KnownBugs::default()).unwrap();
        let slow = trio.followers[0];
        trio.cluster.network.slow(slow, trio.leader, 1_200 + seed * 10);
        trio.cluster.clients_work(true);
        let cut = trio.cluster.pass(700).and_then(|()| {
            trio.cut_leader_off();
            trio.cluster.pass(2_500)
        });
        cut.unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}

/// A stale read that a seed comes upon.
fn a_seed_complains_without(bugs: KnownBugs, freeze: Duration) {
    let found = (0..2_000).find_map(|seed| {
        let mut shape = Shape::leasing(seed);
        shape.config.bugs = bugs;
        shape.config.freeze_timeout = freeze;
        run(seed, &shape).0.err().map(|violation| (seed, violation))
    });
    let (seed, violation) = found.expect("no seed noticed the missing rule");
    let stale = violation.contains("a read of") || violation.contains("no order explains");
    assert!(stale, "seed {seed} found something else: {violation}");
}

#[test]
fn a_lease_needs_an_applied_entry_of_the_own_term() {
    let bugs = KnownBugs::from([KnownBug::LeaseBeforeReady]);
    a_seed_complains_without(bugs, Duration::from_millis(100));
}

/// A transfer fails because its target is cut off, and the target is removed before it is back.
fn remove_the_target_of_a_failed_transfer(seed: u64, bugs: KnownBugs) -> Result<(), String> {
    let mut trio = Trio::new(seed, bugs)?;
    let target = trio.followers[0];
    trio.cluster.weather.late_orders = 1_000;
    trio.freeze_for(target)?;
    trio.cut(target);
    trio.cluster.pass(1_000)?;
    trio.cluster.change_members(trio.leader, GROUP, MembershipChange::new().remove(target))?;
    trio.cluster.pass(2_000)?;
    trio.cluster.every_leader_gets_a_lease()
}

#[test]
fn a_removed_target_of_a_failed_transfer_keeps_no_lease_away() {
    let bug = KnownBugs::from([KnownBug::AwaitRemovedTargets]);
    let caught = (0..40).filter_map(|seed| remove_the_target_of_a_failed_transfer(seed, bug).err());
    assert!(caught.into_iter().any(|text| text.contains("has no lease")));
    for seed in 0..40 {
        let held = remove_the_target_of_a_failed_transfer(seed, KnownBugs::default());
        held.unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
}

#[test]
fn an_order_to_campaign_is_not_followed_too_late() {
    let bugs = KnownBugs::from([KnownBug::LateTimeoutNow]);
    a_seed_complains_without(bugs, Duration::from_millis(1_000));
}

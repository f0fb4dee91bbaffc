//! Whole clusters under one clock, from a seed: hosts that crash, hang, lag, drain and change,
//! groups that elect and refuse independently, planners that are replaced without their knowledge,
//! and messages that are lost and late. Checks watch every step. At the end all faults stop, and
//! the leaders must reach the best places and stay there.
//!
//! Hosts and groups are a model here; `src/policy/simulation` has the real groups. The executor and
//! the planner are the real ones.
//!
//! `SIMULATION_SEEDS=2000` runs more seeds, `SIMULATION_SEED=17` runs one.

mod checks;
mod cluster;
mod faults;
mod host;
mod planner_instance;
mod sabotage;
mod settled;
mod shape;
mod shard;
mod transfer;

use checks::Coverage;
use cluster::Cluster;
use sabotage::Sabotage;
pub(super) use shardhost_testing::simulation::Chance;
use shardhost_testing::simulation::seeds;

/// Seeds of an ordinary run of the test suite.
const SEEDS: u64 = 500;
/// How long things go wrong.
const FAULTS_MS: u64 = 120_000;
/// After a change it takes so long until loads are what they will be.
const LOAD_SETTLES_MS: u64 = 130_000;
/// How long it may take then until nothing is left to move: groups rest, targets are left alone,
/// and breakers are open, each for a minute at most, one after the other, and that twice.
const SETTLES_WITHIN_MS: u64 = 300_000;
/// How long nothing may move after that.
const QUIET_MS: u64 = 3_600_000;
/// One of so many seeds is watched for that hour.
const WATCHED: u64 = 50;

fn run(seed: u64, sabotage: Sabotage, quiet: bool) -> (Result<(), String>, Cluster) {
    let mut cluster = Cluster::new(seed, sabotage);
    let outcome = story(&mut cluster, quiet);
    (outcome, cluster)
}

fn story(cluster: &mut Cluster, quiet: bool) -> Result<(), String> {
    cluster.pass(FAULTS_MS)?;
    cluster.heal();
    cluster.pass(LOAD_SETTLES_MS)?;
    cluster.settle(SETTLES_WITHIN_MS)?;
    if quiet { cluster.stay(QUIET_MS) } else { Ok(()) }
}

#[test]
fn clusters_come_to_rest_whatever_goes_wrong() {
    let (mut coverage, seeds) = (Coverage::default(), seeds(SEEDS));
    let single = seeds.end - seeds.start == 1;
    for seed in seeds.clone() {
        let (outcome, cluster) =
            run(seed, Sabotage::Nothing, single || seed.is_multiple_of(WATCHED));
        coverage.add(cluster.checks.coverage);
        if let Err(violation) = outcome {
            panic!(
                "seed {seed}, {} ms: {violation}\nreplay: SIMULATION_SEED={seed} cargo test \
                 --lib executor::tests::simulation -- --nocapture",
                cluster.now
            );
        }
    }
    println!("{coverage:?}");
    let runs = seeds.end - seeds.start;
    if runs >= SEEDS {
        assert!(coverage.moved > runs * 5 && coverage.balance_moves > runs, "{coverage:?}");
        assert!(coverage.failed > runs && coverage.planner_terms > runs, "{coverage:?}");
        assert!(coverage.held_rounds > runs * 10, "{coverage:?}");
    }
}

/// Runs seeds with something broken until a check complains.
fn complaint(sabotage: Sabotage) -> String {
    let complains = |seed| {
        let violation = run(seed, sabotage, sabotage == Sabotage::ForgetLoads).0.err()?;
        Some(format!("seed {seed}: {violation}"))
    };
    let found = (0..SEEDS).find_map(complains).expect("no check noticed");
    println!("{sabotage:?}: {found}");
    found
}

#[test]
fn every_check_can_fail() {
    for (sabotage, words) in [
        (Sabotage::ForgetLedger, "at a time"),
        (Sabotage::NoCoolDown, "moves again"),
        (Sabotage::NoWarmUp, "its warm_up"),
        (Sabotage::LoseOutcomes, "counts"),
        (Sabotage::ForgetBackOffs, "after it failed"),
        (Sabotage::IgnoreStop, "and starts"),
        (Sabotage::IgnorePlannerTerm, "heard planner term"),
        (Sabotage::IgnoreTerm, "meets leader"),
        (Sabotage::ForgetLoads, "at rest"),
        (Sabotage::BackOffForADay, "not at rest"),
        (Sabotage::NoLedgerBound, "moves in the ledger"),
    ] {
        let found = complaint(sabotage);
        assert!(found.contains(words), "{sabotage:?}: {found}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 7, 23] {
        let [one, other] = [(); 2].map(|()| {
            let (outcome, cluster) = run(seed, Sabotage::Nothing, false);
            let status = cluster
                .planner_instance()
                .map(|planner_instance| planner_instance.executor.status(cluster.now));
            (outcome, cluster.now, status)
        });
        assert_eq!(one, other, "seed {seed}");
    }
}

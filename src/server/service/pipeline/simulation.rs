//! Clients of every manner, from a seed, at one host: the streams, their readers and writers and the budget
//! are the real ones, on one thread and a clock that the simulation moves; groups and connections are models.
//!
//! Checked at every step: what the server keeps for clients is charged. Clients that behave are answered
//! in time once the others begin nothing more, whatever those hold. At the end, when all are gone, nothing is
//! held. Each known bug is found within [`SEEDS`] seeds; a seed is the same run each time.

mod groups;
mod world;

use std::time::Duration;

pub(super) use self::groups::Groups;
use self::world::{World, Wrong};
use crate::service::known_bugs::KnownBug;

/// Seeds within which a known bug is found.
const SEEDS: u64 = 2_000;
/// Seeds that are run without a bug.
const CLEAN_SEEDS: u64 = 100;

/// Runs a seed; the longest that a client that behaves waited.
fn run(seed: u64, bug: Option<KnownBug>) -> Result<Duration, Wrong> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // All that can run does, before the simulation continues.
    let runtime = runtime.enable_time().start_paused(true).event_interval(u32::MAX).build();
    let runtime = runtime.expect("a runtime of one thread");
    runtime.block_on(tokio::task::unconstrained(async {
        let mut world = World::new(seed, bug);
        world.run().await?;
        Ok(world.longest)
    }))
}

#[test]
fn whatever_clients_do_what_is_held_is_charged_and_those_that_behave_are_answered() {
    let only = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..CLEAN_SEEDS, |seed| seed..seed + 1);
    let mut longest = Duration::ZERO;
    for seed in seeds {
        let waited = run(seed, None).unwrap_or_else(|wrong| {
            panic!("{wrong}; repeat it with SIMULATION_SEED={seed} and the name of this test")
        });
        longest = longest.max(waited);
    }
    println!("the longest wait of a client that behaves: {longest:?}");
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 0..20 {
        assert_eq!(run(seed, None), run(seed, None), "seed {seed}");
    }
}

#[test]
fn every_known_bug_of_the_bounds_is_found() {
    const BUGS: [KnownBug; 10] = [
        KnownBug::KeepForTheGone,
        KnownBug::ReadChargedWhileItRuns,
        KnownBug::WriteAnswersUncharged,
        KnownBug::GiveBackWhenHanded,
        KnownBug::NoShareOfConnection,
        KnownBug::NoBoundOfStreams,
        KnownBug::StalledStay,
        KnownBug::HalfBatchesStay,
        KnownBug::IdleStay,
        KnownBug::ReadBeforeRoom,
    ];
    for bug in BUGS {
        let found =
            (0..SEEDS).find_map(|seed| run(seed, Some(bug)).err().map(|wrong| (seed, wrong)));
        match found {
            Some((seed, wrong)) => println!("{bug:?}: seed {seed}: {wrong}"),
            None => panic!("{bug:?} is not found in {SEEDS} seeds"),
        }
    }
}

//! Bytes from outside: each target (`targets.rs`) gets every file of its corpus, and then mutations
//! of them for some time. An input fails when the target panics, takes too much memory, or too long.
//!
//! | variable | what |
//! |---|---|
//! | `FUZZ_SECONDS` | time for mutations, per test; default 2 |
//! | `FUZZ_SEED` | where the mutations begin; default 1 |
//! | `FUZZ_TRACE=1` | each input is written to a file first: names one that ends the process |
//! | `REWRITE=1` | writes the corpus anew that is made of real values; what was found stays |

mod corpus;
mod driver;
mod memory;
mod mutate;
mod targets;

use targets::{Target, targets};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Drives the targets of these names, which share the time.
fn fuzz(names: &[&str]) {
    let whole = driver::Budget::from_environment();
    let time = whole.time / u32::try_from(names.len()).expect("a few");
    for name in names {
        let target = targets().into_iter().find(|target| target.name == *name);
        let target = target.unwrap_or_else(|| panic!("there is no target {name}"));
        let corpus = corpus::of(&target);
        if let Err(failure) = driver::drive(&target, &corpus, driver::Budget { time, ..whole }) {
            panic!("{failure}");
        }
    }
}

#[test]
fn peer_frames() {
    fuzz(&["peer_frames"]);
}

#[test]
fn client_batches() {
    fuzz(&["client_batches"]);
}

#[test]
fn log_values() {
    fuzz(&["log_values"]);
}

#[test]
fn snapshot_files() {
    fuzz(&["snapshot_files"]);
}

#[test]
fn state_snapshots() {
    fuzz(&["shard_snapshots", "catalog_snapshots"]);
}

#[test]
fn shard_commands() {
    fuzz(&["shard_commands"]);
}

#[test]
fn catalog_commands() {
    fuzz(&["catalog_commands"]);
}

#[test]
fn configurations() {
    fuzz(&["configurations"]);
}

/// What the driver is for, it notices: a panic, too much memory, both only after mutations.
#[test]
fn planted_faults_are_found() {
    fn panics(input: &[u8]) {
        assert!(!input.windows(4).any(|four| four == [0xff; 4]), "a length is believed");
    }
    fn allocates(input: &[u8]) {
        if let Some((length, _)) = input.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            std::hint::black_box(Vec::<u8>::with_capacity(length.min(64 << 20)));
        }
    }
    let seeds =
        || vec![shardhost_storage::testing::fuzz::Seed::new("one", vec![0, 0, 0, 9, 1, 2, 3, 4])];
    for (run, word) in
        [(panics as fn(&[u8]), "a length is believed"), (allocates, "bytes of memory")]
    {
        let target = Target { name: "planted", run, seeds, memory_factor: 64 };
        let corpus = seeds();
        let budget = driver::Budget { time: std::time::Duration::from_secs(20), seed: 1 };
        let failure = driver::drive(&target, &corpus, budget).expect_err("it is found");
        assert!(failure.contains(word) && failure.contains("tmp"), "{failure}");
    }
}

/// The corpus of each target is what is made of real values, and what was found.
#[test]
fn every_target_has_a_test_and_a_corpus() {
    let source = include_str!("main.rs");
    for target in targets() {
        assert!(source.contains(&format!("\"{}\"", target.name)), "{}", target.name);
        assert!(corpus::of(&target).len() >= 6, "{}", target.name);
    }
}

//! Gives inputs to a target and watches it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shardhost_storage::testing::fuzz::{Seed, Target};

use super::memory;
use super::mutate::Mutator;

/// Memory that every input may take, however short it is.
const FIXED_BYTES: usize = 1 << 20;
/// Time of the processor that an input may take. Not of the clock: disks and machines are busy.
const LONGEST: Duration = Duration::from_secs(10);

/// How long inputs are made, and from which seed.
#[derive(Clone, Copy)]
pub struct Budget {
    pub time: Duration,
    pub seed: u64,
}

impl Budget {
    pub fn from_environment() -> Self {
        let number = |name: &str, default| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
            Err(_) => default,
        };
        let time = Duration::from_secs(number("FUZZ_SECONDS", 2));
        Self { time, seed: number("FUZZ_SEED", 1) }
    }
}

/// Gives a target its corpus, and mutations of it.
///
/// # Errors
/// What is wrong with an input, and in which file it stands.
pub fn drive(target: &Target, corpus: &[Seed], budget: Budget) -> Result<(), String> {
    for seed in corpus {
        try_input(target, &seed.bytes)
            .map_err(|fault| format!("{}: {} of the corpus: {fault}", target.name, seed.name))?;
    }
    let mut mutator = Mutator::new(corpus, budget.seed);
    let end = Instant::now() + budget.time;
    let mut count = 0u64;
    while Instant::now() < end {
        let input = mutator.next();
        count += 1;
        if let Err(fault) = try_input(target, &input) {
            let input = smallest(target, input);
            let file = keep(target, "found", &input);
            return Err(format!(
                "{}: input {count} of seed {}: {fault}; it stands in {}: once it is mended, put it \
                 into tests/fuzz/corpus/{}",
                target.name,
                budget.seed,
                file.display(),
                target.name
            ));
        }
    }
    let (name, seed, files) = (target.name, budget.seed, corpus.len());
    println!("{name}: {files} files, {count} mutations of seed {seed}");
    Ok(())
}

/// Runs a target once.
fn try_input(target: &Target, input: &[u8]) -> Result<(), String> {
    if std::env::var_os("FUZZ_TRACE").is_some() {
        keep(target, "last", input);
    }
    let began = processor_time();
    let (outcome, peak) = memory::peak_of(input, || {
        catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
        })
    });
    outcome.map_err(|panic| format!("it panics: {panic}"))?;
    let most = target.memory_factor * input.len() + FIXED_BYTES;
    if peak > most {
        return Err(format!("{} bytes take {peak} bytes of memory, not {most}", input.len()));
    }
    let took = processor_time().saturating_sub(began);
    if took > LONGEST {
        return Err(format!("{} bytes take {took:?}", input.len()));
    }
    Ok(())
}

/// Leaves parts of a failing input out, as long as it fails, for a second or two.
fn smallest(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(2);
    let mut part = input.len() / 2;
    while part > 0 && Instant::now() < end {
        let mut at = 0;
        while at + part <= input.len() && Instant::now() < end {
            let shorter = [&input[..at], &input[at + part..]].concat();
            match try_input(target, &shorter) {
                Err(_) => input = shorter,
                Ok(()) => at += part,
            }
        }
        part /= 2;
    }
    input
}

/// Writes an input where it is found after the test.
fn keep(target: &Target, why: &str, input: &[u8]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join(format!("{why}-{}", target.name));
    std::fs::write(&file, input).expect("written");
    file
}

/// What this thread has used of the processor.
fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

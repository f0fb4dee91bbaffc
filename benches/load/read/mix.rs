//! Reads and writes in a fixed proportion, so many under way at any moment.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::tally::{Counted, Tally};
use crate::write::DRAIN;

/// The reads and writes.
pub trait Target: Clone + Send + Sync + 'static {
    /// Reads once; returns whether the answer was as expected. `lot` is drawn at random.
    fn read(&self, lot: u64) -> impl Future<Output = bool> + Send;
    /// Writes once; returns whether it was acknowledged.
    fn write(&self, lot: u64) -> impl Future<Output = bool> + Send;
}

/// Which part of the operations are writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    pub percent_writes: u64,
}

/// What was read and written in a time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mixed {
    pub reads: Counted,
    pub writes: Counted,
}

/// The load while it runs.
pub struct Load {
    tallies: Arc<Tallies>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

struct Tallies {
    reads: Mutex<Tally>,
    writes: Mutex<Tally>,
}

impl Load {
    /// Starts so many tasks, each with one operation under way.
    pub fn start<T: Target>(target: &T, outstanding: usize, mix: Mix) -> anyhow::Result<Self> {
        let (reads, writes) = (Mutex::new(Tally::new()?), Mutex::new(Tally::new()?));
        let tallies = Arc::new(Tallies { reads, writes });
        let stop = Arc::<AtomicBool>::default();
        let mut tasks = JoinSet::new();
        for number in 0..outstanding as u64 {
            let (tallies, stop) = (Arc::clone(&tallies), Arc::clone(&stop));
            tasks.spawn(repeat(target.clone(), Lots::new(number), mix, tallies, stop));
        }
        Ok(Self { tallies, stop, tasks })
    }

    /// What was done since the last time.
    pub fn take(&self) -> Mixed {
        let (reads, writes) = (self.tallies.reads.lock().take(), self.tallies.writes.lock().take());
        Mixed { reads, writes }
    }

    /// Stops the load and waits for the answers that are under way.
    pub async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some operations were never answered");
        }
    }
}

/// One operation after the other.
async fn repeat<T: Target>(
    target: T,
    mut lots: Lots,
    mix: Mix,
    tallies: Arc<Tallies>,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let writes = lots.next() % 100 < mix.percent_writes;
        let lot = lots.next();
        let began = Instant::now();
        if writes {
            let taken = target.write(lot).await;
            tallies.writes.lock().count(taken, began.elapsed());
        } else {
            let answered = target.read(lot).await;
            tallies.reads.lock().count(answered, began.elapsed());
        }
        // Reads that are answered at once never wait, and others want the thread too.
        tokio::task::coop::consume_budget().await;
    }
}

/// Measures a load for a time, after another to warm up; `usage` is asked at both ends.
pub async fn measure<U>(
    load: &Load,
    warm_up: Duration,
    duration: Duration,
    usage: impl Fn() -> U,
) -> (Mixed, U, U) {
    tokio::time::sleep(warm_up).await;
    let before = usage();
    drop(load.take());
    tokio::time::sleep(duration).await;
    let mixed = load.take();
    (mixed, before, usage())
}

struct Lots(u64);

impl Lots {
    const fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts, and answers at once.
    #[derive(Clone, Default)]
    struct Nothing;

    impl Target for Nothing {
        async fn read(&self, _: u64) -> bool {
            true
        }
        async fn write(&self, _: u64) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn the_asked_for_part_of_the_operations_are_writes() {
        let load = Load::start(&Nothing, 8, Mix { percent_writes: 10 }).unwrap();
        let mut all = Mixed::default();
        while all.reads.succeeded + all.writes.succeeded < 10_000 {
            tokio::task::yield_now().await;
            let some = load.take();
            all.reads.succeeded += some.reads.succeeded;
            all.writes.succeeded += some.writes.succeeded;
        }
        load.end().await;
        let part =
            all.writes.succeeded as f64 / (all.reads.succeeded + all.writes.succeeded) as f64;
        assert!((0.08..0.12).contains(&part), "{part}");
    }
}

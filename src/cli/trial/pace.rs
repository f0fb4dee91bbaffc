//! The rate at which writes begin. What is late is made up for: the load is open, so that a
//! cluster that stands still is seen to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Gives turns to writes until it is told that those that must be made are enough.
#[derive(Debug)]
pub struct Pace {
    began: Instant,
    /// Writes that begin per second.
    rate: u32,
    turns: AtomicU64,
    enough: CancellationToken,
}

impl Pace {
    /// So many turns per second from here on; none of them before its time.
    pub fn new(rate: u32) -> Self {
        let (turns, enough) = (AtomicU64::new(0), CancellationToken::new());
        Self { began: Instant::now(), rate: rate.max(1), turns, enough }
    }

    /// Waits for the turn of one write, which is at once when no more are needed than must be made.
    pub async fn turn(&self) {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let due = self.began + Duration::from_secs_f64(turn as f64 / f64::from(self.rate));
        tokio::select! {
            biased;
            () = sleep_until(due) => {}
            () = self.enough.cancelled() => {}
        }
    }

    /// No more writes are needed than those that must be made.
    pub fn enough(&self) {
        self.enough.cancel();
    }

    /// Whether that was said.
    pub fn is_enough(&self) -> bool {
        self.enough.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_come_at_the_rate_and_late_ones_are_made_up_for() {
        let pace = Pace::new(10);
        for _ in 0..11 {
            pace.turn().await;
        }
        assert_eq!(pace.began.elapsed().as_millis(), 1_000);
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..10 {
            pace.turn().await;
        }
        assert_eq!(pace.began.elapsed().as_millis(), 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_when_it_is_enough() {
        let pace = Pace::new(1);
        pace.enough();
        for _ in 0..100 {
            pace.turn().await;
        }
        assert_eq!((pace.is_enough(), pace.began.elapsed().as_millis()), (true, 0));
    }
}

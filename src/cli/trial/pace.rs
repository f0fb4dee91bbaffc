//! The rate at which writes begin. Late writes are made up for: the load is open-loop, so that a
//! pause of the cluster is visible.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Gives turns to writes until the required number is reached.
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
        tokio::select! {
            biased;
            () = sleep_until(self.due(turn)) => {}
            () = self.enough.cancelled() => {}
        }
    }

    /// When a turn comes, whatever became of those before it.
    fn due(&self, turn: u64) -> Instant {
        self.began + Duration::from_secs_f64(turn as f64 / f64::from(self.rate))
    }

    /// No more writes are needed than those that must be made.
    pub fn enough(&self) {
        self.enough.cancel();
    }

    /// Whether it is reached.
    pub fn is_enough(&self) -> bool {
        self.enough.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_due_at_the_rate() {
        let pace = Pace::new(10);
        let due = [0, 1, 10, 25].map(|turn| (pace.due(turn) - pace.began).as_millis());
        assert_eq!(due, [0, 100, 1_000, 2_500]);
    }

    #[tokio::test]
    async fn nobody_waits_when_it_is_enough() {
        let pace = Pace::new(1);
        pace.enough();
        let turns = async {
            for _ in 0..100 {
                pace.turn().await;
            }
        };
        // At the rate they would take a minute and a half.
        assert!(tokio::time::timeout(Duration::from_secs(5), turns).await.is_ok());
        assert!(pace.is_enough());
    }
}

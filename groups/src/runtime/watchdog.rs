//! Notices a worker whose round does not end. Its groups are mute then: no heartbeats, no answers,
//! and nobody else can take them over as long as the process holds its sockets and sleeping groups
//! rely on it. Better that the process ends.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::RuntimeShared;
use crate::error::HostFault;
use crate::worker::Seen;

/// One worker, as the watchdog sees it.
#[derive(Debug, Default)]
struct Watched {
    round: u64,
    /// Looks in a row that found the worker at work in this round.
    looks: u32,
}

/// What a look shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Fine,
    /// The round has just become longer than an election timeout.
    Slow,
    /// It has just become longer than it may be.
    Stuck,
}

/// Looks after which a round is slow, and after which it is stuck.
#[derive(Clone, Copy, Debug)]
struct Limits {
    slow: u32,
    stuck: u32,
}

impl Watched {
    /// Counts looks, not time: a process that was suspended did not look either.
    fn look(&mut self, seen: &Seen, limits: Limits) -> Finding {
        if seen.phase.is_waiting() || seen.round != self.round {
            (self.round, self.looks) = (seen.round, 0);
            return Finding::Fine;
        }
        self.looks = self.looks.saturating_add(1);
        match self.looks {
            looks if looks == limits.stuck => Finding::Stuck,
            looks if looks == limits.slow => Finding::Slow,
            _ => Finding::Fine,
        }
    }
}

/// Watches until the channel ends.
pub(super) fn run(shared: &Arc<RuntimeShared>, stop: &Receiver<()>) {
    let every = shared.config.tick.max(Duration::from_millis(1));
    let Some(limit) = shared.config.round_limit else { return };
    let looks = |time: Duration| {
        u32::try_from(time.as_micros().div_ceil(every.as_micros())).unwrap_or(u32::MAX).max(1)
    };
    let limits = Limits { slow: looks(shared.config.election_timeout()), stuck: looks(limit) };
    let mut watched: Vec<Watched> = shared.activities.iter().map(|_| Watched::default()).collect();
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(every) {
        for (worker, (watched, activity)) in watched.iter_mut().zip(&shared.activities).enumerate()
        {
            let seen = activity.look();
            match watched.look(&seen, limits) {
                Finding::Fine => {}
                Finding::Slow => tracing::error!(
                    worker, group = %seen.group, phase = %seen.phase,
                    "a round takes longer than an election timeout; the groups of this worker are \
                     silent"
                ),
                Finding::Stuck => shared.fail(&HostFault::Stuck {
                    worker,
                    group: seen.group,
                    phase: seen.phase,
                    limit,
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shardhost_storage::GroupId;

    use super::*;
    use crate::worker::Phase;

    const LIMITS: Limits = Limits { slow: 3, stuck: 5 };

    fn seen(round: u64, phase: Phase) -> Seen {
        Seen { round, phase, group: GroupId::new(7) }
    }

    fn looks(watched: &mut Watched, at: Seen, count: usize) -> Vec<Finding> {
        (0..count).map(|_| watched.look(&at, LIMITS)).collect()
    }

    #[test]
    fn a_round_is_slow_once_and_stuck_once() {
        use Finding::{Fine, Slow, Stuck};
        let mut watched = Watched::default();
        watched.look(&seen(4, Phase::Inputs), LIMITS);
        let found = looks(&mut watched, seen(4, Phase::Groups), 7);
        assert_eq!(found, [Fine, Fine, Slow, Fine, Stuck, Fine, Fine]);
    }

    #[test]
    fn a_worker_that_goes_on_is_fine() {
        let mut watched = Watched::default();
        for round in 1..100 {
            assert_eq!(watched.look(&seen(round, Phase::Effects), LIMITS), Finding::Fine);
        }
    }

    #[test]
    fn waiting_is_never_too_long() {
        let mut watched = Watched::default();
        for phase in [Phase::Waiting, Phase::LogQueue] {
            assert!(looks(&mut watched, seen(1, phase), 50).iter().all(|f| *f == Finding::Fine));
        }
    }
}

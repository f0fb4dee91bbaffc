//! Notices a worker whose round does not end, a write of the log that does not, and (see
//! [`super::machine_watch`]) a call into a state machine that does not.
//!
//! Of a worker: its groups are silent then, without heartbeats and answers, and no other node can
//! take them over as long as the process holds its sockets and hibernating groups rely on it.
//! Ending the process is better.
//!
//! Of the log: a leader accepts writes that cannot be acknowledged. The host is *impaired* from an
//! election timeout on: it transfers its leaderships, and takes none until writes ended in time for
//! as long. When the write takes longer still, the host takes no part until it ends: a transfer may
//! need the log, and peers without heartbeats elect others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use shardhost_storage::RequirementMode;

use super::RuntimeShared;
use super::machine_watch::MachineWatch;
use crate::activity::Seen;
use crate::error::HostFault;
use crate::nodes::Impairment;

/// One worker, as the watchdog sees it.
#[derive(Debug, Default)]
struct Watched {
    round: u64,
    /// Looks in a row that found the worker at work in this round.
    looks: u32,
}

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
    let limit = shared.config.round_limit.unwrap_or(Duration::MAX);
    let looks = |time: Duration| {
        u32::try_from(time.as_micros().div_ceil(every.as_micros())).unwrap_or(u32::MAX).max(1)
    };
    let limits = Limits { slow: looks(shared.config.election_timeout()), stuck: looks(limit) };
    let mut watched: Vec<Watched> = shared.activities.iter().map(|_| Watched::default()).collect();
    let mut log = WatchedLog::default();
    let mut machines = shared
        .config
        .machine_limit
        .map(|limit| MachineWatch::new(shared.apply_activities.len(), limit, looks(limit)));
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(every) {
        shared.apply.end_rests(Instant::now());
        if let Some(machines) = &mut machines {
            machines.look(shared);
        }
        if let Some(news) = log.look(shared.log_activity.writing(), limits.slow) {
            follow_log(shared, news);
        }
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

/// Election timeouts that a write of the log takes before the host takes no part any more. Less,
/// and there is no time for transfers; more, and users wait.
const SILENT_AFTER: u32 = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LogHealth {
    #[default]
    Well,
    /// A write takes longer than an election timeout, or one did a moment ago.
    Hangs,
    /// A write takes so long that the host takes no part until it ends.
    Silent,
}

/// The log, as the watchdog sees it.
#[derive(Debug, Default)]
struct WatchedLog {
    write: u64,
    /// Looks in a row that found the same write under way.
    looks: u32,
    /// Looks in a row that found none that takes long, while the log counts as hanging.
    calm: u32,
    health: LogHealth,
}

impl WatchedLog {
    /// Reports the state of the log, when that is news. Counts looks, not time, as [`Watched`]
    /// does.
    fn look(&mut self, writing: Option<u64>, limit: u32) -> Option<LogHealth> {
        match writing {
            Some(write) if write == self.write => self.looks = self.looks.saturating_add(1),
            other => (self.write, self.looks) = (other.unwrap_or(0), 0),
        }
        let slow = self.looks >= limit;
        self.calm = if slow { 0 } else { self.calm.saturating_add(1) };
        let hung = self.health != LogHealth::Well;
        let health = if self.looks >= limit.saturating_mul(SILENT_AFTER) {
            LogHealth::Silent
        } else if slow || (hung && self.calm < limit) {
            LogHealth::Hangs
        } else {
            LogHealth::Well
        };
        (std::mem::replace(&mut self.health, health) != health).then_some(health)
    }
}

/// What follows for the host from how its log is.
fn follow_log(shared: &RuntimeShared, health: LogHealth) {
    let timeout = shared.config.election_timeout();
    let because = |reason: String| {
        let reason = format!("{reason}; look after the disk of the data directory");
        Some(Impairment { reason: reason.into(), mode: RequirementMode::Hard })
    };
    shared.impair(
        "log",
        match health {
            LogHealth::Well => None,
            LogHealth::Hangs => {
                because(format!("a write of the log takes longer than {timeout:?}"))
            }
            LogHealth::Silent => because(format!(
                "a write of the log takes longer than {:?}: this host takes no part until it ends",
                timeout.saturating_mul(SILENT_AFTER)
            )),
        },
    );
    shared.set_silent(health == LogHealth::Silent);
}

#[cfg(test)]
mod tests {
    use shardhost_storage::GroupId;

    use super::*;
    use crate::activity::Phase;

    const LIMITS: Limits = Limits { slow: 3, stuck: 5 };

    fn seen(round: u64, phase: Phase) -> Seen {
        Seen { round, phase, group: GroupId::new(7) }
    }

    #[test]
    fn a_log_hangs_from_a_long_write_on_until_it_was_calm_for_as_long() {
        let mut log = WatchedLog::default();
        let mut look = |writing| log.look(writing, 3);
        let (well, hangs) = (Some(LogHealth::Well), Some(LogHealth::Hangs));
        assert_eq!([1, 3, 5, 7].map(|write| look(Some(write))), [None; 4], "each is another one");
        assert_eq!([(); 3].map(|()| look(Some(7))), [None, None, hangs]);
        assert_eq!([(); 5].map(|()| look(Some(7))), [None; 5]);
        assert_eq!([look(None), look(Some(9))], [None; 2]);
        assert_eq!([(); 2].map(|()| look(Some(9))), [well, None]);
        assert_eq!([look(Some(9)), look(None)], [hangs, None]);
        assert_eq!([look(None), look(None), look(None)], [None, well, None]);
    }

    #[test]
    fn a_host_whose_log_hangs_for_long_is_silent_until_the_write_ends() {
        let mut log = WatchedLog::default();
        let mut look = |writing| log.look(writing, 3);
        let found: Vec<LogHealth> = (0..20).filter_map(|_| look(Some(1))).collect();
        assert_eq!(found, [LogHealth::Hangs, LogHealth::Silent]);
        assert_eq!([look(Some(3)), look(None)], [Some(LogHealth::Hangs), None]);
        assert_eq!([look(None), look(None)], [Some(LogHealth::Well), None]);
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

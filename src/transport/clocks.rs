//! Whether the wall clock of this node agrees with those of its peers. No promise depends on wall
//! clocks; logs, certificates and the clocks of users do, so a clock that is far from the others is
//! reported to operators.
//!
//! Heartbeats carry the time at which they were made. How far a peer's clock is ahead is estimated by
//! the heartbeat that took the shortest way, for a delay makes a clock look slow.

use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_storage::NodeId;

use crate::wall_clock;

/// Clocks that differ by no more agree.
const AGREE_WITHIN_MS: i64 = 5_000;
/// An estimate is from the heartbeats of the last one to two of these.
const WINDOW: Duration = Duration::from_secs(5);

/// How far the clock of a peer is ahead.
#[derive(Debug, Default)]
pub(super) struct PeerClock {
    windows: Mutex<Option<Windows>>,
}

#[derive(Clone, Copy, Debug)]
struct Windows {
    began: Instant,
    current: i64,
    previous: Option<i64>,
}

impl PeerClock {
    /// A heartbeat came that was made at `peer_ms` by the peer's clock, and came at `own_ms` by this
    /// node's.
    pub fn said(&self, peer_ms: u64, own_ms: u64, now: Instant) {
        let ahead = difference(peer_ms, own_ms);
        let mut windows = self.windows.lock();
        *windows = Some(match *windows {
            Some(known) if now.saturating_duration_since(known.began) < WINDOW => {
                Windows { current: known.current.max(ahead), ..known }
            }
            Some(known) => {
                let lately = now.saturating_duration_since(known.began) < WINDOW * 2;
                Windows { began: now, current: ahead, previous: lately.then_some(known.current) }
            }
            None => Windows { began: now, current: ahead, previous: None },
        });
    }

    /// Milliseconds by which the peer's clock is ahead; `None`: no recent heartbeat with a clock.
    pub fn ahead_ms(&self, now: Instant) -> Option<i64> {
        let known = (*self.windows.lock())?;
        let lately = now.saturating_duration_since(known.began) < WINDOW * 2;
        lately.then(|| known.previous.map_or(known.current, |before| before.max(known.current)))
    }
}

/// Milliseconds since 1970 by the wall clock of this node, never 0.
pub(super) fn wall_ms() -> u64 {
    wall_clock::now_ms().max(1)
}

fn difference(peer_ms: u64, own_ms: u64) -> i64 {
    let difference = i128::from(peer_ms) - i128::from(own_ms);
    i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
}

/// The wall clocks of nodes do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClockAlarm {
    /// This node's clock is ahead of that of a majority, which agrees, by so many milliseconds; or
    /// behind it, if negative.
    Wrong { ahead_ms: i64 },
    /// No majority agrees. The clock that is furthest from this node's is ahead by so much.
    NoMajority { node: NodeId, ahead_ms: i64 },
}

impl ClockAlarm {
    /// Measures how far the clocks of the live peers are ahead of this node's.
    #[must_use]
    pub fn judge(peers: &[(NodeId, i64)]) -> Option<Self> {
        let nodes = peers.len() + 1;
        let agree = |with: i64| {
            let of_peers = peers.iter().map(|(_, ahead)| *ahead);
            of_peers
                .chain([0])
                .filter(|ahead| ahead.abs_diff(with) <= AGREE_WITHIN_MS as u64)
                .count()
        };
        if agree(0) * 2 > nodes {
            return None;
        }
        let majority = peers.iter().find(|(_, ahead)| agree(*ahead) * 2 > nodes);
        if let Some((_, ahead)) = majority {
            return Some(Self::Wrong { ahead_ms: ahead.saturating_neg() });
        }
        let (node, ahead_ms) =
            peers.iter().max_by_key(|(node, ahead)| (ahead.unsigned_abs(), *node))?;
        Some(Self::NoMajority { node: *node, ahead_ms: *ahead_ms })
    }
}

impl fmt::Display for ClockAlarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Wrong { ahead_ms } => write!(
                f,
                "its wall clock is {} those of most nodes; set it right, for example by NTP",
                Ahead(ahead_ms)
            ),
            Self::NoMajority { node, ahead_ms } => write!(
                f,
                "the wall clock of node {node} is {} its own, and no majority of nodes agrees on \
                 the time; set them right, for example by NTP",
                Ahead(ahead_ms)
            ),
        }
    }
}

/// A difference between clocks in words.
struct Ahead(i64);

impl fmt::Display for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.unsigned_abs() / 1_000;
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600, seconds / 60);
        match (days, hours, minutes) {
            (1.., _, _) => write!(f, "{days} d {} h", hours % 24)?,
            (_, 1.., _) => write!(f, "{hours} h {} min", minutes % 60)?,
            (_, _, 1..) => write!(f, "{minutes} min {} s", seconds % 60)?,
            _ => write!(f, "{seconds} s")?,
        }
        f.write_str(if self.0 < 0 { " behind" } else { " ahead of" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_MS: i64 = 365 * 24 * 60 * 60 * 1_000;

    fn judge(ahead: &[i64]) -> Option<ClockAlarm> {
        let number = |at: usize| NodeId::must(at as u64 + 2);
        let peers: Vec<_> = ahead.iter().enumerate().map(|(at, ms)| (number(at), *ms)).collect();
        ClockAlarm::judge(&peers)
    }

    #[test]
    fn a_clock_is_wrong_when_a_majority_of_the_others_says_so() {
        assert_eq!(judge(&[]), None);
        assert_eq!(judge(&[200, -4_900]), None);
        assert_eq!(judge(&[0, YEAR_MS]), None, "the other one is wrong");
        assert_eq!(judge(&[-9_000, -9_100]), Some(ClockAlarm::Wrong { ahead_ms: 9_000 }));
        assert_eq!(judge(&[i64::MIN, i64::MIN]), Some(ClockAlarm::Wrong { ahead_ms: i64::MAX }));
    }

    #[test]
    fn without_a_majority_the_clock_that_differs_most_is_named() {
        let alarm =
            |node, ahead_ms| Some(ClockAlarm::NoMajority { node: NodeId::must(node), ahead_ms });
        assert_eq!(judge(&[6_000]), alarm(2, 6_000));
        assert_eq!(judge(&[60_000, -90_000]), alarm(3, -90_000));
        assert_eq!(judge(&[0, 60_000, 60_100]), alarm(4, 60_100), "two against two");
    }

    #[test]
    fn a_heartbeat_that_was_late_makes_no_clock_slow() {
        let (clock, begin) = (PeerClock::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(clock.ahead_ms(begin), None);
        clock.said(1_000_000, 1_000_020, at(0));
        clock.said(1_000_100, 1_030_000, at(100));
        assert_eq!(clock.ahead_ms(at(200)), Some(-20));
        // Beyond the window, the next one counts beside the last window.
        clock.said(1_005_000, 1_006_000, at(5_100));
        assert_eq!(clock.ahead_ms(at(5_200)), Some(-20));
        clock.said(1_010_000, 1_011_000, at(10_200));
        assert_eq!(clock.ahead_ms(at(10_300)), Some(-1_000));
        assert_eq!(clock.ahead_ms(at(20_300)), None, "not heard lately");
    }

    #[test]
    fn no_number_from_outside_is_too_large() {
        let (clock, now) = (PeerClock::default(), Instant::now());
        clock.said(u64::MAX, 0, now);
        assert_eq!(clock.ahead_ms(now), Some(i64::MAX));
        clock.said(0, u64::MAX, now);
        assert_eq!(clock.ahead_ms(now), Some(i64::MAX));
    }

    #[test]
    fn the_alarm_is_said_in_words() {
        let said = |ahead_ms| ClockAlarm::Wrong { ahead_ms }.to_string();
        assert!(
            said(YEAR_MS + 3_600_000).starts_with("its wall clock is 365 d 1 h ahead of those")
        );
        assert!(said(-61_000).starts_with("its wall clock is 1 min 1 s behind those"));
        assert!(said(7_000).contains("is 7 s ahead of"));
    }
}

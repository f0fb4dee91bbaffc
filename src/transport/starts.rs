//! Which process is the peer: any process may claim a node number in its greeting.
//!
//! A start of a node has a number, its incarnation: microseconds of the clock, larger than every
//! start that its data directory knows. Nothing proves who sent one, so it counts for as much as
//! the receiver can judge:
//!
//! * A start that is further ahead than clocks differ is refused and not remembered ([`Horizon`]).
//!   It could never be outbid.
//! * A later start takes the place of an earlier one, as after a restart, if its directory knows
//!   the earlier one. While the earlier process is live, a directory that does not know it is
//!   another one: that process waits until the earlier one is silent. A node that lost its disk, or
//!   was put back from a copy, waits that long, too.
//! * A later start may have been a copy of the directory, or forged. Then the process that it
//!   displaced continues, and gets its place back: the directory of nodes has the node's address,
//!   and the process that answers *there*, to a greeting that was sent after the later start was
//!   seen, lives now. A restart excludes that, because a data directory has one process at a time.
//!   The place goes back when the later process is silent, or at once when its directory did not
//!   know the displaced one. An answer is never a late message of an old process: it was asked for.
//! * A displaced process is admitted again only where the node's address leads to it.
//!
//! Messages of two processes never mix: whenever the place changes, all streams end. A process that
//! comes back learns the newest start from which a message was taken, and treats its log as one
//! that may lack what the other process acknowledged in its name (see `memory`).
//!
//! Pure: the caller knows whether the present process is live, and how late it is.

use std::time::{Duration, Instant};

use shardhost_storage::NodeId;

use super::handshake::{Greeting, Refusal};
use crate::wall_clock;

/// Clocks of nodes may differ by this much; a start that is further ahead is refused.
pub(super) const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 60 * 60);
/// The same in the unit of incarnations.
const CLOCKS_DIFFER_MICROS: u64 = 24 * 60 * 60 * 1_000_000;
/// Earlier starts that a greeting names, its own included.
pub(super) const MOST_STARTS_TOLD: usize = 16;

/// The latest number that a start can have here and now, by what this host knows of the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon {
    /// The start of this host, which is a time, too: the clock may have gone back since.
    own: u64,
    since: Instant,
}

impl Horizon {
    pub fn new(own: u64) -> Self {
        Self { own, since: Instant::now() }
    }

    /// A start above it is not believed.
    pub fn latest(&self) -> u64 {
        latest(
            micros(wall_clock::since_1970()),
            self.own.saturating_add(micros(self.since.elapsed())),
        )
    }
}

fn latest(clock: u64, own: u64) -> u64 {
    clock.max(own).saturating_add(CLOCKS_DIFFER_MICROS)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Whether the directory that had these starts, the newest first, also had that one. A list that
/// is empty is of an older version, of which nothing is known.
pub(super) fn continues(starts: &[u64], known: u64) -> bool {
    let cut = starts.len() >= MOST_STARTS_TOLD;
    let older = starts.iter().all(|start| *start > known);
    starts.is_empty() || starts.contains(&known) || (cut && older)
}

/// What the receiver of a greeting or an answer knows besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// The process that has the place is live.
    pub heard: bool,
    /// The latest number that is believed.
    pub latest: u64,
}

/// What follows for the streams of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The process that has it keeps it.
    Kept,
    /// Another process has it: every stream ends.
    Taken,
}

/// The starts of one peer.
#[derive(Debug)]
pub(super) struct Starts {
    node: NodeId,
    /// The one that has the place; 0: none was seen.
    seen: u64,
    /// Its directory did not know the one before it.
    foreign: bool,
    /// The newest one from which a message was taken.
    confirmed: u64,
    /// One that gave the place back; 0: none.
    gave_way: u64,
}

impl Starts {
    pub fn new(node: NodeId) -> Self {
        Self { node, seen: 0, foreign: false, confirmed: 0, gave_way: 0 }
    }

    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// An earlier process of this host took messages of this start.
    pub fn remember(&mut self, start: u64) {
        self.seen = self.seen.max(start);
        self.confirm(start);
    }

    /// A message was taken of this start.
    pub fn confirm(&mut self, start: u64) {
        self.confirmed = self.confirmed.max(start);
    }

    /// A stream of a snapshot comes from this start: it takes no place.
    pub fn visits(&self, theirs: u64, sight: Sight) -> Result<(), Refusal> {
        self.check_time(theirs, sight)?;
        if theirs < self.seen { Err(self.old(theirs)) } else { Ok(()) }
    }

    /// A process greets.
    pub fn greets(&mut self, greeting: &Greeting, sight: Sight) -> Result<Place, Refusal> {
        let theirs = greeting.incarnation;
        self.visits(theirs, sight)?;
        if theirs == self.seen {
            return Ok(Place::Kept);
        }
        let same_directory = self.seen == 0 || continues(&greeting.starts, self.seen);
        if theirs == self.gave_way || (sight.heard && !same_directory) {
            // It does not learn what is known: its directory would keep that as a start of this
            // node.
            return Err(Refusal::SecondProcess { node: self.node, theirs, seen: self.seen });
        }
        self.take(theirs, !same_directory);
        Ok(Place::Taken)
    }

    /// The process at the node's address answered a greeting. When that was sent, `asked` had the
    /// place.
    pub fn answers(&mut self, theirs: u64, asked: u64, sight: Sight) -> Result<Place, Refusal> {
        self.check_time(theirs, sight)?;
        if theirs == self.seen {
            return Ok(Place::Kept);
        }
        if theirs < self.seen {
            let displaced_by_nobody = !sight.heard || self.foreign;
            if asked != self.seen || !displaced_by_nobody {
                return Err(self.old(theirs));
            }
            self.gave_way = self.seen;
            tracing::warn!(node = %self.node, start = theirs, later = self.seen,
                "the process at the node's address continues: a process with a later start of the \
                 node greeted and is not there");
        }
        let gave_way = if theirs > self.seen { 0 } else { self.gave_way };
        self.take(theirs, false);
        self.gave_way = gave_way;
        Ok(Place::Taken)
    }

    fn take(&mut self, theirs: u64, foreign: bool) {
        self.seen = theirs;
        self.foreign = foreign;
        self.gave_way = 0;
    }

    fn check_time(&self, theirs: u64, sight: Sight) -> Result<(), Refusal> {
        let known = match self.confirmed {
            0 => 0,
            known => known.saturating_add(CLOCKS_DIFFER_MICROS),
        };
        let latest = sight.latest.max(known);
        if theirs > latest.min(crate::data_dir::LATEST_START) {
            return Err(Refusal::AheadOfClock { node: self.node, theirs, latest });
        }
        Ok(())
    }

    fn old(&self, theirs: u64) -> Refusal {
        let (node, seen, known) = (self.node, self.seen, self.confirmed);
        Refusal::OldIncarnation { node, theirs, seen, known }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARD: Sight = Sight { heard: true, latest: 1_000 };
    const SILENT: Sight = Sight { heard: false, latest: 1_000 };

    fn greeting(starts: &[u64]) -> Greeting {
        Greeting { node: NodeId::must(2), incarnation: starts[0], starts: starts.to_vec() }
    }

    /// Start 5 has the place.
    fn starts() -> Starts {
        let mut starts = Starts::new(NodeId::must(2));
        assert_eq!(starts.greets(&greeting(&[5, 3]), SILENT), Ok(Place::Taken));
        starts
    }

    #[test]
    fn a_start_ahead_of_every_clock_is_refused_and_not_remembered() {
        let mut starts = starts();
        for theirs in [1_001, u64::MAX] {
            let refused = starts.greets(&greeting(&[theirs, 5]), SILENT).unwrap_err();
            assert!(matches!(refused, Refusal::AheadOfClock { .. }), "{refused}");
            assert!(starts.answers(theirs, 5, SILENT).is_err());
        }
        assert_eq!(starts.greets(&greeting(&[5, 3]), HEARD), Ok(Place::Kept));
        assert_eq!(starts.greets(&greeting(&[1_000, 5]), HEARD), Ok(Place::Taken));
    }

    #[test]
    fn a_clock_that_went_back_refuses_nobody_who_was_known() {
        let mut starts = Starts::new(NodeId::must(2));
        starts.remember(1 << 50);
        assert_eq!(starts.greets(&greeting(&[(1 << 50) + 7]), SILENT), Ok(Place::Taken));
        assert!(latest(0, 1 << 50) > 1 << 50, "the own start is a time, too");
    }

    #[test]
    fn a_restart_takes_the_place_although_the_earlier_process_was_just_heard() {
        assert_eq!(starts().greets(&greeting(&[6, 5, 3]), HEARD), Ok(Place::Taken));
        let older_version = Greeting { starts: Vec::new(), ..greeting(&[6]) };
        assert_eq!(starts().greets(&older_version, HEARD), Ok(Place::Taken));
    }

    #[test]
    fn another_directory_waits_until_the_node_is_silent() {
        let mut starts = starts();
        let refused = starts.greets(&greeting(&[6]), HEARD).unwrap_err();
        let node = NodeId::must(2);
        assert_eq!(refused, Refusal::SecondProcess { node, theirs: 6, seen: 5 });
        assert_eq!(starts.greets(&greeting(&[6]), SILENT), Ok(Place::Taken));
    }

    #[test]
    fn the_displaced_process_comes_back_when_the_clone_is_silent() {
        let mut starts = starts();
        starts.greets(&greeting(&[6, 5]), HEARD).unwrap();
        assert!(starts.greets(&greeting(&[5, 3]), SILENT).is_err(), "a greeting may come late");
        assert!(starts.answers(5, 5, SILENT).is_err(), "it was asked before the clone was seen");
        assert!(starts.answers(5, 6, HEARD).is_err(), "the clone lives");
        assert_eq!(starts.answers(5, 6, SILENT), Ok(Place::Taken));
        assert_eq!(starts.greets(&greeting(&[5, 3]), SILENT), Ok(Place::Kept));
        assert!(starts.greets(&greeting(&[6, 5]), SILENT).is_err(), "the clone gave way");
        assert_eq!(starts.greets(&greeting(&[7, 5]), SILENT), Ok(Place::Taken), "a restart");
    }

    #[test]
    fn a_process_with_another_directory_gives_way_although_it_lives() {
        let mut starts = starts();
        starts.greets(&greeting(&[6]), SILENT).unwrap();
        assert_eq!(starts.answers(5, 6, HEARD), Ok(Place::Taken));
        // The node moved: its address leads there.
        assert_eq!(starts.answers(6, 5, HEARD), Ok(Place::Taken));
        assert_eq!(starts.greets(&greeting(&[6]), HEARD), Ok(Place::Kept));
    }

    #[test]
    fn a_process_that_comes_back_is_told_of_whom_messages_were_taken() {
        let mut starts = starts();
        starts.confirm(5);
        starts.greets(&greeting(&[6, 5]), HEARD).unwrap();
        let known_of = |starts: &mut Starts| match starts.greets(&greeting(&[5]), SILENT) {
            Err(Refusal::OldIncarnation { known, .. }) => known,
            other => panic!("{other:?}"),
        };
        assert_eq!(known_of(&mut starts), 5, "it greeted and said nothing");
        starts.confirm(6);
        assert_eq!(known_of(&mut starts), 6);
    }

    #[test]
    fn a_list_that_was_cut_says_nothing_of_what_lies_before_it() {
        let many: Vec<u64> = (10..10 + MOST_STARTS_TOLD as u64).rev().collect();
        assert!(continues(&many, 9) && continues(&many, 12));
        assert!(!continues(&many[1..], 9) && !continues(&many, 99));
    }
}

//! The reaction of a leader to being deposed by a replica that it offered its leadership to, when
//! that offer had failed before.
//!
//! A TimeoutNow cannot be called back, nor can a vote that was prepared. A replica that follows it
//! after users had waited long enough, or comes back after a crash with such a vote, ends the
//! leader's term, and is not elected if it lacks later entries: then there is no leader, and no
//! replica would campaign before an election timeout is over. The deposed leader knows the cause,
//! and that it lacks nothing. So it campaigns at once, by way of a pre-vote: where there is a
//! leader already, that changes nothing.

use raft::{INVALID_ID, StateRole};

use super::super::GroupCore;
use crate::core::Effects;
use crate::policy::PolicyEvent;

impl GroupCore {
    /// Whether the leadership of `term` was ended by a replica that it was offered to, as it seems,
    /// and no other takes its place. Asked before the leadership is given up.
    pub(in crate::core) fn stands_again(&self, term: u64, effects: &Effects) -> bool {
        let raft = &self.raw.raft;
        let nobody = raft.state == StateRole::Follower
            && raft.leader_id == INVALID_ID
            && raft.vote == INVALID_ID;
        let next_term = raft.term == term + 1;
        self.led.as_ref().is_some_and(|led| led.offered)
            && !self.is_frozen()
            && nobody
            && next_term
            && self.own_unfitness(effects).is_none()
    }

    /// Stands for election before its time.
    pub(in crate::core) fn stand_again(&mut self, effects: &mut Effects) {
        effects.count(PolicyEvent::StoodAgain);
        self.candidacy.stop_withholding();
        self.stand();
    }
}

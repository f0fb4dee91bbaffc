//! What a leader does that somebody deposes to whom it offered its leadership, when that came to
//! nothing before.
//!
//! An order to campaign cannot be called back, nor can a vote that was prepared. Whoever follows
//! the order after users had waited long enough, or comes back after a crash with such a vote, ends
//! the leader's term, and is not elected if it lacks what was written meanwhile: then nobody leads,
//! and no replica would stand before an election timeout is over. The deposed leader knows how that
//! came, and that it lacks nothing. So it stands at once, by way of a pre-vote: where somebody leads
//! already, that changes nothing.

use raft::{INVALID_ID, StateRole};

use super::super::GroupCore;
use crate::policy::PolicyEvent;
use crate::worker::Round;

impl GroupCore {
    /// Whether the leadership of `term` was ended by a replica that it was offered to, as it seems, and
    /// nobody takes its place. Asked before the leadership is given up.
    pub(in crate::core) fn stands_again(&self, term: u64, round: &Round) -> bool {
        let raft = &self.raw.raft;
        let nobody = raft.state == StateRole::Follower
            && raft.leader_id == INVALID_ID
            && raft.vote == INVALID_ID;
        let next_term = raft.term == term + 1;
        self.led.as_ref().is_some_and(|led| led.offered)
            && !self.is_frozen()
            && nobody
            && next_term
            && self.own_unfitness(round).is_none()
    }

    /// Stands for election before its time.
    pub(in crate::core) fn stand_again(&mut self, round: &mut Round) {
        round.count(PolicyEvent::StoodAgain);
        self.stop_withholding();
        self.stand();
    }
}

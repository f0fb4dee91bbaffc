//! What a leader does when a candidate comes forward that it told to campaign, after users had
//! waited for that long enough.
//!
//! An order to campaign cannot be called back. Whoever follows it late ends the leader's term, and
//! is not elected if it lacks what was written meanwhile: then nobody leads, and no replica would
//! stand before an election timeout is over. The deposed leader knows how that came, and that it
//! lacks nothing. So it stands at once, by way of a pre-vote: where somebody leads already, that
//! changes nothing.

use raft::{INVALID_ID, StateRole};

use super::super::GroupCore;
use crate::policy::PolicyEvent;
use crate::worker::Round;

impl GroupCore {
    /// Whether the leadership of `term` was ended by a candidate of this leader's own making, and
    /// nobody takes its place. Asked before the leadership is given up.
    pub(in crate::core) fn stands_again(&self, term: u64, round: &Round) -> bool {
        let raft = &self.raw.raft;
        let nobody = raft.state == StateRole::Follower
            && raft.leader_id == INVALID_ID
            && raft.vote == INVALID_ID;
        let next_term = raft.term == term + 1;
        self.may_be_deposed()
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

//! A replica whose state machine lost its state: the disk damaged it, or it was removed. The log is
//! complete, so the replica votes and acknowledges as before, and follows changes of members. It
//! applies nothing, serves no users, and asks for a snapshot from which its log continues. That
//! replaces the state; nothing in the group waits for it, however long it takes.
//!
//! | replica without a state | asks |
//! |---|---|
//! | a follower or learner | its leader |
//! | one whose leader says that it has no state to give | all members, one after the other |
//! | a leader | the same, but for those that said that they have none |
//! | any | a replica that was removed, when it is heard |
//!
//! Every replica gives what it has, whatever its role; `GroupCore::take_given_state` says why that
//! harms nothing. The leader comes first, so that not all make a snapshot where one is enough.
//!
//! Raft's request for a snapshot is not used: a replica that asks takes no entries before it has
//! one, because the snapshot replaces its log.
//!
//! Its answers to the leader say so: a leader gives no vote to a learner without a state, and does not
//! leave the group to such voters alone. If they lost theirs just when it left, it keeps its own and gives
//! it to them, for none of them lets it go.
//!
//! It leads only when no other does, as any ineligible node: its log may be the one that has the
//! acknowledged entries. It brings another voter level with it, and gives leadership up.
//!
//! Nothing of this is written down: at each opening the machine is found to be behind the log's
//! base.

use raft::{INVALID_ID, StateRole};
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{Genesis, NodeId, RequirementMode};

use super::{GroupCore, mix};
use crate::core::Effects;
use crate::core::lease::PeerState;
use crate::known_bugs::KnownBug;
use crate::nodes::Impairment;
use crate::transport::{Lane, Outgoing};

/// Requests for a state to one member before the next is asked.
const REQUESTS_PER_TURN: u64 = 2;

/// What is known of a lost state.
#[derive(Debug)]
pub(super) struct Recovery {
    lost: bool,
    /// A snapshot is asked for again at this tick.
    asks_at: u64,
    /// The same of replicas that were removed.
    asks_removed_at: u64,
    /// Requests that went to one member after the other.
    turns: u64,
    /// The leader that was heard last says that it has no state to give.
    leader_gives_none: bool,
}

impl Recovery {
    pub(super) const fn opened(lost: bool) -> Self {
        Self { lost, asks_at: 0, asks_removed_at: 0, turns: 0, leader_gives_none: false }
    }

    pub(super) const fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether a snapshot may be asked for again.
    const fn is_due(&self, tick: u64) -> bool {
        tick >= self.asks_at
    }

    const fn ask_again_at(&mut self, tick: u64) {
        self.asks_at = tick;
    }

    /// Whose turn it is of so many members, from 0. Each is asked twice in a row: it makes a snapshot for
    /// the first request, and gives it to the second.
    const fn next_turn(&mut self, members: u64) -> u64 {
        let turn = self.turns / REQUESTS_PER_TURN % members;
        self.turns += 1;
        turn
    }

    /// Whether a replica that was removed may be asked again.
    const fn may_ask_removed(&self, tick: u64) -> bool {
        tick >= self.asks_removed_at
    }

    /// The state is there again. Returns whether it was lost.
    const fn end(&mut self) -> bool {
        std::mem::replace(&mut self.lost, false)
    }
}

/// The impairment of such a replica.
pub(super) fn impairment() -> Impairment {
    let reason = "its state is lost; it waits for a snapshot of another replica";
    Impairment { reason: reason.into(), mode: RequirementMode::Hard }
}

impl GroupCore {
    /// Whether nothing may be applied, for there is nothing to apply it to.
    pub(super) fn lacks_state(&self) -> bool {
        self.recovery.is_lost() && !self.config.bugs.has(KnownBug::ApplyWithoutState)
    }

    /// Whether this replica asks for a snapshot now: none is here or on its way, and it leads, or a leader
    /// is known.
    pub(super) fn is_state_due(&self) -> bool {
        let raft = &self.raw.raft;
        let knows = raft.state == StateRole::Follower && raft.leader_id != INVALID_ID;
        self.recovery.is_due(self.ticks)
            && (knows || self.leads())
            && !self.snapshots.has_state()
            && !self.has_pending_snapshot()
            && self.doubt.is_none()
    }

    /// Asks for a snapshot, once in one to two election timeouts, until one is here. The request, the
    /// snapshot or its maker may be lost. A replica that makes snapshots at even intervals must not
    /// replace each just when it ships it.
    pub(super) fn ask_for_state(&mut self, effects: &mut Effects) {
        let pause = u64::from(self.config.election_ticks).max(1);
        let spread = mix(self.id.get() ^ self.ticks) % pause;
        self.recovery.ask_again_at(self.ticks + pause + spread);
        if self.config.bugs.has(KnownBug::StopLogForState) {
            if let Err(error) = self.raw.request_snapshot() {
                tracing::debug!(group = %self.id, %error, "raft asks for no snapshot");
            }
            return;
        }
        if let Some((replica, to)) = self.next_giver(effects) {
            self.send_state_request(to, replica, effects);
        }
    }

    /// The replica that is asked for a state next, and its node.
    fn next_giver(&mut self, effects: &Effects) -> Option<(u64, NodeId)> {
        if !self.leads() && !self.recovery.leader_gives_none {
            let leader = self.raw.raft.leader_id;
            return Some((leader, self.node_of(leader)?));
        }
        let others = self.membership.members.iter().filter(|(replica, member)| {
            **replica != self.replica
                && effects.nodes.contains(member.node)
                && self.state_of_peer(replica.get()) != PeerState::Lost
        });
        let others: Vec<_> = others.map(|(id, member)| (id.get(), member.node)).collect();
        let turn = self.recovery.next_turn((others.len() as u64).max(1));
        others.get(usize::try_from(turn).ok()?).copied()
    }

    /// A heartbeat says whether the leader may have a state to give.
    pub(super) const fn hear_of_leaders_state(&mut self, lacks_state: bool) {
        self.recovery.leader_gives_none = lacks_state;
    }

    /// Whether this leader has no state to give, or a state machine that may not get to making a
    /// snapshot.
    pub(super) fn may_give_no_state(&self) -> bool {
        self.lacks_state() || self.stands_still()
    }

    /// Whether there is no state here that would survive the loss of all others: it is lost, or replaced by
    /// a snapshot that is not restored yet.
    pub(super) fn has_no_state(&self) -> bool {
        self.lacks_state() || self.snapshots.is_installing()
    }

    /// A replica that was removed is heard. Who has the group's state lets it go. Who lost it does not, and
    /// asks for it.
    pub(super) fn answer_removed(
        &mut self,
        node: NodeId,
        message: &GroupMessage,
        effects: &mut Effects,
    ) {
        if !self.lets_nobody_go() {
            self.send_notice(node, message.from_replica, effects);
        } else if message.kind() == MessageKind::Snapshot {
            self.take_given_state(message);
        } else if self.lacks_state()
            && !self.snapshots.has_state()
            && self.recovery.may_ask_removed(self.ticks)
        {
            let pause = u64::from(self.config.election_ticks).max(1);
            self.recovery.asks_removed_at = self.ticks + pause;
            self.send_state_request(node, message.from_replica, effects);
        }
    }

    fn send_state_request(&self, to: NodeId, replica: u64, effects: &mut Effects) {
        let index = self.raw.store().base().index.get();
        let own = self.own_message(MessageKind::StateRequest, replica);
        let genesis = self.membership.genesis.map_or(0, Genesis::get);
        let message = GroupMessage { index, genesis, any_giver: true, ..own };
        effects.messages.push(Outgoing { to, lane: Lane::Urgent, message });
    }

    /// Whether a leader without a state gives its leadership up: no eligible voter can take it over now,
    /// and another voter with a state has all its entries. One that is far behind may never be able to: it
    /// needs a snapshot, and there is none here.
    pub(super) fn may_leave_leadership(&self, effects: &Effects) -> bool {
        if self.transfer.is_some() || self.can_hand_over_now(effects) {
            return false;
        }
        let (raft, own) = (&self.raw.raft, self.replica);
        let last = raft.raft_log.last_index();
        self.membership.voters().any(|(replica, node)| {
            let progress = raft.prs().get(replica.get());
            replica != own
                && effects.nodes.contains(node)
                && self.state_of_peer(replica.get()) != PeerState::Lost
                && progress.is_some_and(|progress| progress.matched == last)
        })
    }

    /// Another voter has the log, and may lead.
    pub(super) fn leave_leadership(&mut self) {
        tracing::info!(group = %self.id, "another voter has the log: it may lead");
        self.withhold_candidacy();
        self.follow_nobody();
    }

    /// A snapshot is the state from here on.
    pub(super) fn state_is_back(&mut self, effects: &mut Effects) {
        if self.recovery.end() {
            tracing::info!(group = %self.id, "the lost state was replaced by a snapshot");
            self.on_stalled(None, effects);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_is_asked_twice_in_a_row() {
        let mut recovery = Recovery::opened(true);
        let turns: Vec<u64> = (0..7).map(|_| recovery.next_turn(3)).collect();
        assert_eq!(turns, [0, 0, 1, 1, 2, 2, 0]);
        assert_eq!(recovery.next_turn(1), 0, "fewer answer");
    }
}

//! A replica whose state machine lost its state: the disk damaged it, or it was removed. The log is
//! complete, so the replica votes and acknowledges as before, and follows changes of members. It
//! applies nothing, serves no users, and asks the leader for a snapshot from which its log
//! continues. That replaces the state; nothing in the group waits for it, however long it takes.
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
use shardhost_storage::{NodeId, RequirementMode};

use super::{GroupCore, mix};
use crate::core::Effects;
use crate::core::lease::PeerState;
use crate::known_bugs::KnownBug;
use crate::nodes::Impairment;
use crate::transport::{Lane, Outgoing};

/// What is known of a lost state.
#[derive(Debug)]
pub(super) struct Recovery {
    lost: bool,
    /// A snapshot is asked for again at this tick.
    asks_at: u64,
    /// The same of replicas that were removed.
    asks_removed_at: u64,
}

impl Recovery {
    pub(super) const fn opened(lost: bool) -> Self {
        Self { lost, asks_at: 0, asks_removed_at: 0 }
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
    let reason = "its state is lost; it waits for a snapshot of the replica that leads";
    Impairment { reason: reason.into(), mode: RequirementMode::Hard }
}

impl GroupCore {
    /// Whether nothing may be applied, for there is nothing to apply it to.
    pub(super) fn lacks_state(&self) -> bool {
        self.recovery.is_lost() && !self.config.bugs.has(KnownBug::ApplyWithoutState)
    }

    /// Whether a follower asks for a snapshot now: none is here or on its way, and a leader is known.
    pub(super) fn is_state_due(&self) -> bool {
        let raft = &self.raw.raft;
        self.recovery.is_due(self.ticks)
            && raft.state == StateRole::Follower
            && raft.leader_id != INVALID_ID
            && !self.snapshots.has_state()
            && !self.has_pending_snapshot()
            && self.doubt.is_none()
    }

    /// Asks the leader for a snapshot, once in one to two election timeouts, until one is here. The
    /// request, the snapshot or its maker may be lost. A leader that makes snapshots at even intervals
    /// must not replace each just when it ships it.
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
        let Some(to) = self.node_of(self.raw.raft.leader_id) else { return };
        self.send_state_request(to, self.raw.raft.leader_id, effects);
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
            self.take_state_of_removed(message);
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
        let message = GroupMessage { index, ..own };
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

//! A replica that was removed from its group ends, and takes its data along.
//!
//! It learns of its removal by applying it, or, when it was away, from members: they answer all its
//! messages. It ends when a quorum of the remaining voters have reported the configuration without
//! it. One that lost the group's state reports nothing. Until then it keeps voting and acknowledging, because members that have not applied its
//! removal yet may still need it for their quorum.

use std::collections::BTreeSet;

use shardhost_proto::peer::{GroupMessage, Invitation, MessageKind};
use shardhost_storage::convert::membership_to_message;
use shardhost_storage::{Member, Membership, NodeId, ReplicaId};

use super::GroupCore;
use crate::convert;
use crate::core::Effects;
use crate::known_bugs::KnownBug;
use crate::transport::{Lane, Outgoing};

/// A removed replica's knowledge of the group.
#[derive(Debug)]
pub(super) struct Leaving {
    membership: Membership,
    confirmed: BTreeSet<ReplicaId>,
}

/// Ticks between two questions of a replica that waits to be let go, and two notices to one that
/// was removed.
const PROBE_TICKS: u64 = 5;
/// Of so many election timeouts, a replica with a notice of its removal campaigns after one. It
/// would step down at the next notice, and end the terms of the remaining leaders. It does campaign
/// now and then, because members that have not applied the removal may need its vote and lack
/// entries of its log.
const TIMEOUTS_PER_CAMPAIGN: u64 = 8;
/// Notices that a leader sends unasked; a replica that missed them all gets one when it asks.
const NOTICES: u8 = 6;

/// Replicas that this leader removed, and how many notices they still get.
#[derive(Debug)]
pub(super) struct Dismissed {
    replica: u64,
    node: NodeId,
    left: u8,
}

impl Leaving {
    const fn new(membership: Membership) -> Self {
        Self { membership, confirmed: BTreeSet::new() }
    }

    fn confirm(&mut self, from: ReplicaId, membership: Membership) {
        if membership.config_index > self.membership.config_index {
            self.membership = membership;
        }
        self.confirmed.insert(from);
    }

    /// Whether the group can do without this replica from here on. Learners may say what they
    /// know; it is for the voters to let it go.
    fn is_let_go(&self) -> bool {
        let holds = |votes: &dyn Fn(&Member) -> bool| {
            let members = self.membership.members.iter();
            let voters: Vec<_> = members.filter(|(_, member)| votes(member)).collect();
            let confirmed = voters.iter().filter(|(id, _)| self.confirmed.contains(id)).count();
            voters.is_empty() || confirmed > voters.len() / 2
        };
        holds(&|member| member.voter) && holds(&|member| member.outgoing_voter)
    }
}

impl GroupCore {
    /// Whether this replica ended, because the group continues without it.
    #[must_use]
    pub const fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether this replica was removed, and is not let go yet.
    pub(super) const fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// After a change of membership: is this replica still part of it?
    pub(super) fn consider_leaving(&mut self) {
        let member = self.membership.members.get(&self.replica);
        let votes = member.is_some_and(|member| member.voter || member.outgoing_voter);
        if self.leads() && !votes {
            // Raft keeps leading without a vote, and panics at the next answer.
            self.follow_nobody();
        }
        let removed = !self.membership.members.contains_key(&self.replica);
        if removed && self.leaving.is_none() {
            tracing::info!(group = %self.id, replica = %self.replica, "removed from the group");
            self.leaving = Some(Box::new(Leaving::new((*self.membership).clone())));
        }
    }

    /// Whether this replica was removed, and skips this campaign for the sake of those that remain.
    pub(super) fn leaves_campaigns_to_others(&self) -> bool {
        self.leaving.is_some()
            && !self.candidacy.counted().is_multiple_of(TIMEOUTS_PER_CAMPAIGN)
            && !self.config.bugs.has(KnownBug::RemovedCampaigns)
    }

    /// A member reports that the group continues without this replica.
    pub(super) fn take_notice(&mut self, node: NodeId, message: &GroupMessage) {
        let Some((from, membership)) = self.checked_notice(node, message) else { return };
        self.wake();
        if self.leads() {
            self.follow_nobody();
        }
        let leaving =
            self.leaving.get_or_insert_with(|| Box::new(Leaving::new(membership.clone())));
        leaving.confirm(from, membership);
        self.retired = leaving.is_let_go();
    }

    /// A notice counts when a member of the configuration that it shows reports our removal, and
    /// shows a later configuration than ours, or ours.
    fn checked_notice(
        &self,
        node: NodeId,
        message: &GroupMessage,
    ) -> Option<(ReplicaId, Membership)> {
        let wire = message.invitation.as_ref()?.membership.as_ref()?;
        let membership = convert::membership_from_wire(wire)?;
        let from = ReplicaId::new(message.from_replica)?;
        let sender = membership.members.get(&from)?;
        let known = &self.membership;
        let news = membership.config_index > known.config_index;
        let ours =
            membership.config_index == known.config_index && membership.members == known.members;
        let without_us = membership.was_removed(self.replica);
        (sender.node == node && (news || ours) && without_us).then_some((from, membership))
    }

    /// A replica that does not belong to the group any more gets a notice.
    pub(super) fn send_notice(&self, node: NodeId, to: u64, effects: &mut Effects) {
        // What a crash could undo is not reported.
        if self.leaving.is_some() || !self.durable.is_meta_durable() {
            return;
        }
        let invitation = Invitation {
            membership: Some(membership_to_message(&self.membership)),
            ..Invitation::default()
        };
        let message = GroupMessage {
            index: self.membership.config_index.get(),
            commit: self.known_committed(),
            invitation: Some(invitation),
            ..self.own_message(MessageKind::Removed, to)
        };
        effects.messages.push(Outgoing { to: node, lane: Lane::Urgent, message });
    }

    /// The commit index of the group, as far as this replica knows: a replica created by request
    /// knows the configuration before the entries that lead to it.
    pub(super) fn known_committed(&self) -> u64 {
        self.raw.raft.raft_log.committed.max(self.membership.config_index.get())
    }

    /// A change removed replicas; a leader notifies them.
    pub(super) fn dismiss(&mut self, before: &Membership) {
        if !self.leads() {
            return;
        }
        let members = before.members.iter();
        let gone = members.filter(|(id, _)| !self.membership.members.contains_key(id));
        let dismissed = gone.map(|(id, member)| Dismissed {
            replica: id.get(),
            node: member.node,
            left: NOTICES,
        });
        self.dismissed.extend(dismissed);
    }

    /// At ticks: continues the end of replicas that were removed, this one or others.
    pub(super) fn tend_leaving(&mut self, effects: &mut Effects) {
        if !self.ticks.is_multiple_of(PROBE_TICKS) {
            return;
        }
        for dismissed in &self.dismissed {
            self.send_notice(dismissed.node, dismissed.replica, effects);
        }
        self.dismissed.iter_mut().for_each(|dismissed| dismissed.left -= 1);
        self.dismissed.retain(|dismissed| dismissed.left > 0);
        if let Some(leaving) = &self.leaving {
            self.probe(&leaving.membership, effects);
        } else if self.is_isolated() {
            self.probe(&self.membership, effects);
        }
    }

    /// A replica without a vote, or in doubt, does not campaign: when it hears of no leader for long, it
    /// has to ask by other means whether it still belongs to the group.
    fn is_isolated(&self) -> bool {
        let raft = &self.raw.raft;
        let long = 2 * raft.election_timeout();
        let silent = !raft.promotable() && raft.election_elapsed >= long;
        let doubts = self.may_not_campaign_in_doubt() && raft.leader_id == raft::INVALID_ID;
        !self.leads() && (silent || doubts)
    }

    fn probe(&self, membership: &Membership, effects: &mut Effects) {
        for (id, member) in &membership.members {
            if *id != self.replica && member.node != self.config.node {
                let message = self.own_message(MessageKind::Wake, id.get());
                effects.messages.push(Outgoing { to: member.node, lane: Lane::Urgent, message });
            }
        }
    }
}

//! A replica that was removed from its group ends, and takes its data along.
//!
//! It learns of its removal by applying it, or, when it was away, from members: they answer all its
//! messages. It ends when a quorum of the remaining voters have reported the configuration without
//! it; one that has no state reports nothing. Until then it keeps voting and acknowledging, because
//! members that have not applied its removal yet may still need it for their quorum.

use std::collections::BTreeSet;

use shardhost_proto::peer::{CreateRequest, GroupMessage, MessageKind};
use shardhost_storage::convert::membership_to_message;
use shardhost_storage::{Member, Membership, NodeId, ReplicaId};

use super::GroupCore;
use crate::convert;
use crate::core::Effects;
use crate::known_bugs::KnownBug;
use crate::transport::{Lane, Outgoing};

/// Replicas that were removed, this one or others.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// This one was, and waits to be let go.
    own: Option<Box<Removal>>,
    /// It was let go.
    let_go: bool,
    /// Those that this leader removed.
    dismissed: Vec<Dismissed>,
}

/// A removed replica's knowledge of the group.
#[derive(Debug)]
struct Removal {
    membership: Membership,
    confirmed: BTreeSet<ReplicaId>,
}

/// Ticks between two questions of a replica that waits to be let go, and two notices to one that
/// was removed.
pub(super) const PROBE_TICKS: u64 = 5;
/// Of so many election timeouts, a replica with a notice of its removal campaigns after one. It
/// would step down at the next notice, and end the terms of the remaining leaders. It does campaign
/// now and then, because members that have not applied the removal may need its vote and lack
/// entries of its log.
const TIMEOUTS_PER_CAMPAIGN: u64 = 8;
/// Notices that a leader sends unasked; a replica that missed them all gets one when it asks.
const NOTICES: u8 = 6;

/// Replicas that this leader removed, and how many notices they still get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dismissed {
    replica: u64,
    node: NodeId,
    left: u8,
}

impl Leaving {
    /// Whether nothing is to be done for a replica that was removed.
    pub(super) const fn is_over(&self) -> bool {
        self.own.is_none() && self.dismissed.is_empty()
    }

    /// A leadership ended: another leader notifies those that were removed.
    pub(super) fn forget_dismissed(&mut self) {
        self.dismissed.clear();
    }

    /// A leader removed the replicas that are in `before` and not in `after`.
    fn dismiss(&mut self, before: &Membership, after: &Membership) {
        let gone = before.members.iter().filter(|(id, _)| !after.members.contains_key(id));
        self.dismissed.extend(gone.map(|(id, member)| Dismissed {
            replica: id.get(),
            node: member.node,
            left: NOTICES,
        }));
    }

    /// The last configuration that this removed replica knows.
    fn begin(&mut self, membership: &Membership) {
        self.own.get_or_insert_with(|| Box::new(Removal::new(membership.clone())));
    }

    /// A member confirms that the group continues without this replica.
    fn confirm(&mut self, from: ReplicaId, membership: Membership) {
        self.begin(&membership);
        if let Some(own) = &mut self.own {
            own.confirm(from, membership);
            self.let_go = own.is_let_go();
        }
    }

    /// Whether this replica skips its n-th campaign for the sake of those that remain.
    const fn skips_campaign(&self, n: u64) -> bool {
        self.own.is_some() && !n.is_multiple_of(TIMEOUTS_PER_CAMPAIGN)
    }
}

impl Removal {
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
        self.leaving.let_go
    }

    /// Whether this replica was removed, and is not let go yet.
    pub(super) const fn is_leaving(&self) -> bool {
        self.leaving.own.is_some()
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
        if removed && !self.is_leaving() {
            tracing::info!(group = %self.id, replica = %self.replica, "removed from the group");
            self.leaving.begin(&self.membership);
        }
    }

    /// Whether this replica was removed, and skips this campaign for the sake of those that remain.
    pub(super) fn leaves_campaigns_to_others(&self) -> bool {
        self.leaving.skips_campaign(self.candidacy.counted())
            && !self.config.bugs.has(KnownBug::RemovedCampaigns)
    }

    /// A member reports that the group continues without this replica.
    pub(super) fn take_notice(&mut self, node: NodeId, message: &GroupMessage) {
        let Some((from, membership)) = self.checked_notice(node, message) else { return };
        self.wake();
        if self.leads() {
            self.follow_nobody();
        }
        self.leaving.confirm(from, membership);
    }

    /// A notice counts when a member of the configuration that it shows reports our removal, and
    /// shows a later configuration than ours, or ours.
    fn checked_notice(
        &self,
        node: NodeId,
        message: &GroupMessage,
    ) -> Option<(ReplicaId, Membership)> {
        let wire = message.create_request.as_ref()?.membership.as_ref()?;
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

    /// Whether this replica is without a state: the one that was removed may be the last that has
    /// it, if others lost theirs just then.
    pub(super) fn lets_nobody_go(&self) -> bool {
        self.has_no_state() && !self.config.bugs.has(KnownBug::ForgetLostStates)
    }

    /// A replica that does not belong to the group any more gets a notice.
    pub(super) fn send_notice(&self, node: NodeId, to: u64, effects: &mut Effects) {
        // What a crash could undo is not reported.
        if self.is_leaving() || !self.durable.is_meta_durable() || self.lets_nobody_go() {
            return;
        }
        let create_request = CreateRequest {
            membership: Some(membership_to_message(&self.membership)),
            ..CreateRequest::default()
        };
        let message = GroupMessage {
            index: self.membership.config_index.get(),
            commit: self.known_committed(),
            create_request: Some(create_request),
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
        if self.leads() {
            self.leaving.dismiss(before, &self.membership);
        }
    }

    /// Those that this leader removed get another notice, as long as they get any.
    pub(super) fn notify_dismissed(&mut self, effects: &mut Effects) {
        if self.lets_nobody_go() {
            return;
        }
        for dismissed in &self.leaving.dismissed {
            self.send_notice(dismissed.node, dismissed.replica, effects);
        }
        let dismissed = &mut self.leaving.dismissed;
        dismissed.iter_mut().for_each(|dismissed| dismissed.left -= 1);
        dismissed.retain(|dismissed| dismissed.left > 0);
    }

    /// A replica without a vote, or in doubt, does not campaign: when it hears of no leader for
    /// long, it has to ask by other means whether it still belongs to the group.
    pub(super) fn is_isolated(&self) -> bool {
        let raft = &self.raw.raft;
        let long = 2 * raft.election_timeout();
        let silent = !raft.promotable() && raft.election_elapsed >= long;
        let doubts = self.may_not_campaign_in_doubt() && raft.leader_id == raft::INVALID_ID;
        !self.leads() && (silent || doubts)
    }

    /// A replica that was removed, or hears of no leader, asks the members that it knows.
    pub(super) fn ask_whether_it_belongs(&self, effects: &mut Effects) {
        let known = self.leaving.own.as_ref().map(|own| &own.membership);
        for (id, member) in &known.unwrap_or(&self.membership).members {
            if *id != self.replica && member.node != self.config.node {
                let message = self.own_message(MessageKind::Wake, id.get());
                effects.messages.push(Outgoing { to: member.node, lane: Lane::Urgent, message });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(nodes: std::ops::RangeInclusive<u64>) -> Membership {
        Membership::initial(nodes.map(NodeId::must))
    }

    #[test]
    fn a_majority_of_those_that_remain_lets_a_replica_go() {
        let mut leaving = Leaving::default();
        leaving.begin(&members(1..=3));
        assert!(!leaving.is_over());
        for (from, let_go) in [(1, false), (1, false), (7, false), (3, true)] {
            leaving.confirm(ReplicaId::must(from), members(1..=3));
            assert_eq!(leaving.let_go, let_go, "{from}");
        }
    }

    #[test]
    fn the_newest_configuration_that_is_known_counts() {
        let mut leaving = Leaving::default();
        leaving.confirm(ReplicaId::must(1), members(1..=1));
        assert!(leaving.let_go);
        let newer =
            Membership { config_index: shardhost_storage::LogIndex::new(9), ..members(1..=3) };
        leaving.confirm(ReplicaId::must(1), newer);
        assert!(!leaving.let_go);
    }

    #[test]
    fn one_that_was_removed_campaigns_now_and_then() {
        let mut leaving = Leaving::default();
        assert!((0..20).all(|n| !leaving.skips_campaign(n)));
        leaving.begin(&members(1..=3));
        let campaigns = (0..24).filter(|n| !leaving.skips_campaign(*n));
        assert_eq!(campaigns.collect::<Vec<_>>(), [0, 8, 16]);
    }

    #[test]
    fn those_that_are_gone_are_dismissed() {
        let mut leaving = Leaving::default();
        leaving.dismiss(&members(1..=3), &members(1..=2));
        let gone = Dismissed { replica: 3, node: NodeId::must(3), left: NOTICES };
        assert_eq!(leaving.dismissed, [gone]);
        leaving.forget_dismissed();
        assert!(leaving.is_over());
    }
}

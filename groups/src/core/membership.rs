//! Changes of membership: proposing them one at a time, applying them in the order of the log, and
//! going on with what a former leader left unfinished (a joint configuration, a replacement).
//!
//! A change counts from the moment it is applied, on every replica. What the group knows of its
//! members is written before anything behind the change is applied, so that a restart never
//! forgets a change that the state machine has passed.
//!
//! `check` says what a change would lead to, [`Changes`] knows who waits for one, and
//! `crate::membership` plans them.

mod check;
mod pending;

pub(super) use pending::Changes;

use std::sync::Arc;

use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{Changer, ProgressState};
use shardhost_proto::log::config_change::Kind;
use shardhost_proto::peer::{CreateRequest, GroupMessage, MessageKind};
use shardhost_storage::convert::membership_to_message;
use shardhost_storage::{Incoming, LogIndex, Member, Membership, NodeId, ReplicaId, Requirement};

use super::GroupCore;
use crate::completion::Reply;
use crate::convert::is_requirement;
use crate::core::Effects;
use crate::core::lease::{PeerState, Presence, Round};
use crate::error::{GroupFault, UnknownCause};
use crate::known_bugs::KnownBug;
use crate::membership::{
    ConfigEntry, MembershipChange, MembershipError, Progress, Step, check_expected, plan,
    plan_addition,
};
use crate::nodes::LiveNodes;
use crate::transport::{Lane, Outgoing};
use check::{Consequences, Hindrance, may_lose_last_state};
use pending::{HeldChange, PendingChange};

/// How a change of membership ended.
pub type MembershipOutcome = Result<Arc<Membership>, MembershipError>;

/// Who waits for a change of membership.
pub type MembershipCompletion = Reply<MembershipOutcome>;

/// What is asked of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipOrder {
    Change(MembershipChange),
    /// Replace the member on one node by another.
    Replace {
        /// The node whose replica goes.
        old: NodeId,
        /// The node that gets one.
        new: NodeId,
        /// Only if the configuration is that of this index.
        expecting: Option<LogIndex>,
    },
    /// Ask this of the group's leaders.
    Require {
        requirement: Requirement,
        /// Only if the configuration is that of this index.
        expecting: Option<LogIndex>,
        /// Even if no voter is known to meet it.
        whoever_meets_it: bool,
    },
    /// Give up the addition or replacement that is under way.
    CancelAddition {
        /// Only if the configuration is that of this index.
        expecting: Option<LogIndex>,
    },
}

impl MembershipOrder {
    /// The node whose vote is waited for.
    fn awaits_vote(&self) -> Option<NodeId> {
        match self {
            Self::Change(change) => change.steps.iter().find_map(|step| match step {
                Step::AddVoter(node) => Some(*node),
                _ => None,
            }),
            // A replacement is watched through the membership, which records it.
            _ => None,
        }
    }
}

/// A change that is asked for, and who waits.
#[derive(Debug)]
pub struct MembershipRequest {
    pub order: MembershipOrder,
    pub completion: MembershipCompletion,
}

/// A learner that lacks at most so many entries gets the vote that it was added for.
const ADDITION_LAG: u64 = 1_024;
/// Ticks between two create requests of a member that does not exist yet.
pub(super) const CREATE_REQUEST_TICKS: u64 = 5;

impl GroupCore {
    /// Makes a change of membership, or refuses. One that depends on other members is held until they answered what
    /// they are asked now, or are known to be silent: which of them took part a moment ago does not matter.
    pub fn change_membership(&mut self, request: MembershipRequest, effects: &mut Effects) {
        match self.changes.has_held() {
            true => {
                let error = MembershipError::Busy { group: self.id };
                effects.membership_replies.push((request.completion, Err(error)));
            }
            false => {
                let round = self.begin_round(effects);
                self.decide_change(HeldChange { request, round }, effects);
                if self.changes.has_held() {
                    self.ask_peers();
                }
            }
        }
    }

    fn decide_change(&mut self, held: HeldChange, effects: &mut Effects) {
        let HeldChange { request, round } = held;
        match self.try_change(&request.order, round, effects) {
            Ok(index) => {
                let (since, awaits_vote) = (self.ticks, request.order.awaits_vote());
                let completion = request.completion;
                let pending = PendingChange { index, since, awaits_vote, completion };
                if let Some(earlier) = self.changes.wait(pending) {
                    self.answer_change(earlier, effects);
                }
            }
            Err(Hindrance::Unheard) => self.changes.hold(HeldChange { request, round }),
            Err(Hindrance::Refused(error)) => {
                effects.membership_replies.push((request.completion, Err(error)));
            }
        }
    }

    /// Members answered, or had the time to.
    pub(super) fn decide_held_change(&mut self, effects: &mut Effects) {
        if let Some(held) = self.changes.take_held() {
            self.decide_change(held, effects);
        }
    }

    fn try_change(
        &mut self,
        order: &MembershipOrder,
        round: Round,
        effects: &mut Effects,
    ) -> Result<u64, Hindrance> {
        self.check_changeable()?;
        if let MembershipOrder::Require { requirement, expecting, whoever_meets_it } = order {
            check_expected(self.id, &self.membership, *expecting)?;
            return Ok(self.propose_requirement(requirement, *whoever_meets_it, effects)?);
        }
        let presence = |id, node| self.presence_since(round, id, node, &effects.nodes);
        if self.promoted(order).any(|(id, node)| presence(id, node) == Presence::Unknown) {
            return Err(Hindrance::Unheard);
        }
        let entry = self.plan_order(order, &presence)?;
        self.check_consequences(&entry, &presence)?;
        // What was queued in this step goes into the log first.
        self.propose_queued(effects);
        Ok(self.propose_config(&entry)?)
    }

    /// The learners that an order gives a vote: for what they hold, or merely because they are there.
    fn promoted(&self, order: &MembershipOrder) -> impl Iterator<Item = (ReplicaId, NodeId)> {
        let steps = match order {
            MembershipOrder::Change(change) => change.steps.as_slice(),
            _ => &[],
        };
        let promoted = |node: NodeId| {
            let promotes = |step: &Step| matches!(step, Step::Promote(one, _) if *one == node);
            steps.iter().any(promotes)
        };
        let members = self.membership.members.iter().map(|(id, member)| (*id, member.node));
        members.filter(move |(_, node)| promoted(*node))
    }

    fn check_changeable(&self) -> Result<(), MembershipError> {
        let group = self.id;
        if !self.leads() {
            return Err(MembershipError::NotLeader { group, hint: self.leader_hint() });
        }
        if let Some(to) = self.transferring_to() {
            return Err(MembershipError::TransferInProgress { group, to });
        }
        if !self.is_ready() {
            return Err(MembershipError::NotServing { group });
        }
        match self.pending_change() {
            Some(index) => Err(MembershipError::ConfigChangePending { group, index }),
            None => Ok(()),
        }
    }

    /// Where a change stands that is not applied yet, or a joint one that is not finished.
    pub(super) fn pending_change(&self) -> Option<LogIndex> {
        let pending = self.raw.raft.pending_conf_index;
        if self.leads() && pending > self.passed() {
            return Some(LogIndex::new(pending));
        }
        if let Some(index) = self.pending_requirement() {
            return Some(index);
        }
        self.joint.then_some(self.membership.config_index)
    }

    fn plan_order(
        &self,
        order: &MembershipOrder,
        presence: &impl Fn(ReplicaId, NodeId) -> Presence,
    ) -> Result<ConfigEntry, MembershipError> {
        let (group, membership) = (self.id, &*self.membership);
        match order {
            MembershipOrder::CancelAddition { expecting } => {
                let new = self.incoming_node().ok_or(MembershipError::NothingToCancel { group })?;
                let mut change = MembershipChange::new().remove(new);
                change.expecting = *expecting;
                self.plan_change(&change, presence)
            }
            MembershipOrder::Change(change) => {
                self.check_no_addition()?;
                self.plan_change(change, presence)
            }
            MembershipOrder::Replace { old, new, expecting } => {
                self.check_no_addition()?;
                plan_addition(group, membership, Some(*old), *new, *expecting)
            }
            MembershipOrder::Require { .. } => {
                let reason = "a requirement is no change of members".to_owned();
                Err(MembershipError::Impossible { group, reason })
            }
        }
    }

    fn check_no_addition(&self) -> Result<(), MembershipError> {
        let group = self.id;
        let node = self.incoming_node();
        node.map_or(Ok(()), |node| Err(MembershipError::AdditionInProgress { group, node }))
    }

    fn incoming_node(&self) -> Option<NodeId> {
        self.membership.node_of(self.membership.incoming?.replica)
    }

    fn plan_change(
        &self,
        change: &MembershipChange,
        presence: &impl Fn(ReplicaId, NodeId) -> Presence,
    ) -> Result<ConfigEntry, MembershipError> {
        let matched = |id: ReplicaId| LogIndex::new(self.matched_if_present(id, presence));
        let lacks_state = |id: ReplicaId| self.state_of_peer(id.get()) == PeerState::Lost;
        let last = LogIndex::new(self.raw.raft.raft_log.last_index());
        let progress = Progress { last, matched: &matched, lacks_state: &lacks_state };
        plan(self.id, &self.membership, change, &progress)
    }

    /// What the log of a replica is known to hold; nothing when it does not answer: it may come back without its
    /// disk, or not at all.
    fn matched_if_present(
        &self,
        id: ReplicaId,
        presence: &impl Fn(ReplicaId, NodeId) -> Presence,
    ) -> u64 {
        let node = self.membership.node_of(id);
        let counts = node.is_some_and(|node| presence(id, node) == Presence::Answers)
            || self.config.bugs.has(KnownBug::CountLostLearner);
        let progress = self.raw.raft.prs().get(id.get()).filter(|_| counts);
        progress.map_or(0, |progress| progress.matched)
    }

    /// Whether a node answers, this one included.
    pub(super) fn answers(&self, node: NodeId, live: &LiveNodes) -> bool {
        node == self.config.node || live.contains(node)
    }

    /// Whether the group is able to make the change, and to live with it.
    fn check_consequences(
        &self,
        entry: &ConfigEntry,
        presence: &impl Fn(ReplicaId, NodeId) -> Presence,
    ) -> Result<(), Hindrance> {
        let bugs = self.config.bugs;
        let consequences = Consequences {
            group: self.id,
            membership: &self.membership,
            entry,
            presence,
            has_state: |id: ReplicaId| self.state_of_peer(id.get()) == PeerState::There,
        };
        consequences.check_quorum()?;
        if !bugs.has(KnownBug::ChangeIntoStandstill) {
            consequences.check_quorum_after()?;
        }
        if !bugs.has(KnownBug::ForgetLostStates) {
            consequences.check_state_after(self.replica)?;
        }
        Ok(())
    }

    /// Puts a change into the log; returns where it stands.
    fn propose_config(&mut self, entry: &ConfigEntry) -> Result<u64, MembershipError> {
        let group = self.id;
        self.rehearse(entry)?;
        self.wake();
        let (data, context) = entry.encode();
        let entry_type = EntryType::EntryConfChangeV2;
        let entry = Entry { entry_type, data, context, ..Entry::default() };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.replica.get();
        message.entries = vec![entry].into();
        if let Err(error) = self.raw.raft.step(message) {
            tracing::debug!(%group, %error, "raft dropped a membership change");
            return Err(MembershipError::Busy { group });
        }
        let raft = &self.raw.raft;
        let index = raft.raft_log.last_index();
        // Raft reports success when it puts an empty entry in the place of a change.
        if raft.pending_conf_index == index {
            Ok(index)
        } else {
            Err(MembershipError::Replaced { group })
        }
    }

    /// Tries the change on a copy, so that an impossible one never enters the log.
    fn rehearse(&self, entry: &ConfigEntry) -> Result<(), MembershipError> {
        let change = entry.to_raft();
        let mut changer = Changer::new(self.raw.raft.prs());
        let outcome = if entry.changes.is_empty() {
            changer.leave_joint()
        } else if entry.is_joint() {
            changer.enter_joint(false, &change.changes)
        } else {
            changer.simple(&change.changes)
        };
        let impossible = |error: raft::Error| MembershipError::Impossible {
            group: self.id,
            reason: error.to_string(),
        };
        outcome.map(|_| ()).map_err(impossible)
    }

    /// Whether an entry that was committed holds back what stands behind it: its change is not
    /// applied, or what it changed is not durable.
    pub(super) fn holds_back(&mut self, entry: &Entry, effects: &mut Effects) -> bool {
        let requires = is_requirement(entry);
        if entry.entry_type == EntryType::EntryNormal && !requires {
            return false;
        }
        if entry.index > self.membership.config_index.get() {
            let applied = match requires {
                true => self.apply_requirement(entry, effects),
                false => self.apply_config(entry, effects),
            };
            match applied {
                Ok(()) => {}
                Err(fault) => effects.fault(self.id, fault),
            }
            return true;
        }
        // A change from before the one that counts is part of what is known for long: a replica
        // that replays its log passes it by.
        entry.index == self.membership.config_index.get() && !self.durable.is_meta_durable()
    }

    fn apply_config(&mut self, entry: &Entry, effects: &mut Effects) -> Result<(), GroupFault> {
        let id = self.id;
        let broken = |what: &str| {
            let text = format!("{id:?} cannot apply its entry {}: {what}", entry.index);
            GroupFault::Invariant(text.into())
        };
        let config = ConfigEntry::decode(&entry.data, &entry.context)
            .ok_or_else(|| broken("it is no membership change"))?;
        self.count_new_voters_anew(&config);
        let leaves_nothing = config.changes.is_empty() && !self.joint;
        let state = if leaves_nothing {
            // No leader of this program writes one, and it is no reason to stop: it changes
            // nothing, here as on every other replica.
            tracing::warn!(group = %self.id, index = entry.index, "an entry leaves no joint configuration");
            self.raw.raft.prs().conf().to_conf_state()
        } else {
            let applied = self.raw.apply_conf_change(&config.to_raft());
            applied.map_err(|error| broken(&error.to_string()))?
        };
        let after = config.apply(&self.membership, &state, LogIndex::new(entry.index));
        let after = after.ok_or_else(|| broken("the node of a member is unknown"))?;
        tracing::info!(group = %self.id, index = entry.index, members = %after,
            "the membership changed");
        let before = self.install_membership(Arc::new(after));
        self.meta.membership = (*self.membership).clone();
        self.durable.change_meta();
        self.contacts.retain(|(id, _)| self.membership.is_yet_to_come(*id));
        self.lease_after_change(&before);
        self.dismiss(&before);
        self.resolve_change(entry, effects);
        self.consider_leaving();
        self.renew_peers();
        Ok(())
    }

    /// What a learner acknowledged does not count for the quorums in which it gets a vote: it may
    /// have lost its disk since. It reports again what it holds.
    fn count_new_voters_anew(&mut self, config: &ConfigEntry) {
        if self.config.bugs.has(KnownBug::CountLostLearner) {
            return;
        }
        for (kind, id) in &config.changes {
            let member = self.membership.members.get(id);
            let votes = member.is_some_and(|member| member.voter || member.outgoing_voter);
            if *kind == Kind::AddVoter && !votes {
                self.count_replica_anew(id.get());
            }
        }
    }

    /// This is the membership from here on; gives the one before.
    pub(super) fn install_membership(&mut self, membership: Arc<Membership>) -> Arc<Membership> {
        self.joint = membership.is_joint();
        std::mem::replace(&mut self.membership, membership)
    }

    /// Answers who waits for a change, when it is over: a joint one when the joint configuration
    /// is left, the addition of a voter when that has its vote.
    pub(super) fn resolve_change(&mut self, entry: &Entry, effects: &mut Effects) {
        let (joint, incoming) = (self.joint, self.membership.incoming.is_some());
        for pending in self.changes.take_over(entry.index, joint, incoming) {
            self.answer_change(pending, effects);
        }
    }

    fn answer_change(&self, pending: PendingChange, effects: &mut Effects) {
        let group = self.id;
        let votes = |node| self.membership.voters().any(|(_, voter)| voter == node);
        let outcome = match pending.awaits_vote {
            Some(node) if !votes(node) => Err(MembershipError::Cancelled { group, node }),
            _ => Ok(Arc::clone(&self.membership)),
        };
        effects.membership_replies.push((pending.completion, outcome));
    }

    /// An entry that is no change was committed: the change that was proposed there is gone.
    pub(super) fn supersede_change(&mut self, entry: &Entry, effects: &mut Effects) {
        let group = self.id;
        for pending in self.changes.take_at(entry.index) {
            let error = MembershipError::Superseded { group };
            effects.membership_replies.push((pending.completion, Err(error)));
        }
    }

    fn refuse_held_change(&mut self, error: &MembershipError, effects: &mut Effects) {
        if let Some(held) = self.changes.take_held() {
            effects.membership_replies.push((held.request.completion, Err(error.clone())));
        }
    }

    pub(super) fn fail_change(&mut self, error: &MembershipError, effects: &mut Effects) {
        self.refuse_held_change(error, effects);
        for pending in self.changes.take_all() {
            effects.membership_replies.push((pending.completion, Err(error.clone())));
        }
    }

    pub(super) fn fail_change_on_loss(&mut self, effects: &mut Effects) {
        let (group, cause) = (self.id, UnknownCause::LeadershipLost);
        let hint = self.leader_hint();
        self.refuse_held_change(&MembershipError::NotLeader { group, hint }, effects);
        self.fail_change(&MembershipError::Unknown { group, cause }, effects);
    }

    /// Callers that waited too long get an unknown outcome.
    pub(super) fn expire_change(&mut self, effects: &mut Effects) {
        let limit = u64::from(self.config.propose_give_up_ticks);
        let group = self.id;
        for pending in self.changes.take_expired(self.ticks, limit) {
            let error = MembershipError::Unknown { group, cause: UnknownCause::Timeout };
            effects.membership_replies.push((pending.completion, Err(error)));
        }
    }

    /// Whether a change is in progress that a leader has to finish.
    pub(super) fn has_unfinished_change(&self) -> bool {
        self.joint || self.membership.incoming.is_some()
    }

    /// Continues a joint change or an addition, whichever leader began it.
    pub(super) fn finish_changes(&mut self, live: &LiveNodes) {
        let pending = self.raw.raft.pending_conf_index.max(self.changes.requirement());
        if !self.may_finish_changes() || pending > self.passed() {
            return;
        }
        let next = match self.membership.incoming {
            _ if self.joint && self.awaits_state_of_leavers(live) => None,
            _ if self.joint => Some(ConfigEntry::leave_joint()),
            Some(incoming) => self.give_vote(incoming, live),
            None => None,
        };
        if let Some(entry) = next
            && let Err(error) = self.propose_config(&entry)
        {
            tracing::warn!(group = %self.id, %error, "a membership change cannot continue");
        }
    }

    /// Whether this leader knows all changes before its term. To leave a joint configuration takes
    /// nothing of a state machine: one that stands still would keep the leadership here, too, for
    /// none is transferred meanwhile.
    fn may_finish_changes(&self) -> bool {
        let stands_still = self.joint
            && self.stands_still()
            && !self.config.bugs.has(KnownBug::JointWaitsForMachine);
        let known = |first| stands_still && self.passed() >= first;
        self.led.as_ref().is_some_and(|led| led.ready || known(led.first_index))
    }

    /// Whether a leader without a state stays in a joint configuration, because one that goes with it may
    /// be the last that has the state. It is given that state meanwhile,
    /// and then continues.
    fn awaits_state_of_leavers(&self, live: &LiveNodes) -> bool {
        let (own, bugs) = (self.replica, self.config.bugs);
        let state_of = |id: ReplicaId| match id == own {
            true => PeerState::Lost,
            false => self.state_of_peer(id.get()),
        };
        let answers = |id, node| self.presence(id, node, live) == Presence::Answers;
        self.lacks_state()
            && !bugs.has(KnownBug::ForgetLostStates)
            && may_lose_last_state(&self.membership, state_of, answers)
    }

    /// The change that makes a voter of the learner, and removes the member that it replaces in
    /// the same step, when it has caught up.
    fn give_vote(&self, incoming: Incoming, live: &LiveNodes) -> Option<ConfigEntry> {
        let Incoming { replica, replaces } = incoming;
        let raft = &self.raw.raft;
        let progress = raft.prs().get(replica.get())?;
        let presence = |id, node| self.presence(id, node, live);
        let matched = self.matched_if_present(replica, &presence);
        let level = matched + ADDITION_LAG >= raft.raft_log.last_index();
        let has_state = self.state_of_peer(replica.get()) != PeerState::Lost;
        let follows = progress.state == ProgressState::Replicate && matched > 0 && has_state;
        let node = self.membership.node_of(replica)?;
        let mut entry = ConfigEntry::default();
        entry.changes.push((Kind::AddVoter, replica));
        let replaced = replaces.filter(|old| self.membership.members.contains_key(old));
        entry.changes.extend(replaced.map(|old| (Kind::Remove, old)));
        entry.placements.insert(replica, node);
        (level && follows).then_some(entry)
    }

    /// Asks nodes that should hold a replica and do not to create it.
    pub(super) fn invite_joining(&self, live: &LiveNodes, effects: &mut Effects) {
        let prs = self.raw.raft.prs();
        for (id, member) in &self.membership.members {
            let unseen = prs.get(id.get()).is_some_and(|progress| progress.matched == 0);
            if unseen && self.may_be_created(*member) && live.contains(member.node) {
                effects.messages.push(self.create_request(*id, member.node));
            }
        }
    }

    /// Whether the replica may be created on an empty disk. One that ever had a vote may not: its
    /// acknowledgements and votes were counted, and an empty log would take them back.
    fn may_be_created(&self, member: Member) -> bool {
        let votes = member.voter || member.outgoing_voter;
        !votes && (member.never_voted || self.config.bugs.has(KnownBug::RecreateVoter))
    }

    fn create_request(&self, to: ReplicaId, node: NodeId) -> Outgoing {
        let create_request = CreateRequest {
            membership: Some(membership_to_message(&self.membership)),
            kind: self.meta.kind.clone(),
            labels: self.meta.labels.clone().into_iter().collect(),
        };
        let message = GroupMessage {
            create_request: Some(create_request),
            commit: self.known_committed(),
            ..self.own_message(MessageKind::CreateReplica, to.get())
        };
        Outgoing { to: node, lane: Lane::Urgent, message }
    }
}

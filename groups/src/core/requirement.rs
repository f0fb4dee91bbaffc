//! What the group asks of its leader: changed through its log, in the order of its other changes
//! of configuration, and remembered with its membership.

use std::sync::Arc;

use raft::eraftpb::{Entry, Message, MessageType};
use shardhost_storage::{LogIndex, Membership, Requirement, RequirementMode};

use super::GroupCore;
use crate::convert::REQUIREMENT_MARK;
use crate::core::Effects;
use crate::error::GroupFault;
use crate::membership::{MembershipError, decode_requirement, encode_requirement};
use crate::policy::{CapabilityPolicy, LeadershipPolicy, Opinion};

impl GroupCore {
    /// Puts a change of the requirement into the log; returns where it stands.
    ///
    /// # Errors
    /// [`MembershipError::NobodyFit`] when it is a strict one that no voter is known to meet,
    /// unless that is meant.
    pub(super) fn propose_requirement(
        &mut self,
        requirement: &Requirement,
        whoever_meets_it: bool,
        effects: &mut Effects,
    ) -> Result<u64, MembershipError> {
        let group = self.id;
        let strict = requirement.mode == RequirementMode::Hard && !requirement.is_empty();
        if strict && !whoever_meets_it {
            self.check_somebody_fit(requirement, effects)?;
        }
        self.propose_queued(effects);
        self.wake();
        let entry = Entry {
            data: encode_requirement(requirement),
            context: REQUIREMENT_MARK,
            ..Entry::default()
        };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.replica.get();
        message.entries = vec![entry].into();
        if let Err(error) = self.raw.raft.step(message) {
            tracing::debug!(%group, %error, "raft dropped a change of the requirement");
            return Err(MembershipError::Busy { group });
        }
        let index = self.raw.raft.raft_log.last_index();
        self.changes.require_at(index);
        Ok(index)
    }

    /// A requirement that no voter is known to meet would stop the group the moment it is applied.
    fn check_somebody_fit(
        &self,
        requirement: &Requirement,
        effects: &Effects,
    ) -> Result<(), MembershipError> {
        let mut lacking = Vec::new();
        for (_, node) in self.membership.voters() {
            let opinion = CapabilityPolicy.may_lead(&self.candidate(node, requirement, effects));
            match opinion {
                Opinion::Fit => return Ok(()),
                Opinion::Unknown => lacking.push(format!("node {node} does not say what it has")),
                Opinion::Unfit(unfit) => lacking.push(unfit.reason.to_string()),
            }
        }
        let reason = lacking.join("; ");
        Err(MembershipError::NobodyFit { group: self.id, reason })
    }

    /// Where a change of the requirement stands that is not applied yet.
    pub(super) fn pending_requirement(&self) -> Option<LogIndex> {
        let index = self.changes.requirement();
        let pending = self.leads() && index > self.passed();
        pending.then(|| LogIndex::new(index))
    }

    pub(super) fn apply_requirement(
        &mut self,
        entry: &Entry,
        effects: &mut Effects,
    ) -> Result<(), GroupFault> {
        let requirement = decode_requirement(&entry.data).ok_or_else(|| {
            let text = format!("{:?} cannot read the requirement at {}", self.id, entry.index);
            GroupFault::Invariant(text.into())
        })?;
        tracing::info!(group = %self.id, index = entry.index, %requirement,
            "what the group asks of its leader changed");
        let config_index = LogIndex::new(entry.index);
        let before = Membership::clone(&self.membership);
        self.install_membership(Arc::new(Membership { config_index, requirement, ..before }));
        self.changes.forget_requirement();
        self.meta.membership = (*self.membership).clone();
        self.durable.change_meta();
        // Before any caller gets an answer: a node that lacks it must not be seen to serve.
        self.look_anew();
        self.notice_facts(effects);
        self.resolve_change(entry, effects);
        Ok(())
    }

    /// What was concluded about who may lead is concluded again.
    pub(super) const fn look_anew(&mut self) {
        self.seen_facts = u64::MAX;
    }

    /// Another look at who may lead is requested: policies that decided about a leadership are
    /// asked again.
    pub fn reevaluate(&mut self) {
        if self.leads() {
            self.wake();
        }
        self.ask_policies_again();
        self.look_anew();
    }
}

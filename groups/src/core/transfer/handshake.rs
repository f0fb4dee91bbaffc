//! The question whether a replica accepts a leadership, and its answer. Asked while users are
//! served, so that no user waits for a target that declines.

use shardhost_proto::peer::{GroupMessage, MessageKind, TransferRefusal, transfer_refusal};
use shardhost_storage::ReplicaId;

use super::super::GroupCore;
use crate::core::Effects;
use crate::known_bugs::KnownBug;
use crate::policy::{PolicyEvent, RejectReason, Unfit};
use crate::transport::{Lane, Outgoing};

/// Committed entries that a replica may have to apply before it accepts a leadership: until then no
/// user is served.
const MAX_BACKLOG: u64 = 16_384;
/// Replicas that declined, in a question, at most.
const MAX_DECLINED: usize = 64;

impl GroupCore {
    /// The leader asks whether this replica would take over.
    pub(in crate::core) fn answer_transfer(
        &mut self,
        message: &GroupMessage,
        effects: &mut Effects,
    ) {
        let refusal = self.refuses_leadership(message.escape, effects);
        let refusal = refusal.or_else(|| self.is_no_better(message, effects));
        if refusal.is_none() {
            self.remember_declined(message);
            if message.term == self.raw.raft.term {
                self.prepare_vote(self.replica, effects);
            }
        }
        self.send_answer(message, refusal, effects);
    }

    /// A leader that should not lead, which counts itself among those that decline, may be slow, and this
    /// replica is about to be found as slow: the leadership would be no better off.
    fn is_no_better(&self, message: &GroupMessage, effects: &Effects) -> Option<TransferRefusal> {
        let unfit = message.declined.contains(&message.from_replica);
        let text = "a call into its state machine takes long".to_owned();
        let kind = transfer_refusal::Kind::Behind.into();
        (unfit && self.is_busy(effects)).then_some(TransferRefusal { kind, text })
    }

    /// This replica's answer to a leader that asks it, or sends it TimeoutNow. If it declines, the
    /// leader continues at once; if it accepts, it is prepared first.
    pub(in crate::core) fn send_answer(
        &self,
        question: &GroupMessage,
        refusal: Option<TransferRefusal>,
        effects: &mut Effects,
    ) {
        let Some(leader) = ReplicaId::new(question.from_replica) else { return };
        let Some(to) = self.node_of(leader.get()) else { return };
        if refusal.is_some() {
            effects.count(PolicyEvent::LeadershipRefused(refusal_reason(refusal.as_ref())));
        }
        let message = GroupMessage {
            stamp: question.stamp,
            life: self.life(),
            reject: refusal.is_some(),
            refusal,
            ..self.own_message(MessageKind::TransferAnswer, leader.get())
        };
        if message.reject {
            effects.messages.push(Outgoing { to, lane: Lane::Urgent, message });
        } else {
            self.send_when_prepared(to, message, effects);
        }
    }

    /// Why this replica does not take the leadership over, if it does not; as the last resort it
    /// does although its node is draining.
    pub(in crate::core) fn refuses_leadership(
        &self,
        last_resort: bool,
        effects: &Effects,
    ) -> Option<TransferRefusal> {
        use transfer_refusal::Kind;
        let refusal = |kind: Kind, text: String| Some(TransferRefusal { kind: kind.into(), text });
        if self.snapshots.is_installing() {
            return refusal(Kind::Installing, "a snapshot is being installed".to_owned());
        }
        if let Some(unfit) = self.own_unfitness(effects) {
            return refusal(self.kind_of(&unfit), unfit.to_string());
        }
        if effects.nodes.own().draining && !last_resort {
            return refusal(Kind::Draining, format!("node {} is draining", self.config.node));
        }
        let backlog = self.raw.raft.raft_log.committed.saturating_sub(self.apply.applied());
        if backlog > MAX_BACKLOG {
            let text = format!("{backlog} entries are to be applied, {MAX_BACKLOG} may be");
            return refusal(Kind::Behind, text);
        }
        if self.lags_too_far() {
            let text = format!("{backlog} entries are to be applied, which are too large");
            return refusal(Kind::Behind, text);
        }
        None
    }

    /// How this replica names the reason why it should not lead, by whether others hear when that is over.
    ///
    /// Of what its node lacks they do, but for what the group requires: a change of that may stand in the log
    /// and not be applied here. Of an impairment they do not: that of a replica is in no advertisement, and
    /// that of a node may end before one leaves.
    fn kind_of(&self, unfit: &Unfit) -> transfer_refusal::Kind {
        use transfer_refusal::Kind;
        let bugs = self.config.bugs;
        let behind = self.passed() < self.raw.raft.raft_log.last_index();
        match unfit.reject_reason() {
            RejectReason::Incapable if behind && !bugs.has(KnownBug::ImpairedForGood) => {
                Kind::Behind
            }
            RejectReason::Incapable => Kind::Unfit,
            RejectReason::Unfit => Kind::Impaired,
            _ => Kind::Policy,
        }
    }

    /// The replicas that should not be asked again, this one among them if it is not fit.
    pub(super) fn declined_so_far(&self, effects: &Effects) -> Vec<u64> {
        let bugs = self.config.bugs;
        let mut declined: Vec<u64> = self.succession.declined_for_good(bugs).collect();
        if self.own_unfitness(effects).is_some() {
            declined.push(self.replica.get());
        }
        declined.truncate(MAX_DECLINED);
        declined
    }
}

/// Why a target declines, by name and in words.
pub(super) fn what_it_said(answer: &GroupMessage) -> (RejectReason, String) {
    let refusal = answer.refusal.as_ref();
    (refusal_reason(refusal), refusal_words(refusal))
}

/// The answer of a target, by name.
fn refusal_reason(refusal: Option<&TransferRefusal>) -> RejectReason {
    use transfer_refusal::Kind;
    match refusal.map_or(Kind::Unspecified, TransferRefusal::kind) {
        Kind::Unfit => RejectReason::Incapable,
        Kind::Policy => RejectReason::PolicyDeclined,
        Kind::Impaired => RejectReason::Unfit,
        Kind::Draining => RejectReason::Draining,
        Kind::Behind => RejectReason::ApplyBacklog,
        Kind::Installing => RejectReason::Snapshotting,
        Kind::Stale => RejectReason::StaleTerm,
        Kind::Unspecified => RejectReason::Refused,
    }
}

fn refusal_words(refusal: Option<&TransferRefusal>) -> String {
    match refusal {
        Some(refusal) if !refusal.text.is_empty() => refusal.text.chars().take(256).collect(),
        _ => "it does not say why".to_owned(),
    }
}

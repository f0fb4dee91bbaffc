//! The serve gate: whether a replica that leads serves its users.
//!
//! | the gate | proposals | reads | when |
//! |---|---|---|---|
//! | open | accepted | answered | the node is fit to lead the group, or unfit softly |
//! | asked | refused | wait | policies are asked about the leadership |
//! | closed | refused | refused | the node is ineligible, or a policy refused, or gave no answer in time |
//!
//! Reads are those of every consistency mode that involves the leader, at whichever replica they
//! were asked. A proof of leadership shows nothing of the state and is given all the same; a stale
//! read involves no leader.
//!
//! A leader whose gate is closed is a *caretaker*: it keeps the group together, and lets it be
//! repaired. It is decided when a leadership begins, and again when what is known changes.

use std::sync::{Arc, LazyLock};

use shardhost_storage::{NodeId, Requirement, RequirementMode, Term};

use super::GroupCore;
use crate::core::Effects;
use crate::error::{ProposalRejection, ProposeError, ReadError};
use crate::known_bugs::KnownBug;
use crate::leadership::EdgeKind;
use crate::nodes::{Advert, Impairment};
use crate::policy::{
    Acquisition, AdmissionFault, AdmissionRequest, Candidate, Caretaker, Decision, Opinion,
    PolicyEvent, Unfit,
};

/// Ticks before policies of which one panicked are asked again; twice as many each time.
const PANIC_RETRY_TICKS: u64 = 50;
/// Panics in one leadership after which only news make a leader ask again.
const MAX_PANICS: u32 = 6;

/// The impairment of a replica whose snapshot is not restored yet. It may lead, if no other can.
static INSTALLS: LazyLock<Impairment> = LazyLock::new(|| {
    let reason = "a snapshot is being restored".into();
    Impairment { reason, mode: RequirementMode::Hard }
});

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// They are, once the first entry of the term is applied.
    Open,
    /// Policies are to be asked.
    ToAsk,
    /// They were asked at this tick.
    Asked(u64),
    Closed(Arc<Caretaker>),
}

impl GroupCore {
    /// What the policies say of a node, as far as is known of it here.
    pub(super) fn opinion(&self, node: NodeId, effects: &Effects) -> Opinion {
        self.policies.opinion(&self.candidate(node, &self.membership.requirement, effects))
    }

    /// A node as policies are asked about it, if the group required this.
    pub(super) fn candidate<'a>(
        &'a self,
        node: NodeId,
        requirement: &'a Requirement,
        effects: &'a Effects,
    ) -> Candidate<'a> {
        let is_here = node == self.config.node;
        let advert = if is_here { Some(effects.nodes.own()) } else { effects.nodes.advert(node) };
        Candidate {
            group: self.id,
            node,
            is_here,
            requirement,
            labels: &self.meta.labels,
            kind: &self.meta.kind,
            capabilities: advert.map(|advert| &advert.capabilities),
            impaired: self.impairment(is_here, advert),
        }
    }

    /// Why the node should lead nothing for now, or the replica here should not lead.
    fn impairment<'a>(
        &'a self,
        is_here: bool,
        advert: Option<&'a Advert>,
    ) -> Option<&'a Impairment> {
        let said = advert.and_then(|advert| advert.impaired.as_ref());
        if self.config.bugs.has(KnownBug::LeadImpaired) {
            return None;
        }
        let installs = || self.snapshots.is_installing().then(|| &*INSTALLS);
        let own = self.stalled.why().or_else(installs).filter(|_| is_here);
        // The harder of the two.
        let hard = |why: &&Impairment| why.mode == RequirementMode::Hard;
        own.filter(hard).or(said.filter(hard)).or(own).or(said)
    }

    /// The state machine stalls, or works again. Callers get an error when they have waited too
    /// long; another leader is looked for.
    pub fn on_stalled(&mut self, why: Option<Arc<str>>, effects: &mut Effects) {
        let mode = RequirementMode::Hard;
        let stalled = why.map(|reason| Box::new(Impairment { reason, mode }));
        if self.stalled.refuses == stalled {
            return;
        }
        if let Some(why) = &stalled {
            tracing::error!(group = %self.id, reason = %why.reason,
                "the state machine stalls; the same call is repeated");
        }
        self.stalled.refuses = stalled;
        self.stall_changed(effects);
    }

    /// A call into the state machine takes longer than it may, or calls have ended in time for a while.
    pub fn on_hung(&mut self, why: Option<Impairment>, effects: &mut Effects) {
        let hangs = why.map(Box::new);
        if self.stalled.hangs == hangs {
            return;
        }
        if let Some(why) = &hangs {
            tracing::error!(group = %self.id, reason = %why.reason,
                "the state machine hangs; another replica should lead");
        }
        self.stalled.hangs = hangs;
        self.stall_changed(effects);
    }

    fn stall_changed(&mut self, effects: &mut Effects) {
        if !self.stalled.is_some() {
            tracing::info!(group = %self.id, "the state machine works again");
        }
        self.wake();
        self.look_anew();
        self.notice_facts(effects);
    }

    /// Whether the state machine here may be far behind the log for as long as it takes, or for ever.
    pub(super) fn stands_still(&self) -> bool {
        self.stalled.is_some() || self.snapshots.is_installing()
    }

    /// Why the state machine stalls, if it does.
    pub(super) fn stalled(&self) -> Option<Arc<str>> {
        self.stalled.why().map(|impairment| Arc::clone(&impairment.reason))
    }

    /// Why this node should not lead, if it should not.
    pub(super) fn own_unfitness(&self, effects: &Effects) -> Option<Unfit> {
        match self.opinion(self.config.node, effects) {
            Opinion::Unfit(unfit) => Some(unfit),
            Opinion::Fit | Opinion::Unknown => None,
        }
    }

    /// How a leadership begins: decided before the first proposal of the step is taken.
    pub(super) fn first_gate(&self, effects: &Effects) -> Gate {
        match self.own_unfitness(effects) {
            Some(unfit) if unfit.mode == RequirementMode::Hard => {
                Gate::Closed(Arc::new(Caretaker::Unfit(unfit)))
            }
            _ if self.policies.asks(self.id, &self.meta.labels) => Gate::ToAsk,
            _ => Gate::Open,
        }
    }

    pub(super) fn serves(&self) -> bool {
        self.led.as_ref().is_some_and(|led| led.ready && led.gate == Gate::Open)
    }

    /// Why a leader serves no users.
    pub(super) fn caretaker(&self) -> Option<&Arc<Caretaker>> {
        match &self.led.as_ref()?.gate {
            Gate::Closed(reason) => Some(reason),
            _ => None,
        }
    }

    /// Asks policies, and gives up waiting for them.
    pub(super) fn tend_gate(&mut self, effects: &mut Effects) {
        let (ticks, limit) = (self.ticks, u64::from(self.config.admission_ticks));
        let Some(led) = self.led.as_mut().filter(|led| led.ready) else { return };
        match led.gate {
            Gate::ToAsk => self.ask_policies(effects),
            Gate::Closed(_) if led.asks_again_at.is_some_and(|tick| ticks >= tick) => {
                self.ask_policies(effects);
            }
            Gate::Asked(since) if ticks - since >= limit => {
                let after = self.config.tick.saturating_mul(u32::from(self.config.admission_ticks));
                self.close_gate(Caretaker::NoAnswer { after }, effects);
            }
            _ => {}
        }
    }

    fn ask_policies(&mut self, effects: &mut Effects) {
        let (group, epoch, ticks) = (self.id, self.epoch, self.ticks);
        let Some(led) = self.led.as_mut() else { return };
        led.gate = Gate::Asked(ticks);
        led.asks_again_at = None;
        led.questions += 1;
        let (term, question) = (led.term, led.questions);
        let acquired = Acquisition {
            group,
            term: Term::new(term),
            requirement: self.membership.requirement.clone(),
            labels: self.meta.labels.clone(),
            kind: self.meta.kind.clone(),
            voters: self.membership.voters().map(|(_, node)| node).collect(),
        };
        let policies = self.policies.asked(group, &self.meta.labels);
        effects.admissions.push(AdmissionRequest { group, epoch, question, acquired, policies });
    }

    /// The policies answered, be it late. What they answered to an earlier question is dropped:
    /// they were asked again because it may not hold any more.
    pub fn on_admission(
        &mut self,
        term: Term,
        question: u64,
        answer: Result<Decision, AdmissionFault>,
        effects: &mut Effects,
    ) {
        if !self.awaits_answer(term, question) {
            return;
        }
        self.wake();
        match answer {
            Ok(Decision::Serve) => self.open_gate(effects),
            Ok(Decision::Caretaker(reason)) => {
                self.close_gate(Caretaker::Held { reason: reason.into() }, effects);
            }
            Ok(Decision::Decline { reason, targets }) => {
                self.succession.decline(targets);
                self.close_gate(Caretaker::Declined { reason: reason.into() }, effects);
            }
            Err(AdmissionFault { policy }) => {
                self.ask_after_panic();
                self.close_gate(Caretaker::Panicked { policy }, effects);
            }
        }
    }

    /// What made a policy panic may pass, so that it is asked again, ever more rarely. One that gives
    /// no answer is not: the question is out, and another one would wait behind it.
    fn ask_after_panic(&mut self) {
        let ticks = self.ticks;
        let Some(led) = self.led.as_mut() else { return };
        let pause = PANIC_RETRY_TICKS << led.panics.min(MAX_PANICS);
        led.panics += 1;
        let asks =
            led.panics < MAX_PANICS && !self.config.bugs.has(KnownBug::SilentPolicyKeepsLeadership);
        led.asks_again_at = asks.then_some(ticks + pause);
    }

    /// Whether it is decided whether users are served.
    pub(super) fn is_service_settled(&self) -> bool {
        self.led.as_ref().is_none_or(|led| {
            led.asks_again_at.is_none() && !matches!(led.gate, Gate::ToAsk | Gate::Asked(_))
        })
    }

    fn awaits_answer(&self, term: Term, question: u64) -> bool {
        let Some(led) = self.led.as_ref().filter(|led| led.term == term.get()) else {
            return false;
        };
        let waits = match &led.gate {
            Gate::Asked(_) => true,
            Gate::Closed(reason) => matches!(**reason, Caretaker::NoAnswer { .. }),
            Gate::Open | Gate::ToAsk => false,
        };
        let newest = question == led.questions || self.config.bugs.has(KnownBug::AnyAnswerCounts);
        waits && newest
    }

    /// What is known of nodes, policies or the requirement changed.
    pub(super) fn renew_gate(&mut self, effects: &mut Effects) {
        let Some(led) = &self.led else { return };
        let unfit = matches!(&led.gate, Gate::Closed(why) if matches!(**why, Caretaker::Unfit(_)));
        match self.first_gate(effects) {
            Gate::Closed(reason) => self.close_gate(Caretaker::clone(&reason), effects),
            // The decision of policies about this leadership is kept, until another look is
            // requested.
            Gate::ToAsk if unfit => self.set_gate(Gate::ToAsk),
            Gate::Open if led.gate != Gate::Open => self.open_gate(effects),
            _ => {}
        }
        self.tend_gate(effects);
    }

    /// Policies decide again about this leadership. A question without an answer is asked again:
    /// its answer may be older than the cause of the request.
    pub(super) fn ask_policies_again(&mut self) {
        let asks = self.policies.asks(self.id, &self.meta.labels);
        let asks_once = self.config.bugs.has(KnownBug::AnyAnswerCounts);
        let Some(led) = self.led.as_mut() else { return };
        let to_ask = match &led.gate {
            Gate::Open => asks,
            Gate::Closed(reason) => !matches!(**reason, Caretaker::Unfit(_)),
            Gate::Asked(_) => !asks_once,
            Gate::ToAsk => false,
        };
        if to_ask {
            led.panics = 0;
            led.gate = Gate::ToAsk;
        }
    }

    fn set_gate(&mut self, gate: Gate) {
        if let Some(led) = self.led.as_mut() {
            led.gate = gate;
        }
    }

    fn open_gate(&mut self, effects: &mut Effects) {
        self.set_gate(Gate::Open);
        self.tell_service(effects);
    }

    /// Users are refused from here on; those that wait get the reason.
    fn close_gate(&mut self, reason: Caretaker, effects: &mut Effects) {
        if self.caretaker().is_some_and(|known| **known == reason) {
            return;
        }
        tracing::warn!(group = %self.id, term = self.raw.raft.term, %reason,
            "leads, and serves no users");
        self.set_gate(Gate::Closed(Arc::new(reason)));
        self.refuse_queued(effects);
        self.refuse_readers(effects);
        self.tell_service(effects);
    }

    /// Publishes that a leadership began to serve its users, or ceased to.
    pub(super) fn tell_service(&mut self, effects: &mut Effects) {
        let serves = self.serves();
        let closed = self.caretaker().is_some();
        let Some(led) = self.led.as_mut() else { return };
        let kind = match led.told {
            Told::Caretaker | Told::Nothing if serves => EdgeKind::Ready,
            Told::Ready | Told::Nothing if closed => EdgeKind::Caretaker,
            _ => return,
        };
        led.told = if serves { Told::Ready } else { Told::Caretaker };
        if kind == EdgeKind::Caretaker {
            effects.count(PolicyEvent::CaretakerBegan);
        }
        let term = led.term;
        self.edge(term, kind, effects);
    }

    /// Why no proposal of users is taken from this leader, if none is.
    pub(super) fn refuses_service(&self) -> Option<ProposalRejection> {
        match &self.led.as_ref()?.gate {
            Gate::Open => None,
            Gate::ToAsk | Gate::Asked(_) => Some(ProposalRejection::NotServing(None)),
            Gate::Closed(reason) => Some(ProposalRejection::NotServing(Some(Arc::clone(reason)))),
        }
    }

    /// The same for reads; those that come before the policies have answered wait.
    pub(super) fn refuses_service_to_readers(&self) -> Option<ReadError> {
        let reason = Arc::clone(self.caretaker()?);
        Some(ReadError::NotServing { group: self.id, reason })
    }

    /// Reads that wait at a leader which serves no users: also those that it took as a follower.
    pub(super) fn refuse_readers(&mut self, effects: &mut Effects) {
        if let Some(error) = self.refuses_service_to_readers() {
            self.fail_reads(&error, effects);
        }
    }

    fn refuse_queued(&mut self, effects: &mut Effects) {
        let Some(reason) = self.refuses_service() else { return };
        self.fail_queued(&ProposeError::Rejected { group: self.id, reason }, effects);
    }
}

/// Why the state machine here stalls. Each cause is temporary.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// It refuses work for a reason that passes, or its state is lost.
    refuses: Option<Box<Impairment>>,
    /// A call does not return.
    hangs: Option<Box<Impairment>>,
}

impl Stall {
    pub(super) fn refusing(why: Option<Impairment>) -> Self {
        Self { refuses: why.map(Box::new), hangs: None }
    }

    pub(super) const fn is_some(&self) -> bool {
        self.refuses.is_some() || self.hangs.is_some()
    }

    /// The cause to name: one that refuses work is hard, and more specific.
    fn why(&self) -> Option<&Impairment> {
        self.refuses.as_deref().or(self.hangs.as_deref())
    }
}

/// What was published of a leadership after it was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    Ready,
    Caretaker,
}

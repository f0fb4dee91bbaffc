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
//!
//! [`Led`] decides what is asked, which answers count, and what is published.

use std::sync::{Arc, LazyLock};

use shardhost_storage::{NodeId, Requirement, RequirementMode, Term};

use super::GroupCore;
use crate::core::Effects;
use crate::error::{ProposalRejection, ProposeError, ReadError};
use crate::known_bugs::{KnownBug, KnownBugs};
use crate::leadership::EdgeKind;
use crate::nodes::{Advertisement, Impairment};
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

/// A leadership that was acquired and not lost.
#[derive(Debug)]
pub(super) struct Led {
    pub(super) term: u64,
    /// The first entry of the own term.
    pub(super) first_index: u64,
    pub(super) ready: bool,
    /// Whether users are served, once it is.
    gate: Gate,
    /// Questions to policies about it so far; the newest has this number.
    questions: u64,
    /// Policies that panicked when they were asked about it.
    panics: u32,
    /// They are asked once more at this tick.
    asks_again_at: Option<u64>,
    /// What was published of it.
    told: Told,
    /// A voter was asked to take it over.
    pub(super) offered: bool,
}

/// What is to be done about the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// Policies are asked.
    Ask,
    /// They have given no answer for so long that none is waited for.
    GiveUp,
}

impl Led {
    pub(super) const fn new(term: u64, first_index: u64, gate: Gate) -> Self {
        Self {
            term,
            first_index,
            ready: false,
            gate,
            questions: 0,
            panics: 0,
            asks_again_at: None,
            told: Told::Nothing,
            offered: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.gate == Gate::Open
    }

    /// Why it serves no users.
    const fn caretaker(&self) -> Option<&Arc<Caretaker>> {
        match &self.gate {
            Gate::Closed(reason) => Some(reason),
            _ => None,
        }
    }

    /// Why no proposal of users is taken, if none is.
    fn refuses(&self) -> Option<ProposalRejection> {
        match &self.gate {
            Gate::Open => None,
            Gate::ToAsk | Gate::Asked(_) => Some(ProposalRejection::NotServing(None)),
            Gate::Closed(reason) => Some(ProposalRejection::NotServing(Some(Arc::clone(reason)))),
        }
    }

    /// What is to be done in this tick. Policies have so many ticks to answer.
    fn due(&self, tick: u64, limit: u64) -> Due {
        match self.gate {
            _ if !self.ready => Due::Nothing,
            Gate::ToAsk => Due::Ask,
            Gate::Closed(_) if self.asks_again_at.is_some_and(|at| tick >= at) => Due::Ask,
            Gate::Asked(since) if tick - since >= limit => Due::GiveUp,
            _ => Due::Nothing,
        }
    }

    /// Policies are asked; gives the number of the question.
    fn ask(&mut self, tick: u64) -> u64 {
        self.gate = Gate::Asked(tick);
        self.asks_again_at = None;
        self.questions += 1;
        self.questions
    }

    /// Whether this answer counts: to the newest question, and be it late.
    fn awaits_answer(&self, term: u64, question: u64, bugs: KnownBugs) -> bool {
        let waits = match &self.gate {
            Gate::Asked(_) => true,
            Gate::Closed(reason) => matches!(**reason, Caretaker::NoAnswer { .. }),
            Gate::Open | Gate::ToAsk => false,
        };
        let newest = question == self.questions || bugs.has(KnownBug::AnyAnswerCounts);
        self.term == term && waits && newest
    }

    /// What made a policy panic may pass, so that it is asked again, ever more rarely. One that
    /// gives no answer is not: the question is out, and another one would wait behind it.
    fn ask_after_panic(&mut self, tick: u64, bugs: KnownBugs) {
        let pause = PANIC_RETRY_TICKS << self.panics.min(MAX_PANICS);
        self.panics += 1;
        let asks = self.panics < MAX_PANICS && !bugs.has(KnownBug::SilentPolicyKeepsLeadership);
        self.asks_again_at = asks.then_some(tick + pause);
    }

    /// Policies, if some decide about this group, decide again. A question without an answer is
    /// asked again: its answer may be older than the cause of the request.
    fn ask_again(&mut self, some_decide: bool, bugs: KnownBugs) {
        let to_ask = match &self.gate {
            Gate::Open => some_decide,
            Gate::Closed(_) => !self.is_unfit(),
            Gate::Asked(_) => !bugs.has(KnownBug::AnyAnswerCounts),
            Gate::ToAsk => false,
        };
        if to_ask {
            self.panics = 0;
            self.gate = Gate::ToAsk;
        }
    }

    /// Whether the node is unfit; no policy was asked then.
    fn is_unfit(&self) -> bool {
        self.caretaker().is_some_and(|why| matches!(**why, Caretaker::Unfit(_)))
    }

    /// Whether it is decided whether users are served.
    const fn is_settled(&self) -> bool {
        self.asks_again_at.is_none() && !matches!(self.gate, Gate::ToAsk | Gate::Asked(_))
    }

    /// What is to be published: that it began to serve its users, or ceased to. Asked once.
    fn announce(&mut self) -> Option<EdgeKind> {
        let (serves, closed) = (self.ready && self.is_open(), self.caretaker().is_some());
        let (told, kind) = match self.told {
            Told::Caretaker | Told::Nothing if serves => (Told::Ready, EdgeKind::Ready),
            Told::Ready | Told::Nothing if closed => (Told::Caretaker, EdgeKind::Caretaker),
            _ => return None,
        };
        self.told = told;
        Some(kind)
    }
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
        let advertisement =
            if is_here { Some(effects.nodes.own()) } else { effects.nodes.advertisement(node) };
        Candidate {
            group: self.id,
            node,
            is_here,
            requirement,
            labels: &self.meta.labels,
            kind: &self.meta.kind,
            capabilities: advertisement.map(|advertisement| &advertisement.capabilities),
            impaired: self.impairment(is_here, advertisement),
        }
    }

    /// Why the node should lead nothing for now, or the replica here should not lead.
    fn impairment<'a>(
        &'a self,
        is_here: bool,
        advertisement: Option<&'a Advertisement>,
    ) -> Option<&'a Impairment> {
        let said = advertisement.and_then(|advertisement| advertisement.impaired.as_ref());
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

    /// A call into the state machine takes longer than it may, or calls have ended in time for a
    /// while.
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

    /// Whether the state machine here may be far behind the log for as long as it takes, or for
    /// ever.
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
        self.led.as_ref().is_some_and(|led| led.ready && led.is_open())
    }

    /// Why a leader serves no users.
    pub(super) fn caretaker(&self) -> Option<&Arc<Caretaker>> {
        self.led.as_ref()?.caretaker()
    }

    /// Asks policies, and gives up waiting for them.
    pub(super) fn tend_gate(&mut self, effects: &mut Effects) {
        let limit = u64::from(self.config.admission_ticks);
        match self.led.as_ref().map_or(Due::Nothing, |led| led.due(self.ticks, limit)) {
            Due::Nothing => {}
            Due::Ask => self.ask_policies(effects),
            Due::GiveUp => {
                let after = self.config.in_time(limit);
                self.close_gate(Caretaker::NoAnswer { after }, effects);
            }
        }
    }

    fn ask_policies(&mut self, effects: &mut Effects) {
        let (group, open_id) = (self.id, self.open_id);
        let Some(led) = self.led.as_mut() else { return };
        let (term, question) = (led.term, led.ask(self.ticks));
        let acquired = Acquisition {
            group,
            term: Term::new(term),
            requirement: self.membership.requirement.clone(),
            labels: self.meta.labels.clone(),
            kind: self.meta.kind.clone(),
            voters: self.membership.voters().map(|(_, node)| node).collect(),
        };
        let policies = self.policies.asked(group, &self.meta.labels);
        effects.admissions.push(AdmissionRequest { group, open_id, question, acquired, policies });
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
        let (bugs, led) = (self.config.bugs, self.led.as_ref());
        if !led.is_some_and(|led| led.awaits_answer(term.get(), question, bugs)) {
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
                if let Some(led) = self.led.as_mut() {
                    led.ask_after_panic(self.ticks, bugs);
                }
                self.close_gate(Caretaker::Panicked { policy }, effects);
            }
        }
    }

    /// Whether it is decided whether users are served.
    pub(super) fn is_service_settled(&self) -> bool {
        self.led.as_ref().is_none_or(Led::is_settled)
    }

    /// What is known of nodes, policies or the requirement changed.
    pub(super) fn renew_gate(&mut self, effects: &mut Effects) {
        let Some(led) = &self.led else { return };
        let (unfit, open) = (led.is_unfit(), led.is_open());
        match self.first_gate(effects) {
            Gate::Closed(reason) => self.close_gate(Caretaker::clone(&reason), effects),
            // The decision of policies about this leadership is kept, until another look is
            // requested.
            Gate::ToAsk if unfit => self.set_gate(Gate::ToAsk),
            Gate::Open if !open => self.open_gate(effects),
            _ => {}
        }
        self.tend_gate(effects);
    }

    /// Policies decide again about this leadership. A question without an answer is asked again:
    /// its answer may be older than the cause of the request.
    pub(super) fn ask_policies_again(&mut self) {
        let asks = self.policies.asks(self.id, &self.meta.labels);
        if let Some(led) = self.led.as_mut() {
            led.ask_again(asks, self.config.bugs);
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
        let Some(led) = self.led.as_mut() else { return };
        let Some(kind) = led.announce() else { return };
        let term = led.term;
        if kind == EdgeKind::Caretaker {
            effects.count(PolicyEvent::CaretakerBegan);
        }
        self.edge(term, kind, effects);
    }

    /// Why no proposal of users is taken from this leader, if none is.
    pub(super) fn refuses_service(&self) -> Option<ProposalRejection> {
        self.led.as_ref()?.refuses()
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
enum Told {
    Nothing,
    Ready,
    Caretaker,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 20;

    fn led(gate: Gate) -> Led {
        Led { ready: true, ..Led::new(5, 10, gate) }
    }

    fn closed(reason: Caretaker) -> Gate {
        Gate::Closed(Arc::new(reason))
    }

    fn no_answer() -> Gate {
        closed(Caretaker::NoAnswer { after: std::time::Duration::from_secs(1) })
    }

    fn held() -> Gate {
        closed(Caretaker::Held { reason: "later".into() })
    }

    #[test]
    fn policies_are_asked_once_a_leadership_is_ready_and_not_waited_for_for_ever() {
        assert_eq!(Led::new(5, 10, Gate::ToAsk).due(100, LIMIT), Due::Nothing);
        let mut led = led(Gate::ToAsk);
        assert_eq!(led.due(100, LIMIT), Due::Ask);
        assert_eq!(led.ask(100), 1);
        assert_eq!(led.due(119, LIMIT), Due::Nothing);
        assert_eq!(led.due(120, LIMIT), Due::GiveUp);
    }

    #[test]
    fn only_the_answer_to_the_newest_question_counts_and_it_may_be_late() {
        let none = KnownBugs::none();
        let mut led = led(Gate::ToAsk);
        led.ask(100);
        assert!(led.awaits_answer(5, 1, none) && !led.awaits_answer(4, 1, none));
        led.gate = no_answer();
        assert!(led.awaits_answer(5, 1, none), "late");
        led.ask_again(true, none);
        assert!(!led.awaits_answer(5, 1, none), "it is asked anew");
        led.ask(130);
        assert!(!led.awaits_answer(5, 1, none) && led.awaits_answer(5, 2, none));
        led.gate = held();
        assert!(!led.awaits_answer(5, 2, none), "it is answered");
    }

    #[test]
    fn a_policy_that_panics_is_asked_again_ever_more_rarely() {
        let none = KnownBugs::none();
        let mut led = led(held());
        for pause in [50, 100, 200, 400, 800] {
            led.ask_after_panic(1_000, none);
            assert!(!led.is_settled());
            assert_eq!(led.due(999 + pause, LIMIT), Due::Nothing);
            assert_eq!(led.due(1_000 + pause, LIMIT), Due::Ask);
        }
        led.ask_after_panic(1_000, none);
        assert!(led.is_settled(), "only news help");
    }

    #[test]
    fn another_look_asks_those_that_decide() {
        let cases = [
            (Gate::Open, true, true),
            (Gate::Open, false, false),
            (held(), false, true),
            (Gate::Asked(3), false, true),
        ];
        for (gate, some_decide, asks) in cases {
            let mut led = led(gate);
            led.ask_again(some_decide, KnownBugs::none());
            assert_eq!(led.gate == Gate::ToAsk, asks, "{led:?}");
        }
    }

    #[test]
    fn what_changes_for_users_is_published_once() {
        let mut led = Led::new(5, 10, Gate::Open);
        assert_eq!(led.announce(), None, "it is not ready");
        led.ready = true;
        assert_eq!(led.announce(), Some(EdgeKind::Ready));
        assert_eq!(led.announce(), None);
        led.gate = Gate::Asked(1);
        assert_eq!(led.announce(), None, "it is not decided");
        led.gate = held();
        assert_eq!(led.announce(), Some(EdgeKind::Caretaker));
        led.gate = Gate::Open;
        assert_eq!(led.announce(), Some(EdgeKind::Ready));
    }
}

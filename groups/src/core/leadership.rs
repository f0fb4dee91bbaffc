//! Edges of this replica's leadership: acquired, ready, lost; in this order, each once per term.

use raft::StateRole;
use shardhost_storage::Term;

use super::GroupCore;
use super::gate::Led;
use crate::core::Effects;
use crate::error::ReadError;
use crate::known_bugs::KnownBug;
use crate::leadership::{Edge, EdgeKind, LossCause};

impl GroupCore {
    /// Whether this leader has applied the first entry of its term, and so everything before.
    pub(super) fn is_ready(&self) -> bool {
        self.led.as_ref().is_some_and(|led| led.ready)
    }

    /// Compares raft's state with the published one, and publishes the difference. Must run before
    /// proposals of a step go to raft, so that the last entry of a new leader is the first of its
    /// term.
    pub(super) fn observe_leadership(&mut self, effects: &mut Effects) {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        let (term, last) = (raft.term, raft.raft_log.last_index());
        if let Some(led) = &self.led
            && (!leads || led.term != term)
        {
            let cause = self.loss_cause(led.term);
            let stands = self.stands_again(led.term, effects);
            self.lose_leadership(cause, effects);
            if stands {
                self.stand_again(effects);
            }
        }
        if leads && self.led.is_none() {
            let gate = self.first_gate(effects);
            self.led = Some(Led::new(term, last, gate));
            self.reset_lease();
            self.reads.ask_anew();
            if !self.config.bugs.has(KnownBug::CaretakerAnswersReads) {
                self.refuse_readers(effects);
            }
            self.edge(term, EdgeKind::Acquired, effects);
            self.tell_service(effects);
        }
        // What the group asks for may have changed with what was applied: that decides whether it
        // is served.
        self.notice_facts(effects);
        let applied = self.apply.applied();
        if let Some(led) = self.led.as_mut()
            && !led.ready
            && applied >= led.first_index
        {
            led.ready = true;
            self.tend_gate(effects);
            self.tell_service(effects);
        }
        self.watch_transfer(effects);
    }

    fn loss_cause(&self, led_term: u64) -> LossCause {
        let raft = &self.raw.raft;
        let target = self.transfer.as_ref().map(|transfer| transfer.replica());
        let won = if raft.leader_id == 0 { raft.vote } else { raft.leader_id };
        let member = self.membership.members.get(&self.replica);
        if !member.is_some_and(|member| member.voter || member.outgoing_voter) {
            LossCause::Removed
        } else if target == Some(won) {
            LossCause::Transferred
        } else if self.raw.raft.term > led_term {
            LossCause::HigherTerm
        } else {
            LossCause::QuorumLost
        }
    }

    /// Fails every caller that waits, then publishes the loss.
    pub(super) fn lose_leadership(&mut self, cause: LossCause, effects: &mut Effects) {
        let Some(led) = self.led.take() else { return };
        self.fail_completions_on_loss(effects);
        let error = ReadError::NotLeader { group: self.id, hint: self.successor_hint() };
        self.fail_reads(&error, effects);
        self.fail_change_on_loss(effects);
        self.changes.forget_requirement();
        self.end_barrier(effects);
        self.reset_lease();
        self.succession.forget_named();
        self.leaving.forget_dismissed();
        self.snapshots.forget_shipments();
        let own = self.config.node;
        let successor = self.leader_hint().filter(|hint| hint.node != own);
        self.edge(led.term, EdgeKind::Lost { cause, successor }, effects);
    }

    /// What is known of nodes or policies changed since this replica last looked.
    pub(super) fn notice_facts(&mut self, effects: &mut Effects) {
        if self.seen_facts == effects.facts {
            return;
        }
        self.seen_facts = effects.facts;
        self.succession.forget_declined();
        self.renew_gate(effects);
        if self.leads() && self.hibernation.is_hibernating() && self.wants_successor(effects) {
            self.wake();
        }
    }

    pub(super) fn edge(&self, term: u64, kind: EdgeKind, effects: &mut Effects) {
        let term = Term::new(term);
        effects.edges.push(Edge { group: self.id, term, kind });
    }
}

//! What planners and hosts must keep to at every step, whatever goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_groups::{GroupId, GroupStatus, NodeId};

use super::host::Host;
use super::planner_instance::PlannerInstance;
use super::shape::{COOL_DOWN_MS, WARM_UP_MS};
use super::world::Desk;
use crate::executor::{
    Answer, Mode, MoveOutcome, Order, OrderRefusal, PlannerTerm, Round, Stop, Ticket, replay,
};
use crate::inputs::clock::REPORT_TIMEOUT;
use crate::planner::{self, Tier};

/// Between two rounds in which every group is asked for.
const ASK_ALL_EVERY: u64 = 10;

/// A planned move that took place.
#[derive(Clone, Copy, Debug)]
struct Moved {
    order: Order,
    at_ms: u64,
    /// The process that handed over.
    life: Option<u64>,
}

/// What was seen, and how often something happened that a check is about.
#[derive(Debug, Default)]
pub(super) struct Checks {
    last_move: BTreeMap<GroupId, Moved>,
    issued: BTreeMap<Ticket, u64>,
    /// Orders that their planners know to have moved a leadership.
    confirmed: BTreeSet<Ticket>,
    /// When the newest report of a node was asked for that a planner has.
    reports: BTreeMap<(PlannerTerm, NodeId), u64>,
    rounds: u64,
    pub(super) coverage: Coverage,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coverage {
    pub(super) planners: u64,
    pub(super) ordered: u64,
    pub(super) moved: u64,
    pub(super) failed: u64,
    pub(super) balanced: u64,
    pub(super) drained: u64,
    pub(super) drains: u64,
    pub(super) stale_planner_terms: u64,
    pub(super) stale_terms: u64,
    pub(super) stopped: u64,
    pub(super) held_rounds: u64,
    pub(super) answers: u64,
    pub(super) unfit_elections: u64,
    pub(super) fit_rivals: u64,
}

impl Coverage {
    pub(super) fn add(&mut self, other: Self) {
        self.planners += other.planners;
        self.ordered += other.ordered;
        self.moved += other.moved;
        self.failed += other.failed;
        self.balanced += other.balanced;
        self.drained += other.drained;
        self.drains += other.drains;
        self.stale_planner_terms += other.stale_planner_terms;
        self.stale_terms += other.stale_terms;
        self.stopped += other.stopped;
        self.held_rounds += other.held_rounds;
        self.answers += other.answers;
        self.unfit_elections += other.unfit_elections;
        self.fit_rivals += other.fit_rivals;
    }
}

impl Coverage {
    /// Everything that a check is about happened, and often.
    pub(super) fn demand(&self, runs: u64) {
        assert!(self.ordered > runs * 5 && self.moved > runs * 4, "{self:?}");
        assert!(self.balanced > runs * 2 && self.drained > runs / 2, "{self:?}");
        assert!(self.planners > runs * 2 && self.drains > runs / 2, "{self:?}");
        assert!(
            self.stale_planner_terms > 0 && self.stale_terms > 0 && self.stopped > 0,
            "{self:?}"
        );
        assert!(self.failed > runs / 4 && self.held_rounds > runs * 2, "{self:?}");
        assert!(self.unfit_elections > 0 && self.answers > runs * 20, "{self:?}");
    }
}

pub(super) fn demand(holds: bool, violation: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(violation()) }
}

impl Checks {
    /// A planner has these reports.
    pub(super) fn gathered<'a>(
        &mut self,
        desk: Desk,
        asked_ms: u64,
        of: impl Iterator<Item = &'a NodeId>,
    ) {
        self.reports.extend(of.map(|node| ((desk.planner_term, *node), asked_ms)));
    }

    /// After each round of a planner.
    pub(super) fn round(
        &mut self,
        planner_instance: &PlannerInstance,
        round: &Round,
        now_ms: u64,
    ) -> Result<(), String> {
        self.rounds += 1;
        self.coverage.held_rounds += u64::from(round.hold.is_some());
        let looks = self.rounds.is_multiple_of(ASK_ALL_EVERY);
        let Ok(made) = &round.made else { return Ok(()) };
        if looks || !made.plan.moves.is_empty() {
            planner::check(&made.snapshot, &made.plan).map_err(|error| error.to_string())?;
        }
        if looks {
            replay(made).map_err(|error| error.to_string())?;
            for group in &made.snapshot.groups {
                self.answers(planner_instance, group.id, now_ms)?;
            }
        }
        let nobody = GroupId::new(u64::MAX);
        let at = self.rounds as usize % made.snapshot.groups.len().max(1);
        let one = made.snapshot.groups.get(at).map_or(nobody, |group| group.id);
        self.answers(planner_instance, one, now_ms)?;
        self.answers(planner_instance, nobody, now_ms)
    }

    /// Every group has a specific answer.
    fn answers(
        &mut self,
        planner_instance: &PlannerInstance,
        group: GroupId,
        now_ms: u64,
    ) -> Result<(), String> {
        self.coverage.answers += 1;
        let why = planner_instance.executor.why(group, now_ms);
        let empty = why.answer == Answer::AsPlanned && why.explanation.is_none();
        demand(!empty && !why.to_string().is_empty(), || format!("no answer: {why:?}"))
    }

    /// A planner says that an order may start.
    pub(super) fn started(
        &mut self,
        ((mode, stopped), began_ms): ((Mode, Option<Stop>), u64),
        order: &Order,
        now_ms: u64,
        hosts: &BTreeMap<NodeId, Host>,
    ) -> Result<(), String> {
        self.coverage.ordered += 1;
        demand(mode == Mode::On && stopped.is_none(), || {
            format!("a planner hears {mode} {stopped:?}, and starts {order:?}")
        })?;
        demand(now_ms >= began_ms + WARM_UP_MS, || {
            format!("a planner that began at {began_ms} is in its warm_up, and starts {order:?}")
        })?;
        self.issued.insert(order.ticket, now_ms);
        self.rests(order, now_ms, hosts)
    }

    /// A group that moved rests, as far as the planner can know that it moved.
    fn rests(
        &self,
        order: &Order,
        now_ms: u64,
        hosts: &BTreeMap<NodeId, Host>,
    ) -> Result<(), String> {
        let Some(last) = self.last_move.get(&order.group) else { return Ok(()) };
        let (own, giver) = (last.order.ticket, last.order.from);
        let told = own.planner_term == order.ticket.planner_term && self.confirmed.contains(&own);
        let reported = self.reports.get(&(order.ticket.planner_term, giver));
        let same_life = hosts.get(&giver).is_some_and(|host| host.life == last.life);
        let known = told || (same_life && reported.is_some_and(|asked| *asked >= last.at_ms));
        // A report has the age of a move, and is as old as its way took.
        let slack = if told { 0 } else { REPORT_TIMEOUT.as_millis() as u64 };
        let rested = now_ms + slack >= last.at_ms + COOL_DOWN_MS;
        demand(order.tier <= Tier::Displaced || !known || rested, || {
            format!("{order:?} moves again {} ms after {last:?}", now_ms - last.at_ms)
        })
    }

    /// A host does not do what it was ordered.
    pub(super) fn refused(&mut self, refusal: &OrderRefusal) {
        match refusal {
            OrderRefusal::StalePlannerTerm { .. } => self.coverage.stale_planner_terms += 1,
            OrderRefusal::Stopped { .. } => self.coverage.stopped += 1,
            _ => self.coverage.stale_terms += 1,
        }
    }

    /// A host begins to do what it was ordered.
    pub(super) fn admitted(
        &self,
        host: &Host,
        order: &Order,
        status: &GroupStatus,
    ) -> Result<(), String> {
        demand(order.ticket.planner_term >= host.heard, || {
            format!(
                "node {} heard planner term {}, and obeys {}",
                order.from, host.heard, order.ticket
            )
        })?;
        demand(!host.stopped, || format!("node {} is stopped, and obeys", order.from))?;
        demand(status.is_leader() && status.term.get() == order.term, || {
            format!("{order:?} is obeyed by a {} in term {}", status.role.name(), status.term)
        })
    }

    /// A planned move took place.
    pub(super) fn moved(&mut self, order: &Order, life: Option<u64>, at_ms: u64) {
        self.coverage.moved += 1;
        self.coverage.balanced += u64::from(order.tier > Tier::Displaced);
        self.coverage.drained += u64::from(order.tier == Tier::Displaced);
        self.last_move.insert(order.group, Moved { order: *order, at_ms, life });
    }

    /// A planner receives the outcome of an order. Orders that it gave up before do not concern it.
    pub(super) fn answered(
        &mut self,
        order: &Order,
        outcome: MoveOutcome,
        now_ms: u64,
        answer_ms: u64,
    ) {
        let issued = self.issued.get(&order.ticket).copied().unwrap_or(0);
        match outcome {
            MoveOutcome::Moved { .. } if now_ms < issued + answer_ms => {
                self.confirmed.insert(order.ticket);
            }
            MoveOutcome::Failed { .. } => self.coverage.failed += 1,
            _ => {}
        }
    }
}

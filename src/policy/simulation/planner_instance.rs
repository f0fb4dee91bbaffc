//! A planner at work on the node that leads the system group: what its driver does with sockets,
//! here with messages that are late, lost, or cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use shardhost_groups::NodeId;
use shardhost_proto::system as wire;

use super::sabotage::Sabotage;
use super::world::{Desk, Event, World};
use crate::catalog::View;
use crate::executor::{Executor, ExecutorSettings, Mode, Recorded, Stop};
use crate::inputs::clock::{PlannerClock, REPORT_TIMEOUT, ROUND_EVERY};
use crate::inputs::planner_inputs::{Gathered, PlannerInputs, controls};
use crate::inputs::report::Speaker;

/// An executor, and what it knows.
#[derive(Debug)]
pub(super) struct PlannerInstance {
    pub(super) executor: Executor,
    pub(super) planner_inputs: PlannerInputs,
    pub(super) began_ms: u64,
    pub(super) clock: PlannerClock,
    /// What the last round planned.
    pub(super) made: Option<Arc<Recorded>>,
    gathering: Option<Gathering>,
}

/// Reports that are waited for.
#[derive(Debug)]
struct Gathering {
    view: Arc<View>,
    asked_ms: u64,
    waits: BTreeSet<NodeId>,
    reports: BTreeMap<NodeId, wire::NodeReport>,
}

/// The answer to one question for a report; `None`: a refusal, or no such service.
pub(super) type Answer = Option<Box<wire::NodeReport>>;

impl PlannerInstance {
    pub(super) fn new(
        desk: Desk,
        (now, now_ms): (Instant, u64),
        settings: ExecutorSettings,
    ) -> Self {
        Self {
            executor: Executor::new(desk.planner_term, now_ms, settings),
            planner_inputs: PlannerInputs::default(),
            began_ms: now_ms,
            clock: PlannerClock::new(now, now_ms),
            made: None,
            gathering: None,
        }
    }
}

impl World {
    /// What the planner of a node takes for the time.
    pub(super) fn planner_clock(&self, node: NodeId) -> u64 {
        match self.seats.get(&node) {
            Some(planner_instance) if self.sabotage != Sabotage::TimeOfDay => {
                planner_instance.clock.at(self.instant())
            }
            _ => self.time_of_day(),
        }
    }

    /// The planner that sits at a desk, unless its leadership is over.
    pub(super) fn planner_instance(&mut self, desk: Desk) -> Option<&mut PlannerInstance> {
        let lives = self.cluster.life(desk.node) == self.hosts[&desk.node].life;
        let planner_instance = self.seats.get_mut(&desk.node);
        planner_instance.filter(|planner_instance| {
            lives && planner_instance.executor.planner_term() == desk.planner_term
        })
    }

    /// Whether and what the catalog, as a node knows it, and the node's own switch let planners do.
    pub(super) fn controls(&self, node: NodeId) -> Option<(Mode, Option<Stop>)> {
        let host = &self.hosts[&node];
        Some(controls(host.view.as_deref()?, host.local_stop()))
    }

    /// A planner asks for reports, unless the last ones are still waited for.
    pub(super) fn begin_round(&mut self, desk: Desk) -> Result<(), String> {
        if self.planner_instance(desk).is_none() {
            return Ok(());
        }
        self.after(ROUND_EVERY.as_millis() as u64, Event::Round(desk));
        let (Some(controls), Some(view)) =
            (self.controls(desk.node), self.hosts[&desk.node].view.clone())
        else {
            return Ok(());
        };
        let (mode, stopped) = self.sabotage.controls(controls);
        let mut live = self.cluster.heard_by(desk.node).clone();
        live.extend(self.cluster.life(desk.node).map(|life| (desk.node, life)));
        let now_ms = self.planner_clock(desk.node);
        let Some(planner_instance) = self.planner_instance(desk) else { return Ok(()) };
        if mode == Mode::Off {
            planner_instance.executor.control(mode, stopped);
        } else if planner_instance.gathering.is_none() {
            planner_instance.planner_inputs.look_who_is_alive(&live, now_ms);
            let known = planner_instance.planner_inputs.known_digests();
            let waits = view.nodes().keys().copied().collect();
            planner_instance.gathering =
                Some(Gathering { view, asked_ms: now_ms, waits, reports: BTreeMap::new() });
            self.ask_everybody(desk, now_ms, &known);
        }
        self.send_orders(desk)
    }

    fn ask_everybody(&mut self, desk: Desk, asked_ms: u64, known: &BTreeMap<NodeId, u64>) {
        for host in self.cluster.node_ids() {
            if let Some(delay) = self.travel(desk.node, host) {
                let known_digest = known.get(&host).copied().unwrap_or(0);
                self.after(delay, Event::Asked { by: desk, host, asked_ms, known_digest });
            }
        }
        self.after(REPORT_TIMEOUT.as_millis() as u64, Event::GatherEnds { desk, asked_ms });
    }

    /// A host is asked for a report. Planners that were replaced get none.
    pub(super) fn asked(&mut self, by: Desk, id: NodeId, asked_ms: u64, known_digest: u64) {
        let (now, now_ms) = (self.instant(), self.cluster.now());
        let advertisement = self.cluster.advertisement(id).clone();
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let Some(life) = host.life else { return };
        let report = if host.serves() && host.fence.hear(by.planner_term, now_ms).is_ok() {
            host.heard = host.heard.max(by.planner_term);
            let speaker =
                Speaker { node: id, incarnation: life, advertisement, stopped: host.stopped };
            let cluster = &self.cluster;
            let statuses = self.groups.iter().filter_map(|group| cluster.status(id, *group));
            let report = host.memory.report(speaker, statuses, known_digest, now);
            Some(Box::new(self.sabotage.report(host, report)))
        } else {
            None
        };
        if let Some(delay) = self.travel(id, by.node) {
            self.after(delay, Event::Reported { to: by, host: id, asked_ms, report });
        }
    }

    /// An answer came. Those to earlier questions are too late.
    pub(super) fn reported(
        &mut self,
        to: Desk,
        host: NodeId,
        asked_ms: u64,
        report: Answer,
    ) -> Result<(), String> {
        let Some(planner_instance) = self.planner_instance(to) else { return Ok(()) };
        let current =
            planner_instance.gathering.as_mut().filter(|current| current.asked_ms == asked_ms);
        let Some(current) = current else { return Ok(()) };
        current.waits.remove(&host);
        current.reports.extend(report.map(|report| (host, *report)));
        if current.waits.is_empty() { self.round(to) } else { Ok(()) }
    }

    /// Hosts that did not answer by now are in the next pass.
    pub(super) fn gather_ends(&mut self, desk: Desk, asked_ms: u64) -> Result<(), String> {
        let planner_instance = self.planner_instance(desk);
        let waits =
            planner_instance.and_then(|planner_instance| planner_instance.gathering.as_ref());
        if waits.is_some_and(|gathering| gathering.asked_ms == asked_ms) {
            return self.round(desk);
        }
        Ok(())
    }

    fn round(&mut self, desk: Desk) -> Result<(), String> {
        let now_ms = self.planner_clock(desk.node);
        let controls_of = |view: &View, stop| controls(view, stop);
        let local = self.hosts[&desk.node].local_stop();
        let sabotage = self.sabotage;
        let Some(planner_instance) = self.seats.get_mut(&desk.node).filter(|planner_instance| {
            planner_instance.executor.planner_term() == desk.planner_term
        }) else {
            return Ok(());
        };
        let Some(Gathering { view, asked_ms, reports, .. }) = planner_instance.gathering.take()
        else {
            return Ok(());
        };
        let controls = sabotage.controls(controls_of(&view, local));
        self.checks.gathered(desk, asked_ms, reports.keys());
        let reports = reports.into_iter().collect();
        planner_instance.planner_inputs.take_in(Gathered { view, asked_ms, reports });
        if planner_instance.planner_inputs.rest(&planner_instance.executor.status(now_ms)) {
            return self.send_orders(desk);
        }
        let Some(observation) = planner_instance.planner_inputs.observation(now_ms, controls)
        else {
            return Ok(());
        };
        let round = planner_instance.executor.round(observation);
        planner_instance.made = round.made.as_ref().ok().cloned();
        self.checks.round(planner_instance, &round, now_ms)?;
        self.send_orders(desk)
    }

    pub(super) fn send_orders(&mut self, desk: Desk) -> Result<(), String> {
        let now_ms = self.planner_clock(desk.node);
        let Some(truth) = self.controls(desk.node) else { return Ok(()) };
        let (mode, stopped) = self.sabotage.controls(truth.clone());
        let Some(planner_instance) = self.planner_instance(desk) else { return Ok(()) };
        planner_instance.executor.control(mode, stopped);
        let orders = planner_instance.executor.next_orders(now_ms);
        let began_ms = planner_instance.began_ms;
        for order in &orders {
            self.checks.started((truth.clone(), began_ms), order, now_ms, &self.hosts)?;
            self.watch.ordered(order.group, self.cluster.now());
        }
        let ambush = self.ambush.take_if(|_| !orders.is_empty());
        for order in orders {
            match self.travel(desk.node, order.from) {
                Some(delay) => {
                    let late = ambush.map_or(0, |_| self.chance.between(500, 7_000));
                    self.after(delay + late, Event::Ordered { by: desk, order });
                }
                None => self.order_is_lost(desk, order),
            }
        }
        if let Some(ambush) = ambush {
            self.spring(ambush, desk.node);
        }
        Ok(())
    }
}

impl Sabotage {
    fn controls(self, truth: (Mode, Option<Stop>)) -> (Mode, Option<Stop>) {
        if self == Self::IgnoreStop { (Mode::On, None) } else { truth }
    }
}

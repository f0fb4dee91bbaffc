//! The whole cluster under one clock: hosts, groups, planners, and the messages between them.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::super::super::{
    ExecutorSettings, Mode, MoveOutcome, Order, PlannerTerm, Stop, StopScope, Ticket,
};
use super::Chance;
use super::checks::Checks;
use super::faults::Fault;
use super::host::Host;
use super::planner_instance::{PlannerInstance, Report};
use super::sabotage::Sabotage;
use super::shape::Shape;
use super::shard::{Hosts, Shard};

/// Between two rounds of a planner.
const ROUND_MS: u64 = 1_000;
/// Between two looks of groups at themselves.
const REFLEX_MS: u64 = 250;

/// What happens at a time.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Round(PlannerTerm),
    Asked { by: PlannerTerm, host: NodeId },
    Reported { to: PlannerTerm, host: NodeId, report: Report },
    Ordered { by: PlannerTerm, order: Order },
    Transferred { order: Order, stalled_ms: u64 },
    Answered { ticket: Ticket, outcome: MoveOutcome },
    HostHears { host: NodeId, stopped: bool },
    Retires(PlannerTerm),
    Reflex,
    Fault(Fault),
    NextFault,
}

/// How messages between planners and hosts fare, per mille.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) loss: u64,
    pub(super) late: u64,
}

pub(super) struct Cluster {
    pub(super) now: u64,
    pub(super) chance: Chance,
    pub(super) hosts: Hosts,
    pub(super) shards: BTreeMap<GroupId, Shard>,
    /// The newest is in charge; the others do not know that they are not.
    pub(super) seats: BTreeMap<PlannerTerm, PlannerInstance>,
    pub(super) settings: ExecutorSettings,
    pub(super) weather: Weather,
    pub(super) mode: Mode,
    pub(super) stopped: bool,
    pub(super) faulty: bool,
    pub(super) checks: Checks,
    pub(super) sabotage: Sabotage,
    events: BTreeMap<(u64, u64), Event>,
    events_made: u64,
}

impl Cluster {
    pub(super) fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut chance = Chance::new(seed);
        let shape = Shape::draw(&mut chance);
        let mut cluster = Self {
            now: 1_000_000,
            hosts: shape.hosts,
            shards: shape.shards,
            seats: BTreeMap::new(),
            settings: sabotage.settings(shape.settings),
            weather: Weather::default(),
            mode: Mode::On,
            stopped: false,
            faulty: true,
            checks: Checks::default(),
            sabotage,
            events: BTreeMap::new(),
            events_made: 0,
            chance,
        };
        cluster.new_planner();
        cluster.after(0, Event::Reflex);
        cluster.after(2_000, Event::NextFault);
        cluster
    }

    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.events_made += 1;
        self.events.insert((self.now + delay_ms, self.events_made), event);
    }

    pub(super) fn pass(&mut self, length_ms: u64) -> Result<(), String> {
        let end = self.now + length_ms;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= end) {
            self.now = entry.key().0;
            let event = entry.remove();
            self.happen(event)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Round(planner_term) => self.round(planner_term)?,
            Event::Asked { by, host } => self.asked(by, host),
            Event::Reported { to, host, report } => {
                if let Some(planner_instance) = self.seats.get_mut(&to) {
                    planner_instance.take(host, report);
                }
            }
            Event::Ordered { by, order } => self.ordered(by, order)?,
            Event::Transferred { order, stalled_ms } => self.transferred(&order, stalled_ms)?,
            Event::Answered { ticket, outcome } => self.answered(ticket, outcome)?,
            Event::HostHears { host, stopped } => self.host_hears(host, stopped),
            Event::Retires(planner_term) => {
                self.seats.remove(&planner_term);
            }
            Event::Reflex => self.reflex(),
            Event::Fault(fault) => self.strike(fault),
            Event::NextFault => self.next_fault(),
        }
        Ok(())
    }

    /// Another host leads the system group. Who did before notices late.
    pub(super) fn new_planner(&mut self) {
        let newest = self.seats.keys().next_back().map_or(0, |planner_term| planner_term.get());
        let planner_term = PlannerTerm::new(newest + 1);
        let old: Vec<PlannerTerm> = self.seats.keys().copied().collect();
        for old in old {
            let late = self.chance.between(0, 30_000);
            self.after(late, Event::Retires(old));
        }
        self.seats
            .insert(planner_term, PlannerInstance::new(planner_term, self.now, &self.settings));
        let first = self.chance.between(100, ROUND_MS);
        self.after(first, Event::Round(planner_term));
    }

    pub(super) fn stop(&self) -> Option<Stop> {
        let stop = || Stop { scope: StopScope::Cluster, reason: "a fault".to_owned() };
        self.stopped.then(stop)
    }

    /// A message between a planner and a host: when it arrives, if it does.
    fn travel(&mut self, planner: PlannerTerm, host: NodeId) -> Option<u64> {
        let cut = self
            .seats
            .get(&planner)
            .is_none_or(|planner_instance| planner_instance.cut.contains(&host));
        if cut || self.chance.per_mille(self.weather.loss) {
            return None;
        }
        let late = self.chance.per_mille(self.weather.late);
        Some(if late { self.chance.between(500, 15_000) } else { self.chance.between(1, 20) })
    }

    fn round(&mut self, planner_term: PlannerTerm) -> Result<(), String> {
        let (mode, stopped, now) = (self.mode, self.stop(), self.now);
        let Some(planner_instance) = self.seats.get_mut(&planner_term) else { return Ok(()) };
        self.sabotage.before_round(&mut planner_instance.executor);
        let round = planner_instance.round(mode, stopped, now);
        self.sabotage.after_control(&mut planner_instance.executor);
        self.checks.round(planner_instance, &round, now)?;
        let hosts: Vec<NodeId> = self.hosts.keys().copied().collect();
        for host in hosts {
            if let Some(delay) = self.travel(planner_term, host) {
                self.after(delay, Event::Asked { by: planner_term, host });
            }
        }
        self.after(ROUND_MS, Event::Round(planner_term));
        self.send_orders(planner_term)
    }

    fn send_orders(&mut self, planner_term: PlannerTerm) -> Result<(), String> {
        let Some(planner_instance) = self.seats.get_mut(&planner_term) else { return Ok(()) };
        let orders = planner_instance.executor.next_orders(self.now);
        self.checks.started(planner_instance, &orders, self.now, &self.hosts, &self.shards)?;
        self.sabotage.after_orders(&mut planner_instance.executor);
        for order in orders {
            if let Some(delay) = self.travel(planner_term, order.from) {
                self.after(delay, Event::Ordered { by: planner_term, order });
            }
        }
        Ok(())
    }

    /// A host is asked for a report. Planners that were replaced get none.
    fn asked(&mut self, by: PlannerTerm, id: NodeId) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.reports(now)) else { return };
        let heard = host.fence.hear(by, now);
        if heard.is_err() && !self.sabotage.hosts_forget_planner_terms() {
            return;
        }
        host.heard = host.heard.max(by);
        let report = self.report(id);
        if let Some(delay) = self.travel(by, id) {
            self.after(delay, Event::Reported { to: by, host: id, report });
        }
    }

    fn report(&mut self, of: NodeId) -> Report {
        let mut groups = Vec::new();
        for shard in self.shards.values().filter(|shard| shard.voters.contains(&of)) {
            let noise = self.chance.between(800, 1_200);
            let load = u32::try_from(shard.load * noise / 1_000).unwrap_or(u32::MAX);
            groups.push(shard.seen_by(of, &self.hosts, self.now, load));
        }
        let nodes = self.hosts.values().map(Host::seen).collect();
        Report { at_ms: self.now, nodes, groups }
    }

    pub(super) fn answer(&mut self, order: &Order, delay_ms: u64, outcome: MoveOutcome) {
        if let Some(travel) = self.travel(order.ticket.planner_term, order.from) {
            self.after(delay_ms + travel, Event::Answered { ticket: order.ticket, outcome });
        }
    }

    fn answered(&mut self, ticket: Ticket, outcome: MoveOutcome) -> Result<(), String> {
        let Some(planner_instance) = self.seats.get_mut(&ticket.planner_term) else {
            return Ok(());
        };
        planner_instance.executor.ended(ticket, self.now, outcome);
        self.checks.ended(planner_instance, ticket, outcome, self.now);
        self.send_orders(ticket.planner_term)
    }

    fn host_hears(&mut self, id: NodeId, stopped: bool) {
        let stop = stopped.then(|| Stop { scope: StopScope::Cluster, reason: String::new() });
        if let Some(host) = self.hosts.get_mut(&id).filter(|host| host.up) {
            host.stopped = stopped;
            host.fence.stop(stop);
        }
    }

    fn reflex(&mut self) {
        for shard in self.shards.values_mut() {
            shard.reflex(&self.hosts, self.now, &mut self.chance);
        }
        self.after(REFLEX_MS, Event::Reflex);
    }

    /// The planner in charge, and all that it could know if it saw everything.
    pub(super) fn planner_instance(&self) -> Option<&PlannerInstance> {
        self.seats.values().next_back()
    }

    pub(super) fn voters_of(&self, group: GroupId) -> BTreeSet<NodeId> {
        self.shards.get(&group).map(|shard| shard.voters.clone()).unwrap_or_default()
    }
}

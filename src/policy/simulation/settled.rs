//! When a cluster is at rest, whether that is the best it can come to, and whether it stays so.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::NodeId;

use super::checks::demand;
use super::planner_instance::PlannerInstance;
use super::world::World;
use crate::catalog::{SYSTEM_GROUP, View};
use crate::executor::{Answer, Hold, Mode};
use crate::inputs::planner_inputs::{Gathered, PlannerInputs};
use crate::inputs::report::{Memory, Speaker};
use crate::planner::{Snapshot, check, plan};

impl World {
    /// Lets time pass until nothing is left to move.
    pub(super) fn settle(&mut self, within_ms: u64) -> Result<(), String> {
        let end = self.cluster.now() + within_ms;
        loop {
            self.pass(500)?;
            match self.unrest() {
                None => return Ok(()),
                Some(what) if self.cluster.now() > end => {
                    return Err(format!("not at rest after {within_ms} ms: {what}"));
                }
                Some(_) => {}
            }
        }
    }

    /// Lets time pass, in which no host may get an order, and no leadership moves.
    pub(super) fn stay(&mut self, length_ms: u64) -> Result<(), String> {
        let seen = |world: &Self| {
            (world.checks.coverage.ordered, world.cluster.checks().elections().len())
        };
        let (before, end) = (seen(self), self.cluster.now() + length_ms);
        while self.cluster.now() < end {
            self.pass(5_000)?;
            demand(seen(self) == before, || {
                format!("was at rest with {before:?}, and has {:?} orders, elections", seen(self))
            })?;
        }
        Ok(())
    }

    /// Who plans, if that is one alone.
    pub(super) fn planner(&self) -> Option<&PlannerInstance> {
        let mut seats = self.seats.values();
        seats.next().filter(|_| seats.next().is_none())
    }

    /// What there still is to do, if anything.
    fn unrest(&self) -> Option<String> {
        let Some(planner_instance) = self.planner() else {
            return Some("not one planner".to_owned());
        };
        let status = planner_instance.executor.status(self.clock());
        let Some(last) = &status.plan else { return Some("nothing is planned".to_owned()) };
        match status.hold {
            // Nothing changes, so no round follows at once.
            None | Some(Hold::PlanTooOld { .. }) => {}
            Some(hold) => return Some(hold.to_string()),
        }
        let left = last.moves + last.deferred + status.in_flight + status.unconfirmed;
        if left > 0 {
            return Some(format!("{left} moves are left: {}", self.waiting(planner_instance)));
        }
        let served = || self.groups_are_served().and_then(|()| self.drains_say_why());
        self.better(planner_instance).or_else(|| served().err())
    }

    /// What keeps the moves that are left.
    fn waiting(&self, planner_instance: &PlannerInstance) -> String {
        let answers = self.groups.iter().map(|id| planner_instance.executor.why(*id, self.clock()));
        let waiting = answers.filter(|why| why.answer != Answer::AsPlanned);
        waiting.map(|why| why.to_string()).collect::<Vec<_>>().join("\n")
    }

    /// What a planner would do that sees everything as it is and remembers nothing.
    fn better(&self, planner_instance: &PlannerInstance) -> Option<String> {
        let made = planner_instance.made.as_ref()?;
        let mut truth = match self.truth()?.canonicalise() {
            Ok(truth) => truth,
            Err(error) => return Some(error.to_string()),
        };
        truth.now_ms = self.clock();
        truth.settings = made.snapshot.settings.clone();
        (truth.settings.cool_down_ms, truth.settings.warm_up_ms) = (0, 0);
        let loads: BTreeMap<_, _> =
            made.snapshot.groups.iter().map(|group| (group.id, group.load)).collect();
        for group in &mut truth.groups {
            group.load = loads.get(&group.id).copied().unwrap_or(0);
            if group.leader.is_none() {
                return Some(format!("group {} has no leader", group.id));
            }
        }
        let plan = plan(&truth).ok()?;
        if let Err(error) = check(&truth, &plan) {
            return Some(error.to_string());
        }
        plan.moves.first().map(|step| format!("{step:?} would be better"))
    }

    /// The present state, reported by all hosts at once.
    fn truth(&self) -> Option<Snapshot> {
        let view: Arc<View> = Arc::clone(self.view());
        let nodes = self.cluster.node_ids().into_iter();
        let live: BTreeMap<NodeId, u64> =
            nodes.filter_map(|node| Some((node, self.cluster.life(node)?))).collect();
        let reports = live.iter().map(|(node, life)| {
            let advertisement = self.cluster.advertisement(*node).clone();
            let speaker =
                Speaker { node: *node, incarnation: *life, advertisement, stopped: false };
            let statuses = self.groups.iter().filter_map(|id| self.cluster.status(*node, *id));
            (*node, Memory::default().report(speaker, statuses, 0, self.instant()))
        });
        let mut planner_inputs = PlannerInputs::default();
        planner_inputs.look_who_is_alive(&live, self.clock());
        planner_inputs.take_in(Gathered {
            view,
            asked_ms: self.clock(),
            reports: reports.collect(),
        });
        Some(planner_inputs.observation(self.clock(), (Mode::On, None))?.snapshot)
    }

    /// Where a drained node leads all the same, the plan explains why no other can.
    fn drains_say_why(&self) -> Result<(), String> {
        let made = self.planner().and_then(|planner_instance| planner_instance.made.as_ref());
        let Some(made) = made else { return Err("no planner".to_owned()) };
        for node in self.cluster.node_ids() {
            let leads = |id: &&shardhost_groups::GroupId| {
                self.cluster.status(node, **id).is_some_and(|status| status.is_leader())
            };
            if !self.cluster.advertisement(node).draining {
                continue;
            }
            for id in self.groups.iter().filter(leads) {
                let told = made.plan.stuck.iter().any(|stuck| stuck.group == *id);
                demand(told, || format!("node {node} drains, leads {id}, without a reason"))?;
            }
        }
        Ok(())
    }

    /// A replica that has what a group requires of its leader serves it. One that drains may
    /// continue to serve, and accepts no transfer, so a leader that serves no users may keep the
    /// group from it until the drain ends.
    fn groups_are_served(&self) -> Result<(), String> {
        for group in self.groups.iter().chain([&SYSTEM_GROUP]) {
            let statuses = |node: &NodeId| self.cluster.status(*node, *group);
            let nodes = self.cluster.node_ids();
            let Some(leader) = nodes.iter().filter_map(statuses).find(|one| one.is_leader()) else {
                return Err(format!("{group} has no leader"));
            };
            let requirement = &leader.membership.requirement;
            let fit = leader.membership.voters().any(|(_, node)| {
                let advertisement = self.cluster.advertisement(node);
                requirement.lacking(&advertisement.capabilities).next().is_none()
            });
            demand(leader.serving || !fit, || {
                format!("{group} is not served: {:?}", leader.caretaker)
            })?;
        }
        Ok(())
    }
}

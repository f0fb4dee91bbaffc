//! When a cluster is at rest, and whether it stays so.

use super::super::super::Answer;
use super::cluster::Cluster;
use super::host::Host;
use super::shard::Shard;
use crate::planner::{Snapshot, check, plan};

impl Cluster {
    /// Lets time pass until nothing is left to move.
    pub(super) fn settle(&mut self, within_ms: u64) -> Result<(), String> {
        let end = self.now + within_ms;
        loop {
            self.pass(1_000)?;
            match self.unrest() {
                None => return Ok(()),
                Some(what) if self.now > end => {
                    return Err(format!("not at rest after {within_ms} ms: {what}"));
                }
                Some(_) => {}
            }
        }
    }

    /// Lets time pass, in which no host may get an order.
    pub(super) fn stay(&mut self, length_ms: u64) -> Result<(), String> {
        let (ordered, end) = (self.checks.coverage.ordered, self.now + length_ms);
        while self.now < end {
            self.pass(10_000)?;
            if self.checks.coverage.ordered != ordered {
                return Err(format!("was at rest, and orders {:?}", self.checks.last_order()));
            }
        }
        Ok(())
    }

    /// What there still is to do, if anything.
    fn unrest(&self) -> Option<String> {
        let planner_instance = self.planner_instance()?;
        let status = planner_instance.executor.status(self.now);
        let Some(last) = &status.plan else { return Some("nothing is planned".to_owned()) };
        if self.seats.len() > 1 {
            return Some("another planner is at work".to_owned());
        }
        if let Some(hold) = status.hold {
            return Some(hold.to_string());
        }
        let left = last.moves + last.deferred + status.in_flight + status.unconfirmed;
        if left > 0 {
            return Some(format!("{left} moves are left: {}", self.waiting()));
        }
        self.better()
    }

    /// What keeps the moves that are left.
    fn waiting(&self) -> String {
        let Some(planner_instance) = self.planner_instance() else { return String::new() };
        let answers = self.shards.keys().map(|id| planner_instance.executor.why(*id, self.now));
        let waiting = answers.filter(|why| why.answer != Answer::AsPlanned);
        waiting.map(|why| why.to_string()).collect::<Vec<_>>().join("\n")
    }

    /// What a planner would do that sees everything as it is and remembers nothing.
    fn better(&self) -> Option<String> {
        let made = self.planner_instance()?.executor.last.as_ref()?.made.as_ref().ok()?;
        let mut truth =
            Snapshot { moves: Vec::new(), back_offs: Vec::new(), ..made.snapshot.clone() };
        truth.settings.cool_down_ms = 0;
        truth.settings.warm_up_ms = 0;
        truth.nodes = self.hosts.values().map(Host::seen).collect();
        let counted = |id| {
            let at = made.snapshot.groups.binary_search_by_key(&id, |group| group.id).ok();
            at.map_or(0, |at| made.snapshot.groups[at].load)
        };
        let seen = |shard: &Shard| {
            Some(shard.seen_by(shard.leader?, &self.hosts, self.now, counted(shard.id)))
        };
        truth.groups = self.shards.values().filter_map(seen).collect();
        if truth.groups.len() < self.shards.len() {
            return Some("a group has no leader".to_owned());
        }
        let plan = plan(&truth).ok()?;
        if let Err(error) = check(&truth, &plan) {
            return Some(error.to_string());
        }
        plan.moves.first().map(|step| format!("{step:?} would be better"))
    }
}

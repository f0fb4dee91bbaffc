//! The catalog, and what the leader of the system group plans.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shardhost::driver::System;
use shardhost_policy::allocator::AllocatorStatus;
use shardhost_policy::catalog::View;
use shardhost_policy::executor::ExecutorStatus;
use shardhost_policy::planner::Tier;

use super::families::{Families, Labels};

/// What a host knows of the catalog, and plans where it leads the system group.
#[derive(Debug)]
pub struct SystemMetrics {
    system: System,
}

impl SystemMetrics {
    /// Of this host's part in the system group.
    #[must_use]
    pub const fn new(system: System) -> Self {
        Self { system }
    }
}

impl Collector for SystemMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        let families = &mut families;
        let view = self.system.view();
        families.gauge(
            "catalog_known",
            "1: the catalog was read since the start.",
            u64::from(view.is_some()),
        )?;
        if let Some(view) = view {
            write_catalog(families, &view)?;
        }
        let stopped = u64::from(self.system.planned_moves_are_stopped());
        families.gauge(
            "planned_moves_stopped",
            "1: the local switch keeps planned moves away.",
            stopped,
        )?;
        let planner = self.system.planner_status();
        families.gauge(
            "planner_runs",
            "1: this node leads the system group, and plans.",
            u64::from(planner.is_some()),
        )?;
        if let Some(planner) = planner {
            write_planner(families, &planner)?;
        }
        match self.system.allocator_status() {
            Some(allocator) => write_allocator(families, &allocator),
            None => Ok(()),
        }
    }
}

fn write_catalog(families: &mut Families<'_>, view: &View) -> fmt::Result {
    families.gauge(
        "catalog_revision",
        "The revision of the catalog that this node knows.",
        view.revision().get(),
    )?;
    families.gauge("catalog_nodes", "Nodes of the cluster.", view.nodes().len() as u64)?;
    families.gauge("catalog_groups", "Groups of the cluster.", view.groups().len() as u64)?;
    families.gauge(
        "catalog_drains",
        "Nodes that are to be drained.",
        view.drains().len() as u64,
    )?;
    let version = u64::from(view.settings().cluster_version.get());
    families.gauge("cluster_version", "The version that the cluster is at.", version)
}

fn tier(tier: Tier) -> Labels<'static> {
    vec![("tier", tier.name())]
}

fn write_planner(families: &mut Families<'_>, status: &ExecutorStatus) -> fmt::Result {
    let by_tier = [
        ("planner_moves_ordered", "Moves of leaders that were ordered.", &status.ordered),
        ("planner_moves", "Moves of leaders that ended with the target leading.", &status.moved),
    ];
    for (name, help, counts) in by_tier {
        families.counters(name, help, counts.iter().map(|(of, count)| (tier(*of), *count)))?;
    }
    let failed = status.failed.iter().flat_map(|(of, reasons)| {
        reasons
            .iter()
            .map(|(reason, count)| (vec![("tier", of.name()), ("reason", reason.as_str())], *count))
    });
    families.counters(
        "planner_moves_failed",
        "Moves of leaders that did not take place.",
        failed,
    )?;
    families.counter("planner_rounds", "Passes of the planner.", status.rounds)?;
    families.gauge(
        "planner_held",
        "1: nothing starts for now; `balance status` says why.",
        u64::from(status.hold.is_some()),
    )?;
    families.gauge(
        "planner_stopped",
        "1: the kill switch is set.",
        u64::from(status.stopped.is_some()),
    )?;
    families.gauge(
        "planner_in_flight",
        "Moves of leaders that are under way.",
        status.in_flight,
    )?;
    families.gauge(
        "planner_queued",
        "Moves of leaders that are planned and did not start.",
        status.queued,
    )?;
    families.gauge(
        "planner_troubled_nodes",
        "Nodes that fail so often that they are spared.",
        status.troubled.len() as u64,
    )?;
    let stuck = status.plan.as_ref().map_or(0, |plan| plan.stuck);
    families.gauge("planner_stuck_groups", "Groups that should leave their node and cannot.", stuck)
}

fn write_allocator(families: &mut Families<'_>, status: &AllocatorStatus) -> fmt::Result {
    families.counter("allocator_changes", "Changes of replicas that ended.", status.moved)?;
    families.counter(
        "allocator_refusals",
        "Orders to change replicas that were refused.",
        status.refused,
    )?;
    families.gauge(
        "allocator_gone_nodes",
        "Nodes that do not answer.",
        status.gone.len() as u64,
    )?;
    families.gauge(
        "allocator_moving",
        "Changes of replicas that are under way.",
        status.moving_total,
    )?;
    families.gauge(
        "allocator_waiting",
        "Replicas on nodes that are gone, whose turn is yet to come.",
        status.waiting,
    )?;
    families.gauge("allocator_stuck_groups", "Groups that cannot be repaired.", status.stuck_total)
}

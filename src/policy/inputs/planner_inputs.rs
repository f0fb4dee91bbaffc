//! A planner's knowledge between its passes: the newest report of each node, which processes are
//! alive, and the last known leader of each group. Pure: the driver collects the reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::{GroupId, NodeId};
use shardhost_proto::system as wire;

use super::observe::{Alive, Heard, Sources, observe};
use super::report;
use crate::catalog::{PlannedMoves, PlannerMode, View};
use crate::executor::{ExecutorStatus, Hold, Mode, Observation, Stop, StopScope};

/// When nothing is reported anew, and the last plan moved nothing, a round is planned this often.
const QUIET_ROUNDS: u32 = 10;

/// What was gathered for a round.
#[derive(Debug)]
pub struct Gathered {
    /// The catalog that lists the nodes to ask.
    pub view: Arc<View>,
    /// When the nodes were asked, on the planner's clock.
    pub asked_ms: u64,
    /// Of those that answered in time.
    pub reports: Vec<(NodeId, wire::NodeReport)>,
}

/// The knowledge of one planner.
#[derive(Debug, Default)]
pub struct PlannerInputs {
    heard: BTreeMap<NodeId, Heard>,
    alive: BTreeMap<NodeId, Alive>,
    last_leaders: BTreeMap<GroupId, NodeId>,
    /// Rounds in which nothing was new.
    quiet: u32,
    /// The catalog of the last round.
    seen: Option<Arc<View>>,
}

impl PlannerInputs {
    /// The digest of each node's newest report: who has nothing else to say is brief.
    pub fn known_digests(&self) -> BTreeMap<NodeId, u64> {
        self.heard.iter().map(|(node, heard)| (*node, heard.digest)).collect()
    }

    /// Takes over which process of each node the planner's host receives heartbeats from, including
    /// itself.
    pub fn look_who_is_alive(&mut self, live: &BTreeMap<NodeId, u64>, now_ms: u64) {
        self.alive.retain(|node, alive| live.get(node) == Some(&alive.incarnation));
        // Those that are there when the planner begins were there before, as far as it knows.
        let since_ms = if self.seen.is_some() { now_ms } else { 0 };
        for (node, incarnation) in live {
            self.alive.entry(*node).or_insert(Alive { incarnation: *incarnation, since_ms });
        }
    }

    /// Takes over what was gathered.
    pub fn take_in(&mut self, gathered: Gathered) {
        let Gathered { view, asked_ms, reports } = gathered;
        let before = self.heard.len();
        self.heard.retain(|node, _| view.nodes().contains_key(node));
        let mut news = self.heard.len() != before;
        for (node, report) in reports {
            news |= self.take(node, asked_ms, report);
        }
        let same = self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &view));
        self.quiet = if news || !same { 0 } else { self.quiet + 1 };
        self.last_leaders.retain(|group, _| view.groups().contains_key(group));
        self.seen = Some(view);
    }

    /// Takes over a report; returns whether it differs from the one before.
    fn take(&mut self, node: NodeId, asked_ms: u64, mut report: wire::NodeReport) -> bool {
        let handed = std::mem::take(&mut report.handed);
        let moved = handed
            .into_iter()
            .map(|one| (GroupId::new(one.group), asked_ms.saturating_sub(one.ago_ms)))
            .collect();
        let (digest, unchanged) = (report.digest, report.unchanged);
        if unchanged {
            if let Some(heard) = self.heard.get_mut(&node) {
                (heard.asked_ms, heard.moved) = (asked_ms, moved);
            }
            return false;
        }
        match report::read(report) {
            Ok(reported) => {
                let reported = Arc::new(reported);
                self.heard.insert(node, Heard { asked_ms, digest, reported, moved });
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a report is left out");
                false
            }
        }
    }

    /// Whether a round would come to what the last one came to, and may be left out.
    pub fn rest(&self, status: &ExecutorStatus) -> bool {
        !self.quiet.is_multiple_of(QUIET_ROUNDS) && is_idle(status)
    }

    /// All of it, for a round. `None`: nothing was gathered yet.
    pub fn observation(
        &mut self,
        now_ms: u64,
        (mode, stopped): (Mode, Option<Stop>),
    ) -> Option<Observation> {
        let Self { heard, alive, last_leaders, seen, .. } = self;
        let snapshot = observe(Sources { view: seen.as_ref()?, heard, alive, last_leaders });
        for group in &snapshot.groups {
            if let Some(leader) = group.leader {
                last_leaders.insert(group.id, leader);
            }
        }
        let reported_ms = heard.iter().map(|(node, heard)| (*node, heard.asked_ms)).collect();
        Some(Observation { now_ms, mode, stopped, snapshot, reported_ms })
    }
}

/// Whether nothing is under way, waits, or would move.
fn is_idle(status: &ExecutorStatus) -> bool {
    let planned = status.plan.as_ref().map_or(1, |plan| plan.moves + plan.deferred);
    // A plan that moves nothing may be old.
    let held = !matches!(status.hold, None | Some(Hold::PlanTooOld { .. } | Hold::Shadow));
    status.in_flight + status.unconfirmed + status.queued + status.back_offs + planned == 0 && !held
}

/// The catalog's setting for planned moves, and the local switch of the planner's host.
pub fn controls(view: &View, local: Option<Stop>) -> (Mode, Option<Stop>) {
    let settings = view.settings();
    let mode = match settings.mode {
        PlannerMode::Off => Mode::Off,
        PlannerMode::Shadow => Mode::Shadow,
        PlannerMode::On => Mode::On,
    };
    let cluster = (settings.moves == PlannedMoves::Stopped)
        .then(|| Stop { scope: StopScope::Cluster, reason: settings.reason.to_string() });
    (mode, cluster.or(local))
}

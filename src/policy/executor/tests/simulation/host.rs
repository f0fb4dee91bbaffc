//! One host: what it is, what it advertises, and what it remembers of planners.

use std::collections::BTreeSet;

use shardhost_storage::NodeId;

use super::super::super::{Fence, PlannerTerm};
use crate::planner::Node;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// It never answers the question before a transfer, knows no orders and advertises nothing.
    Old,
    Current,
}

#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) id: NodeId,
    pub(super) up: bool,
    pub(super) incarnation: u64,
    pub(super) since_ms: u64,
    /// Until then it takes orders and answers nothing.
    pub(super) hung_until_ms: u64,
    /// While it hangs it reports all the same.
    pub(super) hangs_in_part: bool,
    /// Until then its replicas lack entries.
    pub(super) lags_until_ms: u64,
    pub(super) version: Version,
    pub(super) draining: bool,
    pub(super) capabilities: BTreeSet<String>,
    pub(super) fence: Fence,
    /// What the checks know of what it received.
    pub(super) heard: PlannerTerm,
    pub(super) stopped: bool,
    /// When there was last something that others learn of it.
    pub(super) news_at_ms: u64,
}

/// Entries that a lagging replica lacks.
pub(super) const LAG: u64 = 50_000;

impl Host {
    pub(super) fn new(id: u64, capabilities: BTreeSet<String>) -> Self {
        Self {
            id: NodeId::must(id),
            up: true,
            incarnation: 1,
            since_ms: 0,
            hung_until_ms: 0,
            hangs_in_part: false,
            lags_until_ms: 0,
            version: Version::Current,
            draining: false,
            capabilities,
            fence: Fence::default(),
            heard: PlannerTerm::default(),
            stopped: false,
            news_at_ms: 0,
        }
    }

    pub(super) const fn answers(&self, now: u64) -> bool {
        self.up && self.hung_until_ms <= now
    }

    pub(super) const fn reports(&self, now: u64) -> bool {
        self.up && (self.hangs_in_part || self.answers(now))
    }

    pub(super) const fn lag(&self, now: u64) -> u64 {
        if self.lags_until_ms > now { LAG } else { 0 }
    }

    pub(super) fn has(&self, required: &BTreeSet<String>) -> bool {
        match self.version {
            Version::Old => required.is_empty(),
            Version::Current => required.is_subset(&self.capabilities),
        }
    }

    /// Whether it would agree to lead, and can be asked.
    pub(super) fn takes(&self, required: &BTreeSet<String>, now: u64) -> bool {
        let asked = self.answers(now) && self.version == Version::Current;
        asked && !self.draining && self.has(required) && self.lag(now) == 0
    }

    /// It begins another life, which remembers no planner.
    pub(super) fn restart(&mut self, version: Version, now: u64) {
        self.up = true;
        self.incarnation += 1;
        self.since_ms = now;
        self.hung_until_ms = 0;
        self.version = version;
        self.fence = Fence::default();
        self.heard = PlannerTerm::default();
        self.stopped = false;
        self.news_at_ms = now;
    }

    /// As other hosts see it.
    pub(super) fn seen(&self) -> Node {
        let advertised = (self.version == Version::Current).then(|| self.capabilities.clone());
        Node {
            id: self.id,
            weight: 1,
            zone: format!("zone-{}", self.id.get() % 3),
            capabilities: advertised,
            draining: self.draining,
            fit: true,
            live: self.up,
            incarnation: self.incarnation,
            live_since_ms: self.since_ms,
        }
    }
}

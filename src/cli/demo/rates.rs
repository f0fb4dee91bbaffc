//! The rates of each host during the load, from its own statistics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_proto::admin::HostStatus;

use crate::observe::Observer;

const INTERVAL: Duration = Duration::from_millis(250);

/// What one host did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NodeRate {
    /// Writes that it acknowledged as leader, over all its lives.
    pub acknowledged: u64,
    pub most_leaders: u64,
    /// Writes per second at its busiest, over some seconds, with their latencies there.
    pub ops_per_second: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    life: (u64, u64),
}

impl NodeRate {
    fn note(&mut self, status: &HostStatus) {
        let (incarnation, counted) = self.life;
        let before = if incarnation == status.incarnation { counted } else { 0 };
        self.acknowledged += status.proposals.saturating_sub(before);
        self.life = (status.incarnation, status.proposals);
        self.most_leaders = self.most_leaders.max(status.leaders);
        if status.ops_per_second >= self.ops_per_second {
            self.ops_per_second = status.ops_per_second;
            self.p50_us = status.p50_us;
            self.p99_us = status.p99_us;
        }
    }
}

/// What all hosts did.
#[derive(Debug)]
pub struct Rates {
    nodes: Mutex<BTreeMap<u64, NodeRate>>,
    began: Instant,
    ended: Mutex<Option<Instant>>,
}

impl Rates {
    /// Counts from here.
    pub fn new() -> Self {
        Self { nodes: Mutex::default(), began: Instant::now(), ended: Mutex::default() }
    }

    /// Looks until it is dropped.
    pub async fn watch(&self, observer: &Observer) {
        loop {
            self.look(observer).await;
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Looks a last time.
    pub async fn end(&self, observer: &Observer) {
        *self.ended.lock() = Some(Instant::now());
        self.look(observer).await;
    }

    async fn look(&self, observer: &Observer) {
        let statuses = observer.statuses().await;
        let mut nodes = self.nodes.lock();
        for (node, status) in &statuses {
            nodes.entry(*node).or_default().note(status);
        }
    }

    /// How long the load took.
    pub fn took(&self) -> Duration {
        let end = (*self.ended.lock()).unwrap_or_else(Instant::now);
        end.duration_since(self.began)
    }

    /// What a node did.
    pub fn node(&self, node: u64) -> NodeRate {
        self.nodes.lock().get(&node).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(incarnation: u64, proposals: u64, ops_per_second: f64, p99_us: u64) -> HostStatus {
        HostStatus { incarnation, proposals, ops_per_second, p99_us, ..HostStatus::default() }
    }

    #[test]
    fn a_node_that_was_started_again_keeps_what_it_did_before() {
        let mut rate = NodeRate::default();
        for seen in [status(1, 10, 5.0, 7), status(1, 25, 9.0, 8), status(2, 4, 1.0, 99)] {
            rate.note(&seen);
        }
        assert_eq!(rate.acknowledged, 29);
        assert_eq!((rate.ops_per_second, rate.p99_us), (9.0, 8));
    }
}

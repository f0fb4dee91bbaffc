//! The warm-up of an executor, in which it moves nothing: orders of an earlier planner may still be
//! in flight, and not all nodes have reported.

use std::collections::BTreeMap;

use shardhost_storage::NodeId;

use super::hold::Hold;
use super::settings::ExecutorSettings;
use crate::planner::Node;

/// Ends when its time has passed and every live node reported, or after a longer time.
#[derive(Clone, Debug)]
pub(super) struct WarmUp {
    pub(super) began_ms: u64,
    until_ms: u64,
    longest_ms: u64,
    silent: Vec<NodeId>,
    over: bool,
}

impl WarmUp {
    pub(super) const fn new(began_ms: u64, settings: &ExecutorSettings) -> Self {
        Self {
            began_ms,
            until_ms: began_ms.saturating_add(settings.warm_up_ms),
            longest_ms: began_ms.saturating_add(settings.warm_up_longest_ms),
            silent: Vec::new(),
            over: false,
        }
    }

    /// Takes in who reported since the beginning.
    pub(super) fn look(&mut self, nodes: &[Node], reported: &BTreeMap<NodeId, u64>, now_ms: u64) {
        if self.over {
            return;
        }
        let silent =
            |node: &&Node| node.live && reported.get(&node.id).is_none_or(|at| *at < self.began_ms);
        self.silent = nodes.iter().filter(silent).map(|node| node.id).collect();
        let heard = now_ms >= self.until_ms && self.silent.is_empty();
        self.over = heard || now_ms >= self.longest_ms.max(self.until_ms);
    }

    pub(super) fn hold(&self) -> Option<Hold> {
        (!self.over).then(|| Hold::WarmUp {
            until_ms: self.until_ms,
            longest_ms: self.longest_ms,
            silent: self.silent.clone(),
        })
    }
}

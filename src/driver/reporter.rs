//! The reports of this host to the planner.

use std::time::Instant;

use parking_lot::Mutex;
use shardhost_groups::GroupId;
use shardhost_policy::inputs::report::{Memory, Speaker};
use shardhost_proto::system as wire;

use crate::host::Host;

/// Makes the reports of a host.
#[derive(Debug)]
pub(super) struct Reporter {
    host: Host,
    memory: Mutex<Memory>,
}

impl Reporter {
    pub(super) fn new(host: &Host) -> Self {
        Self { host: host.clone(), memory: Mutex::default() }
    }

    /// A leadership was moved away from here by order. It is reported to the planner's successor,
    /// so that the group gets its rest.
    pub(super) fn note_moved(&self, group: GroupId) {
        self.memory.lock().note_moved(group, Instant::now());
    }

    /// The groups that this host leads; short when they equal the last report.
    pub(super) fn report(&self, known_digest: u64, stopped: bool) -> wire::NodeReport {
        let speaker = Speaker {
            node: self.host.node_id(),
            incarnation: self.host.incarnation(),
            advertisement: self.host.advertisement(),
            stopped,
        };
        let statuses = self.host.groups().into_iter().map(|group| group.status());
        self.memory.lock().report(speaker, statuses, known_digest, Instant::now())
    }
}

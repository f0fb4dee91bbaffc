//! All families of a host, in order.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shardhost::host::Host;
use shardhost_groups::{Group, GroupStatus};

use super::families::{Families, Labels};
use super::{groups, leadership, log, process, snapshots, transport};

/// What a host counts, as it is when it is asked for.
#[derive(Debug)]
pub struct HostMetrics {
    host: Host,
    started: SystemTime,
}

impl HostMetrics {
    /// Of this host, which is taken to have started now.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self { host, started: SystemTime::now() }
    }

    fn write_itself(&self, families: &mut Families<'_>) -> fmt::Result {
        let (node, version) = (self.host.node_id().to_string(), env!("CARGO_PKG_VERSION"));
        let labels: Labels<'_> =
            vec![("cluster", &self.host.config().cluster), ("node", &node), ("version", version)];
        families.gauges("build_info", "The node and its program; always 1.", [(labels, 1.0)])?;
        let serving = u64::from(self.host.is_serving());
        families.gauge("host_serving", "1: nothing keeps the host from going on.", serving)?;
        let impaired = u64::from(self.host.impairment().borrow().is_some());
        families.gauge(
            "host_impaired",
            "1: something is wrong with the node, and it hands its leaderships on; `status` says what.",
            impaired,
        )?;
        let draining = u64::from(self.host.advertisement().draining);
        families.gauge(
            "host_draining",
            "1: the node hands its leaderships on, as ordered.",
            draining,
        )?;
        let waits = u64::from(self.host.founding_waits_for().is_some());
        families.gauge(
            "founding_waiting",
            "1: the cluster is not founded, for a founder is missing.",
            waits,
        )?;
        let rolled_back = u64::from(self.host.rollback().is_some());
        families.gauge(
            "data_rolled_back",
            "1: a peer knows a later start of this node than its data directory.",
            rolled_back,
        )?;
        let Some(ends) = self.certificate_ends() else { return Ok(()) };
        let ends = [(Labels::new(), ends)];
        families.gauges(
            "certificate_expiry_timestamp_seconds",
            "When the certificate of the node ends, in Unix seconds.",
            ends,
        )
    }

    fn certificate_ends(&self) -> Option<f64> {
        let facts = self.host.config().credentials.as_ref()?.facts()?;
        let ends = facts.not_after.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(ends.as_secs_f64())
    }
}

impl Collector for HostMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        let families = &mut families;
        let stats = self.host.stats();
        let statuses: Vec<Arc<GroupStatus>> =
            self.host.groups().iter().map(Group::status).collect();
        self.write_itself(families)?;
        groups::write(families, &self.host, &stats, &statuses)?;
        leadership::write(families, &self.host, &stats.workers.policy)?;
        log::write(families, &self.host, &stats)?;
        let transport = self.host.transport_stats();
        snapshots::write(families, &stats, &transport)?;
        transport::write(families, &self.host, &transport)?;
        families.common(|families| process::write(families, self.started))
    }
}

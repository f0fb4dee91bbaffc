//! The cluster that a script begins with.

use shardhost_groups::config::GroupsConfig;
use shardhost_groups::known_bugs::KnownBugs;
use shardhost_groups::storage::Member;
use shardhost_groups::{Membership, NodeId};

use crate::commands::arguments::Arguments;
use crate::world::Cluster;

/// A cluster of members and spare nodes, all of them running.
pub fn create(arguments: &mut Arguments<'_>, bugs: KnownBugs) -> Result<Cluster, String> {
    let nodes: Option<u64> = arguments.maybe("nodes")?;
    let mut voters = arguments.nodes("voters")?;
    voters.extend((1..=nodes.unwrap_or(0)).filter_map(NodeId::new));
    let learners = arguments.nodes("learners")?;
    let mut membership = Membership::initial(voters.iter().chain(&learners).copied());
    for member in membership.members.values_mut() {
        if learners.contains(&member.node) {
            *member = Member::learner(member.node);
        }
    }
    let spare = arguments.nodes("spare")?;
    let groups = arguments.maybe("groups")?.unwrap_or(1);
    let keeps = arguments.flag("keeps")?;
    let mut config = config(arguments)?;
    config.bugs = bugs;
    let mut cluster = Cluster::new(config, &membership, &spare, keeps);
    cluster.create(groups, &membership)?;
    cluster.take_trace();
    Ok(cluster)
}

/// Settings; the defaults are such that nothing happens unasked.
fn config(arguments: &mut Arguments<'_>) -> Result<GroupsConfig, String> {
    let mut config = GroupsConfig::new(NodeId::must(1));
    config.hibernate_after_ticks = arguments.maybe("hibernate")?.unwrap_or(0);
    let freeze: u32 = arguments.maybe("freeze")?.unwrap_or(10);
    config.freeze_timeout = config.tick * freeze;
    config.consistency_ticks = arguments.maybe("check")?.unwrap_or(0);
    config.seed = arguments.maybe("seed")?.unwrap_or(0);
    config.log_trail_entries = arguments.maybe("trail")?.unwrap_or(config.log_trail_entries);
    config.log_keep_entries = arguments.maybe("keep-log")?.unwrap_or(config.log_keep_entries);
    config.snapshot_entries = arguments.maybe("snapshot-every")?.unwrap_or(config.snapshot_entries);
    config.max_append_bytes = arguments.maybe("append-bytes")?.unwrap_or(config.max_append_bytes);
    config.max_inflight_appends =
        arguments.maybe("inflight")?.unwrap_or(config.max_inflight_appends);
    config.max_apply_bytes_per_group =
        arguments.maybe("apply-bytes")?.unwrap_or(config.max_apply_bytes_per_group);
    Ok(config)
}

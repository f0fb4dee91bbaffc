//! What the hosts say of their groups, asked from outside as an operator would.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::join_all;
use shardhost::proto::admin::admin_client::AdminClient;
use shardhost::proto::admin::{
    ChecksumReply, ChecksumRequest, GroupStatus, HostStatus, ListGroupsRequest, StatusRequest,
};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use crate::cli::target::admin;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Where a group is led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    pub node: u64,
    pub term: u64,
    pub committed: u64,
}

/// Asks the hosts.
#[derive(Clone, Debug)]
pub struct Observer {
    channels: BTreeMap<u64, AdminClient<Channel>>,
    groups: usize,
}

impl Observer {
    /// An observer of the hosts at these addresses, with so many groups.
    pub fn new(addresses: &BTreeMap<u64, String>, groups: u64) -> anyhow::Result<Self> {
        let open = |(node, address): (&u64, &String)| anyhow::Ok((*node, admin(address)?));
        let channels = addresses.iter().map(open).collect::<anyhow::Result<_>>()?;
        Ok(Self { channels, groups: usize::try_from(groups).context("too many groups")? })
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = u64> + '_ {
        self.channels.keys().copied()
    }

    /// The groups of a node; `None` when it does not answer.
    pub async fn groups(&self, node: u64) -> Option<Vec<GroupStatus>> {
        let mut admin = self.channels.get(&node)?.clone();
        let answer = timeout(ANSWER_TIMEOUT, admin.list_groups(ListGroupsRequest {})).await;
        Some(answer.ok()?.ok()?.into_inner().groups)
    }

    /// What each node says of itself; those that do not answer are left out.
    pub async fn statuses(&self) -> BTreeMap<u64, HostStatus> {
        let ask = |(node, admin): (&u64, &AdminClient<Channel>)| {
            let (node, mut admin) = (*node, admin.clone());
            async move {
                let answer = timeout(ANSWER_TIMEOUT, admin.status(StatusRequest {})).await;
                Some((node, answer.ok()?.ok()?.into_inner()))
            }
        };
        join_all(self.channels.iter().map(ask)).await.into_iter().flatten().collect()
    }

    /// Where the groups are led, as far as the leaders among `nodes` say.
    pub async fn leaders(&self, nodes: &[u64]) -> BTreeMap<u64, Leader> {
        let mut leaders: BTreeMap<u64, Leader> = BTreeMap::new();
        for (node, groups) in
            nodes.iter().zip(join_all(nodes.iter().map(|n| self.groups(*n))).await)
        {
            for group in groups.into_iter().flatten().filter(|group| group.role == "leader") {
                let leader = Leader { node: *node, term: group.term, committed: group.committed };
                let known = leaders.entry(group.group).or_insert(leader);
                // A leader that was cut off may not know yet that there is another.
                if known.term < leader.term {
                    *known = leader;
                }
            }
        }
        leaders
    }

    /// Waits until one of `nodes` leads each group.
    pub async fn await_led(
        &self,
        nodes: &[u64],
        within: Duration,
    ) -> anyhow::Result<BTreeMap<u64, Leader>> {
        let deadline = Instant::now() + within;
        loop {
            let leaders = self.leaders(nodes).await;
            if leaders.len() == self.groups {
                return Ok(leaders);
            }
            if Instant::now() > deadline {
                bail!("{} of {} groups are led after {within:?}", leaders.len(), self.groups);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until `node` has applied everything that its groups' leaders have committed.
    pub async fn await_caught_up(&self, node: u64, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let nodes: Vec<u64> = self.nodes().collect();
        loop {
            let leaders = self.leaders(&nodes).await;
            let groups = self.groups(node).await.unwrap_or_default();
            let behind = groups.iter().filter(|group| {
                leaders.get(&group.group).is_none_or(|leader| group.applied < leader.committed)
            });
            let behind = behind.count();
            if behind == 0 && groups.len() == self.groups {
                return Ok(());
            }
            if Instant::now() > deadline {
                let (held, all) = (groups.len(), self.groups);
                bail!("node {node} has {held} of {all} groups, {behind} behind, after {within:?}");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The checksum of a replica that has applied `min_applied`.
    pub async fn checksum(
        &self,
        node: u64,
        group: u64,
        min_applied: u64,
    ) -> anyhow::Result<ChecksumReply> {
        let mut admin = self.channels.get(&node).context("there is no such node")?.clone();
        let reply = admin.checksum(ChecksumRequest { group, min_applied, timeout_ms: 0 }).await;
        let reply = reply.with_context(|| format!("checksum of group {group} on node {node}"))?;
        Ok(reply.into_inner())
    }
}

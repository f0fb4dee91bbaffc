//! The nodes of a cluster that answered, and a change of one group's members that is continued step
//! by step, whichever node leads meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use shardhost_proto::admin::{GroupStatus, TransferLeaderToFitRequest};
use tokio::time::Instant;

use super::ended::partly;
use super::group::role_of;
use super::target::{Node, Target, said};

/// Between two looks at a change.
const LOOK: Duration = Duration::from_millis(50);
/// How long one request may take, in milliseconds.
pub const REQUEST_MS: u64 = 5_000;
/// Entries that a successor may lack.
const MAX_LAG: u64 = 1_024;

/// The nodes that answered, and which did not.
pub struct Reached {
    nodes: BTreeMap<u64, Node>,
    silent: BTreeMap<u64, String>,
}

impl Reached {
    /// Asks every node that the first one knows.
    pub async fn all(target: &Target) -> anyhow::Result<Self> {
        let first = target.node().await?;
        let mut nodes = BTreeMap::new();
        let addresses = first.all_addresses();
        let asked = addresses.iter().map(|address| Node::connect(address));
        for one in futures::future::join_all(asked).await.into_iter().flatten() {
            nodes.insert(one.status.node, one);
        }
        let known = first.status.peers.iter().map(|peer| (peer.node, peer.address.clone()));
        let silent = known.filter(|(node, _)| !nodes.contains_key(node)).collect();
        Ok(Self { nodes, silent })
    }

    /// Where those are expected that did not answer, by number.
    pub const fn silent(&self) -> &BTreeMap<u64, String> {
        &self.silent
    }

    /// By number.
    pub const fn nodes(&self) -> &BTreeMap<u64, Node> {
        &self.nodes
    }

    /// Fails when a node does not answer that is to get replicas.
    pub fn require(&self, node: u64) -> anyhow::Result<()> {
        if self.nodes.contains_key(&node) {
            return Ok(());
        }
        let asked = self.nodes.values().next().map_or("", |one| one.address.as_str());
        bail!(
            "node {node} does not answer, or is unknown at {asked}; start it, with the addresses of \
             all nodes in its configuration, and name it in theirs"
        )
    }

    /// Asks the leader of a group repeatedly for the next step, until there is none. Another change
    /// may be in progress and another node lead by then, so a refusal is not the end.
    pub async fn carry_on(
        &self,
        group: u64,
        within: Duration,
        next: impl AsyncFn(&Node, &GroupStatus) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let is_over = || Instant::now() > deadline;
        let carried = self.carry_on_until(group, is_over, next).await;
        carried.map_err(|error| error.context(format!("not in its place after {within:?}")))
    }

    /// The same until `is_over`.
    pub async fn carry_on_until(
        &self,
        group: u64,
        is_over: impl Fn() -> bool,
        next: impl AsyncFn(&Node, &GroupStatus) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut refused = None;
        loop {
            let done = match self.leader_of(group).await {
                Ok((leader, status)) => next(leader, &status).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => refused = Some(error),
            }
            if is_over() {
                return Err(refused.unwrap_or_else(|| partly("it catches up")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn leader_of(&self, group: u64) -> anyhow::Result<(&Node, GroupStatus)> {
        let mut unreachable = None;
        for node in self.nodes.values() {
            match node.group(group).await {
                Ok(status) if status.role == "leader" => return Ok((node, status)),
                Ok(status) => {
                    if let Some(leader) = self.nodes.get(&status.leader_node)
                        && let Ok(status) = leader.group(group).await
                        && status.role == "leader"
                    {
                        return Ok((leader, status));
                    }
                }
                Err(error) => unreachable = Some(error),
            }
        }
        Err(unreachable.unwrap_or_else(|| anyhow::anyhow!("group {group} has no leader")))
    }
}

/// A leader that is to be removed transfers first, so that no election is needed.
pub async fn hand_over(leader: &Node, group: u64, status: &GroupStatus) -> anyhow::Result<()> {
    let members = status.membership.iter().flat_map(|membership| &membership.members);
    let voters = members.filter(|member| role_of(member) == "voter").map(|member| member.node);
    let nodes: Vec<u64> = voters.filter(|node| *node != leader.status.node).collect();
    if nodes.is_empty() {
        bail!("node {} is its only voter; add another first", leader.status.node);
    }
    let request =
        TransferLeaderToFitRequest { group, nodes, max_lag: MAX_LAG, timeout_ms: REQUEST_MS };
    let moved = leader.admin.clone().transfer_leader_to_fit(request).await;
    moved.map(|_| ()).map_err(|status| said(&leader.address, &status))
}

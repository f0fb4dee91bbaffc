//! The nodes of a cluster that answered, and a change of one group's members that is continued step
//! by step, whichever node leads meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;
use futures::future::join_all;
use shardhost_proto::admin::{
    GroupStatus, KnownNode, ListNodesRequest, TransferLeaderToFitRequest,
};
use tokio::time::Instant;

use super::ended::partly;
use super::group_status::role_of;
use super::target::{Node, Target, all_groups, in_time, said};

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
    /// Those that were announced and never came.
    expected: BTreeSet<u64>,
}

impl Reached {
    /// Asks every node that the first one knows.
    pub async fn all(target: &Target) -> anyhow::Result<Self> {
        let first = target.node().await?;
        let mut nodes = BTreeMap::new();
        let addresses = first.all_addresses();
        let asked = addresses.iter().map(|address| Node::connect(address));
        for one in join_all(asked).await.into_iter().flatten() {
            nodes.insert(one.status.node, one);
        }
        let known = first.peers().map(|(node, address)| (node, address.to_owned()));
        let mut silent: BTreeMap<u64, String> =
            known.filter(|(node, _)| !nodes.contains_key(node)).collect();
        let mut expected = BTreeSet::new();
        let of_catalog = nodes.values().find(|one: &&Node| one.status.has_catalog);
        if let Some(asked) = of_catalog.filter(|_| !silent.is_empty()) {
            let mut admin = asked.admin.clone();
            // Where the catalog does not answer, all of them may hold something.
            if let Ok(listed) = in_time(&asked.address, admin.list_nodes(ListNodesRequest {})).await
            {
                expected = never_came(&listed.nodes);
                silent.retain(|node, _| !expected.contains(node));
            }
        }
        Ok(Self { nodes, silent, expected })
    }

    /// Whether the cluster has a node of this number, also if it does not answer.
    pub fn knows(&self, node: u64) -> bool {
        self.nodes.contains_key(&node)
            || self.silent.contains_key(&node)
            || self.expected.contains(&node)
    }

    /// What all nodes say of their groups, and which of them do not answer now, with their addresses.
    pub async fn groups(&self) -> (Vec<GroupStatus>, BTreeMap<u64, String>) {
        let ask = async |(number, node): (&u64, &Node)| {
            let mut admin = node.admin.clone();
            let listed = in_time(&node.address, all_groups(&mut admin)).await;
            (*number, listed.map_err(|_| node.address.clone()))
        };
        let (mut groups, mut silent) = (Vec::new(), BTreeMap::new());
        for (number, answer) in join_all(self.nodes.iter().map(ask)).await {
            match answer {
                Ok(listed) => groups.extend(listed),
                Err(address) => drop(silent.insert(number, address)),
            }
        }
        (groups, silent)
    }

    /// The same where every node must answer.
    pub async fn all_groups(&self) -> anyhow::Result<Vec<GroupStatus>> {
        let (groups, mut silent) = self.groups().await;
        match silent.pop_first() {
            Some((node, address)) => bail!(
                "node {node} ({address}) does not answer, and which groups there are is asked of every node"
            ),
            None => Ok(groups),
        }
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

/// The nodes that were announced, never came, and are members of nothing.
fn never_came(known: &[KnownNode]) -> BTreeSet<u64> {
    let never = known.iter().filter(|node| !node.seen && node.replicas == 0);
    never.map(|node| node.node).collect()
}

/// The other voters of a group.
pub fn successors(status: &GroupStatus, leader: u64) -> Vec<u64> {
    let members = status.membership.iter().flat_map(|membership| &membership.members);
    let voters = members.filter(|member| role_of(member) == "voter").map(|member| member.node);
    voters.filter(|node| *node != leader).collect()
}

/// A leader that is to be removed transfers first, so that no election is needed.
pub async fn hand_over(leader: &Node, group: u64, status: &GroupStatus) -> anyhow::Result<()> {
    let nodes = successors(status, leader.status.node);
    if nodes.is_empty() {
        bail!("node {} is its only voter; add another first", leader.status.node);
    }
    let request =
        TransferLeaderToFitRequest { group, nodes, max_lag: MAX_LAG, timeout_ms: REQUEST_MS };
    let moved = leader.admin.clone().transfer_leader_to_fit(request).await;
    moved.map(|_| ()).map_err(|status| said(&leader.address, &status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_announced_and_never_came_is_not_silent_unless_it_is_a_member() {
        let known =
            |node, seen, replicas| KnownNode { node, seen, replicas, ..KnownNode::default() };
        let known = [known(1, true, 0), known(2, false, 0), known(3, false, 1)];
        assert_eq!(never_came(&known), BTreeSet::from([2]));
    }
}

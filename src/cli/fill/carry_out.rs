//! One replica replaced after the other, whoever leads meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use shardhost::proto::admin::{GroupStatus, ReplaceMemberRequest, TransferLeaderToFitRequest};
use tokio::time::Instant;

use super::choose::Step;
use crate::cli::group::role_of;
use crate::cli::member::Replacing;
use crate::cli::target::{Node, said};

/// Between two looks at a replacement.
const LOOK: Duration = Duration::from_millis(50);
/// How long one request may take.
const REQUEST_MS: u64 = 5_000;
/// Entries that a successor may lack.
const MAX_LAG: u64 = 1_024;

/// The nodes that answered.
pub struct Cluster {
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    /// These nodes.
    pub const fn new(nodes: BTreeMap<u64, Node>) -> Self {
        Self { nodes }
    }

    /// Replaces one member, and waits until that is done.
    pub async fn replace(&self, step: Step, new: u64, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let mut refused = None;
        loop {
            match self.go_on(step, new).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // Another change may be under way, or somebody else lead by now.
                Err(error) => refused = Some(error),
            }
            if Instant::now() > deadline {
                let refused = refused.unwrap_or_else(|| anyhow::anyhow!("it catches up"));
                return Err(refused.context(format!("not in its place after {within:?}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Does what comes next, if anything; says whether it is done.
    async fn go_on(&self, Step { group, old }: Step, new: u64) -> anyhow::Result<bool> {
        let (leader, status) = self.leader_of(group).await?;
        match Replacing::of(&status, old, new) {
            Replacing::Done => return Ok(true),
            Replacing::UnderWay => return Ok(false),
            Replacing::NotBegun => {}
        }
        if leader.status.node == old {
            hand_over(leader, group, &status).await?;
            return Ok(false);
        }
        let request = ReplaceMemberRequest {
            group,
            old_node: old,
            new_node: new,
            expect: None,
            timeout_ms: REQUEST_MS,
        };
        let begun = leader.admin.clone().replace_member(request).await;
        begun.map_err(|status| said(&leader.address, &status))?;
        Ok(false)
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
        Err(unreachable.unwrap_or_else(|| anyhow::anyhow!("nobody leads group {group}")))
    }
}

/// A leader that is to go hands over first, so that nobody has to be elected.
async fn hand_over(leader: &Node, group: u64, status: &GroupStatus) -> anyhow::Result<()> {
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

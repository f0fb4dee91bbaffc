//! The members of a group whose logs an operator changes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use shardhost_proto::log::{Member, MemberRole, Membership};

use super::super::target::Node;
use super::SkipArguments;

/// The nodes that are asked, by number, and whose votes decide.
pub(super) struct Members {
    pub(super) nodes: BTreeMap<u64, Node>,
    /// One set of nodes; two while the members change.
    pub(super) voters: Vec<BTreeSet<u64>>,
}

/// The voters of a configuration, and those of the one before it while it changes.
fn voters_of(membership: &Membership) -> Vec<BTreeSet<u64>> {
    let nodes = |votes: &dyn Fn(&Member) -> bool| -> BTreeSet<u64> {
        membership.members.iter().filter(|member| votes(member)).map(|member| member.node).collect()
    };
    let now = nodes(&|member| member.role() == MemberRole::Voter);
    let before = nodes(&|member| member.outgoing_voter);
    [now, before].into_iter().filter(|voters| !voters.is_empty()).collect()
}

/// The nodes that hold a replica, as the newest configuration says that any node knows. Each of them has
/// to answer.
pub(super) async fn members(arguments: &SkipArguments) -> anyhow::Result<Members> {
    let SkipArguments { group, target, without, .. } = arguments;
    let start = target.node().await?;
    let asked = start.all_addresses().into_iter().map(async |address| {
        let node = Node::connect(&address).await.ok()?;
        let status = node.group(*group).await.ok()?;
        Some((node, status.membership?))
    });
    let answers = futures::future::join_all(asked).await;
    let mut holders: BTreeMap<u64, Node> = BTreeMap::new();
    let mut newest = None::<Membership>;
    for (node, membership) in answers.into_iter().flatten() {
        holders.insert(node.status.node, node);
        if newest.as_ref().is_none_or(|known| known.config_index < membership.config_index) {
            newest = Some(membership);
        }
    }
    let Some(newest) = newest else {
        bail!("no node that answers holds a replica of group {group}")
    };
    let named: BTreeSet<u64> = newest.members.iter().map(|member| member.node).collect();
    for node in without {
        if !named.contains(node) {
            bail!("node {node} holds no replica of group {group}: --without {node} means nothing");
        }
        if holders.contains_key(node) {
            bail!("node {node} answers and holds the command, too: it cannot be left out");
        }
    }
    let mut nodes = BTreeMap::new();
    for number in named.into_iter().filter(|node| !without.contains(node)) {
        let Some(node) = holders.remove(&number) else {
            bail!(
                "node {number} holds a replica and has to skip the command, too, and does not answer; \
                 if it is gone for good, say --without {number}"
            );
        };
        nodes.insert(number, node);
    }
    Ok(Members { nodes, voters: voters_of(&newest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_configurations_of_a_change_have_their_say() {
        let member = |node, role: MemberRole, outgoing_voter| Member {
            node,
            role: role as i32,
            outgoing_voter,
            ..Member::default()
        };
        let members = vec![
            member(1, MemberRole::Voter, true),
            member(2, MemberRole::Voter, false),
            member(3, MemberRole::Learner, true),
            member(4, MemberRole::Learner, false),
        ];
        let voters = voters_of(&Membership { members, ..Membership::default() });
        assert_eq!(voters, [BTreeSet::from([1, 2]), BTreeSet::from([1, 3])]);
    }
}

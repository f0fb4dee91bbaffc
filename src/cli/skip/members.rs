//! The members of a group whose logs an operator changes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use shardhost_proto::log::{Member, MemberRole, Membership};

use super::super::target::Node;
use super::SkipArguments;

/// The nodes that are asked, by number, and whose votes decide.
#[derive(Default)]
pub(super) struct Members {
    pub(super) nodes: BTreeMap<u64, Node>,
    /// Those of them whose replica cannot be opened: they may be left out.
    pub(super) unopenable: BTreeSet<u64>,
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

/// A node that holds a replica.
struct Holder {
    node: Node,
    /// As its replica knows it; `None`: that cannot be read.
    membership: Option<Membership>,
    unopenable: bool,
}

/// A replica of an earlier generation of the group, which was not destroyed on its node.
#[derive(Debug)]
struct Leftover {
    address: String,
    generation: u64,
}

/// Which configuration is the later one: an index counts within its generation.
fn position(membership: &Membership) -> (u64, u64) {
    (generation_of(membership), membership.config_index)
}

fn generation_of(membership: &Membership) -> u64 {
    membership.members.iter().map(|member| member.replica >> 32).max().unwrap_or(0)
}

/// The nodes that hold a replica, as the newest configuration says that any node knows. Each of them has
/// to answer.
pub(super) async fn members(arguments: &SkipArguments) -> anyhow::Result<Members> {
    let SkipArguments { group, target, without, .. } = arguments;
    let start = target.node().await?;
    let asked = start.all_addresses().into_iter().map(async |address| {
        let node = Node::connect(&address).await.ok()?;
        let status = node.group(*group).await.ok()?;
        let number = node.status.node;
        Some((
            number,
            Holder { node, membership: status.membership, unopenable: status.unopenable },
        ))
    });
    let answers = futures::future::join_all(asked).await;
    let mut holders: BTreeMap<u64, Holder> = answers.into_iter().flatten().collect();
    let known = holders.values().filter_map(|holder| holder.membership.as_ref());
    let Some(newest) = known.max_by_key(|known| position(known)).cloned() else {
        bail!("no node that answers holds a replica of group {group}")
    };
    let leftovers = take_leftovers(&mut holders, generation_of(&newest));
    let named: BTreeSet<u64> = newest.members.iter().map(|member| member.node).collect();
    for (node, leftover) in leftovers.iter().filter(|(node, _)| !named.contains(node)) {
        eprintln!("{}", leftover.text(*group, *node));
    }
    for node in without {
        if !named.contains(node) {
            bail!("node {node} holds no replica of group {group}: --without {node} means nothing");
        }
        if holders.get(node).is_some_and(|holder| !holder.unopenable) {
            bail!("node {node} answers and holds the command, too: it cannot be left out");
        }
    }
    let mut found = Members { voters: voters_of(&newest), ..Members::default() };
    for number in named.into_iter().filter(|node| !without.contains(node)) {
        let Some(holder) = holders.remove(&number) else {
            let leftover = leftovers.get(&number).map(|leftover| leftover.text(*group, number));
            bail!(
                "node {number} holds a replica and has to skip the command, too, and does not answer; \
                 if it is gone for good, say --without {number}{}",
                leftover.map(|text| format!(". {text}")).unwrap_or_default()
            );
        };
        if holder.unopenable {
            found.unopenable.insert(number);
        }
        found.nodes.insert(number, holder.node);
    }
    Ok(found)
}

/// Takes those out whose replica is of an earlier generation than this: they are no members.
fn take_leftovers(holders: &mut BTreeMap<u64, Holder>, generation: u64) -> BTreeMap<u64, Leftover> {
    let is_earlier = |holder: &Holder| {
        holder.membership.as_ref().is_some_and(|known| generation_of(known) < generation)
    };
    let earlier: Vec<u64> =
        holders.iter().filter(|(_, holder)| is_earlier(holder)).map(|(node, _)| *node).collect();
    let leftover = |node: u64| {
        let Holder { node: at, membership, .. } = holders.remove(&node)?;
        Some((node, Leftover { address: at.address, generation: generation_of(&membership?) }))
    };
    earlier.into_iter().filter_map(leftover).collect()
}

impl Leftover {
    fn text(&self, group: u64, node: u64) -> String {
        let Self { address, generation } = self;
        format!(
            "node {node} ({address}) still holds a replica of generation {generation} of group {group}, which is \
             over: it is not asked, and is to be destroyed there"
        )
    }
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

    fn of_generation(generation: u64, config_index: u64) -> Membership {
        let member = Member { node: 1, replica: generation << 32 | 1, ..Member::default() };
        Membership { members: vec![member], config_index, ..Membership::default() }
    }

    #[test]
    fn a_configuration_of_a_later_generation_is_newer_whatever_its_index() {
        let (leftover, newest) = (of_generation(0, 900), of_generation(2, 3));
        assert!(position(&newest) > position(&leftover));
        assert!(position(&of_generation(2, 4)) > position(&newest));
    }

    #[test]
    fn a_leftover_is_named() {
        let text = Leftover { address: "host-4:7400".to_owned(), generation: 0 }.text(7, 4);
        assert!(text.contains("node 4 (host-4:7400)") && text.contains("generation 0"), "{text}");
    }
}

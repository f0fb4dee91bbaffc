//! Members of groups that are to be reported to the catalog. Pure.

use std::collections::BTreeSet;

use shardhost_groups::{GroupStatus, NodeId, ReplicaId};

use super::life_of;
use shardhost_policy::catalog::{GroupRecord, Operation, RULES_KNOWN, View};

/// The members to report of a group that is led here, if the catalog's record differs.
pub(super) fn news_of_members(view: &View, status: &GroupStatus) -> Option<Operation> {
    let known = view.groups().get(&status.id)?;
    let generation = life_of(status.replica);
    let leads = status.is_leader() && (status.serving || status.caretaker.is_some());
    // The group that is led here may be of another generation than the catalog's.
    if !leads || generation != known.incarnation {
        return None;
    }
    let members = &status.membership.members;
    let nodes: BTreeSet<NodeId> = members.values().map(|member| member.node).collect();
    let is_first = |(replica, node): &(ReplicaId, NodeId)| is_founding(known, *replica, *node);
    let replicas = members.iter().map(|(replica, member)| (*replica, member.node));
    let founding: BTreeSet<NodeId> = replicas.filter(is_first).map(|(_, node)| node).collect();
    let config_index = status.config_index();
    let reported = known.reported.as_ref();
    let newer = reported.is_none_or(|known| known.config_index < config_index);
    // Programs that know no such reports may run.
    let may_tell = view.settings().cluster_version >= RULES_KNOWN;
    let learners = may_tell.then(|| status.membership.nodes_without_vote());
    let more = reported.is_some_and(|known| {
        let lacks = known.founding.is_none() || known.learners.is_none() && may_tell;
        known.config_index == config_index && lacks
    });
    let told = nodes.iter().eq(known.members())
        && known.founding_members().is_some_and(|known| founding.iter().eq(known))
        && learners
            .as_ref()
            .is_none_or(|told| known.learners().is_some_and(|known| told.iter().eq(known)));
    let (group, founding, generation) = (status.id, Some(founding), Some(generation));
    (!told && (newer || more)).then_some(Operation::RecordMembers {
        group,
        config_index,
        nodes,
        founding,
        learners,
        generation,
    })
}

/// Whether the members of a group that is led here change at the moment.
pub(super) fn is_changing(status: &GroupStatus) -> bool {
    let membership = &status.membership;
    status.is_leader() && (membership.incoming.is_some() || membership.is_joint())
}

/// Whether a member is the one that its node founded the group with. Replica ids are never given
/// out twice, and those of the founders are the first.
fn is_founding(record: &GroupRecord, replica: ReplicaId, node: NodeId) -> bool {
    let place = (replica.get() & u64::from(u32::MAX)).checked_sub(1);
    let founder = place.and_then(|place| record.founders.get(usize::try_from(place).ok()?));
    founder == Some(&node)
}

#[cfg(test)]
mod tests {
    use shardhost_groups::GroupId;

    use super::*;
    use shardhost_policy::catalog::{Catalog, Command, Name, NewGroup, NewNode, Subject};

    #[test]
    fn a_member_is_a_founding_one_by_its_replica() {
        let (mut catalog, group) = (Catalog::default(), GroupId::new(7));
        let nodes = [2, 4, 9].map(NodeId::must);
        let mut apply = |operation| catalog.apply(&Command::new(1, operation)).unwrap();
        for id in nodes {
            let (address, zone) = (format!("10.0.0.{id}:7400"), None);
            apply(Operation::PutNode(NewNode { id, address, zone, weight: 1, store: 1 }));
        }
        let kind = Name::new(Subject::Kind, "table").unwrap();
        let new = NewGroup { incarnation: Some(3), ..NewGroup::new(group, kind, nodes) };
        apply(Operation::CreateGroup(new));
        let record = &catalog.view().groups()[&group];
        // As hosts create them.
        let membership = record.spec().membership;
        for (replica, member) in &membership.members {
            assert!(is_founding(record, *replica, member.node));
        }
        let third = *membership.members.keys().next_back().unwrap();
        assert!(!is_founding(record, third, NodeId::must(2)), "it is another one's");
        let next = ReplicaId::must(third.get() + 1);
        assert!(!is_founding(record, next, NodeId::must(9)), "added again");
    }
}

//! Why a group is led where it is, and whether it serves, as one node knows it.
//!
//! Only puts side by side what the host knows: nothing is decided here.

use std::collections::BTreeMap;

use shardhost_groups::worker::Advert;
use shardhost_groups::{Group, GroupStatus, NodeId, ReplicaId, Requirement};
use shardhost_proto::admin as wire;
use shardhost_proto::admin::voter_fitness::Fitness;

use super::admin::group_status;
use crate::host::Host;

/// What a host knows of one node.
#[derive(Clone, Debug, Default)]
struct NodeFacts {
    live: bool,
    advert: Option<Advert>,
}

/// What a node says of itself, as it travels.
pub(super) fn advert_to_wire(advert: &Advert) -> wire::NodeAdvert {
    wire::NodeAdvert {
        capabilities: advert.capabilities.iter().cloned().collect(),
        draining: advert.draining,
    }
}

/// What this host knows of who leads a group, and who could.
pub(super) fn explanation(host: &Host, group: &Group) -> wire::LeaderExplanation {
    let status = group.status();
    let facts = facts_of_nodes(host);
    let unknown = NodeFacts::default();
    let voters = status.membership.voters().map(|(replica, node)| {
        let facts = facts.get(&node).unwrap_or(&unknown);
        let own = node == host.node_id();
        fitness(&status, replica, node, facts, own)
    });
    wire::LeaderExplanation {
        node: host.node_id().get(),
        incarnation: host.incarnation(),
        voters: voters.collect(),
        status: Some(group_status(group)),
    }
}

fn facts_of_nodes(host: &Host) -> BTreeMap<NodeId, NodeFacts> {
    let peers = host.transport_stats().peers.into_iter();
    let mut facts: BTreeMap<NodeId, NodeFacts> =
        peers.map(|peer| (peer.node, NodeFacts { live: peer.live, advert: peer.advert })).collect();
    facts.insert(host.node_id(), NodeFacts { live: true, advert: Some(host.advert()) });
    facts
}

fn fitness(
    status: &GroupStatus,
    replica: ReplicaId,
    node: NodeId,
    facts: &NodeFacts,
    own: bool,
) -> wire::VoterFitness {
    let progress = status.peers.iter().find(|peer| peer.replica == replica);
    let progress = progress.filter(|_| status.is_leader() && !own);
    let (fitness, lacking) = judged(&status.membership.requirement, facts.advert.as_ref());
    wire::VoterFitness {
        node: node.get(),
        replica: replica.get(),
        live: facts.live,
        advert: facts.advert.as_ref().map(advert_to_wire),
        fitness: fitness.into(),
        lacking,
        lag: progress.map(|peer| status.last.get().saturating_sub(peer.matched.get())),
        installing: progress.is_some_and(|peer| peer.state == "snapshot"),
    }
}

/// What the requirement makes of what a node said, and what the node lacks.
fn judged(requirement: &Requirement, advert: Option<&Advert>) -> (Fitness, Vec<String>) {
    if requirement.is_empty() {
        return (Fitness::Fit, Vec::new());
    }
    let Some(advert) = advert else { return (Fitness::Unknown, Vec::new()) };
    let lacking: Vec<String> = requirement.lacking(&advert.capabilities).cloned().collect();
    let fitness = if lacking.is_empty() { Fitness::Fit } else { Fitness::Unfit };
    (fitness, lacking)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_judged_by_what_it_said() {
        let requirement = Requirement::hard(["fifo", "ssd"]).unwrap();
        let advert = Advert { capabilities: ["ssd".to_owned()].into(), draining: false };
        let lacks = (Fitness::Unfit, vec!["fifo".to_owned()]);
        assert_eq!(judged(&requirement, Some(&advert)), lacks);
        assert_eq!(judged(&requirement, None), (Fitness::Unknown, vec![]));
        assert_eq!(judged(&Requirement::default(), None), (Fitness::Fit, vec![]));
    }
}

//! Why a group is led where it is, and whether it serves, as one node knows it.
//!
//! Only puts side by side what the host knows: nothing is decided here.

use std::collections::BTreeMap;
use std::time::Duration;

use shardhost_groups::core::VoterEligibility;
use shardhost_groups::nodes::Advertisement;
use shardhost_groups::policy::{Opinion, PolicyOpinion};
use shardhost_groups::{Group, GroupStatus, NodeId, ReplicaId, Requirement, RequirementMode};
use shardhost_proto::admin as wire;
use shardhost_proto::admin::voter_fitness::Fitness;

use super::shown::{advertisement_to_wire, group_status};
use shardhost::host::Host;

/// How long a replica may take to say what it makes of who could lead.
const ELIGIBILITY_TIMEOUT: Duration = Duration::from_secs(1);

/// What a host knows of one node.
#[derive(Clone, Debug, Default)]
struct NodeFacts {
    live: bool,
    advertisement: Option<Advertisement>,
}

/// What this host knows of who leads a group, and who could. Of a replica that stopped or hangs
/// only what is known from outside.
pub(super) async fn explanation(host: &Host, group: &Group) -> wire::LeaderExplanation {
    let eligibility = tokio::time::timeout(ELIGIBILITY_TIMEOUT, group.eligibility()).await;
    let eligibility = eligibility.ok().and_then(Result::ok);
    let status = group.status();
    let facts = facts_of_nodes(host);
    let unknown = NodeFacts::default();
    let voters = status.membership.voters().map(|(replica, node)| {
        let facts = facts.get(&node).unwrap_or(&unknown);
        let own = node == host.node_id();
        let mut voter = fitness(&status, replica, node, facts, own);
        let mut known = eligibility.iter().flat_map(|eligibility| &eligibility.voters);
        if let Some(known) = known.find(|known| known.replica == replica) {
            add_opinions(&mut voter, known);
        }
        voter
    });
    let mut explanation = wire::LeaderExplanation {
        node: host.node_id().get(),
        incarnation: host.incarnation(),
        voters: voters.collect(),
        status: Some(group_status(group)),
        ..wire::LeaderExplanation::default()
    };
    if let Some(eligibility) = &eligibility {
        explanation.withheld_ms = eligibility.withheld.map_or(0, millis);
        explanation.passed_timeouts = eligibility.passed_timeouts.into();
        explanation.max_skipped_timeouts = eligibility.max_skipped_timeouts.into();
        explanation.next_try_ms = eligibility.next_try.map(millis);
    }
    explanation
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the policies say of a voter, and what it said itself when it was asked to lead.
fn add_opinions(voter: &mut wire::VoterFitness, known: &VoterEligibility) {
    let strictest = known.opinions.iter().map(|one| one.opinion.clone()).reduce(Opinion::and);
    voter.fitness = strictest.as_ref().map_or(Fitness::Fit, fitness_of).into();
    voter.opinions = known.opinions.iter().map(opinion_to_wire).collect();
    voter.declined = known.declined.as_ref().map(|declined| wire::DeclinedLeadership {
        reason: declined.reason.map_or_else(String::new, |reason| reason.name().to_owned()),
        words: declined.words.to_string(),
    });
}

const fn fitness_of(opinion: &Opinion) -> Fitness {
    match opinion {
        Opinion::Fit => Fitness::Fit,
        Opinion::Unknown => Fitness::Unknown,
        Opinion::Unfit(_) => Fitness::Unfit,
    }
}

fn opinion_to_wire(one: &PolicyOpinion) -> wire::PolicyOpinion {
    let mut said = wire::PolicyOpinion {
        policy: one.policy.to_owned(),
        fitness: fitness_of(&one.opinion).into(),
        ..wire::PolicyOpinion::default()
    };
    if let Opinion::Unfit(unfit) = &one.opinion {
        said.soft = unfit.mode == RequirementMode::Soft;
        said.reason = unfit.reject_reason().name().to_owned();
        said.words = unfit.reason.to_string();
    }
    said
}

fn facts_of_nodes(host: &Host) -> BTreeMap<NodeId, NodeFacts> {
    let peers = host.transport_stats().peers.into_iter();
    let mut facts: BTreeMap<NodeId, NodeFacts> = peers
        .map(|peer| (peer.node, NodeFacts { live: peer.live, advertisement: peer.advertisement }))
        .collect();
    facts.insert(
        host.node_id(),
        NodeFacts { live: true, advertisement: Some(host.advertisement()) },
    );
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
    let (fitness, lacking) = judged(&status.membership.requirement, facts.advertisement.as_ref());
    wire::VoterFitness {
        node: node.get(),
        replica: replica.get(),
        live: facts.live,
        advertisement: facts.advertisement.as_ref().map(advertisement_to_wire),
        fitness: fitness.into(),
        lacking,
        lag: progress.map(|peer| status.last.get().saturating_sub(peer.matched.get())),
        installing: progress.is_some_and(|peer| peer.state == "snapshot"),
        ..wire::VoterFitness::default()
    }
}

/// What the requirement makes of what a node said, and what the node lacks.
fn judged(
    requirement: &Requirement,
    advertisement: Option<&Advertisement>,
) -> (Fitness, Vec<String>) {
    if requirement.is_empty() {
        return (Fitness::Fit, Vec::new());
    }
    let Some(advertisement) = advertisement else { return (Fitness::Unknown, Vec::new()) };
    let lacking: Vec<String> = requirement.lacking(&advertisement.capabilities).cloned().collect();
    let fitness = if lacking.is_empty() { Fitness::Fit } else { Fitness::Unfit };
    (fitness, lacking)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_judged_by_what_it_said() {
        let requirement = Requirement::hard(["fifo", "ssd"]).unwrap();
        let advertisement =
            Advertisement { capabilities: ["ssd".to_owned()].into(), ..Advertisement::default() };
        let lacks = (Fitness::Unfit, vec!["fifo".to_owned()]);
        assert_eq!(judged(&requirement, Some(&advertisement)), lacks);
        assert_eq!(judged(&requirement, None), (Fitness::Unknown, vec![]));
        assert_eq!(judged(&Requirement::default(), None), (Fitness::Fit, vec![]));
    }
}

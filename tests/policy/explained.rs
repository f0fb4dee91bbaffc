//! Why a leadership is where it is and is not moved: one name for a cause, from every component.

use std::time::{Duration, Instant};

use shardhost::driver::view::local_view;
use shardhost::driver::{Drain, DrainOptions, DrainState};
use shardhost::{
    Candidate, Group, GroupId, GroupSelector, Host, LeadershipPolicy, NodeId, Opinion,
    RejectReason, Requirement, RequirementMode, Unfit,
};
use shardhost_policy::planner::{self, Settings};
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::voter_fitness::Fitness;
use shardhost_proto::admin::{
    ChangeRequirementRequest, ExplainLeaderRequest, LeaderExplanation, ReasonCount, StatusRequest,
    VoterFitness,
};
use shardhost_proto::log;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use super::cluster::{Cluster, TIMEOUT, queue, table, transfer};

/// What the planner makes of a node as the target of a group, from what its leader's host knows.
fn predicted(host: &Host, group: GroupId, node: u64) -> Option<RejectReason> {
    let settings = Settings { max_lag_entries: 1_024, warm_up_ms: 0, ..Settings::default() };
    let view = local_view(host, 0, settings);
    let answer = planner::why(&view, &planner::Plan::default(), group).expect("a sound view");
    let voters = answer.expect("a known group").voters;
    let voter = voters.into_iter().find(|voter| voter.node == NodeId::must(node));
    voter.expect("a voter").verdict.reason()
}

/// Waits until planner and gate say the same of a node, which is this.
async fn both_say(cluster: &Cluster, leader: (u64, &Group), node: u64, reason: RejectReason) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let predicted = predicted(cluster.host(leader.0), leader.1.id(), node);
        let gate = leader.1.transfer_leadership(Some(NodeId::must(node))).await;
        let said = gate.expect_err("the gate lets it pass").reason();
        if (predicted, said) == (Some(reason), reason) {
            return;
        }
        assert!(Instant::now() < deadline, "predicted {predicted:?}, the gate says {said:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_planner_predicts_of_a_target_is_what_the_gate_says() {
    let mut cluster = Cluster::start([&["fifo"], &["fifo"], &["fifo"]], 1, &["fifo"]).await;
    cluster.all_have_spoken().await;
    let (node, leader) = cluster.serving(table(0)).await;
    let [other, third] = [[2, 3], [1, 3], [1, 2]][node as usize - 1];
    let leader = (node, &leader);
    cluster.host(other).set_capabilities(["ssd"]).unwrap();
    both_say(&cluster, leader, other, RejectReason::Incapable).await;
    cluster.host(third).set_draining(true);
    both_say(&cluster, leader, third, RejectReason::Draining).await;
    cluster.stop_node(third).await;
    both_say(&cluster, leader, third, RejectReason::NotLive).await;
    cluster.stop().await;
}

async fn admin(cluster: &Cluster, node: u64) -> AdminClient<Channel> {
    AdminClient::connect(format!("http://{}", cluster.servers.addresses[&node])).await.unwrap()
}

async fn explained(cluster: &Cluster, node: u64, group: GroupId) -> LeaderExplanation {
    let request = ExplainLeaderRequest { group: group.get() };
    admin(cluster, node).await.explain_leader(request).await.unwrap().into_inner()
}

/// A node's answer about a group, once it is this.
async fn explained_as(
    cluster: &Cluster,
    node: u64,
    group: GroupId,
    reached: impl Fn(&LeaderExplanation) -> bool,
) -> LeaderExplanation {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let explanation = explained(cluster, node, group).await;
        if reached(&explanation) {
            return explanation;
        }
        assert!(Instant::now() < deadline, "{explanation:#?}");
        tokio::task::yield_now().await;
    }
}

fn voter(explanation: &LeaderExplanation, node: u64) -> &VoterFitness {
    explanation.voters.iter().find(|voter| voter.node == node).expect("a voter")
}

/// Wants no leadership on the node that it runs on, and knows nothing of others.
#[derive(Debug)]
struct NotHere;

impl LeadershipPolicy for NotHere {
    fn name(&self) -> &'static str {
        "not-here"
    }

    fn may_lead(&self, candidate: &Candidate<'_>) -> Opinion {
        if !candidate.is_here {
            return Opinion::Unknown;
        }
        let reason = format!("node {} is busy", candidate.node).into();
        Opinion::Unfit(Unfit { policy: self.name(), mode: RequirementMode::Hard, reason })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policies_say_of_each_voter_and_who_declined_is_explained() {
    let cluster = Cluster::start([&[], &[], &[]], 1, &[]).await;
    let (node, _) = cluster.serving(table(0)).await;
    let others: Vec<u64> = (1..=3).filter(|other| *other != node).collect();
    let mut guards = Vec::new();
    for host in others.iter().chain([&node]) {
        guards.push(cluster.host(*host).register_policy(GroupSelector::All, NotHere));
    }
    let all_declined = |seen: &LeaderExplanation| {
        others.iter().all(|other| voter(seen, *other).declined.is_some())
    };
    let seen = explained_as(&cluster, node, table(0), all_declined).await;

    let own = voter(&seen, node);
    assert_eq!(own.fitness(), Fitness::Unfit);
    let said: Vec<_> = own.opinions.iter().map(|one| (&*one.policy, one.fitness())).collect();
    let (fit, unfit) = (Fitness::Fit, Fitness::Unfit);
    assert_eq!(said, [("capability", fit), ("health", fit), ("not-here", unfit)]);
    let objection = &own.opinions[2];
    assert_eq!(objection.reason, RejectReason::PolicyDeclined.name());
    assert_eq!((&*objection.words, objection.soft), (&*format!("node {node} is busy"), false));
    for other in others {
        let other = voter(&seen, other);
        assert_eq!(other.fitness(), Fitness::Unknown, "its policies are asked there");
        let declined = other.declined.as_ref().unwrap();
        assert_eq!(declined.reason, RejectReason::PolicyDeclined.name(), "{declined:?}");
        assert!(declined.words.contains(&format!("node {} is busy", other.node)), "{declined:?}");
    }
    assert!(seen.next_try_ms.is_some(), "it looks for a successor: {seen:#?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_handed_a_leadership_on_says_how_long_it_does_not_stand() {
    let cluster = Cluster::start([&[], &[], &[]], 1, &[]).await;
    let (first, _) = cluster.serving(table(0)).await;
    assert_eq!(explained(&cluster, first, table(0)).await.withheld_ms, 0);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (node, leader) = cluster.serving(table(0)).await;
        transfer(&leader, if node == 1 { 2 } else { 1 }).await;
        let explanation = explained(&cluster, node, table(0)).await;
        assert!(explanation.withheld_ms <= 2_000, "two election timeouts: {explanation:#?}");
        if explanation.withheld_ms > 0 {
            break;
        }
        // A busy machine may take longer than that to answer.
        assert!(Instant::now() < deadline, "{explanation:#?}");
    }
    cluster.stop().await;
}

fn count_of(counts: &[ReasonCount], reason: RejectReason) -> u64 {
    counts.iter().find(|one| one.reason == reason.name()).map_or(0, |one| one.count)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_transfers_and_refusals_by_reason() {
    let cluster = Cluster::start([&["fifo"], &["fifo"], &[]], 1, &["fifo"]).await;
    cluster.all_have_spoken().await;
    cluster.refusal(table(0), 3).await;
    let (node, leader) = cluster.serving(table(0)).await;
    transfer(&leader, if node == 1 { 2 } else { 1 }).await;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let status = admin(&cluster, node).await.status(StatusRequest {}).await.unwrap();
        let policy = status.into_inner().policy.expect("this version counts");
        let refused = count_of(&policy.transfers_failed, RejectReason::Incapable);
        if refused > 0 && policy.transfers_done > 0 && policy.freezes > 0 {
            assert!(policy.freeze_max_us > 0 && policy.freeze_p50_us <= policy.freeze_max_us);
            break;
        }
        assert!(Instant::now() < deadline, "{policy:#?}");
        tokio::task::yield_now().await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_the_last_capable_node_leaves_its_groups_served() {
    let cluster = Cluster::start([&["fifo"], &[], &[]], 1, &["fifo"]).await;
    cluster.all_have_spoken().await;
    assert_eq!(cluster.serving(table(0)).await.0, 1);
    let patient = DrainOptions::default().deadline(Duration::from_secs(30));
    let drained = Drain::begin(cluster.host(1), patient).finished().await;
    assert_eq!((drained.state, drained.left), (DrainState::Done, 1), "{drained:?}");
    let why = &drained.undrainable[&table(0)];
    let names = [RejectReason::Incapable, RejectReason::NoTarget].map(RejectReason::name);
    assert!(names.iter().any(|name| why.ends_with(&format!("[{name}]"))), "{why}");
    assert_eq!(cluster.serving(table(0)).await.0, 1, "nobody else may serve it");
    assert_ne!(cluster.serving(queue()).await.0, 1, "the rest went");
    cluster.client(TIMEOUT).await.table().put("color", "blue").await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requirement_that_is_no_name_is_refused() {
    let cluster = Cluster::start([&[], &[], &[]], 1, &[]).await;
    let (node, leader) = cluster.serving(table(0)).await;
    let asked = log::Requirement { capabilities: vec!["Fifo!".to_owned()], soft: false };
    let request = ChangeRequirementRequest {
        group: table(0).get(),
        requirement: Some(asked),
        even_if_ineligible: true,
        ..ChangeRequirementRequest::default()
    };
    let refused = admin(&cluster, node).await.change_requirement(request).await.unwrap_err();
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "BAD_CAPABILITY");
    assert!(refused.message().contains("Fifo!"), "{refused}");
    assert_eq!(leader.membership().requirement, Requirement::default());
    cluster.stop().await;
}

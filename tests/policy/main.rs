//! Who may lead, on real hosts and sockets: capabilities, requirements, policies, caretakers.

mod cluster;
mod explained;
#[path = "../support/in_process.rs"]
mod in_process;

use std::time::Duration;

use shardhost::groups::{LeaderHint, MembershipError, ProposalRejection};
use shardhost::{
    Acquisition, Candidate, Caretaker, Decision, GroupSelector, GroupStatus, LeadershipPolicy,
    Opinion, PolicyGuard, ProposeError, Requirement, RequirementMode, Unfit,
};
use shardhost_client::ClientError;
use shardhost_proto::shard_map::TABLE_KIND;

use cluster::{Cluster, TIMEOUT, propose, queue, table, transfer};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lacks_what_a_group_requires_never_serves_it() {
    // Leadership is moved, and nodes restart; node 1 lacks what the tables require.
    let mut cluster = Cluster::start([&[], &["fifo"], &["fifo", "ssd"]], 4, &["fifo"]).await;
    let client = cluster.client(TIMEOUT).await;
    for round in 0..3 {
        cluster.all_have_spoken().await;
        for shard in 0..4 {
            let refused = cluster.refusal(table(shard), 1).await.to_string();
            assert!(refused.contains("node 1 lacks fifo"), "{refused}");
            let (node, group) = cluster.serving(table(shard)).await;
            transfer(&group, if node == 2 { 3 } else { 2 }).await;
            cluster.write(&client, &format!("{round}-{shard}")).await;
        }
        let away = [2, 3, 1][round];
        cluster.stop_node(away).await;
        for shard in 0..4 {
            cluster.write(&client, &format!("{round}-{shard}")).await;
        }
        cluster.start_node(away).await;
    }
    for shard in 0..4 {
        cluster.serving(table(shard)).await;
        assert!(!cluster.has_served(1, table(shard)), "{:?}", cluster.served.lock());
        let refused = propose(&cluster.replica(1, table(shard))).await.unwrap_err();
        assert!(refused.is_definite(), "{refused}");
    }
    // What requires nothing may be led anywhere.
    let (_, group) = cluster.serving(queue()).await;
    transfer(&group, 1).await;
    cluster.replica(1, queue()).wait_for(|status| status.serving, TIMEOUT).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_capable_node_a_caretaker_leads_and_says_why_until_one_returns() {
    let mut cluster = Cluster::start([&[], &[], &["fifo"]], 1, &["fifo"]).await;
    assert_eq!(cluster.serving(table(0)).await.0, 3);
    cluster.client(TIMEOUT).await.table().put("color", "blue").await.unwrap();

    cluster.stop_node(3).await;
    let (node, caretaker) = cluster.caretaking(table(0)).await;
    let lacks = format!("node {node} lacks fifo");
    let why = caretaker.status().caretaker.clone().unwrap();
    assert!(matches!(&*why, Caretaker::Unfit(unfit) if unfit.mode == RequirementMode::Hard));
    assert!(why.to_string().contains(&lacks), "{why}");
    let refused = propose(&caretaker).await.unwrap_err();
    let ProposeError::Rejected { reason: ProposalRejection::NotServing(Some(told)), .. } = &refused
    else {
        panic!("{refused}")
    };
    assert_eq!(told, &why);

    let hasty = cluster.client(Duration::from_secs(2)).await;
    let refused = hasty.table().put("color", "red").await.unwrap_err();
    assert!(matches!(refused, ClientError::Unavailable { .. }), "{refused}");
    assert!(refused.is_definite() && refused.to_string().contains(&lacks), "{refused}");
    let unread = hasty.table().get("color").await.unwrap_err();
    assert!(unread.to_string().contains(&lacks), "{unread}");

    // A patient caller is served as soon as the node is back.
    let patient = cluster.client(TIMEOUT).await;
    let waits = tokio::spawn(async move { patient.table().put("color", "green").await });
    cluster.start_node(3).await;
    assert_eq!(cluster.serving(table(0)).await.0, 3);
    assert!(waits.await.unwrap().unwrap().existed, "what was refused was not written");
    assert!(!cluster.has_served(1, table(0)) && !cluster.has_served(2, table(0)));
    cluster.stop().await;
}

/// Node 1 is kept free of some groups.
#[derive(Debug)]
struct KeepFree;

impl LeadershipPolicy for KeepFree {
    fn name(&self) -> &'static str {
        "keep-free"
    }

    fn may_lead(&self, candidate: &Candidate<'_>) -> Opinion {
        if candidate.node.get() != 1 {
            return Opinion::Fit;
        }
        Opinion::Unfit(Unfit {
            policy: self.name(),
            mode: RequirementMode::Hard,
            reason: format!("node 1 is kept free of {} shards", candidate.kind).into(),
        })
    }
}

/// Declines whatever it acquires.
#[derive(Debug)]
struct DeclineAll;

impl LeadershipPolicy for DeclineAll {
    fn name(&self) -> &'static str {
        "decline-all"
    }

    fn may_lead(&self, _: &Candidate<'_>) -> Opinion {
        Opinion::Unknown
    }

    fn asks_on_acquisition(&self) -> bool {
        true
    }

    fn on_acquired(&self, acquired: &Acquisition) -> Decision {
        Decision::Decline {
            reason: format!("nothing of kind {} here", acquired.kind),
            targets: Vec::new(),
        }
    }
}

fn tables() -> GroupSelector {
    GroupSelector::Label { key: "kind".into(), value: TABLE_KIND.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_keeps_a_node_from_leading_the_groups_of_a_label_and_no_others() {
    let cluster = Cluster::start([&[], &[], &[]], 1, &[]).await;
    for group in [table(0), queue()] {
        let (_, leader) = cluster.serving(group).await;
        transfer(&leader, 1).await;
        cluster.replica(1, group).wait_for(|status| status.serving, TIMEOUT).await.unwrap();
    }
    let guards: Vec<PolicyGuard> =
        cluster.on_every_host(|host| host.register_policy(tables(), KeepFree));
    let here = cluster.replica(1, table(0));
    here.wait_for(|status| !status.serving, TIMEOUT).await.expect("it goes on serving");
    let (node, leader) = cluster.serving(table(0)).await;
    assert_ne!(node, 1);
    let refused = cluster.refusal(table(0), 1).await;
    let told = "node 1 is kept free of table shards (keep-free)";
    assert!(refused.to_string().contains(told), "{refused}");
    assert!(cluster.replica(1, queue()).status().serving, "the queue is not meant");

    drop(guards);
    transfer(&leader, 1).await;
    here.wait_for(|status| status.serving, TIMEOUT).await.expect("nothing is in its way");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_declines_what_was_acquired_hands_it_on_before_it_is_served() {
    let cluster = Cluster::start([&[], &[], &[]], 1, &[]).await;
    let (node, leader) = cluster.serving(table(0)).await;
    let declining = if node == 1 { 2 } else { 1 };
    let _guard = cluster.host(declining).register_policy(tables(), DeclineAll);
    let (before, term) = (cluster.served.lock().len(), leader.status().term);
    transfer(&leader, declining).await;
    let declined = |status: &GroupStatus| {
        let elsewhere = |hint: LeaderHint| hint.node.get() != declining && hint.term > term;
        status.leader.is_some_and(elsewhere)
    };
    let replica = cluster.replica(declining, table(0));
    replica.wait_for(declined, TIMEOUT).await.expect("it keeps what it declined");
    let (served_by, _) = cluster.serving(table(0)).await;
    assert_ne!(served_by, declining);
    let since = cluster.served.lock()[before..].to_vec();
    assert!(!since.contains(&(declining, table(0))), "{since:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requirement_that_nobody_meets_is_refused_unless_it_is_meant() {
    let cluster = Cluster::start([&["ssd"], &["ssd"], &["ssd"]], 1, &[]).await;
    cluster.all_have_spoken().await;
    let (_, leader) = cluster.serving(table(0)).await;
    let fifo = Requirement::hard(["fifo"]).unwrap();
    let refused = leader.require(fifo.clone(), None).await.unwrap_err();
    assert!(matches!(refused, MembershipError::NobodyFit { .. }), "{refused}");
    for node in 1..=3 {
        assert!(refused.to_string().contains(&format!("node {node} lacks fifo")), "{refused}");
    }
    assert!(leader.status().serving && leader.membership().requirement.is_empty());

    let (_, leader) = cluster.serving(table(0)).await;
    leader.require(Requirement::soft(["fifo"]).unwrap(), None).await.unwrap();
    let (_, leader) = cluster.serving(table(0)).await;
    let index = leader.membership().config_index;
    // The change before may still be on its way to the state machine.
    leader.wait_for(|status| status.pending_change.is_none(), TIMEOUT).await.unwrap();
    let stale = leader.require_unchecked(fifo.clone(), Some(index.next())).await.unwrap_err();
    assert!(matches!(stale, MembershipError::WrongConfig { .. }), "{stale}");
    leader.require_unchecked(fifo, Some(index)).await.unwrap();
    let (_, caretaker) = cluster.caretaking(table(0)).await;
    assert!(propose(&caretaker).await.is_err());
    caretaker.wait_for(|status| status.pending_change.is_none(), TIMEOUT).await.unwrap();

    // A caretaker can be repaired.
    caretaker.require(Requirement::default(), None).await.unwrap();
    cluster.serving(table(0)).await;
    cluster.client(TIMEOUT).await.table().put("color", "blue").await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_loses_a_capability_hands_over_and_may_lead_again_when_it_has_it() {
    let cluster = Cluster::start([&["fifo"], &["fifo"], &["fifo"]], 1, &["fifo"]).await;
    cluster.all_have_spoken().await;
    let (node, leader) = cluster.serving(table(0)).await;
    cluster.host(node).set_capabilities(["Fifo"]).unwrap_err();
    assert!(leader.status().serving, "a name that is none changes nothing");

    cluster.host(node).set_capabilities(["ssd"]).unwrap();
    leader.wait_for(|status| !status.serving, TIMEOUT).await.expect("it goes on serving");
    let (next, successor) = cluster.serving(table(0)).await;
    assert_ne!(next, node);
    let before = cluster.served.lock().len();
    let refused = cluster.refusal(table(0), node).await;
    let lacks = format!("node {node} lacks fifo");
    assert!(refused.to_string().contains(&lacks), "{refused}");
    assert!(!cluster.served.lock()[before..].contains(&(node, table(0))));

    cluster.host(node).set_capabilities(["fifo"]).unwrap();
    transfer(&successor, node).await;
    leader.wait_for(|status| status.serving, TIMEOUT).await.expect("it may lead again");
    cluster.stop().await;
}

//! Whole servers whose groups change their members: over gRPC, as operators and programs do it.

#[path = "support/in_process.rs"]
mod in_process;

use std::collections::BTreeMap;
use std::time::Instant;

use in_process::{InProcess, TIMEOUT};

use shardhost::{GroupId, Shutdown};
use shardhost_client::{Client, ClientOptions};
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::admin::membership_step::Kind;
use shardhost_proto::admin::{
    ChangeMembershipRequest, CreateGroupRequest, DestroyGroupRequest, GroupStatus,
    ListSnapshotsRequest, MembershipStep, ReplaceMemberRequest, ShowGroupRequest,
    TakeSnapshotRequest, TransferLeaderRequest, TransferLeaderToFitRequest,
};
use shardhost_server::config::{Planner, ShardCounts};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const TABLE: u64 = 1_000_000;

/// Four servers, of which three hold the shards at first.
struct Cluster(InProcess);

impl Cluster {
    async fn start() -> Self {
        Self::start_with(true).await
    }

    /// Nodes that keep a catalog, or create replicas on request only.
    async fn start_with(catalog: bool) -> Self {
        let servers = InProcess::start(4, move |_, config| {
            config.catalog = catalog;
            // Leaders stay where the tests put them.
            config.planner = Planner::Off;
            let voters = vec![1, 2, 3];
            config.shards = ShardCounts { tables: 1, queues: 1, voters, ..ShardCounts::default() };
        });
        let cluster = Self(servers.await);
        cluster.0.await_shards().await;
        cluster
    }

    async fn stop(&mut self, node: u64) {
        self.0.stop_node(node).await;
    }

    async fn start_again(&mut self, node: u64) {
        self.0.start_node(node).await;
    }

    async fn stop_all(self) {
        self.0.stop().await;
    }

    async fn admin(&self, node: u64) -> AdminClient<Channel> {
        AdminClient::connect(format!("http://{}", self.0.addresses[&node])).await.unwrap()
    }

    async fn show(&self, node: u64, group: u64) -> Option<GroupStatus> {
        let shown = self.admin(node).await.show_group(ShowGroupRequest { group }).await;
        shown.ok().map(tonic::Response::into_inner)
    }

    /// Waits until a running node serves the group, and returns its number and its status.
    async fn leader(&self, group: u64) -> (u64, GroupStatus) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            for node in self.0.running.keys() {
                if let Some(status) = self.show(*node, group).await.filter(|s| s.serving) {
                    return (*node, status);
                }
            }
            assert!(Instant::now() < deadline, "group {group} is not led");
        }
    }

    /// Waits until a node's status of a group is as wanted; `None`: it has no replica.
    async fn until(
        &self,
        node: u64,
        group: u64,
        what: &str,
        reached: impl Fn(Option<&GroupStatus>) -> bool,
    ) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let status = self.show(node, group).await;
            if reached(status.as_ref()) {
                return;
            }
            assert!(Instant::now() < deadline, "node {node}, not in time: {what}: {status:?}");
        }
    }

    async fn client(&self) -> Client {
        // Hosts end while it writes.
        let options = ClientOptions { deadline: TIMEOUT, ..ClientOptions::default() };
        Client::connect(self.0.addresses.values().cloned(), options).await.unwrap()
    }

    async fn change(
        &self,
        steps: &[(Kind, u64)],
        expect: Option<u64>,
    ) -> Result<u64, tonic::Status> {
        let (leader, _) = self.leader(TABLE).await;
        let step = |(kind, node): &(Kind, u64)| MembershipStep {
            kind: (*kind).into(),
            node: *node,
            ..MembershipStep::default()
        };
        let steps = steps.iter().map(step).collect();
        let request = ChangeMembershipRequest { group: TABLE, steps, expect, timeout_ms: 30_000 };
        let changed = self.admin(leader).await.change_membership(request).await?.into_inner();
        Ok(changed.membership.unwrap().config_index)
    }
}

fn nodes(status: &GroupStatus) -> Vec<u64> {
    let mut nodes: Vec<u64> =
        status.membership.as_ref().unwrap().members.iter().map(|member| member.node).collect();
    nodes.sort_unstable();
    nodes
}

fn reason(status: &tonic::Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_a_group_takes_over_and_another_leaves_for_good() {
    let mut cluster = Cluster::start().await;
    let table = cluster.client().await.table();
    table.put("before", "1").await.unwrap();

    let added = cluster.change(&[(Kind::AddVoter, 4)], Some(0)).await.unwrap();
    cluster.until(4, TABLE, "it holds a replica", |s| s.is_some_and(|s| s.applied >= added)).await;
    table.put("between", "2").await.unwrap();
    let removed = cluster.change(&[(Kind::Remove, 1)], Some(added)).await.unwrap();
    cluster.until(1, TABLE, "its replica is gone", |status| status.is_none()).await;
    assert_eq!(table.get("before").await.unwrap(), Some("1".into()));

    // The configuration is that of the last change, also after a restart of all.
    for node in 1..=4 {
        cluster.stop(node).await;
    }
    for node in 1..=4 {
        cluster.start_again(node).await;
    }
    let (_, status) = cluster.leader(TABLE).await;
    assert_eq!(nodes(&status), [2, 3, 4]);
    assert_eq!(status.membership.as_ref().unwrap().config_index, removed);
    assert!(cluster.show(1, TABLE).await.is_none(), "what was moved away does not come back");
    let table = cluster.client().await.table();
    assert_eq!(table.get("between").await.unwrap(), Some("2".into()));

    // The node may return, as another replica.
    cluster.change(&[(Kind::AddLearner, 1)], Some(removed)).await.unwrap();
    cluster.until(1, TABLE, "it is back", |s| s.is_some_and(|s| s.replica == 5)).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_replaced_while_its_group_takes_writes() {
    let mut cluster = Cluster::start().await;
    let table = cluster.client().await.table();
    table.put("key", "1").await.unwrap();
    let (leader, _) = cluster.leader(TABLE).await;
    let victim = leader % 3 + 1;
    cluster.stop(victim).await;
    let request = ReplaceMemberRequest {
        group: TABLE,
        old_node: victim,
        new_node: 4,
        expect: Some(0),
        timeout_ms: 30_000,
    };
    let (leader, _) = cluster.leader(TABLE).await;
    cluster.admin(leader).await.replace_member(request).await.unwrap();
    let twice = cluster.admin(leader).await.replace_member(request).await.unwrap_err();
    let reasons = ["WRONG_CONFIG", "ADDITION_IN_PROGRESS", "CONFIG_CHANGE_PENDING"];
    assert!(reasons.contains(&&*reason(&twice)), "{twice:?}");
    table.put("key", "2").await.unwrap();
    cluster
        .until(4, TABLE, "it has taken the place", |status| {
            status.is_some_and(|s| nodes(s).contains(&4) && !nodes(s).contains(&victim))
        })
        .await;
    // A replica that comes back finds that it was replaced, and ends.
    cluster.start_again(victim).await;
    cluster.until(victim, TABLE, "it ends", |status| status.is_none()).await;
    assert_eq!(table.get("key").await.unwrap(), Some("2".into()));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_a_reason_and_both_sides_and_change_nothing() {
    let cluster = Cluster::start().await;
    let (leader, before) = cluster.leader(TABLE).await;
    let refused = |steps: &'static [(Kind, u64)], expect| {
        let cluster = &cluster;
        async move { cluster.change(steps, expect).await.unwrap_err() }
    };
    let stale = refused(&[(Kind::Remove, 1)], Some(17)).await;
    assert_eq!((stale.code(), &*reason(&stale)), (Code::FailedPrecondition, "WRONG_CONFIG"));
    assert!(stale.message().contains("17") && stale.message().contains('0'), "{stale:?}");
    for (steps, code, expected) in [
        (&[(Kind::AddVoter, 2)][..], Code::AlreadyExists, "ALREADY_MEMBER"),
        (&[(Kind::AddLearner, 2)], Code::FailedPrecondition, "IS_VOTER"),
        (&[(Kind::AddVoter, 9)], Code::PermissionDenied, "REFUSED_BY_HOOK"),
        (&[(Kind::Remove, 4)], Code::NotFound, "NOT_MEMBER"),
        (&[(Kind::Promote, 2)], Code::FailedPrecondition, "NOT_LEARNER"),
        (&[], Code::InvalidArgument, "IMPOSSIBLE"),
        (
            &[(Kind::Remove, 1), (Kind::Remove, 2), (Kind::Remove, 3)],
            Code::FailedPrecondition,
            "LAST_VOTER",
        ),
    ] {
        let error = cluster.change(steps, None).await.unwrap_err();
        assert_eq!((error.code(), &*reason(&error)), (code, expected), "{error:?}");
    }
    let follower = leader % 3 + 1;
    let step = MembershipStep { kind: Kind::Remove.into(), node: 1, ..Default::default() };
    let request = ChangeMembershipRequest { group: TABLE, steps: vec![step], ..Default::default() };
    let error = cluster.admin(follower).await.change_membership(request).await.unwrap_err();
    assert_eq!((error.code(), &*reason(&error)), (Code::Unavailable, "NOT_LEADER"), "{error:?}");
    let details = error.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["leader_node"], leader.to_string());
    assert_eq!(cluster.show(leader, TABLE).await.unwrap().membership, before.membership);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_to_the_first_that_is_fit() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader(TABLE).await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    cluster.stop(others[0]).await;
    let mut admin = cluster.admin(leader).await;
    let fit = |nodes: &[u64]| TransferLeaderToFitRequest {
        group: TABLE,
        nodes: nodes.to_vec(),
        max_lag: 0,
        timeout_ms: 30_000,
    };
    let none = admin.transfer_leader_to_fit(fit(&[])).await.unwrap_err();
    assert_eq!(reason(&none), "NO_CANDIDATES");
    let stranger = admin.transfer_leader_to_fit(fit(&[4])).await.unwrap_err();
    assert_eq!(reason(&stranger), "NOT_VOTER");
    let deadline = Instant::now() + TIMEOUT;
    let moved = loop {
        // The leader notices after a while that the first one is gone.
        match admin.transfer_leader_to_fit(fit(&[4, others[0], others[1]])).await {
            Ok(moved) if moved.get_ref().to_node == others[1] => break moved.into_inner(),
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    };
    assert_eq!(moved.to_node, others[1]);
    let request = TransferLeaderRequest { group: TABLE, to_node: 9, timeout_ms: 1_000 };
    let stranger = cluster.admin(others[1]).await.transfer_leader(request).await.unwrap_err();
    assert_eq!(reason(&stranger), "NOT_VOTER");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_created_destroyed_and_created_anew() {
    let cluster = Cluster::start_with(false).await;
    let create = |incarnation| CreateGroupRequest {
        group: 77,
        kind: "table".to_owned(),
        voters: vec![1, 2, 4],
        incarnation,
        ..CreateGroupRequest::default()
    };
    for incarnation in 0..2 {
        for node in [1, 2, 4] {
            cluster.admin(node).await.create_group(create(incarnation)).await.unwrap();
        }
        let (_, status) = cluster.leader(77).await;
        assert_eq!(nodes(&status), [1, 2, 4]);
        assert_eq!(status.replica >> 32, u64::from(incarnation));
        let twice = cluster.admin(1).await.create_group(create(incarnation)).await.unwrap_err();
        assert_eq!(twice.code(), Code::AlreadyExists);
        let wrong = DestroyGroupRequest { group: 77, expect: Some(5), generation: None };
        let wrong = cluster.admin(1).await.destroy_group(wrong).await.unwrap_err();
        assert_eq!(reason(&wrong), "WRONG_CONFIG");
        for node in [1, 2, 4] {
            let request = DestroyGroupRequest { group: 77, expect: Some(0), generation: None };
            cluster.admin(node).await.destroy_group(request).await.unwrap();
        }
        let again = cluster.admin(1).await.create_group(create(incarnation)).await.unwrap_err();
        assert!(again.message().contains("incarnation"), "{again:?}");
    }
    let mut reserved = create(0);
    reserved.group = TABLE + 1;
    let refused = cluster.admin(1).await.create_group(reserved).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    cluster.stop_all().await;
}

/// A stream follows the group, not the replica that was open when it began.
#[tokio::test(flavor = "multi_thread")]
async fn health_of_a_group_is_told_over_the_end_of_its_replica() {
    let cluster = Cluster::start().await;
    let endpoint = Channel::from_shared(format!("http://{}", cluster.0.addresses[&4])).unwrap();
    let mut health = HealthClient::new(endpoint.connect().await.unwrap());
    let create = CreateGroupRequest {
        group: 77,
        kind: "table".into(),
        voters: vec![4],
        ..CreateGroupRequest::default()
    };
    cluster.admin(4).await.create_group(create.clone()).await.unwrap();
    let service = "group/77".to_owned();
    let mut stream = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    for round in 0..2 {
        let told = async {
            while stream.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
        };
        tokio::time::timeout(TIMEOUT, told).await.expect("it serves");
        if round == 0 {
            let request = DestroyGroupRequest { group: 77, expect: None, generation: None };
            cluster.admin(4).await.destroy_group(request).await.unwrap();
            cluster.admin(4).await.create_group(create.clone()).await.unwrap();
        }
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_and_listed_on_command() {
    let cluster = Cluster::start().await;
    cluster.client().await.table().put("key", "value").await.unwrap();
    let (leader, status) = cluster.leader(TABLE).await;
    let mut admin = cluster.admin(leader).await;
    let request = TakeSnapshotRequest { group: TABLE, timeout_ms: 30_000 };
    let taken = admin.take_snapshot(request).await.unwrap().into_inner().position.unwrap();
    assert!(taken.index >= status.applied && taken.term == status.term, "{taken:?}");
    let listed = admin.list_snapshots(ListSnapshotsRequest { group: TABLE }).await.unwrap();
    assert_eq!(listed.into_inner().positions, [taken]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_of_the_process_and_of_each_group() {
    let mut cluster = Cluster::start().await;
    let (leader, _) = cluster.leader(TABLE).await;
    let name = format!("group/{TABLE}");
    let mut health = BTreeMap::new();
    for (node, address) in &cluster.0.addresses {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        health.insert(*node, HealthClient::new(endpoint.connect().await.unwrap()));
    }
    for (&node, client) in &mut health {
        let service = String::new();
        let process = client.check(HealthCheckRequest { service }).await.unwrap().into_inner();
        assert_eq!(process.status(), ServingStatus::Serving);
        let group = client.check(HealthCheckRequest { service: name.clone() }).await;
        match node {
            4 => assert_eq!(group.unwrap_err().code(), Code::NotFound),
            node => {
                let serves = group.unwrap().into_inner().status() == ServingStatus::Serving;
                assert_eq!(serves, node == leader);
            }
        }
    }
    let watch = |health: &mut BTreeMap<u64, HealthClient<Channel>>, service: String| {
        let mut client = health[&leader].clone();
        async move { client.watch(HealthCheckRequest { service }).await.unwrap().into_inner() }
    };
    let mut process = watch(&mut health, String::new()).await;
    let mut group = watch(&mut health, name).await;
    for stream in [&mut process, &mut group] {
        assert_eq!(stream.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    }
    let server = cluster.0.running.remove(&leader).unwrap();
    assert!(server.host().group(GroupId::new(TABLE)).is_some());
    let stopping = tokio::spawn(server.shutdown(Shutdown::Immediate));
    for stream in [&mut process, &mut group] {
        let told = tokio::time::timeout(TIMEOUT, stream.message()).await.unwrap();
        // A stream that ends with its server has the same status.
        let gone = told.map_or(true, |told| {
            told.is_none_or(|told| told.status() == ServingStatus::NotServing)
        });
        assert!(gone);
    }
    stopping.await.unwrap();
    cluster.stop_all().await;
}

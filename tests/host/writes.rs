//! Proposals and reads, and what stops a group or a host.

use std::sync::Arc;

use shardhost::groups::ProposalRejection;
use shardhost::storage::{LogStore, MemoryStore, StoreFault};
use shardhost::{
    GroupId, GroupSpec, Host, HostConfig, NodeId, ProposeError, ReadError, ReadMode, Role,
    Shutdown, TransferError,
};

use super::{Cluster, List, TIMEOUT, leader_of, nodes};

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_answered_by_the_state_machine_and_seen_by_every_replica() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(4).await;
    for group in 1..=4 {
        let leader = cluster.leader(group).await;
        assert_eq!(leader.propose("one").await.unwrap().response, "1");
        let second = leader.propose("two").await.unwrap();
        assert_eq!(second.response, "2");
        let read = leader.query(ReadMode::Linearizable, "last").await.unwrap();
        assert_eq!(read, "two");
        for replica in cluster.replicas(group) {
            let applied = replica.wait_for(|s| s.applied >= second.index, TIMEOUT).await;
            assert!(applied.is_some());
            assert_eq!(replica.query(ReadMode::Stale, "count").await.unwrap(), "2");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_fell_behind_the_log_catches_up_by_a_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let tune = |config: &mut HostConfig| {
        config.groups.snapshot_entries = 50;
        config.groups.log_trail_entries = 10;
        config.groups.log_keep_entries = 20;
    };
    let mut cluster = Cluster::start(3, directory.path(), tune).await;
    cluster.create(1).await;
    let leader = cluster.leader(1).await;
    let away = cluster
        .hosts
        .iter()
        .position(|host| Some(host.node_id()) != leader.status().leader.map(|hint| hint.node))
        .unwrap();
    let gone = cluster.hosts.remove(away);
    let node = gone.node_id();
    gone.shutdown(Shutdown::Immediate).await;
    // Truncation goes by ticks: how many writes fit before it depends on the machine.
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    let mut wrote = 0;
    while leader.status().first.get() < 100 {
        leader.propose(format!("command {wrote}")).await.unwrap();
        wrote += 1;
        let late = tokio::time::Instant::now() > deadline;
        assert!(!late, "the log is never truncated: {:?}", leader.status());
    }
    let host = Cluster::host(node, directory.path(), &cluster.addresses, None, tune).await;
    let back = host.open_group(GroupId::new(1), List::default()).await.unwrap();
    let written = leader.status().applied;
    back.wait_for(|status| status.applied >= written, TIMEOUT).await.expect("no catch-up");
    assert!(back.status().snapshot.is_some(), "{:?}", back.status());
    let count = back.query(ReadMode::Stale, "count").await.unwrap();
    assert_eq!(count, wrote.to_string());
    host.shutdown(Shutdown::Immediate).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_machine_that_panics_or_fails_stops_its_group_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(3).await;
    for (group, poison) in [(1, "panic"), (2, "fail")] {
        let leader = cluster.leader(group).await;
        let error = leader.propose(poison).await.unwrap_err();
        assert!(matches!(error, ProposeError::Faulted { .. }), "{error}");
        assert!(!error.is_definite());
        assert!(error.to_string().contains("told to"), "{error}");
        let failed = |role: &Role| matches!(role, Role::Failed(_));
        leader.wait_for(|status| failed(&status.role), TIMEOUT).await.expect("it goes on");
        let again = leader.propose("more").await.unwrap_err();
        assert!(again.is_definite() && again.to_string().contains("told to"), "{again}");
        let read = leader.query(ReadMode::Linearizable, "count").await.unwrap_err();
        assert!(matches!(read, ReadError::Faulted { .. }), "{read}");
    }
    let healthy = cluster.leader(3).await;
    assert_eq!(healthy.propose("fine").await.unwrap().response, "1");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_refuses_and_names_the_leader() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(1).await;
    let leader = cluster.leader(1).await;
    let node = leader.status().leader.unwrap().node;
    for replica in cluster.replicas(1) {
        let known = replica.wait_for(|s| s.leader.is_some(), TIMEOUT).await.unwrap();
        if known.is_leader() {
            continue;
        }
        let error = replica.propose("x").await.unwrap_err();
        assert_eq!(error.leader_hint().map(|hint| hint.node), Some(node), "{error}");
        assert!(error.is_definite() && error.is_retryable());
        let read = replica.query(ReadMode::Linearizable, "count").await.unwrap_err();
        assert!(matches!(read, ReadError::NotLeader { .. }), "{read}");
        let moved = replica.transfer_leadership(None).await.unwrap_err();
        assert!(matches!(moved, TransferError::NotLeader { .. }), "{moved}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_break_a_limit_are_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(1, directory.path(), |config| {
        config.groups.max_command_bytes = 1_000;
    })
    .await;
    cluster.create(1).await;
    let leader = cluster.leader(1).await;
    let last = leader.status().last;
    let reason_of = |error: ProposeError| match error {
        ProposeError::Rejected { reason, .. } => reason,
        other => panic!("{other}"),
    };
    let large = leader.propose(vec![b'x'; 1_001]).await.unwrap_err();
    assert_eq!(reason_of(large), ProposalRejection::TooLarge { size: 1_001, limit: 1_000 });
    let empty = leader.propose("").await.unwrap_err();
    assert_eq!(reason_of(empty), ProposalRejection::Empty);
    let term = shardhost::Term::new(99);
    let late = leader.propose("x").in_term(term).await.unwrap_err();
    assert!(matches!(reason_of(late), ProposalRejection::TermMismatch { .. }));
    assert_eq!(leader.status().last, last);
    leader.propose(vec![b'x'; 1_000]).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_fails_stops_the_host_and_acknowledges_nothing_more() {
    let directory = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    let config = HostConfig::new(NodeId::must(1), directory.path());
    let builder = Host::builder(config).log_store(Arc::new(store.clone()) as Arc<dyn LogStore>);
    let host = builder.start().await.unwrap();
    let spec = GroupSpec::new(GroupId::new(1), nodes(1));
    let group = host.create_group(spec, List::default()).await.unwrap();
    let group = leader_of(vec![group]).await;
    group.propose("fine").await.unwrap();
    store.inject(StoreFault::Write);
    let error = group.propose("lost").await.unwrap_err();
    assert!(!error.is_definite(), "{error}");
    let mut health = host.health();
    let failed = tokio::time::timeout(TIMEOUT, health.wait_for(Option::is_some)).await;
    assert!(failed.is_ok(), "the host does not say that it is broken");
    group
        .wait_for(|status| matches!(status.role, Role::Failed(_)), TIMEOUT)
        .await
        .expect("the group goes on");
    assert!(group.propose("more").await.is_err());
    host.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_exist_or_do_not_are_told_apart() {
    use shardhost::groups::OpenGroupError;
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(1, directory.path(), |_| {}).await;
    cluster.create(1).await;
    let host = &cluster.hosts[0];
    let spec = || GroupSpec::new(GroupId::new(1), nodes(1));
    let error = host.create_group(spec(), List::default()).await.unwrap_err();
    assert!(matches!(error, OpenGroupError::AlreadyOpen { .. }), "{error}");
    assert!(host.close_group(GroupId::new(1)).await);
    assert!(!host.close_group(GroupId::new(1)).await);
    let error = host.create_group(spec(), List::default()).await.unwrap_err();
    assert!(matches!(error, OpenGroupError::Exists { .. }), "{error}");
    let error = host.open_group(GroupId::new(5), List::default()).await.unwrap_err();
    assert!(matches!(error, OpenGroupError::Unknown { .. }), "{error}");
    host.open_group(GroupId::new(1), List::default()).await.unwrap();
    host.destroy_group(GroupId::new(1)).await.unwrap();
    assert!(host.stored_groups().unwrap().is_empty());
    let error = host.create_group(spec(), List::default()).await.unwrap_err();
    assert!(error.to_string().contains("destroyed here before"), "{error}");
    let strangers = GroupSpec::new(GroupId::new(9), [NodeId::must(4)]);
    let error = host.create_group(strangers, List::default()).await.unwrap_err();
    assert!(matches!(error, OpenGroupError::Invalid { .. }), "{error}");
    cluster.stop().await;
}

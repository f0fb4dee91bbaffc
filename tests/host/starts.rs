//! Hosts that start and stop: on their own disk, a copy, a new one, or that of another node.

use std::path::Path;
use std::time::Duration;

use shardhost::data_dir::DataDir;
use shardhost::storage::{Doubt, LogError};
use shardhost::{
    GroupId, GroupSpec, GroupStatus, Host, HostConfig, NodeId, ReadMode, Shutdown, StartError,
    StateMachine,
};

use super::{Cluster, List, TIMEOUT, eventually, nodes};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(10).await;
    for group in 1..=10 {
        let leader = cluster.leader(group).await;
        for n in 0..20 {
            leader.propose(format!("{group}-{n}")).await.unwrap();
        }
    }
    let addresses = cluster.addresses.clone();
    cluster.stop().await;
    let mut hosts = Vec::new();
    for (node, _) in &addresses {
        let host = Cluster::host(*node, directory.path(), &addresses, None, |_| {}).await;
        for meta in host.stored_groups().unwrap() {
            host.open_group(meta.group, List::default()).await.unwrap();
        }
        hosts.push(host);
    }
    let cluster = Cluster { hosts, addresses };
    for group in 1..=10 {
        let leader = cluster.leader(group).await;
        assert_eq!(leader.query(ReadMode::Linearizable, "count").await.unwrap(), "20");
        let last = leader.query(ReadMode::Linearizable, "last").await.unwrap();
        assert_eq!(last, format!("{group}-19"));
    }
    cluster.stop().await;
}

/// Starts a host again, with every replica that its log holds.
async fn reopen(node: NodeId, directory: &Path, addresses: &[(NodeId, String)]) -> Host {
    let host = Cluster::host(node, directory, addresses, None, |_| {}).await;
    for meta in host.stored_groups().unwrap() {
        host.open_group(meta.group, List::default()).await.unwrap();
    }
    host
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            copy(&file.path(), &target);
        } else {
            std::fs::copy(file.path(), target).unwrap();
        }
    }
}

/// The data directory of node 2 is put back from a copy, and beside it only node 3 is up, which
/// lacks what was acknowledged since. It saw the start of node 2 that the copy does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_that_was_put_back_takes_part_in_no_election() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let cluster = Cluster::start(3, directory, |_| {}).await;
    cluster.create(1).await;
    cluster.leader(1).await.propose("one").await.unwrap();
    let addresses = cluster.addresses.clone();
    cluster.stop().await;
    copy(&directory.join("node-2"), &directory.join("copy"));

    let mut hosts = Vec::new();
    for (node, _) in &addresses {
        hosts.push(reopen(*node, directory, &addresses).await);
    }
    let start = hosts[1].incarnation().to_string();
    let seen = || std::fs::read_to_string(directory.join("node-3/peers")).unwrap_or_default();
    eventually("node 3 saw the start of node 2", || seen().contains(&start)).await;
    hosts[2].shutdown(Shutdown::Immediate).await;
    hosts.truncate(2);
    let cluster = Cluster { hosts, addresses: addresses.clone() };
    cluster.leader(1).await.propose("two").await.unwrap();
    cluster.stop().await;
    std::fs::remove_dir_all(directory.join("node-2")).unwrap();
    std::fs::rename(directory.join("copy"), directory.join("node-2")).unwrap();

    let two = reopen(NodeId::must(2), directory, &addresses).await;
    let three = reopen(NodeId::must(3), directory, &addresses).await;
    eventually("node 2 hears that it was put back", || two.rollback().is_some()).await;
    let replicas = [&two, &three].map(|host| host.group(GroupId::new(1)).unwrap());
    let doubt = replicas[0].wait_for(|status| status.doubt.is_some(), TIMEOUT).await;
    assert_eq!(doubt.unwrap().doubt, Some(Doubt::RolledBack));
    for replica in &replicas {
        let served = replica.wait_for(|status| status.serving, Duration::from_secs(3)).await;
        assert!(served.is_none(), "a leader without what was acknowledged");
    }

    let one = reopen(NodeId::must(1), directory, &addresses).await;
    let cluster = Cluster { hosts: vec![one, two, three], addresses };
    let leader = cluster.leader(1).await;
    assert_eq!(leader.query(ReadMode::Linearizable, "count").await.unwrap(), "2");
    let settled = replicas[0].wait_for(|status| status.doubt.is_none(), TIMEOUT).await;
    assert!(settled.is_some(), "still in doubt");
    cluster.stop().await;
}

/// Node 2 lost its disk. Its new directory was started once when no peer could be reached; then its
/// replica is created anew by hand, and beside it only node 3 is up, which lacks what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_disk_that_was_started_without_peers_is_not_taken_for_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let cluster = Cluster::start(3, directory, |_| {}).await;
    cluster.create(1).await;
    cluster.leader(1).await.propose("one").await.unwrap();
    let start = cluster.hosts[1].incarnation().to_string();
    let seen = || std::fs::read_to_string(directory.join("node-3/peers")).unwrap_or_default();
    eventually("node 3 saw the start of node 2", || seen().contains(&start)).await;
    let addresses = cluster.addresses.clone();
    let Cluster { mut hosts, .. } = cluster;
    hosts.pop().unwrap().shutdown(Shutdown::Immediate).await;
    let cluster = Cluster { hosts, addresses: addresses.clone() };
    cluster.leader(1).await.propose("two").await.unwrap();
    cluster.stop().await;
    std::fs::remove_dir_all(directory.join("node-2")).unwrap();
    drop(DataDir::open(&directory.join("node-2")).unwrap());

    let two = Cluster::host(NodeId::must(2), directory, &addresses, None, |_| {}).await;
    let spec = GroupSpec::new(GroupId::new(1), nodes(3));
    let replica = two.create_group(spec, List::default()).await.unwrap();
    let three = reopen(NodeId::must(3), directory, &addresses).await;
    let doubt = replica.wait_for(|status| status.doubt.is_some(), TIMEOUT).await;
    assert_eq!(doubt.unwrap().doubt, Some(Doubt::RolledBack));
    let behind = three.group(GroupId::new(1)).unwrap();
    let served = behind.wait_for(|status| status.serving, Duration::from_secs(3)).await;
    assert!(served.is_none(), "a leader without what was acknowledged");

    let one = reopen(NodeId::must(1), directory, &addresses).await;
    let cluster = Cluster { hosts: vec![one, two, three], addresses };
    let leader = cluster.leader(1).await;
    assert_eq!(leader.query(ReadMode::Linearizable, "count").await.unwrap(), "2");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_somebody_else_is_refused_with_both_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let config = |node: u64| HostConfig::new(NodeId::must(node), &path);
    let host = Host::start(config(1)).await.unwrap();
    // A log that never held anything belongs to no node.
    let spec = GroupSpec::new(GroupId::new(1), nodes(1));
    host.create_group(spec, List::default()).await.unwrap();
    let busy = Host::start(config(1)).await.unwrap_err();
    assert!(busy.to_string().contains("another process"), "{busy}");
    host.shutdown(Shutdown::Immediate).await;
    let other_node = Host::start(config(2)).await.unwrap_err();
    assert!(matches!(other_node, StartError::Log(LogError::Foreign { .. })), "{other_node}");
    let mut other_cluster = config(1);
    other_cluster.cluster = "elsewhere".to_owned();
    let error = Host::start(other_cluster).await.unwrap_err().to_string();
    assert!(error.contains("elsewhere") && error.contains("shardhost"), "{error}");
    Host::start(config(1)).await.unwrap().shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_of_a_shutdown_waits_for_the_end_and_for_openings_under_way() {
    use shardhost::groups::OpenGroupError;
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(1, directory.path(), |_| {}).await;
    cluster.create(1).await;
    let host = cluster.hosts[0].clone();
    assert!(host.close_group(GroupId::new(1)).await);
    let (enters, entered) = std::sync::mpsc::channel();
    let (let_go, gate) = std::sync::mpsc::channel::<()>();
    let groups = host.runtime().clone();
    let opening = tokio::task::spawn_blocking(move || {
        let machine = move || {
            enters.send(()).map_err(|error| error.to_string())?;
            gate.recv().map_err(|error| error.to_string())?;
            Ok(Box::new(List::default()) as Box<dyn StateMachine>)
        };
        groups.open_with(GroupId::new(1), Box::new(machine))
    });
    entered.recv().unwrap();
    let mut calls: Vec<_> = (0..2)
        .map(|_| {
            let host = host.clone();
            tokio::spawn(async move { host.shutdown(Shutdown::Immediate).await })
        })
        .collect();
    for call in &mut calls {
        let early = tokio::time::timeout(Duration::from_secs(1), call).await;
        assert!(early.is_err(), "it returned while a replica was being opened");
    }
    let busy = Host::start(host.config().clone()).await.unwrap_err();
    assert!(busy.to_string().contains("another process"), "{busy}");
    let_go.send(()).unwrap();
    let opened = opening.await.unwrap();
    assert!(matches!(opened, Err(OpenGroupError::Stopping)), "{opened:?}");
    for call in calls {
        call.await.unwrap();
        let mut config = host.config().clone();
        config.listen.set_port(0);
        Host::start(config).await.unwrap().shutdown(Shutdown::Immediate).await;
    }
}

/// A copy of node 2's directory is started elsewhere, with another log, and ends again. The right
/// node 2 stays up; the others receive it again, and it gives a group its majority.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_comes_and_goes_leaves_the_node_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(1).await;
    cluster.leader(1).await.propose("one").await.unwrap();
    let two = NodeId::must(2);
    let process_of_two = |host: &Host| {
        let peers = host.transport_stats().peers;
        let peer = peers.into_iter().find(|peer| peer.node == two).unwrap();
        (host.hears(two), peer.incarnation)
    };

    let starts = |node: &str| directory.path().join(node).join("incarnation");
    std::fs::create_dir_all(directory.path().join("clone")).unwrap();
    std::fs::copy(starts("node-2"), starts("clone")).unwrap();
    let config = HostConfig::new(two, directory.path().join("clone"));
    let clone = Host::start(config.peers(cluster.addresses.clone())).await.unwrap();
    let later = (true, Some(clone.incarnation()));
    eventually("node 1 hears the clone", || process_of_two(&cluster.hosts[0]) == later).await;
    eventually("node 2 says who refuses it", || {
        let peers = cluster.hosts[1].transport_stats().peers;
        peers.iter().any(|peer| peer.refused_by.is_some())
    })
    .await;
    clone.shutdown(Shutdown::Immediate).await;

    let right = (true, Some(cluster.hosts[1].incarnation()));
    for host in [0, 2] {
        let hears = || process_of_two(&cluster.hosts[host]) == right;
        eventually("the right node 2 is heard again", hears).await;
    }
    // What the clone acknowledged in its name is not there. A leader may count on it, so the end of
    // the doubt is the end of that leadership; another one follows.
    let replica = cluster.hosts[1].group(GroupId::new(1)).unwrap();
    let sure = |status: &GroupStatus| status.doubt.is_none() && status.leader.is_some();
    assert!(replica.wait_for(sure, TIMEOUT).await.is_some(), "{:?}", replica.status());
    cluster.hosts.remove(2).shutdown(Shutdown::Immediate).await;
    let second = cluster.leader(1).await.propose("two").await.unwrap();
    assert_eq!(second.response, "2");
    cluster.stop().await;
}

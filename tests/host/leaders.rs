//! Leaderships: transfers, hooks, and tasks that run while a group is led.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use shardhost::leadership::{HookKind, LeadershipEvent};
use shardhost::{GroupId, GroupSelector, NodeId, TransferError};

use super::{Cluster, TIMEOUT, eventually, nodes};

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_ends_with_the_target_leading_and_bad_targets_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(1).await;
    let leader = cluster.leader(1).await;
    let own = leader.status().leader.unwrap().node;
    let error = leader.transfer_leadership(Some(own)).await.unwrap_err();
    assert!(matches!(error, TransferError::AlreadyLeads { .. }), "{error}");
    let error = leader.transfer_leadership(NodeId::new(99)).await.unwrap_err();
    assert!(matches!(error, TransferError::NoVoter { .. }), "{error}");
    let target = nodes(3).into_iter().find(|node| *node != own).unwrap();
    let moved = leader.transfer_leadership(Some(target)).await.unwrap();
    assert_eq!(moved.to, target);
    let next = cluster.hosts.iter().find(|host| host.node_id() == target).unwrap();
    let next = next.group(GroupId::new(1)).unwrap();
    next.wait_for(|status| status.serving, TIMEOUT).await.expect("the target does not serve");
    next.propose("from the new leader").await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_see_every_edge_in_order_and_a_panic_in_one_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(2).await;
    let mut guards = Vec::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let inline = Arc::new(AtomicU64::new(0));
    for host in &cluster.hosts {
        let one = GroupSelector::One(GroupId::new(1));
        guards.push(host.on_leader_acquired(one.clone(), |_| panic!("a hook that panics")));
        let (node, log) = (host.node_id(), Arc::clone(&seen));
        guards.push(host.on_leadership(one, HookKind::Dispatched, move |event| {
            log.lock().unwrap().push((node, *event));
        }));
        let flips = Arc::clone(&inline);
        let odd = GroupSelector::Label { key: "parity".into(), value: "odd".into() };
        guards.push(host.on_leadership(odd, HookKind::Inline, move |event| {
            if let LeadershipEvent::Ready(_) = event {
                flips.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    let leader = cluster.leader(1).await;
    let from = leader.status().leader.unwrap().node;
    let moved = leader.transfer_leadership(None).await.unwrap();
    let path = |node: NodeId| -> Vec<&'static str> {
        let seen = seen.lock().unwrap();
        let own = seen.iter().filter(|(of, _)| *of == node);
        own.map(|(_, event)| match event {
            LeadershipEvent::Acquired(_) => "acquired",
            LeadershipEvent::Ready(_) => "ready",
            LeadershipEvent::Lost(_) => "lost",
            _ => "unknown",
        })
        .collect()
    };
    eventually("the old leader's edges", || path(from) == ["acquired", "ready", "lost"]).await;
    eventually("the new leader's edges", || path(moved.to) == ["acquired", "ready"]).await;
    assert!(inline.load(Ordering::SeqCst) >= 2);
    assert!(cluster.hosts.iter().map(|host| host.stats().hook_panics).sum::<u64>() >= 1);
    // A late listener gets the present state.
    let late = Arc::new(Mutex::new(Vec::new()));
    let host = cluster.hosts.iter().find(|host| host.node_id() == moved.to).unwrap();
    let log = Arc::clone(&late);
    let guard = host.on_leader_acquired(GroupSelector::One(GroupId::new(1)), move |event| {
        log.lock().unwrap().push(event.term);
    });
    eventually("the replay", || *late.lock().unwrap() == [moved.term]).await;
    drop(guard);
    let again = host.group(GroupId::new(1)).unwrap();
    again.transfer_leadership(Some(from)).await.unwrap();
    eventually("the loss", || path(moved.to) == ["acquired", "ready", "lost"]).await;
    assert_eq!(late.lock().unwrap().len(), 1, "a dropped guard still listens");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaders_task_runs_while_it_leads_and_never_twice() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(3, directory.path(), |_| {}).await;
    cluster.create(1).await;
    let running = Arc::new(AtomicU64::new(0));
    let starts = Arc::new(AtomicU64::new(0));
    let mut guards = Vec::new();
    for host in &cluster.hosts {
        let (running, starts) = (Arc::clone(&running), Arc::clone(&starts));
        guards.push(host.while_leader(GroupSelector::All, move |scope| {
            let (running, starts) = (Arc::clone(&running), Arc::clone(&starts));
            async move {
                running.fetch_add(1, Ordering::SeqCst);
                starts.fetch_add(1, Ordering::SeqCst);
                scope.cancelled.cancelled().await;
                running.fetch_sub(1, Ordering::SeqCst);
            }
        }));
    }
    let leader = cluster.leader(1).await;
    eventually("the first task", || starts.load(Ordering::SeqCst) == 1).await;
    leader.transfer_leadership(None).await.unwrap();
    eventually("the second task", || starts.load(Ordering::SeqCst) == 2).await;
    eventually("the first task's end", || running.load(Ordering::SeqCst) == 1).await;
    for guard in guards {
        guard.stop().await;
    }
    assert_eq!(running.load(Ordering::SeqCst), 0);
    cluster.stop().await;
}

//! Whole hosts in one process, on real sockets and a real log: what users rely on, and what goes
//! wrong around them.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use shardhost::data_dir::DataDir;
use shardhost::groups::ProposalRejection;
use shardhost::leadership::{HookKind, LeadershipEvent};
use shardhost::storage::{Doubt, LogError, LogStore, MemoryStore, StoreFault};
use shardhost::{
    ApplyBatch, ApplyFault, Group, GroupId, GroupSelector, GroupSpec, GroupStatus, Host,
    HostConfig, LogPosition, NodeId, ProposeError, QueryError, ReadError, ReadMode, Role, Shutdown,
    SnapshotWriter, StartError, StateMachine, TransferError,
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Remembers every command; panics or fails on command.
#[derive(Default)]
struct List {
    commands: Vec<Bytes>,
    applied: Option<LogPosition>,
}

impl StateMachine for List {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        for command in batch.commands() {
            match command.data().as_ref() {
                b"panic" => panic!("told to panic"),
                b"fail" => return Err(ApplyFault::new("told to fail")),
                _ => self.commands.push(command.data().clone()),
            }
            command.respond(self.commands.len().to_string());
        }
        self.applied = Some(batch.last());
        Ok(())
    }
    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        match request.as_ref() {
            b"count" => Ok(self.commands.len().to_string().into()),
            b"last" => Ok(self.commands.last().cloned().unwrap_or_default()),
            other => Err(QueryError::Invalid(format!("{other:?}"))),
        }
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(View(self.commands.clone())))
    }
    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(ApplyFault::new)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        self.commands = lines.map(Bytes::copy_from_slice).collect();
        self.applied = Some(at);
        Ok(())
    }
}

struct View(Vec<Bytes>);

impl SnapshotWriter for View {
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> std::io::Result<()> {
        for command in self.0 {
            sink.write_all(&command)?;
            sink.write_all(b"\n")?;
        }
        Ok(())
    }
}

fn nodes(count: u64) -> Vec<NodeId> {
    (1..=count).filter_map(NodeId::new).collect()
}

/// Hosts that know each other, on free ports.
struct Cluster {
    hosts: Vec<Host>,
    addresses: Vec<(NodeId, String)>,
}

impl Cluster {
    async fn start(count: u64, directory: &Path, tune: impl Fn(&mut HostConfig)) -> Self {
        let listeners: Vec<_> = nodes(count)
            .into_iter()
            .map(|node| (node, std::net::TcpListener::bind("127.0.0.1:0").unwrap()))
            .collect();
        let addresses: Vec<_> = listeners
            .iter()
            .map(|(node, listener)| (*node, listener.local_addr().unwrap().to_string()))
            .collect();
        let mut hosts = Vec::new();
        for (node, listener) in listeners {
            hosts.push(Self::host(node, directory, &addresses, Some(listener), &tune).await);
        }
        Self { hosts, addresses }
    }

    async fn host(
        node: NodeId,
        directory: &Path,
        addresses: &[(NodeId, String)],
        listener: Option<std::net::TcpListener>,
        tune: impl Fn(&mut HostConfig),
    ) -> Host {
        let mut config = HostConfig::new(node, directory.join(format!("node-{node}")))
            .peers(addresses.iter().cloned());
        let own = addresses.iter().find(|(id, _)| *id == node).unwrap();
        config.listen = own.1.parse().unwrap();
        tune(&mut config);
        let mut builder = Host::builder(config);
        if let Some(listener) = listener {
            builder = builder.listener(listener);
        }
        let host = builder.start().await.unwrap();
        host.serve(Default::default());
        host
    }

    async fn create(&self, groups: u64) {
        for host in &self.hosts {
            let voters: Vec<_> = self.addresses.iter().map(|(node, _)| *node).collect();
            let specs = (1..=groups).map(|id| {
                let spec = GroupSpec::new(GroupId::new(id), voters.iter().copied());
                let spec = spec.label("parity", if id % 2 == 0 { "even" } else { "odd" });
                (spec, Box::new(List::default()) as Box<dyn StateMachine>)
            });
            host.create_groups(specs.collect()).await.unwrap();
        }
    }

    async fn leader(&self, group: u64) -> Group {
        leader_of(self.replicas(group)).await
    }

    fn replicas(&self, group: u64) -> Vec<Group> {
        self.hosts.iter().filter_map(|host| host.group(GroupId::new(group))).collect()
    }

    async fn stop(self) {
        for host in self.hosts {
            host.shutdown(Shutdown::Immediate).await;
        }
    }
}

async fn leader_of(replicas: Vec<Group>) -> Group {
    let waits = replicas.into_iter().map(|group| {
        Box::pin(async move {
            group.wait_for(|status| status.serving, TIMEOUT).await.expect("no leader");
            group
        })
    });
    futures::future::select_all(waits).await.0
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

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
        (peer.live, peer.incarnation)
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

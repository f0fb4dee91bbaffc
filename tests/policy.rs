//! Who may lead, on real hosts and sockets: capabilities, requirements, policies, caretakers.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shardhost::client::{Client, ClientError, ClientOptions};
use shardhost::groups::{LeaderHint, MembershipError, ProposalRejection};
use shardhost::leadership::{HookGuard, HookKind, LeadershipEvent};
use shardhost::server::config::{Planner, ShardCounts};
use shardhost::server::{Server, ServerConfig, group_of_shard};
use shardhost::shards::{QUEUE_KIND, TABLE_KIND};
use shardhost::{
    Acquisition, Candidate, Caretaker, Decision, Group, GroupId, GroupSelector, GroupStatus, Host,
    LeadershipPolicy, NodeId, Opinion, PolicyGuard, ProposeError, Requirement, RequirementMode,
    Shutdown, TransferError, Unfit,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a node has.
type Has = &'static [&'static str];

/// Three hosts of one cluster, with what each of them has.
struct Cluster {
    servers: BTreeMap<u64, Server>,
    addresses: BTreeMap<u64, String>,
    has: [Has; 3],
    shards: ShardCounts,
    directory: TempDir,
    served: Arc<Mutex<Vec<(u64, GroupId)>>>,
    hooks: Vec<HookGuard>,
}

impl Cluster {
    /// Hosts with some table shards that require this, and one queue shard that requires nothing.
    async fn start(has: [Has; 3], tables: u64, require: Has) -> Self {
        let tables_require = require.iter().map(|name| (*name).to_owned()).collect();
        let shards = ShardCounts { tables, queues: 1, tables_require, ..ShardCounts::default() };
        let listeners: BTreeMap<u64, TcpListener> =
            (1..=3).map(|node| (node, TcpListener::bind("127.0.0.1:0").unwrap())).collect();
        let addresses = listeners
            .iter()
            .map(|(node, listener)| (*node, listener.local_addr().unwrap().to_string()))
            .collect();
        let mut cluster = Self {
            servers: BTreeMap::new(),
            addresses,
            has,
            shards,
            directory: TempDir::new().unwrap(),
            served: Arc::default(),
            hooks: Vec::new(),
        };
        for (node, listener) in listeners {
            cluster.start_node(node, Some(listener)).await;
        }
        for server in cluster.servers.values() {
            assert!(server.await_shards(PATIENCE).await, "the shards are never there");
        }
        cluster
    }

    async fn start_node(&mut self, node: u64, listener: Option<TcpListener>) {
        let own: SocketAddr = self.addresses[&node].parse().unwrap();
        let mut config = ServerConfig::alone(self.directory.path().join(node.to_string()));
        config.node = node;
        config.listen = own;
        config.alone = false;
        config.nodes = self.addresses.iter().map(|(id, at)| (id.to_string(), at.clone())).collect();
        config.capabilities =
            self.has[node as usize - 1].iter().map(|name| (*name).to_owned()).collect();
        // Leaders stay where the tests put them.
        config.planner = Planner::Off;
        config.shards = self.shards.clone();
        let server = Server::start(config, listener).await.unwrap();
        let served = Arc::clone(&self.served);
        let note = move |event: &LeadershipEvent| {
            if let LeadershipEvent::Ready(ready) = event {
                served.lock().push((node, ready.group));
            }
        };
        self.hooks.push(server.host().on_leadership(GroupSelector::All, HookKind::Inline, note));
        self.servers.insert(node, server);
    }

    async fn stop_node(&mut self, node: u64) {
        self.servers.remove(&node).unwrap().shutdown(Shutdown::Immediate).await;
    }

    async fn stop(self) {
        for server in self.servers.into_values() {
            server.shutdown(Shutdown::Immediate).await;
        }
    }

    fn host(&self, node: u64) -> &Host {
        self.servers[&node].host()
    }

    fn replica(&self, node: u64, group: GroupId) -> Group {
        self.host(node).group(group).unwrap()
    }

    fn on_every_host<T>(&self, act: impl Fn(&Host) -> T) -> Vec<T> {
        self.servers.values().map(|server| act(server.host())).collect()
    }

    /// The node that serves a group, once one does, and its replica.
    async fn serving(&self, group: GroupId) -> (u64, Group) {
        self.until(group, "served", |status| status.serving).await
    }

    /// The node that leads a group and serves nobody, once one does, and its replica.
    async fn caretaking(&self, group: GroupId) -> (u64, Group) {
        self.until(group, "kept by a caretaker", |status| status.caretaker.is_some()).await
    }

    async fn until(
        &self,
        group: GroupId,
        what: &str,
        reached: impl Fn(&GroupStatus) -> bool + Copy,
    ) -> (u64, Group) {
        let waits = self.servers.keys().map(|node| {
            let replica = self.replica(*node, group);
            Box::pin(async move {
                let status = replica.wait_for(reached, PATIENCE).await;
                (status.is_some(), (*node, replica))
            })
        });
        let ((met, found), ..) = futures::future::select_all(waits).await;
        let seen = self.on_every_host(|host| host.group(group).map(|group| group.status()));
        assert!(met, "group {group} is not {what} within {PATIENCE:?}: {seen:#?}");
        found
    }

    /// Why whoever serves a group does not hand it to a node that should not lead it.
    async fn refusal(&self, group: GroupId, to: u64) -> TransferError {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (_, leader) = self.serving(group).await;
            match leader.transfer_leadership(Some(NodeId::must(to))).await {
                Err(
                    error @ (TransferError::TargetUnfit { .. }
                    | TransferError::TargetRefused { .. }),
                ) => return error,
                Ok(moved) => panic!("group {group} moved: {moved:?}"),
                // Leadership moved meanwhile, or something has to come to its end first.
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
        }
    }

    /// Whether a node has ever served a group.
    fn has_served(&self, node: u64, group: GroupId) -> bool {
        self.served.lock().contains(&(node, group))
    }

    /// Waits until every host has heard what every other one says of itself.
    async fn all_have_spoken(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let ids: Vec<NodeId> = self.servers.keys().copied().map(NodeId::must).collect();
        for host in self.servers.values().map(Server::host) {
            for node in ids.iter().filter(|node| **node != host.node_id()) {
                while host.peer_advert(*node).is_none() {
                    assert!(tokio::time::Instant::now() < deadline, "node {node} says nothing");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn write(&self, client: &Client, key: &str) {
        if let Err(error) = client.table().put(key.to_owned(), "x").await {
            let seen = self
                .on_every_host(|host| host.groups().iter().map(Group::status).collect::<Vec<_>>());
            panic!("{error}: {seen:#?}");
        }
    }

    async fn client(&self, deadline: Duration) -> Client {
        let options = ClientOptions { deadline, ..ClientOptions::default() };
        Client::connect(self.addresses.values().cloned(), options).await.unwrap()
    }
}

fn table(shard: u64) -> GroupId {
    group_of_shard(TABLE_KIND, shard).unwrap()
}

fn queue() -> GroupId {
    group_of_shard(QUEUE_KIND, 0).unwrap()
}

/// Proposes what is to be refused: no table understands it.
async fn propose(group: &Group) -> Result<(), ProposeError> {
    group.propose("?").await.map(|_| ())
}

/// Hands a group on, as often as it takes: the target may have to hear of something first.
async fn transfer(from: &Group, to: u64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match from.transfer_leadership(Some(NodeId::must(to))).await {
            Ok(_) | Err(TransferError::AlreadyLeads { .. } | TransferError::NotLeader { .. }) => {
                return;
            }
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lacks_what_a_group_requires_never_serves_it() {
    // Leadership is moved, and nodes restart; node 1 lacks what the tables require.
    let mut cluster = Cluster::start([&[], &["fifo"], &["fifo", "ssd"]], 4, &["fifo"]).await;
    let client = cluster.client(PATIENCE).await;
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
        cluster.start_node(away, None).await;
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
    cluster.replica(1, queue()).wait_for(|status| status.serving, PATIENCE).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_capable_node_a_caretaker_leads_and_says_why_until_one_returns() {
    let mut cluster = Cluster::start([&[], &[], &["fifo"]], 1, &["fifo"]).await;
    assert_eq!(cluster.serving(table(0)).await.0, 3);
    cluster.client(PATIENCE).await.table().put("color", "blue").await.unwrap();

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

    // Whoever is patient is served as soon as the node is back.
    let patient = cluster.client(PATIENCE).await;
    let waits = tokio::spawn(async move { patient.table().put("color", "green").await });
    cluster.start_node(3, None).await;
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
        cluster.replica(1, group).wait_for(|status| status.serving, PATIENCE).await.unwrap();
    }
    let guards: Vec<PolicyGuard> =
        cluster.on_every_host(|host| host.register_policy(tables(), KeepFree));
    let here = cluster.replica(1, table(0));
    here.wait_for(|status| !status.serving, PATIENCE).await.expect("it goes on serving");
    let (node, leader) = cluster.serving(table(0)).await;
    assert_ne!(node, 1);
    let refused = cluster.refusal(table(0), 1).await;
    let told = "node 1 is kept free of table shards (keep-free)";
    assert!(refused.to_string().contains(told), "{refused}");
    assert!(cluster.replica(1, queue()).status().serving, "the queue is not meant");

    drop(guards);
    transfer(&leader, 1).await;
    here.wait_for(|status| status.serving, PATIENCE).await.expect("nothing is in its way");
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
    replica.wait_for(declined, PATIENCE).await.expect("it keeps what it declined");
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
    leader.wait_for(|status| status.pending_change.is_none(), PATIENCE).await.unwrap();
    let stale = leader.require_unchecked(fifo.clone(), Some(index.next())).await.unwrap_err();
    assert!(matches!(stale, MembershipError::WrongConfig { .. }), "{stale}");
    leader.require_unchecked(fifo, Some(index)).await.unwrap();
    let (_, caretaker) = cluster.caretaking(table(0)).await;
    assert!(propose(&caretaker).await.is_err());
    caretaker.wait_for(|status| status.pending_change.is_none(), PATIENCE).await.unwrap();

    // A caretaker can be repaired.
    caretaker.require(Requirement::default(), None).await.unwrap();
    cluster.serving(table(0)).await;
    cluster.client(PATIENCE).await.table().put("color", "blue").await.unwrap();
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
    leader.wait_for(|status| !status.serving, PATIENCE).await.expect("it goes on serving");
    let (next, successor) = cluster.serving(table(0)).await;
    assert_ne!(next, node);
    let before = cluster.served.lock().len();
    let refused = cluster.refusal(table(0), node).await;
    let lacks = format!("node {node} lacks fifo");
    assert!(refused.to_string().contains(&lacks), "{refused}");
    assert!(!cluster.served.lock()[before..].contains(&(node, table(0))));

    cluster.host(node).set_capabilities(["fifo"]).unwrap();
    transfer(&successor, node).await;
    leader.wait_for(|status| status.serving, PATIENCE).await.expect("it may lead again");
    cluster.stop().await;
}

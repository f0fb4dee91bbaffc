//! Three hosts of one cluster, on sockets, with what each of them has.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shardhost::leadership::{HookGuard, HookKind, LeadershipEvent};
use shardhost::{
    Group, GroupId, GroupSelector, GroupStatus, Host, NodeId, ProposeError, TransferError,
};
use shardhost_client::{Client, ClientOptions};
use shardhost_proto::shard_map::{QUEUE_KIND, TABLE_KIND};
use shardhost_server::config::{Planner, ShardCounts};
use shardhost_server::{Server, group_of_shard};

use super::in_process::InProcess;
pub use super::in_process::TIMEOUT;

/// What a node has.
pub type Has = &'static [&'static str];

/// Three hosts of one cluster, with what each of them has.
pub struct Cluster {
    pub servers: InProcess,
    pub served: Arc<Mutex<Vec<(u64, GroupId)>>>,
    hooks: Vec<HookGuard>,
}

impl Cluster {
    /// Hosts with some table shards that require this, and one queue shard that requires nothing.
    pub async fn start(has: [Has; 3], tables: u64, require: Has) -> Self {
        let names = |names: Has| names.iter().map(|name| (*name).to_owned()).collect();
        let tables_require = names(require);
        let shards = ShardCounts { tables, queues: 1, tables_require, ..ShardCounts::default() };
        let servers = InProcess::start(3, move |node, config| {
            config.capabilities = names(has[node as usize - 1]);
            // Leaders stay where the tests put them.
            config.planner = Planner::Off;
            config.shards = shards.clone();
        });
        let mut cluster =
            Self { servers: servers.await, served: Arc::default(), hooks: Vec::new() };
        (1..=3).for_each(|node| cluster.note_leaders(node));
        cluster.servers.await_shards().await;
        cluster
    }

    /// Starts a node where it was.
    pub async fn start_node(&mut self, node: u64) {
        self.servers.start_node(node).await;
        self.note_leaders(node);
    }

    /// Hooks begin with the present state.
    fn note_leaders(&mut self, node: u64) {
        let served = Arc::clone(&self.served);
        let note = move |event: &LeadershipEvent| {
            if let LeadershipEvent::Ready(ready) = event {
                served.lock().push((node, ready.group));
            }
        };
        self.hooks.push(self.host(node).on_leadership(GroupSelector::All, HookKind::Inline, note));
    }

    pub async fn stop_node(&mut self, node: u64) {
        self.servers.stop_node(node).await;
    }

    pub async fn stop(self) {
        self.servers.stop().await;
    }

    pub fn host(&self, node: u64) -> &Host {
        self.servers.host(node)
    }

    pub fn replica(&self, node: u64, group: GroupId) -> Group {
        self.host(node).group(group).unwrap()
    }

    pub fn on_every_host<T>(&self, act: impl Fn(&Host) -> T) -> Vec<T> {
        self.servers.running.values().map(|server| act(server.host())).collect()
    }

    /// The node that serves a group, once one does, and its replica.
    pub async fn serving(&self, group: GroupId) -> (u64, Group) {
        self.until(group, "served", |status| status.serving).await
    }

    /// The node that leads a group and serves no users, once one does, and its replica.
    pub async fn caretaking(&self, group: GroupId) -> (u64, Group) {
        self.until(group, "kept by a caretaker", |status| status.caretaker.is_some()).await
    }

    pub async fn until(
        &self,
        group: GroupId,
        what: &str,
        reached: impl Fn(&GroupStatus) -> bool + Copy,
    ) -> (u64, Group) {
        let waits = self.servers.running.keys().map(|node| {
            let replica = self.replica(*node, group);
            Box::pin(async move {
                let status = replica.wait_for(reached, TIMEOUT).await;
                (status.is_some(), (*node, replica))
            })
        });
        let ((met, found), ..) = futures::future::select_all(waits).await;
        let seen = self.on_every_host(|host| host.group(group).map(|group| group.status()));
        assert!(met, "group {group} is not {what} within {TIMEOUT:?}: {seen:#?}");
        found
    }

    /// Why the node that serves a group does not transfer it to a node that should not lead it.
    pub async fn refusal(&self, group: GroupId, to: u64) -> TransferError {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
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
    pub fn has_served(&self, node: u64, group: GroupId) -> bool {
        self.served.lock().contains(&(node, group))
    }

    /// Waits until every host has the advertisement of every other one.
    pub async fn all_have_spoken(&self) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        let ids: Vec<NodeId> = self.servers.running.keys().copied().map(NodeId::must).collect();
        for host in self.servers.running.values().map(Server::host) {
            for node in ids.iter().filter(|node| **node != host.node_id()) {
                while host.peer_advertisement(*node).is_none() {
                    assert!(tokio::time::Instant::now() < deadline, "node {node} says nothing");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    pub async fn write(&self, client: &Client, key: &str) {
        if let Err(error) = client.table().put(key.to_owned(), "x").await {
            let seen = self
                .on_every_host(|host| host.groups().iter().map(Group::status).collect::<Vec<_>>());
            panic!("{error}: {seen:#?}");
        }
    }

    pub async fn client(&self, deadline: Duration) -> Client {
        // Hosts end while it writes.
        let options = ClientOptions { deadline, ..ClientOptions::default() };
        Client::connect(self.servers.addresses.values().cloned(), options).await.unwrap()
    }
}

pub fn table(shard: u64) -> GroupId {
    group_of_shard(TABLE_KIND, shard).unwrap()
}

pub fn queue() -> GroupId {
    group_of_shard(QUEUE_KIND, 0).unwrap()
}

/// Proposes what is to be refused: no table understands it.
pub async fn propose(group: &Group) -> Result<(), ProposeError> {
    group.propose("?").await.map(|_| ())
}

/// Hands a group on, as often as it takes: the target may have to hear of something first.
pub async fn transfer(from: &Group, to: u64) {
    let deadline = tokio::time::Instant::now() + TIMEOUT;
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

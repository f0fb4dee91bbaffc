//! The verification: what was acknowledged against what every node holds.
//!
//! It reads each acknowledged write at every replica, so in particular at others than the one that
//! acknowledged it, once that replica has applied what the leader had committed.

mod queue;
mod replicas;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use shardhost::{GroupId, NodeId};
use shardhost_client::{Client, ClientOptions};

use super::findings::Findings;
use super::load::Load;
use super::nodes::Layout;
use super::screen::Screen;
use crate::observe::Observer;
use crate::output::number;
use crate::security::security;

/// Everything that a verification needs.
pub struct Verification<'a> {
    pub load: Arc<Load>,
    pub layout: Layout,
    pub observer: &'a Observer,
    pub screen: &'a Screen,
    client: Client,
    nodes: Vec<NodeId>,
    /// Who holds a replica of each shard.
    holders: BTreeMap<u64, Vec<NodeId>>,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Verified {
    pub findings: Findings,
    /// Reads of the table at single replicas, and through the leaders.
    pub reads: u64,
    pub linearizable_reads: u64,
    /// Messages seen at single replicas, and received.
    pub peeked: u64,
    pub received: u64,
    /// Items of each group whose replicas are equal.
    items: BTreeMap<u64, u64>,
    /// Groups whose replicas are all equal, and those that are not.
    pub equal_groups: u64,
    pub unequal: BTreeMap<u64, String>,
}

impl<'a> Verification<'a> {
    /// Connects a client, and looks who holds what; members do not change any more.
    pub async fn new(
        load: Arc<Load>,
        layout: Layout,
        addresses: impl IntoIterator<Item = String>,
        observer: &'a Observer,
        screen: &'a Screen,
    ) -> anyhow::Result<Self> {
        let options = ClientOptions { security: security(), ..ClientOptions::default() };
        let client = Client::connect(addresses, options);
        let client = client.await.context("the client finds no host")?;
        let nodes = observer.nodes().filter_map(NodeId::new).collect();
        let leaders = observer.await_led(super::TIMEOUT).await?;
        let ids = |nodes: Vec<u64>| nodes.into_iter().filter_map(NodeId::new).collect();
        let holders = leaders.into_iter().map(|(group, leader)| (group, ids(leader.voters)));
        let holders = holders.collect();
        Ok(Self { load, layout, observer, screen, client, nodes, holders })
    }

    /// Who holds a replica of a shard.
    fn holders(&self, group: Option<GroupId>) -> &[NodeId] {
        let holders = group.and_then(|group| self.holders.get(&group.get()));
        holders.map(Vec::as_slice).unwrap_or_default()
    }

    /// Verifies everything. The queue is empty afterwards.
    pub async fn run(&self) -> anyhow::Result<Verified> {
        let mut verified = Verified::default();
        for node in self.nodes.iter().map(|node| node.get()) {
            self.observer.await_caught_up(node, super::TIMEOUT).await?;
        }
        table::verify(self, &mut verified).await?;
        let (reads, fresh) = (number(verified.reads), number(verified.linearizable_reads));
        self.screen.event(format!(
            "table: {reads} reads, every key at every replica, and {fresh} linearizable ones"
        ));
        queue::peek_everywhere(self, &mut verified).await?;
        let peeked = number(verified.peeked);
        self.screen.event(format!("queue: {peeked} messages seen, each at every replica"));
        replicas::compare(self, &mut verified).await?;
        table::verify_count(self, &mut verified);
        self.screen.event(format!("replicas: those of {} shards are equal", verified.equal_groups));
        queue::receive_everything(self, &mut verified).await?;
        let received = number(verified.received);
        self.screen.event(format!("queue: {received} messages received and acked"));
        // What was received and acked is a state that must be equal too.
        replicas::compare(self, &mut verified).await?;
        Ok(verified)
    }
}

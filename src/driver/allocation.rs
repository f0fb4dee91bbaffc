//! The allocator at work, on the leader of the system group: every second it is shown who answers and which
//! replicas are where, and its orders go to the leaders of their groups.
//!
//! It decides; this module moves its inputs and messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::{GroupId, NodeId};
use shardhost_policy::allocator::{Allocator, Change, Observation, Outcome, Reason};
use shardhost_proto::system as wire;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::replacing::{MAX_REPLACEMENTS, Replaced, Replacement, outcome_from_wire};
use super::{Inner, SYSTEM_GROUP};
use shardhost_policy::catalog::View;

/// Between two passes.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// How often an order follows the name of another leader before it is given up for this time.
const MOST_HOPS: usize = 4;

/// The allocator of this host's leadership of the system group, shared with those who ask it.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) allocator: Arc<Mutex<Allocator>>,
    began: Instant,
}

impl Shared {
    fn new() -> Self {
        Self { allocator: Arc::default(), began: Instant::now() }
    }

    /// By a clock that never goes back.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Runs until `lost`.
pub(super) async fn allocate(inner: Weak<Inner>, planner_term: u64, lost: CancellationToken) {
    let shared = Shared::new();
    if let Some(inner) = inner.upgrade() {
        *inner.allocator.lock() = Some((planner_term, shared.clone()));
    }
    lost.run_until_cancelled(run(inner.clone(), planner_term, shared)).await;
    if let Some(inner) = inner.upgrade() {
        let mut current = inner.allocator.lock();
        // A later leadership may have begun.
        if current.as_ref().is_some_and(|(term, _)| *term == planner_term) {
            *current = None;
        }
    }
}

async fn run(inner: Weak<Inner>, planner_term: u64, shared: Shared) {
    let mut passes = tokio::time::interval(PASS_EVERY);
    passes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Bounded by the changes that may be under way.
    let mut sending = JoinSet::new();
    loop {
        tokio::select! {
            _ = passes.tick() => {}
            Some(_) = sending.join_next() => continue,
        }
        let Some(inner) = inner.upgrade() else { return };
        let Some(view) = inner.view.borrow().clone() else { continue };
        let orders = pass(&inner, &view, &shared).await;
        for batch in by_first_guess(inner.host.node_id(), &view, &orders) {
            sending.spawn(send(Arc::clone(&inner), planner_term, batch, shared.clone()));
        }
    }
}

async fn pass(inner: &Inner, view: &Arc<View>, shared: &Shared) -> Vec<Change> {
    let live = live_nodes(inner);
    let group = inner.host.group(SYSTEM_GROUP);
    let membership = group.map(|group| group.membership());
    let members = membership.iter().flat_map(|membership| membership.members.values());
    let system: BTreeSet<NodeId> = members.map(|member| member.node).collect();
    let (view, shared) = (Arc::clone(view), shared.clone());
    let passed = tokio::task::spawn_blocking(move || {
        let now_ms = shared.now_ms();
        let seen = Observation { now_ms, view: &view, live: &live, system: &system };
        shared.allocator.lock().pass(&seen)
    });
    match passed.await {
        Ok(orders) => {
            for Change { group, old, new, reason } in &orders {
                tracing::info!(%group, from = %old, to = %new, %reason, "a replica is to move");
            }
            orders
        }
        Err(error) => {
            tracing::error!(%error, "a pass of the allocator panicked");
            Vec::new()
        }
    }
}

/// Nodes whose heartbeats this host receives, and this one.
fn live_nodes(inner: &Inner) -> BTreeSet<NodeId> {
    let peers = inner.host.transport_stats().peers.into_iter().filter(|peer| peer.live);
    peers.map(|peer| peer.node).chain([inner.host.node_id()]).collect()
}

/// Orders and the node that is asked first: a member that is not the one that goes, which names the leader.
/// This host leads the system group.
fn by_first_guess(own: NodeId, view: &View, orders: &[Change]) -> Vec<(NodeId, Vec<Replacement>)> {
    let mut by_node: BTreeMap<NodeId, Vec<Replacement>> = BTreeMap::new();
    for Change { group, old, new, reason } in orders.iter().copied() {
        let members = view.groups().get(&group).map_or(&[][..], |group| group.members());
        let first = members.iter().copied().find(|node| *node != old).unwrap_or(own);
        let gone = reason == Reason::Gone;
        by_node.entry(first).or_default().push(Replacement { group, old, new, gone });
    }
    let batches = by_node.into_iter().flat_map(|(node, orders)| {
        let chunks = orders.chunks(MAX_REPLACEMENTS).map(<[_]>::to_vec).collect::<Vec<_>>();
        chunks.into_iter().map(move |orders| (node, orders))
    });
    batches.collect()
}

/// Has orders executed by the leaders of their groups, beginning with one node, and notes the outcomes.
async fn send(
    inner: Arc<Inner>,
    planner_term: u64,
    (first, orders): (NodeId, Vec<Replacement>),
    shared: Shared,
) {
    let mut at: BTreeMap<NodeId, Vec<Replacement>> = BTreeMap::from([(first, orders)]);
    for _ in 0..MOST_HOPS {
        let mut next: BTreeMap<NodeId, Vec<Replacement>> = BTreeMap::new();
        for (node, orders) in std::mem::take(&mut at) {
            let answers = ask(&inner, planner_term, node, &orders).await;
            for order in orders {
                let answer = answers.get(&order.group).cloned().unwrap_or(Replaced::Unknown);
                match answer {
                    Replaced::NotLeader(Some(leader)) if leader != node => {
                        next.entry(leader).or_default().push(order);
                    }
                    answer => note(&shared, order, answer),
                }
            }
        }
        if next.is_empty() {
            return;
        }
        at = next;
    }
    for order in at.into_values().flatten() {
        note(&shared, order, Replaced::NotLeader(None));
    }
}

fn note(shared: &Shared, order: Replacement, answer: Replaced) {
    let outcome = match answer {
        Replaced::Begun => Outcome::Begun,
        Replaced::NotLeader(_) => Outcome::Refused("it has no leader that answers".to_owned()),
        Replaced::Refused(why) => Outcome::Refused(why),
        Replaced::Unknown => Outcome::Unknown,
    };
    tracing::debug!(group = %order.group, ?outcome, "an order to move a replica ended");
    shared.allocator.lock().ended(order.group, shared.now_ms(), outcome);
}

/// The outcomes of those orders that were answered.
async fn ask(
    inner: &Arc<Inner>,
    planner_term: u64,
    node: NodeId,
    orders: &[Replacement],
) -> BTreeMap<GroupId, Replaced> {
    let message = |order: &Replacement| wire::Replacement {
        group: order.group.get(),
        old: order.old.get(),
        new: order.new.get(),
        gone: order.gone,
    };
    let replacements = orders.iter().map(message).collect();
    let planner_node = inner.host.node_id().get();
    let request = wire::ReplaceRequest { planner_term, planner_node, replacements };
    if node == inner.host.node_id() {
        let reply = inner.replace_all(request).await;
        return reply.map(outcomes).unwrap_or_default();
    }
    let (mut client, address) = match inner.client.connect(node).await {
        Ok(client) => client,
        // Nothing was sent.
        Err(reason) => {
            let refused = |order: &Replacement| {
                (order.group, Replaced::Refused(format!("node {node}: {reason}")))
            };
            return orders.iter().map(refused).collect();
        }
    };
    match client.replace(request).await {
        Ok(reply) => outcomes(reply.into_inner()),
        Err(status) => {
            inner.client.forget(&address);
            tracing::debug!(%node, %status, "the outcome of orders to move replicas is not known");
            BTreeMap::new()
        }
    }
}

fn outcomes(reply: wire::ReplaceReply) -> BTreeMap<GroupId, Replaced> {
    reply.outcomes.into_iter().map(outcome_from_wire).collect()
}

//! The allocator at work, on the leader of the system group: every second, and while changes wait for others
//! whenever some ended, it is shown who answers and which replicas are where, and its orders go to the leaders of their groups.
//!
//! It decides; this module moves its inputs and messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_groups::{GroupId, NodeId};
use shardhost_policy::allocator::{Allocator, Change, Observation, Order, Outcome, Reason, Step};
use shardhost_proto::system as wire;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::was_not_taken;
use super::replacing::{MAX_REPLACEMENTS, Replaced, Replacement, outcome_from_wire};
use super::{Inner, SYSTEM_GROUP};
use shardhost_policy::catalog::View;

/// Between two passes.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// Between two passes at least, while changes wait for others to end.
const PASS_SOONER: Duration = Duration::from_millis(200);
/// Passes take at most this part of the time then, so that a large catalog keeps no core busy.
const PART_OF_TIME: u32 = 10;

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
    let Some(running) = inner.upgrade() else { return };
    let _shared = running.allocator.share(planner_term, shared.clone());
    drop(running);
    lost.run_until_cancelled(run(inner, planner_term, shared)).await;
}

async fn run(inner: Weak<Inner>, planner_term: u64, shared: Shared) {
    // Bounded by the changes that may be under way.
    let mut sending = JoinSet::new();
    let Some(mut views) = inner.upgrade().map(|inner| inner.view.subscribe()) else { return };
    let (mut next, mut soonest, mut has_more) = (Instant::now(), Instant::now(), false);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            Some(_) = sending.join_next() => continue,
            // The end of a change is one of the catalog.
            Ok(()) = views.changed(), if has_more => {
                next = next.min(soonest);
                continue;
            }
        }
        let began = Instant::now();
        next = began + PASS_EVERY;
        let Some(inner) = inner.upgrade() else { return };
        let Some(view) = views.borrow_and_update().clone() else { continue };
        let live = Arc::new(inner.host.live_nodes());
        let orders = pass(&inner, &view, &live, &shared).await;
        soonest = began + PASS_SOONER.max(began.elapsed() * PART_OF_TIME);
        has_more = shared.allocator.lock().has_more();
        if !orders.is_empty() {
            let own = inner.host.node_id();
            let asking = |order: Order| Asking::new(own, &view, &live, order);
            let orders = orders.into_iter().map(asking).collect();
            sending.spawn(send(Arc::clone(&inner), planner_term, orders, shared.clone()));
        }
    }
}

async fn pass(
    inner: &Inner,
    view: &Arc<View>,
    live: &Arc<BTreeSet<NodeId>>,
    shared: &Shared,
) -> Vec<Order> {
    let group = inner.host.group(SYSTEM_GROUP);
    let membership = group.map(|group| group.membership());
    let members = membership.iter().flat_map(|membership| membership.members.values());
    let system: BTreeSet<NodeId> = members.map(|member| member.node).collect();
    let learners = membership.iter().flat_map(|membership| membership.nodes_without_vote());
    let system_learners: Vec<NodeId> = learners.collect();
    let impaired = inner.host.impaired_nodes();
    let (view, live, shared) = (Arc::clone(view), Arc::clone(live), shared.clone());
    let passed = tokio::task::spawn_blocking(move || {
        let now_ms = shared.now_ms();
        let (view, live, impaired, system) = (&view, &live, &impaired, &system);
        let system_learners = &system_learners;
        let seen = Observation { now_ms, view, live, impaired, system, system_learners };
        shared.allocator.lock().pass(&seen)
    });
    match passed.await {
        Ok(orders) => {
            for Order { change: Change { group, step, reason, .. }, .. } in &orders {
                tracing::info!(%group, ?step, %reason, "a replica is to move");
            }
            orders
        }
        Err(error) => {
            tracing::error!(%error, "a pass of the allocator panicked");
            Vec::new()
        }
    }
}

/// An order, and who of those that may lead the group was not asked yet.
#[derive(Debug)]
struct Asking {
    /// As the allocator knows it.
    ordered: Order,
    order: Replacement,
    /// In the order in which they are asked; the last one is next.
    left: Vec<NodeId>,
}

impl Asking {
    /// The members are asked one after the other, those that answer first; each may name the leader. The
    /// one that gives its replica away is the first of them: if it leads it transfers, and names the next
    /// leader. This host leads the system group.
    fn new(own: NodeId, view: &View, live: &BTreeSet<NodeId>, ordered: Order) -> Self {
        let Change { group, step, reason, instead_of, .. } = ordered.change;
        let members =
            view.groups().get(&group).map_or_else(Vec::new, |group| group.members().to_vec());
        let mut left: Vec<NodeId> = if group == SYSTEM_GROUP { vec![own] } else { members };
        left.retain(|node| reason != Reason::Gone || Some(*node) != step.old());
        let gives = |node: NodeId| Some(node) == step.old();
        left.sort_by_key(|node| (live.contains(node), gives(*node), std::cmp::Reverse(*node)));
        let gone = reason == Reason::Gone;
        Self { ordered, order: Replacement { group, step, gone, instead_of }, left }
    }

    /// The next one to ask; a leader that was named comes first, if it was not asked.
    fn next(&mut self, named: Option<NodeId>) -> Option<NodeId> {
        let named = named.and_then(|leader| self.left.iter().position(|node| *node == leader));
        match named {
            Some(at) => Some(self.left.remove(at)),
            None => self.left.pop(),
        }
    }
}

/// Has orders executed by the leaders of their groups, and notes the outcomes.
async fn send(inner: Arc<Inner>, planner_term: u64, orders: Vec<Asking>, shared: Shared) {
    let mut at: BTreeMap<NodeId, Vec<Asking>> = BTreeMap::new();
    for asking in orders {
        ask_next(&mut at, asking, None, &shared);
    }
    // Each order has one node fewer to ask with every round.
    while !at.is_empty() {
        // No node waits for the answers of another.
        let asked = std::mem::take(&mut at).into_iter();
        let asked = asked.map(|(node, askings)| ask_all(&inner, planner_term, node, askings));
        for (asking, answer) in futures::future::join_all(asked).await.into_iter().flatten() {
            match answer {
                Replaced::NotLeader(named) => ask_next(&mut at, asking, named, &shared),
                answer => note(&shared, asking.ordered, answer),
            }
        }
    }
}

/// What a node answers to orders, as many at a time as it takes.
async fn ask_all(
    inner: &Arc<Inner>,
    planner_term: u64,
    node: NodeId,
    mut askings: Vec<Asking>,
) -> Vec<(Asking, Replaced)> {
    let mut answered = Vec::new();
    while !askings.is_empty() {
        let rest = askings.split_off(askings.len().min(MAX_REPLACEMENTS));
        let answers = ask(inner, planner_term, node, &askings).await;
        answered.extend(std::mem::replace(&mut askings, rest).into_iter().map(|asking| {
            let answer = answers.get(&asking.order.group).cloned().unwrap_or(Replaced::Unknown);
            (asking, answer)
        }));
    }
    answered
}

fn ask_next(
    at: &mut BTreeMap<NodeId, Vec<Asking>>,
    mut asking: Asking,
    named: Option<NodeId>,
    shared: &Shared,
) {
    match asking.next(named) {
        Some(node) => at.entry(node).or_default().push(asking),
        None => note(shared, asking.ordered, Replaced::NotLeader(None)),
    }
}

fn note(shared: &Shared, order: Order, answer: Replaced) {
    let outcome = match answer {
        Replaced::Begun => Outcome::Begun,
        Replaced::NotLeader(_) => Outcome::Refused("it has no leader that answers".to_owned()),
        Replaced::Refused(why) => Outcome::Refused(why),
        Replaced::InTheWay(node) => Outcome::InTheWay(node),
        Replaced::Unknown => Outcome::Unknown,
    };
    tracing::debug!(group = %order.change.group, ?outcome, "an order to move a replica ended");
    shared.allocator.lock().ended(order, shared.now_ms(), outcome);
}

/// The outcomes of those orders that were answered.
async fn ask(
    inner: &Arc<Inner>,
    planner_term: u64,
    node: NodeId,
    askings: &[Asking],
) -> BTreeMap<GroupId, Replaced> {
    let message = |Asking { order, .. }: &Asking| wire::Replacement {
        group: order.group.get(),
        old: order.step.old().map_or(0, NodeId::get),
        new: order.step.new_node().map_or(0, NodeId::get),
        learner: match order.step {
            Step::Add { learner, .. } | Step::Remove { learner, .. } => learner,
            Step::ReplaceLearner { .. } => true,
            Step::Replace { .. } => false,
        },
        wanted: match order.step {
            Step::Add { wanted, .. } | Step::Remove { wanted, .. } => wanted,
            Step::ReplaceLearner { has, .. } => has,
            Step::Replace { .. } => 0,
        },
        gone: order.gone,
        instead_of: order.instead_of.map_or(0, NodeId::get),
    };
    let replacements = askings.iter().map(message).collect();
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
            tracing::debug!(%node, reason, "a node is not asked to move replicas");
            return elsewhere(askings);
        }
    };
    match client.replace(request).await {
        Ok(reply) => outcomes(reply.into_inner()),
        Err(status) => {
            inner.client.forget(&address);
            if was_not_taken(&status) {
                tracing::debug!(%node, %status, "a node does not take orders to move replicas");
                return elsewhere(askings);
            }
            tracing::debug!(%node, %status, "the outcome of orders to move replicas is not known");
            BTreeMap::new()
        }
    }
}

/// Another node is asked for them.
fn elsewhere(askings: &[Asking]) -> BTreeMap<GroupId, Replaced> {
    askings.iter().map(|asking| (asking.order.group, Replaced::NotLeader(None))).collect()
}

fn outcomes(reply: wire::ReplaceReply) -> BTreeMap<GroupId, Replaced> {
    reply.outcomes.into_iter().map(outcome_from_wire).collect()
}

#[cfg(test)]
mod tests {
    use shardhost_policy::catalog::{
        Catalog, Command, Name, NewGroup, NewNode, Operation, Subject,
    };

    use super::*;

    /// Two of five voters are gone: the three others are asked first, whatever their numbers.
    #[test]
    fn every_member_that_answers_is_asked_before_a_group_counts_as_without_a_leader() {
        let (mut catalog, node) = (Catalog::default(), NodeId::must);
        let mut run = |operation| catalog.apply(&Command::new(1_000, operation)).unwrap();
        for number in 1..=6 {
            let (id, address) = (node(number), format!("n{number}:1"));
            run(Operation::PutNode(NewNode { id, address, zone: None, weight: 1, store: number }));
        }
        let (id, kind) = (GroupId::new(7), Name::new(Subject::Kind, "table").unwrap());
        run(Operation::CreateGroup(NewGroup::new(id, kind, (1..=5).map(node))));
        let (reason, urgent, instead_of) = (Reason::Gone, true, None);
        let step = Step::Replace { old: node(1), new: node(6) };
        let change = Change { group: id, step, reason, urgent, instead_of };
        let order = |change| Order { ticket: 1, change };
        let live = [3, 4, 5, 6].map(node).into();
        let mut asking = Asking::new(node(4), catalog.view(), &live, order(change));
        let named = [None, Some(node(5)), Some(node(5)), None, None];
        let asked = named.map(|named| asking.next(named).map(NodeId::get));
        assert_eq!(asked, [Some(3), Some(5), Some(4), Some(2), None]);
        // One that runs and gives its replica away is asked first: it may lead, and hand on.
        let (step, reason) = (Step::Replace { old: node(5), new: node(6) }, Reason::Count);
        let spread = Change { step, reason, ..change };
        let mut asking = Asking::new(node(4), catalog.view(), &live, order(spread));
        let named = [None, Some(node(4))];
        assert_eq!(named.map(|named| asking.next(named)), [Some(node(5)), Some(node(4))]);
        let system = Change { group: SYSTEM_GROUP, ..change };
        let mut asking = Asking::new(node(4), catalog.view(), &live, order(system));
        assert_eq!([asking.next(None), asking.next(None)], [Some(node(4)), None]);
    }
}

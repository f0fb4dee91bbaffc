//! The planner at work, on the leader of the system group: every second it collects the reports of
//! the hosts, has the executor plan a pass, sends its orders, and gives it their outcomes.
//!
//! The executor decides what is planned and when; this module moves its inputs and messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use shardhost_groups::{NodeId, RejectReason};
use shardhost_policy::inputs::clock::{PlannerClock, REPORT_TIMEOUT, ROUND_EVERY};
use shardhost_policy::inputs::moves::outcome_of;
use shardhost_policy::inputs::planner_inputs::{Gathered, PlannerInputs, controls};
use shardhost_proto::system as wire;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::moves::{MAX_MOVES, Outcome, outcome_from_wire};
use crate::wall_clock::now_ms as time_of_day_ms;
use shardhost_policy::catalog::View;
use shardhost_policy::executor::{
    Executor, ExecutorSettings, Mode, MoveOutcome, Order, PlannerTerm, Ticket,
};

/// Outcomes that wait for the executor.
const MAX_OUTCOMES: usize = 4_096;

/// The executor of this host's leadership of the system group and its clock, shared with those who
/// ask it.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) executor: Arc<Mutex<Executor>>,
    pub(super) clock: PlannerClock,
}

pub(super) async fn plan(
    inner: Weak<Inner>,
    planner_term: PlannerTerm,
    settings: ExecutorSettings,
    lost: CancellationToken,
) {
    let clock = PlannerClock::new(Instant::now(), time_of_day_ms());
    let executor = Arc::new(Mutex::new(Executor::new(planner_term, clock.now_ms(), settings)));
    let Some(running) = inner.upgrade() else { return };
    let shared = Shared { executor: Arc::clone(&executor), clock };
    let _shared = running.planner.share(planner_term.get(), shared);
    drop(running);
    let (sender, outcomes) = mpsc::channel(MAX_OUTCOMES);
    let driver = Driver {
        inner,
        executor,
        clock,
        planner_term,
        sender,
        planner_inputs: PlannerInputs::default(),
        gathering: FuturesUnordered::new(),
        sending: JoinSet::new(),
    };
    lost.run_until_cancelled(driver.run(outcomes)).await;
}

struct Driver {
    inner: Weak<Inner>,
    executor: Arc<Mutex<Executor>>,
    clock: PlannerClock,
    planner_term: PlannerTerm,
    sender: mpsc::Sender<(Ticket, MoveOutcome)>,
    planner_inputs: PlannerInputs,
    /// The reports of the next round, while they are waited for: one at most.
    gathering: FuturesUnordered<JoinHandle<Gathered>>,
    /// Requests with orders that are under way.
    sending: JoinSet<()>,
}

impl Driver {
    async fn run(mut self, mut outcomes: mpsc::Receiver<(Ticket, MoveOutcome)>) {
        let mut rounds = tokio::time::interval(ROUND_EVERY);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ended = Vec::new();
        loop {
            tokio::select! {
                _ = rounds.tick() => if self.begin_round().is_none() { return },
                Some(gathered) = self.gathering.next() => match gathered {
                    Ok(gathered) => self.round(gathered).await,
                    Err(error) => tracing::error!(%error, "gathering reports panicked"),
                },
                count = outcomes.recv_many(&mut ended, MAX_OUTCOMES) => {
                    if count == 0 {
                        return;
                    }
                    let mut executor = self.executor.lock();
                    for (ticket, outcome) in ended.drain(..) {
                        executor.ended(ticket, self.clock.now_ms(), outcome);
                    }
                }
                Some(_) = self.sending.join_next() => continue,
            }
            self.send_orders();
        }
    }

    /// Begins to gather, unless the last reports are still waited for. `None`: the host is
    /// stopping.
    fn begin_round(&mut self) -> Option<()> {
        let inner = self.inner.upgrade()?;
        let Some(view) = inner.view.borrow().clone() else { return Some(()) };
        let (mode, stopped) = controls(&view, inner.local_stop());
        if mode == Mode::Off {
            self.executor.lock().control(mode, stopped);
        } else if self.gathering.is_empty() {
            self.planner_inputs
                .look_who_is_alive(&inner.host.live_incarnations(), self.clock.now_ms());
            let known = self.planner_inputs.known_digests();
            self.gathering.push(tokio::spawn(gather(
                inner,
                view,
                (self.planner_term, self.clock),
                known,
            )));
        }
        Some(())
    }

    /// Plans from what was gathered.
    async fn round(&mut self, gathered: Gathered) {
        let Some(inner) = self.inner.upgrade() else { return };
        let controls = controls(&gathered.view, inner.local_stop());
        drop(inner);
        self.planner_inputs.take_in(gathered);
        let now_ms = self.clock.now_ms();
        if self.planner_inputs.rest(&self.executor.lock().status(now_ms)) {
            return;
        }
        let Some(observation) = self.planner_inputs.observation(now_ms, controls) else { return };
        let executor = Arc::clone(&self.executor);
        let planned = tokio::task::spawn_blocking(move || executor.lock().round(observation)).await;
        match planned {
            Ok(round) => {
                if let Ok(made) = &round.made
                    && !made.plan.moves.is_empty()
                {
                    tracing::info!(moves = made.plan.moves.len(), hold = ?round.hold,
                        "leaderships are to be moved");
                }
            }
            Err(error) => tracing::error!(%error, "a round of the planner panicked"),
        }
    }

    /// Sends what may start, one request per host and batch.
    fn send_orders(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let orders = {
            let mut executor = self.executor.lock();
            // A switch that was set since the last round counts at once.
            if let Some(view) = inner.view.borrow().as_deref() {
                let (mode, stopped) = controls(view, inner.local_stop());
                executor.control(mode, stopped);
            }
            executor.next_orders(self.clock.now_ms())
        };
        let mut by_giver: BTreeMap<NodeId, Vec<Order>> = BTreeMap::new();
        for order in orders {
            by_giver.entry(order.from).or_default().push(order);
        }
        for (node, orders) in by_giver {
            for batch in orders.chunks(MAX_MOVES) {
                let (inner, sender) = (Arc::clone(&inner), self.sender.clone());
                self.sending.spawn(send(inner, node, batch.to_vec(), sender));
            }
        }
    }
}

/// Asks every node for its report, and waits for those that answer in time.
async fn gather(
    inner: Arc<Inner>,
    view: Arc<View>,
    (planner_term, clock): (PlannerTerm, PlannerClock),
    known: BTreeMap<NodeId, u64>,
) -> Gathered {
    let asked_ms = clock.now_ms();
    let asks = view.nodes().keys().map(|node| {
        let request = wire::ReportRequest {
            planner_term: planner_term.get(),
            planner_node: inner.host.node_id().get(),
            known_digest: known.get(node).copied().unwrap_or(0),
        };
        let (inner, node) = (Arc::clone(&inner), *node);
        async move { (node, ask(&inner, node, request).await) }
    });
    let mut reports = Vec::new();
    for (node, answer) in futures::future::join_all(asks).await {
        match answer {
            Ok(report) => reports.push((node, report)),
            Err(reason) => tracing::debug!(%node, reason, "no report"),
        }
    }
    Gathered { view, asked_ms, reports }
}

async fn ask(
    inner: &Arc<Inner>,
    node: NodeId,
    request: wire::ReportRequest,
) -> Result<wire::NodeReport, String> {
    if node == inner.host.node_id() {
        return inner.report(request).map_err(|status| status.message().to_owned());
    }
    let asking = async {
        let (mut client, address) = inner.client.connect(node).await?;
        match client.report(request).await {
            Ok(report) => Ok(report.into_inner()),
            Err(status) => {
                inner.client.forget(&address);
                Err(status.message().to_owned())
            }
        }
    };
    let answer = tokio::time::timeout(REPORT_TIMEOUT, asking).await;
    answer.unwrap_or_else(|_| Err("it did not answer in time".to_owned()))
}

/// Has a host carry orders out, and passes on how each ended.
async fn send(
    inner: Arc<Inner>,
    node: NodeId,
    orders: Vec<Order>,
    sender: mpsc::Sender<(Ticket, MoveOutcome)>,
) {
    let mut open: BTreeMap<u64, Ticket> =
        orders.iter().map(|order| (order.ticket.number, order.ticket)).collect();
    let reached = if node == inner.host.node_id() {
        let mut outcomes = inner.try_all(orders);
        while let Some(outcome) = outcomes.next().await {
            settle(&mut open, outcome, &sender).await;
        }
        Ok(())
    } else {
        send_to_peer(&inner, node, &orders, &mut open, &sender).await
    };
    let rest = match reached {
        Ok(()) => MoveOutcome::Unknown,
        Err(reason) => {
            tracing::debug!(%node, reason, "orders were not taken");
            MoveOutcome::Failed { reason: RejectReason::LeaderUnreachable }
        }
    };
    for ticket in open.into_values() {
        pass_on(&sender, ticket, rest).await;
    }
}

/// An error: the orders surely did not arrive.
async fn send_to_peer(
    inner: &Inner,
    node: NodeId,
    orders: &[Order],
    open: &mut BTreeMap<u64, Ticket>,
    sender: &mpsc::Sender<(Ticket, MoveOutcome)>,
) -> Result<(), String> {
    let (mut client, address) = inner.client.connect(node).await?;
    let planner_term = orders.first().map_or(0, |order| order.ticket.planner_term.get());
    let moves = orders.iter().map(|order| wire::Move {
        ticket: order.ticket.number,
        group: order.group.get(),
        to: order.to.get(),
        to_incarnation: order.to_incarnation,
        term: order.term,
    });
    let planner_node = inner.host.node_id().get();
    let request = wire::MoveRequest { planner_term, planner_node, moves: moves.collect() };
    let mut outcomes = match client.r#move(request).await {
        Ok(outcomes) => outcomes.into_inner(),
        Err(status) => {
            inner.client.forget(&address);
            tracing::debug!(%node, %status, "what became of orders is not known");
            return Ok(());
        }
    };
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(outcome) => settle(open, outcome_from_wire(outcome), sender).await,
            Err(status) => {
                tracing::debug!(%node, %status, "what became of some orders is not known");
                break;
            }
        }
    }
    Ok(())
}

async fn settle(
    open: &mut BTreeMap<u64, Ticket>,
    outcome: Outcome,
    sender: &mpsc::Sender<(Ticket, MoveOutcome)>,
) {
    let Some(ticket) = open.remove(&outcome.ticket) else { return };
    if let Err((reason, message)) = &outcome.moved {
        tracing::debug!(%ticket, reason = reason.name(), message, "a leadership was not moved");
    }
    pass_on(sender, ticket, outcome_of(outcome.moved)).await;
}

/// The planner may have ended; then no one needs the outcome.
async fn pass_on(
    sender: &mpsc::Sender<(Ticket, MoveOutcome)>,
    ticket: Ticket,
    outcome: MoveOutcome,
) {
    if sender.send((ticket, outcome)).await.is_err() {
        tracing::debug!(%ticket, "an order ended after its planner");
    }
}

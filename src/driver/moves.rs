//! What a host does with the orders of a planner: those of the newest planner that fit the present
//! are tried, each by the same gated transfer as one by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use shardhost_groups::{GroupId, NodeId, RejectReason};
use shardhost_proto::system as wire;
use tonic::Status;

use super::{Inner, SYSTEM_GROUP};
use shardhost_policy::executor::{Order, PlannerTerm, Stop, StopScope, Ticket};
use shardhost_policy::inputs::moves::{LONGEST, MAX_LAG, reason_of, standing_of};
use shardhost_policy::planner::Tier;

pub(super) const MAX_MOVES: usize = 1_024;
/// How an order ended on its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) ticket: u64,
    /// How long proposals were paused, when it was moved.
    pub(super) moved: Result<Duration, (RejectReason, String)>,
}

impl Inner {
    /// A planner of this term asked for something.
    pub(super) fn hear(&self, planner_term: u64) -> Result<(), Status> {
        let mut fence = self.fence.lock();
        fence.system_term(self.system_term());
        let heard = fence.hear(PlannerTerm::new(planner_term), self.uptime_ms());
        heard.map_err(|refusal| Status::failed_precondition(refusal.to_string()))
    }

    /// The answers to the orders of a request, as they come.
    pub(super) fn carry_out(
        self: &Arc<Self>,
        request: wire::MoveRequest,
    ) -> Result<BoxStream<'static, Result<wire::MoveOutcome, Status>>, Status> {
        if request.moves.len() > MAX_MOVES {
            return Err(Status::invalid_argument(format!(
                "{} moves in one request; at most {MAX_MOVES} are taken",
                request.moves.len()
            )));
        }
        let mut orders = Vec::new();
        for step in &request.moves {
            orders.push(self.order_of(request.planner_term, step)?);
        }
        Ok(self.try_all(orders).map(|outcome| Ok(outcome_to_wire(outcome))).boxed())
    }

    /// Tries orders side by side.
    pub(super) fn try_all(self: &Arc<Self>, orders: Vec<Order>) -> BoxStream<'static, Outcome> {
        let lives: Arc<BTreeMap<NodeId, u64>> = Arc::new(self.host.peer_incarnations());
        let inner = Arc::clone(self);
        stream::iter(orders)
            .map(move |order| Arc::clone(&inner).try_one(order, Arc::clone(&lives)))
            .buffer_unordered(MAX_MOVES)
            .boxed()
    }

    fn order_of(&self, planner_term: u64, step: &wire::Move) -> Result<Order, Status> {
        let no_node = || Status::invalid_argument("nodes are numbered from 1");
        Ok(Order {
            ticket: Ticket { planner_term: PlannerTerm::new(planner_term), number: step.ticket },
            group: GroupId::new(step.group),
            from: self.host.node_id(),
            to: NodeId::new(step.to).ok_or_else(no_node)?,
            to_incarnation: step.to_incarnation,
            term: step.term,
            // What it is good for is the planner's business.
            tier: Tier::Count,
            bundle: 0,
        })
    }

    async fn try_one(self: Arc<Self>, order: Order, lives: Arc<BTreeMap<NodeId, u64>>) -> Outcome {
        let ticket = order.ticket.number;
        let Some(group) = self.host.group(order.group) else {
            let moved = Err((RejectReason::NotLeader, "the group is not here".to_owned()));
            return Outcome { ticket, moved };
        };
        let standing = standing_of(&group.status(), lives.get(&order.to).copied());
        let admitted = {
            let mut fence = self.fence.lock();
            fence.stop(self.local_stop());
            fence.system_term(self.system_term());
            fence.admit(&order, &standing, self.uptime_ms())
        };
        if let Err(refusal) = admitted {
            return Outcome { ticket, moved: Err((reason_of(&refusal), refusal.to_string())) };
        }
        let transfer = group.transfer_to_first_fit([order.to], MAX_LAG);
        let moved = match tokio::time::timeout(LONGEST, transfer).await {
            Ok(Ok(moved)) => {
                self.reporter.note_moved(order.group);
                Ok(moved.stalled)
            }
            Ok(Err(error)) => Err((error.reason(), error.to_string())),
            Err(_) => Err((RejectReason::NoAnswer, "the transfer continues".to_owned())),
        };
        Outcome { ticket, moved }
    }

    /// The term of the system group, where a replica of it is here.
    fn system_term(&self) -> Option<u64> {
        self.host.group(SYSTEM_GROUP).map(|group| group.status().term.get())
    }

    /// Since the host takes part, by a clock that never goes back.
    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The local switch, as it is reported to a planner.
    pub(super) fn local_stop(&self) -> Option<Stop> {
        let reason = "the local switch of the host".to_owned();
        self.is_stopped().then_some(Stop { scope: StopScope::Host, reason })
    }
}

fn outcome_to_wire(outcome: Outcome) -> wire::MoveOutcome {
    let ticket = outcome.ticket;
    match outcome.moved {
        Ok(stalled) => wire::MoveOutcome {
            ticket,
            moved: true,
            stalled_us: u64::try_from(stalled.as_micros()).unwrap_or(u64::MAX),
            ..wire::MoveOutcome::default()
        },
        Err((reason, message)) => {
            let reason = reason.name().to_owned();
            wire::MoveOutcome { ticket, reason, message, ..wire::MoveOutcome::default() }
        }
    }
}

/// An outcome as it came. A reason that is not known here is a refusal.
pub(super) fn outcome_from_wire(outcome: wire::MoveOutcome) -> Outcome {
    let reason = RejectReason::by_name(&outcome.reason).unwrap_or(RejectReason::Refused);
    let moved = match outcome.moved {
        true => Ok(Duration::from_micros(outcome.stalled_us)),
        false => Err((reason, outcome.message)),
    };
    Outcome { ticket: outcome.ticket, moved }
}

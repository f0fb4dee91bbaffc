//! Orders in flight, what a host does with one, and how its outcome is reported.

use shardhost_groups::core::{TransferOutcome, TransferTarget};
use shardhost_groups::{GroupStatus, NodeId, RejectReason};

use super::host::{Progress, Running};
use super::world::{Desk, Event, World};
use crate::executor::{MoveOutcome, Order, OrderRefusal, Standing};
use crate::inputs::moves::{LONGEST, MAX_LAG, outcome_of, reason_of, standing_of};

impl World {
    /// No host was reached; the planner's host may notice.
    pub(super) fn order_is_lost(&mut self, by: Desk, order: Order) {
        if self.chance.per_mille(500) {
            let outcome = MoveOutcome::Failed { reason: RejectReason::LeaderUnreachable };
            let late = self.chance.between(100, 1_500);
            self.after(late, Event::Answered { to: by, order, outcome });
        }
    }

    pub(super) fn ordered(&mut self, by: Desk, order: Order) -> Result<(), String> {
        if !self.hosts[&order.from].serves() {
            self.answer(by, order, MoveOutcome::Failed { reason: RejectReason::LeaderUnreachable });
            return Ok(());
        }
        let Some(status) = self.cluster.status(order.from, order.group).cloned() else {
            let moved = Err((RejectReason::NotLeader, "the group is not here".to_owned()));
            self.answer(by, order, outcome_of(moved));
            return Ok(());
        };
        if let Err(refusal) = self.admit(by, &order, &status) {
            self.checks.refused(&refusal);
            self.answer(by, order, outcome_of(Err((reason_of(&refusal), refusal.to_string()))));
            return Ok(());
        }
        self.checks.admitted(&self.hosts[&order.from], &order, &status)?;
        match self.cluster.stalled_until(order.from) {
            Some(until) => {
                let life = self.hosts[&order.from].life;
                let wait = until - self.cluster.now();
                self.after(wait, Event::Admitted { by, order, life });
                Ok(())
            }
            None => self.hand_over(by, order),
        }
    }

    fn admit(&mut self, by: Desk, order: &Order, status: &GroupStatus) -> Result<(), OrderRefusal> {
        let life = self.cluster.heard_by(order.from).get(&order.to).copied();
        let standing: Standing = standing_of(status, life);
        let (sabotage, now_ms) = (self.sabotage, self.cluster.now());
        let Some(host) = self.hosts.get_mut(&order.from) else { return Ok(()) };
        host.heard = host.heard.max(by.planner_term);
        host.fence.stop(host.local_stop());
        match host.fence.admit(order, &standing, now_ms) {
            Err(refusal) if sabotage.overrules(&refusal) => Ok(()),
            verdict => verdict,
        }
    }

    /// The worker receives an order that was admitted before it stalled.
    pub(super) fn admitted(
        &mut self,
        by: Desk,
        order: Order,
        life: Option<u64>,
    ) -> Result<(), String> {
        if self.hosts[&order.from].life == life { self.hand_over(by, order) } else { Ok(()) }
    }

    fn hand_over(&mut self, planner: Desk, order: Order) -> Result<(), String> {
        let to = TransferTarget::FirstFit { candidates: vec![order.to], max_lag: MAX_LAG };
        let answer = self.cluster.hand_over(order.from, order.group, to)?;
        let since = self.cluster.now();
        let running = Running { order, planner, since, answer };
        if let Some(host) = self.hosts.get_mut(&order.from) {
            host.running.push(running);
        }
        Ok(())
    }

    /// Looks how the transfers of a host are doing.
    pub(super) fn look_at_transfers(&mut self, node: NodeId) -> Result<(), String> {
        let now = self.cluster.now();
        let Some(host) = self.hosts.get_mut(&node) else { return Ok(()) };
        let mut ended = Vec::new();
        host.running.retain_mut(|one| match one.look(now, LONGEST) {
            Progress::UnderWay => true,
            Progress::Ended(outcome) => {
                ended.push((one.planner, one.order, Some(outcome)));
                false
            }
            Progress::Forgotten => {
                ended.push((one.planner, one.order, None));
                false
            }
        });
        for (planner, order, outcome) in ended {
            self.transfer_ended(planner, order, outcome);
        }
        Ok(())
    }

    fn transfer_ended(&mut self, planner: Desk, order: Order, outcome: Option<TransferOutcome>) {
        let (now, now_ms) = (self.instant(), self.clock());
        let moved = match outcome {
            Some(Ok((_, _, stalled))) => Ok(stalled),
            Some(Err(error)) => Err((error.reason(), error.to_string())),
            None => Err((RejectReason::NoAnswer, "the transfer continues".to_owned())),
        };
        if moved.is_ok()
            && let Some(host) = self.hosts.get_mut(&order.from)
        {
            host.memory.note_moved(order.group, now);
            self.checks.moved(&order, host.life, now_ms);
        }
        self.answer(planner, order, outcome_of(moved));
    }

    /// Reports to a planner, if the message arrives.
    fn answer(&mut self, to: Desk, order: Order, outcome: MoveOutcome) {
        match self.travel(order.from, to.node) {
            Some(delay) => self.after(delay, Event::Answered { to, order, outcome }),
            None if self.chance.per_mille(500) => {
                self.after(1_000, Event::Answered { to, order, outcome: MoveOutcome::Unknown });
            }
            None => {}
        }
    }

    /// The planner learns how an order ended.
    pub(super) fn answered(
        &mut self,
        to: Desk,
        order: Order,
        outcome: MoveOutcome,
    ) -> Result<(), String> {
        let now_ms = self.planner_clock(to.node);
        let Some(planner_instance) = self
            .seats
            .get_mut(&to.node)
            .filter(|planner_instance| planner_instance.executor.planner_term() == to.planner_term)
        else {
            return Ok(());
        };
        planner_instance.executor.ended(order.ticket, now_ms, outcome);
        self.checks.answered(
            &order,
            outcome,
            now_ms,
            planner_instance.executor.settings().answer_ms,
        );
        self.send_orders(to)
    }
}

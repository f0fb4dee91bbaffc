//! What a host does with an order: it asks its fence, then its target, then hands over.

use super::super::super::{MoveOutcome, Order, OrderRefusal, PlannerTerm, Standing};
use super::cluster::{Cluster, Event};
use super::host::Version;
use shardhost_groups::RejectReason;

/// So long a host waits for a target's answer.
const TARGET_PATIENCE_MS: u64 = 1_000;

impl Cluster {
    pub(super) fn ordered(&mut self, by: PlannerTerm, order: Order) -> Result<(), String> {
        let host = &self.hosts[&order.from];
        if !host.up || host.version == Version::Old {
            self.fail(&order, 5, RejectReason::LeaderUnreachable);
            return Ok(());
        }
        if !host.answers(self.now) {
            return Ok(());
        }
        if let Err(refusal) = self.admit(by, &order) {
            let stopped = matches!(refusal, OrderRefusal::Stopped { .. });
            self.fail(
                &order,
                1,
                if stopped { RejectReason::KillSwitch } else { RejectReason::StaleTerm },
            );
            return Ok(());
        }
        self.checks.admitted(&self.hosts[&order.from], &order, &self.shards)?;
        self.try_target(order);
        Ok(())
    }

    fn fail(&mut self, order: &Order, delay_ms: u64, reason: RejectReason) {
        self.answer(order, delay_ms, MoveOutcome::Failed { reason });
    }

    fn admit(&mut self, by: PlannerTerm, order: &Order) -> Result<(), OrderRefusal> {
        let shard = self.shards.get(&order.group);
        let standing = Standing {
            term: shard.map_or(0, |shard| shard.term),
            leads: shard.is_some_and(|shard| shard.leader == Some(order.from)),
            target_incarnation: self.hosts.get(&order.to).map(|host| host.incarnation),
        };
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&order.from) else {
            return Err(OrderRefusal::NotLeader);
        };
        let verdict = host.fence.admit(order, &standing, now);
        host.heard = host.heard.max(by);
        if self.sabotage.overrules(verdict.as_ref().err()) { Ok(()) } else { verdict }
    }

    /// The gates of a transfer, the cheapest first.
    fn try_target(&mut self, order: Order) {
        let now = self.now;
        let target = &self.hosts[&order.to];
        let Some(shard) = self.shards.get_mut(&order.group) else {
            return;
        };
        let required = &shard.requirement.capabilities;
        if shard.transferring {
            return self.fail(&order, 1, RejectReason::TransferInProgress);
        }
        if !shard.voters.contains(&order.to) || target.draining || !target.has(required) {
            return self.fail(&order, 2, RejectReason::Refused);
        }
        if !target.answers(now) || target.version == Version::Old {
            return self.fail(&order, TARGET_PATIENCE_MS, RejectReason::Silent);
        }
        if target.lag(now) > self.settings.planner.max_lag_entries {
            return self.fail(&order, 2, RejectReason::NotCaughtUp);
        }
        shard.transferring = true;
        let stalls = self.faulty && self.chance.per_mille(50);
        let stalled_ms =
            if stalls { self.chance.between(50, 200) } else { self.chance.between(2, 9) };
        self.after(stalled_ms, Event::Transferred { order, stalled_ms });
    }

    /// A transfer that began comes to its end, unless its leadership was lost on the way.
    pub(super) fn transferred(&mut self, order: &Order, stalled_ms: u64) -> Result<(), String> {
        let now = self.now;
        let target_up = self.hosts[&order.to].answers(now);
        let Some(shard) = self.shards.get_mut(&order.group) else { return Ok(()) };
        shard.transferring = false;
        let holds = shard.leader == Some(order.from) && shard.term == order.term;
        if !holds && !self.sabotage.moves_whatever_the_term() {
            self.fail(order, 1, RejectReason::StaleTerm);
        } else if !target_up {
            self.fail(order, 100, RejectReason::Aborted);
        } else {
            self.checks.moved(shard, order, now)?;
            shard.hand_to(order.to, now);
            self.answer(order, 0, MoveOutcome::Moved { stalled_ms });
        }
        Ok(())
    }
}

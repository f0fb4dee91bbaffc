//! What must hold at every step, whatever goes wrong.

use std::collections::BTreeMap;

use shardhost_storage::{GroupId, NodeId};

use super::super::super::order::back_offs;
use super::super::super::{Answer, Mode, MoveOutcome, Order, PlannerTerm, Round, Ticket, replay};
use super::host::Host;
use super::planner_instance::PlannerInstance;
use super::shape::{COOL_DOWN_MS, MUTE_MS};
use super::shard::{Hosts, Shard};
use crate::planner::{self, Tier};

/// News older than this have reached all hosts.
const NEWS_ARE_HEARD_MS: u64 = 20_000;
/// Between two rounds in which every group is asked for.
const ASK_ALL_EVERY: u64 = 20;

/// A planned move that took place.
#[derive(Clone, Copy, Debug)]
struct Moved {
    at_ms: u64,
    planner_term: PlannerTerm,
    elections: u64,
    /// Its order had been given up when it was carried out.
    given_up: bool,
}

/// What was seen, and how often something happened that a check is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    last_move: BTreeMap<GroupId, Moved>,
    running: BTreeMap<(PlannerTerm, GroupId), (Ticket, u64)>,
    /// When the failure of the last order of a group to a target became known.
    failed: BTreeMap<(PlannerTerm, GroupId, NodeId), u64>,
    orders: BTreeMap<Ticket, Order>,
    rounds: u64,
    answer_ms: u64,
    pub(super) coverage: Coverage,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coverage {
    pub(super) ordered: u64,
    pub(super) moved: u64,
    pub(super) failed: u64,
    pub(super) balance_moves: u64,
    pub(super) held_rounds: u64,
    pub(super) planner_terms: u64,
    pub(super) answers: u64,
}

impl Coverage {
    pub(super) fn add(&mut self, other: Self) {
        self.ordered += other.ordered;
        self.moved += other.moved;
        self.failed += other.failed;
        self.balance_moves += other.balance_moves;
        self.held_rounds += other.held_rounds;
        self.planner_terms += other.planner_terms;
        self.answers += other.answers;
    }
}

fn demand(holds: bool, violation: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(violation()) }
}

impl Checks {
    /// After each round of a planner.
    pub(super) fn round(
        &mut self,
        planner_instance: &PlannerInstance,
        round: &Round,
        now: u64,
    ) -> Result<(), String> {
        self.rounds += 1;
        self.coverage.held_rounds += u64::from(round.hold.is_some());
        self.coverage.planner_terms =
            self.coverage.planner_terms.max(planner_instance.planner_term.get());
        bounds(planner_instance, now)?;
        if let Ok(made) = &round.made {
            let looks = self.rounds.is_multiple_of(ASK_ALL_EVERY);
            if looks || !made.plan.moves.is_empty() {
                planner::check(&made.snapshot, &made.plan).map_err(|error| error.to_string())?;
            }
            if looks {
                replay(made).map_err(|error| error.to_string())?;
            }
        }
        let groups = round.made.as_ref().map(|made| made.snapshot.groups.as_slice());
        let all = groups.unwrap_or_default().iter().map(|group| group.id);
        let nobody = GroupId::new(u64::MAX);
        let asked = if self.rounds.is_multiple_of(ASK_ALL_EVERY) { usize::MAX } else { 1 };
        let skip = self.rounds as usize % groups.map_or(1, <[_]>::len).max(1);
        for group in all.skip(skip).take(asked).chain([nobody]) {
            self.coverage.answers += 1;
            answers(planner_instance, group, now)?;
        }
        Ok(())
    }

    /// Orders that a planner allows to start.
    pub(super) fn started(
        &mut self,
        planner_instance: &PlannerInstance,
        orders: &[Order],
        now: u64,
        hosts: &Hosts,
        shards: &BTreeMap<GroupId, Shard>,
    ) -> Result<(), String> {
        let allowed = planner_instance.mode == Mode::On && planner_instance.stopped.is_none();
        demand(allowed || orders.is_empty(), || {
            format!(
                "{} heard {} {:?}, and starts {orders:?}",
                planner_instance.planner_term, planner_instance.mode, planner_instance.stopped
            )
        })?;
        let warm_up_ends =
            planner_instance.began_ms + planner_instance.executor.settings.warm_up_ms;
        demand(now >= warm_up_ends || orders.is_empty(), || {
            format!(
                "{} is in its warm_up until {warm_up_ends}, and starts {orders:?}",
                planner_instance.planner_term
            )
        })?;
        for order in orders {
            self.coverage.ordered += 1;
            self.one_at_a_time(planner_instance, order, now)?;
            self.not_asked_again(planner_instance, order, now, hosts, shards)?;
            self.orders.insert(order.ticket, *order);
        }
        Ok(())
    }

    fn one_at_a_time(
        &mut self,
        planner_instance: &PlannerInstance,
        order: &Order,
        now: u64,
    ) -> Result<(), String> {
        let key = (order.ticket.planner_term, order.group);
        self.answer_ms = planner_instance.executor.settings.answer_ms;
        if let Some((other, since)) = self.running.insert(key, (order.ticket, now)) {
            demand(now >= since + self.answer_ms, || {
                format!("group {} has orders {other} and {} at a time", order.group, order.ticket)
            })?;
        }
        Ok(())
    }

    /// A target that failed is not asked again for a while, unless there is news of it.
    fn not_asked_again(
        &self,
        planner_instance: &PlannerInstance,
        order: &Order,
        now: u64,
        hosts: &Hosts,
        shards: &BTreeMap<GroupId, Shard>,
    ) -> Result<(), String> {
        let Some(at) = self.failed.get(&(order.ticket.planner_term, order.group, order.to)) else {
            return Ok(());
        };
        let since = at.saturating_sub(NEWS_ARE_HEARD_MS);
        let news = hosts[&order.to].news_at_ms >= since
            || hosts[&order.from].news_at_ms >= since
            || shards.get(&order.group).is_none_or(|shard| shard.news_at_ms >= since);
        let few = planner_instance.executor.settings.bounds.back_offs < 100;
        demand(news || few || now >= at + MUTE_MS, || {
            format!("group {} asks node {} {} ms after it failed", order.group, order.to, now - at)
        })
    }

    /// An order ended, and its planner received the outcome. Orders that it gave up before do not
    /// concern it.
    pub(super) fn ended(
        &mut self,
        planner_instance: &PlannerInstance,
        ticket: Ticket,
        outcome: MoveOutcome,
        now: u64,
    ) {
        let Some(order) = self.orders.get(&ticket) else { return };
        let key = (ticket.planner_term, order.group);
        let running = self.running.get(&key).copied().filter(|(running, _)| *running == ticket);
        let Some((_, since)) = running else { return };
        self.running.remove(&key);
        let in_time = now < since + planner_instance.executor.settings.answer_ms;
        if let MoveOutcome::Failed { reason } = outcome
            && in_time
        {
            self.coverage.failed += 1;
            if back_offs(reason) {
                self.failed.insert((ticket.planner_term, order.group, order.to), now);
            }
        }
    }

    /// The newest order of the newest planner.
    pub(super) fn last_order(&self) -> Option<&Order> {
        self.orders.values().next_back()
    }

    /// A host begins to carry an order out.
    pub(super) fn admitted(
        &self,
        host: &Host,
        order: &Order,
        shards: &BTreeMap<GroupId, Shard>,
    ) -> Result<(), String> {
        demand(order.ticket.planner_term >= host.heard, || {
            format!(
                "node {} heard planner term {}, and obeys {}",
                host.id, host.heard, order.ticket
            )
        })?;
        demand(!host.stopped, || format!("node {} is stopped, and obeys", host.id))?;
        shards.get(&order.group).map_or(Ok(()), |shard| fenced(shard, order))
    }

    /// A planned move takes place.
    pub(super) fn moved(&mut self, shard: &Shard, order: &Order, now: u64) -> Result<(), String> {
        fenced(shard, order)?;
        self.coverage.moved += 1;
        let planner_term = order.ticket.planner_term;
        let key = (planner_term, order.group);
        let running = self.running.get(&key).filter(|(ticket, _)| *ticket == order.ticket);
        let given_up = running.is_none_or(|(_, since)| now >= since + self.answer_ms);
        let moved = Moved { at_ms: now, planner_term, elections: shard.elections, given_up };
        let last = self.last_move.insert(shard.id, moved);
        if order.tier <= Tier::Displaced {
            return Ok(());
        }
        self.coverage.balance_moves += 1;
        // Moves of an earlier planner, and those whose order arrived after it had been given up,
        // are known only from the resulting leader. An election hides one.
        let hidden = |last: &Moved| {
            (last.planner_term != planner_term || last.given_up)
                && last.elections != shard.elections
        };
        let Some(last) = last.filter(|last| !hidden(last)) else { return Ok(()) };
        demand(now >= last.at_ms + COOL_DOWN_MS, || {
            format!("{order:?} moves again {} ms after {last:?}", now - last.at_ms)
        })
    }
}

fn fenced(shard: &Shard, order: &Order) -> Result<(), String> {
    demand(shard.leader == Some(order.from) && shard.term == order.term, || {
        format!("{order:?} meets leader {:?} in term {}", shard.leader, shard.term)
    })
}

fn bounds(planner_instance: &PlannerInstance, now: u64) -> Result<(), String> {
    let (executor, shape) = (&planner_instance.executor, &planner_instance.bounds);
    let status = executor.status(now);
    let kept = [
        ("moves in the ledger", status.in_flight + status.unconfirmed, shape.ledger),
        ("moves in flight", status.in_flight, executor.settings.window.most as usize),
        ("back_offs", status.back_offs, shape.back_offs),
        ("moves in the queue", status.queued, shape.queue),
        ("records", executor.recorded().count() as u64, shape.records),
    ];
    let (counted, running) = (executor.pace.all.window.in_flight(), executor.ledger.running());
    demand(counted as usize == running, || {
        format!("the window counts {counted} moves under way, the ledger {running}")
    })?;
    for (what, found, bound) in kept {
        demand(found <= bound as u64, || format!("{found} {what}, of at most {bound}"))?;
    }
    Ok(())
}

/// Every group has a specific answer.
fn answers(planner_instance: &PlannerInstance, group: GroupId, now: u64) -> Result<(), String> {
    let why = planner_instance.executor.why(group, now);
    let empty = why.answer == Answer::AsPlanned && why.explanation.is_none();
    demand(!empty && !why.to_string().is_empty(), || format!("no answer: {why:?}"))
}

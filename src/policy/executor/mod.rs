//! The executor: executes plans. In each pass it plans from the reports; between passes it returns
//! the orders for hosts and receives their outcomes.
//!
//! Pure, as the planner is: time comes in, there is no chance, no thread and no I/O, and the same
//! calls give the same orders on any machine. It must not know how reports are gathered nor how
//! orders travel. A driver does both, on the leader of the system group: [`Executor::round`] every
//! second, [`Executor::next_orders`] after it and after each [`Executor::ended`].
//!
//! | where | what |
//! |---|---|
//! | `observation`, `order`, `hold` | what comes in and goes out: data |
//! | `settings` | every limit |
//! | `warm_up` | a new executor moves nothing until all nodes have reported |
//! | `load`, `cool_down`, `back_offs`, `ledger` | memory between passes, which is part of the planner's input |
//! | `queue` | what of the last plan has not started |
//! | `pace`, `window`, `bucket`, `breaker` | how much may be under way, and how fast it starts |
//! | `record` | rounds that can be planned again, byte for byte |
//! | `why`, `status`, `counts` | an answer for every group; all of it at a glance |
//! | `fence` | what a host asks before it carries an order out |
//!
//! Modes, kill switch, breaker and warm_up concern planned moves only. Refusing a leadership and
//! draining are done by each host itself, and nothing here delays them.
//!
//! **Invariant:** an order is for one term of one group, and a group has one order at a time. So a
//! late or repeated order moves nothing twice. **Invariant:** an ordered move counts as done until
//! reports show its outcome. **Invariant:** all memory is bounded by [`Bounds`].

mod back_offs;
mod breaker;
mod bucket;
mod cool_down;
mod counts;
mod fence;
mod hold;
mod ledger;
mod load;
mod observation;
mod order;
mod pace;
mod queue;
mod record;
mod settings;
mod status;
mod warm_up;
mod why;
mod window;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use shardhost_groups::RejectReason;
use shardhost_storage::NodeId;

pub use breaker::BreakerState;
pub use fence::{Fence, OrderRefusal, Standing};
pub use hold::{Hold, Wait};
pub use observation::{Mode, NoPlan, Observation, Round, Stop, StopScope};
pub use order::{MoveOutcome, Order, PlannerTerm, Ticket};
pub use pace::End;
pub use record::{Recorded, ReplayError, replay};
pub use settings::{BackOffSettings, Bounds, BreakerSettings, ExecutorSettings, LoadSettings};
pub use settings::{Rate, Rates, WindowSettings};
pub use status::{ExecutorStatus, PlanStatus, TroubledNode};
pub use why::{Answer, Why};
pub use window::Window;

use crate::planner::{self, Move, Snapshot};
use back_offs::BackOffs;
use cool_down::CoolDown;
use counts::Counts;
use ledger::{Entry, Ledger};
use load::Loads;
use order::{Blame, Verdict};
use pace::Pace;
use queue::{Bundle, Lane, Queue};
use record::{Records, same_outcome};
use warm_up::WarmUp;

/// Carries plans out in one planner term. Another planner term begins with another executor.
#[derive(Clone, Debug)]
pub struct Executor {
    planner_term: PlannerTerm,
    settings: ExecutorSettings,
    /// The newest time given: if the clock goes back, time stops here.
    now_ms: u64,
    mode: Mode,
    stopped: Option<Stop>,
    warm_up: WarmUp,
    loads: Loads,
    cool_down: CoolDown,
    back_offs: BackOffs,
    ledger: Ledger,
    queue: Queue,
    pace: Pace,
    last: Option<Last>,
    records: Records,
    counts: Counts,
    /// The number of the next ticket.
    next: u64,
}

#[derive(Clone, Debug)]
struct Last {
    at_ms: u64,
    made: Result<Arc<Recorded>, NoPlan>,
}

impl Executor {
    /// A new executor, at this time of the planner's clock in milliseconds. It is off until the
    /// first pass sets a mode.
    #[must_use]
    pub fn new(planner_term: PlannerTerm, now_ms: u64, settings: ExecutorSettings) -> Self {
        let bounds = &settings.bounds;
        Self {
            planner_term,
            now_ms,
            mode: Mode::Off,
            stopped: None,
            warm_up: WarmUp::new(now_ms, &settings),
            loads: Loads::new(settings.load),
            cool_down: CoolDown::new(bounds.cool_down),
            back_offs: BackOffs::new(settings.back_off, bounds.back_offs),
            ledger: Ledger::default(),
            queue: Queue::default(),
            pace: Pace::new(&settings, now_ms),
            last: None,
            records: Records::new(bounds),
            counts: Counts::default(),
            next: 1,
            settings,
        }
    }

    /// The planner term that its orders are of.
    #[must_use]
    pub const fn planner_term(&self) -> PlannerTerm {
        self.planner_term
    }

    /// What it was made with.
    #[must_use]
    pub const fn settings(&self) -> &ExecutorSettings {
        &self.settings
    }

    /// Rounds that moved something or came to another plan than the one before; the oldest first.
    pub fn recorded(&self) -> impl Iterator<Item = &Recorded> {
        self.records.iter().map(|round| &**round)
    }

    /// The mode or a kill switch changed. Takes effect at once; a round does it too.
    pub fn control(&mut self, mode: Mode, stopped: Option<Stop>) {
        self.mode = mode;
        self.stopped = stopped;
        if !self.carries_out() {
            self.queue.clear();
            self.ledger.drop_rests();
        }
    }

    /// Plans again. Moves that an earlier pass planned and did not start are forgotten; moves in
    /// flight continue, and count as done.
    pub fn round(&mut self, seen: Observation) -> Round {
        let now = self.advance(seen.now_ms);
        self.control(seen.mode, seen.stopped);
        let made = self.plan(seen.snapshot, &seen.reported_ms, now).map(Arc::new);
        self.queue.clear();
        self.ledger.drop_rests();
        self.counts.rounds += 1;
        self.adopt(made.as_ref().ok());
        self.last = Some(Last { at_ms: now, made: made.clone() });
        Round { planned_at_ms: now, made, queued: self.queue.len(), hold: self.hold(now) }
    }

    /// The orders that may start at this time. Each counts as in flight from here on, until
    /// [`Executor::ended`] gets its ticket or the time for an answer has passed.
    #[must_use = "what is not sent counts as under way all the same"]
    pub fn next_orders(&mut self, now_ms: u64) -> Vec<Order> {
        let now = self.advance(now_ms);
        let mut orders = Vec::new();
        if self.hold(now).is_some() || self.is_full(now) {
            return orders;
        }
        let mut heads = self.queue.heads();
        while let Some((_, lane)) = heads.pop_first() {
            if self.is_full(now) {
                break;
            }
            if self.pace.blocks(lane, now).is_some() {
                continue;
            }
            orders.extend(self.queue.pop(lane).and_then(|bundle| self.start(bundle, now)));
            heads.extend(self.queue.head(lane).map(|place| (place, lane)));
        }
        if !orders.is_empty() {
            self.keep_last();
        }
        orders
    }

    /// How an order ended. Tickets of other planner terms, and those that were given up, change
    /// nothing.
    pub fn ended(&mut self, ticket: Ticket, now_ms: u64, outcome: MoveOutcome) {
        self.now_ms = self.now_ms.max(now_ms);
        if ticket.planner_term == self.planner_term {
            self.finish(ticket.number, outcome, self.now_ms);
        }
        self.advance(now_ms);
    }

    /// Takes over the time, and gives up orders without an answer.
    fn advance(&mut self, now_ms: u64) -> u64 {
        self.now_ms = self.now_ms.max(now_ms);
        if let Some(begun) = self.now_ms.checked_sub(self.settings.answer_ms) {
            for order in self.ledger.begun_until(begun) {
                self.finish(order.ticket.number, MoveOutcome::Unknown, self.now_ms);
            }
        }
        self.now_ms
    }

    fn plan(
        &mut self,
        mut snapshot: Snapshot,
        reported_ms: &BTreeMap<NodeId, u64>,
        now: u64,
    ) -> Result<Recorded, NoPlan> {
        snapshot.now_ms = now;
        snapshot.settings = self.settings.planner.clone();
        snapshot.moves.clear();
        snapshot.back_offs.clear();
        let mut snapshot = snapshot.canonicalise()?;
        self.absorb(&mut snapshot, reported_ms, now);
        if self.mode == Mode::Off {
            return Err(NoPlan::Off);
        }
        self.judge_nodes(&mut snapshot, reported_ms, now);
        snapshot.moves = self.ledger.moves();
        snapshot.back_offs = self.back_offs.in_force(now);
        let plan = planner::plan(&snapshot)?;
        Ok(Recorded { snapshot, plan })
    }

    /// Takes over the reports, and adds the memory of the executor.
    fn absorb(&mut self, snapshot: &mut Snapshot, reported: &BTreeMap<NodeId, u64>, now: u64) {
        self.warm_up.look(&snapshot.nodes, reported, now);
        let expiry_ms = self.settings.expiry_ms;
        for (group, at_ms) in self.ledger.settle(&snapshot.groups, reported, now, expiry_ms) {
            self.cool_down.note(group, at_ms);
        }
        self.back_offs.refresh(snapshot, now);
        self.cool_down.exchange(&mut snapshot.groups, now, snapshot.settings.cool_down_ms);
        self.loads.settle(&mut snapshot.groups, now);
        let nodes = &snapshot.nodes;
        self.pace.tidy(|id| nodes.binary_search_by_key(&id, |node| node.id).is_ok(), now);
    }

    /// Who did not report for long is neither source nor target. Who failed often as a target takes
    /// only what has nowhere else to go, as a node does that came up a short time ago.
    fn judge_nodes(&self, snapshot: &mut Snapshot, reported: &BTreeMap<NodeId, u64>, now: u64) {
        let shunned: Vec<NodeId> = self.pace.shunned(now).collect();
        for node in &mut snapshot.nodes {
            let newest = reported.get(&node.id).copied().unwrap_or(0).max(self.warm_up.began_ms);
            node.live &= now.saturating_sub(newest) <= self.settings.silent_ms;
            if shunned.contains(&node.id) {
                node.live_since_ms = now;
            }
        }
    }

    /// Takes a plan over: its moves wait to start, or are counted as what would move.
    fn adopt(&mut self, made: Option<&Arc<Recorded>>) {
        if self.carries_out() {
            self.counts.would(None);
            let moves = made.map_or(&[][..], |made| &made.plan.moves);
            self.queue.fill(moves, self.settings.bounds.queue);
        } else {
            self.counts.would(made.map(|made| &made.plan));
        }
        let before = self.last.as_ref().and_then(|last| last.made.as_ref().ok());
        if let Some(made) = made
            && !before.is_some_and(|before| same_outcome(&before.plan, &made.plan))
        {
            self.records.keep(made);
        }
    }

    fn keep_last(&mut self) {
        if let Some(Last { made: Ok(made), .. }) = &self.last {
            self.records.keep(made);
        }
    }

    fn carries_out(&self) -> bool {
        self.mode == Mode::On && self.stopped.is_none()
    }

    /// Why nothing starts at all.
    fn hold(&self, now: u64) -> Option<Hold> {
        let Some(last) = &self.last else { return Some(Hold::NoRound) };
        match (self.mode, &self.stopped, &last.made) {
            (Mode::Off, _, _) => return Some(Hold::Off),
            (_, Some(stop), _) => return Some(Hold::Stopped(stop.clone())),
            (Mode::Shadow, None, _) => return Some(Hold::Shadow),
            (Mode::On, None, Err(no_plan)) => return Some(self.no_plan(no_plan)),
            (Mode::On, None, Ok(_)) => {}
        }
        if let Some(hold) = self.warm_up.hold() {
            return Some(hold);
        }
        if now > last.at_ms.saturating_add(self.settings.plan_life_ms) {
            return Some(Hold::PlanTooOld { made_at_ms: last.at_ms });
        }
        let breaker = &self.pace.all.breaker;
        (!breaker.admits(now)).then(|| Hold::Breaker(breaker.state(now)))
    }

    /// Whether no further move may start as long as none ends.
    fn is_full(&self, now: u64) -> bool {
        self.ledger.len() >= self.settings.bounds.ledger
            || self.pace.full().is_some()
            || !self.pace.all.breaker.admits(now)
    }

    /// What a planned move of this lane waits for.
    fn waits_for(&self, lane: Lane, now: u64) -> Wait {
        let ledger_full = self.ledger.len() >= self.settings.bounds.ledger;
        let hold = self.hold(now).map(Wait::Hold);
        let full = || ledger_full.then_some(Wait::Ledger).or_else(|| self.pace.full());
        hold.or_else(full).or_else(|| self.pace.blocks(lane, now)).unwrap_or(Wait::Turn)
    }

    /// Starts the first step of a bundle. `None`: it conflicts with moves in flight, and is
    /// dropped.
    fn start(&mut self, bundle: Bundle, now: u64) -> Option<Order> {
        let mut steps = bundle.steps.into_iter();
        let step = steps.next()?;
        if self.ledger.get(step.group).is_some() {
            return None;
        }
        let order = self.order(&step);
        self.ledger.insert(Entry::new(order, now, bundle.place, steps.collect()));
        self.pace.start(&order, now);
        self.counts.ordered(order.tier);
        Some(order)
    }

    fn order(&mut self, step: &Move) -> Order {
        let ticket = Ticket { planner_term: self.planner_term, number: self.next };
        self.next += 1;
        Order {
            ticket,
            group: step.group,
            from: step.from,
            to: step.to,
            to_incarnation: step.to_incarnation,
            term: step.term,
            tier: step.tier,
            bundle: step.bundle,
        }
    }

    fn finish(&mut self, number: u64, outcome: MoveOutcome, now: u64) {
        let known = match outcome {
            MoveOutcome::Moved { stalled_ms } => self.moved(number, stalled_ms, now),
            MoveOutcome::Failed { reason } => self.failed(number, reason, now),
            MoveOutcome::Unknown => self.unanswered(number, now),
        };
        if known.is_none() {
            self.counts.late_answers += 1;
        }
    }

    fn moved(&mut self, number: u64, stalled_ms: u64, now: u64) -> Option<()> {
        let entry = self.ledger.complete(number, now)?;
        let (order, place, rest) = (entry.order, entry.place, std::mem::take(&mut entry.rest));
        self.cool_down.note(order.group, now);
        self.back_offs.remove((order.group, order.to));
        let long = stalled_ms > self.settings.longest_stall_ms;
        let verdict = if long { Verdict::Bad(Blame::Both) } else { Verdict::Good };
        self.pace.end(&order, verdict, self.next, now);
        self.counts.moved(order.tier, stalled_ms);
        self.queue.push(place, rest);
        Some(())
    }

    fn failed(&mut self, number: u64, reason: RejectReason, now: u64) -> Option<()> {
        let order = self.ledger.remove(number)?.order;
        self.give_up(&order, reason, now);
        Some(())
    }

    /// The host had until the end of the time for an answer: a report after that shows what it did.
    fn unanswered(&mut self, number: u64, now: u64) -> Option<()> {
        let since_ms = self.ledger.since(number)?;
        let end = since_ms.saturating_add(self.settings.answer_ms);
        let order = self.ledger.give_up(number, now.max(end))?;
        self.give_up(&order, RejectReason::NoAnswer, now);
        Some(())
    }

    fn give_up(&mut self, order: &Order, reason: RejectReason, now: u64) {
        if order::back_offs(reason) {
            let last = self.last.as_ref().and_then(|last| last.made.as_ref().ok());
            let snapshot = last.map(|made| &made.snapshot);
            self.back_offs.add((order.group, order.to), snapshot, now);
        }
        self.pace.end(order, order::verdict(reason), self.next, now);
        self.counts.failed(order.tier, reason);
    }
}

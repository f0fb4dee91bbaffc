//! How much may be under way, and how fast it may start: a window and a breaker over all moves, one
//! of each for both ends of a move, and a bucket for each tier. Knows no groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shardhost_storage::NodeId;

use super::breaker::{Bad, Breaker, BreakerState, Scope};
use super::bucket::Bucket;
use super::hold::Wait;
use super::order::{Blame, Order, Verdict};
use super::queue::Lane;
use super::settings::ExecutorSettings;
use super::window::Window;
use crate::planner::Tier;

/// What an outcome means for one kind of moves.
#[derive(Clone, Copy, Debug)]
enum Lesson {
    Nothing,
    Good,
    Bad(Bad),
}

/// The number of a move that ended, that of the next to start, and when.
#[derive(Clone, Copy, Debug)]
struct Ended {
    number: u64,
    next: u64,
    now_ms: u64,
}

/// The moves from one node, or those to one node, or all.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    pub(super) window: Window,
    pub(super) breaker: Breaker,
}

impl Traffic {
    fn of_all(settings: &ExecutorSettings) -> Self {
        Self {
            window: Window::new(settings.window),
            breaker: Breaker::new(settings.breaker, Scope::All),
        }
    }

    fn of_one_end(settings: &ExecutorSettings) -> Self {
        Self {
            window: Window::new(settings.node_window),
            breaker: Breaker::new(settings.node_breaker, Scope::OneEnd),
        }
    }

    fn start(&mut self, number: u64) {
        self.window.start();
        self.breaker.start(number);
    }

    fn end(&mut self, ended: Ended, lesson: Lesson) {
        let Ended { number, next, now_ms } = ended;
        self.window.end();
        match lesson {
            Lesson::Nothing => self.breaker.forget(number),
            Lesson::Good => {
                self.breaker.learn(number, None, now_ms);
                self.window.grow();
            }
            Lesson::Bad(bad) => {
                self.breaker.learn(number, Some(bad), now_ms);
                self.window.cut(number, next);
            }
        }
    }

    fn is_idle(&self, now_ms: u64) -> bool {
        self.window.in_flight() == 0 && self.breaker.is_idle(now_ms)
    }
}

/// Which end of a move a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It leads, and should no longer.
    Giver,
    Receiver,
}

#[derive(Clone, Debug)]
pub(super) struct Pace {
    settings: ExecutorSettings,
    pub(super) all: Traffic,
    /// Of nodes that had something to do.
    ends: BTreeMap<(NodeId, End), Traffic>,
    buckets: BTreeMap<Tier, Bucket>,
}

impl Pace {
    pub(super) fn new(settings: &ExecutorSettings, now_ms: u64) -> Self {
        let bucket = |tier| (tier, Bucket::new(settings.rates.of(tier), now_ms));
        let tiers = [
            Tier::Capability,
            Tier::Displaced,
            Tier::Preference,
            Tier::Spread,
            Tier::Load,
            Tier::Count,
        ];
        Self {
            settings: settings.clone(),
            all: Traffic::of_all(settings),
            ends: BTreeMap::new(),
            buckets: tiers.into_iter().map(bucket).collect(),
        }
    }

    /// What keeps every move from starting, the breaker apart.
    pub(super) fn full(&self) -> Option<Wait> {
        let size = self.all.window.size();
        (!self.all.window.has_room()).then_some(Wait::Window { size })
    }

    /// What keeps a move of this lane from starting, what concerns all apart.
    pub(super) fn blocks(&self, (from, to, tier): Lane, now_ms: u64) -> Option<Wait> {
        if self.buckets.get(&tier).is_some_and(|bucket| !bucket.has_token(now_ms)) {
            return Some(Wait::Rate { tier });
        }
        let ends = [(from, End::Giver), (to, End::Receiver)];
        ends.into_iter().find_map(|end| self.blocks_end(end, now_ms))
    }

    fn blocks_end(&self, end: (NodeId, End), now_ms: u64) -> Option<Wait> {
        let traffic = self.ends.get(&end)?;
        let node = end.0;
        if !traffic.breaker.admits(now_ms) {
            return Some(Wait::NodeBreaker { node, state: traffic.breaker.state(now_ms) });
        }
        let size = traffic.window.size();
        (!traffic.window.has_room()).then_some(Wait::NodeWindow { node, size })
    }

    pub(super) fn start(&mut self, order: &Order, now_ms: u64) {
        let number = order.ticket.number;
        self.all.start(number);
        for end in [(order.from, End::Giver), (order.to, End::Receiver)] {
            let traffic =
                self.ends.entry(end).or_insert_with(|| Traffic::of_one_end(&self.settings));
            traffic.start(number);
        }
        if let Some(bucket) = self.buckets.get_mut(&order.tier) {
            bucket.take(now_ms);
        }
    }

    /// An order ended; `next` is the number of the next that starts.
    pub(super) fn end(&mut self, order: &Order, verdict: Verdict, next: u64, now_ms: u64) {
        let ended = Ended { number: order.ticket.number, next, now_ms };
        let (giver, receiver) = ((order.from, End::Giver), (order.to, End::Receiver));
        let (of_all, of_giver, of_receiver) = lessons(order, verdict);
        self.all.end(ended, of_all);
        for (end, lesson) in [(giver, of_giver), (receiver, of_receiver)] {
            if let Some(traffic) = self.ends.get_mut(&end) {
                traffic.end(ended, lesson);
            }
        }
    }

    /// Nodes that failed as targets so often that they take only what has nowhere else to go.
    pub(super) fn shunned(&self, now_ms: u64) -> impl Iterator<Item = NodeId> + '_ {
        let receivers = self.ends.iter().filter(|((_, end), _)| *end == End::Receiver);
        let open = receivers.filter(move |(_, traffic)| traffic.breaker.is_open(now_ms));
        open.map(|((node, _), _)| *node)
    }

    /// Forgets nodes about which nothing is to be remembered.
    pub(super) fn tidy(&mut self, known: impl Fn(NodeId) -> bool, now_ms: u64) {
        self.ends.retain(|(node, _), traffic| known(*node) || !traffic.is_idle(now_ms));
    }

    /// The breakers of nodes that are not closed.
    pub(super) fn troubled(&self, now_ms: u64) -> Vec<(NodeId, End, BreakerState)> {
        let states = self.ends.iter();
        let states = states.map(|((node, end), of)| (*node, *end, of.breaker.state(now_ms)));
        states.filter(|(_, _, state)| *state != BreakerState::Closed).collect()
    }
}

/// What all moves, the source and the target learn from an outcome. A failure that one end is
/// blamed for means nothing for the other.
const fn lessons(order: &Order, verdict: Verdict) -> (Lesson, Lesson, Lesson) {
    let (from, to) = (Some(order.from), Some(order.to));
    match verdict {
        Verdict::Good => (Lesson::Good, Lesson::Good, Lesson::Good),
        Verdict::Neutral => (Lesson::Nothing, Lesson::Nothing, Lesson::Nothing),
        Verdict::Bad(Blame::Giver) => {
            let bad = Lesson::Bad(Bad { giver: from, receiver: None });
            (bad, bad, Lesson::Nothing)
        }
        Verdict::Bad(Blame::Receiver) => {
            let bad = Lesson::Bad(Bad { giver: None, receiver: to });
            (bad, Lesson::Nothing, bad)
        }
        Verdict::Bad(Blame::Both) => {
            let bad = Lesson::Bad(Bad { giver: from, receiver: to });
            (bad, bad, bad)
        }
    }
}

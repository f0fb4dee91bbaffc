//! Emptying a node of its leaderships, at a pace that the others bear, and keeping it empty.
//!
//! The node advertises that it is draining: no other node transfers a leadership to it from then
//! on, and it campaigns last. Then it transfers what it leads, by one assignment for all groups
//! that respects what the others lead already, and what the catalog intends. Each transfer is
//! agreed and checked separately. Groups that cannot move are named, and are not waited for, unless
//! the reason is temporary: a successor that catches up, a change of members.
//!
//! **A drain lasts until it is ended.** A leadership that the node acquires later is transferred
//! too, and groups that could not move are tried again, with growing pauses. Progress is therefore
//! not an event but a state: what the node leads is counted at each request.
//!
//! How many transfers are under way grows with each part of a window that went well, and is halved
//! when one fails or takes long: the others are busy. Transfers that fail together count once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shardhost_groups::leadership::LeaderAcquired;
use shardhost_groups::selector::GroupSelector;
use shardhost_groups::{Group, GroupId, NodeId, TransferError, Transferred};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use shardhost_policy::executor::{Window, WindowSettings};
use shardhost_policy::inputs::view::add_intentions;
use shardhost_policy::planner;

use super::view::local_view;
use super::{CatalogView, SYSTEM_GROUP};
use crate::host::Host;

const WINDOW: WindowSettings = WindowSettings { first: 64, least: 8, most: 1_024 };
/// Between two looks at the rest, when no transfer is in flight.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A group that cannot go as things are is tried again after this, and after twice as long each time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// At most: nothing notifies when a successor is back.
const RETRY_AT_LEAST_EVERY: Duration = Duration::from_secs(8);
/// An empty node checks this often whether it leads anything, beside being notified.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// For a temporary reason, as a successor that lacks entries.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// A transfer that took longer than this halves the window: the others are busy.
const LONG_TRANSFER: Duration = Duration::from_millis(500);
/// Entries that a successor may lack when it is asked.
const MAX_LAG: u64 = 1_024;
/// Groups that cannot go, of which the reason is kept.
const MAX_REASONS: usize = 1_000;

/// What becomes of a node that could not be emptied in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// It stays draining, and leads what it could not transfer.
    #[default]
    KeepDraining,
    /// It is a node like the others again.
    Undrain,
}

/// How a node is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainOptions {
    /// How long it may take until the node leads nothing. Default 60 s.
    pub deadline: Duration,
    /// What happens when it takes longer.
    pub fallback: Fallback,
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60), fallback: Fallback::default() }
    }
}

impl DrainOptions {
    /// With another deadline.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
    /// With another fallback.
    #[must_use]
    pub const fn fallback(mut self, fallback: Fallback) -> Self {
        self.fallback = fallback;
        self
    }
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainState {
    /// Leaderships are being handed on.
    #[default]
    Running,
    /// Nothing is left that could go. The node is empty if nothing is left at all.
    Done,
    /// The deadline passed, and the node was never empty.
    Overdue,
    Cancelled,
}

/// Results of a drain so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainProgress {
    pub state: DrainState,
    /// Leaderships that are here, those that cannot go among them.
    pub left: usize,
    pub moved: u64,
    pub failed: u64,
    /// Transfers that may be under way.
    pub window: usize,
    /// From the begin of the drain until the node led nothing for the first time, or until now.
    pub elapsed: Duration,
    /// Leaderships that cannot go as things are, and why, in words that end with the name of the
    /// [`RejectReason`](shardhost_groups::RejectReason); the first thousand by group.
    pub undrainable: BTreeMap<GroupId, String>,
}

/// A drain of this process's node. Dropping it ends the drain where it is; the node keeps
/// advertising that it is draining until [`Drain::undrain`], or [`Host::set_draining`].
#[derive(Debug)]
pub struct Drain {
    host: Host,
    work: watch::Receiver<Work>,
    deadline: Deadline,
    fallback: Fallback,
    stop: DropGuard,
}

/// Until when the node is to be empty; `None`: it was, or there is no such time.
type Deadline = Arc<watch::Sender<Option<Instant>>>;

/// The state that a drain's task publishes.
#[derive(Clone, Debug, Default)]
struct Work {
    progress: DrainProgress,
    began: Option<Instant>,
    /// The node led nothing, so long after the begin.
    emptied_after: Option<Duration>,
    /// Leaderships that cannot go, those beyond [`MAX_REASONS`] among them.
    stuck: usize,
}

impl Drain {
    /// Begins to drain. Must be called within a Tokio runtime.
    #[must_use = "dropping the drain ends it"]
    pub fn begin(host: &Host, options: DrainOptions) -> Self {
        Self::with_catalog(host, options, None)
    }

    /// Begins to drain, with targets that the catalog would choose.
    pub(super) fn with_catalog(
        host: &Host,
        options: DrainOptions,
        catalog: Option<watch::Receiver<CatalogView>>,
    ) -> Self {
        host.set_draining(true);
        let began = Instant::now();
        let (sender, work) = watch::channel(Work { began: Some(began), ..Work::default() });
        let deadline: Deadline = Arc::new(watch::Sender::new(began.checked_add(options.deadline)));
        let stop = CancellationToken::new();
        let executor = Executor {
            host: host.clone(),
            catalog,
            work: sender,
            deadline: Arc::clone(&deadline),
            fallback: options.fallback,
            window: Window::new(WINDOW),
            begun: 0,
            stuck: BTreeMap::new(),
        };
        tokio::spawn(executor.run(stop.clone()));
        let (host, fallback, stop) = (host.clone(), options.fallback, stop.drop_guard());
        Self { host, work, deadline, fallback, stop }
    }

    /// The node is to be empty after so long from now; `None`: there is no such time.
    pub(super) fn set_deadline(&self, left: Option<Duration>) {
        let at = left.and_then(|left| Instant::now().checked_add(left));
        self.deadline.send_replace(at);
    }

    /// How far it is. What the node leads is counted now.
    #[must_use]
    pub fn progress(&self) -> DrainProgress {
        let Work { mut progress, began, emptied_after, stuck } = self.work.borrow().clone();
        let led: BTreeSet<GroupId> = led_by(&self.host).map(|group| group.id()).collect();
        progress.left = led.len();
        progress.undrainable.retain(|group, _| led.contains(group));
        let until_now = began.map(|began| began.elapsed()).unwrap_or_default();
        progress.elapsed = emptied_after.unwrap_or(until_now);
        let overdue = self.deadline.borrow().is_some_and(|at| at <= Instant::now());
        progress.state = match progress.state {
            ended @ (DrainState::Overdue | DrainState::Cancelled) => ended,
            DrainState::Done if led.is_empty() => DrainState::Done,
            // Until the executor has looked, it is not known whether what fell to it can go.
            settled => match (self.fallback, overdue) {
                (Fallback::KeepDraining, true) if !led.is_empty() => DrainState::Overdue,
                _ if settled == DrainState::Done && led.len() <= stuck => DrainState::Done,
                _ => DrainState::Running,
            },
        };
        progress
    }

    /// Waits until nothing is left that could go, or the deadline passed, or the drain was ended. It
    /// lasts on unless it was ended, or fell back to [`Fallback::Undrain`]. Safe to cancel.
    pub async fn finished(&self) -> DrainProgress {
        let (mut work, mut deadline) = (self.work.clone(), self.deadline.subscribe());
        loop {
            let at = *deadline.borrow_and_update();
            let passed = at.is_some_and(|at| at <= Instant::now());
            let settled = work.borrow_and_update().progress.state != DrainState::Running;
            if settled || passed {
                let progress = self.progress();
                if progress.state != DrainState::Running {
                    return progress;
                }
            }
            tokio::select! {
                () = reached(at), if !passed => {}
                _ = deadline.changed() => {}
                changed = work.changed() => if changed.is_err() {
                    return self.progress();
                }
            }
        }
    }

    /// Whether it was ended, or fell back to [`Fallback::Undrain`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        let state = self.work.borrow().progress.state;
        matches!(state, DrainState::Overdue | DrainState::Cancelled)
    }

    /// Ends it, and takes leaderships again.
    pub fn undrain(self) {
        drop(self.stop);
        self.host.set_draining(false);
    }
}

/// The groups that a host leads.
fn led_by(host: &Host) -> impl Iterator<Item = Group> {
    host.groups().into_iter().filter(|group| group.status().is_leader())
}

/// Until this time, or for ever.
async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Until a deadline passed that may be changed meanwhile.
async fn passed(mut deadline: watch::Receiver<Option<Instant>>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = reached(at) => return,
            Ok(()) = deadline.changed() => {}
        }
    }
}

/// The groups to try next, and what was learned.
struct Executor {
    host: Host,
    /// What the cluster intends; `None`: there is no catalog.
    catalog: Option<watch::Receiver<CatalogView>>,
    work: watch::Sender<Work>,
    deadline: Deadline,
    fallback: Fallback,
    window: Window,
    begun: u64,
    /// Groups that could not go.
    stuck: BTreeMap<GroupId, Stuck>,
}

/// Why a group could not go.
#[derive(Debug)]
struct Stuck {
    /// For people, and the name of the reason.
    words: String,
    passes: bool,
    /// When it is tried again.
    again: Instant,
    /// After how long that is.
    pause: Duration,
}

/// A group to transfer, and its targets in order.
type Due = (Group, Vec<NodeId>);

/// How a transfer ended, and which one it was.
type Outcome = (GroupId, u64, Result<Transferred, TransferError>);

impl Executor {
    async fn run(mut self, stop: CancellationToken) {
        let news = Arc::new(Notify::new());
        let noted = Arc::clone(&news);
        let hook = self
            .host
            .on_leader_acquired(GroupSelector::All, move |_: &LeaderAcquired| noted.notify_one());
        let (fallback, deadline) = (self.fallback, self.deadline.subscribe());
        let stopped = self.host.stopped();
        let given_up = async {
            match fallback {
                Fallback::KeepDraining => std::future::pending().await,
                Fallback::Undrain => passed(deadline).await,
            }
        };
        let state = tokio::select! {
            never = self.keep_empty(&news) => match never {},
            () = given_up => DrainState::Overdue,
            () = stop.cancelled() => DrainState::Cancelled,
            () = stopped.cancelled() => DrainState::Cancelled,
        };
        drop(hook);
        if state == DrainState::Overdue {
            self.host.set_draining(false);
        }
        let left = led_by(&self.host).count();
        self.report(|progress| progress.state = state);
        tracing::info!(?state, left, moved = self.moved(), "a drain is over");
    }

    /// Transfers what the node leads, and what it acquires later. The rest is final when two looks
    /// in a row found nothing that could move.
    async fn keep_empty(&mut self, news: &Notify) -> Infallible {
        let mut empty_looks = 0;
        loop {
            let plan = self.plan();
            if plan.is_empty() {
                empty_looks += u32::from(!self.stuck.values().any(|stuck| stuck.passes));
                if empty_looks < 2 {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                self.settle();
                tokio::select! {
                    () = news.notified() => {}
                    () = tokio::time::sleep(self.until_next_try()) => {}
                }
                continue;
            }
            // What could not go is tried again in the background.
            if plan.iter().any(|(group, _)| !self.stuck.contains_key(&group.id())) {
                empty_looks = 0;
                self.report(|progress| progress.state = DrainState::Running);
            }
            let before = self.moved();
            self.carry_out(plan).await;
            if self.moved() == before {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Nothing is left that could go.
    fn settle(&mut self) {
        let left = led_by(&self.host).count();
        let before = self.work.borrow().progress.state;
        let began = self.work.borrow().began;
        if left == 0 {
            // It was met, whenever it was.
            self.deadline.send_if_modified(|at| at.take().is_some());
        }
        let undrainable = self.reasons();
        let stuck = self.stuck.len();
        self.work.send_modify(|work| {
            work.progress.state = DrainState::Done;
            work.progress.undrainable = undrainable;
            work.stuck = stuck;
            if left == 0 && work.emptied_after.is_none() {
                work.emptied_after = began.map(|began| began.elapsed());
            }
        });
        if before == DrainState::Running {
            let moved = self.moved();
            tracing::info!(left, moved, "nothing is left that this node could hand on");
        }
    }

    /// Until the first of those that could not go is tried again.
    fn until_next_try(&self) -> Duration {
        let next = self.stuck.values().map(|stuck| stuck.again).min();
        let until = next.map(|next| next.saturating_duration_since(Instant::now()));
        until.map_or(CHECK_EVERY, |until| until.clamp(LOOK_EVERY, CHECK_EVERY))
    }

    /// The groups to transfer, and their targets in order: the planner's choice first, then the
    /// other voters that take leaders.
    fn plan(&mut self) -> VecDeque<Due> {
        let now = Instant::now();
        let led: Vec<Group> = led_by(&self.host).collect();
        let ids: BTreeSet<GroupId> = led.iter().map(Group::id).collect();
        self.stuck.retain(|id, _| ids.contains(id));
        self.report_stuck();
        let waits =
            |group: &Group| self.stuck.get(&group.id()).is_some_and(|stuck| stuck.again > now);
        let due: Vec<Group> = led.into_iter().filter(|group| !waits(group)).collect();
        if due.is_empty() {
            return VecDeque::new();
        }
        let snapshot = self.picture();
        let chosen: BTreeMap<GroupId, NodeId> = match planner::assign_drain(&snapshot) {
            Ok(plan) => plan.moves.into_iter().map(|step| (step.group, step.to)).collect(),
            Err(error) => {
                tracing::error!(%error, "a drain continues without a plan");
                BTreeMap::new()
            }
        };
        let takes_none: BTreeSet<NodeId> =
            snapshot.nodes.iter().filter(|node| node.weight == 0).map(|node| node.id).collect();
        let own = self.host.node_id();
        let mut plan = VecDeque::with_capacity(due.len());
        for group in due {
            let first = chosen.get(&group.id()).copied();
            let membership = group.membership();
            let others = membership.voters().map(|(_, node)| node);
            let others = others.filter(|node| *node != own && Some(*node) != first);
            let (takers, rest): (Vec<_>, Vec<_>) = others.partition(|id| !takes_none.contains(id));
            let mut candidates: Vec<NodeId> = first.into_iter().chain(takers).collect();
            if group.id() == SYSTEM_GROUP {
                // Weights say nothing of it.
                candidates.extend(rest);
            } else if candidates.is_empty() && !rest.is_empty() {
                let words = "the weight of its other voters is 0: they take no leaders [NO_WEIGHT]";
                self.keep_stuck(group.id(), words.to_owned(), false);
                continue;
            }
            plan.push_back((group, candidates));
        }
        plan
    }

    /// A group cannot go as things are.
    fn keep_stuck(&mut self, group: GroupId, words: String, passes: bool) {
        let tried = self.stuck.get(&group).filter(|stuck| !stuck.passes);
        let pause = match (passes, tried) {
            (true, _) => RETRY_SOON,
            (false, None) => RETRY_AFTER,
            (false, Some(tried)) => (tried.pause * 2).min(RETRY_AT_LEAST_EVERY),
        };
        self.stuck.insert(group, Stuck { words, passes, again: Instant::now() + pause, pause });
    }

    /// The cluster as this node knows it, with what the catalog intends.
    fn picture(&self) -> planner::Snapshot {
        let settings =
            planner::Settings { max_lag_entries: MAX_LAG, ..planner::Settings::default() };
        let mut snapshot = local_view(&self.host, 0, settings);
        let catalog = self.catalog.as_ref().and_then(|catalog| catalog.borrow().clone());
        if let Some(catalog) = catalog {
            add_intentions(&mut snapshot, &catalog);
        }
        snapshot
    }

    /// Hands over, so many at a time.
    async fn carry_out(&mut self, mut plan: VecDeque<Due>) {
        let mut under_way = FuturesUnordered::new();
        loop {
            while self.window.has_room()
                && let Some((group, candidates)) = plan.pop_front()
            {
                under_way.push(hand_over(group, self.begun, candidates));
                self.begun += 1;
                self.window.start();
            }
            match under_way.next().await {
                Some(outcome) => self.learn(outcome),
                None => return,
            }
        }
    }

    fn learn(&mut self, (group, number, outcome): Outcome) {
        self.window.end();
        match outcome {
            Ok(moved) => {
                self.stuck.remove(&group);
                self.adapt(number, moved.took < LONG_TRANSFER);
                self.report(|progress| progress.moved += 1);
            }
            // Another node leads it already.
            Err(TransferError::NotLeader { .. } | TransferError::Stopped { .. }) => {}
            Err(error) => {
                tracing::debug!(%group, %error, "a leadership stays for now");
                let reason = error.reason();
                self.adapt(number, !reason.is_congestion());
                let words = format!("{error} [{}]", reason.name());
                self.keep_stuck(group, words, reason.passes_by_itself());
                self.report(|progress| progress.failed += 1);
            }
        }
    }

    /// The transfer of this number went well, or did not.
    fn adapt(&mut self, number: u64, went_well: bool) {
        if went_well {
            self.window.grow();
        } else {
            self.window.cut(number, self.begun);
        }
    }

    fn report(&self, change: impl FnOnce(&mut DrainProgress)) {
        self.work.send_modify(|work| {
            change(&mut work.progress);
            work.progress.window = self.window.size() as usize;
        });
    }

    fn moved(&self) -> u64 {
        self.work.borrow().progress.moved
    }

    /// Why some of the rest cannot move.
    fn report_stuck(&self) {
        let (undrainable, count) = (self.reasons(), self.stuck.len());
        self.work.send_modify(|work| {
            work.progress.undrainable = undrainable;
            work.stuck = count;
        });
    }

    fn reasons(&self) -> BTreeMap<GroupId, String> {
        let stuck = self.stuck.iter().take(MAX_REASONS);
        stuck.map(|(id, stuck)| (*id, stuck.words.clone())).collect()
    }
}

async fn hand_over(group: Group, number: u64, candidates: Vec<NodeId>) -> Outcome {
    let outcome = group.transfer_to_first_fit(candidates, MAX_LAG).await;
    (group.id(), number, outcome)
}

//! Emptying a node of its leaderships, at a pace that the others bear.
//!
//! The node says that it is draining: nobody hands it a leadership from then on, and it stands for
//! election last. Then it hands on what it leads, by one assignment for all groups that respects
//! what the others have already. Each transfer is agreed and checked by itself; what cannot go is
//! named, and is not waited for, unless the reason passes by itself: a successor that catches up,
//! a change of members. A drain is over when two looks in a row find nothing that could go.
//!
//! How many transfers are under way grows with each part of a window that went well, and is halved
//! when one fails or takes long: the others are busy. Transfers that fail together count once.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shardhost_groups::{Group, GroupId, NodeId, TransferError, Transferred};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::executor::{Window, WindowSettings};
use super::{planner, view};
use crate::host::Host;

/// Transfers under way.
const WINDOW: WindowSettings = WindowSettings { first: 64, least: 8, most: 1_024 };
/// Between two looks at what is left, when nothing is under way.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A group that cannot go as things are is tried again after this, while others go.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// One whose reason passes by itself, as a successor that lacks entries does.
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
    /// It goes on draining, and leads what it could not hand on.
    #[default]
    KeepDraining,
    /// It is a node like the others again.
    Undrain,
}

/// How a node is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainOptions {
    /// How long it may take. Default 60 s.
    pub deadline: Duration,
    /// What happens then.
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
#[non_exhaustive]
pub enum DrainState {
    /// Leaderships are being handed on.
    #[default]
    Running,
    /// Nothing is left that could go.
    Done,
    /// The deadline passed.
    Overdue,
    /// Somebody ended it before.
    Cancelled,
}

/// What came of a drain up to now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainProgress {
    /// How far it is.
    pub state: DrainState,
    /// Leaderships that are still here, those that cannot go among them.
    pub left: usize,
    /// Transfers that took place.
    pub moved: u64,
    /// Transfers that did not.
    pub failed: u64,
    /// Transfers that may be under way.
    pub window: usize,
    /// Since the drain began.
    pub elapsed: Duration,
    /// Leaderships that cannot go as things are, and why, in words that end with the name of the
    /// [`RejectReason`](shardhost_groups::RejectReason); the first thousand by group.
    pub undrainable: BTreeMap<GroupId, String>,
}

/// A drain of this process's node. Dropping it ends the drain where it is; the node goes on saying
/// that it is draining until [`Drain::undrain`], or [`Host::set_draining`], says otherwise.
#[derive(Debug)]
pub struct Drain {
    host: Host,
    progress: watch::Receiver<DrainProgress>,
    stop: DropGuard,
}

impl Drain {
    /// Begins to drain. Must be called within a Tokio runtime.
    #[must_use = "dropping the drain ends it"]
    pub fn begin(host: &Host, options: DrainOptions) -> Self {
        host.set_draining(true);
        let (sender, progress) = watch::channel(DrainProgress::default());
        let stop = CancellationToken::new();
        let executor = Executor::new(host.clone(), sender, options);
        tokio::spawn(executor.run(stop.clone()));
        Self { host: host.clone(), progress, stop: stop.drop_guard() }
    }

    /// What came of it up to now.
    #[must_use]
    pub fn progress(&self) -> DrainProgress {
        self.progress.borrow().clone()
    }

    /// Waits until it is over, one way or another. Safe to cancel.
    pub async fn finished(&self) -> DrainProgress {
        let mut progress = self.progress.clone();
        let over = progress.wait_for(|now| now.state != DrainState::Running).await;
        over.map_or_else(|_| self.progress(), |over| over.clone())
    }

    /// Ends it, and takes leaderships again.
    pub fn undrain(self) {
        drop(self.stop.disarm());
        self.host.set_draining(false);
    }
}

/// What is tried next, and what was learned.
struct Executor {
    host: Host,
    progress: watch::Sender<DrainProgress>,
    options: DrainOptions,
    began: Instant,
    window: Window,
    /// Transfers that were begun.
    begun: u64,
    /// Groups that could not go.
    stuck: BTreeMap<GroupId, Stuck>,
}

/// Why a group could not go.
#[derive(Debug)]
struct Stuck {
    /// For people, and the name of the reason.
    words: String,
    /// It passes by itself.
    passes: bool,
    /// When it is tried again.
    again: Instant,
}

/// How a transfer ended, and which one it was.
type Outcome = (GroupId, u64, Result<Transferred, TransferError>);

impl Executor {
    fn new(host: Host, progress: watch::Sender<DrainProgress>, options: DrainOptions) -> Self {
        Self {
            host,
            progress,
            options,
            began: Instant::now(),
            window: Window::new(WINDOW),
            begun: 0,
            stuck: BTreeMap::new(),
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        let deadline = tokio::time::Instant::from_std(self.began + self.options.deadline);
        let work = async {
            tokio::select! {
                () = self.empty_the_node() => DrainState::Done,
                () = tokio::time::sleep_until(deadline) => DrainState::Overdue,
            }
        };
        let state = stop.run_until_cancelled(work).await.unwrap_or(DrainState::Cancelled);
        if state == DrainState::Overdue && self.options.fallback == Fallback::Undrain {
            self.host.set_draining(false);
        }
        let left = self.led().len();
        self.report_left(left);
        self.report(|progress| progress.state = state);
        let (moved, took) = (self.moved(), self.began.elapsed());
        tracing::info!(?state, left, moved, ?took, "a drain is over");
    }

    /// Returns when two looks in a row found nothing that could go, right after the second one: what falls
    /// to the node between a last look and the end would stay.
    async fn empty_the_node(&mut self) {
        let mut empty_looks = 0;
        loop {
            let plan = self.plan();
            if plan.is_empty() {
                empty_looks += u32::from(!self.stuck.values().any(|stuck| stuck.passes));
                if empty_looks >= 2 {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            empty_looks = 0;
            let before = self.moved();
            self.carry_out(plan).await;
            if self.moved() == before {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    fn led(&self) -> Vec<Group> {
        let groups = self.host.groups().into_iter();
        groups.filter(|group| group.status().is_leader()).collect()
    }

    /// What is to go, and whom to ask for it in which order: the planner's choice first, then the
    /// other voters.
    fn plan(&mut self) -> VecDeque<(Group, Vec<NodeId>)> {
        let now = Instant::now();
        let led = self.led();
        let snapshot = view::local_view(
            &self.host,
            0,
            planner::Settings { max_lag_entries: MAX_LAG, ..planner::Settings::default() },
        );
        let chosen: BTreeMap<GroupId, NodeId> = match planner::assign_drain(&snapshot) {
            Ok(plan) => plan.moves.into_iter().map(|step| (step.group, step.to)).collect(),
            Err(error) => {
                tracing::error!(%error, "a drain goes on without a plan");
                BTreeMap::new()
            }
        };
        self.stuck.retain(|id, _| led.iter().any(|group| group.id() == *id));
        self.report_left(led.len());
        let waits =
            |group: &Group| self.stuck.get(&group.id()).is_some_and(|stuck| stuck.again > now);
        let own = self.host.node_id();
        let due = led.into_iter().filter(|group| !waits(group)).map(|group| {
            let first = chosen.get(&group.id()).copied();
            let membership = group.membership();
            let others = membership.voters().map(|(_, node)| node);
            let others = others.filter(|node| *node != own && Some(*node) != first);
            let candidates = first.into_iter().chain(others).collect();
            (group, candidates)
        });
        due.collect()
    }

    /// Hands over, so many at a time.
    async fn carry_out(&mut self, mut plan: VecDeque<(Group, Vec<NodeId>)>) {
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
                self.report(|progress| {
                    progress.moved += 1;
                    progress.left = progress.left.saturating_sub(1);
                });
            }
            // Somebody else leads it already.
            Err(TransferError::NotLeader { .. } | TransferError::Stopped { .. }) => {}
            Err(error) => {
                tracing::debug!(%group, %error, "a leadership stays for now");
                let reason = error.reason();
                self.adapt(number, !reason.is_congestion());
                let passes = reason.passes_by_itself();
                let again = Instant::now() + if passes { RETRY_SOON } else { RETRY_AFTER };
                let words = format!("{error} [{}]", reason.name());
                self.stuck.insert(group, Stuck { words, passes, again });
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
        self.progress.send_modify(|progress| {
            change(progress);
            progress.window = self.window.size() as usize;
            progress.elapsed = self.began.elapsed();
        });
    }

    fn moved(&self) -> u64 {
        self.progress.borrow().moved
    }

    /// What is left, and why some of it cannot go.
    fn report_left(&self, left: usize) {
        let stuck = self.stuck.iter().take(MAX_REASONS);
        let undrainable = stuck.map(|(id, stuck)| (*id, stuck.words.clone())).collect();
        self.report(|progress| {
            progress.left = left;
            progress.undrainable = undrainable;
        });
    }
}

async fn hand_over(group: Group, number: u64, candidates: Vec<NodeId>) -> Outcome {
    let outcome = group.transfer_to_first_fit(candidates, MAX_LAG).await;
    (group.id(), number, outcome)
}

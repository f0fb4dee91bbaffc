//! Collects edges of leadership and distributes them to listeners.
//!
//! Workers publish edges under one short lock. Inline hooks run there and then, on the worker;
//! everything else runs on the dispatcher, a separate thread, so that a slow listener delays no
//! group. The dispatcher's queue is bounded: when it overflows, the queued edges are dropped and
//! every hook gets the present state instead, so that each still sees strictly alternating edges
//! that end in the present state.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use shardhost_storage::{GroupId, Term};
use tokio::sync::watch;

use super::event::{LeaderAcquired, LeaderLost, event_of, selects};
use super::{Edge, LossCause};
use crate::leadership::LeadershipEvent;
use crate::panics::{Foreign, Watched, contain};
use crate::selector::GroupSelector;

/// Edges that wait for the dispatcher at most.
const MAX_QUEUED_EDGES: usize = 1 << 17;
/// An inline hook that takes longer is reported.
const INLINE_LIMIT: Duration = Duration::from_millis(1);

thread_local! {
    /// Whether this thread is calling an inline hook, and so holds the lock of a hub.
    static IN_INLINE_HOOK: Cell<bool> = const { Cell::new(false) };
}

/// Where a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// On the dispatcher. May block; delays other hooks only.
    Dispatched,
    /// On the worker, before the edge is visible to any reply. Must not block; for flipping a
    /// flag. One that takes over a millisecond is logged with the place that registered it. It
    /// may drop guards, but must not register hooks or ask for events: that panics, which is
    /// contained and counted.
    Inline,
}

type HookFn = Foreign<Arc<dyn Fn(&LeadershipEvent) + Send + Sync>>;

struct Hook {
    groups: GroupSelector,
    kind: HookKind,
    call: HookFn,
    place: &'static Location<'static>,
    active: Arc<AtomicBool>,
    /// The revision at which it registered: its replay covers the edges up to there.
    since: u64,
    /// The last event of this hook, per group that it believes to be led here.
    told: BTreeMap<GroupId, Standing>,
}

impl Hook {
    /// Whether an event of a group with these labels is for the hook. The labels of a group go with its
    /// replica, and the loss of its leadership may be published later.
    fn hears_of(&self, labels: &GroupLabels, group: GroupId) -> bool {
        self.told.contains_key(&group) || self.groups.means(group, labels)
    }
}

/// The labels of a group.
type GroupLabels = BTreeMap<String, String>;
/// Those of each group that is open and has some.
type Labels = BTreeMap<GroupId, Arc<GroupLabels>>;

/// The labels of a group; none where it has none, or is not open.
fn labels_of(labels: &Labels, group: GroupId) -> Arc<GroupLabels> {
    labels.get(&group).map_or_else(Arc::default, Arc::clone)
}

/// How a group is led here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    term: Term,
    service: Service,
}

/// The published serving state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Untold,
    Ready,
    Caretaker,
}

#[derive(Default)]
struct State {
    standings: BTreeMap<GroupId, Standing>,
    labels: Labels,
    hooks: BTreeMap<u64, Hook>,
    queue: VecDeque<Queued>,
    overflowed: bool,
    revision: u64,
    next_hook: u64,
    busy: bool,
    stopped: bool,
}

enum Queued {
    /// An edge, and the labels that its group had then.
    Edge(LeadershipEvent, Arc<GroupLabels>),
    /// A hook that registered at this point of the queue, and its first events.
    Replay(u64, Vec<LeadershipEvent>),
}

/// The edges of all groups of a host.
pub struct LeadershipHub {
    state: Mutex<State>,
    /// Hooks whose guards were dropped by an inline hook, which runs under the lock.
    dropped: Mutex<Vec<u64>>,
    max_queued: usize,
    wake: Condvar,
    revision: Watched<u64>,
    panics: AtomicU64,
    slow_inline: AtomicU64,
}

impl fmt::Debug for LeadershipHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeadershipHub")
    }
}

/// Keeps a hook registered. Dropping it deregisters the hook; an invocation that is under way on
/// another thread may still end afterwards.
#[must_use = "dropping the guard deregisters the hook"]
#[derive(Debug)]
pub struct HookGuard {
    hub: Arc<LeadershipHub>,
    id: u64,
    active: Arc<AtomicBool>,
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        self.active.store(false, Ordering::Release);
        if IN_INLINE_HOOK.get() {
            return self.hub.dropped.lock().push(self.id);
        }
        // The hook goes after the lock: it may own guards of other hooks.
        let hook = self.hub.state.lock().hooks.remove(&self.id);
        drop(hook);
    }
}

impl LeadershipHub {
    /// A hub whose dispatcher is not running yet: see [`LeadershipHub::dispatch`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_bound(MAX_QUEUED_EDGES)
    }

    fn with_bound(max_queued: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            dropped: Mutex::default(),
            max_queued,
            wake: Condvar::new(),
            revision: Watched::new(0),
            panics: AtomicU64::new(0),
            slow_inline: AtomicU64::new(0),
        })
    }

    /// Hooks that panicked, and inline hooks that took too long, since the start.
    #[must_use]
    pub fn complaints(&self) -> (u64, u64) {
        (self.panics.load(Ordering::Relaxed), self.slow_inline.load(Ordering::Relaxed))
    }

    /// Names a group's labels, for selectors.
    pub fn set_labels(&self, group: GroupId, labels: BTreeMap<String, String>) {
        self.lock().labels.insert(group, Arc::new(labels));
    }

    /// The replica ended; the next one has new labels. Hooks that know of its leadership get the
    /// loss all the same.
    pub fn forget_labels(&self, group: GroupId) {
        self.lock().labels.remove(&group);
    }

    /// Whether the selector means this group.
    pub fn selects(&self, groups: &GroupSelector, group: GroupId) -> bool {
        selects(groups, &self.lock().labels, group)
    }

    /// Publishes edges, in order.
    pub fn publish(&self, edges: Vec<Edge>) {
        if edges.is_empty() {
            return;
        }
        self.forget_dropped();
        let mut state = self.lock();
        for edge in edges {
            state.revision += 1;
            let event = event_of(&edge, state.revision);
            note(&mut state.standings, &event);
            let labels = labels_of(&state.labels, event.group());
            self.call_inline(&mut state, &event, &labels);
            enqueue(&mut state, event, labels, self.max_queued);
        }
        let revision = state.revision;
        drop(state);
        self.revision.set(revision);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        assert!(!IN_INLINE_HOOK.get(), "an inline leadership hook asks for the hub that calls it");
        self.state.lock()
    }

    fn forget_dropped(&self) {
        let dropped = std::mem::take(&mut *self.dropped.lock());
        if dropped.is_empty() {
            return;
        }
        let mut state = self.lock();
        let hooks: Vec<_> = dropped.iter().filter_map(|id| state.hooks.remove(id)).collect();
        drop(state);
        drop(hooks);
    }

    fn call_inline(&self, state: &mut State, event: &LeadershipEvent, labels: &GroupLabels) {
        let hooks = state.hooks.values_mut();
        for hook in hooks.filter(|hook| hook.kind == HookKind::Inline) {
            let active = hook.active.load(Ordering::Acquire);
            if !active || !hook.hears_of(labels, event.group()) {
                continue;
            }
            note(&mut hook.told, event);
            let started = Instant::now();
            self.call_under_lock(&hook.call, hook.place, event);
            if started.elapsed() > INLINE_LIMIT {
                self.slow_inline.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(place = %hook.place, took = ?started.elapsed(),
                    "an inline leadership hook delays every group of its worker");
            }
        }
    }

    fn call_under_lock(&self, call: &HookFn, place: &Location<'_>, event: &LeadershipEvent) {
        IN_INLINE_HOOK.set(true);
        self.call(call, place, event);
        IN_INLINE_HOOK.set(false);
    }

    fn call(&self, call: &HookFn, place: &Location<'_>, event: &LeadershipEvent) {
        if let Err(panic) = contain(|| call(event)) {
            self.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(group = %event.group(), %place, %panic, "a leadership hook panicked");
        }
    }

    /// Registers a hook. It gets every existing leadership, then every edge: there is no window
    /// between looking and listening.
    #[track_caller]
    pub fn register<F>(
        self: &Arc<Self>,
        groups: GroupSelector,
        kind: HookKind,
        call: F,
    ) -> HookGuard
    where
        F: Fn(&LeadershipEvent) + Send + Sync + 'static,
    {
        let place = Location::caller();
        let active = Arc::new(AtomicBool::new(true));
        let call: HookFn = Foreign::new("a leadership hook", Arc::new(call));
        let mut state = self.lock();
        let id = state.next_hook;
        state.next_hook += 1;
        let replay = replay(&state, &groups);
        let mut told = BTreeMap::new();
        if kind == HookKind::Inline {
            for event in &replay {
                note(&mut told, event);
                self.call_under_lock(&call, place, event);
            }
        } else {
            state.queue.push_back(Queued::Replay(id, replay));
        }
        let active_hook = Arc::clone(&active);
        let since = state.revision;
        let hook = Hook { groups, kind, call, place, active: active_hook, since, told };
        state.hooks.insert(id, hook);
        drop(state);
        self.wake.notify_one();
        HookGuard { hub: Arc::clone(self), id, active }
    }

    /// Runs the dispatcher on the calling thread until [`LeadershipHub::stop`], and delivers
    /// everything that was published before.
    pub fn dispatch(&self) {
        loop {
            let mut state = self.state.lock();
            while state.queue.is_empty() && !state.overflowed && !state.stopped {
                state.busy = false;
                self.wake.wait(&mut state);
            }
            if state.queue.is_empty() && !state.overflowed {
                return;
            }
            let calls = if std::mem::take(&mut state.overflowed) {
                state.queue.clear();
                level_all(&mut state)
            } else {
                next_calls(&mut state)
            };
            state.busy = true;
            drop(state);
            for (call, place, active, event) in calls {
                if active.load(Ordering::Acquire) {
                    self.call(&call, place, &event);
                }
            }
        }
    }

    /// Lets the dispatcher end when its queue is empty.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.wake.notify_all();
    }

    /// A stream of events, beginning with the present state.
    #[must_use]
    pub fn events(self: &Arc<Self>, groups: GroupSelector) -> LeadershipEvents {
        let revision = self.revision.subscribe();
        let mut events = LeadershipEvents {
            hub: Arc::clone(self),
            groups,
            told: BTreeMap::new(),
            ready: VecDeque::new(),
            revision,
        };
        events.catch_up();
        events
    }
}

/// Keeps a table of standings level with an event.
fn note(standings: &mut BTreeMap<GroupId, Standing>, event: &LeadershipEvent) {
    match event {
        LeadershipEvent::Acquired(event) => {
            let service = Service::Untold;
            standings.insert(event.group, Standing { term: event.term, service });
        }
        LeadershipEvent::Ready(event) => {
            let service = Service::Ready;
            standings.insert(event.group, Standing { term: event.term, service });
        }
        LeadershipEvent::Caretaker(event) => {
            let service = Service::Caretaker;
            standings.insert(event.group, Standing { term: event.term, service });
        }
        LeadershipEvent::Lost(event) => {
            standings.remove(&event.group);
        }
    }
}

fn enqueue(state: &mut State, event: LeadershipEvent, labels: Arc<GroupLabels>, max_queued: usize) {
    if !state.hooks.values().any(|hook| hook.kind == HookKind::Dispatched) {
        return;
    }
    if state.queue.len() >= max_queued {
        state.overflowed = true;
        state.queue.clear();
    }
    if !state.overflowed {
        state.queue.push_back(Queued::Edge(event, labels));
    }
}

/// The events that lead from nothing to the present state.
fn replay(state: &State, groups: &GroupSelector) -> Vec<LeadershipEvent> {
    difference(&BTreeMap::new(), state, groups)
}

/// The events that lead from a listener's last event to the present state.
fn difference(
    told: &BTreeMap<GroupId, Standing>,
    state: &State,
    groups: &GroupSelector,
) -> Vec<LeadershipEvent> {
    let revision = state.revision;
    let mut events = Vec::new();
    for (&group, old) in told {
        let now = state.standings.get(&group);
        if now.is_none_or(|now| now.term != old.term) {
            let cause = LossCause::HigherTerm;
            let lost = LeaderLost { group, term: old.term, revision, cause, successor: None };
            events.push(LeadershipEvent::Lost(lost));
        }
    }
    for (&group, now) in &state.standings {
        if !selects(groups, &state.labels, group) {
            continue;
        }
        let event = LeaderAcquired { group, term: now.term, revision };
        let old = told.get(&group).filter(|old| old.term == now.term);
        if old.is_none() {
            events.push(LeadershipEvent::Acquired(event));
        }
        let known = old.map_or(Service::Untold, |old| old.service);
        match now.service {
            Service::Ready if known != now.service => events.push(LeadershipEvent::Ready(event)),
            Service::Caretaker if known != now.service => {
                events.push(LeadershipEvent::Caretaker(event));
            }
            _ => {}
        }
    }
    events
}

type Call = (HookFn, &'static Location<'static>, Arc<AtomicBool>, LeadershipEvent);

fn next_calls(state: &mut State) -> Vec<Call> {
    let State { queue, hooks, .. } = state;
    match queue.pop_front() {
        None => Vec::new(),
        Some(Queued::Replay(id, events)) => {
            let Some(hook) = hooks.get_mut(&id) else { return Vec::new() };
            events.into_iter().map(|event| call_of(hook, event)).collect()
        }
        Some(Queued::Edge(event, labels)) => hooks
            .values_mut()
            .filter(|hook| hook.kind == HookKind::Dispatched && hook.since < event.revision())
            .filter(|hook| hook.hears_of(&labels, event.group()))
            .filter_map(|hook| follows(&hook.told, &event).then(|| call_of(hook, event)))
            .collect(),
    }
}

/// Whether an event follows from a listener's last event.
fn follows(told: &BTreeMap<GroupId, Standing>, event: &LeadershipEvent) -> bool {
    let known = told.get(&event.group());
    match event {
        LeadershipEvent::Acquired(_) => known.is_none(),
        LeadershipEvent::Ready(_) => {
            known.is_some_and(|known| known.term == event.term() && known.service != Service::Ready)
        }
        LeadershipEvent::Caretaker(_) => known
            .is_some_and(|known| known.term == event.term() && known.service != Service::Caretaker),
        LeadershipEvent::Lost(_) => known.is_some_and(|known| known.term == event.term()),
    }
}

fn call_of(hook: &mut Hook, event: LeadershipEvent) -> Call {
    note(&mut hook.told, &event);
    (hook.call.clone(), hook.place, Arc::clone(&hook.active), event)
}

/// After an overflow: what brings every hook level with the present state.
fn level_all(state: &mut State) -> Vec<Call> {
    let mut hooks = std::mem::take(&mut state.hooks);
    let mut calls = Vec::new();
    for hook in hooks.values_mut().filter(|hook| hook.kind == HookKind::Dispatched) {
        let events = difference(&hook.told, state, &hook.groups);
        calls.extend(events.into_iter().map(|event| call_of(hook, event)));
    }
    state.hooks = hooks;
    calls
}

/// A stream of leadership. Begins with the present state; may skip leaderships that began and ended
/// between two looks, but always ends in the present state, and per group strictly alternates.
#[derive(Debug)]
pub struct LeadershipEvents {
    hub: Arc<LeadershipHub>,
    groups: GroupSelector,
    told: BTreeMap<GroupId, Standing>,
    ready: VecDeque<LeadershipEvent>,
    revision: watch::Receiver<u64>,
}

impl LeadershipEvents {
    /// The next event; `None` when the host is gone. Safe to cancel.
    pub async fn recv(&mut self) -> Option<LeadershipEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.revision.changed().await.ok()?;
            self.catch_up();
        }
    }

    fn catch_up(&mut self) {
        self.revision.mark_unchanged();
        let state = self.hub.lock();
        let events = difference(&self.told, &state, &self.groups);
        drop(state);
        for event in events {
            note(&mut self.told, &event);
            self.ready.push_back(event);
        }
    }
}

#[cfg(test)]
mod tests;

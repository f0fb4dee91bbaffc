//! Notices a call into a state machine that does not return. Its group is without service as long as
//! it leads here, and so are all groups of the host once such calls hold every apply thread.
//!
//! A call that takes longer than [`GroupsConfig::machine_limit`] makes its replica ineligible, and
//! the host when every apply thread is at such a call: softly, so that a group without another
//! eligible voter is served as before. After three times the limit it is ineligible hard: commands
//! are refused instead of being taken in vain. When the call returns that ends at once; the rest
//! when calls have ended in time for twice the limit, so that a machine that is slow
//! repeatedly moves its leadership once.
//!
//! A call that makes progress ([`Progress`](crate::Progress)) does not hang, however long it takes: a
//! batch that the machine applies in parts, a restore, a checksum. But a thread at a restore or a checksum
//! serves no other group, so the host is as its other threads are.
//!
//! Machines that are slow at all hosts alike begin to be at about the same time. So that no leadership
//! moves to one that is as slow, a replica, and a host, is *busy* from half the limit on, and takes no
//! leadership from one that should not have it.
//!
//! [`GroupsConfig::machine_limit`]: crate::GroupsConfig::machine_limit

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shardhost_storage::{GroupId, RequirementMode};

use super::RuntimeShared;
use super::apply_pool::tell;
use crate::apply::ApplyWork;
use crate::nodes::Impairment;
use crate::runtime::GroupShared;
use crate::worker::{GroupEvent, Input};

/// The name under which the host is impaired.
const SOURCE: &str = "state machines";
/// After so many times the limit a call counts as [`Health::Hung`].
const HUNG_AFTER: u32 = 3;

/// A call into a state machine.
#[derive(Clone)]
pub(super) struct Call {
    group: GroupId,
    /// `None`: the replica is not open.
    replica: Option<Arc<GroupShared>>,
    what: &'static str,
    /// It takes as long as a state is large.
    is_long: bool,
}

impl Call {
    pub(super) const fn new(
        group: GroupId,
        replica: Option<Arc<GroupShared>>,
        what: &'static str,
    ) -> Self {
        Self { group, replica, what, is_long: false }
    }

    /// Of a replica that is open.
    pub(super) fn of(replica: &Arc<GroupShared>, what: &'static str) -> Self {
        Self::new(replica.id, Some(Arc::clone(replica)), what)
    }

    /// A piece of work of a replica that is open.
    pub(super) fn at(replica: &Arc<GroupShared>, work: &ApplyWork) -> Self {
        Self { is_long: work.is_long(), ..Self::of(replica, name_of(work)) }
    }

    /// Moves while the call gets on.
    fn progress(&self) -> u64 {
        self.replica.as_ref().map_or(0, |replica| replica.progress.steps())
    }

    fn name(&self) -> String {
        format!("{} of group {}", self.what, self.group)
    }

    fn reason(&self, limit: Duration) -> String {
        format!("{} takes its state machine longer than {limit:?}", self.what)
    }
}

/// What a piece of work is called in reasons.
const fn name_of(work: &ApplyWork) -> &'static str {
    match work {
        ApplyWork::Commands { .. } => "applying commands",
        ApplyWork::Restore { .. } => "restoring a snapshot",
        ApplyWork::Snapshot => "a view for a snapshot",
        ApplyWork::Durable => "a flush",
        ApplyWork::Removed => "removing the state",
        ApplyWork::Query { .. } => "a query",
        ApplyWork::Check { .. } => "a view for a comparison",
        ApplyWork::Checksum { .. } => "a checksum",
    }
}

/// What one apply thread is at.
#[derive(Default)]
pub(super) struct ApplyActivity(Mutex<At>);

#[derive(Default)]
struct At {
    number: u64,
    call: Option<Call>,
}

impl ApplyActivity {
    /// A call begins, and ends with what this returns.
    pub(super) fn begin(&self, call: Call) -> Calling<'_> {
        let mut at = self.0.lock();
        at.number += 1;
        at.call = Some(call);
        Calling(self)
    }

    /// The call that is under way, by its number, and how far it is.
    fn seen(&self) -> Option<(u64, u64)> {
        let at = self.0.lock();
        at.call.as_ref().map(|call| (at.number, call.progress()))
    }

    /// The call of this number, if it is still under way.
    fn call(&self, number: u64) -> Option<Call> {
        let at = self.0.lock();
        at.call.clone().filter(|_| at.number == number)
    }
}

/// While a call is under way.
pub(super) struct Calling<'a>(&'a ApplyActivity);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        let ended = self.0.0.lock().call.take();
        drop(ended);
    }
}

/// How calls are; the worst last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    #[default]
    Well,
    /// One takes half as long as it may.
    Busy,
    /// One takes longer than the limit, or one did a moment ago.
    Slow,
    /// One takes so long that commands are refused.
    Hung,
}

/// One apply thread, as the watchdog sees it.
#[derive(Debug, Default)]
struct WatchedThread {
    seen: Option<(u64, u64)>,
    /// Looks in a row that found the same call where it was.
    looks: u32,
}

impl WatchedThread {
    /// Counts looks, not time: a process that was suspended did not look either.
    fn look(&mut self, seen: Option<(u64, u64)>, limit: u32) -> Health {
        self.looks =
            if seen.is_some() && seen == self.seen { self.looks.saturating_add(1) } else { 0 };
        self.seen = seen;
        match self.looks {
            looks if looks >= limit.saturating_mul(HUNG_AFTER) => Health::Hung,
            looks if looks >= limit => Health::Slow,
            looks if looks >= limit.div_ceil(2) => Health::Busy,
            _ => Health::Well,
        }
    }
}

/// How a replica or the host is, after what looks have found.
#[derive(Debug, Default)]
struct Settled {
    health: Health,
    /// Looks in a row that found nothing, while it does not count as well.
    calm: u32,
}

impl Settled {
    /// Reports the state, when that is news.
    fn settle(&mut self, found: Health, limit: u32) -> Option<Health> {
        self.calm = if found < Health::Slow { self.calm.saturating_add(1) } else { 0 };
        // A call that comes to be too long is not slow for as long as the limit: that is not calm.
        let recovering = self.health >= Health::Slow && self.calm < limit.saturating_mul(2);
        let health = if recovering { found.max(Health::Slow) } else { found };
        (std::mem::replace(&mut self.health, health) != health).then_some(health)
    }
}

/// A replica with a call that took long.
struct WatchedReplica {
    call: Call,
    settled: Settled,
}

impl WatchedReplica {
    fn is(&self, other: &Call) -> bool {
        match (&self.call.replica, &other.replica) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// The apply threads, as the watchdog sees them.
pub(super) struct MachineWatch {
    limit: Duration,
    looks: u32,
    threads: Vec<WatchedThread>,
    host: Settled,
    /// As many at most as calls can have taken long within twice the limit.
    replicas: Vec<WatchedReplica>,
}

impl MachineWatch {
    /// `looks` are as long as `limit`.
    pub(super) fn new(threads: usize, limit: Duration, looks: u32) -> Self {
        let threads = std::iter::repeat_with(WatchedThread::default).take(threads).collect();
        Self { limit, looks, threads, host: Settled::default(), replicas: Vec::new() }
    }

    /// At every look: notifies replicas and the host of the consequences.
    pub(super) fn look(&mut self, shared: &RuntimeShared) {
        let mut at = Vec::with_capacity(self.threads.len());
        for (thread, activity) in self.threads.iter_mut().zip(&shared.apply_activities) {
            let seen = activity.seen();
            let health = thread.look(seen, self.looks);
            at.push((health, seen.and_then(|(number, _)| activity.call(number))));
        }
        self.follow_host(shared, &at);
        self.follow_replicas(shared, &at);
    }

    fn follow_host(&mut self, shared: &RuntimeShared, at: &[(Health, Option<Call>)]) {
        let long = |call: &Option<Call>| call.as_ref().is_some_and(|call| call.is_long);
        let found = health_of_host(at.iter().map(|(health, call)| (*health, long(call))));
        let Some(health) = self.host.settle(found, self.looks) else { return };
        let calls: Vec<String> =
            at.iter().filter_map(|(_, call)| Some(call.as_ref()?.name())).collect();
        let calls =
            if calls.is_empty() { "they have just ended".to_owned() } else { calls.join(", ") };
        let limit = self.limit_of(health);
        let reason = format!(
            "calls that take longer than {limit:?} hold every thread that runs state machines ({calls})"
        );
        shared.impair(SOURCE, impairment(health, reason));
        for inbox in &shared.inboxes {
            inbox.complete(Input::Busy(health != Health::Well));
        }
    }

    fn follow_replicas(&mut self, shared: &RuntimeShared, at: &[(Health, Option<Call>)]) {
        let slow = at.iter().filter(|(health, _)| *health != Health::Well);
        let slow = slow.filter_map(|(health, call)| Some((*health, call.as_ref()?)));
        let slow: Vec<(Health, &Call)> = slow.filter(|(_, call)| call.replica.is_some()).collect();
        for (_, call) in &slow {
            match self.replicas.iter_mut().find(|replica| replica.is(call)) {
                Some(known) => known.call.what = call.what,
                None => {
                    let (call, settled) = (Call::clone(call), Settled::default());
                    self.replicas.push(WatchedReplica { call, settled });
                }
            }
        }
        let (looks, limits) = (self.looks, [Health::Slow, Health::Hung].map(|h| self.limit_of(h)));
        for replica in &mut self.replicas {
            let mine = slow.iter().filter(|(_, call)| replica.is(call));
            let worst = mine.map(|(health, _)| *health).max().unwrap_or_default();
            let (Some(health), Some(group)) =
                (replica.settled.settle(worst, looks), &replica.call.replica)
            else {
                continue;
            };
            let reason = replica.call.reason(limits[usize::from(health == Health::Hung)]);
            tell(shared, group, GroupEvent::Busy(health != Health::Well));
            tell(shared, group, GroupEvent::Hung(impairment(health, reason)));
        }
        self.replicas.retain(|replica| replica.settled.health != Health::Well);
    }

    fn limit_of(&self, health: Health) -> Duration {
        if health == Health::Hung { self.limit.saturating_mul(HUNG_AFTER) } else { self.limit }
    }
}

/// The host is as the best of its threads, for that one serves all groups. One at a long call does not,
/// unless there is no other.
fn health_of_host(threads: impl Iterator<Item = (Health, bool)> + Clone) -> Health {
    let serving = threads.clone().filter(|(_, is_long)| !is_long).map(|(health, _)| health);
    serving.min().or_else(|| threads.map(|(health, _)| health).min()).unwrap_or_default()
}

fn impairment(health: Health, reason: String) -> Option<Impairment> {
    let mode = match health {
        Health::Well | Health::Busy => return None,
        Health::Slow => RequirementMode::Soft,
        Health::Hung => RequirementMode::Hard,
    };
    let reason =
        format!("{reason}; look after the disk of the data directory, or after the machine");
    Some(Impairment { reason: reason.into(), mode })
}

#[cfg(test)]
mod tests;

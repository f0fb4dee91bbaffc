//! What is decided about snapshots and about the start of the log: pure.
//!
//! | question | method |
//! |---|---|
//! | is one due, or a flush of the state machine | `look_at_log` |
//! | is the state machine asked for one now | `begin_making` |
//! | what does a replica get that lost its state | `answer_request` |
//! | how far may the log be truncated | `truncation_target` |

use shardhost_storage::{LogPosition, Membership};

use super::SnapshotCompletion;
use crate::config::GroupsConfig;
use crate::known_bugs::{KnownBug, KnownBugs};
use crate::transport::ShipmentOutcome;

/// Ticks before another snapshot is asked for after a first failure; doubles with each further.
const FAILURE_TICKS: u64 = 10;
const MAX_FAILURE_TICKS: u64 = 600;
/// Ticks for which the log stays behind a snapshot that was made or shipped: until it leaves, or
/// leaves again, or its receiver asks for what follows.
const HOLD_TICKS: u64 = 50;

/// Snapshots of this replica in progress.
#[derive(Debug, Default)]
pub(in crate::core) struct Snapshots {
    /// The state machine was asked for one when this was the last index that it had applied.
    making: Option<u64>,
    /// One is needed, by raft or to truncate the log.
    wanted: bool,
    /// How often in a row none could be made, and the tick before which only users may ask for
    /// another: a full disk is not emptied by writing to it.
    failures: u32,
    paused_until: u64,
    /// The index of one that was just made or shipped, and until which tick the log is kept from
    /// there: a replica that needs the one needs the other.
    held: (u64, u64),
    /// The log grew long behind what the state machine keeps: it is to be asked to flush, or was.
    flush: Flush,
    /// Who asked for one: before the state machine is asked the next time, and after.
    asking: Vec<SnapshotCompletion>,
    asked: Vec<SnapshotCompletion>,
    /// Shipments in progress: the receiver, and the index that the log must be kept from.
    shipping: Vec<(u64, u64)>,
    /// One that is being installed: its place, and the ready that carries it.
    installing: Option<Install>,
    /// The membership that came with the snapshot that raft took and has not handed out yet.
    incoming: Option<Box<(LogPosition, Membership)>>,
    /// One that arrived for a state that is lost, and that the log continues: not installed yet.
    arrived: Option<LogPosition>,
    /// The log may be truncated up to here.
    compact_to: Option<LogPosition>,
    /// A newer snapshot is named by what is written next.
    named: bool,
}

/// Whether the state machine should make durable what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flush {
    #[default]
    No,
    Wanted,
    Asked,
}

#[derive(Clone, Copy, Debug)]
struct Install {
    position: LogPosition,
    /// The ready that carries it; `None`: the log stays as it is, only the state is replaced.
    number: Option<u64>,
    handed: bool,
}

/// Where the log, the state machine and the newest snapshot stand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogView {
    /// The log begins behind it.
    pub base: u64,
    pub last: u64,
    pub persisted: u64,
    pub applied: u64,
    /// What the state machine keeps durable without snapshots; `None`: nothing.
    pub durable: Option<u64>,
    /// The newest snapshot.
    pub snapshot: Option<u64>,
}

/// What a replica gets that lost its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ship(LogPosition),
    /// Nothing now: one is on its way, or is made first.
    Later,
}

impl Snapshots {
    // ---- making ----

    /// One is needed, for raft says so.
    pub(super) const fn want(&mut self) {
        self.wanted = true;
    }

    /// A user asks for one.
    pub(super) fn ask(&mut self, completion: SnapshotCompletion) {
        self.asking.push(completion);
    }

    /// Whether the state machine, which has applied this, is asked for one now.
    pub(super) fn begin_making(&mut self, applied: u64, has_state: bool, now: u64) -> bool {
        let due = self.wanted && now >= self.paused_until;
        let needed = (due || !self.asking.is_empty()) && has_state;
        if !needed || self.making.is_some() || self.is_installing() {
            return false;
        }
        self.making = Some(applied);
        self.wanted = false;
        self.asked = std::mem::take(&mut self.asking);
        true
    }

    /// Whether the state machine is asked to flush now.
    pub(super) fn begin_flush(&mut self) -> bool {
        let wanted = self.flush == Flush::Wanted;
        if wanted {
            self.flush = Flush::Asked;
        }
        wanted
    }

    pub(super) const fn end_flush(&mut self) {
        self.flush = Flush::No;
    }

    /// The state machine's is there, or could not be made; gives those who asked for it.
    pub(super) fn end_making(
        &mut self,
        made: Option<LogPosition>,
        now: u64,
    ) -> Vec<SnapshotCompletion> {
        self.making = None;
        if let Some(position) = made {
            // Later requests are served by this one.
            self.wanted = false;
            self.failures = 0;
            self.held = (position.index.get(), now + HOLD_TICKS);
        } else {
            let pause = FAILURE_TICKS << self.failures.min(16);
            self.failures += 1;
            self.paused_until = now + pause.min(MAX_FAILURE_TICKS);
        }
        std::mem::take(&mut self.asked)
    }

    /// All who wait for one.
    pub(super) fn take_completions(&mut self) -> Vec<SnapshotCompletion> {
        let mut completions = std::mem::take(&mut self.asking);
        completions.append(&mut self.asked);
        completions
    }

    /// A newer one is named by what is written next.
    pub(super) const fn name(&mut self) {
        self.named = true;
    }

    /// Whether older ones may go when what is written now is durable. Asked once.
    pub(super) fn take_named(&mut self) -> bool {
        std::mem::take(&mut self.named)
    }

    // ---- shipping ----

    /// One is sent to this replica.
    pub(super) fn ship(&mut self, to: u64, index: u64) {
        self.shipping.retain(|(replica, _)| *replica != to);
        self.shipping.push((to, index));
    }

    /// A shipment ended. One that turned out to be unusable will not get better: another takes its
    /// place.
    pub(super) fn shipped(
        &mut self,
        to: u64,
        outcome: ShipmentOutcome,
        newest: Option<LogPosition>,
        now: u64,
    ) {
        let Some(at) = self.shipping.iter().position(|(id, _)| *id == to) else { return };
        let (_, index) = self.shipping.swap_remove(at);
        self.held = (index, now + HOLD_TICKS);
        let is_newest = newest.is_some_and(|newest| newest.index.get() == index);
        self.wanted |= is_newest && outcome == ShipmentOutcome::Unusable;
    }

    pub(in crate::core) fn forget_shipments(&mut self) {
        self.shipping.clear();
    }

    /// A replica asks for a state from which its log continues, which begins at `floor`.
    pub(super) fn answer_request(
        &mut self,
        replica: u64,
        floor: u64,
        newest: Option<LogPosition>,
    ) -> Answer {
        if self.shipping.iter().any(|(id, _)| *id == replica) {
            return Answer::Later;
        }
        match newest.filter(|newest| newest.index.get() >= floor.max(1)) {
            Some(newest) => Answer::Ship(newest),
            None => {
                self.wanted = true;
                Answer::Later
            }
        }
    }

    // ---- installing ----

    pub(in crate::core) const fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Whether a state is here, or arrives.
    pub(in crate::core) const fn has_state(&self) -> bool {
        self.installing.is_some() || self.arrived.is_some()
    }

    pub(in crate::core) const fn is_busy(&self) -> bool {
        self.making.is_some() || self.installing.is_some() || !self.shipping.is_empty()
    }

    /// Whether a snapshot replaces the log, and that is not durable.
    pub(in crate::core) fn replaces_log(&self, bugs: KnownBugs) -> bool {
        let stays_out = bugs.has(KnownBug::InstallStaysOut);
        let replaces =
            |install: Install| install.number.is_some() && (!install.handed || stays_out);
        self.installing.is_some_and(replaces)
    }

    /// Raft took one with this membership.
    pub(super) fn expect(&mut self, position: LogPosition, membership: Membership) {
        self.incoming = Some(Box::new((position, membership)));
    }

    /// The membership of the one that raft hands out, or of which one the membership is.
    pub(super) fn take_membership(
        &mut self,
        position: LogPosition,
    ) -> Result<Membership, Option<LogPosition>> {
        match self.incoming.take() {
            Some(incoming) if incoming.0 == position => Ok(incoming.1),
            other => Err(other.map(|incoming| incoming.0)),
        }
    }

    /// One is here for a state that is lost.
    pub(super) const fn keep(&mut self, position: LogPosition) {
        self.arrived = Some(position);
    }

    /// The one that is here for a state that is lost.
    pub(in crate::core) const fn arrived(&self) -> Option<LogPosition> {
        self.arrived
    }

    pub(super) const fn drop_arrived(&mut self) {
        self.arrived = None;
    }

    /// This one replaces the state. The log stays as it is.
    pub(super) const fn install_state(&mut self, position: LogPosition) {
        self.arrived = None;
        self.installing = Some(Install { position, number: None, handed: true });
    }

    /// This one replaces log and state, when this ready is durable.
    pub(super) const fn install(&mut self, position: LogPosition, number: u64) {
        self.compact_to = None;
        self.arrived = None;
        self.installing = Some(Install { position, number: Some(number), handed: false });
    }

    /// Readies up to this one are durable: gives the snapshot that the state machine gets now.
    pub(super) fn restore_from(&mut self, durable: u64) -> Option<LogPosition> {
        let install = self.installing.as_mut()?;
        let due = !install.handed && install.number.is_some_and(|number| number <= durable);
        install.handed |= due;
        due.then_some(install.position)
    }

    pub(super) const fn end_install(&mut self) {
        self.installing = None;
    }

    // ---- the log ----

    /// Notices whether a flush or a snapshot is due, of a state machine that has its state.
    pub(super) fn look_at_log(&mut self, view: &LogView, config: &GroupsConfig) {
        if let Some(durable) = view.durable {
            let behind = view.applied.saturating_sub(durable);
            if behind >= config.log_keep_entries && self.flush == Flush::No {
                self.flush = Flush::Wanted;
            }
        } else {
            let newest = view.snapshot.unwrap_or(view.base);
            self.wanted |= view.applied.saturating_sub(newest) >= config.snapshot_entries;
        }
    }

    /// The last index that is not needed, if it is worth a write to truncate the log up to it: not
    /// needed by the state machine after a crash, not by a snapshot in progress, not by a peer that
    /// keeps up. `peers`: what the followers of a leader have.
    pub(super) fn truncation_target(
        &self,
        view: &LogView,
        peers: impl Iterator<Item = u64>,
        now: u64,
        config: &GroupsConfig,
    ) -> Option<u64> {
        let survives = view.durable.or(view.snapshot).unwrap_or(0);
        let mut target = survives.min(view.applied).min(view.persisted);
        target = target.saturating_sub(config.log_trail_entries);
        // A snapshot is of no use to a follower when the log no longer begins at it.
        let (held, until) = self.held;
        let held = (now < until).then_some(held);
        let shipping = self.shipping.iter().map(|(_, index)| *index);
        for index in shipping.chain(self.making).chain(held) {
            target = target.min(index);
        }
        let floor = view.last.saturating_sub(config.log_keep_entries);
        for matched in peers {
            target = target.min(matched.max(floor));
        }
        // Truncating costs a write: not for a handful of entries.
        let least = config.log_trail_entries.div_ceil(2).max(1);
        (target > view.base && target - view.base >= least).then_some(target)
    }

    /// The log is truncated up to here with what is written next.
    pub(super) const fn truncate(&mut self, to: LogPosition) {
        self.compact_to = Some(to);
    }

    /// Up to where the log is truncated now. Asked once.
    pub(super) fn take_truncation(&mut self) -> Option<LogPosition> {
        self.compact_to.take()
    }
}

#[cfg(test)]
mod tests;

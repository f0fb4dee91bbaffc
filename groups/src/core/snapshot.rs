//! Snapshots of the state machine: made when a peer or the log needs one, shipped, installed; and
//! truncating the log behind them.

use shardhost_proto::log;
use shardhost_proto::peer::{GroupMessage, MessageKind, SnapshotMeta};
use shardhost_storage::{GroupWrite, LogIndex, LogPosition, Membership, NodeId, ReplicaId};

use raft::SnapshotStatus;
use tokio::sync::oneshot;

use super::GroupCore;
use crate::apply::ApplyWork;
use crate::convert;
use crate::core::{Effects, PersistAck, Prune};
use crate::error::{GroupFault, TakeSnapshotError};
use crate::known_bugs::KnownBug;
use crate::transport::{ShipmentOutcome, SnapshotShipment};

/// Who waits for a snapshot.
pub type SnapshotWaiter = oneshot::Sender<Result<LogPosition, TakeSnapshotError>>;

/// Snapshots of this replica in progress.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
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
    asking: Vec<SnapshotWaiter>,
    asked: Vec<SnapshotWaiter>,
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
    number: u64,
    handed: bool,
    /// The log stays as it is: only the state is replaced.
    keeps_log: bool,
}

/// Ticks between two looks at how much log could go.
const TEND_TICKS: u64 = 10;
/// Ticks before another snapshot is asked for after a first failure; doubles with each further.
const FAILURE_TICKS: u64 = 10;
const MAX_FAILURE_TICKS: u64 = 600;
/// Ticks for which the log stays behind a snapshot that was made or shipped: until it leaves, or
/// leaves again, or its receiver asks for what follows.
const HOLD_TICKS: u64 = 50;

impl Snapshots {
    pub(super) const fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Whether a state is here, or arrives.
    pub(super) const fn has_state(&self) -> bool {
        self.installing.is_some() || self.arrived.is_some()
    }

    pub(super) const fn is_busy(&self) -> bool {
        self.making.is_some() || self.installing.is_some() || !self.shipping.is_empty()
    }

    fn fail(&mut self, now: u64) {
        let pause = FAILURE_TICKS << self.failures.min(16);
        self.failures += 1;
        self.paused_until = now + pause.min(MAX_FAILURE_TICKS);
    }

    pub(super) fn forget_shipments(&mut self) {
        self.shipping.clear();
    }
}

impl GroupCore {
    /// Asks the state machine for a snapshot when one is needed, and hands changes of the log's
    /// start to the log writer.
    pub(super) fn ask_for_snapshot(&mut self, effects: &mut Effects) {
        self.snapshots.wanted |= self.raw.store().take_snapshot_wanted();
        let due = self.snapshots.wanted && self.ticks >= self.snapshots.paused_until;
        let needed = (due || !self.snapshots.asking.is_empty()) && !self.lacks_state();
        if needed && self.snapshots.making.is_none() && !self.snapshots.is_installing() {
            self.snapshots.making = Some(self.apply.applied());
            self.snapshots.wanted = false;
            self.snapshots.asked = std::mem::take(&mut self.snapshots.asking);
            self.level_machine(effects);
            effects.apply(self.id, self.epoch, ApplyWork::Snapshot);
        }
        if self.snapshots.flush == Flush::Wanted {
            self.snapshots.flush = Flush::Asked;
            effects.apply(self.id, self.epoch, ApplyWork::Durable);
        }
        self.write_changes(effects);
    }

    /// Entries that are none of the machine's business may have passed it by: a snapshot stands
    /// where the replica does.
    fn level_machine(&self, effects: &mut Effects) {
        let handed = self.apply.handed();
        match self.raw.store().term_of(handed) {
            Ok(term) => {
                let last = LogPosition::new(term.get(), handed);
                let work = ApplyWork::Commands { commands: Vec::new(), last };
                effects.apply(self.id, self.epoch, work);
            }
            Err(error) => tracing::error!(group = %self.id, %error, "cannot read a term"),
        }
    }

    fn write_changes(&mut self, effects: &mut Effects) {
        let compact = self.snapshots.compact_to.take();
        let changed = self.durable.hand_meta();
        let commit = self.durable.take_commit_due() && self.durable.commit_lags(self.hard_state());
        if compact.is_none() && changed.is_none() && !commit {
            return;
        }
        let mut write = GroupWrite::new(self.id);
        write.meta = changed.map(|_| (*self.meta).clone());
        write.compact = compact;
        if let Some(meta) = changed {
            let (group, epoch) = (self.id, self.epoch);
            let ack = PersistAck { group, epoch, number: 0, term: 0, meta, prepared: 0 };
            effects.log.acks.push(ack);
        }
        if changed.is_some() || commit {
            // A replica that remembers a change of membership must not forget that it was
            // committed: a replica that it removed could neither lead nor let others lead.
            write.hard_state = Some(self.hard_state_with_commit());
        }
        if std::mem::take(&mut self.snapshots.named)
            && let Some(keep) = self.meta.snapshot
        {
            effects.log.prune.push(Prune { group: self.id, epoch: self.epoch, keep });
        }
        if let Some(base) = compact {
            self.raw.mut_store().compact(base);
        }
        effects.log.batch.writes.push(write);
    }

    /// The state machine's snapshot stands in the snapshot store, or could not be made.
    pub fn on_snapshot_made(&mut self, made: Option<LogPosition>, effects: &mut Effects) {
        self.snapshots.making = None;
        let group = self.id;
        let known = self.meta.snapshot.max(made);
        let outcome = made.and(known).ok_or(TakeSnapshotError::Failed { group });
        let asked = std::mem::take(&mut self.snapshots.asked).into_iter();
        effects.snapshot_replies.extend(asked.map(|waiter| (waiter, outcome.clone())));
        let Some(position) = made else { return self.snapshots.fail(self.ticks) };
        // Later requests are served by this one.
        self.raw.store().take_snapshot_wanted();
        self.snapshots.wanted = false;
        self.snapshots.failures = 0;
        self.snapshots.held = (position.index.get(), self.ticks + HOLD_TICKS);
        if self.meta.snapshot.is_some_and(|known| known.index >= position.index) {
            return;
        }
        self.name_snapshot(position);
    }

    /// Takes a snapshot on request.
    pub fn take_snapshot(&mut self, waiter: SnapshotWaiter) {
        self.wake();
        self.snapshots.asking.push(waiter);
    }

    /// No request gets a snapshot any more.
    pub(super) fn fail_snapshots(&mut self, error: &TakeSnapshotError, effects: &mut Effects) {
        let mut waiters = std::mem::take(&mut self.snapshots.asking);
        waiters.append(&mut self.snapshots.asked);
        let replies = waiters.into_iter().map(|waiter| (waiter, Err(error.clone())));
        effects.snapshot_replies.extend(replies);
    }

    /// Sends a snapshot its own way.
    pub(super) fn ship(&mut self, to: NodeId, message: GroupMessage, effects: &mut Effects) {
        let named = message.snapshot.as_ref().and_then(|meta| meta.position.as_ref());
        if let Some(position) = convert::position_from_wire(named) {
            self.ship_at(position, to, message, effects);
        }
    }

    fn ship_at(
        &mut self,
        position: LogPosition,
        to: NodeId,
        mut message: GroupMessage,
        effects: &mut Effects,
    ) {
        let membership = Some(shardhost_storage::convert::membership_to_message(&self.membership));
        let wire = log::LogPosition { term: position.term.get(), index: position.index.get() };
        message.snapshot = Some(SnapshotMeta { position: Some(wire), membership });
        message.commit = self.known_committed();
        self.snapshots.shipping.retain(|(replica, _)| *replica != message.to_replica);
        self.snapshots.shipping.push((message.to_replica, position.index.get()));
        effects.shipments.push(SnapshotShipment { to, position, message });
    }

    /// A replica lost its state and asks for one from which its log continues, which begins at
    /// `message.index`. Raft has no part in it: its log continues meanwhile. A state that is not
    /// available now is asked for again. A replica that was removed gives its own.
    pub(super) fn take_state_request(&mut self, message: &GroupMessage, effects: &mut Effects) {
        let (replica, floor) = (message.from_replica, message.index);
        let Some(to) = self.node_of(replica) else { return };
        let ships = self.snapshots.shipping.iter().any(|(id, _)| *id == replica);
        let gives = (self.leads() || self.is_leaving()) && !self.lacks_state();
        let gives = gives && floor <= self.apply.applied();
        if ships || !gives {
            return;
        }
        match self.meta.snapshot.filter(|newest| newest.index.get() >= floor.max(1)) {
            Some(newest) => {
                let message = self.own_message(MessageKind::Snapshot, replica);
                self.ship_at(newest, to, message, effects);
            }
            None => self.snapshots.wanted = true,
        }
    }

    /// The state machine made durable what it holds.
    pub fn on_flushed(&mut self, durable: Option<LogIndex>) {
        self.snapshots.flush = Flush::No;
        self.on_durable(durable);
    }

    /// A shipment ended.
    pub fn on_shipped(&mut self, to: ReplicaId, outcome: ShipmentOutcome) {
        let shipped = self.snapshots.shipping.iter().position(|(id, _)| *id == to.get());
        if let Some(at) = shipped {
            let (_, index) = self.snapshots.shipping.swap_remove(at);
            self.snapshots.held = (index, self.ticks + HOLD_TICKS);
            let newest = self.meta.snapshot.is_some_and(|newest| newest.index.get() == index);
            // It will not get better: another takes its place.
            self.snapshots.wanted |= newest && outcome == ShipmentOutcome::Unusable;
        }
        let status = match outcome {
            ShipmentOutcome::Delivered => SnapshotStatus::Finish,
            ShipmentOutcome::Failed | ShipmentOutcome::Unusable => SnapshotStatus::Failure,
        };
        self.raw.report_snapshot(to.get(), status);
    }

    /// A peer's node did not get what was sent.
    pub fn on_unreachable(&mut self, peer: ReplicaId) {
        self.raw.report_unreachable(peer.get());
    }

    /// A snapshot arrived, and raft decides whether to take it.
    pub(super) fn step_snapshot(&mut self, message: GroupMessage) {
        let meta = message.snapshot.as_ref();
        let position = convert::position_from_wire(meta.and_then(|m| m.position.as_ref()));
        let membership =
            meta.and_then(|m| m.membership.as_ref()).and_then(convert::membership_from_wire);
        let (Some(position), Some(membership)) = (position, membership) else { return };
        if self.snapshots.is_installing() {
            return;
        }
        let before = self.pending_snapshot();
        self.step_raft(message);
        // One of the same place as another that it took is no news to raft.
        let taken = before != Some(position) && self.pending_snapshot() == Some(position);
        if taken && !self.config.bugs.has(KnownBug::LoseSnapshotMembership) {
            self.snapshots.incoming = Some(Box::new((position, membership)));
        } else if self.lacks_state() {
            self.snapshots.arrived = Some(position);
        }
    }

    /// Whether a snapshot replaces the log, and that is not durable.
    pub(super) fn replaces_log(&self) -> bool {
        let stays_out = self.config.bugs.has(KnownBug::InstallStaysOut);
        let replaces = |install: Install| !install.keeps_log && (!install.handed || stays_out);
        self.snapshots.installing.is_some_and(replaces)
    }

    /// A state from a replica that was removed, for one that has none: raft would follow its sender.
    pub(super) fn take_state_of_removed(&mut self, message: &GroupMessage) {
        let meta = message.snapshot.as_ref();
        let position = convert::position_from_wire(meta.and_then(|meta| meta.position.as_ref()));
        if position.is_some() && !self.snapshots.is_installing() {
            self.snapshots.arrived = position;
        }
    }

    /// Raft took a snapshot, and did not hand it out yet.
    pub(super) fn has_pending_snapshot(&self) -> bool {
        self.raw.raft.raft_log.unstable.snapshot.is_some()
    }

    /// Replaces a lost state by a snapshot that arrived, if the log continues it: then nothing of the log
    /// goes, and what was acknowledged stays. Waits for changes of members that the snapshot has passed
    /// and this replica has not.
    pub(super) fn install_state(&mut self, effects: &mut Effects) {
        let Some(position) = self.snapshots.arrived else { return };
        let index = position.index.get();
        let term = self.raw.store().term_of(index).ok();
        if !self.lacks_state() || self.snapshots.is_installing() || term != Some(position.term) {
            self.snapshots.arrived = None;
            return;
        }
        let log = &self.raw.raft.raft_log;
        let waits = match self.config.bugs.has(KnownBug::StateBeforeMembership) {
            true => index > log.committed.min(log.persisted),
            false => index > self.passed(),
        };
        if waits {
            return;
        }
        tracing::info!(group = %self.id, %position, "a snapshot for the lost state is here");
        self.snapshots.arrived = None;
        let (number, handed, keeps_log) = (0, true, true);
        self.snapshots.installing = Some(Install { position, number, handed, keeps_log });
        self.name_snapshot(position);
        self.apply.go_on_from(index);
        effects.apply(self.id, self.epoch, ApplyWork::Restore { position });
    }

    /// This is the newest snapshot from here on.
    fn name_snapshot(&mut self, position: LogPosition) {
        self.meta.snapshot = Some(position);
        self.snapshots.named = true;
        self.durable.change_meta();
        let conf = convert::conf_state(&self.membership);
        self.raw.mut_store().set_snapshot(position, conf);
    }

    /// The snapshot that raft took and did not hand out yet.
    fn pending_snapshot(&self) -> Option<LogPosition> {
        let metadata = self.raw.raft.raft_log.unstable.snapshot.as_ref()?.get_metadata();
        Some(LogPosition::new(metadata.term, metadata.index))
    }

    /// Raft took the snapshot: the log starts anew behind it. The state machine is restored when
    /// that is durable; a crash in between is repaired at the next opening.
    ///
    /// # Errors
    /// Nothing is known of the membership that came with it. The replica must write nothing more.
    pub(super) fn begin_install(
        &mut self,
        position: LogPosition,
        number: u64,
    ) -> Result<(), GroupFault> {
        match self.snapshots.incoming.take() {
            Some(incoming) if incoming.0 == position => self.adopt_membership(incoming.1),
            other => {
                let came = other.map(|incoming| incoming.0);
                let text = format!(
                    "{:?} installs the snapshot at {position}, but the membership that it has is \
                     of {came:?}",
                    self.id
                );
                return Err(GroupFault::Invariant(text.into()));
            }
        }
        self.meta.snapshot = Some(position);
        let conf = convert::conf_state(&self.membership);
        self.raw.mut_store().reset(position, conf);
        self.apply.skip_to(position.index.get());
        self.snapshots.compact_to = None;
        self.snapshots.arrived = None;
        let (handed, keeps_log) = (false, false);
        self.snapshots.installing = Some(Install { position, number, handed, keeps_log });
        Ok(())
    }

    /// The membership of the snapshot that raft took.
    fn adopt_membership(&mut self, membership: Membership) {
        let before = std::mem::replace(&mut self.meta.membership, membership);
        self.install_membership(std::sync::Arc::new(self.meta.membership.clone()));
        self.contacts.retain(|(id, _)| self.membership.is_yet_to_come(*id));
        self.lease_after_change(&before);
    }

    /// Continues an installation whose log write is durable: the membership of there is known, and the log
    /// continues. That takes part in elections and in changes of members, however long the state takes.
    pub(super) fn continue_install(&mut self, effects: &mut Effects) {
        let durable = self.durable.number();
        let Some(install) = self.snapshots.installing.as_mut() else { return };
        if install.number <= durable && !install.handed {
            install.handed = true;
            let position = install.position;
            effects.apply(self.id, self.epoch, ApplyWork::Restore { position });
            if !self.replaces_log() {
                self.count_as_applied(position.index.get());
            }
        }
    }

    /// The state machine was restored.
    pub fn on_restored(
        &mut self,
        position: LogPosition,
        durable: Option<LogIndex>,
        effects: &mut Effects,
    ) {
        self.state_is_back(effects);
        self.snapshots.installing = None;
        self.apply.finish_restore(position.index.get());
        self.apply.durable = durable;
        self.count_as_applied(position.index.get());
    }

    /// At ticks: finds out how much of the log could go, and whether a snapshot is due.
    pub(super) fn tend_snapshots(&mut self) {
        // Groups of one age should not all do this in the same tick.
        if !(self.ticks + self.id.get()).is_multiple_of(TEND_TICKS) {
            return;
        }
        let base = self.raw.store().base().index.get();
        self.notice_what_is_due(base);
        let target = self.compaction_target();
        // Truncating costs a write: not for a handful of entries.
        if target > base && target - base >= self.config.log_trail_entries.div_ceil(2).max(1) {
            match self.raw.store().term_of(target) {
                Ok(term) => {
                    self.snapshots.compact_to = Some(LogPosition::new(term.get(), target));
                }
                Err(error) => tracing::error!(group = %self.id, %error, "cannot truncate the log"),
            }
        }
    }

    /// Whether a flush or a snapshot is due. Without a state there is nothing to flush or to write.
    fn notice_what_is_due(&mut self, base: u64) {
        if self.lacks_state() {
            return;
        }
        if let Some(durable) = self.apply.durable {
            let behind = self.apply.applied().saturating_sub(durable.get());
            if behind >= self.config.log_keep_entries && self.snapshots.flush == Flush::No {
                self.snapshots.flush = Flush::Wanted;
            }
        } else {
            let newest = self.raw.store().snapshot_position().map_or(base, |p| p.index.get());
            let due = self.apply.applied().saturating_sub(newest) >= self.config.snapshot_entries;
            self.snapshots.wanted |= due;
        }
    }

    /// The last index that is not needed: not by the state machine after a crash, not by a snapshot
    /// in progress, not by a peer that keeps up.
    fn compaction_target(&self) -> u64 {
        let raft = &self.raw.raft;
        let survives = match self.apply.durable {
            Some(durable) => durable.get(),
            None => self.meta.snapshot.map_or(0, |position| position.index.get()),
        };
        let mut target = survives.min(self.apply.applied()).min(raft.raft_log.persisted);
        target = target.saturating_sub(self.config.log_trail_entries);
        // A snapshot is of no use to a follower when the log no longer begins at it.
        let (held, until) = self.snapshots.held;
        let held = (self.ticks < until).then_some(held);
        let shipping = self.snapshots.shipping.iter().map(|(_, index)| *index);
        for index in shipping.chain(self.snapshots.making).chain(held) {
            target = target.min(index);
        }
        if self.leads() {
            let floor = raft.raft_log.last_index().saturating_sub(self.config.log_keep_entries);
            for (_, progress) in raft.prs().iter() {
                target = target.min(progress.matched.max(floor));
            }
        }
        target
    }
}

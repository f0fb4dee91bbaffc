//! Snapshots of the state machine: made when a peer or the log needs one, shipped, installed; and
//! truncating the log behind them. [`Snapshots`] decides; this file carries it out.

mod state;

pub(super) use state::Snapshots;

use shardhost_proto::log;
use shardhost_proto::peer::{GroupMessage, MessageKind, SnapshotMeta};
use shardhost_storage::{GroupWrite, LogIndex, LogPosition, Membership, NodeId, ReplicaId};

use raft::SnapshotStatus;

use super::GroupCore;
use crate::apply::ApplyWork;
use crate::completion::Reply;
use crate::convert;
use crate::core::{Effects, PersistAck, Prune};
use crate::error::{GroupFault, TakeSnapshotError};
use crate::known_bugs::KnownBug;
use crate::transport::{ShipmentOutcome, SnapshotShipment};
use crate::validate::{floor_of_generation, is_of_generation};
use state::{Answer, LogView};

/// Who waits for a snapshot.
pub type SnapshotCompletion = Reply<Result<LogPosition, TakeSnapshotError>>;

/// Ticks between two looks at how much log could go.
pub(super) const TEND_TICKS: u64 = 10;

/// Whether two memberships are of one group, and of one generation of it.
fn is_of_one_group(one: &Membership, other: &Membership) -> bool {
    one.genesis == other.genesis && floor_of_generation(one) == floor_of_generation(other)
}

impl GroupCore {
    /// Asks the state machine for a snapshot, or to flush, when that is needed.
    pub(super) fn ask_for_snapshot(&mut self, effects: &mut Effects) {
        if self.raw.store().take_snapshot_wanted() {
            self.snapshots.want();
        }
        let (applied, has_state) = (self.apply.applied(), !self.lacks_state());
        if self.snapshots.begin_making(applied, has_state, self.ticks) {
            self.level_machine(effects);
            effects.apply(self.id, self.open_id, ApplyWork::Snapshot);
        }
        if self.snapshots.begin_flush() {
            effects.apply(self.id, self.open_id, ApplyWork::Durable);
        }
    }

    /// Entries that are none of the machine's business may have passed it by: a snapshot stands
    /// where the replica does.
    fn level_machine(&self, effects: &mut Effects) {
        let handed = self.apply.handed();
        match self.raw.store().term_of(handed) {
            Ok(term) => {
                let last = LogPosition::new(term.get(), handed);
                let work = ApplyWork::Commands { commands: Vec::new(), last };
                effects.apply(self.id, self.open_id, work);
            }
            Err(error) => tracing::error!(group = %self.id, %error, "cannot read a term"),
        }
    }

    /// Hands to the log writer what no ready of raft carries: what the replica knows of itself,
    /// where the log starts, and a commit index that lags.
    pub(super) fn write_changes(&mut self, effects: &mut Effects) {
        let compact = self.snapshots.take_truncation();
        let changed = self.durable.hand_meta();
        let commit = self.durable.take_commit_due() && self.durable.commit_lags(self.hard_state());
        if compact.is_none() && changed.is_none() && !commit {
            return;
        }
        let mut write = GroupWrite::new(self.id);
        write.meta = changed.map(|_| (*self.meta).clone());
        write.compact = compact;
        if let Some(meta) = changed {
            let (group, open_id) = (self.id, self.open_id);
            let ack = PersistAck { group, open_id, number: 0, term: 0, meta, prepared: 0 };
            effects.log.acks.push(ack);
        }
        if changed.is_some() || commit {
            // A replica that remembers a change of membership must not forget that it was
            // committed: a replica that it removed could neither lead nor let others lead.
            write.hard_state = Some(self.hard_state_with_commit());
        }
        if self.snapshots.take_named()
            && let Some(keep) = self.meta.snapshot
        {
            effects.log.prune.push(Prune { group: self.id, open_id: self.open_id, keep });
        }
        if let Some(base) = compact {
            self.raw.mut_store().compact(base);
        }
        effects.log.batch.writes.push(write);
    }

    /// The state machine's snapshot stands in the snapshot store, or could not be made.
    pub fn on_snapshot_made(&mut self, made: Option<LogPosition>, effects: &mut Effects) {
        let group = self.id;
        let known = self.meta.snapshot.max(made);
        let outcome = made.and(known).ok_or(TakeSnapshotError::Failed { group });
        let asked = self.snapshots.end_making(made, self.ticks).into_iter();
        effects.snapshot_replies.extend(asked.map(|completion| (completion, outcome.clone())));
        let Some(position) = made else { return };
        self.raw.store().take_snapshot_wanted();
        if self.meta.snapshot.is_some_and(|known| known.index >= position.index) {
            return;
        }
        self.name_snapshot(position);
    }

    /// Takes a snapshot on request.
    pub fn take_snapshot(&mut self, completion: SnapshotCompletion) {
        self.wake();
        self.snapshots.ask(completion);
    }

    /// No request gets a snapshot any more.
    pub(super) fn fail_snapshots(&mut self, error: &TakeSnapshotError, effects: &mut Effects) {
        let completions = self.snapshots.take_completions().into_iter();
        let replies = completions.map(|completion| (completion, Err(error.clone())));
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
        self.snapshots.ship(message.to_replica, position.index.get());
        effects.shipments.push(SnapshotShipment { to, position, message });
    }

    /// A replica lost its state and asks for one from which its log continues, which begins at
    /// `message.index`. Raft has no part in it: its log continues meanwhile. A state that is not
    /// available now is asked for again. The role does not matter: a learner, or one that was removed,
    /// may be the last that has a state.
    pub(super) fn take_state_request(&mut self, message: &GroupMessage, effects: &mut Effects) {
        let (replica, floor) = (message.from_replica, message.index);
        let Some(to) = self.node_of(replica) else { return };
        if !self.gives_state_to(message) || floor > self.newest_state() {
            return;
        }
        if let Answer::Ship(newest) =
            self.snapshots.answer_request(replica, floor, self.meta.snapshot)
        {
            let own = self.own_message(MessageKind::Snapshot, replica);
            let message = GroupMessage { any_giver: !self.leads(), ..own };
            self.ship_at(newest, to, message, effects);
        }
    }

    /// Whether this replica answers a request for a state. A version that takes one of its leader only
    /// would follow any other sender.
    fn gives_state_to(&self, request: &GroupMessage) -> bool {
        let any = request.any_giver && !self.config.bugs.has(KnownBug::OnlyLeadersGiveState);
        let ours = is_of_generation(request.from_replica, &self.membership);
        ours && (any || self.leads() || self.is_leaving())
    }

    /// Up to where this replica has a state, or the snapshot of one. Where one is being restored, or
    /// waits for that, its file is there.
    fn newest_state(&self) -> u64 {
        let applied = if self.lacks_state() { 0 } else { self.apply.applied() };
        applied.max(self.meta.snapshot.map_or(0, |position| position.index.get()))
    }

    /// The state machine made durable what it holds.
    pub fn on_flushed(&mut self, durable: Option<LogIndex>) {
        self.snapshots.end_flush();
        self.on_durable(durable);
    }

    /// A shipment ended.
    pub fn on_shipped(&mut self, to: ReplicaId, outcome: ShipmentOutcome) {
        self.snapshots.shipped(to.get(), outcome, self.meta.snapshot, self.ticks);
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
            self.snapshots.expect(position, membership);
        } else if self.lacks_state() {
            self.snapshots.keep(position);
        }
    }

    /// Whether a snapshot replaces the log, and that is not durable.
    pub(super) fn replaces_log(&self) -> bool {
        self.snapshots.replaces_log(self.config.bugs)
    }

    /// A state for one that has none, from any replica that belongs to the group, or did: raft, which
    /// would follow its sender, has no part in it.
    ///
    /// It cannot take anything back. It was applied up to its position, so what stands up to there was
    /// committed. It is installed only where this replica's own log holds the entry of the same index
    /// and term, and holds it as committed ([`Self::install_state`]): then both logs are the same up to
    /// there, and so are the states. What stands behind comes from the own log, which stays. A giver that
    /// is behind only leaves more of that log to apply. One of which the log took another way, or begins
    /// behind the position, does not hold that entry, and the state is dropped.
    ///
    /// Logs of two groups, or of two generations of one, may agree in index and term by chance. Such are
    /// recognized by the first members of the group and the numbers of the replicas: the giver does not
    /// answer a request of another, and what came all the same is dropped here.
    pub(super) fn take_given_state(&mut self, message: &GroupMessage) {
        let Some(meta) = &message.snapshot else { return };
        let membership = meta.membership.as_ref().and_then(convert::membership_from_wire);
        let ours = membership.is_some_and(|came| is_of_one_group(&came, &self.membership));
        if let Some(position) = convert::position_from_wire(meta.position.as_ref())
            && ours
            && self.lacks_state()
            && !self.snapshots.is_installing()
        {
            self.snapshots.keep(position);
        }
    }

    /// Whether a snapshot replaces the log, or is about to: its end is that of neither.
    pub(super) fn is_log_replaced(&self) -> bool {
        self.replaces_log() || self.has_pending_snapshot()
    }

    /// Raft took a snapshot, and did not hand it out yet.
    pub(super) fn has_pending_snapshot(&self) -> bool {
        self.raw.raft.raft_log.unstable.snapshot.is_some()
    }

    /// Replaces a lost state by a snapshot that arrived, if the log continues it: then nothing of
    /// the log goes, and what was acknowledged stays. Waits for changes of members that the
    /// snapshot has passed and this replica has not.
    pub(super) fn install_state(&mut self, effects: &mut Effects) {
        let Some(position) = self.snapshots.arrived() else { return };
        let index = position.index.get();
        let term = self.raw.store().term_of(index).ok();
        if !self.lacks_state() || self.snapshots.is_installing() || term != Some(position.term) {
            self.snapshots.drop_arrived();
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
        self.snapshots.install_state(position);
        self.name_snapshot(position);
        self.apply.go_on_from(index);
        effects.apply(self.id, self.open_id, ApplyWork::Restore { position });
    }

    /// This is the newest snapshot from here on.
    fn name_snapshot(&mut self, position: LogPosition) {
        self.meta.snapshot = Some(position);
        self.snapshots.name();
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
        let membership = self.snapshots.take_membership(position).map_err(|came| {
            let text = format!(
                "{:?} installs the snapshot at {position}, but the membership that it has is of \
                 {came:?}",
                self.id
            );
            GroupFault::Invariant(text.into())
        })?;
        self.adopt_membership(membership);
        self.meta.snapshot = Some(position);
        let conf = convert::conf_state(&self.membership);
        self.raw.mut_store().reset(position, conf);
        self.apply.skip_to(position.index.get());
        self.snapshots.install(position, number);
        Ok(())
    }

    /// The membership of the snapshot that raft took.
    fn adopt_membership(&mut self, membership: Membership) {
        let before = std::mem::replace(&mut self.meta.membership, membership);
        self.install_membership(std::sync::Arc::new(self.meta.membership.clone()));
        self.contacts.retain(|(id, _)| self.membership.is_yet_to_come(*id));
        self.lease_after_change(&before);
    }

    /// Continues an installation whose log write is durable: the membership of there is known, and
    /// the log continues. That takes part in elections and in changes of members, however long the
    /// state takes.
    pub(super) fn continue_install(&mut self, effects: &mut Effects) {
        let Some(position) = self.snapshots.restore_from(self.durable.number()) else { return };
        effects.apply(self.id, self.open_id, ApplyWork::Restore { position });
        if !self.replaces_log() {
            self.count_as_applied(position.index.get());
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
        self.snapshots.end_install();
        self.apply.finish_restore(position.index.get());
        self.apply.durable = durable;
        self.count_as_applied(position.index.get());
        // This node was no good leader of the group meanwhile.
        self.look_anew();
        self.notice_facts(effects);
    }

    /// Finds out how much of the log could go, and whether a snapshot is due. Without a state there
    /// is nothing to flush or to write.
    pub(super) fn tend_snapshots(&mut self) {
        let view = self.log_view();
        if !self.lacks_state() {
            self.snapshots.look_at_log(&view, &self.config);
        }
        let leads = self.leads();
        let peers = self.raw.raft.prs().iter().filter(|_| leads);
        let matched = peers.map(|(_, progress)| progress.matched);
        let target = self.snapshots.truncation_target(&view, matched, self.ticks, &self.config);
        let Some(target) = target else { return };
        match self.raw.store().term_of(target) {
            Ok(term) => self.snapshots.truncate(LogPosition::new(term.get(), target)),
            Err(error) => tracing::error!(group = %self.id, %error, "cannot truncate the log"),
        }
    }

    fn log_view(&self) -> LogView {
        let log = &self.raw.raft.raft_log;
        LogView {
            base: self.raw.store().base().index.get(),
            last: log.last_index(),
            persisted: log.persisted,
            applied: self.apply.applied(),
            durable: self.apply.durable.map(LogIndex::get),
            snapshot: self.meta.snapshot.map(|position| position.index.get()),
        }
    }
}

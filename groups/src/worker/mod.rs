//! The groups of one worker: who gets which input, which groups tick, and what a step brings up.
//!
//! A [`WorkerCore`] is driven by a thread in production and by the simulation in tests. It takes
//! [`Input`]s, then [`WorkerCore::finish_step`] hands out one [`Effects`] with everything to be
//! done. It has no clock, thread, lock or channel, and does no I/O but what a replica reads from
//! the log. A panic in one group stops that group alone.

mod input;
mod nodes;
mod requests;
mod wakes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{GroupId, GroupWrite, NodeId};

use crate::activity::Activity;
use crate::clock::Moment;
use crate::core::{Effects, GroupCore, Stepped};
use crate::error::GroupFault;
use crate::leadership::LossCause;
use crate::nodes::{Advertisement, LiveNodes};
use crate::panics::contain;
use crate::policy::{Policies, PolicyCounters};
use crate::transport::Outgoing;
use crate::validate::Refusal;

pub use input::{GroupEvent, Input};

use wakes::{NodeChange, Wakes};

/// Groups tick in this many slots, one after the other, so that not all of a worker's groups are
/// busy at the same moment.
pub const TICK_SLOTS: usize = 8;
/// Groups that the return or loss of a node wakes in one slot.
const WAKES_PER_SLOT: usize = 512;
/// Ticks during which a failed replica sends its peers a step-down notice.
const STEP_DOWN_NOTICE_TICKS: u8 = 3;

/// What a worker counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounters {
    /// Rounds that had anything to do.
    pub rounds: u64,
    pub messages: u64,
    /// Messages for groups that are not here.
    pub unknown_group: u64,
    /// Messages that were refused, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    pub proposals: u64,
    pub failures: u64,
    /// Notifications of an earlier life of a replica.
    pub stale: u64,
    /// What became of leaderships, by reason.
    pub policy: PolicyCounters,
}

#[derive(Debug)]
struct Slot {
    core: GroupCore,
    touched: bool,
}

/// A replica that stopped after a fault.
#[derive(Debug)]
struct Failed {
    fault: GroupFault,
    open_id: u64,
}

/// The groups of one worker.
#[derive(Debug, Default)]
pub struct WorkerCore {
    groups: HashMap<GroupId, Box<Slot>>,
    /// Replicas that stopped after a fault.
    failed: BTreeMap<GroupId, Failed>,
    /// Notices to peers of replicas that ended, and how often they are still sent: a lost message
    /// must not leave them hibernating.
    step_down_notices: BTreeMap<GroupId, (Vec<Outgoing>, u8)>,
    /// Groups that tick, by slot.
    active: [BTreeSet<GroupId>; TICK_SLOTS],
    touched: Vec<GroupId>,
    /// Groups whose leadership is on its way to another replica: each step counts.
    frozen: BTreeSet<GroupId>,
    live: Arc<LiveNodes>,
    policies: Policies,
    /// The version of the policies that the groups last looked at.
    seen_policies: u64,
    to_wake: Wakes,
    slot: usize,
    effects: Effects,
    counters: WorkerCounters,
    activity: Arc<Activity>,
}

impl WorkerCore {
    /// A worker without groups, on a node with this advertisement.
    #[must_use]
    pub fn new(own: Advertisement, policies: Policies) -> Self {
        let mut worker = Self { live: Arc::new(LiveNodes::new(own)), policies, ..Self::default() };
        worker.seen_policies = worker.policies.revision();
        worker.effects = worker.next_effects();
        worker
    }

    /// The same, which reports its position in `activity`.
    #[must_use]
    pub fn with_activity(self, activity: Arc<Activity>) -> Self {
        Self { activity, ..self }
    }

    /// Where this worker is, for a watchdog.
    #[must_use]
    pub const fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// The effects of the next step, and the knowledge at its beginning.
    fn next_effects(&self) -> Effects {
        Effects {
            began: self.effects.began,
            nodes: Arc::clone(&self.live),
            facts: self.live.revision() + self.policies.revision(),
            ..Effects::default()
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Groups that run, and how many of them tick.
    #[must_use]
    pub fn population(&self) -> (usize, usize) {
        (self.groups.len(), self.active.iter().map(BTreeSet::len).sum())
    }

    /// Whether time matters to anything here.
    #[must_use]
    pub fn needs_ticks(&self) -> bool {
        !self.step_down_notices.is_empty()
            || !self.to_wake.is_empty()
            || self.active.iter().any(|slot| !slot.is_empty())
    }

    /// A group, for tests.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&GroupCore> {
        self.groups.get(&id).map(|slot| &slot.core)
    }

    /// Takes one input into the present step.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Peer { from, messages } => {
                for message in messages {
                    self.peer_message(from, message);
                }
            }
            Input::Order { group, open_id, order } => self.order(group, open_id, *order),
            Input::Propose { group, open_id, proposals } => {
                self.counters.proposals += proposals.len() as u64;
                self.propose(group, open_id, proposals);
            }
            Input::Read { group, request } => self.read(group, request),
            Input::Transfer { group, request } => self.transfer(group, request),
            Input::ChangeMembership { group, request } => self.change_membership(group, *request),
            Input::Barrier { group, order } => self.barrier(group, order),
            Input::TakeSnapshot { group, completion } => self.take_snapshot(group, completion),
            Input::Persisted(acks) => {
                for ack in acks {
                    self.notify(ack.group, ack.open_id, |core, effects| {
                        core.on_persisted(&ack, effects)
                    });
                }
            }
            Input::Group { group, open_id, event } => self.group_event(group, open_id, event),
            Input::Shipped { group, to, outcome } => {
                self.with(group, |core, _| core.on_shipped(to, outcome));
            }
            Input::Unreachable { replicas } => {
                for (group, replica) in replicas {
                    self.with(group, |core, _| core.on_unreachable(replica));
                }
            }
            Input::NodeLive { node, incarnation } => self.node_live(node, incarnation),
            Input::NodeLost { node } => self.node_lost(node),
            Input::NodeAdvertisement { node, incarnation, advertisement } => {
                if self.change_nodes(|nodes| nodes.note(node, incarnation, advertisement)) {
                    self.queue_wakes(NodeChange::Facts);
                }
            }
            Input::RaiseDoubt { group, doubt } => self.raise_doubt(group, doubt),
            Input::OwnAdvertisement(advertisement) => {
                if self.change_nodes(|nodes| nodes.note_own(advertisement)) {
                    self.touch_awake();
                    self.queue_wakes(NodeChange::Facts);
                }
            }
            Input::Busy(busy) => {
                self.change_nodes(|nodes| nodes.note_busy(busy));
            }
            Input::EligibilityReport { group, completion } => {
                self.with(group, |core, effects| core.eligibility(completion, effects));
            }
            Input::Reevaluate { group } => {
                self.with(group, |core, _| core.reevaluate());
            }
            Input::CheckHibernating { part, of } => self.check_hibernating(part, of),
            Input::Open(core) => self.open(*core),
            Input::HostFailed(fault) => self.fail_all(&GroupFault::Host(fault)),
            Input::Stop => self.stop_all(),
            Input::Close { group, cause, ending } => {
                let open = ending.as_ref().and_then(|ending| ending.open_id());
                if open.is_none_or(|open| self.open_id_of(group) == Some(open.get())) {
                    self.leave_followers(group);
                    self.close(group, cause);
                }
                self.effects.closed.extend(ending);
            }
        }
    }

    fn peer_message(&mut self, from: NodeId, message: GroupMessage) {
        let group = GroupId::new(message.group);
        if !self.groups.contains_key(&group) {
            self.message_for_unknown(from, group, message);
            return;
        }
        self.counters.messages += 1;
        let stepped = self.with(group, |core, effects| core.step(from, message, effects));
        match stepped {
            Some(Stepped::Refused(refusal)) => {
                tracing::debug!(%group, %from, %refusal, "refused a message");
                *self.counters.refused.entry(refusal).or_default() += 1;
            }
            Some(Stepped::Fatal(fault)) => self.fail(group, fault),
            Some(Stepped::Taken) | None => {}
        }
    }

    /// A stranger's message creates nothing. A create-replica request, and messages to a replica
    /// that does not run, are passed to the host, which decides.
    fn message_for_unknown(&mut self, from: NodeId, group: GroupId, message: GroupMessage) {
        let failed = self.failed.contains_key(&group);
        if message.kind() == MessageKind::CreateReplica && !failed {
            self.effects.create_requests.push((from, message));
            return;
        }
        self.counters.unknown_group += 1;
        if matches!(message.kind(), MessageKind::Removed | MessageKind::CreateReplica) {
            self.effects.notices.push((from, message));
        }
    }

    /// Dropping an order answers its caller that the replica stopped.
    fn order(&mut self, group: GroupId, open_id: u64, order: Input) {
        if self.open_id_of(group).is_none_or(|known| known == open_id) {
            return self.handle(order);
        }
        self.counters.stale += 1;
    }

    fn group_event(&mut self, group: GroupId, open_id: u64, event: GroupEvent) {
        match event {
            GroupEvent::Applied { last, durable } => {
                self.notify(group, open_id, |core, _| core.on_applied(last.index, durable));
            }
            GroupEvent::Restored { position, durable } => {
                self.notify(group, open_id, |core, effects| {
                    core.on_restored(position, durable, effects);
                });
            }
            GroupEvent::Durable(durable) => {
                self.notify(group, open_id, |core, _| core.on_flushed(durable));
            }
            GroupEvent::Admission { term, question, answer } => {
                self.notify(group, open_id, |core, effects| {
                    core.on_admission(term, question, answer, effects);
                });
            }
            GroupEvent::SnapshotMade(made) => {
                self.notify(group, open_id, |core, effects| core.on_snapshot_made(made, effects));
            }
            GroupEvent::Summed { position, summed } => {
                self.notify(group, open_id, |core, effects| {
                    core.on_summed(position, summed, effects)
                });
            }
            GroupEvent::Stalled(why) => {
                self.notify(group, open_id, |core, effects| core.on_stalled(why, effects));
            }
            GroupEvent::Hung(why) => {
                self.notify(group, open_id, |core, effects| core.on_hung(why, effects));
            }
            GroupEvent::Busy(busy) => self.notify(group, open_id, |core, _| core.on_busy(busy)),
            GroupEvent::Failed(fault) => {
                if self.is_current(group, open_id) {
                    self.fail(group, fault);
                }
            }
        }
    }

    fn is_current(&mut self, group: GroupId, open_id: u64) -> bool {
        let current = self.groups.get(&group).is_some_and(|slot| slot.core.open_id() == open_id);
        self.counters.stale += u64::from(!current);
        current
    }

    /// Runs `act` unless the notification is one of another life of the replica.
    fn notify(
        &mut self,
        group: GroupId,
        open_id: u64,
        act: impl FnOnce(&mut GroupCore, &mut Effects),
    ) {
        if self.is_current(group, open_id) {
            self.with(group, act);
        }
    }

    /// Runs `act` on a group and marks it as touched. `None` when the group is not here, or when
    /// it panicked.
    fn with<T>(
        &mut self,
        group: GroupId,
        act: impl FnOnce(&mut GroupCore, &mut Effects) -> T,
    ) -> Option<T> {
        let slot = self.groups.get_mut(&group)?;
        self.activity.visit(group);
        if !std::mem::replace(&mut slot.touched, true) {
            self.touched.push(group);
        }
        let (core, effects) = (&mut slot.core, &mut self.effects);
        match contain(|| act(core, effects)) {
            Ok(value) => Some(value),
            Err(panic) => {
                let fault = self.fault_of_panic(group, &panic);
                self.fail(group, fault);
                None
            }
        }
    }

    fn fault_of_panic(&self, group: GroupId, text: &str) -> GroupFault {
        let log_fault = self.groups.get(&group).and_then(|slot| slot.core.take_log_fault());
        log_fault.map_or_else(|| GroupFault::Panic(text.into()), GroupFault::Log)
    }

    /// Parks a replica: every caller that waits gets the cause, its data stays, the others
    /// continue.
    fn fail(&mut self, group: GroupId, fault: GroupFault) {
        let Some(mut slot) = self.groups.remove(&group) else { return };
        tracing::error!(%group, %fault, "the replica failed; the other groups continue");
        self.counters.failures += 1;
        self.deactivate(group);
        slot.core.fail(&fault, &mut self.effects);
        self.queue_step_down_notice(group, &slot.core);
        let open_id = slot.core.open_id();
        self.failed.insert(group, Failed { fault, open_id });
    }

    /// Notifies the peers of a replica that it does not lead them any more, now and for some ticks.
    fn queue_step_down_notice(&mut self, group: GroupId, core: &GroupCore) {
        let sent = self.effects.messages.len();
        core.wake_peers(&mut self.effects);
        let messages = self.effects.messages[sent..].to_vec();
        if !messages.is_empty() {
            self.step_down_notices.insert(group, (messages, STEP_DOWN_NOTICE_TICKS));
        }
    }

    fn fail_all(&mut self, fault: &GroupFault) {
        let mut groups: Vec<GroupId> = self.groups.keys().copied().collect();
        groups.sort_unstable();
        groups.into_iter().for_each(|group| self.fail(group, fault.clone()));
    }

    fn open(&mut self, core: GroupCore) {
        let group = core.id();
        self.failed.remove(&group);
        self.step_down_notices.remove(&group);
        self.groups.insert(group, Box::new(Slot { core, touched: false }));
        self.active[slot_of(group)].insert(group);
        self.with(group, |_, _| ());
    }

    /// A replica ends while its node lives: hibernating followers get no loss of a node.
    fn leave_followers(&mut self, group: GroupId) {
        let Some(slot) = self.groups.remove(&group) else { return };
        if slot.core.keeps_followers_hibernating() {
            self.queue_step_down_notice(group, &slot.core);
        }
        self.groups.insert(group, slot);
    }

    fn open_id_of(&self, group: GroupId) -> Option<u64> {
        let failed = self.failed.get(&group).map(|failed| failed.open_id);
        self.groups.get(&group).map(|slot| slot.core.open_id()).or(failed)
    }

    fn fault_of(&self, group: GroupId) -> Option<&GroupFault> {
        self.failed.get(&group).map(|failed| &failed.fault)
    }

    fn close(&mut self, group: GroupId, cause: LossCause) {
        self.failed.remove(&group);
        let Some(mut slot) = self.groups.remove(&group) else { return };
        self.deactivate(group);
        slot.core.stop(cause, &mut self.effects);
    }

    fn deactivate(&mut self, group: GroupId) {
        self.to_wake.forget(group);
        self.active[slot_of(group)].remove(&group);
    }

    /// Moves the logical clock on by one slot: the groups of that slot tick once. A whole tick
    /// has [`TICK_SLOTS`] slots.
    pub fn tick_slot(&mut self) {
        self.slot = (self.slot + 1) % TICK_SLOTS;
        let due: Vec<GroupId> = self.active[self.slot].iter().copied().collect();
        self.notice_policies();
        for group in due {
            self.with(group, |core, effects| core.tick(effects));
        }
        for group in std::mem::take(&mut self.frozen) {
            self.with(group, |_, _| ());
        }
        for _ in 0..WAKES_PER_SLOT {
            let Some((group, changes)) = self.to_wake.pop() else { break };
            for change in changes {
                self.with(group, |core, effects| match change {
                    NodeChange::Live(node) => core.on_node_live(node, &effects.nodes),
                    NodeChange::Lost(node) => core.on_node_lost(node, &effects.nodes),
                    // The end of the step looks at them.
                    NodeChange::Facts => {}
                });
            }
        }
        if self.slot == 0 {
            self.send_step_down_notices();
        }
    }

    /// Groups that may have readers look at once at what changed about this node.
    fn touch_awake(&mut self) {
        let awake: Vec<GroupId> = self.active.iter().flatten().copied().collect();
        for group in awake {
            self.with(group, |_, _| ());
        }
    }

    /// A policy was registered or removed, or another look was requested.
    fn notice_policies(&mut self) {
        let revision = self.policies.revision();
        if self.seen_policies != revision {
            self.seen_policies = revision;
            self.effects.facts = self.live.revision() + revision;
            self.queue_wakes(NodeChange::Facts);
        }
    }

    fn send_step_down_notices(&mut self) {
        for (messages, left) in self.step_down_notices.values_mut() {
            *left -= 1;
            self.effects.messages.extend(messages.iter().cloned());
        }
        self.step_down_notices.retain(|_, (_, left)| *left > 0);
    }

    /// Begins a step at this moment, before the first input is taken. Messages of the step count as
    /// sent now.
    pub const fn begin(&mut self, now: Option<Moment>) {
        self.effects.began = now;
    }

    /// Finishes the step: the effects of every touched group, together. All inputs had been taken
    /// at this moment; vote locks of the step count from it on.
    pub fn finish_step(&mut self, now: Option<Moment>) -> Effects {
        self.effects.ended = now;
        let touched = std::mem::take(&mut self.touched);
        self.counters.rounds += u64::from(!touched.is_empty());
        for group in touched {
            self.with(group, |core, effects| core.finish_step(effects));
            for (group, fault) in std::mem::take(&mut self.effects.faults) {
                self.fail(group, fault);
            }
            self.settle(group);
        }
        self.touched.clear();
        for event in &self.effects.counted {
            self.counters.policy.count(*event);
        }
        let next = self.next_effects();
        std::mem::replace(&mut self.effects, next)
    }

    /// The group continues without this replica: its data goes, its id stays known.
    fn retire(&mut self, group: GroupId) {
        let Some(mut slot) = self.groups.remove(&group) else { return };
        tracing::info!(%group, replica = %slot.core.replica(), "removed from the group: it ends");
        self.deactivate(group);
        slot.core.stop(LossCause::Removed, &mut self.effects);
        let mut write = GroupWrite::new(group);
        write.destroy = Some(slot.core.replica());
        self.effects.log.batch.writes.push(write);
        self.effects.log.destroyed.push((group, slot.core.open_id()));
    }

    /// Whether the group ticks from here on.
    fn settle(&mut self, group: GroupId) {
        let Some(slot) = self.groups.get_mut(&group) else { return };
        slot.touched = false;
        if slot.core.is_retired() {
            return self.retire(group);
        }
        if slot.core.is_frozen() {
            self.frozen.insert(group);
        }
        if slot.core.is_hibernating() {
            self.active[slot_of(group)].remove(&group);
        } else {
            self.active[slot_of(group)].insert(group);
        }
    }

    /// Stops every group.
    pub fn stop_all(&mut self) {
        let mut groups: Vec<GroupId> = self.groups.keys().copied().collect();
        groups.sort_unstable();
        for group in groups {
            self.close(group, LossCause::Stopped);
        }
    }
}

fn slot_of(group: GroupId) -> usize {
    usize::try_from(group.get() % TICK_SLOTS as u64).unwrap_or(0)
}

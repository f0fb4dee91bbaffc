//! Whether the state machines of all replicas hold the same.
//!
//! From time to time a leader puts a *check entry* into the log. Every replica takes a view of its
//! state machine exactly behind that entry, computes a checksum of it elsewhere and sends it to the
//! leader, which compares them. The state of a majority of the voters is right: a replica that
//! differs stops, keeps its data, and reports it. Where replicas differ and no majority agrees, it
//! is unknown which are right: all continue, and all of them raise an alarm.
//!
//! A missing checksum is no fault, and replicas that make the bytes in another way (of another
//! version) are not compared. A check keeps no replica awake.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::{Entry, Message, MessageType};
use shardhost_proto::peer::{self, ChecksumVerdict, GroupMessage, MessageKind};
use shardhost_storage::{Certainty, LogIndex, LogPosition, Member, Membership, ReplicaId};

use super::GroupCore;
use crate::apply::Summed;
use crate::checksum::StateSum;
use crate::convert::CHECK_MARK;
use crate::core::Effects;
use crate::error::GroupFault;
use crate::spread::spread;
use crate::transport::{Lane, Outgoing};

/// Ticks that a leader waits for checksums: a large state is read slowly.
const CHECKSUM_TICKS: u64 = 6_000;
/// Ticks after which a check that could not begin is tried again.
const RETRY_TICKS: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// Checksums that would tell are not here yet.
    Open,
    /// A majority of the voters holds this.
    Majority(StateSum),
    /// Replicas differ, and no majority holds the same.
    Split,
}

/// One check of a leader.
#[derive(Debug)]
struct Check {
    position: LogPosition,
    since: u64,
    sums: BTreeMap<u64, StateSum>,
    /// Who learned what came of it.
    told: BTreeSet<u64>,
    /// The last reported judgement.
    outcome: Judgement,
}

/// What the replica knows of comparisons.
#[derive(Debug, Default)]
pub(super) struct Consistency {
    check: Option<Box<Check>>,
    /// The tick of the next check, and the term of the leadership that it is for.
    due: Option<(u64, u64)>,
    /// The state machine is not compared.
    unsupported: bool,
    /// What this replica held at the last check entry.
    own: Option<(LogPosition, StateSum)>,
    checked: Option<LogIndex>,
    differs: Option<LogIndex>,
}

impl Consistency {
    pub(super) const fn checked(&self) -> Option<LogIndex> {
        self.checked
    }

    pub(super) const fn differs(&self) -> Option<LogIndex> {
        self.differs
    }
}

/// Compares what is known; `waiting`: more checksums may come.
fn judge(membership: &Membership, sums: &BTreeMap<u64, StateSum>, waiting: Waiting) -> Judgement {
    let holds = |sum: &StateSum| is_majority(membership, |id| sums.get(&id) == Some(sum));
    if let Some(sum) = sums.values().find(|sum| holds(sum)) {
        return Judgement::Majority(*sum);
    }
    let differ = |sum: &StateSum| {
        let mut others = sums.values().filter(|other| other.format == sum.format);
        others.any(|other| other != sum)
    };
    let mut differing = sums.values().filter(|sum| differ(sum)).peekable();
    if differing.peek().is_none() {
        return Judgement::Open;
    }
    // Whether those that are missing could decide it.
    let may_hold = |sum: &StateSum| {
        is_majority(membership, |id| sums.get(&id).is_none_or(|known| known == sum))
    };
    match waiting {
        Waiting::Yes if differing.any(may_hold) => Judgement::Open,
        _ => Judgement::Split,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Yes,
    No,
}

/// Whether these replicas are a majority of the voters, in a joint configuration of both halves.
fn is_majority(membership: &Membership, counts: impl Fn(u64) -> bool) -> bool {
    let half = |votes: fn(&Member) -> bool| {
        let voters = membership.members.iter().filter(|(_, member)| votes(member));
        let (mut all, mut for_it) = (0, 0);
        for (id, _) in voters {
            all += 1;
            for_it += usize::from(counts(id.get()));
        }
        (all, for_it > all / 2)
    };
    let (_, incoming) = half(|member| member.voter);
    let (outgoing, holds) = half(|member| member.outgoing_voter);
    incoming && (outgoing == 0 || holds)
}

impl GroupCore {
    /// Whether the states of this group are compared.
    pub(super) fn compares(&self) -> bool {
        self.config.consistency_ticks > 0 && !self.consistency.unsupported
    }

    /// Begins a check when it is time, and ends one that waits for too long.
    pub(super) fn tend_consistency(&mut self, effects: &mut Effects) {
        let every = u64::from(self.config.consistency_ticks);
        if !self.leads() {
            self.consistency.check = None;
            self.consistency.due = None;
            return;
        }
        let check = self.consistency.check.as_ref();
        if check.is_some_and(|check| self.ticks - check.since >= CHECKSUM_TICKS) {
            self.end_check(effects);
        }
        let term = self.raw.raft.term;
        match self.consistency.due {
            Some((due, known)) if known == term => {
                if self.ticks >= due {
                    self.begin_check(effects);
                }
            }
            // Not all groups that a node comes to lead at once.
            _ => self.consistency.due = Some((self.ticks + 1 + spread(self.id) % every, term)),
        }
    }

    /// The group hibernates, and was not compared for long.
    pub fn check_hibernating(&mut self, effects: &mut Effects) {
        if self.compares() && self.leads() && self.hibernation.is_hibernating() {
            self.wake();
            self.begin_check(effects);
        }
    }

    /// Puts a check entry into the log.
    fn begin_check(&mut self, effects: &mut Effects) {
        let (ticks, term) = (self.ticks, self.raw.raft.term);
        if !self.is_ready() || self.transfer.is_some() || self.has_unfinished_change() {
            self.consistency.due = Some((ticks + RETRY_TICKS, term));
            return;
        }
        self.end_check(effects);
        self.consistency.due = Some((ticks + u64::from(self.config.consistency_ticks), term));
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.replica.get();
        message.entries = vec![Entry { context: CHECK_MARK, ..Entry::default() }].into();
        self.propose_queued(effects);
        if let Err(error) = self.raw.raft.step(message) {
            tracing::debug!(group = %self.id, %error, "raft dropped a check entry");
            return;
        }
        let position = LogPosition::new(term, self.raw.raft.raft_log.last_index());
        self.consistency.check = Some(Box::new(Check {
            position,
            since: ticks,
            sums: BTreeMap::new(),
            told: BTreeSet::new(),
            outcome: Judgement::Open,
        }));
    }

    /// The checksums that are here must do.
    fn end_check(&mut self, effects: &mut Effects) {
        self.compare(Waiting::No, effects);
        self.consistency.check = None;
    }

    /// The state machine holds this at a check entry.
    pub fn on_summed(&mut self, position: LogPosition, summed: Summed, effects: &mut Effects) {
        let sum = match summed {
            Summed::Sum(sum) => sum,
            Summed::Unsupported => {
                self.consistency.unsupported = true;
                self.consistency.check = None;
                return;
            }
            Summed::Skipped => return,
        };
        self.consistency.own = Some((position, sum));
        if self.leads() {
            return self.add_sum(self.replica.get(), position, sum, effects);
        }
        let leader = self.raw.raft.leader_id;
        let checksum = Some(sum_to_wire(&sum));
        self.send_comparison(MessageKind::Checksum, leader, position, checksum, 0, effects);
    }

    /// Another replica holds this at a check entry.
    pub(super) fn take_checksum(&mut self, message: &GroupMessage, effects: &mut Effects) {
        if let Some(sum) = message.checksum.as_ref().map(sum_from_wire) {
            let position = LogPosition::new(message.log_term, message.index);
            self.add_sum(message.from_replica, position, sum, effects);
        }
    }

    fn add_sum(&mut self, from: u64, position: LogPosition, sum: StateSum, effects: &mut Effects) {
        let members = &self.membership.members;
        let known = |id: u64| ReplicaId::new(id).is_some_and(|id| members.contains_key(&id));
        if !self.leads() || !known(from) {
            return;
        }
        let check = self.consistency.check.as_mut();
        let Some(check) = check.filter(|check| check.position == position) else { return };
        // What was compared stands.
        check.sums.entry(from).or_insert(sum);
        self.compare(Waiting::Yes, effects);
    }

    /// Reports the result to the replicas that sent a checksum, as soon as there is one.
    fn compare(&mut self, waiting: Waiting, effects: &mut Effects) {
        let Some(mut check) = self.consistency.check.take() else { return };
        let outcome = judge(&self.membership, &check.sums, waiting);
        if outcome != check.outcome {
            check.outcome = outcome;
            check.told.clear();
        }
        if outcome != Judgement::Open {
            let untold: Vec<u64> =
                check.sums.keys().copied().filter(|id| check.told.insert(*id)).collect();
            for replica in untold {
                self.tell_outcome(replica, check.position, outcome, effects);
            }
        }
        self.consistency.check = Some(check);
    }

    fn tell_outcome(
        &mut self,
        to: u64,
        at: LogPosition,
        outcome: Judgement,
        effects: &mut Effects,
    ) {
        if to == self.replica.get() {
            return self.learn_outcome(at, outcome, effects);
        }
        let (verdict, sum) = match outcome {
            Judgement::Open => return,
            Judgement::Majority(sum) => (ChecksumVerdict::Majority, sum),
            Judgement::Split => (ChecksumVerdict::Split, StateSum::default()),
        };
        let checksum = Some(sum_to_wire(&sum));
        let kind = MessageKind::ChecksumVerdict;
        self.send_comparison(kind, to, at, checksum, verdict.into(), effects);
    }

    /// The leader reports the result of a check.
    pub(super) fn take_verdict(&mut self, message: &GroupMessage, effects: &mut Effects) {
        let position = LogPosition::new(message.log_term, message.index);
        let sum = message.checksum.as_ref().map(sum_from_wire);
        let outcome = match (message.verdict(), sum) {
            (ChecksumVerdict::Majority, Some(sum)) => Judgement::Majority(sum),
            (ChecksumVerdict::Split, _) => Judgement::Split,
            _ => return,
        };
        self.learn_outcome(position, outcome, effects);
    }

    /// What came of a check counts if this replica took part in it.
    fn learn_outcome(&mut self, at: LogPosition, outcome: Judgement, effects: &mut Effects) {
        let Some((position, own)) = self.consistency.own else { return };
        if position != at {
            return;
        }
        match outcome {
            Judgement::Open => {}
            Judgement::Majority(others) if others == own => {
                self.consistency.checked = Some(at.index);
                self.consistency.differs = None;
            }
            // They cannot be compared.
            Judgement::Majority(others) if others.format != own.format => {}
            Judgement::Majority(others) => {
                // A restart does not make it right.
                self.write_certainty(Certainty::Differs, effects);
                let fault = GroupFault::Inconsistent { index: at.index, own, others };
                effects.fault(self.id, fault);
            }
            Judgement::Split => {
                if self.consistency.differs.replace(at.index).is_none() {
                    tracing::error!(group = %self.id, index = %at.index, %own,
                        "the replicas of the group differ, and no majority of them agrees; find \
                         out which are right");
                }
            }
        }
    }

    fn send_comparison(
        &self,
        kind: MessageKind,
        to: u64,
        at: LogPosition,
        checksum: Option<peer::StateChecksum>,
        verdict: i32,
        effects: &mut Effects,
    ) {
        let Some(node) = self.node_of(to) else { return };
        let message = GroupMessage {
            index: at.index.get(),
            log_term: at.term.get(),
            checksum,
            verdict,
            ..self.own_message(kind, to)
        };
        effects.messages.push(Outgoing { to: node, lane: Lane::Urgent, message });
    }
}

const fn sum_to_wire(sum: &StateSum) -> peer::StateChecksum {
    peer::StateChecksum { format: sum.format, bytes: sum.bytes, sum: sum.sum }
}

const fn sum_from_wire(wire: &peer::StateChecksum) -> StateSum {
    StateSum { format: wire.format, bytes: wire.bytes, sum: wire.sum }
}

#[cfg(test)]
mod tests;

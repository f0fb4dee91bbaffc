//! What must hold, whatever happens. Fed with everything that nodes do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::histories::Histories;
use super::serving::Serving;
use shardhost_groups::core::MembershipOutcome;
use shardhost_groups::leadership::{Edge, EdgeKind};
use shardhost_groups::transport::Outgoing;
use shardhost_groups::{GroupId, GroupStatus, LogPosition, NodeId, ProposalSink, ProposeOutcome};
use shardhost_proto::peer::MessageKind;
use shardhost_storage::MemoryStore;

/// Outcomes of proposals, as their proposers learn them.
#[derive(Debug, Default)]
pub struct Outcomes {
    fresh: Mutex<Vec<(u64, ProposeOutcome)>>,
}

impl ProposalSink for Outcomes {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        self.fresh.lock().unwrap().push((token, outcome));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Acquired,
    Ready,
    Caretaker,
}

/// An election with a winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Election {
    pub group: GroupId,
    pub term: u64,
    pub winner: NodeId,
}

/// Everything that the checkers remember.
#[derive(Debug, Default)]
pub struct Checks {
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) histories: Histories,
    pub(super) serving: Serving,
    proposed: BTreeMap<u64, GroupId>,
    ended: BTreeSet<u64>,
    /// Acknowledged commands: where each stands.
    acknowledged: BTreeMap<u64, (GroupId, LogPosition)>,
    /// The highest acknowledged index of each group.
    highest: BTreeMap<GroupId, u64>,
    /// What any machine applied at a position.
    canonical: BTreeMap<(GroupId, u64), (u64, u64)>,
    leaders: BTreeMap<(GroupId, u64), NodeId>,
    elections: Vec<Election>,
    standings: BTreeMap<(NodeId, GroupId), (u64, Standing)>,
    hibernating: BTreeSet<(NodeId, GroupId)>,
    pub(super) definite: u64,
    pub(super) unknown: u64,
    pub(super) reads: u64,
    pub(super) transfers: u64,
    pub(super) restores: u64,
    pub(super) hibernates: u64,
    pub(super) lease_reads: u64,
    pub(super) changes: u64,
    pub(super) retired: u64,
    pub(super) lost_disks: u64,
    pub(super) lost_states: u64,
    pub(super) lost_tails: u64,
    pub(super) caretakers: u64,
    pub(super) stood_again: u64,
}

/// What a number of runs brought about: a run in which nothing happens proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    pub acknowledged: u64,
    /// Commands that surely took no effect.
    pub definite: u64,
    /// Commands whose proposers got no answer.
    pub unknown: u64,
    pub reads: u64,
    pub leaders: u64,
    /// Leaderships that were handed over on request.
    pub transfers: u64,
    /// Snapshots that machines took over.
    pub restores: u64,
    /// Times that a replica was seen hibernating.
    pub hibernates: u64,
    pub lease_reads: u64,
    /// Changes of membership that succeeded.
    pub changes: u64,
    pub retired: u64,
    /// Disks that were replaced by empty ones.
    pub lost_disks: u64,
    /// States of state machines that were lost.
    pub lost_states: u64,
    /// Logs that lost their end.
    pub lost_tails: u64,
    /// Leaderships that served no users, for a while at least.
    pub caretakers: u64,
    /// Leaders that were deposed and stood again at once.
    pub stood_again: u64,
}

impl Coverage {
    /// Counts a run.
    pub fn add(&mut self, checks: &Checks) {
        self.acknowledged += checks.acknowledged() as u64;
        self.definite += checks.definite;
        self.unknown += checks.unknown;
        self.reads += checks.reads;
        self.leaders += checks.leaders.len() as u64;
        self.transfers += checks.transfers;
        self.restores += checks.restores;
        self.hibernates += checks.hibernates;
        self.lease_reads += checks.lease_reads;
        self.changes += checks.changes;
        self.retired += checks.retired;
        self.lost_disks += checks.lost_disks;
        self.lost_states += checks.lost_states;
        self.lost_tails += checks.lost_tails;
        self.caretakers += checks.caretakers;
        self.stood_again += checks.stood_again;
    }

    /// Every kind of thing happened, and often.
    ///
    /// # Panics
    /// It did not.
    pub fn demand(&self, runs: u64) {
        assert!(self.acknowledged > runs * 50, "{self:?}");
        assert!(self.definite > runs && self.unknown > runs, "{self:?}");
        assert!(self.reads > runs * 5 && self.leaders > runs * 2, "{self:?}");
        assert!(self.lease_reads > runs * 10, "{self:?}");
        assert!(self.transfers > runs / 20 && self.restores > runs / 20, "{self:?}");
    }
}

impl Checks {
    /// A change of membership ended.
    pub(super) fn membership_answer(&mut self, outcome: &MembershipOutcome) {
        self.changes += u64::from(outcome.is_ok());
    }

    pub(super) fn propose(&mut self, id: u64, group: GroupId) {
        self.proposed.insert(id, group);
        self.histories.put(id, group);
    }

    /// Commands whose proposers got no answer.
    pub fn unanswered(&self) -> usize {
        self.proposed.len() - self.ended.len()
    }

    /// How many commands were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    pub(super) fn highest_acknowledged(&self, group: GroupId) -> u64 {
        self.highest.get(&group).copied().unwrap_or(0)
    }

    /// Looks at what proposers learned since the last call.
    pub(super) fn take_outcomes(&mut self) -> Result<(), String> {
        let fresh = std::mem::take(&mut *self.outcomes.fresh.lock().unwrap());
        for (id, outcome) in fresh {
            if !self.ended.insert(id) {
                return Err(format!("proposal {id} ended twice"));
            }
            let Some(&group) = self.proposed.get(&id) else {
                return Err(format!("proposal {id} was never made"));
            };
            match outcome {
                Ok(applied) => {
                    if applied.response.as_ref() != id.to_be_bytes() {
                        return Err(format!("proposal {id} got the answer of another one"));
                    }
                    let at = LogPosition { term: applied.term, index: applied.index };
                    self.acknowledge(id, group, at)?;
                    self.histories.acknowledged(id);
                }
                Err(error) if error.is_definite() => self.definite += 1,
                Err(_) => self.unknown += 1,
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self, id: u64, group: GroupId, at: LogPosition) -> Result<(), String> {
        let expected = (at.term.get(), id);
        let found = self.canonical.get(&(group, at.index.get()));
        if found != Some(&expected) {
            return Err(format!(
                "proposal {id} was acknowledged at {at} of {group:?}, where {found:?} stands"
            ));
        }
        self.acknowledged.insert(id, (group, at));
        let highest = self.highest.entry(group).or_default();
        *highest = (*highest).max(at.index.get());
        Ok(())
    }

    /// A machine applied a command. All machines apply the same at the same place.
    pub(super) fn applied(
        &mut self,
        group: GroupId,
        at: LogPosition,
        id: u64,
    ) -> Result<(), String> {
        let entry = (at.term.get(), id);
        let known = *self.canonical.entry((group, at.index.get())).or_insert(entry);
        if known == entry {
            return Ok(());
        }
        Err(format!("at index {} of {group:?} stands {known:?} and {entry:?}", at.index))
    }

    /// A read was confirmed: it sees everything that was acknowledged before it began.
    pub(super) fn read(&mut self, group: GroupId, seen: u64, needed: u64) -> Result<(), String> {
        self.reads += 1;
        if seen >= needed {
            return Ok(());
        }
        Err(format!("a read of {group:?} saw index {seen}, but {needed} was acknowledged before"))
    }

    /// One leader per term; per replica strictly acquired, ready, lost.
    pub(super) fn edge(&mut self, node: NodeId, edge: &Edge) -> Result<(), String> {
        let (group, term) = (edge.group, edge.term.get());
        let before = self.standings.get(&(node, group)).copied();
        let after = match (&edge.kind, before) {
            (EdgeKind::Acquired, None) => Some((term, Standing::Acquired)),
            (EdgeKind::Ready, Some((led, Standing::Acquired | Standing::Caretaker)))
                if led == term =>
            {
                Some((term, Standing::Ready))
            }
            (EdgeKind::Caretaker, Some((led, Standing::Acquired | Standing::Ready)))
                if led == term =>
            {
                Some((term, Standing::Caretaker))
            }
            (EdgeKind::Lost { .. }, Some((led, _))) if led == term => None,
            _ => return Err(format!("{node:?} told {edge:?} after {before:?}")),
        };
        self.caretakers += u64::from(matches!(edge.kind, EdgeKind::Caretaker));
        if matches!(edge.kind, EdgeKind::Acquired) {
            if !self.leaders.contains_key(&(group, term)) {
                self.elections.push(Election { group, term, winner: node });
            }
            let leader = *self.leaders.entry((group, term)).or_insert(node);
            if leader != node {
                return Err(format!("{leader:?} and {node:?} both led {group:?} in term {term}"));
            }
        }
        match after {
            Some(after) => self.standings.insert((node, group), after),
            None => self.standings.remove(&(node, group)),
        };
        Ok(())
    }

    /// All elections with a winner, in order.
    pub fn elections(&self) -> &[Election] {
        &self.elections
    }

    /// Who was elected to lead a group, by term.
    pub fn leadership_of(&self, group: GroupId) -> Vec<(u64, NodeId)> {
        let of = self.leaders.iter().filter(|((led, _), _)| *led == group);
        of.map(|((_, term), node)| (*term, *node)).collect()
    }

    /// A process died: its leaderships ended without a word.
    pub(super) fn forget_node(&mut self, node: NodeId) {
        self.standings.retain(|(holder, _), _| *holder != node);
        self.serving.forget(|of, _| of == node);
        self.hibernating.retain(|(of, _)| *of != node);
    }

    pub(super) fn replica_ended(&mut self, node: NodeId, group: GroupId) {
        self.serving.forget(|of, what| of == node && what == group);
        self.hibernating.remove(&(node, group));
    }

    /// A replica hibernates only as long as something will wake it: a follower while the node of
    /// its leader lives, a leader while a quorum does.
    pub(super) fn sleep(
        &mut self,
        node: NodeId,
        status: &GroupStatus,
        lives: impl Fn(NodeId) -> bool,
    ) -> Result<(), String> {
        self.hibernates += u64::from(status.hibernating);
        let key = (node, status.id);
        if !status.hibernating {
            self.hibernating.remove(&key);
            return Ok(());
        }
        if !self.hibernating.insert(key) {
            return Ok(());
        }
        let leader = status.leader.map(|leader| leader.node);
        let voters: Vec<_> = status.membership.voters().collect();
        let alive = voters.iter().filter(|(_, voter)| *voter == node || lives(*voter)).count();
        let safe = match status.is_leader() {
            true => alive > voters.len() / 2,
            false => leader.is_some_and(&lives),
        };
        if safe {
            Ok(())
        } else {
            Err(format!("{node:?} hibernates, and nobody wakes it: {status:?}"))
        }
    }

    /// What a message promises is durable on the node that sends it.
    pub(super) fn message(&self, store: &MemoryStore, outgoing: &Outgoing) -> Result<(), String> {
        let message = &outgoing.message;
        let group = GroupId::new(message.group);
        let Some(durable) = store.load_durable(group) else { return Ok(()) };
        let state = durable.hard_state;
        let voted = state.vote.map(shardhost_groups::ReplicaId::get);
        let broken = match message.kind() {
            MessageKind::Vote => {
                state.term.get() < message.term
                    || (state.term.get() == message.term && voted != Some(message.from_replica))
            }
            MessageKind::VoteResponse if !message.reject => {
                state.term.get() < message.term
                    || (state.term.get() == message.term && voted != Some(message.to_replica))
            }
            MessageKind::AppendResponse if !message.reject => {
                state.term.get() < message.term
                    || (state.term.get() == message.term
                        && durable.last.index.get() < message.index)
            }
            _ => false,
        };
        if broken {
            return Err(format!("{:?} left before it was durable: {durable:?}", outgoing.message));
        }
        Ok(())
    }

    /// At the end: whatever was acknowledged stands where it was acknowledged, once.
    pub(super) fn settled(
        &self,
        group: GroupId,
        commands: &[(LogPosition, u64)],
    ) -> Result<(), String> {
        let mut places = BTreeMap::new();
        for (at, id) in commands {
            if let Some(first) = places.insert(*id, *at) {
                return Err(format!("command {id} was applied at {first} and at {at}"));
            }
        }
        for (id, (of, at)) in &self.acknowledged {
            if *of == group && places.get(id) != Some(at) {
                return Err(format!(
                    "command {id} was acknowledged at {at} of {group:?} and is lost: {:?}",
                    places.get(id)
                ));
            }
        }
        Ok(())
    }
}

//! Groups that have nothing to do stop ticking, so that ten thousand idle groups cost nothing.
//!
//! A leader that was quiet for a while asks every live peer to hibernate. A peer agrees when it has
//! everything and nothing to do, and hibernates from then on; the leader hibernates when all
//! agreed. Peers on lost nodes are left out, as long as the live voters are a quorum: they are
//! woken for when their node comes back.
//!
//! Whatever happens to a hibernating group wakes it: whatever a client asks of any of its replicas,
//! a vote, a message of raft, the loss of the leader's node, its return as another process, the end
//! of the leader's replica, or the return of any member's node to a leader.

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{NodeId, ReplicaId};

use super::GroupCore;
use crate::core::Effects;
use crate::known_bugs::KnownBug;
use crate::nodes::LiveNodes;
use crate::transport::{Lane, Outgoing};

#[derive(Debug)]
pub(super) enum Hibernation {
    /// It ticks; nothing happened for so many ticks.
    Awake {
        quiet: u16,
    },
    /// A leader asked to hibernate, and waits for these peers to agree; so many ticks are left.
    Asking {
        waiting: Vec<u64>,
        ticks_left: u16,
    },
    Hibernating,
}

/// Ticks after which a leader that asked to hibernate stops waiting for answers. Meanwhile it sends
/// no heartbeats, which would wake who agreed; well below an election timeout.
const ANSWER_TICKS: u16 = 3;

impl Default for Hibernation {
    fn default() -> Self {
        Self::Awake { quiet: 0 }
    }
}

impl Hibernation {
    pub(super) const fn is_hibernating(&self) -> bool {
        matches!(self, Self::Hibernating)
    }

    /// Ticks in which nothing happened, while awake.
    pub(super) const fn quiet_ticks(&self) -> Option<u16> {
        match self {
            Self::Awake { quiet } => Some(*quiet),
            Self::Asking { .. } | Self::Hibernating => None,
        }
    }

    /// One tick went by.
    pub(super) fn tick(&mut self) {
        match self {
            Self::Awake { quiet } => *quiet = quiet.saturating_add(1),
            Self::Asking { ticks_left, .. } if *ticks_left > 0 => *ticks_left -= 1,
            Self::Asking { .. } => *self = Self::default(),
            Self::Hibernating => {}
        }
    }

    /// Whether nothing happened for so many ticks; 0: groups never hibernate.
    pub(super) fn is_quiet_for(&self, ticks: u16) -> bool {
        ticks > 0 && self.quiet_ticks().is_some_and(|quiet| quiet >= ticks)
    }

    /// A peer agrees to hibernate, or not.
    fn take_answer(&mut self, peer: u64, agrees: bool) -> Answered {
        let Self::Asking { waiting, .. } = self else { return Answered::NotAsked };
        waiting.retain(|&waits| waits != peer);
        let all = waiting.is_empty();
        match agrees {
            false => {
                *self = Self::default();
                Answered::Refused
            }
            true if all => Answered::All,
            true => Answered::Some,
        }
    }

    pub(super) const fn is_asking(&self) -> bool {
        matches!(self, Self::Asking { .. })
    }
}

/// What is known of those that were asked to hibernate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    NotAsked,
    /// One does not agree: none hibernates.
    Refused,
    Some,
    All,
}

impl GroupCore {
    /// Something happens: the replica ticks again. A leader notifies its followers.
    pub(super) fn wake(&mut self) {
        let was_hibernating = self.hibernation.is_hibernating();
        self.hibernation = Hibernation::default();
        if was_hibernating {
            self.raw.raft.election_elapsed = 0;
            if self.leads() {
                self.lease.ask_anew(self.ticks);
                self.raw.ping();
            }
        }
    }

    /// A leader asks its peers to answer now.
    pub(super) fn ask_peers(&mut self) {
        let was_hibernating = self.hibernation.is_hibernating();
        self.wake();
        if !was_hibernating {
            self.raw.ping();
        }
    }

    /// Wakes the replica for a message, unless the message is part of going quiet.
    pub(super) fn wake_on(&mut self, message: &GroupMessage, effects: &mut Effects) {
        let was_hibernating = self.hibernation.is_hibernating();
        match message.kind() {
            MessageKind::HeartbeatResponse | MessageKind::HibernateResponse => return,
            MessageKind::Hibernate => return,
            // Replicas are compared while they hibernate.
            MessageKind::Checksum | MessageKind::ChecksumVerdict => return,
            MessageKind::Heartbeat if !was_hibernating => return,
            _ => self.wake(),
        }
        let election = matches!(message.kind(), MessageKind::PreVote | MessageKind::Vote);
        if was_hibernating && election && !self.leads() {
            self.ping_leader(effects);
        }
    }

    /// A client asks something of this replica. A hibernating follower cannot tell whether its
    /// leader still exists, so it looks: the leader makes itself heard, or another one is elected.
    pub fn on_request(&mut self, effects: &mut Effects) {
        if self.hibernation.is_hibernating() && !self.leads() {
            self.wake();
            self.ping_leader(effects);
        }
    }

    /// A peer does not hear the hibernating leader: the leader should make itself heard.
    fn ping_leader(&self, effects: &mut Effects) {
        self.send_own(MessageKind::Wake, self.raw.raft.leader_id, false, effects);
    }

    /// Whether its followers need a notice of its end: some may hibernate, and would not learn of
    /// it otherwise.
    #[must_use]
    pub fn keeps_followers_hibernating(&self) -> bool {
        let may_hibernate = self.config.hibernate_after_ticks > 0;
        self.leads() && may_hibernate && !self.config.bugs.has(KnownBug::HibernateThroughAnEnd)
    }

    /// Asks every peer to tick again; for a replica that will not lead them any more.
    pub fn wake_peers(&self, effects: &mut Effects) {
        for id in self.membership.members.keys() {
            self.send_own(MessageKind::Wake, id.get(), false, effects);
        }
    }

    /// A node is lost. A hibernating follower of a leader there must look for another one; a
    /// hibernating leader must notice when its quorum is gone.
    pub fn on_node_lost(&mut self, node: NodeId, live: &LiveNodes) {
        if !self.leads() {
            return self.on_process_ended(node, live);
        }
        if self.hibernation.is_hibernating() && !self.live_voters_are_quorum(live) {
            self.wake();
        }
    }

    /// The process of a node ended, and whatever it led is not led any more.
    fn on_process_ended(&mut self, node: NodeId, live: &LiveNodes) {
        let leader = self.node_of(self.raw.raft.leader_id);
        if self.leads() || leader.is_some_and(|leader| leader != node) {
            return;
        }
        self.candidacy.stop_withholding();
        if self.hibernation.is_hibernating() {
            self.wake();
            self.take_turn(live);
        }
    }

    /// The leader has been silent for longer than an election timeout already. The rest of the time
    /// is divided among the remaining voters, so that they do not campaign together; which one is
    /// first differs from group to group.
    ///
    /// This replica has a turn whether it votes or not: the entry that gives it a vote may be on its way.
    fn take_turn(&mut self, live: &LiveNodes) {
        let own = self.config.node;
        let voters = self.membership.voters().map(|(_, node)| node);
        let others = voters.filter(|node| *node != own && live.contains(*node));
        let counts_itself = !self.config.bugs.has(KnownBug::TurnsOfVotersOnly)
            || self.membership.voters().any(|(_, node)| node == own);
        let left: Vec<NodeId> = others.chain(counts_itself.then_some(own)).collect();
        let turn = self.turn_of(own);
        let before = left.iter().filter(|node| self.turn_of(**node) < turn).count();
        let raft = &mut self.raw.raft;
        let timeout = raft.election_timeout();
        raft.election_elapsed = timeout;
        let drawn = raft.randomized_election_timeout().saturating_sub(timeout);
        let rest = (before * timeout + drawn) / left.len().max(1);
        self.candidacy.set_turn(self.raw.raft.term, timeout + rest);
        self.pin_election_timeout();
    }

    /// A node came back, or came back as another process. If that was not noticed, the earlier
    /// process ended all the same: its replicas lead nothing, and may not even exist any more.
    pub fn on_node_live(&mut self, node: NodeId, live: &LiveNodes) {
        if self.membership.replica_on(node).is_none() {
            return;
        }
        if self.leads() && self.hibernation.is_hibernating() {
            self.wake();
        } else if !self.config.bugs.has(KnownBug::HibernateThroughAnEnd) {
            self.on_process_ended(node, live);
        }
    }

    /// Whether this replica leads, and a member on that node may have lost its disk and be created
    /// anew.
    #[must_use]
    pub fn counts_on_learner_of(&self, node: NodeId) -> bool {
        let mut members = self.membership.members.values();
        self.leads()
            && members.any(|member| member.node == node && member.never_voted)
            && !self.config.bugs.has(KnownBug::CountLostLearner)
    }

    /// A member without a vote may have lost its disk: what it acknowledged to this leader does not
    /// count before it reports again. Until then it gets no vote, and is created if it does not
    /// exist.
    pub fn count_anew(&mut self, node: NodeId) {
        let members = self.membership.members.iter();
        let concerned = members.filter(|(_, member)| member.node == node && member.never_voted);
        let replicas: Vec<u64> = concerned.map(|(id, _)| id.get()).collect();
        for replica in replicas {
            self.count_replica_anew(replica);
            self.check_life(replica);
        }
    }

    /// What a replica acknowledged to this leader counts only once it reports again.
    pub(super) fn count_replica_anew(&mut self, replica: u64) {
        if !self.leads() {
            return;
        }
        let last = self.raw.raft.raft_log.last_index();
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(replica) {
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = last + 1;
        }
    }

    /// Whether this leader may ask its peers to hibernate: they have everything, and nothing is to
    /// do.
    pub(super) fn may_lead_into_hibernation(&self, live: &LiveNodes, effects: &Effects) -> bool {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let served =
            self.is_ready() && self.is_service_settled() && !self.will_ask_successors(effects);
        let level = self.membership.members.iter().all(|(id, member)| {
            !live.contains(member.node)
                || raft.prs().get(id.get()).is_some_and(|progress| progress.matched == last)
        });
        served && self.is_quiescent() && level && self.live_voters_are_quorum(live)
    }

    /// Everything in the log is durable, committed and applied, and no caller waits.
    fn is_quiescent(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        let last = log.last_index();
        log.committed == last
            && log.persisted == last
            && self.apply.applied() == last
            && self.apply.is_idle()
            && !self.recovery.is_lost()
            && self.durable.is_settled()
            && self.proposals.is_empty()
            && self.reads.is_empty()
            && self.transfer.is_none()
            && !self.barriers.is_open()
            && !self.has_unfinished_change()
            && !self.changes.has_held()
            && self.leaving.is_over()
            && self.durable.is_meta_durable()
            && !self.snapshots.is_busy()
    }

    fn live_voters_are_quorum(&self, live: &LiveNodes) -> bool {
        let own = self.config.node;
        let holds = |votes: &dyn Fn(&shardhost_storage::Member) -> bool| {
            let voters: Vec<_> = self.membership.members.values().filter(|m| votes(m)).collect();
            let alive = voters.iter().filter(|m| m.node == own || live.contains(m.node)).count();
            voters.is_empty() || alive > voters.len() / 2
        };
        holds(&|member| member.voter) && holds(&|member| member.outgoing_voter)
    }

    /// Asks every live peer to hibernate.
    pub(super) fn ask_to_hibernate(&mut self, live: &LiveNodes, effects: &mut Effects) {
        let peers = self.membership.members.iter();
        let waiting: Vec<u64> = peers
            .filter(|(id, member)| **id != self.replica && live.contains(member.node))
            .map(|(id, _)| id.get())
            .collect();
        for &peer in &waiting {
            self.send_own(MessageKind::Hibernate, peer, false, effects);
        }
        if waiting.is_empty() {
            return self.hibernate();
        }
        self.hibernation = Hibernation::Asking { waiting, ticks_left: ANSWER_TICKS };
    }

    /// The leader asks to hibernate. Nothing would wake a follower whose leader's process ended
    /// before the question came.
    pub(super) fn answer_hibernate(
        &mut self,
        node: NodeId,
        message: &GroupMessage,
        effects: &mut Effects,
    ) {
        let log = &self.raw.raft.raft_log;
        let level = message.index == log.last_index() && message.commit == log.committed;
        let asked_by_the_living = effects.nodes.is_live(node, message.life)
            || self.config.bugs.has(KnownBug::HibernateAfterTheLoss);
        let agrees = level && asked_by_the_living && !self.leads() && self.is_quiescent();
        if agrees {
            self.hibernate();
        }
        self.send_own(MessageKind::HibernateResponse, message.from_replica, !agrees, effects);
    }

    /// A peer answers. When all have, the leader looks once more whether it may hibernate:
    /// meanwhile nodes were lost, or came back.
    pub(super) fn take_hibernate_response(&mut self, message: &GroupMessage, effects: &Effects) {
        let (term, last) = (self.raw.raft.term, self.raw.raft.raft_log.last_index());
        let current = message.term == term && message.index == last;
        let agrees = current && !message.reject;
        if self.hibernation.take_answer(message.from_replica, agrees) != Answered::All {
            return;
        }
        let may_hibernate = self.may_lead_into_hibernation(&effects.nodes, effects)
            || (self.is_quiescent() && self.config.bugs.has(KnownBug::HibernateAfterTheLoss));
        if self.leads() && may_hibernate {
            self.hibernate();
        } else {
            self.hibernation = Hibernation::default();
        }
    }

    /// Stops ticking and gives memory back.
    fn hibernate(&mut self) {
        self.hibernation = Hibernation::Hibernating;
        self.renew_peers();
        let settled = self.apply.applied();
        let raft = &mut self.raw.raft;
        raft.maybe_free_inflight_buffers();
        raft.raft_log.unstable.entries.shrink_to(0);
        raft.msgs.shrink_to(0);
        self.proposals.shrink();
        self.apply.shrink();
        self.lease.shrink();
        let log = self.raw.mut_store();
        log.trim(settled, 0);
        log.shrink();
    }

    fn send_own(&self, kind: MessageKind, to: u64, reject: bool, effects: &mut Effects) {
        let Some(to) = ReplicaId::new(to).filter(|to| *to != self.replica) else { return };
        let Some(node) = self.node_of(to.get()) else { return };
        let log = &self.raw.raft.raft_log;
        let message = GroupMessage {
            index: log.last_index(),
            commit: log.committed,
            life: if kind == MessageKind::Hibernate { self.config.incarnation } else { 0 },
            reject,
            ..self.own_message(kind, to.get())
        };
        effects.messages.push(Outgoing { to: node, lane: Lane::Urgent, message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(waiting: &[u64]) -> Hibernation {
        Hibernation::Asking { waiting: waiting.to_vec(), ticks_left: ANSWER_TICKS }
    }

    #[test]
    fn all_that_were_asked_must_agree() {
        assert_eq!(Hibernation::default().take_answer(2, true), Answered::NotAsked);
        let mut hibernation = asking(&[2, 3]);
        assert_eq!(hibernation.take_answer(2, true), Answered::Some);
        assert_eq!(hibernation.take_answer(2, true), Answered::Some, "one counts once");
        assert_eq!(hibernation.take_answer(3, true), Answered::All);
        let mut hibernation = asking(&[2, 3]);
        assert_eq!(hibernation.take_answer(2, false), Answered::Refused);
        assert_eq!(hibernation.quiet_ticks(), Some(0));
    }

    #[test]
    fn answers_are_awaited_for_some_ticks_only() {
        let mut hibernation = asking(&[2]);
        (0..ANSWER_TICKS).for_each(|_| hibernation.tick());
        assert!(hibernation.is_asking());
        hibernation.tick();
        assert_eq!(hibernation.quiet_ticks(), Some(0));
    }

    #[test]
    fn a_group_is_quiet_after_so_many_ticks_unless_it_never_hibernates() {
        let mut hibernation = Hibernation::default();
        (0..9).for_each(|_| hibernation.tick());
        assert!(!hibernation.is_quiet_for(10));
        hibernation.tick();
        assert!(hibernation.is_quiet_for(10) && !hibernation.is_quiet_for(0));
        hibernation = Hibernation::Hibernating;
        hibernation.tick();
        assert!(hibernation.is_hibernating() && !hibernation.is_quiet_for(10));
    }
}

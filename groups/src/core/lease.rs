//! Leases: a leader may answer reads without a round trip, as long as a quorum's votes are locked
//! for it.
//!
//! | rule | why |
//! |---|---|
//! | a voter refuses elections for one election timeout after it heard its leader | the vote lock |
//! | but not of that leader itself, which gave its lease up before it stands | so a leader whose term a candidate ended leads again at once |
//! | after a start it does so as well | it forgot its vote lock |
//! | a lease counts from the moment its heartbeat was sent | the vote lock is not older than that |
//! | it is shorter than the vote lock, by a margin | clocks differ in speed |
//! | it needs an applied entry of the own term | before, the leader may lack acknowledged writes |
//! | it is revoked at the start of a transfer | a replica that gets TimeoutNow breaks the vote locks |
//! | after transfers that failed, every target must have answered anew | the order to campaign may still be on its way; who answered later refuses it |
//! | or it was removed, and a quorum holds an entry that it never got | voters that do not know of the removal yet refuse the shorter log |
//!
//! The worker supplies the time: the moment a step began (for what is sent and for what expires)
//! and the moment it ended (for vote locks), so that every vote lock outlasts every lease.
//!
//! [`Lease`] decides both; this file puts stamps on messages and takes them off, and says when a
//! leadership counts at all.

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{Membership, NodeId, ReplicaId};

mod state;

pub(super) use state::{Lease, PeerState, Presence, Round};

use super::{GroupCore, mix};
use crate::clock::Moment;
use crate::core::{Effects, LeaseSign};
use crate::known_bugs::KnownBug;
use crate::nodes::LiveNodes;
use state::Now;

/// The context by which raft marks the campaign of a transfer.
const TRANSFER_CAMPAIGN: &[u8] = b"CampaignTransfer";

impl GroupCore {
    /// The incarnation of this replica: a message meant for an earlier one is recognized.
    pub(super) fn life(&self) -> u64 {
        mix(self.config.incarnation ^ mix(self.open_id)) | 1
    }

    // ---- the vote lock ----

    /// Whether a vote lock keeps this replica from supporting an election, its own included.
    pub(super) fn is_vote_locked(&self, effects: &Effects) -> bool {
        self.lease.is_vote_locked(self.now(effects))
    }

    /// Whether a vote must not be given, whatever raft would do.
    pub(super) fn withholds_vote(&self, message: &GroupMessage, effects: &Effects) -> bool {
        let vote = matches!(message.kind(), MessageKind::Vote | MessageKind::PreVote);
        vote && message.context != TRANSFER_CAMPAIGN
            && message.term >= self.raw.raft.term
            && !self.leads()
            && !self.lease.is_locked_for(message.from_replica)
            && self.is_vote_locked(effects)
    }

    /// The leader of this term was heard.
    pub(super) fn hear_leader(
        &mut self,
        message_kind: MessageKind,
        from: u64,
        stamp: u64,
        effects: &Effects,
    ) {
        let raft = &self.raw.raft;
        if raft.leader_id != from || self.leads() {
            return;
        }
        let term = raft.term;
        let now = self.now(effects);
        self.lease.hear(from, now, self.config.tick);
        if message_kind == MessageKind::Heartbeat {
            self.lease.hear_stamp(from, term, Moment::new(stamp));
        }
    }

    /// The time of this step.
    fn now(&self, effects: &Effects) -> Now {
        Now {
            began: effects.began,
            ended: effects.ended,
            tick: self.ticks,
            timeout: u64::from(self.config.election_ticks),
            bugs: self.config.bugs,
        }
    }

    /// Whether an order to campaign is the one that the leader stands by: sent to this life of
    /// the replica, and not before a heartbeat that was answered already.
    pub(super) fn is_current_order(&self, message: &GroupMessage) -> bool {
        if self.config.bugs.has(KnownBug::LateTimeoutNow) {
            return true;
        }
        let (term, stamp) = (self.raw.raft.term, Moment::new(message.stamp));
        self.lease.is_current_order(term, stamp) && message.life == self.life()
    }

    /// At the end of a step: the vote is locked anew from here on, if the leader was heard in it.
    pub(super) fn extend_vote_lock(&mut self, effects: &Effects) {
        let now = self.now(effects);
        self.lease.renew(now, self.config.election_timeout());
    }

    // ---- stamps on messages ----

    /// Puts the stamps of leases on an outgoing message. `false`: it must not leave yet.
    pub(super) fn stamp(&mut self, wire: &mut GroupMessage, effects: &Effects) -> bool {
        match wire.kind() {
            MessageKind::Heartbeat => {
                wire.stamp = effects.began.map_or(0, Moment::get);
                wire.lacks_state = self.may_give_no_state();
                let now = self.now(effects);
                self.lease.send_heartbeat(wire.to_replica, now);
            }
            MessageKind::HeartbeatResponse => {
                wire.life = self.life();
                wire.stamp = self.lease.echo_to(wire.to_replica);
                wire.lacks_state = self.has_no_state();
            }
            MessageKind::AppendResponse => {
                wire.life = self.life();
                wire.lacks_state = self.has_no_state();
            }
            MessageKind::TimeoutNow => {
                wire.stamp = effects.began.map_or(0, Moment::get);
                wire.life = self.lease.life_of(wire.to_replica);
                wire.escape = self.only_draining_voters_are_left(effects);
                if wire.life == 0 {
                    self.hold_order(wire.clone());
                    return false;
                }
            }
            _ => {}
        }
        true
    }

    /// A peer answered in this leadership. Returns whether that counts: an answer of a replica that
    /// may have lost its disk does not, before it is certain that its incarnation still runs.
    pub(super) fn take_sign(&mut self, message: &GroupMessage, effects: &mut Effects) -> bool {
        if !self.leads() || message.term != self.raw.raft.term || message.life == 0 {
            return true;
        }
        let (replica, life) = (message.from_replica, message.life);
        self.note_state_of(message);
        if self.lease.note_life(replica, life, self.ticks) {
            self.count_reopened(replica);
        }
        if message.kind() == MessageKind::HeartbeatResponse {
            let now = self.now(effects);
            self.lease.take_stamp(replica, message.stamp, now);
        }
        let checked = self.lease.is_checked(replica);
        self.release_order(replica, life, effects);
        checked
            || message.kind() != MessageKind::AppendResponse
            || self.config.bugs.has(KnownBug::CountLateAnswers)
    }

    /// What a replica says of its state machine: in answers to appends and heartbeats only.
    fn note_state_of(&mut self, message: &GroupMessage) {
        let says =
            matches!(message.kind(), MessageKind::AppendResponse | MessageKind::HeartbeatResponse);
        if says && !self.config.bugs.has(KnownBug::ForgetLostStates) {
            self.lease.note_state(message.from_replica, message.lacks_state);
        }
    }

    /// What a replica said of its state machine, in this leadership.
    pub(super) fn state_of_peer(&self, replica: u64) -> PeerState {
        self.lease.state_of(replica)
    }

    /// Whether a replica on this node takes part in the group that is led here. One that is no member yet does
    /// as soon as its node runs.
    pub(super) fn presence(&self, id: ReplicaId, node: NodeId, live: &LiveNodes) -> Presence {
        if id == self.replica {
            return Presence::Answers;
        }
        if !self.answers(node, live) {
            return Presence::Silent;
        }
        let is_new = !self.membership.members.contains_key(&id);
        if is_new || self.config.bugs.has(KnownBug::CountNodesForReplicas) {
            return Presence::Answers;
        }
        self.presence_of(id.get())
    }

    /// The same, by what the replica shows since `round` began: that it took part just before does not count, for it
    /// may be gone since.
    pub(super) fn presence_since(
        &self,
        round: Round,
        id: ReplicaId,
        node: NodeId,
        live: &LiveNodes,
    ) -> Presence {
        let timeout = u64::from(self.config.election_ticks);
        match self.presence(id, node, live) {
            Presence::Silent => Presence::Silent,
            _ if self.has_answered(round, id) && self.takes_entries(round, id) => Presence::Answers,
            _ if round.is_over(self.ticks, timeout) => Presence::Silent,
            _ => Presence::Unknown,
        }
    }

    fn has_answered(&self, round: Round, id: ReplicaId) -> bool {
        let (timeout, bugs) = (u64::from(self.config.election_ticks), self.config.bugs);
        let is_asked = id != self.replica && self.membership.members.contains_key(&id);
        !is_asked
            || self.lease.has_answered(round, id.get(), timeout)
            || bugs.has(KnownBug::CountEarlierAnswers)
            || bugs.has(KnownBug::CountNodesForReplicas)
    }

    /// Whether a voter holds what was committed: one that answers, and whose disk is full, or hangs, does not. How
    /// much a learner must hold for a vote is for the caller to say.
    fn takes_entries(&self, round: Round, id: ReplicaId) -> bool {
        let votes = self.membership.members.get(&id).is_some_and(|member| member.voter);
        let progress = self.raw.raft.prs().get(id.get());
        !votes
            || progress.is_some_and(|progress| progress.matched >= round.committed)
            || self.config.bugs.has(KnownBug::CountVotersThatTakeNothing)
    }

    /// Peers are asked from now on.
    pub(super) fn begin_round(&self, effects: &Effects) -> Round {
        let committed = self.raw.raft.raft_log.committed;
        Round { tick: self.ticks, began: effects.began, committed }
    }

    /// Whether a replica was heard in this leadership. While the group hibernates that is not known.
    pub(super) fn presence_of(&self, replica: u64) -> Presence {
        if self.hibernation.is_hibernating() {
            return Presence::Unknown;
        }
        let timeout = u64::from(self.config.election_ticks);
        self.lease.presence_of(replica, self.ticks, timeout)
    }

    /// The answers of a replica count from the first heartbeat that it answers from here on.
    pub(super) fn check_life(&mut self, replica: u64) {
        if self.leads() {
            self.lease.check_life(replica, self.ticks);
        }
    }

    /// A replica answers that was opened anew. One that never voted may have lost its disk.
    fn count_reopened(&mut self, replica: u64) {
        let member = ReplicaId::new(replica).and_then(|id| self.membership.members.get(&id));
        let bug = self.config.bugs.has(KnownBug::CountLostLearner);
        if member.is_some_and(|member| member.never_voted) && !bug {
            self.count_replica_anew(replica);
            self.check_life(replica);
        }
    }

    // ---- the lease of a leader ----

    /// A transfer begins: a replica that gets TimeoutNow ignores vote locks.
    pub(super) fn void_lease(&mut self, target: u64, effects: &Effects) {
        self.lease.void(target, effects.began);
    }

    /// A transfer failed: only what is answered to a heartbeat sent from here on counts.
    pub(super) fn resume_lease(&mut self, effects: &Effects) {
        let now = self.now(effects);
        self.lease.resume(now);
    }

    /// A leadership begins or ends: it starts from nothing.
    pub(super) fn reset_lease(&mut self) {
        self.lease.reset(self.ticks);
    }

    /// The entry that removed targets never got is made, unless users make it.
    pub(super) fn outgrow_removed_targets(&mut self) {
        if self.lease.needs_entry(self.raw.raft.raft_log.last_index())
            && let Err(error) = self.raw.propose(Vec::new(), Vec::new())
        {
            tracing::debug!(group = %self.id, %error, "no entry now that removed replicas lack");
        }
    }

    /// The members changed.
    pub(super) fn lease_after_change(&mut self, before: &Membership) {
        let last = self.raw.raft.raft_log.last_index();
        self.lease.change_members(before, &self.membership, last, self.config.bugs);
    }

    /// At the end of a round: publishes what changed about the lease.
    pub(super) fn publish_lease(&mut self, effects: &mut Effects) {
        let sign = self.current_sign();
        if self.lease.publish(sign) {
            effects.leases.push((self.id, self.open_id, sign));
        }
    }

    /// The replica ends: its lease must not be used.
    pub(super) fn end_lease(&mut self, effects: &mut Effects) {
        self.lease.publish(LeaseSign::default());
        effects.leases.push((self.id, self.open_id, LeaseSign::default()));
    }

    fn current_sign(&self) -> LeaseSign {
        let contact = if self.leads() { Moment::ZERO } else { self.lease.contact() };
        let acknowledged = self.acknowledged();
        let until = match self.config.lease_duration() {
            Some(length) if acknowledged > Moment::ZERO => acknowledged + length,
            _ => Moment::ZERO,
        };
        LeaseSign { until, acknowledged, contact }
    }

    /// When the newest heartbeats were sent that a quorum answered; zero: there is no lease.
    fn acknowledged(&self) -> Moment {
        let bugs = self.config.bugs;
        let ready = self.led.as_ref().is_some_and(|led| {
            led.is_open() && (led.ready || bugs.has(KnownBug::LeaseBeforeReady))
        });
        let handing_over = self.is_frozen() || self.raw.raft.lead_transferee.is_some();
        if !self.leads() || !ready || (handing_over && !bugs.has(KnownBug::LeaseInTransfer)) {
            return Moment::ZERO;
        }
        if self.hibernation.is_asking() || self.hibernation.is_hibernating() {
            return Moment::ZERO;
        }
        if self.may_be_deposed() && !bugs.has(KnownBug::LeaseInTransfer) {
            return Moment::ZERO;
        }
        self.lease.acknowledged(&self.membership, self.replica, self.joint, bugs)
    }

    /// Whether a replica may still follow a TimeoutNow of this leader.
    pub(super) fn may_be_deposed(&self) -> bool {
        self.lease.may_be_deposed(self.raw.raft.raft_log.committed)
    }
}

//! Leases: a leader may answer reads without a round trip, as long as a quorum's votes are locked
//! for it.
//!
//! | rule | why |
//! |---|---|
//! | a voter refuses elections for one election timeout after it heard its leader | the promise |
//! | but not of that leader itself, which gave its lease up before it stands | so a leader whose term a candidate ended leads again at once |
//! | after a start it does so as well | it forgot what it promised before |
//! | a lease counts from the moment its heartbeat was sent | the promise is not older than that |
//! | it is shorter than the promise, by a margin | clocks differ in speed |
//! | it needs an applied entry of the own term | before, the leader may lack acknowledged writes |
//! | it is revoked at the start of a transfer | a replica that gets TimeoutNow breaks the vote locks |
//! | after transfers that failed, every target must have answered anew | the order to campaign may still be on its way; who answered later refuses it |
//! | or it was removed, and a quorum holds an entry that it never got | voters that do not know of the removal yet refuse the shorter log |
//!
//! The worker supplies the time: the moment a step began (for what is sent and for what expires)
//! and the moment it ended (for vote locks), so that every vote lock outlasts every lease.

use std::cmp::Reverse;

use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{Member, Membership, ReplicaId};

use super::gate::Gate;
use super::{GroupCore, mix};
use crate::clock::Moment;
use crate::core::{Effects, LeaseSign};
use crate::known_bugs::KnownBug;

/// The context by which raft marks the campaign of a transfer.
const TRANSFER_CAMPAIGN: &[u8] = b"CampaignTransfer";

/// Election timeouts in ticks after which a vote lock ends while the clock cannot be read. Ticks may come
/// faster than their length for a while, after a stall.
const LOCK_TIMEOUTS_WITHOUT_CLOCK: u64 = 4;

/// Groups of so many voters beside the leader cost no allocation.
const FEW_VOTERS: usize = 8;

/// Both sides of leases: what this replica may rely on, and what it promised.
#[derive(Debug, Default)]
pub(super) struct Lease {
    peers: Vec<PeerSign>,
    /// Answers to heartbeats count when these were sent after this moment.
    void_until: Moment,
    /// Whose answers are needed beside those of a quorum: they may have an order to campaign.
    owed_by: Vec<u64>,
    /// Targets that will never answer, for they were removed, may have every entry before this one.
    /// Once it is committed, no quorum of whichever configuration they know elects them.
    outgrows_at: u64,
    published: LeaseSign,
    /// No other replica is voted for before this moment.
    promised_until: Moment,
    /// The replica that was last heard as leader; 0: it is not known who was.
    promised_to: u64,
    /// The leader was heard in this round, or since the clock could be read last.
    heard: bool,
    /// The tick in which it was heard last.
    heard_tick: u64,
    /// The newest stamp of the leader of `heard_term`.
    heard_stamp: Moment,
    heard_term: u64,
    /// A heartbeat of this replica carried this stamp, and is to be answered with it.
    echo: Option<(u64, Moment)>,
    contact: Moment,
}

/// Election timeouts after which an answer is not one of an earlier incarnation, as far as can be
/// known without a clock.
const CHECK_TIMEOUTS: u64 = 4;

/// The answers of a peer in this leadership.
#[derive(Clone, Copy, Debug)]
struct PeerSign {
    replica: u64,
    /// Which life of the replica.
    life: u64,
    /// When the newest heartbeat that it answered was sent.
    stamp: Moment,
    life_check: LifeCheck,
    /// What it said last of its state machine.
    state: PeerState,
}

/// What a replica said of its state machine, in this leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PeerState {
    /// It did not answer yet.
    #[default]
    Unknown,
    There,
    /// It waits for a snapshot.
    Lost,
}

/// Whether a replica that never voted is still in the life whose answers come: one of an earlier life may
/// be on its way, and the disk behind it gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LifeCheck {
    /// As far as is known, it is.
    #[default]
    Passed,
    /// It answers again once it answered a heartbeat that is yet to be sent. As long as the clock cannot be
    /// read no heartbeat has a stamp: then an answer to one does that comes [`CHECK_TIMEOUTS`] later than
    /// this tick, when nothing of an earlier life can be on its way any more.
    Wanted { since: u64 },
    /// It answers again once it answered a heartbeat that was sent then or later.
    Since(Moment),
}

impl Lease {
    /// A lease of a replica that may have promised something before it was opened.
    pub(super) fn opened(promised: bool) -> Self {
        Self { heard: promised, ..Self::default() }
    }

    fn peer(&mut self, replica: u64) -> &mut PeerSign {
        let at = self.peers.iter().position(|peer| peer.replica == replica);
        let at = at.unwrap_or_else(|| {
            self.peers.push(PeerSign {
                replica,
                life: 0,
                stamp: Moment::ZERO,
                life_check: LifeCheck::Passed,
                state: PeerState::Unknown,
            });
            self.peers.len() - 1
        });
        &mut self.peers[at]
    }

    fn stamp_of(&self, replica: u64) -> Moment {
        let peer = self.peers.iter().find(|peer| peer.replica == replica);
        peer.map_or(Moment::ZERO, |peer| peer.stamp)
    }

    fn life_of(&self, replica: u64) -> u64 {
        self.peers.iter().find(|peer| peer.replica == replica).map_or(0, |peer| peer.life)
    }

    pub(super) fn shrink(&mut self) {
        self.peers.shrink_to_fit();
        self.owed_by.shrink_to_fit();
    }
}

impl GroupCore {
    /// The incarnation of this replica: a message meant for an earlier one is recognized.
    pub(super) fn life(&self) -> u64 {
        mix(self.config.incarnation ^ mix(self.epoch)) | 1
    }

    // ---- the promise of a voter ----

    /// Whether a promise keeps this replica from supporting an election, its own included.
    pub(super) fn has_promised(&self, effects: &Effects) -> bool {
        let lease = &self.lease;
        let running = match effects.began {
            Some(now) => now < lease.promised_until,
            None if self.config.bugs.has(KnownBug::UnlockWithoutClock) => false,
            None => lease.promised_until > Moment::ZERO && !self.is_lock_over_in_ticks(),
        };
        running || lease.heard
    }

    /// Whether so many ticks passed since the leader was heard that the vote lock is over whatever time
    /// it is.
    fn is_lock_over_in_ticks(&self) -> bool {
        let ticks = LOCK_TIMEOUTS_WITHOUT_CLOCK * u64::from(self.config.election_ticks);
        self.ticks.saturating_sub(self.lease.heard_tick) >= ticks
    }

    /// Whether a vote must not be given, whatever raft would do.
    pub(super) fn withholds_vote(&self, message: &GroupMessage, effects: &Effects) -> bool {
        let vote = matches!(message.kind(), MessageKind::Vote | MessageKind::PreVote);
        vote && message.context != TRANSFER_CAMPAIGN
            && message.term >= self.raw.raft.term
            && !self.leads()
            && self.lease.promised_to != message.from_replica
            && self.has_promised(effects)
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
        let lease = &mut self.lease;
        lease.heard = true;
        lease.heard_tick = self.ticks;
        lease.promised_to = from;
        let now = effects.began.unwrap_or(lease.contact);
        if now.since(lease.contact) >= self.config.tick {
            lease.contact = now;
        }
        if message_kind != MessageKind::Heartbeat {
            return;
        }
        let stamp = Moment::new(stamp);
        if lease.heard_term != term {
            lease.heard_term = term;
            lease.heard_stamp = Moment::ZERO;
        }
        lease.heard_stamp = lease.heard_stamp.max(stamp);
        lease.echo = Some((from, stamp));
    }

    /// Whether an order to campaign is the one that the leader stands by: sent to this life of
    /// the replica, and not before a heartbeat that was answered already.
    pub(super) fn is_current_order(&self, message: &GroupMessage) -> bool {
        if self.config.bugs.has(KnownBug::LateTimeoutNow) {
            return true;
        }
        let current = self.lease.heard_term != self.raw.raft.term
            || Moment::new(message.stamp) >= self.lease.heard_stamp;
        current && message.life == self.life()
    }

    /// At the end of a round: what was heard in it is promised from here on.
    pub(super) fn renew_promise(&mut self, effects: &Effects) {
        let over =
            self.is_lock_over_in_ticks() || self.config.bugs.has(KnownBug::UnlockWithoutClock);
        match effects.ended {
            Some(now) if self.lease.heard => {
                self.lease.heard = false;
                self.lease.promised_until = now + self.config.election_timeout();
            }
            // From when the lock counts is not known; it holds.
            None if over => self.lease.heard = false,
            _ => {}
        }
        self.lease.echo = None;
    }

    // ---- stamps on messages ----

    /// Puts the stamps of leases on an outgoing message. `false`: it must not leave yet.
    pub(super) fn stamp(&mut self, wire: &mut GroupMessage, effects: &Effects) -> bool {
        match wire.kind() {
            MessageKind::Heartbeat => {
                wire.stamp = effects.began.map_or(0, Moment::get);
                let peer = self.lease.peer(wire.to_replica);
                if let (LifeCheck::Wanted { .. }, Some(now)) = (peer.life_check, effects.began) {
                    peer.life_check = LifeCheck::Since(now);
                }
            }
            MessageKind::HeartbeatResponse => {
                wire.life = self.life();
                let answered = self.lease.echo.filter(|(to, _)| *to == wire.to_replica);
                wire.stamp = answered.map_or(0, |(_, stamp)| stamp.get());
                wire.lacks_state = self.lacks_state();
            }
            MessageKind::AppendResponse => {
                wire.life = self.life();
                wire.lacks_state = self.lacks_state();
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
        let stamp = match effects.began {
            Some(now) if self.config.bugs.has(KnownBug::LeaseFromAnswer) => now,
            // A stamp of the future is none of ours.
            Some(now) if message.stamp <= now.get() => Moment::new(message.stamp),
            _ => Moment::ZERO,
        };
        self.note_state_of(message);
        let earlier = std::mem::replace(&mut self.lease.peer(replica).life, life);
        if earlier != 0 && earlier != life {
            self.count_reopened(replica);
        }
        let limit = CHECK_TIMEOUTS * u64::from(self.config.election_ticks);
        let peer = self.lease.peer(replica);
        if message.kind() == MessageKind::HeartbeatResponse {
            peer.stamp = peer.stamp.max(stamp);
            let passes = match peer.life_check {
                LifeCheck::Passed => true,
                LifeCheck::Wanted { since } => self.ticks.saturating_sub(since) >= limit,
                LifeCheck::Since(then) => stamp >= then,
            };
            if passes {
                peer.life_check = LifeCheck::Passed;
            }
        }
        let checked = peer.life_check == LifeCheck::Passed;
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
            let lost = message.lacks_state;
            let state = if lost { PeerState::Lost } else { PeerState::There };
            self.lease.peer(message.from_replica).state = state;
        }
    }

    /// What a replica said of its state machine, in this leadership.
    pub(super) fn state_of_peer(&self, replica: u64) -> PeerState {
        let peer = self.lease.peers.iter().find(|peer| peer.replica == replica);
        peer.map_or(PeerState::Unknown, |peer| peer.state)
    }

    /// The answers of a replica count from the first heartbeat that it answers from here on.
    pub(super) fn check_life(&mut self, replica: u64) {
        if self.leads() {
            self.lease.peer(replica).life_check = LifeCheck::Wanted { since: self.ticks };
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
        let owing = |id: &u64| self.lease.stamp_of(*id) <= self.lease.void_until && *id != target;
        let mut owed_by: Vec<u64> = self.lease.owed_by.iter().copied().filter(owing).collect();
        owed_by.push(target);
        self.lease.owed_by = owed_by;
        self.lease.void_until = effects.began.unwrap_or(Moment::NEVER);
    }

    /// A transfer failed: only what is answered to a heartbeat sent from here on counts.
    pub(super) fn resume_lease(&mut self, effects: &Effects) {
        if self.config.bugs.has(KnownBug::LateTimeoutNow) {
            self.lease.owed_by.clear();
            return;
        }
        self.lease.void_until = effects.began.unwrap_or(Moment::NEVER);
    }

    /// A leadership begins or ends: it starts from nothing.
    pub(super) fn reset_lease(&mut self) {
        let lease = &mut self.lease;
        for peer in &mut lease.peers {
            (peer.stamp, peer.life_check) = (Moment::ZERO, LifeCheck::Passed);
            peer.state = PeerState::Unknown;
        }
        lease.void_until = Moment::ZERO;
        lease.owed_by.clear();
        lease.outgrows_at = 0;
    }

    /// The entry that removed targets never got is made, unless users make it.
    pub(super) fn outgrow_removed_targets(&mut self) {
        if self.lease.outgrows_at > self.raw.raft.raft_log.last_index()
            && let Err(error) = self.raw.propose(Vec::new(), Vec::new())
        {
            tracing::debug!(group = %self.id, %error, "no entry now that removed replicas lack");
        }
    }

    /// Targets that were removed before they answered are sent nothing from here on.
    fn release_removed_targets(&mut self) {
        if self.config.bugs.has(KnownBug::AwaitRemovedTargets) {
            return;
        }
        let membership = &self.membership;
        let removed =
            |id: u64| ReplicaId::new(id).is_none_or(|id| !membership.members.contains_key(&id));
        let lease = &self.lease;
        let owes = |id: &u64| removed(*id) && lease.stamp_of(*id) <= lease.void_until;
        let outgrows = lease.owed_by.iter().any(owes);
        self.lease.owed_by.retain(|id| !removed(*id));
        if outgrows {
            self.lease.outgrows_at = self.raw.raft.raft_log.last_index() + 1;
        }
    }

    /// A new voter has no vote lock yet.
    pub(super) fn lease_after_change(&mut self, before: &Membership) {
        self.release_removed_targets();
        let membership = std::sync::Arc::clone(&self.membership);
        let part = |membership: &Membership, id: u64| {
            ReplicaId::new(id).and_then(|id| membership.members.get(&id)).copied()
        };
        let votes = |member: Option<Member>| member.is_some_and(|m| m.voter || m.outgoing_voter);
        self.lease.peers.retain(|peer| part(&membership, peer.replica).is_some());
        for peer in &mut self.lease.peers {
            if !votes(part(before, peer.replica)) && votes(part(&membership, peer.replica)) {
                peer.stamp = Moment::ZERO;
            }
        }
    }

    /// At the end of a round: publishes what changed about the lease.
    pub(super) fn publish_lease(&mut self, effects: &mut Effects) {
        let sign = self.current_sign();
        if sign != self.lease.published {
            self.lease.published = sign;
            effects.leases.push((self.id, self.epoch, sign));
        }
    }

    /// The replica ends: its lease must not be used.
    pub(super) fn end_lease(&mut self, effects: &mut Effects) {
        self.lease.published = LeaseSign::default();
        effects.leases.push((self.id, self.epoch, LeaseSign::default()));
    }

    fn current_sign(&self) -> LeaseSign {
        let contact = if self.leads() { Moment::ZERO } else { self.lease.contact };
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
            led.gate == Gate::Open && (led.ready || bugs.has(KnownBug::LeaseBeforeReady))
        });
        let handing_over = self.is_frozen() || self.raw.raft.lead_transferee.is_some();
        if !self.leads() || !ready || (handing_over && !bugs.has(KnownBug::LeaseInTransfer)) {
            return Moment::ZERO;
        }
        if self.sleep.is_asking() || self.sleep.is_asleep() {
            return Moment::ZERO;
        }
        if self.may_be_deposed() && !bugs.has(KnownBug::LeaseInTransfer) {
            return Moment::ZERO;
        }
        let mut stamp = self.quorum_stamp(|member| member.voter);
        if self.joint {
            stamp = stamp.min(self.quorum_stamp(|member| member.outgoing_voter));
        }
        if stamp > self.lease.void_until || bugs.has(KnownBug::LeaseInTransfer) {
            stamp
        } else {
            Moment::ZERO
        }
    }

    /// Whether a replica may still follow a TimeoutNow: one that answered a heartbeat that was sent
    /// after the transfer failed does not, and one that was removed would in vain.
    pub(super) fn may_be_deposed(&self) -> bool {
        let lease = &self.lease;
        let outgrown = lease.outgrows_at <= self.raw.raft.raft_log.committed;
        !outgrown || lease.owed_by.iter().any(|target| lease.stamp_of(*target) <= lease.void_until)
    }

    /// The oldest of the newest answers that make a quorum with this replica. It never ends when
    /// this replica is the only voter, or there is none.
    fn quorum_stamp(&self, votes: fn(&Member) -> bool) -> Moment {
        let (mut voters, mut own, mut count) = (0, 0, 0);
        let mut few = [Moment::ZERO; FEW_VOTERS];
        let mut many = Vec::new();
        for (id, _) in self.membership.members.iter().filter(|(_, member)| votes(member)) {
            voters += 1;
            if *id == self.replica {
                own = 1;
                continue;
            }
            let stamp = self.lease.stamp_of(id.get());
            match few.get_mut(count) {
                Some(place) => *place = stamp,
                None => many.push(stamp),
            }
            count += 1;
        }
        let needed = voters / 2 + 1;
        if voters == 0 || needed <= own {
            return Moment::NEVER;
        }
        let stamps = if many.is_empty() {
            &mut few[..count]
        } else {
            many.extend(few);
            &mut many[..]
        };
        stamps.sort_unstable_by_key(|stamp| Reverse(*stamp));
        stamps.get(needed - own - 1).copied().unwrap_or(Moment::ZERO)
    }
}

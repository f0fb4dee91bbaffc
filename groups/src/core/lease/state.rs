//! What a replica may rely on, and for which leader its vote is locked: decided from the time of a
//! step alone. Pure.

use std::cmp::Reverse;
use std::time::Duration;

use shardhost_storage::{Member, Membership, ReplicaId};

use crate::clock::Moment;
use crate::core::LeaseSign;
use crate::known_bugs::{KnownBug, KnownBugs};

/// Election timeouts in ticks after which a vote lock ends while the clock cannot be read. Ticks
/// may come faster than their length for a while, after a stall.
const LOCK_TIMEOUTS_WITHOUT_CLOCK: u64 = 4;

/// Groups of so many voters beside the leader cost no allocation.
const FEW_VOTERS: usize = 8;

/// Election timeouts after which an answer is not one of an earlier incarnation, as far as can be
/// known without a clock.
const CHECK_TIMEOUTS: u64 = 4;

/// Both sides of leases: what this replica may rely on, and for which leader its vote is locked.
#[derive(Debug, Default)]
pub(in crate::core) struct Lease {
    peers: Vec<PeerSign>,
    /// Since this tick peers have something to answer: the leadership began, or the group woke.
    asked_since: u64,
    /// Answers to heartbeats count when these were sent after this moment.
    void_until: Moment,
    /// Whose answers are needed beside those of a quorum: they may have an order to campaign.
    owed_by: Vec<u64>,
    /// Targets that will never answer, for they were removed, may have every entry before this one.
    /// Once it is committed, no quorum of whichever configuration they know elects them.
    outgrows_at: u64,
    published: LeaseSign,
    /// No other replica is voted for before this moment.
    locked_until: Moment,
    /// The replica that was last heard as leader; 0: it is not known who was.
    locked_for: u64,
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
    /// The tick of its newest answer; `None`: there was none since peers were asked.
    answered: Option<u64>,
}

/// Whether a replica takes part in its group, as its leader sees it. Its node may run without it: the replica
/// failed, is closed, or was never created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::core) enum Presence {
    Answers,
    /// It had no time to answer yet.
    Unknown,
    Silent,
}

/// What a replica said of its state machine, in this leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::core) enum PeerState {
    /// It did not answer yet.
    #[default]
    Unknown,
    There,
    /// It waits for a snapshot.
    Lost,
}

/// Peers were asked to answer: when that was, and what was committed.
#[derive(Clone, Copy, Debug)]
pub(in crate::core) struct Round {
    pub tick: u64,
    /// `None`: the clock could not be read.
    pub began: Option<Moment>,
    pub committed: u64,
}

impl Round {
    /// Whether it lasted so long that who has not answered counts as one that takes no part.
    pub(super) const fn is_over(self, tick: u64, timeout: u64) -> bool {
        tick.saturating_sub(self.tick) > SILENT_TIMEOUTS * timeout
    }
}

/// Election timeouts without an answer after which a peer counts as one that takes no part. After one it is not
/// known.
const SILENT_TIMEOUTS: u64 = 2;

/// Whether a replica that never voted is still in the life whose answers come: one of an earlier
/// life may be on its way, and the disk behind it gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LifeCheck {
    /// As far as is known, it is.
    #[default]
    Passed,
    /// It answers again once it answered a heartbeat that is yet to be sent. As long as the clock
    /// cannot be read no heartbeat has a stamp: then an answer to one does that comes
    /// [`CHECK_TIMEOUTS`] later than this tick, when nothing of an earlier life can be on its way
    /// any more.
    Wanted { since: u64 },
    /// It answers again once it answered a heartbeat that was sent then or later.
    Since(Moment),
}

/// The time of a step, by the clock and in ticks.
#[derive(Clone, Copy, Debug)]
pub(in crate::core) struct Now {
    /// When it began, and when it had all its inputs. `None`: the clock cannot be read.
    pub began: Option<Moment>,
    pub ended: Option<Moment>,
    pub tick: u64,
    /// Ticks of an election timeout.
    pub timeout: u64,
    pub bugs: KnownBugs,
}

impl Lease {
    /// A lease of a replica whose vote may have been locked before it was opened.
    pub(in crate::core) fn opened(locked: bool) -> Self {
        Self { heard: locked, ..Self::default() }
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
                answered: None,
            });
            self.peers.len() - 1
        });
        &mut self.peers[at]
    }

    fn stamp_of(&self, replica: u64) -> Moment {
        let peer = self.peers.iter().find(|peer| peer.replica == replica);
        peer.map_or(Moment::ZERO, |peer| peer.stamp)
    }

    pub(super) fn life_of(&self, replica: u64) -> u64 {
        self.peers.iter().find(|peer| peer.replica == replica).map_or(0, |peer| peer.life)
    }

    // ---- the vote lock ----

    /// Whether a vote lock keeps this replica from supporting an election, its own included.
    pub(super) fn is_vote_locked(&self, now: Now) -> bool {
        let running = match now.began {
            Some(moment) => moment < self.locked_until,
            None if now.bugs.has(KnownBug::UnlockWithoutClock) => false,
            None => self.locked_until > Moment::ZERO && !self.is_lock_over_in_ticks(now),
        };
        running || self.heard
    }

    /// Whether so many ticks passed since the leader was heard that the vote lock is over whatever
    /// time it is.
    const fn is_lock_over_in_ticks(&self, now: Now) -> bool {
        now.tick.saturating_sub(self.heard_tick) >= LOCK_TIMEOUTS_WITHOUT_CLOCK * now.timeout
    }

    /// Whether the vote is locked for this replica.
    pub(super) const fn is_locked_for(&self, replica: u64) -> bool {
        self.locked_for == replica
    }

    /// The leader of this term was heard. The moment is published, and changes with each tick only.
    pub(super) fn hear(&mut self, leader: u64, now: Now, tick: Duration) {
        self.heard = true;
        self.heard_tick = now.tick;
        self.locked_for = leader;
        let moment = now.began.unwrap_or(self.contact);
        if moment.since(self.contact) >= tick {
            self.contact = moment;
        }
    }

    /// A heartbeat of the leader of this term has this stamp, and is answered with it.
    pub(super) fn hear_stamp(&mut self, leader: u64, term: u64, stamp: Moment) {
        if self.heard_term != term {
            self.heard_term = term;
            self.heard_stamp = Moment::ZERO;
        }
        self.heard_stamp = self.heard_stamp.max(stamp);
        self.echo = Some((leader, stamp));
    }

    /// Whether an order to campaign with this stamp was not sent before a heartbeat that was
    /// answered already.
    pub(super) fn is_current_order(&self, term: u64, stamp: Moment) -> bool {
        self.heard_term != term || stamp >= self.heard_stamp
    }

    /// At the end of a step: the vote is locked for so long from here on, if the leader was heard
    /// in it.
    pub(super) fn renew(&mut self, now: Now, length: Duration) {
        let over = self.is_lock_over_in_ticks(now) || now.bugs.has(KnownBug::UnlockWithoutClock);
        match now.ended {
            Some(moment) if self.heard => {
                self.heard = false;
                self.locked_until = moment + length;
            }
            // From when the lock counts is not known; it holds.
            None if over => self.heard = false,
            _ => {}
        }
        self.echo = None;
    }

    /// The stamp with which this leader's heartbeat is answered; 0: it is not known.
    pub(super) fn echo_to(&self, leader: u64) -> u64 {
        let answered = self.echo.filter(|(to, _)| *to == leader);
        answered.map_or(0, |(_, stamp)| stamp.get())
    }

    /// When the leader was heard last, about.
    pub(super) const fn contact(&self) -> Moment {
        self.contact
    }

    // ---- what peers answer ----

    /// A heartbeat leaves for this peer.
    pub(super) fn send_heartbeat(&mut self, to: u64, now: Now) {
        let Some(moment) = now.began else { return };
        // When it was that answers stopped to count could not be read: it was before this.
        if self.void_until == Moment::NEVER {
            self.void_until = moment;
        }
        let peer = self.peer(to);
        if matches!(peer.life_check, LifeCheck::Wanted { .. }) {
            peer.life_check = LifeCheck::Since(moment);
        }
    }

    /// This life of a peer answers. Returns whether an earlier one answered before.
    pub(super) fn note_life(&mut self, replica: u64, life: u64, tick: u64) -> bool {
        let peer = self.peer(replica);
        peer.answered = Some(tick);
        let earlier = std::mem::replace(&mut peer.life, life);
        earlier != 0 && earlier != life
    }

    /// A peer answers the heartbeat with this stamp.
    pub(super) fn take_stamp(&mut self, replica: u64, stamp: u64, now: Now) {
        let stamp = match now.began {
            Some(moment) if now.bugs.has(KnownBug::LeaseFromAnswer) => moment,
            // A stamp of the future is none of ours.
            Some(moment) if stamp <= moment.get() => Moment::new(stamp),
            _ => Moment::ZERO,
        };
        let peer = self.peer(replica);
        peer.stamp = peer.stamp.max(stamp);
        let passes = match peer.life_check {
            LifeCheck::Passed => true,
            LifeCheck::Wanted { since } => {
                now.tick.saturating_sub(since) >= CHECK_TIMEOUTS * now.timeout
            }
            LifeCheck::Since(then) => stamp >= then,
        };
        if passes {
            peer.life_check = LifeCheck::Passed;
        }
    }

    /// The answers of a peer count from the first heartbeat that it answers from here on.
    pub(super) fn check_life(&mut self, replica: u64, tick: u64) {
        self.peer(replica).life_check = LifeCheck::Wanted { since: tick };
    }

    /// Whether it is certain that the life of a peer that answers still runs.
    pub(super) fn is_checked(&mut self, replica: u64) -> bool {
        self.peer(replica).life_check == LifeCheck::Passed
    }

    /// Whether a peer takes part. While the group hibernates that is not known.
    pub(super) fn presence_of(&self, replica: u64, tick: u64, timeout: u64) -> Presence {
        let peer = self.peers.iter().find(|peer| peer.replica == replica);
        let answered = peer.and_then(|peer| peer.answered);
        let silent_for = tick.saturating_sub(answered.unwrap_or(self.asked_since));
        if silent_for > SILENT_TIMEOUTS * timeout {
            Presence::Silent
        } else if answered.is_some() && silent_for <= timeout {
            Presence::Answers
        } else {
            Presence::Unknown
        }
    }

    /// Whether a peer answered since it was asked: a heartbeat that was sent then or later. Heartbeats have no stamp
    /// while the clock cannot be read; then an answer counts that comes an election timeout later.
    pub(super) fn has_answered(&self, round: Round, replica: u64, timeout: u64) -> bool {
        let peer = self.peers.iter().find(|peer| peer.replica == replica);
        peer.is_some_and(|peer| {
            round.began.is_some_and(|began| peer.stamp >= began)
                || peer.answered.is_some_and(|tick| tick >= round.tick + timeout)
        })
    }

    /// What peers answered before says nothing of now: the group woke.
    pub(in crate::core) fn ask_anew(&mut self, tick: u64) {
        self.peers.iter_mut().for_each(|peer| peer.answered = None);
        self.asked_since = tick;
    }

    /// What a peer says of its state machine.
    pub(super) fn note_state(&mut self, replica: u64, lost: bool) {
        self.peer(replica).state = if lost { PeerState::Lost } else { PeerState::There };
    }

    /// What a peer said of its state machine, in this leadership.
    pub(super) fn state_of(&self, replica: u64) -> PeerState {
        let peer = self.peers.iter().find(|peer| peer.replica == replica);
        peer.map_or(PeerState::Unknown, |peer| peer.state)
    }

    // ---- the lease of a leader ----

    /// A leadership begins or ends: it starts from nothing.
    pub(super) fn reset(&mut self, tick: u64) {
        for peer in &mut self.peers {
            (peer.stamp, peer.life_check) = (Moment::ZERO, LifeCheck::Passed);
            peer.state = PeerState::Unknown;
        }
        self.ask_anew(tick);
        self.void_until = Moment::ZERO;
        self.owed_by.clear();
        self.outgrows_at = 0;
    }

    /// A transfer begins: a replica that gets TimeoutNow ignores vote locks.
    pub(super) fn void(&mut self, target: u64, began: Option<Moment>) {
        let void_until = self.void_until;
        let mut owed_by = std::mem::take(&mut self.owed_by);
        owed_by.retain(|id| self.stamp_of(*id) <= void_until && *id != target);
        owed_by.push(target);
        self.owed_by = owed_by;
        self.void_until = began.unwrap_or(Moment::NEVER);
    }

    /// A transfer failed: only what is answered to a heartbeat sent from here on counts.
    pub(super) fn resume(&mut self, now: Now) {
        if now.bugs.has(KnownBug::LateTimeoutNow) {
            self.owed_by.clear();
            return;
        }
        self.void_until = now.began.unwrap_or(Moment::NEVER);
    }

    /// The members changed, and the log ends here. A new voter has no vote lock yet. Targets that
    /// were removed before they answered are sent nothing from here on.
    pub(super) fn change_members(
        &mut self,
        before: &Membership,
        after: &Membership,
        last_index: u64,
        bugs: KnownBugs,
    ) {
        if !bugs.has(KnownBug::AwaitRemovedTargets) {
            self.release_removed_targets(after, last_index);
        }
        self.peers.retain(|peer| part_in(after, peer.replica).is_some());
        for peer in &mut self.peers {
            if !votes(part_in(before, peer.replica)) && votes(part_in(after, peer.replica)) {
                peer.stamp = Moment::ZERO;
            }
        }
    }

    fn release_removed_targets(&mut self, members: &Membership, last_index: u64) {
        let removed = |id: u64| part_in(members, id).is_none();
        let owes = |id: &u64| removed(*id) && self.stamp_of(*id) <= self.void_until;
        let outgrows = self.owed_by.iter().any(owes);
        self.owed_by.retain(|id| !removed(*id));
        if outgrows {
            self.outgrows_at = last_index + 1;
        }
    }

    /// Whether a log that ends here needs an entry that removed targets never got.
    pub(super) const fn needs_entry(&self, last_index: u64) -> bool {
        self.outgrows_at > last_index
    }

    /// Whether a replica may still follow a TimeoutNow: one that answered a heartbeat that was sent
    /// after the transfer failed does not, and one that was removed would in vain.
    pub(super) fn may_be_deposed(&self, committed: u64) -> bool {
        let owes = |target: &u64| self.stamp_of(*target) <= self.void_until;
        self.outgrows_at > committed || self.owed_by.iter().any(owes)
    }

    /// When the newest heartbeats were sent that a quorum answered; zero: they do not count.
    pub(super) fn acknowledged(
        &self,
        membership: &Membership,
        own: ReplicaId,
        joint: bool,
        bugs: KnownBugs,
    ) -> Moment {
        let mut stamp = self.quorum_stamp(membership, own, |member| member.voter);
        if joint {
            let outgoing = self.quorum_stamp(membership, own, |member| member.outgoing_voter);
            stamp = stamp.min(outgoing);
        }
        let counts = stamp > self.void_until || bugs.has(KnownBug::LeaseInTransfer);
        if counts { stamp } else { Moment::ZERO }
    }

    /// The oldest of the newest answers that make a quorum with this replica. It never ends when
    /// this replica is the only voter, or there is none.
    fn quorum_stamp(
        &self,
        membership: &Membership,
        replica: ReplicaId,
        votes: fn(&Member) -> bool,
    ) -> Moment {
        let (mut voters, mut own, mut count) = (0, 0, 0);
        let mut few = [Moment::ZERO; FEW_VOTERS];
        let mut many = Vec::new();
        for (id, _) in membership.members.iter().filter(|(_, member)| votes(member)) {
            voters += 1;
            if *id == replica {
                own = 1;
                continue;
            }
            let stamp = self.stamp_of(id.get());
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

    /// This is published. Returns whether it is news.
    pub(super) fn publish(&mut self, sign: LeaseSign) -> bool {
        std::mem::replace(&mut self.published, sign) != sign
    }

    pub(in crate::core) fn shrink(&mut self) {
        self.peers.shrink_to_fit();
        self.owed_by.shrink_to_fit();
    }
}

fn part_in(membership: &Membership, replica: u64) -> Option<Member> {
    ReplicaId::new(replica).and_then(|id| membership.members.get(&id)).copied()
}

fn votes(member: Option<Member>) -> bool {
    member.is_some_and(|member| member.voter || member.outgoing_voter)
}

#[cfg(test)]
mod tests;

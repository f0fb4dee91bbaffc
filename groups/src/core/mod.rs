//! One replica of one group: raft, and everything that the host decides around it.
//!
//! A [`GroupCore`] is a function of its inputs. It has no clock (it counts ticks), does no I/O but
//! reading entries that left its memory, starts no thread, and sends nothing: its effects go into
//! the [`Effects`] of its worker.
//!
//! Each concern is a type with private state, which decides from what it is shown. [`GroupCore`]
//! shows it, carries out what was decided, and has the order of everything in three places:
//! [`GroupCore::step`] takes a message, [`GroupCore::tick`] moves the clock on, and
//! [`GroupCore::finish_step`] does what the inputs of a step brought up. What needs raft, the
//! members and effects all at once is a function of the replica, in the file of its concern.
//!
//! | file | what |
//! |---|---|
//! | `open` | how a replica comes to life from what the log holds |
//! | `step` | messages from peers |
//! | `propose` | proposals, and who waits for them |
//! | `reads` | linearizable reads with shared quorum rounds, and those of followers |
//! | `lease` | reads without a step: what a leader may rely on, the vote lock of a voter |
//! | `doubt` | what a replica does whose log may have lost something |
//! | `barrier` | holding back users' proposals |
//! | `ready` | what raft wants written, sent and applied |
//! | `durable` | what was handed to the log writer, and what of it is durable |
//! | `apply` | handing committed entries to the state machine |
//! | `ahead` | changes of members do not wait for a state machine that stalls |
//! | `recovery` | a replica whose state machine lost its state |
//! | `leadership` | edges: acquired, ready, lost |
//! | `candidacy` | not standing for election, or not being elected, where one should not lead |
//! | `gate` | whether a leader serves its users |
//! | `transfer` | handing leadership over |
//! | `succession` | a leader that should not lead looks for another |
//! | `eligibility` | its evaluation of who could lead, on request |
//! | `requirement` | changing what the group asks of its leader |
//! | `membership` | changing who belongs to the group |
//! | `consistency` | whether the state machines of all replicas hold the same |
//! | `divergence` | a leader that contradicts what is committed |
//! | `leaving` | the end of a replica that was removed |
//! | `hibernation` | groups that have nothing to do stop ticking |
//! | `snapshot` | making, shipping and installing snapshots; truncating the log |
//! | `status` | the public state |

mod ahead;
mod apply;
mod barrier;
mod candidacy;
mod consistency;
mod divergence;
mod doubt;
mod durable;
mod effects;
mod eligibility;
mod gate;
mod hibernation;
mod leadership;
mod lease;
mod leaving;
mod membership;
mod open;
mod propose;
mod reads;
mod ready;
mod recovery;
mod requirement;
mod snapshot;
mod status;
mod step;
mod succession;
mod transfer;

use std::sync::Arc;

use raft::{RawNode, StateRole};
pub use shardhost_proto::hash::mix;
use shardhost_proto::peer::{GroupMessage, MessageKind};
use shardhost_storage::{GroupId, GroupMeta, Membership, NodeId, ReplicaId, Term};

use crate::config::GroupsConfig;
use crate::error::{GroupFault, LeaderHint, ProposeError, TakeSnapshotError, UnknownCause};
use crate::leadership::LossCause;
use crate::membership::MembershipError;
use crate::nodes::LiveNodes;
use crate::policy::Policies;
use crate::replica_log::ReplicaLog;
use crate::status::{GroupStatus, PeerProgress, Role};

pub use barrier::{BarrierCompletion, BarrierOrder, BarrierOutcome, DrainCompletion};
pub use effects::{Effects, LeaseSign, LogTask, PersistAck, Prune};
pub use eligibility::{Declined, EligibilityCompletion, EligibilityReport, VoterEligibility};
pub use membership::{MembershipCompletion, MembershipOrder, MembershipOutcome, MembershipRequest};
pub(crate) use open::has_another_voter;
pub use open::{Opened, ReplicaStart};
pub use propose::Proposal;
pub use reads::{ReadBarrier, ReadCompletion, ReadNeed, ReadRequest};
pub use snapshot::SnapshotCompletion;
pub use step::Stepped;
pub use transfer::{TransferCompletion, TransferOutcome, TransferRequest, TransferTarget};

use apply::ApplyProgress;
use barrier::Barriers;
use candidacy::{Candidacy, Lot};
use consistency::Consistency;
use doubt::Doubt;
use durable::{COMMIT_QUIET_TICKS, COMMIT_TICKS, Durable};
use gate::Led;
use hibernation::Hibernation;
use lease::Lease;
use leaving::{Leaving, PROBE_TICKS};
use membership::{CREATE_REQUEST_TICKS, Changes};
use propose::Proposals;
use reads::Reads;
use ready::Taken;
use snapshot::{Snapshots, TEND_TICKS};
use status::REFRESH_TICKS;
use succession::Succession;
use transfer::Transfer;

/// Readies of raft in one step that carry nothing. One that carries something makes progress: it
/// hands out entries or messages that are handed out once.
const MAX_EMPTY_READIES: u32 = 8;

/// One replica of one group.
pub struct GroupCore {
    id: GroupId,
    replica: ReplicaId,
    /// Which opening of the replica in this process; notifications of another are stale.
    open_id: u64,
    config: Arc<GroupsConfig>,
    policies: Policies,
    raw: RawNode<ReplicaLog>,
    meta: Box<GroupMeta>,
    membership: Arc<Membership>,
    /// Whether it is a joint one: asked in every step.
    joint: bool,

    proposals: Proposals,
    reads: Reads,
    transfer: Option<Box<Transfer>>,
    succession: Succession,
    candidacy: Candidacy,
    /// What was known of nodes and policies when this replica last looked.
    seen_facts: u64,
    barriers: Barriers,
    changes: Changes,
    led: Option<Led>,
    /// Why the state machine stalls, if it does.
    stalled: gate::Stall,
    /// The state machine's state is lost, and another replica's is asked for.
    recovery: recovery::Recovery,
    lease: Lease,
    /// The log may have lost something.
    doubt: Option<Box<Doubt>>,
    /// Where replicas live that the membership does not know yet.
    contacts: Vec<(ReplicaId, NodeId)>,
    /// A node with a group of the same id that was created with other members.
    conflicting: Option<NodeId>,
    /// A leader that contradicts what is committed here.
    contradiction: divergence::Contradiction,
    consistency: Consistency,
    /// Replicas that were removed, this one or others.
    leaving: Leaving,

    durable: Durable,
    apply: ApplyProgress,
    snapshots: Snapshots,
    hibernation: Hibernation,
    ticks: u64,
    published: Arc<GroupStatus>,
    /// What a leader last saw of the others.
    peers: Arc<[PeerProgress]>,
}

impl std::fmt::Debug for GroupCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.id, self.replica, self.raw.raft.state)
    }
}

impl GroupCore {
    /// The group.
    #[must_use]
    pub const fn id(&self) -> GroupId {
        self.id
    }
    /// This replica of it.
    #[must_use]
    pub const fn replica(&self) -> ReplicaId {
        self.replica
    }
    /// Which opening this is.
    #[must_use]
    pub const fn open_id(&self) -> u64 {
        self.open_id
    }
    /// Whether the group needs no ticks.
    #[must_use]
    pub const fn is_hibernating(&self) -> bool {
        self.hibernation.is_hibernating()
    }
    /// What was last published.
    #[must_use]
    pub const fn status(&self) -> &Arc<GroupStatus> {
        &self.published
    }

    /// Moves the logical clock on by one tick.
    ///
    /// What a replica lacks comes first, for it decides whether the replica may campaign. Then
    /// elections and heartbeats, the callers that wait, what a leader does about its leadership,
    /// and at last what can wait for another tick.
    pub fn tick(&mut self, effects: &mut Effects) {
        let live = Arc::clone(&effects.nodes);
        self.ticks += 1;
        self.tick_recovery(effects);
        self.tick_election(effects);
        self.tick_callers(effects);
        self.tick_leadership(&live, effects);
        self.tick_members(effects);
        self.tick_log();
        self.tick_hibernation(&live, effects);
    }

    /// A log that lost something, or a state that was lost, or stalls.
    fn tick_recovery(&mut self, effects: &mut Effects) {
        if self.doubt.is_some() {
            self.check_doubt(effects);
        }
        if self.goes_ahead() {
            self.go_ahead_of_machine(effects);
        }
        if self.lacks_state() && self.is_state_due() {
            self.ask_for_state(effects);
        }
        if self.lacks_state() && self.leads() && self.may_leave_leadership(effects) {
            self.leave_leadership();
        }
    }

    /// Whether the replica campaigns, then the clock of raft: elections, heartbeats, its quorum.
    fn tick_election(&mut self, effects: &mut Effects) {
        if self.replaces_log() {
            // To campaign, raft would look for entries that the snapshot replaces, and panic.
            self.raw.raft.election_elapsed = 0;
        }
        if self.will_campaign() {
            if self.is_vote_locked(effects) {
                // It looks again at the next tick.
                self.raw.raft.election_elapsed -= 1;
            } else if self.may_not_campaign_in_doubt()
                || self.leaves_campaigns_to_others()
                || self.lags_too_far()
                || self.stays_out(effects)
            {
                self.let_timeout_pass();
            } else {
                self.candidacy.count();
            }
        }
        // A heartbeat would wake those who agreed to hibernate.
        if !self.hibernation.is_asking() {
            self.raw.tick();
        }
        self.pin_election_timeout();
    }

    /// Callers that waited for too long.
    fn tick_callers(&mut self, effects: &mut Effects) {
        if !self.proposals.is_empty() {
            self.expire_completions(effects);
        }
        if !self.reads.is_empty() {
            self.expire_reads(effects);
        }
        if self.changes.has_completion() {
            self.expire_change(effects);
        }
    }

    /// Handing leadership over, and what is owed because of it; whether users are served; and nodes
    /// that should hold a replica.
    fn tick_leadership(&mut self, live: &LiveNodes, effects: &mut Effects) {
        if self.transfer.is_some() {
            self.watch_transfer(effects);
            self.ask_again(effects);
        }
        if self.leads() {
            self.outgrow_removed_targets();
        }
        if self.is_ready() {
            self.tend_gate(effects);
        }
        if self.leads()
            && self.succession.is_due(self.ticks)
            && self.transfer.is_none()
            && self.pending_change().is_none()
            && self.may_hand_over()
            && self.wants_successor(effects)
        {
            self.hand_on_leadership(effects);
        }
        // A leader that is not ready may not have applied yet that a learner became a voter.
        let knows_members = self.is_ready() && self.durable.is_meta_durable();
        if self.leads() && knows_members && self.is_turn_of(CREATE_REQUEST_TICKS) {
            self.invite_joining(live, effects);
        }
    }

    /// Replicas that were removed, this one or others.
    fn tick_members(&mut self, effects: &mut Effects) {
        if !self.ticks.is_multiple_of(PROBE_TICKS) {
            return;
        }
        self.notify_dismissed(effects);
        if self.is_leaving() || self.is_isolated() {
            self.ask_whether_it_belongs(effects);
        }
    }

    /// The start of the log, and its commit index on disk.
    fn tick_log(&mut self) {
        if self.is_turn_of(TEND_TICKS) {
            self.tend_snapshots();
        }
        let fell_quiet = self.hibernation.quiet_ticks() == Some(COMMIT_QUIET_TICKS);
        if fell_quiet || self.is_turn_of(COMMIT_TICKS) {
            self.durable.note_commit_lag(self.hard_state());
        }
    }

    /// Comparisons of states, and going into hibernation.
    fn tick_hibernation(&mut self, live: &LiveNodes, effects: &mut Effects) {
        if self.compares() {
            self.tend_consistency(effects);
        }
        self.hibernation.tick();
        // Not in the tick of a heartbeat, which would come after the question and wake who agreed.
        let silent = self.raw.raft.heartbeat_elapsed() > 0;
        if silent
            && self.hibernation.is_quiet_for(self.config.hibernate_after_ticks)
            && self.may_lead_into_hibernation(live, effects)
        {
            self.ask_to_hibernate(live, effects);
        }
        if self.is_turn_of(REFRESH_TICKS) {
            self.renew_peers();
        }
    }

    /// Does everything that the inputs of this step brought up.
    ///
    /// The leadership is known before proposals go into the log, so that the last entry of a new
    /// leader is the first of its term. What raft wants comes next; then what became committed or
    /// applied by it; the vote lock and the published status come last, because they cover all
    /// before.
    pub fn finish_step(&mut self, effects: &mut Effects) {
        self.observe_leadership(effects);
        if self.has_unfinished_change() && self.transfer.is_none() {
            self.finish_changes(&Arc::clone(&effects.nodes));
        }
        if self.changes.has_held() {
            self.decide_held_change(effects);
        }
        self.propose_queued(effects);
        if !self.reads.is_empty() {
            self.start_read_round(effects);
        }
        if !self.take_readies(effects) {
            return;
        }
        if self.snapshots.arrived().is_some() {
            self.install_state(effects);
        }
        self.hand_over_committed(effects);
        if !self.reads.is_empty() {
            self.resolve_confirmed_reads(effects);
        }
        if self.barriers.is_open() {
            self.watch_barrier(effects);
        }
        self.ask_for_snapshot(effects);
        self.write_changes(effects);
        self.extend_vote_lock(effects);
        self.publish(effects);
        self.publish_lease(effects);
    }

    /// Handles what raft wants done; `false`: the replica fails, and nothing more is done for it.
    fn take_readies(&mut self, effects: &mut Effects) -> bool {
        let mut empty = 0;
        while self.raw.has_ready() {
            match self.take_ready(effects) {
                Taken::Something => {}
                Taken::Nothing => empty += 1,
                Taken::GivenUp => return false,
            }
            if empty > MAX_EMPTY_READIES {
                let text = format!("raft finds no end: {empty} empty readies in one round");
                effects.fault(self.id, GroupFault::Invariant(text.into()));
                return false;
            }
            self.observe_leadership(effects);
        }
        true
    }

    /// Ends the replica in this process: fails every caller that waits, publishes the last edge.
    pub fn stop(&mut self, cause: LossCause, effects: &mut Effects) {
        let group = self.id;
        let error = ProposeError::Unknown { group, cause: UnknownCause::Stopped };
        self.fail_completions(&error, effects);
        self.fail_reads(&crate::error::ReadError::Stopped { group }, effects);
        self.fail_transfer(&crate::error::TransferError::Stopped { group }, effects);
        self.fail_change(
            &MembershipError::Unknown { group, cause: UnknownCause::Stopped },
            effects,
        );
        self.fail_snapshots(&TakeSnapshotError::Stopped { group }, effects);
        self.end_barrier(effects);
        self.end_lease(effects);
        let role = if self.is_retired() { Role::Removed } else { Role::Stopped };
        self.publish_end(role, effects);
        self.lose_leadership(cause, effects);
    }

    /// The replica cannot continue. The caller drops it afterwards.
    pub fn fail(&mut self, fault: &GroupFault, effects: &mut Effects) {
        let group = self.id;
        let fault = fault.clone();
        let error = ProposeError::Faulted { group, fault: fault.clone() };
        self.fail_completions(&error, effects);
        self.fail_reads(&crate::error::ReadError::Faulted { group, fault: fault.clone() }, effects);
        self.fail_transfer(
            &crate::error::TransferError::Faulted { group, fault: fault.clone() },
            effects,
        );
        self.fail_change(&MembershipError::Faulted { group, fault: fault.clone() }, effects);
        self.fail_snapshots(&TakeSnapshotError::Faulted { group, fault: fault.clone() }, effects);
        self.end_barrier(effects);
        self.end_lease(effects);
        self.publish_end(Role::Failed(fault), effects);
        self.lose_leadership(LossCause::Fault, effects);
    }

    /// The error of the log that made raft panic, if it was one.
    #[must_use]
    pub fn take_log_fault(&self) -> Option<shardhost_storage::LogError> {
        self.raw.store().take_fault()
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn leader_hint(&self) -> Option<LeaderHint> {
        let node = self.node_of(self.raw.raft.leader_id)?;
        Some(LeaderHint { node, term: Term::new(self.raw.raft.term) })
    }

    fn node_of(&self, replica: u64) -> Option<NodeId> {
        let replica = ReplicaId::new(replica)?;
        let known = self.membership.node_of(replica);
        known.or_else(|| self.contacts.iter().find(|(id, _)| *id == replica).map(|(_, n)| *n))
    }

    /// A message of the host's own, to a peer.
    fn own_message(&self, kind: MessageKind, to: u64) -> GroupMessage {
        let raft = &self.raw.raft;
        GroupMessage {
            group: self.id.get(),
            from_replica: self.replica.get(),
            to_replica: to,
            kind: kind.into(),
            term: raft.term,
            ..GroupMessage::default()
        }
    }

    /// Whether it is this group's turn to do what is done every so many ticks. Groups of one age do
    /// not all do it in the same tick.
    const fn is_turn_of(&self, ticks: u64) -> bool {
        self.ticks.wrapping_add(self.id.get()).is_multiple_of(ticks)
    }

    fn will_campaign(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state != StateRole::Leader
            && raft.promotable()
            && raft.election_elapsed + 1 >= raft.randomized_election_timeout()
    }

    /// Replaces the election timeout that raft drew by one that follows from the seed, so that a
    /// simulated cluster replays exactly. Called after everything that may have made raft draw.
    fn pin_election_timeout(&mut self) {
        let (config, term) = (&self.config, self.raw.raft.term);
        let (group, replica) = (self.id.get(), self.replica.get());
        let lot = Lot { seed: config.seed, group, replica, term };
        let ticks = u64::from(config.election_ticks);
        let timeout = self.candidacy.timeout(lot, ticks, config.bugs);
        self.raw.raft.set_randomized_election_timeout(timeout);
    }
}

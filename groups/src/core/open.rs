//! Starting a replica from the log and its state machine.

use std::sync::Arc;

use raft::{Config, RawNode, ReadOnlyOption};
use shardhost_storage::{
    Certainty, EntryKind, GroupId, HardState, LogIndex, LogPosition, LogStore, PersistedGroup, Term,
};
use slog::Logger;

use super::barrier::Barriers;
use super::candidacy::Candidacy;
use super::doubt::Doubt;
use super::durable::Durable;
use super::leaving::Leaving;
use super::membership::Changes;
use super::propose::Proposals;
use super::reads::Reads;
use super::recovery::Recovery;
use super::succession::Succession;
use super::{GroupCore, apply::ApplyProgress, hibernation::Hibernation, snapshot::Snapshots};
use crate::config::GroupsConfig;
use crate::convert;
use crate::error::GroupFault;
use crate::known_bugs::{KnownBug, KnownBugs};
use crate::policy::Policies;
use crate::replica_log::ReplicaLog;

/// What a replica is opened from.
#[derive(Debug)]
pub struct ReplicaStart {
    pub persisted: PersistedGroup,
    /// Where the state machine stands; it was restored from the snapshot if that was needed.
    pub applied: LogPosition,
    /// The part of it that survives a crash, from [`crate::StateMachine::durable_index`].
    pub durable: Option<LogIndex>,
    /// The state is lost ([`Opened::Lost`]): what is applied counts up to the log's base.
    pub lost: bool,
    /// Which opening of the replica in this process this is.
    pub open_id: u64,
    /// Who is asked who may lead.
    pub policies: Policies,
}

/// How a state machine's position fits the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The log continues where the machine stands.
    Continue(LogPosition),
    /// The machine is behind the log's base and must be restored from this snapshot first.
    Restore(LogPosition),
    /// The machine is behind the log's base, where this is, and no snapshot is here: its state is
    /// lost. A snapshot of another replica must replace it; until then nothing is applied.
    Lost(LogPosition),
}

impl Opened {
    /// Decides from the log and the position of the machine.
    ///
    /// A lost state costs its replica's part in leading and reading, not its vote: the log is
    /// complete. A replica that is the only one has no peer to ask.
    ///
    /// # Errors
    /// [`GroupFault::Invariant`] when the two contradict each other, [`GroupFault::FoundToDiffer`].
    pub fn decide(
        persisted: &PersistedGroup,
        machine: Option<LogPosition>,
    ) -> Result<Self, GroupFault> {
        if persisted.certainty == Certainty::Differs {
            return Err(GroupFault::FoundToDiffer);
        }
        let machine = machine.unwrap_or_default();
        if machine.index > persisted.last.index {
            return Err(broken(format!(
                "the state machine applied {machine}, but the log of {:?} ends at {}: the log \
                 lost its tail",
                persisted.meta.group, persisted.last
            )));
        }
        if machine.index >= persisted.base.index {
            return Ok(Self::Continue(machine));
        }
        match persisted.meta.snapshot {
            Some(snapshot) if snapshot.index >= persisted.base.index => Ok(Self::Restore(snapshot)),
            _ if has_another_voter(persisted) => Ok(Self::Lost(persisted.base)),
            other => Err(GroupFault::StateDamaged(
                format!(
                    "the state of {} is lost, and it has no other voter to ask: the state machine \
                     stands at {machine}, the log starts after {}, and the newest snapshot is {other:?}; \
                     put the state back, from a copy or from what was put aside",
                    persisted.meta.group, persisted.base
                )
                .into(),
            )),
        }
    }
}

/// Whether another replica has the group's state and may lead it.
pub(crate) fn has_another_voter(persisted: &PersistedGroup) -> bool {
    let own = persisted.meta.replica;
    persisted.meta.membership.voters().any(|(replica, _)| replica != own)
}

fn broken(message: String) -> GroupFault {
    GroupFault::Invariant(message.into())
}

impl GroupCore {
    /// Opens a replica.
    ///
    /// # Errors
    /// [`GroupFault`] when the log, the hard state and the state machine contradict each other.
    pub fn open(
        config: Arc<GroupsConfig>,
        store: Arc<dyn LogStore>,
        logger: &Logger,
        start: ReplicaStart,
    ) -> Result<Self, GroupFault> {
        let ReplicaStart { persisted, applied, durable, lost, open_id, policies } = start;
        let id = persisted.meta.group;
        let hard_state = check_start(&persisted, applied)?;
        let conf = convert::conf_state(&persisted.meta.membership);
        let initial = (convert::hard_state_from_log(&hard_state), conf.clone());
        let mut log =
            ReplicaLog::new(id, Arc::clone(&store), initial, persisted.base, persisted.last);
        check_term(&log, id, applied)?;
        if let Some(snapshot) = persisted.meta.snapshot {
            log.set_snapshot(snapshot, conf);
        }
        let passed = match lost && !config.bugs.has(KnownBug::ApplyWithoutState) {
            true => unchanged_up_to(&*store, &persisted, hard_state.commit)?,
            false => applied.index,
        };
        let raft_config = raft_config(&config, persisted.meta.replica.get(), passed);
        let raw = RawNode::new(&raft_config, log, logger)
            .map_err(|error| broken(format!("raft refuses to open {id:?}: {error}")))?;
        let membership = Arc::new(persisted.meta.membership.clone());
        let locked = may_have_locked_vote(&persisted, config.bugs);
        let doubt = Doubt::opened(persisted.certainty);
        let published = super::status::initial(&persisted, applied, &membership);
        let mut core = Self {
            id,
            replica: persisted.meta.replica,
            open_id,
            config,
            policies,
            raw,
            meta: Box::new(persisted.meta),
            joint: membership.is_joint(),
            membership,
            proposals: Proposals::default(),
            reads: Reads::default(),
            transfer: None,
            succession: Succession::default(),
            candidacy: Candidacy::default(),
            seen_facts: 0,
            stalled: super::gate::Stall::refusing(lost.then(super::recovery::impairment)),
            recovery: Recovery::opened(lost),
            barriers: Barriers::default(),
            changes: Changes::default(),
            led: None,
            lease: super::lease::Lease::opened(locked),
            doubt,
            contacts: Vec::new(),
            conflicting: None,
            contradiction: Default::default(),
            consistency: Default::default(),
            leaving: Leaving::default(),
            durable: Durable::opened(hard_state),
            apply: ApplyProgress::new(applied.index.get(), passed.get(), durable),
            snapshots: Snapshots::default(),
            hibernation: Hibernation::default(),
            ticks: 0,
            published: Arc::new(published),
            peers: Arc::default(),
        };
        if lost {
            tracing::error!(group = %core.id, "the state of this replica is lost; it is asked for");
        }
        core.pin_election_timeout();
        core.campaign_soon_if_alone();
        core.consider_leaving();
        Ok(core)
    }
}

impl GroupCore {
    /// A lone voter waits for no other: it campaigns at its first tick.
    fn campaign_soon_if_alone(&mut self) {
        let voters = self.membership.members.values().filter(|m| m.voter || m.outgoing_voter);
        if voters.count() == 1 && self.raw.raft.promotable() {
            let raft = &mut self.raw.raft;
            raft.election_elapsed = raft.randomized_election_timeout() - 1;
        }
    }
}

/// Whether an earlier opening of this replica may have locked its vote for a leader.
///
/// The membership on this disk may lag behind that of the leader, which counts the answers of a voter
/// from the moment when it applied the promotion, and of the last one that is left until it applied
/// its own removal. So it does not matter who votes: one that never knew another member locked it
/// for none, and one that is new was never asked.
fn may_have_locked_vote(persisted: &PersistedGroup, bugs: KnownBugs) -> bool {
    let (replica, membership) = (persisted.meta.replica, &persisted.meta.membership);
    let voters = membership.members.values().filter(|one| one.voter || one.outgoing_voter).count();
    if bugs.has(KnownBug::ForgetVoteLock) || bugs.has(KnownBug::LockOnlyAmongVoters) && voters <= 1
    {
        return false;
    }
    let state = persisted.hard_state;
    let fresh = persisted.last.index == LogIndex::default()
        && state.vote.is_none()
        && state.term <= Term::new(1);
    !fresh && !membership.was_always_alone(replica)
}

/// Checks what raft would panic on, and lifts a commit index that lags behind what was applied.
fn check_start(persisted: &PersistedGroup, applied: LogPosition) -> Result<HardState, GroupFault> {
    let id = persisted.meta.group;
    let mut hard_state = persisted.hard_state;
    if applied.index < persisted.base.index || applied.index > persisted.last.index {
        return Err(broken(format!(
            "{id:?} applied {applied}, outside its log ({} to {})",
            persisted.base, persisted.last
        )));
    }
    let (replica, membership) = (persisted.meta.replica, &persisted.meta.membership);
    // A replica that was removed continues leaving.
    if membership.is_yet_to_come(replica) {
        return Err(broken(format!("{replica:?} is no member of its own {id:?}")));
    }
    hard_state.commit = hard_state.commit.max(applied.index).max(persisted.base.index);
    if hard_state.commit > persisted.last.index {
        return Err(broken(format!(
            "{id:?} knows {} committed, but its log ends at {}: the log lost its tail",
            hard_state.commit, persisted.last
        )));
    }
    if hard_state.term < persisted.last.term {
        return Err(broken(format!(
            "{id:?} is in term {}, but its log ends at {}",
            hard_state.term, persisted.last
        )));
    }
    hard_state.term = hard_state.term.max(Term::new(1));
    Ok(hard_state)
}

/// The applied entry must be the one that the log holds there.
fn check_term(log: &ReplicaLog, id: GroupId, applied: LogPosition) -> Result<(), GroupFault> {
    if applied.index == LogIndex::default() {
        return Ok(());
    }
    let term = log.term_of(applied.index.get()).map_err(GroupFault::Log)?;
    if term == applied.term {
        return Ok(());
    }
    Err(broken(format!("{id:?} applied {applied}, but the log holds term {term} there")))
}

/// Bytes of the log that are looked through at a time.
const LOOKED_THROUGH_BYTES: u64 = 1 << 20;

/// How far a replica that applies nothing counts its log as applied to raft: up to the first
/// committed change of members that is not in its membership, because raft lets no replica campaign
/// that has one to apply. Without a state nothing else would ever be passed.
fn unchanged_up_to(
    store: &dyn LogStore,
    persisted: &PersistedGroup,
    commit: LogIndex,
) -> Result<LogIndex, GroupFault> {
    let meta = &persisted.meta;
    let mut passed = persisted.base.index.max(meta.membership.config_index).min(commit);
    while passed < commit {
        let mut entries = Vec::new();
        store
            .entries(meta.group, passed.next(), commit.next(), LOOKED_THROUGH_BYTES, &mut entries)
            .map_err(GroupFault::Log)?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if entry.kind != EntryKind::Command {
                return Ok(passed);
            }
            passed = entry.index;
        }
    }
    Ok(passed)
}

fn raft_config(config: &GroupsConfig, replica: u64, applied: LogIndex) -> Config {
    Config {
        id: replica,
        election_tick: usize::from(config.election_ticks),
        heartbeat_tick: usize::from(config.heartbeat_ticks),
        applied: applied.get(),
        max_size_per_msg: config.max_append_bytes,
        max_inflight_msgs: config.max_inflight_appends,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        // Followers learn of a commit with the next append or heartbeat: half the messages.
        skip_bcast_commit: true,
        // Raft 0.7 merges entries into an empty append of another index.
        batch_append: false,
        max_uncommitted_size: raft::NO_LIMIT,
        max_committed_size_per_ready: config.max_apply_bytes_per_group as u64,
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use shardhost_storage::{
        Entry, GroupMeta, GroupWrite, LogBatch, Membership, MemoryStore, NodeId, ReplicaId,
    };

    use super::*;

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition::new(term, index)
    }

    /// A replica in term 4 with entries 11 to 20 behind a snapshot at 12.
    fn persisted() -> PersistedGroup {
        PersistedGroup {
            meta: GroupMeta {
                group: GroupId::new(1),
                replica: ReplicaId::must(2),
                membership: Membership::initial((1..=3).map(NodeId::must)),
                snapshot: Some(at(3, 12)),
                labels: BTreeMap::new(),
                kind: String::new(),
                skipping: None,
            },
            hard_state: HardState { term: Term::new(4), vote: None, commit: LogIndex::new(15) },
            base: at(3, 10),
            last: at(4, 20),
            certainty: Default::default(),
        }
    }

    fn without_snapshot() -> PersistedGroup {
        let mut persisted = persisted();
        persisted.meta.snapshot = None;
        persisted
    }

    fn fresh() -> PersistedGroup {
        let mut fresh = without_snapshot();
        fresh.hard_state = HardState { term: Term::new(1), vote: None, commit: LogIndex::new(0) };
        (fresh.base, fresh.last) = (LogPosition::default(), LogPosition::default());
        fresh
    }

    fn refused<T: std::fmt::Debug>(outcome: Result<T, GroupFault>, words: &str) {
        let fault = outcome.expect_err(words);
        assert!(fault.to_string().contains(words), "{fault}");
    }

    #[test]
    fn a_machine_within_the_log_continues_where_it_stands() {
        for index in [10, 14, 20] {
            let decided = Opened::decide(&persisted(), Some(at(3, index)));
            assert_eq!(decided.unwrap(), Opened::Continue(at(3, index)));
        }
        assert_eq!(Opened::decide(&fresh(), None).unwrap(), Opened::Continue(at(0, 0)));
    }

    #[test]
    fn a_machine_behind_the_log_is_restored_from_the_snapshot() {
        for machine in [None, Some(at(2, 5))] {
            let decided = Opened::decide(&persisted(), machine).unwrap();
            assert_eq!(decided, Opened::Restore(at(3, 12)));
        }
    }

    #[test]
    fn a_machine_behind_the_log_without_a_snapshot_has_lost_its_state() {
        let mut stale = persisted();
        stale.meta.snapshot = Some(at(3, 9));
        for persisted in [without_snapshot(), stale] {
            for machine in [None, Some(at(2, 5))] {
                let decided = Opened::decide(&persisted, machine).unwrap();
                assert_eq!(decided, Opened::Lost(at(3, 10)));
            }
        }
        let mut alone = without_snapshot();
        alone.meta.membership = Membership::initial([NodeId::must(1)]);
        alone.meta.replica = ReplicaId::must(1);
        refused(Opened::decide(&alone, None), "no other voter to ask");
        alone.meta.membership = Membership::initial([1, 2].map(NodeId::must));
        let learner = alone.meta.membership.members.get_mut(&ReplicaId::must(2));
        learner.map(|member| (member.voter, member.learner) = (false, true)).unwrap();
        refused(Opened::decide(&alone, None), "no other voter to ask");
    }

    #[test]
    fn a_lost_state_passes_what_is_committed_up_to_a_change_of_the_group() {
        let store = MemoryStore::new();
        let persisted = without_snapshot();
        let entry = |index: u64, kind| Entry {
            term: Term::new(4),
            index: LogIndex::new(index),
            kind,
            data: Bytes::from_static(b"x"),
            context: Bytes::new(),
        };
        let kind = |index| match index {
            13 => EntryKind::Requirement,
            17 => EntryKind::Config,
            _ => EntryKind::Command,
        };
        let mut write = GroupWrite::new(persisted.meta.group);
        (write.meta, write.reset) = (Some(persisted.meta.clone()), Some(persisted.base));
        write.hard_state = Some(persisted.hard_state);
        write.entries = (11..=20).map(|index| entry(index, kind(index))).collect();
        store.write(&LogBatch { writes: vec![write] }).unwrap();
        let passed = |config_index, commit| {
            let mut persisted = persisted.clone();
            persisted.meta.membership.config_index = LogIndex::new(config_index);
            unchanged_up_to(&store, &persisted, LogIndex::new(commit)).unwrap().get()
        };
        assert_eq!(passed(0, 20), 12, "the change at 13 is still to be applied");
        assert_eq!(passed(13, 20), 16, "it is in the membership, the one at 17 is not");
        assert_eq!(passed(17, 20), 20);
        assert_eq!((passed(0, 10), passed(13, 15)), (10, 15), "no further than is committed");
    }

    #[test]
    fn a_machine_beyond_the_log_shows_a_lost_tail() {
        refused(Opened::decide(&persisted(), Some(at(4, 21))), "lost its tail");
    }

    #[test]
    fn a_sound_start_is_accepted_as_it_is() {
        let state = check_start(&persisted(), at(3, 14)).unwrap();
        assert_eq!(state, persisted().hard_state);
    }

    #[test]
    fn a_commit_index_that_lags_is_lifted() {
        let applied = check_start(&persisted(), at(4, 18)).unwrap();
        assert_eq!(applied.commit, LogIndex::new(18), "to what is applied");
        let mut lags = persisted();
        lags.hard_state.commit = LogIndex::new(3);
        let based = check_start(&lags, at(3, 10)).unwrap();
        assert_eq!(based.commit, LogIndex::new(10), "to the base");
    }

    #[test]
    fn a_fresh_replica_starts_in_a_term_above_zero() {
        let mut fresh = fresh();
        fresh.hard_state.term = Term::new(0);
        assert_eq!(check_start(&fresh, at(0, 0)).unwrap().term, Term::new(1));
    }

    #[test]
    fn what_raft_would_panic_on_is_refused() {
        refused(check_start(&persisted(), at(3, 9)), "outside its log");
        refused(check_start(&persisted(), at(4, 21)), "outside its log");

        let mut stranger = persisted();
        stranger.meta.replica = ReplicaId::must(9);
        refused(check_start(&stranger, at(3, 14)), "no member");

        let mut tail = persisted();
        tail.hard_state.commit = LogIndex::new(21);
        refused(check_start(&tail, at(3, 14)), "lost its tail");

        let mut term = persisted();
        term.hard_state.term = Term::new(3);
        refused(check_start(&term, at(3, 14)), "is in term 3");
    }

    #[test]
    fn the_applied_entry_must_be_the_one_in_the_log() {
        let store: Arc<dyn LogStore> = Arc::new(shardhost_storage::MemoryStore::new());
        let initial = Default::default();
        let log = ReplicaLog::new(GroupId::new(1), store, initial, at(3, 10), at(4, 20));
        let id = GroupId::new(1);
        check_term(&log, id, at(3, 10)).unwrap();
        check_term(&log, id, at(4, 20)).unwrap();
        refused(check_term(&log, id, at(3, 20)), "the log holds term 4");
        check_term(&log, id, LogPosition::default()).unwrap();
    }
}

//! How a replica comes to life from what the log holds and the state machine says.

use std::sync::Arc;

use raft::{Config, RawNode, ReadOnlyOption};
use shardhost_storage::{
    GroupId, HardState, LogIndex, LogPosition, LogStore, PersistedGroup, Term,
};
use slog::Logger;

use super::{GroupCore, apply::ApplyProgress, sleep::Sleep, snapshot::Snapshots};
use crate::config::GroupsConfig;
use crate::convert;
use crate::error::GroupFault;
use crate::replica_log::ReplicaLog;

/// What a replica is opened from.
#[derive(Debug)]
pub struct ReplicaStart {
    /// What the log holds.
    pub persisted: PersistedGroup,
    /// Where the state machine stands; it was restored from the snapshot if that was needed.
    pub applied: LogPosition,
    /// What of it survives a crash, as [`crate::StateMachine::durable_index`] says.
    pub durable: Option<LogIndex>,
    /// Which opening of the replica in this process this is.
    pub epoch: u64,
}

/// How a state machine's position fits the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The log continues where the machine stands.
    Continue(LogPosition),
    /// The machine is behind the log's base and must be restored from this snapshot first.
    Restore(LogPosition),
}

impl Opened {
    /// Decides from what the log holds and where the machine says it stands.
    ///
    /// # Errors
    /// [`GroupFault::Invariant`] when the two contradict each other.
    pub fn decide(
        persisted: &PersistedGroup,
        machine: Option<LogPosition>,
    ) -> Result<Self, GroupFault> {
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
            other => Err(broken(format!(
                "the state machine of {:?} stands at {machine}, the log starts after {}, and the \
                 newest snapshot is {other:?}",
                persisted.meta.group, persisted.base
            ))),
        }
    }
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
        let ReplicaStart { persisted, applied, durable, epoch } = start;
        let id = persisted.meta.group;
        let hard_state = check_start(&persisted, applied)?;
        let conf = convert::conf_state(&persisted.meta.membership);
        let initial = (convert::hard_state_from_log(&hard_state), conf.clone());
        let mut log = ReplicaLog::new(id, store, initial, persisted.base, persisted.last);
        check_term(&log, id, applied)?;
        if let Some(snapshot) = persisted.meta.snapshot {
            log.set_snapshot(snapshot, conf);
        }
        let raft_config = raft_config(&config, persisted.meta.replica.get(), applied);
        let raw = RawNode::new(&raft_config, log, logger)
            .map_err(|error| broken(format!("raft refuses to open {id:?}: {error}")))?;
        let membership = Arc::new(persisted.meta.membership.clone());
        let published = super::status::initial(&persisted, applied, &membership);
        let mut core = Self {
            id,
            replica: persisted.meta.replica,
            epoch,
            config,
            raw,
            meta: Box::new(persisted.meta),
            membership,
            queued: Vec::new(),
            waiters: std::collections::VecDeque::new(),
            reads: None,
            transfer: None,
            led: None,
            handed_number: 0,
            durable_number: 0,
            written_state: hard_state,
            durable_term: hard_state.term.get(),
            apply: ApplyProgress::new(applied.index.get(), durable),
            snapshots: Snapshots::default(),
            sleep: Sleep::default(),
            campaigns: 0,
            ticks: 0,
            published: Arc::new(published),
        };
        core.pin_election_timeout();
        Ok(core)
    }
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
    if persisted.meta.membership.node_of(persisted.meta.replica).is_none() {
        return Err(broken(format!("{:?} is no member of its own {id:?}", persisted.meta.replica)));
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

fn raft_config(config: &GroupsConfig, replica: u64, applied: LogPosition) -> Config {
    Config {
        id: replica,
        election_tick: usize::from(config.election_ticks),
        heartbeat_tick: usize::from(config.heartbeat_ticks),
        applied: applied.index.get(),
        max_size_per_msg: config.max_append_bytes,
        max_inflight_msgs: config.max_inflight_appends,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        skip_bcast_commit: false,
        batch_append: true,
        max_uncommitted_size: raft::NO_LIMIT,
        max_committed_size_per_ready: config.max_apply_bytes_per_group as u64,
        ..Config::default()
    }
}

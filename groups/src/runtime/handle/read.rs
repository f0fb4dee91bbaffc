//! Reading: by quorum, by lease, through the leader, or whatever is here.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use shardhost_storage::{GroupId, LogIndex, LogPosition};
use tokio::sync::oneshot;

use super::{Group, Offered};
use crate::apply::ApplyWork;
use crate::clock::Moment;
use crate::core::{ReadBarrier, ReadNeed, ReadRequest};
use crate::error::{LeaderHint, QueryTimeout, ReadError};
use crate::machine::StateChecksum;
use crate::worker::Input;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadMode {
    /// Sees everything that was acknowledged before it began. Leader only; one quorum round,
    /// shared with other reads.
    Linearizable,
    /// Sees everything that was acknowledged before it began. Leader only; at once while a quorum
    /// locked its vote for the leader, else as [`ReadMode::Linearizable`].
    Lease,
    /// Sees everything that was acknowledged before it began. Any replica, learners too: the leader
    /// is asked for the commit index, and that is waited for here.
    Follower,
    /// Sees whatever this replica has applied. Any replica, at once.
    Stale,
}

/// A leader's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// How long a lease lasts from the moment that its heartbeat was sent.
    pub duration: Duration,
    /// How long ago the newest heartbeats were sent that a quorum answered; zero when this
    /// replica is the only voter.
    pub acknowledged: Duration,
    /// Whether reads need no quorum.
    pub valid: bool,
    pub applied: LogIndex,
}

/// A group takes no proposals here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {role} of group {group} does not serve{}", crate::error::hint_text(leader))]
pub struct NotServing {
    pub group: GroupId,
    /// What the replica is doing.
    pub role: &'static str,
    pub leader: Option<LeaderHint>,
}

impl Group {
    /// Waits until a read would be as fresh as `mode` asks for.
    ///
    /// # Errors
    /// [`ReadError`]. Nothing changed.
    pub async fn read_barrier(&self, mode: ReadMode) -> Result<ReadBarrier, ReadError> {
        match mode {
            ReadMode::Stale => {
                let applied = self.shared.status.load().applied;
                Ok(ReadBarrier::stale(applied))
            }
            ReadMode::Lease if self.holds_lease() => {
                let (committed, applied) = self.standing();
                if applied >= committed {
                    return Ok(ReadBarrier { read_index: committed, applied });
                }
                self.ask_core(ReadNeed::At(committed)).await
            }
            ReadMode::Lease | ReadMode::Linearizable => self.ask_core(ReadNeed::Applied).await,
            ReadMode::Follower => self.ask_core(ReadNeed::FromLeader).await,
        }
    }

    /// The commit index and the applied index here. A leader must not answer with less than it
    /// knows committed: a follower may have applied that, and shown it, before the leader's state
    /// machine did.
    fn standing(&self) -> (LogIndex, LogIndex) {
        let status = self.shared.status.load();
        let machine = LogIndex::new(self.shared.position.load(Ordering::Acquire));
        (status.committed, machine.max(status.applied))
    }

    /// What the state machine has applied, also of a batch that it failed in.
    #[must_use]
    pub fn machine_applied(&self) -> LogIndex {
        self.standing().1
    }

    fn is_level(&self) -> bool {
        let (committed, applied) = self.standing();
        applied >= committed
    }

    /// Proves with a round of a quorum that this replica leads. Returns an index that everything
    /// acknowledged before is at or below; it need not be applied here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn verify_leader(&self) -> Result<LogIndex, ReadError> {
        Ok(self.ask_core(ReadNeed::Leadership).await?.read_index)
    }

    async fn ask_core(&self, need: ReadNeed) -> Result<ReadBarrier, ReadError> {
        let group = self.shared.id;
        let (completion, answer) = crate::completion::answer();
        let request = ReadRequest { need, completion };
        match self.offer(Input::Read { group, request }) {
            Ok(()) => answer.await.unwrap_or(Err(ReadError::Stopped { group })),
            Err(Offered::Busy) => Err(ReadError::Busy { group }),
            Err(Offered::Stopped) => Err(ReadError::Stopped { group }),
        }
    }

    /// The lease of this replica; `None` when it leads nothing, or a quorum has not answered.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseStatus> {
        let runtime = &self.shared.runtime;
        let duration = runtime.config.lease_duration()?;
        let (now, sign) = (runtime.clock.now()?, self.shared.lease.sign());
        if sign.until == Moment::ZERO {
            return None;
        }
        let acknowledged = now.since(sign.acknowledged);
        let applied = self.shared.status.load().applied;
        Some(LeaseStatus { duration, acknowledged, valid: now < sign.until, applied })
    }

    fn holds_lease(&self) -> bool {
        let now = self.shared.runtime.clock.now();
        now.is_some_and(|now| now < self.shared.lease.sign().until)
    }

    /// How long ago this replica received something from its leader, to about a tick; `None` when
    /// it leads itself, or never received anything.
    #[must_use]
    pub fn last_contact(&self) -> Option<Duration> {
        let contact = self.shared.lease.sign().contact;
        let now = self.shared.runtime.clock.now()?;
        (contact != Moment::ZERO).then(|| now.since(contact))
    }

    /// Whether the group takes proposals and reads here.
    ///
    /// # Errors
    /// [`NotServing`] names the leader.
    pub fn check_serving(&self) -> Result<(), NotServing> {
        let status = self.shared.status.load();
        if status.serving {
            return Ok(());
        }
        let (group, leader) = (self.shared.id, status.leader);
        Err(NotServing { group, role: status.role.name(), leader })
    }

    /// Asks the state machine.
    ///
    /// # Errors
    /// [`ReadError`]. Nothing changed.
    pub async fn query(
        &self,
        mode: ReadMode,
        request: impl Into<Bytes>,
    ) -> Result<Bytes, ReadError> {
        let request = request.into();
        if mode == ReadMode::Lease
            && self.holds_lease()
            && self.is_level()
            && let Some(answer) = self.shared.mailbox.query_at_once(&request)
        {
            return Ok(answer?);
        }
        // The work queues behind everything that the barrier waited for.
        let _barrier = self.read_barrier(mode).await?;
        let (reply, answer) = crate::completion::answer();
        self.ask_machine(ApplyWork::Query { request, reply })?;
        Ok(self.answered(answer).await??)
    }

    /// Number of items and checksum of the state, and the position that they are of.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn checksum(&self) -> Result<(LogPosition, StateChecksum), ReadError> {
        let (reply, answer) = crate::completion::answer();
        self.ask_machine(ApplyWork::Checksum { reply })?;
        Ok(self.answered(answer).await??)
    }

    fn ask_machine(&self, question: ApplyWork) -> Result<(), ReadError> {
        let asked = self.shared.runtime.ask_machine(&self.shared, question);
        asked.map_err(|_| ReadError::Busy { group: self.shared.id })
    }

    async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, ReadError> {
        let group = self.shared.id;
        let limit = self.shared.runtime.config.query_timeout;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ReadError::Stopped { group }),
            Err(_) => Err(ReadError::Timeout(QueryTimeout { group, after: limit })),
        }
    }
}

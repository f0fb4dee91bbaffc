//! The end of a replica, on its way through the threads of the host.

use std::fmt;
use std::sync::Arc;

use shardhost_storage::{GroupId, GroupWrite, LogError, LogStore, ReplicaId};

use super::{Lives, OpenId, remains as lives};
use crate::completion::Reply;
use crate::error::{GroupFault, OpenGroupError};
use crate::leadership::LossCause;

/// Removes what a state machine kept.
type Clear = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// Which replica is to be destroyed, and what goes with it.
#[must_use = "it does nothing until it is given to `Groups::destroy_replica`"]
pub struct Destruction {
    pub(crate) group: GroupId,
    pub(crate) meant: Meant,
    clear: Option<Clear>,
}

impl fmt::Debug for Destruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "destruction of {:?}: {:?}", self.group, self.meant)
    }
}

impl Destruction {
    /// Of this host's replica of the group, whichever it is.
    pub fn new(group: GroupId) -> Self {
        Self { group, meant: Meant::Any, clear: None }
    }
    /// Of this very replica: not of one that took its place meanwhile.
    pub const fn of(group: GroupId, replica: ReplicaId) -> Self {
        Self { group, meant: Meant::Replica(replica), clear: None }
    }
    /// Only if the replica is of this generation of the group: one that was ordered for another
    /// generation destroys nothing.
    pub const fn generation(mut self, generation: u32) -> Self {
        self.meant = Meant::Generation(generation);
        self
    }
    /// Removes the state, after the state machine of an open replica was dropped and before
    /// the next replica can be created. Without it [`crate::StateMachine::removed`] is called on the
    /// state machine of an open replica, and the state of one that is not open stays.
    pub fn clear(mut self, clear: impl FnOnce() -> Result<(), String> + Send + 'static) -> Self {
        self.clear = Some(Box::new(clear));
        self
    }
}

/// Which replica a destruction was ordered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    Any,
    Generation(u32),
    Replica(ReplicaId),
}

impl Meant {
    /// The generation, if one was meant.
    const fn generation(self) -> Option<u32> {
        match self {
            Self::Any => None,
            Self::Generation(generation) => Some(generation),
            Self::Replica(replica) => Some(generation_of(replica)),
        }
    }

    /// Refuses an order that was for another replica than this one.
    pub(crate) fn check(self, group: GroupId, replica: ReplicaId) -> Result<(), OpenGroupError> {
        let found = generation_of(replica);
        match (self.generation(), self) {
            (Some(expected), _) if expected != found => {
                Err(OpenGroupError::OtherGeneration { group, expected, found })
            }
            (_, Self::Replica(expected)) if expected != replica => {
                Err(OpenGroupError::OtherReplica { group, expected, found: replica })
            }
            _ => Ok(()),
        }
    }
}

/// The generation of its group that a replica belongs to.
pub(crate) const fn generation_of(replica: ReplicaId) -> u32 {
    (replica.get() >> 32) as u32
}

enum Kind {
    Closing,
    Destroying(Destruction, Reply<Result<(), OpenGroupError>>),
    /// The group released it; the log holds nothing of it.
    Released,
}

/// What a batch of the log does to a replica, beside what its end asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InBatch {
    Kept,
    Destroyed,
}

/// What the log holds of the replica at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Destroyed,
    /// The log holds nothing of it, but its state was not removed.
    StateRemains(String),
    Refused(OpenGroupError),
}

/// The end of a replica, on its way through the threads of the host: its worker stops it, the log
/// writer passes all that it was handed, an apply thread drops the state machine. Each hands it
/// on; none waits. Dropped on its way, it wakes the callers that wait.
pub struct Ending(Box<Parts>);

struct Parts {
    lives: Arc<Lives>,
    group: GroupId,
    open: Option<OpenId>,
    kind: Option<Kind>,
    fate: Fate,
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "end of {:?} {:?}: {:?}", self.0.group, self.0.open, self.0.fate)
    }
}

impl Ending {
    fn new(lives: &Arc<Lives>, group: GroupId, open: Option<OpenId>, kind: Kind) -> Self {
        let fate = if matches!(kind, Kind::Released) { Fate::Destroyed } else { Fate::Kept };
        let lives = Arc::clone(lives);
        Self(Box::new(Parts { lives, group, open, kind: Some(kind), fate }))
    }

    pub(super) fn closing(lives: &Arc<Lives>, group: GroupId, open: OpenId) -> Self {
        Self::new(lives, group, Some(open), Kind::Closing)
    }

    pub(super) fn release(lives: &Arc<Lives>, group: GroupId, open: OpenId) -> Self {
        Self::new(lives, group, Some(open), Kind::Released)
    }

    pub(crate) fn destroying(
        lives: &Arc<Lives>,
        open: Option<OpenId>,
        destruction: Destruction,
        done: Reply<Result<(), OpenGroupError>>,
    ) -> Self {
        Self::new(lives, destruction.group, open, Kind::Destroying(destruction, done))
    }

    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.0.group
    }

    /// Which opening ends; `None`: the replica is not open.
    #[must_use]
    pub const fn open_id(&self) -> Option<OpenId> {
        self.0.open
    }

    /// Why a leadership ends with the replica.
    pub(crate) const fn cause(&self) -> LossCause {
        match self.0.kind {
            Some(Kind::Closing) | None => LossCause::Stopped,
            Some(Kind::Destroying(..) | Kind::Released) => LossCause::Removed,
        }
    }

    /// What the log writer has to write for it, when everything that the replica handed over is
    /// written or about to be, with a batch that keeps or destroys the replica already.
    pub(crate) fn write(&mut self, store: &dyn LogStore, batch: InBatch) -> Option<GroupWrite> {
        let Some(Kind::Destroying(destruction, _)) = &self.0.kind else { return None };
        if batch == InBatch::Destroyed {
            self.0.fate = Fate::Destroyed;
            return None;
        }
        let remains = destruction.clear.is_some() || self.0.lives.has_remains(self.0.group);
        match replica_to_destroy(store, destruction, remains) {
            Ok(ToDestroy::Replica(replica)) => {
                self.0.fate = Fate::Destroyed;
                let mut write = GroupWrite::new(self.0.group);
                write.destroy = Some(replica);
                Some(write)
            }
            Ok(ToDestroy::Remains) => {
                self.0.fate = Fate::Destroyed;
                None
            }
            Err(error) => {
                self.0.fate = Fate::Refused(error);
                None
            }
        }
    }

    /// What the log writer wrote for it is not durable, or was not written at all.
    pub(crate) fn refuse(&mut self, error: &LogError) {
        let destroying = matches!(self.0.kind, Some(Kind::Destroying(..)));
        if destroying && !matches!(self.0.fate, Fate::Refused(_)) {
            self.0.fate = Fate::Refused(log_error(self.0.group, error.clone()));
        }
    }

    /// Whether the log holds nothing of the replica any more: what it left behind must go.
    pub(crate) fn is_destroyed(&mut self) -> bool {
        if self.0.lives.is_released(self.0.group) {
            self.0.fate = Fate::Destroyed;
        }
        self.0.fate == Fate::Destroyed
    }

    /// What removes the state, if the state machine does not.
    pub(crate) fn take_clear(&mut self) -> Option<Clear> {
        match &mut self.0.kind {
            Some(Kind::Destroying(destruction, _)) => destruction.clear.take(),
            _ => None,
        }
    }

    /// What removes the state that an earlier destruction left behind.
    pub(crate) fn take_remains(&mut self) -> Option<lives::Clear> {
        self.0.lives.forget_remains(self.0.group)
    }

    /// The state could not be removed: the next destruction of the replica removes it.
    pub(crate) fn leave_state(&mut self, message: String, clear: Option<lives::Clear>) {
        self.0.lives.keep_remains(self.0.group, clear);
        self.0.fate = Fate::StateRemains(message);
    }

    /// Nothing of the replica is left on any thread. `unregister` runs before the number is free.
    pub(crate) fn finish<T>(mut self, unregister: impl FnOnce() -> T) -> T {
        let unregistered = self.0.lives.ended(self.0.group, unregister);
        if let Some(Kind::Destroying(_, done)) = self.0.kind.take() {
            let outcome = match &self.0.fate {
                Fate::Refused(error) => Err(error.clone()),
                Fate::StateRemains(message) => {
                    let (group, message) = (self.0.group, message.clone());
                    Err(OpenGroupError::StateRemains { group, message })
                }
                Fate::Destroyed => Ok(()),
                // It came past the log writer.
                Fate::Kept => Err(OpenGroupError::Stopping),
            };
            done.send(outcome);
        }
        self.0.kind = None;
        unregistered
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.0.kind.is_some() {
            self.0.lives.abandoned(self.0.group);
        }
    }
}

/// What is there to be destroyed.
enum ToDestroy {
    Replica(ReplicaId),
    /// The log holds nothing any more; its state may remain.
    Remains,
}

fn replica_to_destroy(
    store: &dyn LogStore,
    destruction: &Destruction,
    remains: bool,
) -> Result<ToDestroy, OpenGroupError> {
    let group = destruction.group;
    let failed = |error| log_error(group, error);
    // Also one that cannot be read: only its id must be known.
    if let Some(replica) = store.replica(group).map_err(failed)? {
        destruction.meant.check(group, replica)?;
        return Ok(ToDestroy::Replica(replica));
    }
    match (store.load(group), destruction.meant.generation()) {
        (Ok(_), _) => {}
        // Not even its id can be read: no replica of that generation comes back to this host, and one of a
        // later generation comes back in doubt, for it may have been this one.
        (Err(LogError::Corrupt { .. }), Some(generation)) => {
            return Ok(ToDestroy::Replica(last_of(generation)));
        }
        (Err(error), _) => return Err(failed(error)),
    }
    match store.tombstone(group).map_err(failed)?.filter(|_| remains) {
        Some(replica) => {
            destruction.meant.check(group, replica)?;
            Ok(ToDestroy::Remains)
        }
        None => Err(OpenGroupError::Unknown { group }),
    }
}

/// The largest id that a replica of a generation can have. No replica has it.
const fn last_of(generation: u32) -> ReplicaId {
    ReplicaId::must((generation as u64) << 32 | u32::MAX as u64)
}

/// Whether a tombstone is that of a replica whose id could not be read.
pub(crate) const fn is_of_unreadable(tombstone: ReplicaId) -> bool {
    tombstone.get() as u32 == u32::MAX
}

/// The log cannot be read or written.
pub(crate) fn log_error(group: GroupId, error: LogError) -> OpenGroupError {
    OpenGroupError::Faulted { group, fault: GroupFault::Log(error) }
}

#[cfg(test)]
mod tests {
    use shardhost_storage::{
        GroupMeta, HardState, LogBatch, LogIndex, LogPosition, Membership, MemoryStore, NodeId,
        Term,
    };

    use tokio::sync::oneshot;

    use super::*;

    const GROUP: GroupId = GroupId::new(7);
    const GENERATION: u32 = 3;

    fn store() -> MemoryStore {
        let replica = ReplicaId::must(u64::from(GENERATION) << 32 | 1);
        let (membership, labels) = (Membership::initial([NodeId::must(1)]), Default::default());
        let mut write = GroupWrite::new(GROUP);
        write.meta = Some(GroupMeta {
            group: GROUP,
            replica,
            membership,
            snapshot: None,
            labels,
            kind: String::new(),
            skipping: None,
        });
        let commit = LogIndex::default();
        write.hard_state = Some(HardState { term: Term::new(1), vote: None, commit });
        write.reset = Some(LogPosition::default());
        let store = MemoryStore::new();
        store.write(&LogBatch { writes: vec![write] }).unwrap();
        store
    }

    type Outcome = oneshot::Receiver<Result<(), OpenGroupError>>;

    /// The end of a replica that is not open.
    fn destroying(destruction: Destruction) -> (Ending, Outcome) {
        let lives = Arc::<Lives>::default();
        lives.destroy(GROUP, || Ok(())).unwrap();
        let (done, outcome) = crate::completion::answer();
        (Ending::destroying(&lives, None, destruction, done), outcome)
    }

    fn end(mut ending: Ending, mut outcome: Outcome) -> (bool, Result<(), OpenGroupError>) {
        let destroyed = ending.is_destroyed();
        ending.finish(|| ());
        (destroyed, outcome.try_recv().unwrap())
    }

    #[test]
    fn a_replica_is_destroyed_with_the_id_that_the_log_knows() {
        let (mut ending, outcome) = destroying(Destruction::new(GROUP).generation(GENERATION));
        let write = ending.write(&store(), InBatch::Kept).unwrap();
        assert_eq!(write.destroy.map(generation_of), Some(GENERATION));
        assert_eq!(end(ending, outcome), (true, Ok(())));
    }

    #[test]
    fn state_that_remains_is_removed_by_an_order_that_is_repeated() {
        let store = store();
        let (mut ending, outcome) = destroying(Destruction::new(GROUP));
        let write = ending.write(&store, InBatch::Kept).unwrap();
        store.write(&LogBatch { writes: vec![write] }).unwrap();
        let lives = Arc::clone(&ending.0.lives);
        ending.leave_state("the disk is full".to_owned(), None);
        let (_, outcome) = end(ending, outcome);
        let message = "the disk is full".to_owned();
        assert_eq!(outcome, Err(OpenGroupError::StateRemains { group: GROUP, message }));
        assert!(lives.has_remains(GROUP));
        // Also by another process, which knows how.
        let order = || Destruction::new(GROUP).generation(GENERATION).clear(|| Ok(()));
        let (mut ending, outcome) = destroying(order());
        assert_eq!(ending.write(&store, InBatch::Kept), None);
        assert_eq!(end(ending, outcome), (true, Ok(())));
        // Of that generation only.
        let (mut ending, outcome) = destroying(order().generation(2));
        assert_eq!(ending.write(&store, InBatch::Kept), None);
        assert!(matches!(end(ending, outcome).1, Err(OpenGroupError::OtherGeneration { .. })));
    }

    #[test]
    fn an_order_for_another_generation_destroys_nothing() {
        let (mut ending, outcome) = destroying(Destruction::new(GROUP).generation(2));
        assert_eq!(ending.write(&store(), InBatch::Kept), None);
        let error =
            OpenGroupError::OtherGeneration { group: GROUP, expected: 2, found: GENERATION };
        assert_eq!(end(ending, outcome), (false, Err(error)));
    }

    #[test]
    fn an_order_for_a_replica_that_was_replaced_destroys_nothing() {
        let found = ReplicaId::must(u64::from(GENERATION) << 32 | 1);
        let expected = ReplicaId::must(found.get() + 3);
        let (mut ending, outcome) = destroying(Destruction::of(GROUP, expected));
        assert_eq!(ending.write(&store(), InBatch::Kept), None);
        let error = OpenGroupError::OtherReplica { group: GROUP, expected, found };
        assert_eq!(end(ending, outcome), (false, Err(error)));
        let (mut ending, outcome) = destroying(Destruction::of(GROUP, found));
        let write = ending.write(&store(), InBatch::Kept).unwrap();
        assert_eq!((write.destroy, end(ending, outcome)), (Some(found), (true, Ok(()))));
    }

    #[test]
    fn a_replica_that_is_not_there_cannot_be_destroyed() {
        let (mut ending, outcome) = destroying(Destruction::new(GROUP));
        assert_eq!(ending.write(&MemoryStore::new(), InBatch::Kept), None);
        let error = OpenGroupError::Unknown { group: GROUP };
        assert_eq!(end(ending, outcome), (false, Err(error)));
    }

    #[test]
    fn a_replica_that_destroys_itself_in_the_same_batch_is_not_destroyed_again() {
        let (mut ending, outcome) = destroying(Destruction::new(GROUP));
        assert_eq!(ending.write(&store(), InBatch::Destroyed), None);
        assert_eq!(end(ending, outcome), (true, Ok(())));
    }

    #[test]
    fn what_the_log_refuses_is_not_destroyed() {
        let (mut ending, outcome) = destroying(Destruction::new(GROUP));
        ending.write(&store(), InBatch::Kept).unwrap();
        ending.refuse(&LogError::Poisoned);
        let (destroyed, outcome) = end(ending, outcome);
        assert!(!destroyed && matches!(outcome, Err(OpenGroupError::Faulted { .. })));
    }

    #[test]
    fn what_a_failed_log_did_not_even_take_is_not_destroyed() {
        let (mut ending, outcome) = destroying(Destruction::new(GROUP));
        ending.refuse(&LogError::Poisoned);
        let (destroyed, outcome) = end(ending, outcome);
        assert!(!destroyed && matches!(outcome, Err(OpenGroupError::Faulted { .. })));
    }

    #[test]
    fn an_ending_that_is_lost_leaves_no_caller_waiting() {
        let (ending, mut outcome) = destroying(Destruction::new(GROUP));
        let lives = Arc::clone(&ending.0.lives);
        let Ok(super::super::Destroying::Wait(mut wait)) = lives.destroy(GROUP, || Ok(())) else {
            panic!("another one is under way");
        };
        drop(ending);
        use oneshot::error::TryRecvError;
        assert_eq!(outcome.try_recv(), Err(TryRecvError::Closed));
        assert_eq!(wait.try_recv(), Err(TryRecvError::Closed));
    }
}

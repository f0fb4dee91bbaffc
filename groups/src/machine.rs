//! The state machine of a group: what users implement.
//!
//! A machine is called by one apply thread at a time, never by a Raft thread, so it may block:
//! it then delays its own group only. A call that takes longer than
//! [`machine_limit`](crate::GroupsConfig::machine_limit) has others lead the group as long as they
//! can; a batch that is cut ([`ApplyBatch::cut`]) is a call for each part, and a call that gets on
//! ([`Progress`]) begins its time anew. It gets batches, so that a machine on disk can write a
//! batch at once.

use std::fmt;
use std::io::{self, Read, Write};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use shardhost_storage::{GroupId, LogIndex, LogPosition};

use crate::completion::Handed;
use crate::error::QueryError;

/// What a group's committed commands do.
///
/// Every replica applies the same commands in the same order, and must come to the same state and
/// the same answers from them: no clock, no randomness, no map order. Put what varies into the
/// command.
pub trait StateMachine: Send + 'static {
    /// The last position whose effect this machine holds. `None`: it holds nothing, and is restored
    /// from a snapshot or replayed from the start of the log. Called before everything else when
    /// the replica is opened; [`crate::Groups::open`] calls it once more when another replica of
    /// the group ran since, and uses the later answer. Changes nothing: another machine of the
    /// group may be at work.
    ///
    /// # Errors
    /// A fault stops the group's replica on this host.
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault>;

    /// The replica begins to run where [`StateMachine::applied`] said, and no other machine of the
    /// group is at work on this host. Called once, before anything is applied, replayed or asked;
    /// not when the state is restored from a snapshot instead. What an interrupted restore left is
    /// removed here.
    ///
    /// # Errors
    /// A fault keeps the replica from opening.
    fn begin(&mut self) -> Result<(), ApplyFault> {
        Ok(())
    }

    /// Applies a batch of commands in order. When it returns, the whole batch counts as applied,
    /// and the answers go to those who proposed; see [`ApplyBatch::cut`] for batches that would
    /// take too much memory.
    ///
    /// # Errors
    /// A fault stops this replica; the batch does not count as applied, and is applied again
    /// after a restart. One that passes ([`ApplyFault::passing`]) stops nothing: the same batch
    /// comes again until it is applied.
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault>;

    /// Answers a question without changing anything. Called when everything that must be seen is
    /// applied.
    ///
    /// # Errors
    /// [`QueryError`] goes to the caller; the group continues.
    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        let _ = request;
        Err(QueryError::Unsupported)
    }

    /// Takes a stable view of the state as of the last applied batch. Must be quick: the writing
    /// happens in [`SnapshotWriter::write_to`], elsewhere.
    ///
    /// # Errors
    /// A fault is reported and the call tried again later; the group continues.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault>;

    /// Replaces the whole state by that of a snapshot, whose bytes were checked before.
    /// Afterwards [`StateMachine::applied`] is at `at`. Takes as long as the state is large: each
    /// read of `source` shows that it gets on.
    ///
    /// # Errors
    /// A fault stops this replica; the restore is done again after a restart. After one that passes
    /// ([`ApplyFault::passing`]) the machine may hold a part of either state: it is asked nothing,
    /// and gives no views, before the same restore was called again and done.
    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault>;

    /// The last index whose effect survives a crash of the process, for machines that keep
    /// themselves on disk. The log is kept above it. `None`: nothing survives, the host makes
    /// snapshots instead.
    fn durable_index(&self) -> Option<LogIndex> {
        None
    }

    /// Makes durable whatever is applied, so that the log behind it can go. Asked when the log has
    /// grown long behind [`StateMachine::durable_index`]. A machine that keeps nothing does
    /// nothing.
    ///
    /// # Errors
    /// A fault stops this replica.
    fn make_durable(&mut self) -> Result<(), ApplyFault> {
        Ok(())
    }

    /// Whether some commands have effects in memory only, although the machine keeps itself on
    /// disk: leases of sessions, caches. After a restart those that the log still holds at or
    /// below [`StateMachine::applied`] are given to [`StateMachine::replay`]. A machine that
    /// needs them holds the log by reporting a smaller [`StateMachine::durable_index`].
    fn is_partly_volatile(&self) -> bool {
        false
    }

    /// Whether this command has effects in memory only. Asked when
    /// [`StateMachine::is_partly_volatile`].
    fn is_volatile(&self, command: &Bytes) -> bool {
        let _ = command;
        false
    }

    /// Does again what a volatile command does, after a restart. Nothing waits for the answers,
    /// and the applied position stays where it is.
    ///
    /// # Errors
    /// A fault keeps the replica from opening.
    fn replay(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        let _ = batch;
        Ok(())
    }

    /// Whether [`StateMachine::query`] answers this request in microseconds, whatever the state is,
    /// and never blocks. A reader under a lease then runs it on its own thread, which usually
    /// serves the network of the whole host: a request that can take long must return `false`.
    fn answers_at_once(&self, request: &Bytes) -> bool {
        let _ = request;
        false
    }

    /// The answer, if the state that it takes is at hand: `None` where it may have to be read from
    /// a disk, which may hang. Called as [`StateMachine::answers_at_once`] is; the question then
    /// goes to the threads of state machines. A machine that may read a disk has an answer of its
    /// own here.
    fn answer_at_once(&self, request: &Bytes) -> Option<Result<Bytes, QueryError>> {
        self.answers_at_once(request).then(|| self.query(request))
    }

    /// The replica was removed from its group, or destroyed by hand, and its log is gone: the state
    /// may go as well. Nothing is called afterwards, and the next replica of the group is not
    /// created before this returns. It is called of a machine that failed, too.
    ///
    /// # Errors
    /// Why the state remains: the caller of the destruction gets it, and may repeat it. Then this
    /// is called again.
    fn removed(&mut self) -> Result<(), ApplyFault> {
        Ok(())
    }

    /// Number of items and a checksum over the whole state, equal on replicas that applied the
    /// same. Slow; used to compare replicas. A machine that reads a disk shows with `progress` that
    /// it gets on, with every item or so: otherwise the call counts as one that hangs after
    /// [`machine_limit`](crate::GroupsConfig::machine_limit).
    ///
    /// # Errors
    /// [`QueryError`] goes to the caller; the group continues.
    fn checksum(&self, progress: &Progress) -> Result<StateChecksum, QueryError> {
        let _ = progress;
        Err(QueryError::Unsupported)
    }

    /// A stable view of the state as of the last applied batch, whose bytes are equal on replicas
    /// that applied the same commands, however they were batched, whether they were restored from a
    /// snapshot, and whatever the applied position is. Must be quick: the bytes are written
    /// elsewhere, slowly, and only a checksum of them is kept. A replica whose bytes differ from
    /// those of a majority is stopped. `None`: this machine is not compared.
    ///
    /// # Errors
    /// A fault is reported; the replica is not compared this time, and continues.
    fn consistency_view(&mut self) -> Result<Option<ConsistencyView>, ApplyFault> {
        Ok(None)
    }
}

impl<M: StateMachine + ?Sized> StateMachine for Box<M> {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        (**self).applied()
    }
    fn begin(&mut self) -> Result<(), ApplyFault> {
        (**self).begin()
    }
    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        (**self).apply(batch)
    }
    fn query(&self, request: &Bytes) -> Result<Bytes, QueryError> {
        (**self).query(request)
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        (**self).snapshot()
    }
    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        (**self).restore(at, source)
    }
    fn durable_index(&self) -> Option<LogIndex> {
        (**self).durable_index()
    }
    fn make_durable(&mut self) -> Result<(), ApplyFault> {
        (**self).make_durable()
    }
    fn is_partly_volatile(&self) -> bool {
        (**self).is_partly_volatile()
    }
    fn is_volatile(&self, command: &Bytes) -> bool {
        (**self).is_volatile(command)
    }
    fn replay(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        (**self).replay(batch)
    }
    fn answers_at_once(&self, request: &Bytes) -> bool {
        (**self).answers_at_once(request)
    }
    fn answer_at_once(&self, request: &Bytes) -> Option<Result<Bytes, QueryError>> {
        (**self).answer_at_once(request)
    }
    fn removed(&mut self) -> Result<(), ApplyFault> {
        (**self).removed()
    }
    fn checksum(&self, progress: &Progress) -> Result<StateChecksum, QueryError> {
        (**self).checksum(progress)
    }
    fn consistency_view(&mut self) -> Result<Option<ConsistencyView>, ApplyFault> {
        (**self).consistency_view()
    }
}

/// How a call that takes long shows that it gets on. Cheap enough for every record.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// The call got on.
    pub fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often one did, since the replica was opened.
    pub(crate) fn steps(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What replicas are compared by.
pub struct ConsistencyView {
    /// Names how the bytes are made. Another number where a version makes other bytes of the same
    /// state: replicas with different formats are not compared.
    pub format: u32,
    pub writer: Box<dyn SnapshotWriter>,
}

impl fmt::Debug for ConsistencyView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "view in format {}", self.format)
    }
}

/// What [`StateMachine::checksum`] answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateChecksum {
    /// Items in the state, as the machine counts them.
    pub items: u64,
    /// Checksum over all of them.
    pub checksum: u64,
}

/// A stable view of a state machine, being written out.
pub trait SnapshotWriter: Send {
    /// Writes the whole view. Runs on a separate thread while the machine continues.
    ///
    /// # Errors
    /// Reported and tried again later; the group continues.
    fn write_to(self: Box<Self>, sink: &mut dyn Write) -> io::Result<()>;
}

/// One committed command.
pub struct Command {
    pub(crate) position: LogPosition,
    pub(crate) data: Bytes,
    pub(crate) response: Bytes,
    pub(crate) completion: Option<Handed>,
}

impl Command {
    /// A command without a caller, for tests of a state machine.
    #[must_use]
    pub fn new(position: LogPosition, data: impl Into<Bytes>) -> Self {
        Self { position, data: data.into(), response: Bytes::new(), completion: None }
    }
    /// Its place in the log.
    #[must_use]
    pub const fn position(&self) -> LogPosition {
        self.position
    }
    /// What was proposed.
    #[must_use]
    pub const fn data(&self) -> &Bytes {
        &self.data
    }
    /// Sets the answer for the caller of the proposal. Empty unless set.
    pub fn respond(&mut self, response: impl Into<Bytes>) {
        self.response = response.into();
    }
    /// The answer that was set.
    #[must_use]
    pub const fn response(&self) -> &Bytes {
        &self.response
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command {} of {} bytes", self.position, self.data.len())
    }
}

/// Commands of one group, contiguous but for entries that are none of the machine's business.
/// May be empty: then only [`ApplyBatch::last`] moves.
#[derive(Debug)]
pub struct ApplyBatch<'a> {
    group: GroupId,
    last: LogPosition,
    commands: &'a mut [Command],
}

impl<'a> ApplyBatch<'a> {
    /// A batch from its parts, for tests of a state machine.
    #[must_use]
    pub const fn new(group: GroupId, last: LogPosition, commands: &'a mut [Command]) -> Self {
        Self { group, last, commands }
    }
    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.group
    }
    /// The position of the machine after this batch. At or behind the last command: a machine that
    /// keeps its position must keep this one.
    #[must_use]
    pub const fn last(&self) -> LogPosition {
        self.last
    }
    /// Ends this batch after its first `count` commands, at least one: all of them at once would
    /// take too much memory, for what they read or answer. The others come again, with the next
    /// call of [`StateMachine::apply`]. To be called before [`ApplyBatch::last`] is used, which
    /// moves. A machine must do with each command what it would do without a cut.
    pub fn cut(&mut self, count: usize) {
        let count = count.max(1);
        if count < self.commands.len() {
            let (kept, _) = std::mem::take(&mut self.commands).split_at_mut(count);
            self.last = kept[count - 1].position;
            self.commands = kept;
        }
    }
    /// The commands, in order.
    pub fn commands(&mut self) -> slice::IterMut<'_, Command> {
        self.commands.iter_mut()
    }
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.commands.len()
    }
    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

/// Applies commands in as many batches as the machine cuts them to.
///
/// # Errors
/// The fault of the machine. What came before is applied.
pub fn apply_all(
    machine: &mut (impl StateMachine + ?Sized),
    group: GroupId,
    last: LogPosition,
    commands: &mut [Command],
) -> Result<(), ApplyFault> {
    let mut rest = commands;
    loop {
        let mut batch = ApplyBatch::new(group, last, rest);
        machine.apply(&mut batch)?;
        let applied = batch.len();
        if applied == rest.len() {
            return Ok(());
        }
        rest = &mut rest[applied..];
    }
}

/// What can be done about a fault of a state machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// Nothing: the replica stops, its data is kept.
    #[default]
    Broken,
    /// The cause is temporary, as a full disk is: nothing was changed (a restore may stop
    /// anywhere), and the same call is repeated until it works. Meanwhile the replica gives its
    /// leadership away.
    Passing,
    /// What the machine keeps on this host is damaged: the replica stops, and another one with the
    /// state of its peers may take its place.
    Damaged,
}

/// A state machine cannot continue. Concerns this group's replica on this host, and nothing else;
/// its kind decides what follows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state machine failed: {message}")]
pub struct ApplyFault {
    pub message: String,
    /// What can be done about it.
    pub kind: FaultKind,
}

impl ApplyFault {
    /// A fault with its reason, which stops the replica.
    #[must_use]
    pub fn new(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), kind: FaultKind::Broken }
    }

    /// A temporary fault. The machine must be as it was before the call, unless that was
    /// [`StateMachine::restore`]: the same call comes again, in a second at most.
    #[must_use]
    pub fn passing(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), kind: FaultKind::Passing }
    }

    /// One that shows that what the machine keeps is damaged.
    #[must_use]
    pub fn damaged(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), kind: FaultKind::Damaged }
    }
}

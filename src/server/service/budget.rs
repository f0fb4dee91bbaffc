//! What all clients of a host may hold of its memory together.
//!
//! Half is for reads: a read takes the most that its answer may be before it begins, and gives back what
//! the answer does not need. Half is for writes: batches of requests from before they are read, then their
//! commands, and answers that are long. Either is held until the connection has taken the answer, and
//! given back when the client goes away. A client that takes nothing for [`STALL_TIMEOUT`] while others
//! wait, for memory or for a stream, loses its connection; one whose batch is not whole by then, its stream.
//!
//! How many streams clients have, and which part of this the batches of one connection have, is in
//! `stream_places.rs`.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, ptr};

use parking_lot::Mutex;
use shardhost_storage::GroupId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::known_bugs::{KnownBug, KnownBugs};
use super::reads::{Granted, Places, Waits};
use super::requests::Requests;
use super::stream_places::StreamPlaces;
use super::{REQUEST_OVERHEAD_BYTES, SHORT_ANSWER_BYTES, STALL_TIMEOUT};
use shardhost_proto::limits::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS};

/// Bytes of all clients together, unless the configuration says otherwise.
pub const DEFAULT_CLIENT_BYTES: usize = 512 * 1024 * 1024;
/// With less, a single batch would not fit.
pub const MIN_CLIENT_BYTES: usize =
    4 * (MAX_BATCH_BYTES + MAX_BATCH_REQUESTS * REQUEST_OVERHEAD_BYTES);
/// The batches of one connection that are on their way have one part in so many of the half for writes.
const CONNECTION_PART: usize = 4;
/// The reads of a group may hold one part in so many: a group that hangs keeps no other from its reads.
const GROUP_PART: u32 = 4;
/// A request that waits longer than this for memory waits for a client that does not take its
/// answers.
const SHORT_WAIT: Duration = Duration::from_millis(50);

/// The memory that the clients of a host share.
pub struct ClientBudget {
    reads: Places<Box<dyn HostRead>>,
    writes: Arc<Semaphore>,
    pub(super) streams: Arc<StreamPlaces>,
    waits: Mutex<LongWaits>,
    half: u32,
    requests: Requests,
    pub(super) bugs: KnownBugs,
}

/// A read that waits for the bytes that its answer may have.
pub(super) trait HostRead: Send + Sync {
    /// Its client is gone.
    fn is_given_up(&self) -> bool;

    /// It has them.
    fn begin(self: Box<Self>, bytes: HeldBytes);

    /// Other reads of its group have all that the group may have, for too long.
    fn refuse(self: Box<Self>);
}

impl Waits for Box<dyn HostRead> {
    fn is_given_up(&self) -> bool {
        (**self).is_given_up()
    }
}

/// Bytes that a read of a group holds, free again when this is dropped.
pub(super) struct HeldBytes {
    budget: Arc<ClientBudget>,
    group: GroupId,
    bytes: u32,
}

impl HeldBytes {
    /// Gives back what is above `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let bytes = match self.budget.bugs.has(KnownBug::ReadChargedWhileItRuns) {
            true => 0,
            false => bytes,
        };
        let rest = self.bytes.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.bytes -= rest;
        self.budget.give_back(self.group, rest);
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.budget.give_back(self.group, self.bytes);
    }
}

impl fmt::Debug for ClientBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBudget").field("used", &self.used_bytes()).finish_non_exhaustive()
    }
}

impl ClientBudget {
    /// `bytes` for all clients together, at least [`MIN_CLIENT_BYTES`].
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self::with_bugs(bytes, KnownBugs::default()))
    }

    pub(super) fn with_bugs(bytes: usize, bugs: KnownBugs) -> Self {
        let half = u32::try_from(bytes.max(MIN_CLIENT_BYTES) / 2).unwrap_or(u32::MAX / 2);
        let writes = Arc::new(Semaphore::new(half as usize));
        let batches = half as usize / CONNECTION_PART;
        let streams = Arc::new(StreamPlaces::new(batches, bugs));
        let reads = Places::new(half as usize, half / GROUP_PART);
        Self {
            reads,
            writes,
            streams,
            waits: Mutex::default(),
            half,
            requests: Requests::default(),
            bugs,
        }
    }

    /// What became of the requests of all clients.
    #[must_use]
    pub const fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Bytes that there are for all clients.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        2 * self.half as usize
    }

    /// Streams of clients that are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.open()
    }

    /// Bytes that are in use.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        let free = self.reads.free() + self.writes.available_permits();
        2 * self.half as usize - free
    }

    /// Waits until there are `bytes` for the commands of a batch.
    pub(super) async fn commands(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.half);
        // The semaphore is never closed.
        self.noting_waits(Arc::clone(&self.writes).acquire_many_owned(bytes)).await.ok()
    }

    /// More for the commands of a batch than was reserved for it, if that is free: a holder of a
    /// part must not wait for the rest.
    pub(super) fn more_commands(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.writes).try_acquire_many_owned(bytes).ok()
    }

    /// Remembers it if this takes long.
    async fn noting_waits<T>(&self, taking: impl Future<Output = T>) -> T {
        let mut taking = pin!(taking);
        if let Ok(taken) = timeout(SHORT_WAIT, &mut taking).await {
            return taken;
        }
        let _waits = Waiting::begin(&self.waits);
        taking.await
    }

    fn note_wait(&self) {
        self.waits.lock().last = Some(Instant::now());
    }

    /// What a write answered, if there is room for it now: it is there already, and cannot wait.
    pub(super) fn answer(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, NoRoom> {
        if bytes <= SHORT_ANSWER_BYTES || self.bugs.has(KnownBug::WriteAnswersUncharged) {
            // Counted with its command.
            return Ok(None);
        }
        let bytes = u32::try_from(bytes).map_err(|_| NoRoom)?;
        let permit = Arc::clone(&self.writes).try_acquire_many_owned(bytes);
        permit.map(Some).map_err(|_| {
            self.note_wait();
            NoRoom
        })
    }

    /// Begins a read of a group when there are `bytes` for its answer.
    pub(super) fn read(self: &Arc<Self>, group: GroupId, bytes: usize, read: Box<dyn HostRead>) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.half / GROUP_PART);
        self.reads.enter(group, bytes, read);
        self.begin_reads();
    }

    /// Begins what has its bytes, one after the other: a read that ends at once, or is given up, gives back what
    /// others wait for, and that is seen here, not by a call within a call.
    fn begin_reads(self: &Arc<Self>) {
        let Some(_begins) = Begins::enter(self) else { return };
        while let Some(Granted { item: read, group, weight: bytes, waited }) = self.reads.next() {
            if waited >= SHORT_WAIT {
                self.note_wait();
            }
            read.begin(HeldBytes { budget: Arc::clone(self), group, bytes });
        }
    }

    fn give_back(self: &Arc<Self>, group: GroupId, bytes: u32) {
        if bytes > 0 && self.reads.give_back(group, bytes) {
            self.begin_reads();
        }
    }

    /// Whether reads wait for memory.
    pub(super) fn has_waiting_reads(&self) -> bool {
        self.reads.has_waiting()
    }

    /// Refuses the reads whose groups have too much of the memory for too long.
    pub(super) fn refuse_late_reads(self: &Arc<Self>) {
        for late in self.reads.take_late() {
            self.note_wait();
            late.refuse();
        }
        // What was behind them may have room now.
        self.begin_reads();
    }

    /// Lets go of the reads of clients that are gone.
    pub(super) fn drop_given_up_reads(self: &Arc<Self>) {
        if !self.reads.has_waiting() {
            return;
        }
        {
            let _begins = Begins::enter(self);
            self.reads.drop_given_up();
        }
        // What was in the way of others may be gone.
        self.begin_reads();
    }

    /// Bytes that are free for writes.
    #[cfg(test)]
    pub(super) fn free_for_writes(&self) -> usize {
        self.writes.available_permits()
    }

    /// Whether others wait, or did not long ago, for what clients hold.
    pub(super) fn is_scarce(&self) -> bool {
        if self.reads.is_stuck(SHORT_WAIT) {
            return true;
        }
        let waits = self.waits.lock();
        waits.now > 0 || waits.last.is_some_and(|waited| waited.elapsed() < STALL_TIMEOUT)
    }
}

thread_local! {
    /// The budget whose reads this thread begins.
    static BEGINS: Cell<*const ClientBudget> = const { Cell::new(ptr::null()) };
}

/// This thread begins reads of a budget, until this is dropped.
struct Begins {
    before: *const ClientBudget,
}

impl Begins {
    /// `None`: it does so already.
    fn enter(budget: &Arc<ClientBudget>) -> Option<Self> {
        let budget = Arc::as_ptr(budget);
        let before = BEGINS.replace(budget);
        (before != budget).then_some(Self { before })
    }
}

impl Drop for Begins {
    fn drop(&mut self) {
        BEGINS.set(self.before);
    }
}

#[derive(Debug, Default)]
struct LongWaits {
    now: usize,
    /// When one of them last progressed or ended, or a client was last refused.
    last: Option<Instant>,
}

/// One who waits, until it is dropped.
struct Waiting<'a>(&'a Mutex<LongWaits>);

impl<'a> Waiting<'a> {
    fn begin(waits: &'a Mutex<LongWaits>) -> Self {
        waits.lock().now += 1;
        Self(waits)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waits = self.0.lock();
        waits.now -= 1;
        waits.last = Some(Instant::now());
    }
}

/// Clients hold all the memory that they may.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoRoom;

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::advance;

    use super::*;

    #[tokio::test]
    async fn memory_is_scarce_as_long_as_somebody_waits() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        tokio::time::pause();
        let all = budget.commands(usize::MAX).await;
        let waits = {
            let budget = Arc::clone(&budget);
            tokio::spawn(async move { budget.commands(1).await })
        };
        tokio::time::sleep(STALL_TIMEOUT * 10).await;
        assert!(budget.is_scarce(), "it waits for long");
        drop(all);
        drop(waits.await.unwrap());
        assert!(budget.is_scarce(), "it waited a moment ago");
        tokio::time::sleep(STALL_TIMEOUT * 2).await;
        assert!(!budget.is_scarce());
        // One who goes away does not wait any more.
        let all = budget.commands(usize::MAX).await;
        assert!(timeout(STALL_TIMEOUT, budget.commands(1)).await.is_err());
        drop(all);
        tokio::time::sleep(STALL_TIMEOUT * 2).await;
        assert!(!budget.is_scarce());
    }

    /// Hands on what it is given.
    struct Taker(oneshot::Sender<HeldBytes>);

    impl HostRead for Taker {
        fn is_given_up(&self) -> bool {
            self.0.is_closed()
        }

        fn begin(self: Box<Self>, bytes: HeldBytes) {
            drop(self.0.send(bytes));
        }

        fn refuse(self: Box<Self>) {}
    }

    /// Begins a read of a group; it is given up when the answer is dropped.
    fn begin(budget: &Arc<ClientBudget>, group: u64, bytes: usize) -> oneshot::Receiver<HeldBytes> {
        let (taker, taken) = oneshot::channel();
        budget.read(GroupId::new(group), bytes, Box::new(Taker(taker)));
        taken
    }

    async fn held(budget: &Arc<ClientBudget>, bytes: usize) -> HeldBytes {
        begin(budget, 1, bytes).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_waits_for_memory_makes_it_scarce_until_it_is_refused_or_gone() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let all = held(&budget, usize::MAX).await;
        let waits = begin(&budget, 1, 1);
        assert!(!budget.is_scarce(), "it waits for a moment only");
        advance(SHORT_WAIT).await;
        assert!(budget.is_scarce());
        advance(STALL_TIMEOUT).await;
        budget.refuse_late_reads();
        assert!(waits.await.is_err(), "its group has had all for too long");
        assert!(budget.is_scarce(), "it waited a moment ago");
        advance(STALL_TIMEOUT).await;
        assert!(!budget.is_scarce() && !budget.has_waiting_reads());
        drop(begin(&budget, 1, 1));
        budget.drop_given_up_reads();
        assert!(!budget.has_waiting_reads(), "one who goes away does not wait any more");
        drop(all);
        assert_eq!(budget.used_bytes(), 0);
    }

    /// A large one waits, and a small one behind it that would have room.
    #[tokio::test(start_paused = true)]
    async fn what_is_behind_a_late_read_begins_when_that_is_refused() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let share = (budget.half / GROUP_PART) as usize;
        let most = held(&budget, share - 4_096).await;
        let large = begin(&budget, 1, share / 2);
        advance(STALL_TIMEOUT / 20).await;
        let small = begin(&budget, 1, 4_096);
        advance(STALL_TIMEOUT / 20).await;
        budget.refuse_late_reads();
        assert!(large.await.is_err(), "it has waited too long");
        drop(small.await.expect("it has room, and waits for nothing"));
        drop(most);
        assert_eq!(budget.used_bytes(), 0);
    }

    /// Ends as soon as it begins.
    struct Short;

    impl HostRead for Short {
        fn is_given_up(&self) -> bool {
            false
        }

        fn begin(self: Box<Self>, _: HeldBytes) {}

        fn refuse(self: Box<Self>) {}
    }

    #[tokio::test]
    async fn however_many_reads_end_at_once_they_take_no_stack() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let all = held(&budget, usize::MAX).await;
        (0..200_000).for_each(|_| budget.read(GroupId::new(1), usize::MAX, Box::new(Short)));
        assert!(budget.has_waiting_reads());
        drop(all);
        assert!(!budget.has_waiting_reads());
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn what_is_held_is_counted_until_it_is_dropped() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let commands = budget.commands(1_000).await;
        let answer = budget.answer(2_000).unwrap();
        let mut read = held(&budget, 5_000).await;
        assert_eq!(budget.used_bytes(), 8_000);
        read.shrink_to(500);
        assert_eq!(budget.used_bytes(), 3_500);
        drop((commands, answer, read));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_finds_no_room_is_refused_and_a_short_one_is_not() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let all = budget.commands(usize::MAX).await;
        assert!(!budget.is_scarce(), "nobody waited yet");
        assert!(budget.answer(SHORT_ANSWER_BYTES + 1).is_err());
        assert!(budget.answer(SHORT_ANSWER_BYTES).is_ok());
        assert!(budget.is_scarce());
        drop(all);
        assert!(budget.answer(SHORT_ANSWER_BYTES + 1).is_ok());
    }
}

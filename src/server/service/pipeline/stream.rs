//! What the reader, the writer and everything in flight of one stream share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_groups::{Group, ProposeOutcome, ReadError};
use shardhost_proto::shard_map::ShardMap;
use shardhost_security::Caller;
use shardhost_security::caller::Need;
use shardhost_storage::GroupId;
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::arrival::Arrival;
use super::reads::{Asked, ReadPlaces};
use super::{Plan, Planned, Protocol};
use crate::service::budget::ClientBudget;
use crate::service::in_flight::InFlight;
use crate::service::known_bugs::KnownBug;
use crate::service::reads::Places;
use crate::service::requests::Origin;
use crate::service::stream_places::StreamPlace;
use crate::service::{
    GroupLookup, MAX_GROUP_READ_WEIGHT, MAX_IN_FLIGHT_BYTES, MAX_IN_FLIGHT_REQUESTS,
    MAX_READ_WEIGHT, STALL_TIMEOUT,
};

/// What has completed is sent so many at a time.
const OUTBOX_PIECE: usize = 1_024;

pub(super) struct Stream {
    pub(super) lookup: Arc<dyn GroupLookup>,
    pub(super) budget: Arc<ClientBudget>,
    /// `None`: the client is gone, and nothing is kept for it.
    outbox: Mutex<Option<Outbox>>,
    pub(super) completed: Notify,
    pub(super) in_flight: InFlight,
    pub(super) reads: Places<Asked>,
    /// Reads wait for their places.
    pub(super) reads_wait: Notify,
    /// Where reads run: places come free on any thread.
    pub(super) runtime: Handle,
    /// The client sends no more.
    ended: AtomicBool,
    /// What is wrong with what it sent.
    fault: Mutex<Option<Status>>,
    /// Cancelled when the client is gone.
    pub(super) gone: CancellationToken,
    handed: Mutex<Handed>,
    /// How the next batch of the client is.
    arrival: Arc<Mutex<Arrival>>,
    /// When the last batch came or the last reply was taken, or the stream began.
    heard: Mutex<Instant>,
    /// Whose stream it is.
    caller: Caller,
    /// Takes what is asked of groups.
    #[cfg(test)]
    pub(super) modelled: Option<Arc<super::simulation::Groups>>,
    _place: StreamPlace,
}

/// Batches of replies that the connection has not taken yet.
#[derive(Debug)]
struct Handed {
    batches: usize,
    /// When it took one last, or there was none.
    taken: Instant,
}

/// A request that has its outcome.
pub(super) struct Completed {
    pub(super) id: u64,
    pub(super) charge: Charge,
    pub(super) outcome: Outcome,
}

/// What is to be said of a request. The words are made when it is said: until then, there may be many.
pub(super) enum Outcome {
    Write(ProposeOutcome),
    /// It took effect, and what it answered is not kept.
    Unanswered,
    Read(Result<Bytes, ReadError>, ReadPlaces),
    /// Reads of its group have all the places that they may have.
    TooManyReads,
    /// It follows from another map of shards than this one.
    WrongMap(Option<Arc<ShardMap>>),
    /// No replica of the group is here, or one of another kind.
    UnknownGroup(GroupId),
    /// It makes no sense, for this reason.
    Invalid(String),
}

/// What has completed, in pieces: one that is taken leaves no room behind.
#[derive(Default)]
struct Outbox(VecDeque<Vec<Completed>>);

impl Outbox {
    fn push(&mut self, one: Completed) {
        match self.0.back_mut() {
            Some(piece) if piece.len() < OUTBOX_PIECE => piece.push(one),
            _ => self.0.push_back(vec![one]),
        }
    }
}

/// What a request holds until its reply is taken.
#[derive(Debug, Default)]
pub(super) struct Charge {
    /// Bytes that count for its stream.
    pub(super) bytes: usize,
    /// Of the host's budget for writes.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Of which request; `None`: of several.
    pub(super) origin: Option<Origin>,
}

impl Charge {
    pub(super) fn absorb(&mut self, other: Self) {
        self.bytes += other.bytes;
        if let Some(permit) = other.permit {
            self.hold(permit);
        }
    }

    /// Holds a permit of the host's budget for writes, too.
    fn hold(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
    }
}

impl Stream {
    pub(super) fn new(
        lookup: Arc<dyn GroupLookup>,
        budget: Arc<ClientBudget>,
        place: StreamPlace,
        arrival: Arc<Mutex<Arrival>>,
        caller: Caller,
    ) -> Self {
        Self {
            lookup,
            budget,
            outbox: Mutex::new(Some(Outbox::default())),
            completed: Notify::new(),
            in_flight: InFlight::new(MAX_IN_FLIGHT_REQUESTS, MAX_IN_FLIGHT_BYTES),
            reads: Places::new(MAX_READ_WEIGHT as usize, MAX_GROUP_READ_WEIGHT),
            reads_wait: Notify::new(),
            runtime: Handle::current(),
            ended: AtomicBool::new(false),
            fault: Mutex::new(None),
            gone: CancellationToken::new(),
            handed: Mutex::new(Handed { batches: 0, taken: Instant::now() }),
            arrival,
            heard: Mutex::new(Instant::now()),
            caller,
            #[cfg(test)]
            modelled: None,
            _place: place,
        }
    }

    /// The same, unless the client may not: then nothing, and it is said why.
    pub(super) fn granted<P: Protocol>(&self, mut planned: Planned) -> Planned {
        let needed = match planned.plan {
            Plan::Write(_) | Plan::WriteUnless { .. } => P::WRITE,
            Plan::Get(..) | Plan::Range(..) => P::READ,
            Plan::Invalid(_) => return planned,
        };
        if let Err(denied) = self.caller.check(Need::User(needed)) {
            planned.plan = Plan::Invalid(denied.to_string());
        }
        planned
    }

    /// A request has its outcome. The answer to a write for which clients have no memory left is
    /// dropped, and the client gets an error.
    pub(super) fn complete(&self, id: u64, mut charge: Charge, mut outcome: Outcome) {
        if let Outcome::Write(Ok(applied)) = &outcome {
            match self.budget.answer(applied.response.len()) {
                Ok(None) => {}
                Ok(Some(permit)) => {
                    self.in_flight.grow(applied.response.len());
                    charge.bytes += applied.response.len();
                    charge.hold(permit);
                }
                Err(_) => outcome = Outcome::Unanswered,
            }
        }
        let mut outbox = self.outbox.lock();
        match &mut *outbox {
            Some(completed) => completed.push(Completed { id, charge, outcome }),
            None => {
                drop(outbox);
                self.in_flight.remove(1, charge.bytes);
                return;
            }
        }
        drop(outbox);
        self.completed.notify_one();
    }

    /// The next of what has completed.
    pub(super) fn take_completed(&self) -> Option<Vec<Completed>> {
        self.outbox.lock().as_mut()?.0.pop_front()
    }

    /// The client sends no more.
    pub(super) fn end(&self, fault: Option<Status>) {
        *self.fault.lock() = fault;
        self.ended.store(true, Ordering::SeqCst);
        self.completed.notify_one();
    }

    pub(super) fn take_fault(&self) -> Option<Status> {
        self.fault.lock().take()
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.load(Ordering::SeqCst) && self.in_flight.is_empty()
    }

    /// The client is gone: lets go of everything that is kept for it. What completes later is dropped,
    /// and reads that wait are given up. Otherwise they would wait for places that what has completed
    /// holds, and keep it.
    pub(super) fn abandon(&self) {
        let kept = self.outbox.lock().take();
        if self.budget.bugs.has(KnownBug::KeepForTheGone) {
            return std::mem::forget(kept);
        }
        self.reads.close();
        // Both halves of a stream notice it.
        if !self.gone.is_cancelled() {
            self.gone.cancel();
            self.budget.drop_given_up_reads();
        }
        for Completed { charge, .. } in kept.into_iter().flat_map(|outbox| outbox.0).flatten() {
            self.in_flight.remove(1, charge.bytes);
        }
    }

    /// A batch of replies waits for the connection.
    pub(super) fn hand_over(&self) {
        let mut handed = self.handed.lock();
        if handed.batches == 0 {
            handed.taken = Instant::now();
        }
        handed.batches += 1;
    }

    /// The connection has taken a batch of `requests` replies, or never will.
    pub(super) fn taken(&self, requests: usize, bytes: usize) {
        let mut handed = self.handed.lock();
        handed.batches -= 1;
        handed.taken = Instant::now();
        drop(handed);
        self.hear();
        self.in_flight.remove(requests, bytes);
        self.completed.notify_one();
    }

    /// The client did something.
    pub(super) fn hear(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// Whether others wait for what this stream holds: memory, or its place.
    fn others_wait(&self) -> bool {
        self.budget.is_scarce() || self.budget.streams.are_lacking()
    }

    /// Why the stream must end for others, if it must: its batch does not become whole while they wait for
    /// memory or a place, or it does nothing while they are refused a place. One whose batch waits for its
    /// turn or for memory holds nothing that others lack, but waits itself.
    pub(super) fn in_the_way(&self) -> Option<Status> {
        let is_late = |since: Instant| since.elapsed() >= STALL_TIMEOUT;
        let arrival = *self.arrival.lock();
        match arrival {
            Arrival::Comes(since)
                if is_late(since)
                    && self.others_wait()
                    && !self.budget.bugs.has(KnownBug::HalfBatchesStay) =>
            {
                Some(Status::resource_exhausted(format!(
                    "a batch was not whole within {STALL_TIMEOUT:?}, and others wait for memory or a stream"
                )))
            }
            Arrival::Nothing
                if self.is_idle()
                    && self.budget.streams.are_lacking()
                    && !self.budget.bugs.has(KnownBug::IdleStay) =>
            {
                Some(Status::unavailable(format!(
                    "the stream did nothing for {STALL_TIMEOUT:?}, and others wait for one; open another \
                     when it is needed"
                )))
            }
            _ => None,
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.heard.lock().elapsed() >= STALL_TIMEOUT
    }

    /// Whether the connection takes none of the replies that wait for it, and others wait.
    pub(super) fn is_stalled(&self) -> bool {
        let handed = self.handed.lock();
        let late = handed.batches > 0 && handed.taken.elapsed() >= STALL_TIMEOUT;
        drop(handed);
        late && self.others_wait() && !self.budget.bugs.has(KnownBug::StalledStay)
    }

    /// The replica that serves a group, if it is of this kind.
    pub(super) fn group<P: Protocol>(&self, id: GroupId) -> Option<Group> {
        self.lookup.group(id).filter(|group| group.kind() == P::KIND)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::service::no_groups::NoGroups;
    use crate::service::{MAX_STREAMS, MIN_CLIENT_BYTES};

    fn stream(budget: &Arc<ClientBudget>) -> (Stream, Arc<Mutex<Arrival>>) {
        let (place, arrival) = (budget.streams.enter(Some(1)).unwrap(), Arc::default());
        let lookup = Arc::new(NoGroups);
        let stream =
            Stream::new(lookup, Arc::clone(budget), place, Arc::clone(&arrival), Caller::Unchecked);
        (stream, arrival)
    }

    /// Takes all places that are left, and asks for one more.
    fn lacking(budget: &Arc<ClientBudget>) -> Vec<StreamPlace> {
        let places: Vec<_> = std::iter::from_fn(|| budget.streams.enter(None).ok()).collect();
        assert!(places.len() < MAX_STREAMS && budget.streams.are_lacking() && !budget.is_scarce());
        places
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_does_not_become_whole_takes_no_place_from_others() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let (stream, arrival) = stream(&budget);
        *arrival.lock() = Arrival::Comes(Instant::now());
        advance(STALL_TIMEOUT).await;
        assert!(stream.in_the_way().is_none(), "it is in nobody's way");
        let _others = lacking(&budget);
        let fault = stream.in_the_way().expect("others are refused");
        assert!(fault.message().contains("not whole"), "{fault}");
        *arrival.lock() = Arrival::Comes(Instant::now());
        assert!(stream.in_the_way().is_none(), "it came a moment ago");
    }

    #[tokio::test(start_paused = true)]
    async fn replies_that_are_not_taken_keep_no_place_from_others() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let (stream, _) = stream(&budget);
        stream.in_flight.add(1);
        stream.hand_over();
        advance(STALL_TIMEOUT).await;
        assert!(!stream.is_stalled(), "it is in nobody's way");
        let _others = lacking(&budget);
        assert!(stream.is_stalled());
        stream.taken(1, 1);
        assert!(!stream.is_stalled());
    }
    /// Memory is with others: the one who waits for it is not the one to end.
    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_batch_waits_is_not_idle() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let (stream, arrival) = stream(&budget);
        *arrival.lock() = Arrival::Waits;
        advance(10 * STALL_TIMEOUT).await;
        let _others = lacking(&budget);
        assert!(stream.in_the_way().is_none(), "it waits");
        *arrival.lock() = Arrival::Nothing;
        let fault = stream.in_the_way().expect("it does nothing");
        assert!(fault.message().contains("did nothing"), "{fault}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_answer_took_long_may_ask_again() {
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        let (stream, _) = stream(&budget);
        stream.in_flight.add(1);
        advance(2 * STALL_TIMEOUT).await;
        stream.hand_over();
        stream.taken(1, 1);
        let others = lacking(&budget);
        assert!(stream.in_the_way().is_none(), "its answer came a moment ago");
        advance(STALL_TIMEOUT).await;
        drop(others);
        let _others = lacking(&budget);
        assert!(stream.in_the_way().is_some(), "it does nothing");
    }
}

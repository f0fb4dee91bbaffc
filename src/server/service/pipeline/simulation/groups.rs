//! What is asked of groups, and what they answer: a model.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use shardhost_groups::{
    Applied, LogIndex, ProposalSink, ProposeError, ReadError, ReadMode, Term, UnknownCause,
};
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{
    Failure, FailureReason, TableBatch, TableReplies, TableReply, TableRequest, Value,
};
use shardhost_proto::grants::Grant;
use shardhost_proto::limits::MAX_BATCH_BYTES;
use shardhost_storage::GroupId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::reader::{Writes, part_of};
use super::super::reads::{GET, RANGE, ReadPlaces};
use super::super::stream::{Charge, Outcome, Stream};
use super::super::{Plan, Planned, Protocol};
use crate::service::budget::{HeldBytes, HostRead};
use crate::service::known_bugs::KnownBug;
use crate::service::requests::Access;
use crate::service::{MAX_GET_ANSWER_BYTES, MAX_RANGE_ANSWER_BYTES, SHORT_ANSWER_BYTES};
use crate::shards::time::Stamps;

/// What a group does not answer within is given up, as real groups do.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
/// The group that hangs, in some seeds.
pub(super) const HUNG: u64 = 4;
/// The request of each of the largest batches: what it is answered is not counted.
pub(super) const UNCOUNTED: u64 = u64::MAX;
/// As many bytes as any answer has.
static ZEROS: [u8; MAX_BATCH_BYTES] = [0; MAX_BATCH_BYTES];

pub(super) fn zeros(count: usize) -> Bytes {
    Bytes::from_static(&ZEROS[..count])
}

/// Tables, with answers that are the bytes that the model gives.
pub(super) struct Modelled;

impl Protocol for Modelled {
    const KIND: &'static str = "modelled";
    const READ: Grant = Grant::TableRead;
    const WRITE: Grant = Grant::TableWrite;
    const UNANSWERED: FailureReason = FailureReason::Overloaded;
    type Batch = TableBatch;
    type Request = TableRequest;
    type Reply = TableReply;
    type Replies = TableReplies;

    fn requests(batch: TableBatch) -> Vec<TableRequest> {
        batch.requests
    }

    fn plan(request: TableRequest, _: &Stamps<'_>) -> Planned {
        let access = match request.operation {
            Some(Operation::Put(_)) => Access::Write,
            _ => Access::Read,
        };
        let plan = match request.operation {
            Some(Operation::Put(put)) => Plan::Write(put.value),
            Some(Operation::Get(get)) => Plan::Get(ReadMode::Lease, get.key),
            Some(Operation::Scan(scan)) => Plan::Range(ReadMode::Lease, scan.from),
            _ => Plan::Invalid("the model has no such operation".to_owned()),
        };
        let group = GroupId::new(request.group);
        Planned { id: request.id, map: 0, group, access, plan }
    }

    fn written(id: u64, applied: &Applied) -> TableReply {
        Self::answered(id, &applied.response)
    }

    fn answered(id: u64, answer: &Bytes) -> TableReply {
        let value = Value { value: Some(answer.clone()) };
        TableReply { id, result: Some(Answer::Value(value)) }
    }

    fn failed(id: u64, failure: Failure) -> TableReply {
        TableReply { id, result: Some(Answer::Failure(failure)) }
    }

    fn failure_of(reply: &TableReply) -> Option<&Failure> {
        match &reply.result {
            Some(Answer::Failure(failure)) => Some(failure),
            _ => None,
        }
    }

    fn replies(replies: Vec<TableReply>) -> TableReplies {
        TableReplies { replies }
    }
}

/// What a group does for a request.
enum Running {
    Write { sink: Writes, bytes: usize },
    Read(Box<Reading>),
}

/// What a group was asked, and when.
struct Asked {
    group: GroupId,
    since: Instant,
    running: Running,
}

impl Asked {
    fn new(group: GroupId, running: Running) -> Self {
        Self { group, since: Instant::now(), running }
    }
}

struct Reading {
    stream: Weak<Stream>,
    gone: CancellationToken,
    id: u64,
    charge: Charge,
    held: HeldBytes,
    group: GroupId,
    most: usize,
    bytes: usize,
}

impl Reading {
    fn give_up(self) {
        let Self { stream, id, charge, held, group, .. } = self;
        let mut places = ReadPlaces::of_host(group, held);
        places.shrink_to(0);
        if let Some(stream) = stream.upgrade() {
            stream.complete(id, charge, Outcome::Read(Err(ReadError::Busy { group }), places));
        }
    }
}

/// The groups of the host, and what they keep for clients.
#[derive(Default)]
pub(in crate::service::pipeline) struct Groups {
    running: Mutex<VecDeque<Asked>>,
    /// Bytes of answers that no client has taken, by request.
    kept: Mutex<HashMap<u64, usize>>,
}

impl Groups {
    /// What the reader does with a batch, but for what a group does.
    pub(in crate::service::pipeline) fn start(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        requests: Vec<Planned>,
        mut permit: Option<OwnedSemaphorePermit>,
    ) {
        for planned in requests {
            let charge = part_of(&mut permit, &planned, std::time::Instant::now());
            stream.in_flight.add(charge.bytes);
            let Planned { id, group, plan, .. } = planned;
            let (most, bytes) = match plan {
                Plan::Write(command) => {
                    let requests = vec![Mutex::new(Some((id, charge)))];
                    let sink = Writes { stream: Arc::clone(stream), requests };
                    let write = Running::Write { sink, bytes: command.len() };
                    self.running.lock().push_back(Asked::new(group, write));
                    continue;
                }
                Plan::Get(_, query) => (GET.bytes, query.len()),
                Plan::Range(_, query) => (RANGE.bytes, query.len()),
                _ => {
                    stream.complete(id, charge, Outcome::Invalid("it makes no sense".to_owned()));
                    continue;
                }
            };
            let groups = Arc::clone(self);
            let (weak, gone) = (Arc::downgrade(stream), stream.gone.clone());
            let asked = Waiting { groups, stream: weak, gone, id, charge, group, most, bytes };
            stream.budget.read(group, most, Box::new(asked));
        }
        if stream.budget.has_waiting_reads() {
            stream.reads_wait.notify_one();
        }
    }

    /// Groups answer some of what they were asked.
    pub(super) fn answer(&self, rng: &mut StdRng, hangs: bool, all: bool) {
        let count = self.running.lock().len();
        for _ in 0..count {
            let Some(asked) = self.running.lock().pop_front() else { return };
            let hangs = hangs && asked.group == GroupId::new(HUNG);
            let given_up = hangs && asked.since.elapsed() >= GIVEN_UP_AFTER;
            if !given_up && (hangs || !(all || rng.random())) {
                self.running.lock().push_back(asked);
                continue;
            }
            let group = asked.group;
            match asked.running {
                Running::Write { sink, .. } if given_up => {
                    let cause = UnknownCause::Timeout;
                    sink.complete(0, Err(ProposeError::Unknown { group, cause }));
                }
                Running::Read(reading) if given_up => reading.give_up(),
                Running::Write { sink, .. } => self.answer_write(rng, &sink),
                Running::Read(reading) => self.answer_read(rng, *reading),
            }
        }
    }

    fn answer_write(&self, rng: &mut StdRng, sink: &Writes) {
        let long = rng.random_bool(0.3);
        let response = if long { rng.random_range(0..1 << 20) } else { 0 };
        let id = sink.requests[0].lock().as_ref().map(|(id, _)| *id);
        let finds_room = sink.stream.budget.free_for_writes() >= response
            || sink.stream.budget.bugs.has(KnownBug::WriteAnswersUncharged);
        if let Some(id) = id
            && id != UNCOUNTED
            && response > SHORT_ANSWER_BYTES
            && finds_room
            && !sink.stream.gone.is_cancelled()
        {
            self.kept.lock().insert(id, response);
        }
        let applied = Applied::new(LogIndex::new(1), Term::new(1), zeros(response));
        sink.complete(0, Ok(applied));
    }

    fn answer_read(&self, rng: &mut StdRng, reading: Reading) {
        let Reading { stream, gone, id, charge, held, group, most, .. } = reading;
        let Some(stream) = stream.upgrade() else { return };
        let range = most == RANGE.bytes;
        let longest = if range { MAX_RANGE_ANSWER_BYTES } else { MAX_GET_ANSWER_BYTES };
        let length = rng.random_range(0..=longest);
        if !gone.is_cancelled() {
            self.kept.lock().insert(id, length);
        }
        let mut places = ReadPlaces::of_host(group, held);
        places.shrink_to(length);
        stream.complete(id, charge, Outcome::Read(Ok(zeros(length)), places));
    }

    /// Bytes that the server has of requests and of answers.
    pub(super) fn bytes(&self) -> usize {
        let of = |running: &Running| match running {
            Running::Write { bytes, .. } => *bytes,
            Running::Read(reading) => reading.bytes,
        };
        let running: usize = self.running.lock().iter().map(|asked| of(&asked.running)).sum();
        running + self.kept.lock().values().sum::<usize>()
    }

    /// No answer to this request is kept for a client any more.
    pub(super) fn forget(&self, id: u64) {
        self.kept.lock().remove(&id);
    }

    /// Reads of clients that are gone end.
    pub(super) fn forget_gone(&self) {
        let ended = |running: &Running| match running {
            Running::Write { .. } => false,
            Running::Read(reading) => reading.gone.is_cancelled(),
        };
        let mut running = self.running.lock();
        let (gone, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *running).into_iter().partition(|asked| ended(&asked.running));
        running.extend(rest);
        // It gives back what others begin with.
        drop(running);
        drop(gone);
    }
}

/// A read that waits for the bytes of its answer.
struct Waiting {
    groups: Arc<Groups>,
    stream: Weak<Stream>,
    gone: CancellationToken,
    id: u64,
    charge: Charge,
    group: GroupId,
    most: usize,
    bytes: usize,
}

impl HostRead for Waiting {
    fn is_given_up(&self) -> bool {
        self.gone.is_cancelled() || self.stream.strong_count() == 0
    }

    fn begin(self: Box<Self>, held: HeldBytes) {
        let Self { groups, stream, gone, id, charge, group, most, bytes } = *self;
        let reading = Reading { stream, gone, id, charge, held, group, most, bytes };
        groups.running.lock().push_back(Asked::new(group, Running::Read(Box::new(reading))));
    }

    fn refuse(self: Box<Self>) {
        if let Some(stream) = self.stream.upgrade() {
            stream.complete(self.id, self.charge, Outcome::TooManyReads);
        }
    }
}

//! One stream of requests and replies, whatever the kind of shard.
//!
//! A reader takes batches and starts what they ask for; a writer sends what has completed. They
//! share an outbox. A request counts as in flight until its reply was handed to the connection,
//! and a reader with too much in flight reads no further: a client that does not read its replies
//! is soon not read either, and memory stays bounded whatever it does.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use shardhost_groups::{Applied, Group, ProposalSink, ProposeOutcome, ReadError, ReadMode};
use shardhost_proto::client::{Failure, FailureReason};
use shardhost_storage::GroupId;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};
use tracing::debug;

use super::clock::SteadyClock;
use super::failure;
use super::in_flight::InFlight;
use super::reads::{ReadPlace, Reads};
use super::{
    GroupLookup, MAX_BATCH_REQUESTS, MAX_IN_FLIGHT_BYTES, MAX_IN_FLIGHT_REQUESTS,
    RANGE_READ_WEIGHT, REQUEST_OVERHEAD_BYTES,
};

/// Batches of replies that wait for the connection.
const REPLY_BATCHES: usize = 4;
/// A batch of replies ends with the reply that reaches this size.
const REPLY_BATCH_BYTES: usize = 256 * 1024;

/// What is different between kinds of shard.
pub trait Protocol: Send + Sync + 'static {
    /// Name of the kind.
    const KIND: &'static str;
    /// What a client sends.
    type Batch: Message + Default + 'static;
    /// One request of it.
    type Request: Send;
    /// The answer to one request.
    type Reply: Message + 'static;
    /// What a client is sent.
    type Replies: Message + 'static;

    /// The requests of a batch.
    fn requests(batch: Self::Batch) -> Vec<Self::Request>;
    /// What is to be done for a request. `now_ms` is the time for commands that carry one.
    fn plan(request: Self::Request, now_ms: u64) -> Planned;
    /// The reply to a write that took effect.
    fn written(id: u64, applied: &Applied) -> Self::Reply;
    /// The reply to a read.
    fn answered(id: u64, answer: &Bytes) -> Self::Reply;
    /// The reply to what failed.
    fn failed(id: u64, failure: Failure) -> Self::Reply;
    /// What is sent.
    fn replies(replies: Vec<Self::Reply>) -> Self::Replies;
}

/// A request, understood.
pub struct Planned {
    pub(super) id: u64,
    /// Fingerprint of the map of shards that the group follows from; 0: an older client.
    pub(super) map: u64,
    pub(super) group: GroupId,
    pub(super) plan: Plan,
}

/// What is to be done for a request.
pub enum Plan {
    /// Propose a command.
    Write(Bytes),
    /// Ask one thing.
    Get(ReadMode, Bytes),
    /// Ask for a range.
    Range(ReadMode, Bytes),
    /// Nothing: it makes no sense.
    Invalid(String),
}

/// A pipelined service of one kind of shard.
pub struct PipelineService<P> {
    lookup: Arc<dyn GroupLookup>,
    protocol: PhantomData<P>,
}

/// The batches of replies of one stream.
pub type ReplyStream<P> = ReceiverStream<Result<<P as Protocol>::Replies, Status>>;

impl<P: Protocol> PipelineService<P> {
    pub(super) fn new(lookup: Arc<dyn GroupLookup>) -> Self {
        Self { lookup, protocol: PhantomData }
    }

    /// Serves one stream.
    pub(super) fn serve(&self, batches: Streaming<P::Batch>) -> Response<ReplyStream<P>> {
        let (replies, receiver) = mpsc::channel(REPLY_BATCHES);
        let stream = Arc::new(Stream {
            lookup: Arc::clone(&self.lookup),
            outbox: Mutex::default(),
            completed: Notify::new(),
            in_flight: InFlight::new(MAX_IN_FLIGHT_REQUESTS, MAX_IN_FLIGHT_BYTES),
            reads: Reads::new(),
            ended: AtomicBool::new(false),
        });
        tokio::spawn(read::<P>(Arc::clone(&stream), batches, replies.clone()));
        tokio::spawn(write::<P>(stream, replies));
        Response::new(ReceiverStream::new(receiver))
    }
}

/// What the reader, the writer and everything in flight share.
struct Stream {
    lookup: Arc<dyn GroupLookup>,
    outbox: Mutex<Vec<Completed>>,
    completed: Notify,
    in_flight: InFlight,
    reads: Arc<Reads>,
    /// The client sends no more.
    ended: AtomicBool,
}

/// A request that has its outcome.
struct Completed {
    id: u64,
    charge: usize,
    outcome: Outcome,
}

enum Outcome {
    Write(ProposeOutcome),
    /// Keeps its place among the reads until it is sent.
    Read(Result<Bytes, ReadError>, ReadPlace),
    Failed(Failure),
}

impl Stream {
    fn complete(&self, id: u64, charge: usize, outcome: Outcome) {
        self.outbox.lock().push(Completed { id, charge, outcome });
        self.completed.notify_one();
    }

    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.completed.notify_one();
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::SeqCst) && self.in_flight.is_empty()
    }

    /// The replica that serves a group, if it is of this kind.
    fn group<P: Protocol>(&self, id: GroupId) -> Result<Group, Failure> {
        match self.lookup.group(id) {
            Some(group) if group.kind() == P::KIND => Ok(group),
            _ => Err(failure::unknown_group(id, P::KIND)),
        }
    }
}

/// Takes batches until the client ends, errs, or no longer takes replies, or the host stops.
async fn read<P: Protocol>(
    stream: Arc<Stream>,
    mut batches: Streaming<P::Batch>,
    replies: mpsc::Sender<Result<P::Replies, Status>>,
) {
    let stopped = stream.lookup.stopped();
    loop {
        let batch = tokio::select! {
            () = replies.closed() => break,
            () = stopped.cancelled() => break,
            batch = async { stream.in_flight.room().await; batches.message().await } => batch,
        };
        let requests = match batch {
            Ok(Some(batch)) => P::requests(batch),
            Ok(None) => break,
            Err(error) => {
                debug!(%error, kind = P::KIND, "a client's stream broke off");
                break;
            }
        };
        if requests.len() > MAX_BATCH_REQUESTS {
            let message = format!(
                "a batch of {} requests; send at most {MAX_BATCH_REQUESTS}",
                requests.len()
            );
            drop(replies.send(Err(Status::invalid_argument(message))).await);
            break;
        }
        start::<P>(&stream, requests);
    }
    stream.end();
}

/// Starts everything a batch asks for. Each request is completed exactly once.
fn start<P: Protocol>(stream: &Arc<Stream>, requests: Vec<P::Request>) {
    let now_ms = CLOCK.now_ms();
    let map = stream.lookup.map();
    // Once for all: the map changes while requests are under way, and each names its own.
    let current = map.as_ref().map_or(0, |map| map.fingerprint());
    let mut submitted = Vec::new();
    let mut writes: HashMap<GroupId, Vec<(u64, Bytes)>> = HashMap::new();
    for request in requests {
        let Planned { id, map: meant, group, plan } = P::plan(request, now_ms);
        let charge = REQUEST_OVERHEAD_BYTES + plan.bytes();
        stream.in_flight.add(charge);
        if meant != 0 && meant != current {
            stream.complete(id, charge, Outcome::Failed(failure::wrong_map(map.as_deref())));
            continue;
        }
        match plan {
            Plan::Write(command) => {
                writes.entry(group).or_default().push((submitted.len() as u64, command));
                submitted.push((id, charge));
            }
            Plan::Get(mode, request) => {
                start_read::<P>(stream, (id, charge), group, (mode, request), 1);
            }
            Plan::Range(mode, request) => {
                start_read::<P>(stream, (id, charge), group, (mode, request), RANGE_READ_WEIGHT);
            }
            Plan::Invalid(message) => {
                let failure = failure::failure(FailureReason::Invalid, message);
                stream.complete(id, charge, Outcome::Failed(failure));
            }
        }
    }
    submit::<P>(stream, submitted, writes);
}

impl Plan {
    fn bytes(&self) -> usize {
        match self {
            Self::Write(data) | Self::Get(_, data) | Self::Range(_, data) => data.len(),
            Self::Invalid(message) => message.len(),
        }
    }
}

/// The time for commands that carry one; one for the process, as its machine has one.
static CLOCK: SteadyClock = SteadyClock::new();

fn submit<P: Protocol>(
    stream: &Arc<Stream>,
    submitted: Vec<(u64, usize)>,
    writes: HashMap<GroupId, Vec<(u64, Bytes)>>,
) {
    if submitted.is_empty() {
        return;
    }
    let sink = Arc::new(Submitted { stream: Arc::clone(stream), requests: submitted });
    let as_sink: Arc<dyn ProposalSink> = Arc::clone(&sink) as _;
    for (group, commands) in writes {
        match stream.group::<P>(group) {
            Ok(group) => group.submit(commands, &as_sink),
            Err(failure) => {
                for (token, _) in commands {
                    sink.finish(token, Outcome::Failed(failure.clone()));
                }
            }
        }
    }
}

/// The writes of one batch, by token.
struct Submitted {
    stream: Arc<Stream>,
    requests: Vec<(u64, usize)>,
}

impl Submitted {
    fn finish(&self, token: u64, outcome: Outcome) {
        if let Some((id, charge)) = self.requests.get(token as usize) {
            self.stream.complete(*id, *charge, outcome);
        }
    }
}

impl ProposalSink for Submitted {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        self.finish(token, Outcome::Write(outcome));
    }
}

fn start_read<P: Protocol>(
    stream: &Arc<Stream>,
    (id, charge): (u64, usize),
    group: GroupId,
    (mode, request): (ReadMode, Bytes),
    weight: u32,
) {
    let stream = Arc::clone(stream);
    let group = match stream.group::<P>(group) {
        Ok(group) => group,
        Err(failure) => return stream.complete(id, charge, Outcome::Failed(failure)),
    };
    tokio::spawn(async move {
        let Some(place) = Arc::clone(&stream.reads).place(group.id(), weight).await else {
            let text = "reads of this group wait for its state machine, and it may have no more";
            let failure = failure::failure(FailureReason::Overloaded, text);
            return stream.complete(id, charge, Outcome::Failed(failure));
        };
        let answer = group.query(mode, request).await;
        stream.complete(id, charge, Outcome::Read(answer, place));
    });
}

/// Sends what has completed until nothing more can complete, or the client is gone.
async fn write<P: Protocol>(
    stream: Arc<Stream>,
    replies: mpsc::Sender<Result<P::Replies, Status>>,
) {
    while !stream.is_over() {
        stream.completed.notified().await;
        // What completes together goes out together.
        yield_now().await;
        let completed = mem::take(&mut *stream.outbox.lock());
        if send_all::<P>(&stream, completed, &replies).await.is_err() {
            return;
        }
    }
}

/// The client no longer takes replies.
struct ClientGone;

async fn send_all<P: Protocol>(
    stream: &Stream,
    completed: Vec<Completed>,
    replies: &mpsc::Sender<Result<P::Replies, Status>>,
) -> Result<(), ClientGone> {
    let mut batch = Batch::<P>::default();
    for one in completed {
        batch.add(one, &*stream.lookup);
        if batch.bytes >= REPLY_BATCH_BYTES {
            mem::take(&mut batch).send(stream, replies).await?;
        }
    }
    batch.send(stream, replies).await
}

/// Replies that go out together, and what they free when they are out.
struct Batch<P: Protocol> {
    replies: Vec<P::Reply>,
    bytes: usize,
    charge: usize,
    places: Vec<ReadPlace>,
}

impl<P: Protocol> Default for Batch<P> {
    fn default() -> Self {
        Self { replies: Vec::new(), bytes: 0, charge: 0, places: Vec::new() }
    }
}

impl<P: Protocol> Batch<P> {
    fn add(&mut self, completed: Completed, lookup: &dyn GroupLookup) {
        let id = completed.id;
        let reply = match completed.outcome {
            Outcome::Write(Ok(applied)) => P::written(id, &applied),
            Outcome::Write(Err(error)) => P::failed(id, failure::of_proposal(&error, lookup)),
            Outcome::Read(answer, place) => {
                self.places.push(place);
                match answer {
                    Ok(answer) => P::answered(id, &answer),
                    Err(error) => P::failed(id, failure::of_read(&error, lookup)),
                }
            }
            Outcome::Failed(failure) => P::failed(id, failure),
        };
        self.bytes += reply.encoded_len();
        self.charge += completed.charge;
        self.replies.push(reply);
    }

    async fn send(
        self,
        stream: &Stream,
        replies: &mpsc::Sender<Result<P::Replies, Status>>,
    ) -> Result<(), ClientGone> {
        if self.replies.is_empty() {
            return Ok(());
        }
        let count = self.replies.len();
        replies.send(Ok(P::replies(self.replies))).await.map_err(|_| ClientGone)?;
        stream.in_flight.remove(count, self.charge);
        Ok(())
    }
}

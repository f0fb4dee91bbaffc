//! Takes batches of requests and starts what they ask for.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_groups::{Group, ProposalSink, ProposeOutcome, ReadMode};
use shardhost_proto::client::FailureReason;
use shardhost_storage::GroupId;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep;
use tonic::{Code, Status};
use tracing::debug;

use super::arrival::{Arrived, Batches};
use super::stream::{Charge, Outcome, Stream};
use super::writer::Sent;
use super::{Plan, Planned, Protocol};
use crate::service::budget::STALL_TIMEOUT;
use crate::service::{
    MAX_BATCH_BYTES, MAX_GET_ANSWER_BYTES, MAX_RANGE_ANSWER_BYTES, RANGE_READ_WEIGHT,
    REQUEST_OVERHEAD_BYTES, failure,
};

/// Takes batches until the client ends, errs, or no longer takes replies, or the host stops.
pub(super) async fn read<P: Protocol>(
    stream: Arc<Stream>,
    batches: Batches,
    replies: mpsc::Sender<Sent<P>>,
) {
    let stopped = stream.lookup.stopped();
    let fault = tokio::select! {
        () = replies.closed() => {
            stream.abandon();
            None
        }
        () = stopped.cancelled() => None,
        () = stream.gone.cancelled() => None,
        fault = until_in_the_way(&stream) => Some(fault),
        fault = read_all::<P>(&stream, batches) => fault,
    };
    stream.end(fault);
}

/// Until the stream must end for others.
async fn until_in_the_way(stream: &Stream) -> Status {
    loop {
        sleep(STALL_TIMEOUT / 4).await;
        if let Some(fault) = stream.in_the_way() {
            return fault;
        }
    }
}

/// Until the client ends, and what is wrong with what it sent.
async fn read_all<P: Protocol>(stream: &Arc<Stream>, mut batches: Batches) -> Option<Status> {
    loop {
        stream.in_flight.room().await;
        let (requests, permit) = match batches.next::<P::Batch>().await {
            Ok(Some(Arrived { batch, permit })) => (P::requests(batch), permit),
            Ok(None) => return None,
            Err(error) => {
                debug!(%error, kind = P::KIND, "a client's stream broke off");
                return Some(explained(error));
            }
        };
        stream.hear();
        let planned: Vec<Planned> = {
            let times = stream.lookup.times();
            let stamps = times.stamps();
            requests.into_iter().map(|request| P::plan(request, &stamps)).collect()
        };
        let bytes = planned.iter().map(charge_of).sum();
        start::<P>(stream, planned, fitted(stream, permit, bytes));
    }
}

/// What a batch needs of what was set aside for it: the rest goes back, and what lacks is taken if it is
/// there.
fn fitted(
    stream: &Stream,
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
) -> Option<OwnedSemaphorePermit> {
    let mut permit = permit?;
    let held = permit.num_permits();
    if held > bytes {
        drop(permit.split(held - bytes));
    } else if let Some(more) = stream.budget.more_commands(bytes - held) {
        permit.merge(more);
    }
    Some(permit)
}

/// Names the limit to a client whose batch is too large.
fn explained(error: Status) -> Status {
    if error.code() != Code::OutOfRange {
        return error;
    }
    let message = error.message();
    Status::out_of_range(format!(
        "a batch of requests may have {MAX_BATCH_BYTES} bytes, encoded; send smaller ones ({message})"
    ))
}

fn charge_of(planned: &Planned) -> usize {
    REQUEST_OVERHEAD_BYTES + planned.plan.bytes()
}

/// Takes a part of what a batch holds.
fn part_of(permit: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Charge {
    let permit = permit.as_mut().and_then(|permit| permit.split(bytes));
    Charge { bytes, permit, places: Vec::new() }
}

/// Starts everything a batch asks for. Each request is completed exactly once.
fn start<P: Protocol>(
    stream: &Arc<Stream>,
    requests: Vec<Planned>,
    mut permit: Option<OwnedSemaphorePermit>,
) {
    let map = stream.lookup.map();
    // Once for all: the map changes while requests are under way, and each names its own.
    let current = map.as_ref().map_or(0, |map| map.fingerprint());
    let mut submitted = Vec::new();
    let mut writes: HashMap<GroupId, Vec<(u64, Bytes)>> = HashMap::new();
    for planned in requests {
        let charge = part_of(&mut permit, charge_of(&planned));
        let Planned { id, map: meant, group, plan } = planned;
        stream.in_flight.add(charge.bytes);
        if meant != 0 && meant != current {
            stream.complete(id, charge, Outcome::Failed(failure::wrong_map(map.as_deref())));
            continue;
        }
        match plan {
            Plan::Write(command) => {
                writes.entry(group).or_default().push((submitted.len() as u64, command));
                submitted.push((id, charge));
            }
            Plan::WriteUnless { command, query } => {
                start_unless::<P>(stream, Asked { id, charge, group }, command, query);
            }
            Plan::Get(mode, request) => {
                start_read::<P>(stream, Asked { id, charge, group }, (mode, request), GET);
            }
            Plan::Range(mode, request) => {
                start_read::<P>(stream, Asked { id, charge, group }, (mode, request), RANGE);
            }
            Plan::Invalid(message) => {
                let failure = failure::failure(FailureReason::Invalid, message);
                stream.complete(id, charge, Outcome::Failed(failure));
            }
        }
    }
    submit::<P>(stream, submitted, writes);
}

fn submit<P: Protocol>(
    stream: &Arc<Stream>,
    submitted: Vec<(u64, Charge)>,
    writes: HashMap<GroupId, Vec<(u64, Bytes)>>,
) {
    if submitted.is_empty() {
        return;
    }
    let requests = submitted.into_iter().map(|request| Mutex::new(Some(request))).collect();
    let sink = Arc::new(Submitted { stream: Arc::clone(stream), requests });
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
    /// `None` once it is completed.
    requests: Vec<Mutex<Option<(u64, Charge)>>>,
}

impl Submitted {
    fn finish(&self, token: u64, outcome: Outcome) {
        let request = self.requests.get(token as usize).and_then(|request| request.lock().take());
        if let Some((id, charge)) = request {
            self.stream.complete(id, charge, outcome);
        }
    }
}

impl ProposalSink for Submitted {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        self.finish(token, Outcome::Write(outcome));
    }
}

/// A request to a group.
struct Asked {
    id: u64,
    charge: Charge,
    group: GroupId,
}

/// What a read costs: its weight in its stream, and the most that its answer may be.
#[derive(Clone, Copy)]
struct Cost {
    weight: u32,
    bytes: usize,
}

const GET: Cost = Cost { weight: 1, bytes: MAX_GET_ANSWER_BYTES };
const RANGE: Cost = Cost { weight: RANGE_READ_WEIGHT, bytes: MAX_RANGE_ANSWER_BYTES };

fn start_read<P: Protocol>(
    stream: &Arc<Stream>,
    asked: Asked,
    (mode, request): (ReadMode, Bytes),
    cost: Cost,
) {
    let Asked { id, mut charge, group } = asked;
    let stream = Arc::clone(stream);
    let group = match stream.group::<P>(group) {
        Ok(group) => group,
        Err(failure) => return stream.complete(id, charge, Outcome::Failed(failure)),
    };
    let gone = stream.gone.clone();
    let read = async move {
        let reads = Arc::clone(&stream.reads);
        let Some(place) = reads.place(group.id(), cost.weight).await else {
            return stream.complete(id, charge, too_many_reads());
        };
        charge.places.push(place);
        let Some(mut held) = stream.budget.read(group.id(), cost.bytes).await else {
            return stream.complete(id, charge, too_many_reads());
        };
        let answer = group.query(mode, request).await;
        held.shrink_to(REQUEST_OVERHEAD_BYTES + answer.as_ref().map_or(0, Bytes::len));
        charge.places.push(held);
        stream.complete(id, charge, Outcome::Read(answer));
    };
    // A client that is gone waits for no answer.
    tokio::spawn(async move { gone.run_until_cancelled(read).await });
}

fn too_many_reads() -> Outcome {
    let text = "reads of this group wait for its state machine, and it may have no more";
    Outcome::Failed(failure::failure(FailureReason::Overloaded, text))
}

/// Proposes a command, unless the shard's leader says that it would change nothing.
fn start_unless<P: Protocol>(stream: &Arc<Stream>, asked: Asked, command: Bytes, query: Bytes) {
    let Asked { id, mut charge, group } = asked;
    let stream = Arc::clone(stream);
    let found = match stream.group::<P>(group) {
        Ok(found) => found,
        Err(failure) => return stream.complete(id, charge, Outcome::Failed(failure)),
    };
    let gone = stream.gone.clone();
    let write = async move {
        let place = Arc::clone(&stream.reads).place(found.id(), GET.weight).await;
        match ask(&found, query, place.is_some()).await {
            Some(answer) => {
                charge.places.extend(place);
                stream.complete(id, charge, Outcome::Read(Ok(answer)));
            }
            None => {
                let writes = HashMap::from([(group, vec![(0, command)])]);
                submit::<P>(&stream, vec![(id, charge)], writes);
            }
        }
    };
    tokio::spawn(async move { gone.run_until_cancelled(write).await });
}

/// What makes a command needless, if anything does.
async fn ask(group: &Group, query: Bytes, may: bool) -> Option<Bytes> {
    if !may {
        return None;
    }
    // The error of the question is reported as that of the command.
    group.query(ReadMode::Lease, query).await.ok().filter(|answer| !answer.is_empty())
}

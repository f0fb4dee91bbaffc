//! Takes batches of requests and starts what they ask for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_groups::{Group, ProposalSink, ProposeOutcome};
use shardhost_storage::GroupId;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::sleep;
use tonic::{Code, Status};
use tracing::debug;

use super::arrival::{Arrived, Batches};
use super::reads::{self, Asked, GET, RANGE, Read, Unless};
use super::stream::{Charge, Outcome, Stream};
use super::writer::Sent;
use super::{Plan, Planned, Protocol};
use crate::service::STALL_TIMEOUT;
use crate::service::requests::Origin;
use crate::service::{MAX_BATCH_BYTES, REQUEST_OVERHEAD_BYTES};

/// Takes batches until the client ends, errs, or no longer takes replies, or the host stops.
pub(super) async fn read<P: Protocol>(
    stream: Arc<Stream>,
    batches: Batches,
    replies: mpsc::Sender<Sent<P>>,
) {
    let stopped = stream.lookup.stopped();
    let fault = tokio::select! {
        // From a seed it is the same run each time.
        biased;
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
            let plan = |request| stream.granted::<P>(P::plan(request, &stamps));
            requests.into_iter().map(plan).collect()
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

pub(super) fn charge_of(planned: &Planned) -> usize {
    REQUEST_OVERHEAD_BYTES + planned.plan.bytes()
}

/// Takes a part of what a batch holds.
pub(super) fn part_of(
    permit: &mut Option<OwnedSemaphorePermit>,
    planned: &Planned,
    came: Instant,
) -> Charge {
    let bytes = charge_of(planned);
    let permit = permit.as_mut().and_then(|permit| permit.split(bytes));
    let origin = Some(Origin { access: planned.access, came });
    Charge { bytes, permit, origin }
}

/// Starts everything a batch asks for. Each request is completed exactly once.
fn start<P: Protocol>(
    stream: &Arc<Stream>,
    requests: Vec<Planned>,
    mut permit: Option<OwnedSemaphorePermit>,
) {
    let map = stream.lookup.map();
    #[cfg(test)]
    if let Some(groups) = &stream.modelled {
        return groups.start(stream, requests, permit);
    }
    // Once for all: the map changes while requests are under way, and each names its own.
    let current = map.as_ref().map_or(0, |map| map.fingerprint());
    let came = Instant::now();
    let mut reads = Vec::new();
    let mut writes: HashMap<GroupId, Vec<Submitted>> = HashMap::new();
    for planned in requests {
        let charge = part_of(&mut permit, &planned, came);
        let Planned { id, map: meant, group: group_id, plan, .. } = planned;
        stream.in_flight.add(charge.bytes);
        if meant != 0 && meant != current {
            stream.complete(id, charge, Outcome::WrongMap(map.clone()));
            continue;
        }
        let read = match plan {
            Plan::Invalid(message) => {
                stream.complete(id, charge, Outcome::Invalid(message));
                continue;
            }
            Plan::Write(command) => {
                writes.entry(group_id).or_default().push((id, charge, command));
                continue;
            }
            Plan::WriteUnless { command, query } => {
                Read::Unless(Box::new(Unless { command, query }))
            }
            Plan::Get(mode, query) => Read::Query(mode, query, &GET),
            Plan::Range(mode, query) => Read::Query(mode, query, &RANGE),
        };
        match stream.group::<P>(group_id) {
            Some(group) => reads.push(Asked { id, charge, group, read }),
            None => stream.complete(id, charge, Outcome::UnknownGroup(group_id)),
        }
    }
    reads::enter(stream, reads);
    for (group_id, writes) in writes {
        match stream.group::<P>(group_id) {
            Some(group) => submit(stream, &group, writes),
            None => refuse(stream, group_id, writes),
        }
    }
}

/// A command of a request.
type Submitted = (u64, Charge, Bytes);

/// Submits commands of one batch to a group.
pub(super) fn submit(stream: &Arc<Stream>, group: &Group, writes: Vec<Submitted>) {
    let mut requests = Vec::with_capacity(writes.len());
    let mut commands = Vec::with_capacity(writes.len());
    for (token, (id, charge, command)) in (0..).zip(writes) {
        requests.push(Mutex::new(Some((id, charge))));
        commands.push((token, command));
    }
    let sink: Arc<dyn ProposalSink> = Arc::new(Writes { stream: Arc::clone(stream), requests });
    group.submit(commands, &sink);
}

/// The group of these commands is not here.
fn refuse(stream: &Stream, group: GroupId, writes: Vec<Submitted>) {
    for (id, charge, _) in writes {
        stream.complete(id, charge, Outcome::UnknownGroup(group));
    }
}

/// The writes of one batch to one group, by token: what one group does not answer holds nothing of others.
pub(super) struct Writes {
    pub(super) stream: Arc<Stream>,
    /// `None` once it is completed.
    pub(super) requests: Vec<Mutex<Option<(u64, Charge)>>>,
}

impl ProposalSink for Writes {
    fn complete(&self, token: u64, outcome: ProposeOutcome) {
        let request = self.requests.get(token as usize).and_then(|request| request.lock().take());
        if let Some((id, charge)) = request {
            self.stream.complete(id, charge, Outcome::Write(outcome));
        }
    }
}

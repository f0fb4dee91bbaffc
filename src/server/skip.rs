//! An operator gets past a command that fails or kills the state machine of every replica of a group.

use std::sync::Arc;

use shardhost_groups::runtime::{MachineFactory, SkipEnd, StoredEntry};
use shardhost_groups::{Group, GroupId, LogIndex, OpenGroupError, Role, Term};
use shardhost_proto::admin as wire;
use tonic::{Code, Status};

use super::refusals::{of_opening, refusal};
use super::replicas::machine_of;
use crate::shards::StateDb;
use shardhost::host::Host;

/// What stands at an index of this host's replica, and how the replica is.
pub(super) async fn look(
    host: &Host,
    state: &Arc<StateDb>,
    request: wire::LookAtEntryRequest,
) -> Result<wire::EntryReply, Status> {
    let (id, index) = (GroupId::new(request.group), LogIndex::new(request.index));
    let (entry, behind) = match host.stored_entry(id, index).await {
        Ok(entry) => (entry, false),
        Err(OpenGroupError::Invalid { .. }) => (None, true),
        Err(error) => return Err(of_opening(&error)),
    };
    let standing = standing(host, state, id).await?;
    let stored = host.stored_group(id).map_err(|error| of_opening(&error))?;
    let current_term = host.stored_term(id).await.map_err(|error| of_opening(&error))?;
    let noted = stored.and_then(|meta| meta.skipping).map(|noted| noted.entry);
    let left_closed = host.parked_replica(id).is_some_and(|parked| parked.left_by_skip);
    let entry_reply = |entry: StoredEntry| wire::EntryReply {
        present: true,
        term: entry.term.get(),
        empty: entry.is_empty,
        command: entry.is_command,
        bytes: entry.bytes,
        checksum: entry.checksum,
        ..wire::EntryReply::default()
    };
    Ok(wire::EntryReply {
        running: standing.running,
        applied: standing.applied.map(LogIndex::get),
        closed: standing.closed,
        behind,
        skipping: noted.map(|entry| entry.index.get()),
        skipping_term: noted.map_or(0, |entry| entry.term.get()),
        current_term: current_term.get(),
        left_closed,
        ..entry.map_or_else(wire::EntryReply::default, entry_reply)
    })
}

struct Standing {
    running: bool,
    closed: bool,
    /// `None`: its state machine cannot say.
    applied: Option<LogIndex>,
}

async fn standing(host: &Host, state: &Arc<StateDb>, id: GroupId) -> Result<Standing, Status> {
    let of = |group: &Group| Standing {
        running: runs(group),
        closed: false,
        applied: Some(group.machine_applied()),
    };
    if let Some(group) = host.group(id) {
        return Ok(of(&group));
    }
    match applied_of_closed(host, state, id).await {
        Ok(applied) => Ok(Standing { running: false, closed: true, applied: Some(applied) }),
        Err(OpenGroupError::Faulted { .. } | OpenGroupError::Invalid { .. }) => {
            Ok(Standing { running: false, closed: true, applied: None })
        }
        // It was opened meanwhile.
        Err(error @ OpenGroupError::AlreadyOpen { .. }) => {
            host.group(id).as_ref().map(of).ok_or_else(|| of_opening(&error))
        }
        Err(error) => Err(of_opening(&error)),
    }
}

/// What the state machine of a closed replica has on its disk. Refused while the replica is opened: there is
/// one machine of a group at a time.
pub(super) async fn applied_of_closed(
    host: &Host,
    state: &Arc<StateDb>,
    id: GroupId,
) -> Result<LogIndex, OpenGroupError> {
    let meta = host.stored_group(id)?.ok_or(OpenGroupError::Unknown { group: id })?;
    let applied = host.applied_of_closed(id, factory(state, id, meta.kind)).await?;
    Ok(applied.unwrap_or_default().index)
}

/// Notes that a command is being skipped. The replica, which must have failed or be parked, is closed
/// afterwards; it is as before where that is refused.
pub(super) async fn begin(
    host: &Host,
    state: &Arc<StateDb>,
    request: wire::BeginSkipRequest,
) -> Result<(), Status> {
    let wire::BeginSkipRequest { group, index, term, bytes, checksum } = request;
    let (id, entry) = (GroupId::new(group), command(index, term, bytes, checksum));
    let (host, state) = (host.clone(), Arc::clone(state));
    whatever_the_caller_does(id, async move {
        if host.group(id).as_ref().is_some_and(runs) {
            return skipped_already(&host, id, entry).await;
        }
        let machine = factory(&state, id, kind_of(&host, id)?);
        close_failed(&host, id).await;
        let begun = host.begin_skip(id, entry, machine).await.map_err(|error| refused(&error));
        restore(&host, &state, id).await;
        begun
    })
    .await
}

/// Replaces an entry by nothing, where that was begun.
pub(super) async fn skip(
    host: &Host,
    state: &Arc<StateDb>,
    request: wire::SkipEntryRequest,
) -> Result<(), Status> {
    let wire::SkipEntryRequest { group, index, term, bytes, checksum, raise_to, older } = request;
    let (id, entry) = (GroupId::new(group), command(index, term, bytes, checksum));
    let (host, state, raise_to) = (host.clone(), Arc::clone(state), Term::new(raise_to));
    whatever_the_caller_does(id, async move {
        if older {
            return enter_term(&host, &state, (id, entry), raise_to).await;
        }
        match host.group(id) {
            Some(group) if runs(&group) => return skipped_already(&host, id, entry).await,
            // One that notes a skip is not open.
            Some(_) => return Err(not_begun(&host, id, entry.index)),
            None => {}
        }
        let machine = factory(&state, id, kind_of(&host, id)?);
        let skipped = host.skip_entry(id, entry, raise_to, machine).await;
        restore(&host, &state, id).await;
        skipped.map_err(|error| refused(&error))
    })
    .await
}

/// A replica that holds an entry of an earlier term there gets no other one of an earlier leader. It is opened
/// with the others.
async fn enter_term(
    host: &Host,
    state: &Arc<StateDb>,
    (id, entry): (GroupId, StoredEntry),
    term: Term,
) -> Result<(), Status> {
    if host.group(id).as_ref().is_some_and(runs) {
        return skipped_already(host, id, entry).await;
    }
    close_failed(host, id).await;
    let entered = host.enter_term(id, term).await;
    if entered.is_err() {
        restore(host, state, id).await;
    }
    entered.map_err(|error| refused(&error))
}

fn not_begun(host: &Host, id: GroupId, index: LogIndex) -> Status {
    let message = format!(
        "no skip of entry {index} was begun on node {}: run `shardhost group skip {id} --index {index} --confirm` \
         again",
        host.node_id()
    );
    refusal(Code::FailedPrecondition, "NOT_BEGUN", message, [])
}

/// Agrees not to skip an entry before that begins anew. The replica stays closed.
pub(super) async fn abandon(
    host: &Host,
    state: &Arc<StateDb>,
    request: wire::AbandonSkipRequest,
) -> Result<(), Status> {
    let (id, index) = (GroupId::new(request.group), LogIndex::new(request.index));
    // One that is open notes no skip.
    if host.group(id).is_some() {
        return Ok(());
    }
    let (host, state) = (host.clone(), Arc::clone(state));
    whatever_the_caller_does(id, async move {
        let abandoned = host.abandon_skip(id, index).await;
        restore(&host, &state, id).await;
        abandoned.map_err(|error| refused(&error))
    })
    .await
}

/// Opens a replica that is parked; one that runs already stays so.
pub(super) async fn open(
    host: &Host,
    state: &Arc<StateDb>,
    request: wire::OpenReplicaRequest,
) -> Result<(), Status> {
    let (id, index) = (GroupId::new(request.group), LogIndex::new(request.index));
    if host.group(id).as_ref().is_some_and(runs) {
        return Ok(());
    }
    let end = if request.abandoned { SkipEnd::Abandoned } else { SkipEnd::Skipped };
    let (host, state) = (host.clone(), Arc::clone(state));
    whatever_the_caller_does(id, async move {
        close_failed(&host, id).await;
        let opened = finish_and_open(&host, &state, (id, index), end).await;
        restore(&host, &state, id).await;
        opened
    })
    .await
}

async fn finish_and_open(
    host: &Host,
    state: &Arc<StateDb>,
    (id, index): (GroupId, LogIndex),
    end: SkipEnd,
) -> Result<(), Status> {
    host.finish_skip(id, index, end).await.map_err(|error| refused(&error))?;
    let opened = host.open_group_with(id, factory(state, id, kind_of(host, id)?)).await;
    opened.map(drop).map_err(|error| of_opening(&error))
}

/// A step is carried out to its end when its caller goes away: what it closed is open again, or noted.
async fn whatever_the_caller_does(
    id: GroupId,
    step: impl Future<Output = Result<(), Status>> + Send + 'static,
) -> Result<(), Status> {
    let step = tokio::spawn(step).await;
    step.map_err(|error| Status::internal(format!("a step of a skip in group {id}: {error}")))?
}

/// Closes a replica that failed, if it is open. It is parked from here on, until a step opens or notes it.
async fn close_failed(host: &Host, id: GroupId) {
    if host.group(id).is_some() {
        host.close_for_skip(id).await;
    }
}

/// Opens a replica that this step, or another one that was refused because of this one, has closed and neither
/// opened nor noted.
async fn restore(host: &Host, state: &Arc<StateDb>, id: GroupId) {
    if !host.is_to_be_reopened(id) {
        return;
    }
    let reopened = match kind_of(host, id) {
        Ok(kind) => host.reopen_group_with(id, factory(state, id, kind)).await.map(drop),
        Err(error) => {
            return tracing::warn!(group = %id, %error, "a replica stays closed after a skip");
        }
    };
    if let Err(error) = reopened {
        // It is parked with the cause, or the step that is under way with it does this.
        tracing::warn!(group = %id, %error, "a replica that was closed for a skip is not opened again");
    }
}

const fn command(index: u64, term: u64, bytes: u64, checksum: u32) -> StoredEntry {
    StoredEntry {
        index: LogIndex::new(index),
        term: Term::new(term),
        is_empty: false,
        is_command: true,
        bytes,
        checksum,
    }
}

/// A replica that runs has nothing to do where its entry is skipped. Whether one before the beginning of its
/// log was skipped or applied, only the logs of the others show.
async fn skipped_already(host: &Host, id: GroupId, entry: StoredEntry) -> Result<(), Status> {
    match host.stored_entry(id, entry.index).await {
        Ok(Some(found)) if found.is_empty && found.term == entry.term => Ok(()),
        Ok(_) | Err(OpenGroupError::Invalid { .. }) => {
            let message = format!(
                "the replica of group {id} on node {node} runs and has not skipped entry {index}: wait until it \
                 fails, or start that node with `--park {id}`; if the command does not fail it, take the skip back \
                 with `shardhost group skip {id} --index {index} --abandon`",
                node = host.node_id(),
                index = entry.index,
            );
            Err(refusal(Code::FailedPrecondition, "REPLICA_RUNS", message, []))
        }
        Err(error) => Err(of_opening(&error)),
    }
}

/// What is refused because of what stands in the log, or in the note of a skip.
fn refused(error: &OpenGroupError) -> Status {
    match error {
        OpenGroupError::Invalid { message, .. } => {
            refusal(Code::FailedPrecondition, "OTHER_ENTRY", message, [])
        }
        error => of_opening(error),
    }
}

fn runs(group: &Group) -> bool {
    !matches!(group.status().role, Role::Failed(_) | Role::Stopped | Role::Removed)
}

/// Makes the state machine of a replica that is closed.
fn factory(state: &Arc<StateDb>, id: GroupId, kind: String) -> MachineFactory {
    let state = Arc::clone(state);
    Box::new(move || machine_of(&state, id, &kind))
}

fn kind_of(host: &Host, id: GroupId) -> Result<String, Status> {
    let meta = host.stored_group(id).map_err(|error| of_opening(&error))?;
    let unknown = || of_opening(&OpenGroupError::Unknown { group: id });
    meta.map(|meta| meta.kind).ok_or_else(unknown)
}

#[cfg(test)]
mod tests;

//! An operator gets past a command that fails or kills the state machine of every replica of a group.

use std::sync::Arc;

use shardhost_groups::runtime::StoredEntry;
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
    let entry = host.stored_entry(id, index).await.map_err(|error| of_opening(&error))?;
    let standing = standing(host, state, id).await?;
    let stored = host.stored_group(id).map_err(|error| of_opening(&error))?;
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
        skipping: stored.and_then(|meta| meta.skipping).map(|entry| entry.index.get()),
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
    let state = Arc::clone(state);
    let machine = move || machine_of(&state, id, &meta.kind);
    let applied = host.applied_of_closed(id, Box::new(machine)).await?;
    Ok(applied.unwrap_or_default().index)
}

/// Replaces an entry by nothing. The replica, which must have failed or be parked, is closed afterwards.
pub(super) async fn skip(
    host: &Host,
    state: &Arc<StateDb>,
    request: wire::SkipEntryRequest,
) -> Result<(), Status> {
    let id = GroupId::new(request.group);
    let entry = StoredEntry {
        index: LogIndex::new(request.index),
        term: Term::new(request.term),
        is_empty: false,
        is_command: true,
        bytes: request.bytes,
        checksum: request.checksum,
    };
    if let Some(group) = host.group(id) {
        if runs(&group) {
            let message = format!(
                "the replica of group {id} on node {} runs: nothing keeps it from its next command",
                host.node_id()
            );
            return Err(refusal(Code::FailedPrecondition, "REPLICA_RUNS", message, []));
        }
        host.close_group(id).await;
    }
    let (state, kind) = (Arc::clone(state), kind_of(host, id)?);
    let machine = move || machine_of(&state, id, &kind);
    let skipped = match request.begin {
        true => host.begin_skip(id, entry, Box::new(machine)).await,
        false => host.skip_entry(id, entry, Box::new(machine)).await,
    };
    skipped.map_err(|error| match error {
        OpenGroupError::Invalid { message, .. } => {
            refusal(Code::FailedPrecondition, "OTHER_ENTRY", message, [])
        }
        error => of_opening(&error),
    })
}

/// Opens a replica that is parked; one that is open already stays so.
pub(super) async fn open(
    host: &Host,
    state: &Arc<StateDb>,
    request: wire::OpenReplicaRequest,
) -> Result<(), Status> {
    let id = GroupId::new(request.group);
    if host.group(id).as_ref().is_some_and(runs) {
        return Ok(());
    }
    host.close_group(id).await;
    host.finish_skip(id).await.map_err(|error| of_opening(&error))?;
    let (state, kind) = (Arc::clone(state), kind_of(host, id)?);
    let machine = move || machine_of(&state, id, &kind);
    let opened = host.open_group_with(id, Box::new(machine)).await;
    opened.map(drop).map_err(|error| of_opening(&error))
}

fn runs(group: &Group) -> bool {
    !matches!(group.status().role, Role::Failed(_) | Role::Stopped | Role::Removed)
}

fn kind_of(host: &Host, id: GroupId) -> Result<String, Status> {
    let meta = host.stored_group(id).map_err(|error| of_opening(&error))?;
    let unknown = || of_opening(&OpenGroupError::Unknown { group: id });
    meta.map(|meta| meta.kind).ok_or_else(unknown)
}

//! The first replicas of the shards of a cluster without a catalog: created by each founder once every
//! founder has said that its disk is new.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use shardhost_groups::runtime::MachineFactory;
use shardhost_groups::{GroupSpec, OpenGroupError};
use shardhost_proto::limits::wait_of;
use shardhost_storage::GroupId;
use tokio::time::{Instant, MissedTickBehavior};

use super::replicas::empty_machine_of;
use super::shard_map::CurrentMap;
use super::{ServerConfig, ServerError, is_shard};
use crate::shards::StateDb;
use shardhost::host::Host;
use shardhost::host::founding::{Founders, Outcome, Scope};
use shardhost::transport::MapTag;

/// Between two tries to create shards.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks whether a replica is there.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Creates the shards that this node founds: at once where that is decided already, or this node
/// founds alone, else in the background.
pub(super) async fn found_shards(
    host: &Host,
    state: &Arc<StateDb>,
    config: &ServerConfig,
    map: &Arc<CurrentMap>,
) -> Result<(), ServerError> {
    let founders = config.shard_founders();
    let wanted = config.group_specs();
    let holds = holds_shards(host, &wanted)?;
    if holds {
        // A directory of an earlier version has no map yet.
        remember(map).await.map_err(ServerError::Founding)?;
    }
    if wanted.is_empty() || !founders.contains(&host.node_id()) {
        return Ok(());
    }
    let (nodes, without) = (founders, config.left_out());
    let shard_map = Some(MapTag::of(&config.shard_map()));
    let founders = Founders { nodes, without, shard_map };
    let founding = host.founding(Scope::Shards);
    if founding.begin(founders, holds).await.map_err(ServerError::Founding)? {
        remember(map).await.map_err(ServerError::Founding)?;
        if let Err(error) = create(host, state, wanted.clone()).await {
            // What is there serves meanwhile.
            tracing::error!(%error, "not all shards are created here; tried again");
            let (host, state) = (host.clone(), Arc::downgrade(state));
            let stopping = host.stopping();
            let create = create_later(host, state, wanted);
            tokio::spawn(async move { stopping.run_until_cancelled(create).await });
        }
        return Ok(());
    }
    if !holds {
        let (host, state) = (host.clone(), Arc::downgrade(state));
        let stopping = host.stopping();
        let found = found_later(host, state, wanted, Arc::clone(map));
        tokio::spawn(async move { stopping.run_until_cancelled(found).await });
    }
    Ok(())
}

/// Whether shards were created here before.
fn holds_shards(host: &Host, wanted: &[GroupSpec]) -> Result<bool, ServerError> {
    if host.stored_groups()?.iter().any(|meta| is_shard(meta.group)) {
        return Ok(true);
    }
    for spec in wanted {
        if host.tombstone(spec.id)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The state is not kept open while it is waited.
async fn found_later(
    host: Host,
    state: Weak<StateDb>,
    wanted: Vec<GroupSpec>,
    map: Arc<CurrentMap>,
) {
    let held = || match holds_shards(&host, &wanted) {
        Ok(held) => held,
        Err(error) => {
            tracing::error!(%error, "it is not known whether shards are here");
            false
        }
    };
    if host.founding(Scope::Shards).await_decision(held).await == Outcome::Held {
        return;
    }
    if let Err(error) = remember(&map).await {
        tracing::error!(%error, "the map of shards cannot be remembered: no shards are created");
        return;
    }
    create_later(host, state, wanted).await;
}

/// Creates shards until all are there.
async fn create_later(host: Host, state: Weak<StateDb>, wanted: Vec<GroupSpec>) {
    let mut tries = tokio::time::interval(RETRY_INTERVAL);
    tries.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut told = None;
    loop {
        tries.tick().await;
        let Some(state) = state.upgrade() else { return };
        match create(&host, &state, wanted.clone()).await {
            Ok(()) => return tracing::info!(count = wanted.len(), "the shards are founded here"),
            Err(error) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::error!(%error, "not all shards are created here; tried again");
                    told = Some(error);
                }
            }
        }
    }
}

/// Makes the map durable before shards follow from it.
async fn remember(map: &Arc<CurrentMap>) -> io::Result<()> {
    let map = Arc::clone(map);
    let remembered = tokio::task::spawn_blocking(move || map.remember_configured()).await;
    remembered.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Creates the shards that this node never held: all with one write, or those that can be, one by
/// one. One that was moved away from here does not come back.
///
/// # Errors
/// Of the first that cannot be created; those before and after it are there.
async fn create(
    host: &Host,
    state: &Arc<StateDb>,
    wanted: Vec<GroupSpec>,
) -> Result<(), OpenGroupError> {
    let mut missing = Vec::new();
    for spec in wanted {
        // One that cannot be read is here.
        let held = !matches!(host.stored_group(spec.id), Ok(None));
        if !held && host.tombstone(spec.id)?.is_none() {
            // The founders said of their disks that they are new.
            missing.push(spec.on_known_disk());
        }
    }
    let fresh = |spec: &GroupSpec| {
        let (state, group, kind) = (Arc::clone(state), spec.id, spec.kind.clone());
        let machine = move || empty_machine_of(&state, group, &kind);
        (spec.clone(), Box::new(machine) as MachineFactory)
    };
    if host.create_groups_with(missing.iter().map(fresh).collect()).await.is_ok() {
        return Ok(());
    }
    let mut outcome = Ok(());
    for (spec, machine) in missing.iter().map(fresh) {
        let created = host.create_group_with(spec, machine).await.map(drop);
        outcome = outcome.and(created);
    }
    outcome
}

/// Waits until this host holds a replica of a group; false: that takes longer.
pub(super) async fn await_replica(host: &Host, group: GroupId, within: Duration) -> bool {
    let deadline = Instant::now() + wait_of(within);
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while host.group(group).is_none() {
        if Instant::now() > deadline {
            return false;
        }
        ticks.tick().await;
    }
    true
}

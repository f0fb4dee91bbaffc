//! This host's replica of the system group: opened when the log holds it; created by an initial
//! member once all initial members have confirmed that their disks are new.

use std::time::Duration;

use shardhost_groups::{GroupSpec, OpenGroupError};
use tokio_util::sync::CancellationToken;

use super::{SYSTEM_GROUP, SYSTEM_KIND, SystemOptions};
use crate::host::Host;
use crate::host::founding::{Founders, Outcome, Scope};
use shardhost_policy::catalog::CatalogMachine;

/// Between two tries of a founder to create its replica.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Opens the replica that the log holds. Without one, a founder creates it when the founders agree:
/// at once where this node founds alone, else in the background until `stop`.
pub(super) async fn open_or_found(
    host: &Host,
    options: &SystemOptions,
    stop: &CancellationToken,
) -> Result<(), OpenGroupError> {
    // One that cannot even be read is held, too.
    let stored = !matches!(host.stored_group(SYSTEM_GROUP), Ok(None));
    let holds = stored || host.tombstone(SYSTEM_GROUP)?.is_some();
    let founder = options.founders.contains(&host.node_id());
    let decided = founder && begin(host, options, holds).await?;
    if stored {
        return match host.open_group(SYSTEM_GROUP, CatalogMachine::default()).await {
            // It is parked; the catalog is followed by asking others.
            Err(_) if host.parked_replica(SYSTEM_GROUP).is_some() => Ok(()),
            opened => opened.map(drop),
        };
    }
    if !founder || holds {
        return Ok(());
    }
    let spec = GroupSpec::new(SYSTEM_GROUP, options.founders.iter().copied()).kind(SYSTEM_KIND);
    // The initial members confirmed that their disks are new.
    let spec = spec.on_known_disk();
    if decided {
        host.create_group(spec, CatalogMachine::default()).await?;
        return Ok(());
    }
    let (host, stop) = (host.clone(), stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(found_later(host, spec)).await });
    Ok(())
}

async fn begin(host: &Host, options: &SystemOptions, holds: bool) -> Result<bool, OpenGroupError> {
    let (nodes, without) = (options.founders.clone(), options.bootstrap_without.clone());
    let founders = Founders { nodes, without, shard_map: None };
    let begun = host.founding(Scope::System).begin(founders, holds).await;
    begun.map_err(|error| OpenGroupError::Invalid {
        group: SYSTEM_GROUP,
        message: format!("the record of the founding cannot be written: {error}"),
    })
}

async fn found_later(host: Host, spec: GroupSpec) {
    let held = || matches!(host.stored_group(SYSTEM_GROUP), Ok(Some(_)));
    if host.founding(Scope::System).await_decision(held).await == Outcome::Held {
        return;
    }
    let mut tries = tokio::time::interval(RETRY_INTERVAL);
    loop {
        tries.tick().await;
        match host.create_group(spec.clone(), CatalogMachine::default()).await {
            Ok(_) => return tracing::info!("the system group is founded here"),
            Err(_) if held() => return,
            Err(error) => {
                tracing::error!(%error, "the replica of the system group is not created yet");
            }
        }
    }
}

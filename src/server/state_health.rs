//! What follows for the host from how the state of its shards is.

use shardhost_groups::worker::Impairment;
use shardhost_groups::{HostFault, RequirementMode};
use tokio::sync::watch;

use crate::host::Host;
use crate::shards::StateHealth;

/// The name under which the host is impaired.
const SOURCE: &str = "state";

/// While the state waits for space the host leads nothing that others can lead; when it failed, the
/// host stops. Until the host stops.
pub(super) async fn follow(host: Host, mut health: watch::Receiver<StateHealth>) {
    let stopping = host.stopping();
    loop {
        match &*health.borrow_and_update() {
            StateHealth::Well => host.impair(SOURCE, None),
            StateHealth::Waits(error) => {
                let reason = format!(
                    "{error}; free space on the disk of the data directory, or files of the process"
                );
                let mode = RequirementMode::Hard;
                host.impair(SOURCE, Some(Impairment { reason: reason.into(), mode }));
            }
            StateHealth::Failed(error) => {
                host.fail(&HostFault::State(error.to_string().into()));
                return;
            }
        }
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = stopping.cancelled() => return,
        }
    }
}

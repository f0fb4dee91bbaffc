//! Leaderships moved until everybody has a fair part, as an operator does it: by
//! `shardhost balance now`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::Instant;

use super::shares::{are_fair, leads};
use crate::cli::observe::Observer;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Moves leaderships until no plan is better and they are spread fairly over the nodes, of which
/// `lacking` may not lead everything. Gives what each node leads.
pub async fn until_fair(
    observer: &Observer,
    addresses: &BTreeMap<u64, String>,
    lacking: Option<u64>,
    within: Duration,
) -> anyhow::Result<BTreeMap<u64, u64>> {
    let deadline = Instant::now() + within;
    let nodes: Vec<u64> = observer.nodes().collect();
    loop {
        let is_balanced = move_leaders(addresses).await?;
        let leaders = observer.await_led(within).await?;
        let leads = leads(&leaders, &nodes);
        if is_balanced && are_fair(&leads, lacking) {
            return Ok(leads);
        }
        if Instant::now() > deadline {
            bail!("leaderships are not spread fairly after {within:?}: {leads:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Does what `shardhost balance now` does. Says whether nothing is left to move: what is refused
/// here and there is tried again.
async fn move_leaders(addresses: &BTreeMap<u64, String>) -> anyhow::Result<bool> {
    let at: Vec<&str> = addresses.values().map(String::as_str).collect();
    let ended = Command::new(std::env::current_exe().context("cannot find this program")?)
        .args(["balance", "now", "--json", "--at", &at.join(",")])
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot balance")?;
    let said: Result<Value, _> = serde_json::from_slice(&ended.stdout);
    if said.is_err() {
        bail!("cannot balance: {}", String::from_utf8_lossy(&ended.stderr));
    }
    Ok(ended.status.success())
}

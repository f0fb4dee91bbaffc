//! Waiting until the cluster has spread its leaderships.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::shares::{are_fair, leads};
use crate::observe::Observer;

const LOOK: Duration = Duration::from_millis(50);

/// Waits until leaderships are spread fairly over the nodes, of which `lacking` may not lead
/// everything. Gives what each node leads.
pub async fn until_fair(
    observer: &Observer,
    lacking: Option<u64>,
    within: Duration,
) -> anyhow::Result<BTreeMap<u64, u64>> {
    let deadline = Instant::now() + within;
    let nodes: Vec<u64> = observer.nodes().collect();
    loop {
        let leaders = observer.await_led(within).await?;
        let leads = leads(&leaders, &nodes);
        if are_fair(&leads, lacking) && nobody_is_left_out(&leads) {
            return Ok(leads);
        }
        if Instant::now() > deadline {
            bail!("leaderships are not spread fairly after {within:?}: {leads:?}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether every node leads something, where there is enough for all.
fn nobody_is_left_out(leads: &BTreeMap<u64, u64>) -> bool {
    let enough = leads.values().sum::<u64>() >= 2 * leads.len() as u64;
    !enough || leads.values().all(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_nothing_is_left_out_unless_there_is_too_little() {
        let left_out = |counts: [u64; 3]| !nobody_is_left_out(&(1..).zip(counts).collect());
        assert!(left_out([3, 3, 0]));
        assert!(!left_out([3, 2, 1]) && !left_out([2, 1, 0]));
    }
}

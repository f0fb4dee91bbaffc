//! Snapshots that are made, sent and received.

use std::fmt::{self, Debug};

use shardhost::transport::TransportStats;
use shardhost_groups::runtime::GroupsStats;

use super::families::Families;

pub(crate) fn write(
    families: &mut Families<'_>,
    groups: &GroupsStats,
    transport: &TransportStats,
) -> fmt::Result {
    families.counter(
        "snapshots_made",
        "Snapshots of state machines that were made here.",
        groups.snapshots_made,
    )?;
    families.counter(
        "snapshots_not_made",
        "Snapshots that could not be made.",
        groups.snapshot_failures,
    )?;
    families.counter("snapshots_sent", "Snapshots that others took.", transport.snapshots_sent)?;
    families.counter(
        "snapshots_resumed",
        "Sendings that did not begin at the first byte.",
        transport.snapshots_resumed,
    )?;
    families.counter("snapshots_received", "Snapshots that came.", transport.snapshots_received)?;
    families.counter(
        "snapshot_sent_bytes",
        "Bytes of snapshots that were sent.",
        transport.snapshot_bytes_sent,
    )?;
    families.counter(
        "snapshot_received_bytes",
        "Bytes of snapshots that came.",
        transport.snapshot_bytes_received,
    )?;
    let failures = named(&transport.shipment_failures);
    let failures = failures.iter().map(|(why, count)| (vec![("reason", why.as_str())], *count));
    families.counters("snapshots_not_sent", "Snapshots that were not delivered.", failures)?;
    let refusals = named(&transport.snapshot_refusals);
    let refusals = refusals.iter().map(|(why, count)| (vec![("reason", why.as_str())], *count));
    families.counters(
        "snapshots_not_received",
        "Snapshots that were refused or broke off.",
        refusals,
    )?;
    families.gauge(
        "snapshots_sending",
        "Snapshots that are being sent.",
        transport.snapshots_sending as u64,
    )?;
    families.gauge(
        "snapshots_waiting",
        "Snapshots that wait to be sent.",
        transport.snapshots_waiting as u64,
    )?;
    families.gauge(
        "snapshots_receiving",
        "Snapshots that are coming.",
        transport.snapshots_receiving as u64,
    )
}

/// Causes in the spelling of labels: `NoSpace` is `no-space`.
fn named<'a, K: Debug + 'a>(
    counts: impl IntoIterator<Item = (&'a K, &'a u64)>,
) -> Vec<(String, u64)> {
    counts.into_iter().map(|(cause, count)| (label(&format!("{cause:?}")), *count)).collect()
}

fn label(name: &str) -> String {
    let mut label = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !label.is_empty() {
            label.push('-');
        }
        label.push(letter.to_ascii_lowercase());
    }
    label
}

#[cfg(test)]
mod tests {
    use shardhost::transport::{ShipmentFailure, SnapshotRefusal};

    use super::*;

    #[test]
    fn causes_are_written_in_lower_case_with_hyphens() {
        assert_eq!(label(&format!("{:?}", SnapshotRefusal::NoSpace)), "no-space");
        assert_eq!(label(&format!("{:?}", ShipmentFailure::Disk)), "disk");
    }
}

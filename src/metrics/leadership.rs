//! What became of leaderships.

use std::fmt;

use shardhost::host::Host;
use shardhost_groups::RejectReason;
use shardhost_groups::policy::{ByReason, PolicyCounters};

use super::families::{Families, Labels};

pub(crate) fn write(
    families: &mut Families<'_>,
    host: &Host,
    counters: &PolicyCounters,
) -> fmt::Result {
    let by_reason = [
        (
            "transfers_failed",
            "Transfers away from here that did not take place.",
            &counters.transfers_failed,
        ),
        (
            "candidates_refused",
            "Nodes that leaders here did not ask to lead.",
            &counters.candidates_refused,
        ),
        (
            "leaderships_refused",
            "Leaderships that replicas here did not take.",
            &counters.leaderships_refused,
        ),
        (
            "campaigns_vetoed",
            "Election timeouts that replicas here let go by, for they should not lead.",
            &counters.campaigns_vetoed,
        ),
        ("pre_votes_refused", "Pre-votes that voters here refused.", &counters.pre_votes_refused),
    ];
    for (name, help, counts) in by_reason {
        families.counters(name, help, reasons(counts))?;
    }
    families.counter(
        "transfers",
        "Transfers away from here that took place.",
        counters.transfers_done,
    )?;
    families.counter(
        "campaigns_unfit",
        "Campaigns of replicas here that should not lead: no better candidate was found.",
        counters.stood_unfit,
    )?;
    families.counter(
        "campaigns_again",
        "Leaders here that the target of a transfer deposed, and that campaigned again at once.",
        counters.stood_again,
    )?;
    families.counter(
        "caretakers_begun",
        "How often a leader here began to serve no users.",
        counters.caretakers_begun,
    )?;
    families.counter(
        "freezes_ended_by_watchdog",
        "Pauses of proposals for a transfer that the watchdog ended.",
        counters.watchdog_endings,
    )?;
    let freezes = [(Labels::new(), host.runtime().freezes().snapshot())];
    families.durations(
        "freeze_duration_seconds",
        "How long proposals of a group were paused for a transfer away from here.",
        freezes,
    )
}

/// All reasons: a series that is there before the first of its kind shows that it came.
fn reasons(counts: &ByReason) -> impl Iterator<Item = (Labels<'static>, u64)> {
    RejectReason::ALL.iter().map(|reason| (vec![("reason", reason.name())], counts[*reason]))
}

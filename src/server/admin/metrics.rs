//! What a host counts about leaderships, as it travels. Only translates.

use shardhost_groups::latency::Latency;
use shardhost_groups::policy::{ByReason, PolicyCounters};
use shardhost_proto::admin as wire;

/// What became of leaderships on a host, and how long users waited for it.
pub(super) fn policy_metrics(counters: &PolicyCounters, freezes: &Latency) -> wire::PolicyMetrics {
    let freezes = freezes.snapshot();
    wire::PolicyMetrics {
        candidates_refused: by_reason(&counters.candidates_refused),
        leaderships_refused: by_reason(&counters.leaderships_refused),
        campaigns_vetoed: by_reason(&counters.campaigns_vetoed),
        pre_votes_refused: by_reason(&counters.pre_votes_refused),
        stood_unfit: counters.stood_unfit,
        caretakers_begun: counters.caretakers_begun,
        transfers_done: counters.transfers_done,
        transfers_failed: by_reason(&counters.transfers_failed),
        freezes: freezes.count(),
        watchdog_endings: counters.watchdog_endings,
        stood_again: counters.stood_again,
        freeze_p50_us: freezes.quantile_us(500),
        freeze_p99_us: freezes.quantile_us(990),
        freeze_max_us: freezes.max_us(),
    }
}

fn by_reason(counts: &ByReason) -> Vec<wire::ReasonCount> {
    let counted = counts.counted();
    let to_wire = |(reason, count): (shardhost_groups::RejectReason, u64)| wire::ReasonCount {
        reason: reason.name().to_owned(),
        count,
    };
    counted.map(to_wire).collect()
}

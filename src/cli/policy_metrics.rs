//! What nodes counted of leaderships, for people and for programs: `shardhost status --policy`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shardhost::groups::RejectReason;
use shardhost_proto::admin::{PolicyMetrics, ReasonCount};

use super::output::{Column, counted, millis, number, table};

const COLUMNS: [Column; 11] = [
    Column::Right("node"),
    Column::Right("transfers"),
    Column::Right("not done"),
    Column::Right("freezes"),
    Column::Right("p50"),
    Column::Right("p99"),
    Column::Right("longest"),
    Column::Right("by watchdog"),
    Column::Right("stood again"),
    Column::Right("caretakers"),
    Column::Right("stood unfit"),
];

/// Counters by reason, and their titles.
fn by_reason(metrics: &PolicyMetrics) -> [(&'static str, &'static str, &[ReasonCount]); 5] {
    [
        ("transfers_failed", "did not hand over", &metrics.transfers_failed),
        ("candidates_refused", "did not ask a candidate", &metrics.candidates_refused),
        ("leaderships_refused", "did not take over", &metrics.leaderships_refused),
        ("campaigns_vetoed", "did not stand for election", &metrics.campaigns_vetoed),
        ("pre_votes_refused", "refused a pre-vote", &metrics.pre_votes_refused),
    ]
}

/// A table of nodes, and below it what each refused and why.
pub fn policy_text<'a>(nodes: impl Iterator<Item = (u64, &'a PolicyMetrics)> + Clone) -> String {
    let rows = nodes.clone().map(|(node, metrics)| row(node, metrics));
    let refusals = nodes.flat_map(|(node, metrics)| {
        by_reason(metrics).into_iter().flat_map(move |(_, words, counts)| {
            counts.iter().map(move |one| format!("\n{}", refusal(node, words, one)))
        })
    });
    table(&COLUMNS, rows) + refusals.collect::<String>().as_str()
}

fn row(node: u64, metrics: &PolicyMetrics) -> Vec<String> {
    let failed = metrics.transfers_failed.iter().map(|one| one.count).sum();
    vec![
        node.to_string(),
        number(metrics.transfers_done),
        number(failed),
        number(metrics.freezes),
        millis(metrics.freeze_p50_us),
        millis(metrics.freeze_p99_us),
        millis(metrics.freeze_max_us),
        number(metrics.watchdog_endings),
        number(metrics.stood_again),
        number(metrics.caretakers_begun),
        number(metrics.stood_unfit),
    ]
}

fn refusal(node: u64, words: &str, one: &ReasonCount) -> String {
    let why = RejectReason::by_name(&one.reason);
    let why = why.map_or_else(String::new, |reason| format!(": {}", reason.words()));
    format!("node {node} {words}, {}{why} [{}]", counted(one.count, "time"), one.reason)
}

/// The same for programs.
pub fn policy_json(metrics: &PolicyMetrics) -> Value {
    let counts = |counts: &[ReasonCount]| -> BTreeMap<String, u64> {
        counts.iter().map(|one| (one.reason.clone(), one.count)).collect()
    };
    let mut all = json!({
        "transfers_done": metrics.transfers_done,
        "freezes": metrics.freezes,
        "freeze_p50_us": metrics.freeze_p50_us,
        "freeze_p99_us": metrics.freeze_p99_us,
        "freeze_max_us": metrics.freeze_max_us,
        "watchdog_endings": metrics.watchdog_endings,
        "stood_again": metrics.stood_again,
        "caretakers_begun": metrics.caretakers_begun,
        "stood_unfit": metrics.stood_unfit,
    });
    for (name, _, reasons) in by_reason(metrics) {
        all[name] = json!(counts(reasons));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> PolicyMetrics {
        let count = |reason: &str, count| ReasonCount { reason: reason.to_owned(), count };
        PolicyMetrics {
            transfers_failed: vec![count("DRAINING", 3), count("SILENT", 1)],
            leaderships_refused: vec![count("OF_A_LATER_VERSION", 2)],
            transfers_done: 7,
            freezes: 8,
            freeze_max_us: 4_200,
            ..PolicyMetrics::default()
        }
    }

    #[test]
    fn refusals_are_shown_with_words_and_name() {
        let metrics = metrics();
        let text = policy_text([(2, &metrics)].into_iter());
        let shown = "node 2 did not hand over, 3 times: the node is draining \
                     [DRAINING]";
        assert!(text.contains(shown), "{text}");
        // Another version may know more reasons than this program.
        assert!(text.contains("did not take over, 2 times [OF_A_LATER_VERSION]"), "{text}");
    }

    #[test]
    fn programs_get_every_reason_by_its_name() {
        let value = policy_json(&metrics());
        assert_eq!(value["transfers_failed"]["SILENT"], 1);
        assert_eq!((&value["transfers_done"], &value["freeze_max_us"]), (&json!(7), &json!(4_200)));
        assert_eq!(value["pre_votes_refused"], json!({}));
    }
}

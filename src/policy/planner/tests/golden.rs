//! Recorded snapshots and their plans, byte for byte. `REWRITE=1` writes the plans anew, and a
//! reviewer reads the difference.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::{DrainAssignment, Explanation, Plan, Snapshot, assign_drain, why_all};
use super::build::checked_plan;

/// A snapshot, and all output for it.
#[derive(Serialize, Deserialize)]
struct Record {
    snapshot: Snapshot,
    plan: Option<Plan>,
    why: Option<Vec<Explanation>>,
    drain: Option<DrainAssignment>,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("planner/golden").join(name)
}

fn replay(name: &str) {
    let recorded = std::fs::read_to_string(file(name)).expect("a recorded file");
    let record: Record = serde_json::from_str(&recorded).expect("a record");
    let snapshot = record.snapshot;
    let plan = checked_plan(&snapshot);
    let why = why_all(&snapshot, &plan).expect("a sound snapshot");
    let drain = assign_drain(&snapshot).expect("a sound snapshot");
    let again = Record { snapshot, plan: Some(plan), why: Some(why), drain: Some(drain) };
    let again = serde_json::to_string_pretty(&again).expect("plain data is JSON") + "\n";
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(file(name), again).expect("a file that can be written");
        return;
    }
    assert!(again == recorded, "{name} differs; see what REWRITE=1 changes");
}

#[test]
fn a_mixed_cluster_gets_its_queues_off_the_node_that_cannot_serve_them() {
    replay("capability.json");
}

#[test]
fn a_node_drains_while_groups_keep_their_zones_apart() {
    replay("drain.json");
}

#[test]
fn a_node_that_comes_back_gets_its_part_within_budgets() {
    replay("return.json");
}

//! The suite of what a group promises, on hosts in memory.

use shardhost_groups::testing::conformance::{InMemory, Scale, lines, run};

shardhost_groups::conformance_tests!(
    InMemory::new(),
    skipped: [g7_the_data_of_another_node_is_refused, x4_a_node_is_followed_to_another_address]
);

/// What hosts without addresses and files cannot show.
const SKIPPED: [&str; 2] =
    ["g7_the_data_of_another_node_is_refused", "x4_a_node_is_followed_to_another_address"];

/// Runs every line at a scale.
fn at(scale: Scale, skipped: &[&str]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime.block_on(run(InMemory::new(), scale, lines()));
    report.demand(skipped);
}

#[test]
fn the_suite_holds_with_five_nodes() {
    at(Scale::five(), &SKIPPED);
}

#[test]
fn the_suite_holds_among_many_groups() {
    at(Scale::three().among(40), &SKIPPED);
}

#[test]
fn the_suite_holds_when_messages_are_late_or_lost() {
    at(Scale::three().stormy(), &[]);
}

//! The suite of what a group promises, on hosts in memory.

mod sabotage;

use shardhost_groups::known_bugs::{KnownBug, KnownBugs};
use shardhost_testing::conformance::{InMemory, Scale, Shown, lines, run};

use sabotage::Sabotage;

shardhost_testing::conformance_tests!(
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

/// The page that lists the promises names every line, and none that there is not.
#[test]
fn the_page_of_promises_names_every_line() {
    let page = include_str!("../../../docs/contract.md");
    let words = page.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    let words: std::collections::BTreeSet<_> = words.collect();
    for line in lines() {
        assert!(words.contains(line.name), "{} is not in docs/contract.md", line.name);
        let id = line.name.split('_').next().unwrap().to_uppercase();
        assert!(words.contains(id.as_str()), "{id} is not in docs/contract.md");
    }
    // Rows name lines between quotes in their third column.
    let column = page.lines().filter_map(|row| row.split('|').nth(3));
    let named = column.flat_map(|column| column.split('`').skip(1).step_by(2));
    for name in named {
        assert!(lines().iter().any(|line| line.name == name), "{name} is no line of the suite");
    }
}

/// Hosts that break one promise, and the line that must notice.
#[test]
fn the_suite_notices_what_is_broken() {
    let bug = |bug| Sabotage { bugs: KnownBugs::from([bug]), ..Sabotage::default() };
    let broken = [
        (Sabotage { syncs_lie: true, ..Sabotage::default() }, "p2_what_was_acknowledged_survives"),
        (Sabotage { no_orders: true, ..Sabotage::default() }, "t1_"),
        (bug(KnownBug::CompletionByIndex), "p8_"),
        (bug(KnownBug::LeaseInTransfer), "l8_"),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shown = broken.map(|(sabotage, name)| async move {
        let line = lines().iter().filter(|line| line.name.starts_with(name));
        let report = run(sabotage, Scale::three(), line).await;
        let noticed = matches!(report.lines(), [(_, Shown::Broken(_))]);
        assert!(noticed, "{name} does not notice {sabotage:?}: {report}");
    });
    runtime.block_on(futures::future::join_all(shown));
}

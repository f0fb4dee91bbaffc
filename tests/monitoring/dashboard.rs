//! Each panel of the dashboard shows something of a cluster that works.

use serde_json::Value;

use super::alerts::three;
use super::machine;
use super::prometheus::{Prometheus, document, is_installed};

/// The expressions of each panel, by its title.
fn panels() -> Vec<(String, Vec<String>)> {
    let dashboard: Value = serde_json::from_str(&document("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let shown = panels.filter(|panel| panel["type"] != "row");
    let panel = |panel: &Value| {
        let targets = panel["targets"].as_array().unwrap().iter();
        let expressions = targets.map(|target| target["expr"].as_str().unwrap());
        let filled = expressions
            .map(|text| text.replace("$instance", ".*").replace("$__rate_interval", "30s"));
        (panel["title"].as_str().unwrap().to_owned(), filled.collect())
    };
    shown.map(panel).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_expression_of_the_dashboard_has_data_in_a_cluster_that_works() {
    const TEST: &str = "each_expression_of_the_dashboard_has_data_in_a_cluster_that_works";
    let panels = panels();
    assert!(panels.len() > 30, "{} panels", panels.len());
    if !is_installed() {
        return machine::skipped(TEST, "`prometheus` is not installed");
    }
    let (servers, targets) = three().await;
    let prometheus = Prometheus::start(&targets).await;
    for (title, expressions) in panels {
        for expression in expressions {
            let has_data = async || {
                // Something happens meanwhile.
                servers.run(1, &["table", "put", "color", "red"]).await.ok();
                !prometheus.query(&expression).await.is_empty()
            };
            prometheus.until(&format!("{title}: {expression}"), has_data).await;
        }
    }
    machine::ran(TEST);
}

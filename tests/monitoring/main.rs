//! The alerts and the dashboard of docs/monitoring, in a real Prometheus that scrapes real nodes.
//!
//! Without the program `prometheus` the tests are skipped, and say so.

#[path = "../support/http.rs"]
#[allow(dead_code, reason = "other suites need the rest")]
mod http_client;
#[path = "../faults/machine.rs"]
mod machine;
#[path = "../cli/process.rs"]
#[allow(dead_code, reason = "other suites need the rest")]
mod process;
#[path = "../cli/servers.rs"]
#[allow(dead_code, reason = "other suites need the rest")]
mod servers;

mod alerts;
mod dashboard;
mod exporter;
mod prometheus;

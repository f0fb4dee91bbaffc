//! The alerts and the dashboard of docs/monitoring, in a real Prometheus that scrapes real nodes.
//!
//! Without the program `prometheus` the tests are skipped, and say so.

#[path = "../support/http.rs"]
mod http_client;
#[path = "../faults/machine.rs"]
mod machine;
#[path = "../cli/process.rs"]
mod process;
#[path = "../cli/servers.rs"]
mod servers;

mod alerts;
mod dashboard;
mod exporter;
mod prometheus;

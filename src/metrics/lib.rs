//! What a host counts, as families of metrics for Prometheus.
//!
//! A [`HostMetrics`] is a collector of the crate `prometheus-client`: register it, and each encoding of the
//! registry shows the host as it is at that moment. Nothing is counted twice and nothing is sampled in between:
//! the host counts in any case, and what a scrape costs is paid when it happens (ten thousand groups: some
//! milliseconds).
//!
//! ```no_run
//! # async fn run(host: shardhost::host::Host) -> Result<(), std::fmt::Error> {
//! use prometheus_client::registry::Registry;
//! use shardhost_metrics::{Form, HostMetrics, exposition};
//!
//! let mut registry = Registry::default();
//! registry.register_collector(Box::new(HostMetrics::new(host)));
//! let text = exposition(&registry, Form::OpenMetrics)?;
//! # Ok(())
//! # }
//! ```
//!
//! | where | what |
//! |---|---|
//! | `families` | how a family is written: counters, gauges, histograms |
//! | [`exposition`](exposition()) | the forms in which a registry is sent |
//! | `host` | which families there are, in order |
//! | `groups`, `leadership`, `log`, `transport`, `snapshots`, `process` | those of one subject each |
//! | `system` | the catalog, the planner and the allocator of a host that has them |
//!
//! All names begin with `shardhost_`, but those of the process, which have the names that other programs give
//! them. docs/monitoring.md lists them. No family has a series per group: of ten thousand groups that would be the
//! whole answer. Which group it is, `status` and `group list` say.

#![forbid(unsafe_code)]
#![warn(clippy::let_underscore_must_use, clippy::unwrap_used)]

mod exposition;
mod families;
mod groups;
mod host;
mod leadership;
mod log;
mod process;
mod snapshots;
mod system;
mod transport;

pub use exposition::{Form, exposition};
pub use families::{Families, Histogram, Labels};
pub use host::HostMetrics;
pub use log::write_database;
pub use system::SystemMetrics;

//! What a server says over HTTP: metrics, and whether it is well.
//!
//! | path | who | what |
//! |---|---|---|
//! | `/healthz` | anyone | whether the process can go on: one that cannot is to be restarted |
//! | `/readyz` | anyone | whether it serves, and else why not |
//! | `/metrics` | readers | what it counts, for Prometheus |

mod health;
mod metrics;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use prometheus_client::registry::Registry;
use shardhost::driver::System;
use shardhost::host::Host;
use shardhost_metrics::{HostMetrics, SystemMetrics};

use self::metrics::ServerMetrics;
use crate::service::ClientBudget;
use crate::shards::StateDb;

/// What pages show.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    host: Host,
    system: Option<System>,
    registry: Arc<Registry>,
    /// One scrape at a time: a second one waits for the first.
    scrape: Arc<tokio::sync::Semaphore>,
}

impl Pages {
    /// Those of a server.
    pub(crate) fn new(
        host: &Host,
        system: Option<&System>,
        state: &Arc<StateDb>,
        budget: &Arc<ClientBudget>,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(HostMetrics::new(host.clone())));
        if let Some(system) = system {
            registry.register_collector(Box::new(SystemMetrics::new(system.clone())));
        }
        let server = ServerMetrics::new(host, state, budget);
        registry.register_collector(Box::new(server));
        Self {
            host: host.clone(),
            system: system.cloned(),
            registry: Arc::new(registry),
            scrape: Arc::new(tokio::sync::Semaphore::new(1)),
        }
    }

    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(health::healthz))
            .route("/readyz", get(health::readyz))
            .route("/metrics", get(metrics::metrics))
            .with_state(self)
    }
}

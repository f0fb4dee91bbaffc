//! The metrics of a server: those of its host, and of its clients, its state and its disk.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use shardhost::host::Host;
use shardhost_metrics::{Families, Form, Labels, exposition, write_database};

use super::Pages;
use crate::disk_space::DiskSpace;
use crate::service::ClientBudget;
use crate::shards::StateDb;

/// Answers a scrape.
pub(super) async fn metrics(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let accepted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let form = accepted.map_or(Form::Text, Form::accepted);
    let Ok(turn) = Arc::clone(&pages.scrape).acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    // Of ten thousand groups it takes milliseconds, and the disk is asked how full it is.
    let written = tokio::task::spawn_blocking(move || {
        let written = exposition(&pages.registry, form);
        drop(turn);
        written
    });
    match written.await {
        Ok(Ok(body)) => ([(CONTENT_TYPE, form.content_type())], body).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn fmt::Display) -> Response {
    tracing::error!(%error, "the metrics cannot be written");
    (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n").into_response()
}

/// What a server counts beside its host.
#[derive(Debug)]
pub(super) struct ServerMetrics {
    host: Host,
    /// The state is closed when the server stops, also if this is held.
    state: Weak<StateDb>,
    budget: Arc<ClientBudget>,
    data_dir: PathBuf,
}

impl ServerMetrics {
    pub(super) fn new(host: &Host, state: &Arc<StateDb>, budget: &Arc<ClientBudget>) -> Self {
        Self {
            host: host.clone(),
            state: Arc::downgrade(state),
            budget: Arc::clone(budget),
            data_dir: host.config().data_dir.clone(),
        }
    }

    fn write_clients(&self, families: &mut Families<'_>) -> fmt::Result {
        let requests = self.budget.requests();
        let counted = requests.counted().into_iter().map(|(kind, access, outcome, count)| {
            let labels = vec![("kind", kind), ("access", access.name()), ("outcome", outcome)];
            (labels, count)
        });
        families.counters("requests", "Requests of clients, by their outcome.", counted)?;
        let took = requests.took().into_iter().map(|(kind, access, took)| -> (Labels<'_>, _) {
            (vec![("kind", kind), ("access", access.name())], took)
        });
        families.durations(
            "request_duration_seconds",
            "Requests of clients that were answered, from the arrival of their batch to the reply.",
            took,
        )?;
        let budget = &self.budget;
        families.gauge(
            "client_streams",
            "Streams of clients that are open.",
            budget.open_streams() as u64,
        )?;
        families.gauge(
            "client_memory_bytes",
            "Bytes that requests and answers of clients hold.",
            budget.used_bytes() as u64,
        )?;
        families.gauge(
            "client_memory_limit_bytes",
            "Bytes that requests and answers of clients may hold.",
            budget.bytes() as u64,
        )
    }

    fn write_state(&self, families: &mut Families<'_>) -> fmt::Result {
        let log = self.host.runtime().log_database().map(|database| ("log", database));
        let state = self.state.upgrade();
        let of_state = state.as_ref().map(|state| ("state", state.database()));
        let databases: Vec<_> = log.into_iter().chain(of_state).collect();
        write_database(families, &databases)?;
        let unrecovered = state.map_or(0, |state| state.unrecovered().len() as u64);
        families.gauge(
            "state_damaged_parts",
            "Parts of the state that are damaged and not recovered.",
            unrecovered,
        )
    }

    fn write_disk(&self, families: &mut Families<'_>) -> fmt::Result {
        let Ok(disk) = DiskSpace::of(&self.data_dir) else { return Ok(()) };
        families.gauge(
            "disk_free_bytes",
            "Free bytes of the disk of the data directory.",
            disk.free,
        )?;
        families.gauge(
            "disk_size_bytes",
            "All bytes of the disk of the data directory.",
            disk.all,
        )?;
        families.gauge(
            "disk_low_bytes",
            "With fewer bytes free on its disk the node leads nothing.",
            disk.low(),
        )
    }
}

impl Collector for ServerMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        self.write_clients(&mut families)?;
        self.write_state(&mut families)?;
        self.write_disk(&mut families)
    }
}

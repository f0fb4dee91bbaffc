//! Whether a server is well: for those who restart it, and for those who send it clients.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use shardhost_groups::RequirementMode;

use super::Pages;

/// Whether the process can go on.
pub(super) async fn healthz(State(pages): State<Pages>) -> impl IntoResponse {
    match pages.fault() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(fault) => (StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n")),
    }
}

/// Whether the server serves, and a line for each reason why not.
pub(super) async fn readyz(State(pages): State<Pages>) -> impl IntoResponse {
    let missing = pages.missing();
    match missing.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, missing.concat()),
    }
}

impl Pages {
    /// What keeps the process from going on, if something does.
    fn fault(&self) -> Option<String> {
        self.host.health().borrow().as_ref().map(ToString::to_string)
    }

    /// What keeps the server from serving, a line each.
    fn missing(&self) -> Vec<String> {
        let stopping = self.host.stopping().is_cancelled().then(|| "the host stops".to_owned());
        let waits = self.host.founding_waits_for();
        let impaired = {
            let impairment = self.host.impairment();
            let impairment = impairment.borrow();
            let hard = impairment.as_ref().filter(|why| why.mode == RequirementMode::Hard);
            hard.map(|why| why.reason.to_string())
        };
        let unread = self.system.as_ref().filter(|system| system.view().is_none());
        let unread = unread.map(|_| "the catalog was not read yet".to_owned());
        let all = [self.fault(), stopping, waits, impaired, unread];
        all.into_iter().flatten().map(|why| format!("{why}\n")).collect()
    }
}

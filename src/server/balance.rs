//! Draining this node, the planner, and what this node knows of the cluster, over gRPC.
//!
//! A drain is recorded in the catalog, so that it outlives the process and two operators do not
//! strand a group. When the catalog does not answer, the node is drained all the same, and reports
//! that.

use std::sync::Arc;
use std::time::Duration;

use shardhost_proto::balance as wire;
use shardhost_proto::balance::balance_server::{Balance, BalanceServer};
use shardhost_proto::balance::drain_status::State;
use tonic::{Code, Request, Response, Status};

use super::catalog::of_catalog;
use super::refusals::refusal;
use shardhost::driver::drain_doubts::DoubtfulDrain;
use shardhost::driver::drains::{DrainReport, Drains, EndWithoutCatalog};
use shardhost::driver::view::{add_loads, local_view};
use shardhost::driver::{CatalogError, DrainOptions, DrainProgress, DrainState, Fallback, System};
use shardhost::host::Host;
use shardhost::transport::note_asked;
use shardhost::wall_clock::now_ms;
use shardhost_policy::catalog::{
    DrainFallback, IntentId, MAX_DRAIN_MS, MAX_NAMED_GROUPS, MAX_TEXT_BYTES, NewDrain, Operation,
    Refusal, Stranding,
};
use shardhost_policy::inputs::report::Rates;
use shardhost_policy::inputs::view::{add_intentions, stranded_without};
use shardhost_policy::planner::{Settings, Snapshot};

/// A drain expires after so long by default: its owner may be gone.
const EXPIRES_AFTER_MS: u64 = 24 * 60 * 60 * 1_000;

/// The balance service of a host.
pub(super) fn balance_server(
    host: &Host,
    drains: &Arc<Drains>,
    system: Option<&System>,
) -> BalanceServer<BalanceService> {
    let (host, drains, system) = (host.clone(), Arc::clone(drains), system.cloned());
    let rates = parking_lot::Mutex::default();
    BalanceServer::new(BalanceService { host, drains, system, rates })
}

/// See [`balance_server`].
#[derive(Debug)]
pub struct BalanceService {
    host: Host,
    drains: Arc<Drains>,
    system: Option<System>,
    /// How busy the groups are that are led here.
    rates: parking_lot::Mutex<Rates>,
}

impl BalanceService {
    fn status(&self) -> wire::DrainStatus {
        let report = self.drains.report();
        let state =
            report.as_ref().map_or(State::Unspecified, |one| state_to_wire(one.progress.state));
        let intent = report.as_ref().and_then(|report| report.intent);
        let durable = intent.is_some();
        let led = || self.host.groups().iter().filter(|one| one.status().is_leader()).count();
        let (owner, progress) = match report {
            Some(DrainReport { owner, progress, .. }) => (owner, progress),
            None => {
                let mut progress = DrainProgress::default();
                progress.left = led();
                (String::new(), progress)
            }
        };
        let DrainProgress { left, moved, failed, window, elapsed, undrainable, .. } = progress;
        let undrainable = undrainable
            .into_iter()
            .map(|(group, reason)| wire::Undrainable { group: group.get(), reason });
        wire::DrainStatus {
            node: self.host.node_id().get(),
            draining: self.host.advertisement().draining,
            state: state.into(),
            owner,
            left: left as u64,
            moved,
            failed,
            window: window as u64,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            undrainable: undrainable.collect(),
            durable,
            in_doubt: self.drains.are_in_doubt(),
            expires_in_ms: intent.and_then(|intent| self.expires_in_ms(intent)),
        }
    }

    /// How long it is until a drain of the catalog's expires.
    fn expires_in_ms(&self, intent: IntentId) -> Option<u64> {
        let view = self.system.as_ref()?.view()?;
        let drain = view.drains().get(&self.host.node_id()).filter(|drain| drain.id == intent)?;
        Some(drain.expires_ms.saturating_sub(drain.clock_ms))
    }

    /// The cluster as this node knows it, with what the catalog intends.
    fn picture(&self) -> Snapshot {
        let mut snapshot = local_view(&self.host, now_ms(), Settings::default());
        add_loads(&mut snapshot, &self.host, &mut self.rates.lock());
        if let Some(view) = self.system.as_ref().and_then(System::view) {
            add_intentions(&mut snapshot, &view);
        }
        snapshot
    }

    /// Refuses to leave groups without an eligible node that answers: the catalog does not know
    /// which nodes answer. This node's knowledge of the others lags: a drain that has just ended,
    /// or a node that has just come back, is known a heartbeat later.
    async fn check_stranded(&self) -> Result<(), Status> {
        let node = self.host.node_id();
        let deadline = tokio::time::Instant::now() + NEWS_PATIENCE;
        let mut groups = loop {
            let groups = stranded_without(&self.picture(), node);
            if groups.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                break groups;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        let total = groups.len();
        groups.truncate(MAX_NAMED_GROUPS);
        Err(of_catalog(&Refusal::Stranded { node, groups, total }.into()))
    }

    /// Records it in the catalog; `None`: there is none, or it does not answer. Whether it is recorded
    /// then may be in doubt, also when the one who asks goes away meanwhile.
    async fn intend(
        &self,
        request: &wire::DrainRequest,
        deadline: Duration,
    ) -> Result<Option<IntentId>, Status> {
        let Some(system) = &self.system else { return Ok(None) };
        let now = now_ms();
        let deadline_ms = now + u64::try_from(deadline.as_millis()).unwrap_or(MAX_DRAIN_MS);
        let expires_ms = match request.expires_ms {
            0 => deadline_ms.max(now + EXPIRES_AFTER_MS),
            given => now.saturating_add(given),
        };
        let (fallback, stranding) = (
            if request.undrain_when_overdue {
                DrainFallback::GiveUp
            } else {
                DrainFallback::Proceed
            },
            if request.accept_stranded { Stranding::Accept } else { Stranding::Refuse },
        );
        let (node, owner) = (self.host.node_id(), owner_of(request));
        let doubtful = DoubtfulDrain { owner: owner.clone(), begun_ms: now };
        self.drains.doubt(doubtful.clone());
        let new = NewDrain { node, owner, deadline_ms, expires_ms, fallback, stranding };
        let begun = system.catalog().apply_at(now, Operation::BeginDrain(new)).await;
        if !matches!(begun, Err(CatalogError::Unknown { .. })) {
            self.drains.is_certain(&doubtful);
        }
        match begun {
            Ok(done) => Ok(Some(IntentId::new(done.revision))),
            Err(error @ CatalogError::Refused(_)) => Err(of_catalog(&error)),
            Err(error @ CatalogError::Unknown { .. }) => {
                tracing::warn!(%error, "whether the drain of this node is recorded is unknown");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, "the drain of this node ends with its process");
                Ok(None)
            }
        }
    }
}

/// How long news of other nodes may take to come here, and between two looks.
const NEWS_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

fn owner_of(request: &wire::DrainRequest) -> String {
    match request.owner.is_empty() {
        true => "somebody".to_owned(),
        false => request.owner.clone(),
    }
}

const fn state_to_wire(state: DrainState) -> State {
    match state {
        DrainState::Running => State::Running,
        DrainState::Done => State::Done,
        DrainState::Overdue => State::Overdue,
        DrainState::Cancelled => State::Cancelled,
    }
}

#[tonic::async_trait]
impl Balance for BalanceService {
    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainStatus>, Status> {
        note_asked(&request);
        let request = request.into_inner();
        if request.owner.len() > MAX_TEXT_BYTES {
            return Err(Status::invalid_argument(format!(
                "the owner has {} bytes, the limit is {MAX_TEXT_BYTES}",
                request.owner.len()
            )));
        }
        let mut options = DrainOptions::default();
        if request.deadline_ms > 0 {
            options =
                options.deadline(Duration::from_millis(request.deadline_ms.min(MAX_DRAIN_MS)));
        }
        if !request.accept_stranded {
            self.check_stranded().await?;
        }
        let intent = self.intend(&request, options.deadline).await?;
        // What the catalog intends, it gives up at the deadline itself.
        if intent.is_none() && request.undrain_when_overdue {
            options = options.fallback(Fallback::Undrain);
        }
        self.drains.begin(options, owner_of(&request), intent).map_err(|error| {
            match self.drains.are_in_doubt() {
                true => {
                    let words = format!("{error}; whether another one is recorded is unknown");
                    refusal(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", words, [])
                }
                false => refusal(Code::AlreadyExists, "ALREADY_DRAINING", error.to_string(), []),
            }
        })?;
        Ok(Response::new(self.status()))
    }

    async fn undrain(
        &self,
        request: Request<wire::UndrainRequest>,
    ) -> Result<Response<wire::DrainStatus>, Status> {
        note_asked(&request);
        let node = self.host.node_id();
        let Some(system) = &self.system else {
            self.drains.end(None);
            return Ok(Response::new(self.status()));
        };
        // A node that just started knows nothing yet of what the catalog intends.
        let intent = match system.fresh_view().await {
            Ok(view) => view.drains().get(&node).map(|drain| drain.id),
            Err(error) => {
                self.end_without_catalog(&error)?;
                return Ok(Response::new(self.status()));
            }
        };
        if let Some(intent) = intent {
            match system.catalog().apply(Operation::EndDrain { node, intent }).await {
                // It expired, or was ended before.
                Ok(_) | Err(CatalogError::Refused(_)) => {}
                Err(error) => return Err(of_catalog(&error)),
            }
        }
        self.drains.end_doubtful();
        self.drains.end(intent);
        Ok(Response::new(self.status()))
    }

    async fn get_drain(
        &self,
        _: Request<wire::GetDrainRequest>,
    ) -> Result<Response<wire::DrainStatus>, Status> {
        Ok(Response::new(self.status()))
    }

    async fn view(
        &self,
        _: Request<wire::ViewRequest>,
    ) -> Result<Response<wire::ViewReply>, Status> {
        let snapshot = serde_json::to_vec(&self.picture())
            .map_err(|error| Status::internal(format!("the view cannot be written: {error}")))?;
        Ok(Response::new(wire::ViewReply { snapshot: snapshot.into() }))
    }

    async fn planner(
        &self,
        request: Request<wire::PlannerRequest>,
    ) -> Result<Response<wire::PlannerReply>, Status> {
        let system = self.system()?;
        Ok(Response::new(system.planner_reply(&request.into_inner())?))
    }

    async fn allocator(
        &self,
        request: Request<wire::AllocatorRequest>,
    ) -> Result<Response<wire::AllocatorReply>, Status> {
        let system = self.system()?;
        Ok(Response::new(system.allocator_reply(&request.into_inner())?))
    }

    async fn switch_locally(
        &self,
        request: Request<wire::LocalSwitch>,
    ) -> Result<Response<wire::LocalSwitch>, Status> {
        note_asked(&request);
        let system = self.system()?;
        system.stop_planned_moves(request.into_inner().planned_moves_stopped);
        let planned_moves_stopped = system.planned_moves_are_stopped();
        Ok(Response::new(wire::LocalSwitch { planned_moves_stopped }))
    }
}

impl BalanceService {
    /// Ends a drain that the catalog does not know of, although it does not answer. When it may know of
    /// it, that is said.
    fn end_without_catalog(&self, error: &CatalogError) -> Result<(), Status> {
        let node = self.host.node_id();
        match self.drains.end_without_catalog() {
            EndWithoutCatalog::Surely => Ok(()),
            EndWithoutCatalog::NotPossible => Err(of_catalog(error)),
            EndWithoutCatalog::InDoubt => {
                let words = format!(
                    "node {node} takes leaderships again, but whether the catalog recorded its drain is \
                     unknown: {error}. If it did, the node ends the drain when the catalog answers. A \
                     node that stops before that is drained again when it is back: run `shardhost drain \
                     end {node}` again once the catalog answers"
                );
                Err(refusal(Code::DeadlineExceeded, "OUTCOME_UNKNOWN", words, []))
            }
        }
    }

    fn system(&self) -> Result<&System, Status> {
        self.system.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this cluster has no catalog, so nothing plans; say `catalog = true` in the \
                 configuration of every node",
            )
        })
    }
}

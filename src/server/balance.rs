//! Draining this node, and what it knows of the cluster, over gRPC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use shardhost_proto::balance as wire;
use shardhost_proto::balance::balance_server::{Balance, BalanceServer};
use shardhost_proto::balance::drain_status::State;
use tonic::{Request, Response, Status};

use crate::host::Host;
use crate::policy::planner::Settings;
use crate::policy::view::local_view;
use crate::policy::{Drain, DrainOptions, DrainProgress, DrainState, Fallback};

/// Bytes of the name of who asks.
const MAX_OWNER_BYTES: usize = 256;

/// The balance service of a host.
pub fn balance_server(host: Host) -> BalanceServer<BalanceService> {
    BalanceServer::new(BalanceService { host, drain: Mutex::new(None) })
}

/// See [`balance_server`].
#[derive(Debug)]
pub struct BalanceService {
    host: Host,
    /// The last drain that was asked for, and by whom.
    drain: Mutex<Option<(Drain, String)>>,
}

impl BalanceService {
    fn status(&self) -> wire::DrainStatus {
        let drain = self.drain.lock();
        let progress = drain.as_ref().map(|(drain, _)| drain.progress());
        let state = progress.as_ref().map_or(State::Unspecified, |one| state_to_wire(one.state));
        let owner = drain.as_ref().map_or_else(String::new, |(_, owner)| owner.clone());
        drop(drain);
        let DrainProgress { left, moved, failed, window, elapsed, undrainable, .. } =
            progress.unwrap_or_default();
        let undrainable = undrainable
            .into_iter()
            .map(|(group, reason)| wire::Undrainable { group: group.get(), reason });
        wire::DrainStatus {
            node: self.host.node_id().get(),
            draining: self.host.advert().draining,
            state: state.into(),
            owner,
            left: left as u64,
            moved,
            failed,
            window: window as u64,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            undrainable: undrainable.collect(),
        }
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
        let wire::DrainRequest { deadline_ms, undrain_when_overdue, owner } = request.into_inner();
        if owner.len() > MAX_OWNER_BYTES {
            return Err(Status::invalid_argument(format!(
                "the owner has {} bytes, the limit is {MAX_OWNER_BYTES}",
                owner.len()
            )));
        }
        let mut options = DrainOptions::default();
        if deadline_ms > 0 {
            options = options.deadline(Duration::from_millis(deadline_ms));
        }
        if undrain_when_overdue {
            options = options.fallback(Fallback::Undrain);
        }
        {
            let mut drain = self.drain.lock();
            if let Some((running, whose)) = drain.as_ref()
                && running.progress().state == DrainState::Running
            {
                return Err(Status::already_exists(format!(
                    "node {} is being drained already, by {whose:?}; `shardhost drain status` \
                     shows how far it is",
                    self.host.node_id()
                )));
            }
            *drain = Some((Drain::begin(&self.host, options), owner));
        }
        Ok(Response::new(self.status()))
    }

    async fn undrain(
        &self,
        _: Request<wire::UndrainRequest>,
    ) -> Result<Response<wire::DrainStatus>, Status> {
        let drain = self.drain.lock().take();
        match drain {
            Some((drain, _)) => drain.undrain(),
            None => self.host.set_draining(false),
        }
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
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let view = local_view(&self.host, now_ms, Settings::default());
        let snapshot = serde_json::to_vec(&view)
            .map_err(|error| Status::internal(format!("the view cannot be written: {error}")))?;
        Ok(Response::new(wire::ViewReply { snapshot: snapshot.into() }))
    }
}

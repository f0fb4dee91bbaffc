//! Health as load balancers ask for it (`grpc.health.v1`): of the process, and of each group.
//!
//! The empty name is the process: it serves until it stops or cannot continue, and not while it is
//! impaired so that no users are served by what it leads. `group/<number>` is a group: it serves
//! where it is led and takes proposals.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use shardhost_groups::{Group, GroupId, GroupStatus, RequirementMode, Role};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use shardhost::host::Host;

/// Between two looks for the next replica of a group whose replica ended.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Longest request: anyone may ask.
const MAX_REQUEST_BYTES: usize = 1_024;
/// Before the number of a group in the name of its service.
const GROUP_PREFIX: &str = "group/";

/// The health service of a host.
pub fn health_server(host: Host) -> HealthServer<HealthService> {
    HealthServer::new(HealthService { host }).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// See [`health_server`].
#[derive(Debug)]
pub struct HealthService {
    host: Host,
}

enum Subject {
    Process,
    Group(GroupId),
}

/// The replica of a group that a stream follows. It ends when the replica is closed, also where the next
/// one is opened at once.
struct Followed {
    group: GroupId,
    changes: Option<watch::Receiver<Arc<GroupStatus>>>,
}

impl Followed {
    /// The replica that is open now.
    fn of(host: &Host, group: GroupId) -> Self {
        Self { group, changes: host.group(group).as_ref().map(Group::watch) }
    }

    /// Until something may have changed.
    async fn changed(&mut self, host: &Host) {
        let ended = |status: &GroupStatus| matches!(status.role, Role::Stopped | Role::Removed);
        let runs = match &mut self.changes {
            Some(changes) if !ended(&changes.borrow()) => changes.changed().await.is_ok(),
            _ => false,
        };
        if !runs {
            tokio::time::sleep(LOOK_AGAIN).await;
            *self = Self::of(host, self.group);
        }
    }
}

impl HealthService {
    fn subject(&self, service: &str) -> Result<Subject, Status> {
        if service.is_empty() {
            return Ok(Subject::Process);
        }
        let number = service.strip_prefix(GROUP_PREFIX).and_then(|number| number.parse().ok());
        let group = number.map(GroupId::new).filter(|group| self.host.group(*group).is_some());
        group.map(Subject::Group).ok_or_else(|| {
            Status::not_found(format!(
                "`{service}` is neither empty nor `{GROUP_PREFIX}` and the number of a group here"
            ))
        })
    }

    fn is_impaired(&self) -> bool {
        let impairment = self.host.impairment();
        let impairment = impairment.borrow();
        impairment.as_ref().is_some_and(|why| why.mode == RequirementMode::Hard)
    }

    fn status(&self, subject: &Subject) -> ServingStatus {
        let serves = self.host.is_serving()
            && match subject {
                Subject::Process => !self.is_impaired(),
                Subject::Group(group) => {
                    self.host.group(*group).is_some_and(|group| group.check_serving().is_ok())
                }
            };
        if serves { ServingStatus::Serving } else { ServingStatus::NotServing }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let subject = self.subject(&request.into_inner().service)?;
        Ok(Response::new(answer(self.status(&subject))))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    /// The status, and every change of it. Changes in quick succession are seen as one.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let subject = self.subject(&request.into_inner().service)?;
        let (sender, receiver) = mpsc::channel(1);
        let service = Self { host: self.host.clone() };
        tokio::spawn(async move { service.follow(&subject, &sender).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl HealthService {
    async fn follow(
        self,
        subject: &Subject,
        sender: &mpsc::Sender<Result<HealthCheckResponse, Status>>,
    ) {
        let stopping = self.host.stopping();
        let mut health = self.host.health();
        let mut impairment = self.host.impairment();
        let mut followed = match subject {
            Subject::Process => None,
            Subject::Group(group) => Some(Followed::of(&self.host, *group)),
        };
        let mut told = None;
        loop {
            let status = self.status(subject);
            if told != Some(status) && sender.send(Ok(answer(status))).await.is_err() {
                return;
            }
            told = Some(status);
            let changed = async {
                match &mut followed {
                    Some(followed) => followed.changed(&self.host).await,
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                () = changed => true,
                changed = health.changed() => changed.is_ok(),
                changed = impairment.changed() => changed.is_ok(),
                () = stopping.cancelled() => false,
                () = sender.closed() => return,
            };
            if !goes_on {
                let last = sender.send(Ok(answer(ServingStatus::NotServing))).await;
                return drop(last);
            }
        }
    }
}

//! The system group over gRPC: commands and questions for the catalog, reports for the planner, and
//! the moves that it orders.

use std::sync::Arc;

use futures::stream::BoxStream;
use shardhost_groups::GroupId;
use shardhost_proto::system as wire;
use shardhost_proto::system::catalog_reply::Reply as WireReply;
use shardhost_proto::system::system_server::System as SystemRpc;
use shardhost_proto::version::ClusterVersion;
use tonic::{Code, Request, Response, Status};

use super::Inner;
use super::client::{NotHere, propose_here, query_here};
use super::versions::versions_here;
use crate::transport::{CallRecord, caller_of};
use shardhost_policy::catalog::{Command, Sender, decode_reply, encode_reply};
use shardhost_proto::grants::Grant;
use shardhost_security::Caller;
use shardhost_security::caller::Need;

/// See [`super::System::service`].
#[derive(Debug)]
pub struct SystemService {
    pub(super) inner: Arc<Inner>,
}

/// Groups that one request about removed groups may name.
pub(super) const MAX_GONE: usize = 4_096;

/// The answer to a node of another bootstrap of a cluster of the same name.
const OTHER_CLUSTER: &str = "its cluster was founded on other disks: two clusters have one name";

fn answer(bytes: bytes::Bytes) -> Response<wire::CatalogReply> {
    Response::new(wire::CatalogReply { reply: Some(WireReply::Answer(bytes)) })
}

fn elsewhere(leader_node: u64, reason: String) -> Response<wire::CatalogReply> {
    let elsewhere = wire::Elsewhere { leader_node, reason };
    Response::new(wire::CatalogReply { reply: Some(WireReply::Elsewhere(elsewhere)) })
}

#[tonic::async_trait]
impl SystemRpc for SystemService {
    type MoveStream = BoxStream<'static, Result<wire::MoveOutcome, Status>>;

    async fn propose(
        &self,
        request: Request<wire::ProposeRequest>,
    ) -> Result<Response<wire::CatalogReply>, Status> {
        let caller = caller_of(&request);
        let wire::ProposeRequest { command, founding } = request.into_inner();
        if !self.inner.host.founded().may_be(founding) {
            return Ok(elsewhere(0, OTHER_CLUSTER.to_owned()));
        }
        // What makes no sense does not get into the log.
        let read = Command::decode(&command).and_then(|read| read.check().map(|()| read));
        let read = match read {
            Ok(read) => read,
            Err(refusal) => return Ok(answer(encode_reply(&Err(refusal)))),
        };
        let need = match read.sender() {
            Sender::Node => Need::Node,
            Sender::NodeOr(grant) => Need::NodeOr(grant),
            Sender::User(grant) => Need::User(grant),
        };
        // What changes nothing is not recorded, nor what nodes may do and do.
        let asks = need == Need::NodeOr(Grant::Reader);
        let checked = caller.check(need);
        let is_recorded = !asks && (checked.is_err() || !matches!(caller, Caller::Node(_)));
        let record = is_recorded.then(|| CallRecord::of_change(&caller, &read.operation));
        let ends = |record: Option<CallRecord>, outcome| {
            if let Some(record) = record {
                record.ends(outcome);
            }
        };
        if let Err(denied) = checked {
            ends(record, Code::PermissionDenied);
            return Err(Status::permission_denied(denied.to_string()));
        }
        match propose_here(&self.inner.host, command).await {
            Ok(bytes) => {
                let refused = decode_reply(&bytes).is_err();
                ends(record, if refused { Code::FailedPrecondition } else { Code::Ok });
                Ok(answer(bytes))
            }
            // Another node carries it out, and records it, too.
            Err(NotHere::Elsewhere { leader, reason }) => {
                if let Some(record) = record {
                    record.is_passed_on();
                }
                Ok(elsewhere(leader.map_or(0, |node| node.get()), reason))
            }
            Err(NotHere::Unknown(message)) => {
                ends(record, Code::Unknown);
                Err(Status::unknown(message))
            }
        }
    }

    async fn query(
        &self,
        request: Request<wire::QueryRequest>,
    ) -> Result<Response<wire::CatalogReply>, Status> {
        let wire::QueryRequest { query, founding } = request.into_inner();
        if !self.inner.host.founded().may_be(founding) {
            return Ok(elsewhere(0, OTHER_CLUSTER.to_owned()));
        }
        match query_here(&self.inner.host, query).await {
            Ok(bytes) => Ok(answer(bytes)),
            Err(reason) => Ok(elsewhere(0, reason)),
        }
    }

    async fn gone(
        &self,
        request: Request<wire::GoneRequest>,
    ) -> Result<Response<wire::GoneReply>, Status> {
        let mut groups = request.into_inner().groups;
        if groups.len() > MAX_GONE {
            return Err(Status::invalid_argument(format!(
                "a question about {} groups; ask about at most {MAX_GONE} at once",
                groups.len()
            )));
        }
        let inner = Arc::clone(&self.inner);
        // Each is looked for on disk.
        let looked = tokio::task::spawn_blocking(move || {
            groups.retain(|group| match inner.is_gone(GroupId::new(*group)) {
                Ok(gone) => gone,
                // A group that is not known to be gone is left out.
                Err(error) => {
                    tracing::warn!(group, %error, "what is left of a group is not known");
                    false
                }
            });
            groups
        });
        let groups = looked.await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::GoneReply { groups }))
    }

    async fn replace(
        &self,
        request: Request<wire::ReplaceRequest>,
    ) -> Result<Response<wire::ReplaceReply>, Status> {
        self.inner.replace_all(request.into_inner()).await.map(Response::new)
    }

    async fn versions(
        &self,
        request: Request<wire::VersionsRequest>,
    ) -> Result<Response<wire::VersionsReply>, Status> {
        let wire::VersionsRequest { prepare, founding } = request.into_inner();
        let host = &self.inner.host;
        if !host.founded().may_be(founding) {
            return Err(Status::failed_precondition(OTHER_CLUSTER));
        }
        let prepare = (prepare > 0).then(|| ClusterVersion::new(prepare));
        let said = versions_here(host, prepare).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(wire::VersionsReply {
            node: host.node_id().get(),
            newest: said.newest.get(),
            prepared: said.prepared.get(),
            program: said.program,
            store: said.store,
        }))
    }

    async fn report(
        &self,
        request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::NodeReport>, Status> {
        Ok(Response::new(self.inner.report(request.into_inner())?))
    }

    async fn r#move(
        &self,
        request: Request<wire::MoveRequest>,
    ) -> Result<Response<Self::MoveStream>, Status> {
        Ok(Response::new(self.inner.carry_out(request.into_inner())?))
    }
}

//! The gRPC service that peers call. The host mounts it on its listener beside its others.
//!
//! Written by hand where the generated server would do, because frames have a codec of their own.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use shardhost_proto::peer::peer_server::SERVICE_NAME;
use shardhost_proto::peer::{Frame, SnapshotFrame, SnapshotReceipt, Welcome};
use tonic::body::Body;
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::codegen::{Body as HttpBody, BoxFuture, Service, StdError};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::codec::{FrameBounds, ReceiverCodec, SNAPSHOT_FRAME_MAX_BYTES, SnapshotCodec};
use super::receiver::{self, Answers};
use super::shared::Shared;
use super::snapshot::{self, Receipts};

pub(super) const EXCHANGE_PATH: &str = "/shardhost.peer.v1.Peer/Exchange";
const SNAPSHOT_PATH: &str = "/shardhost.peer.v1.Peer/Snapshot";

/// The service `shardhost.peer.v1.Peer` of a [`GrpcTransport`](super::GrpcTransport).
#[derive(Clone, Debug)]
pub struct PeerService {
    shared: Arc<Shared>,
}

impl PeerService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl NamedService for PeerService {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<HttpRequest<B>> for PeerService
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<B>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        match request.uri().path() {
            EXCHANGE_PATH => Box::pin(async move {
                let codec = ReceiverCodec { bounds: FrameBounds::of(&shared.config) };
                let most = shared.config.frame_max_bytes;
                let mut grpc = Grpc::new(codec).max_decoding_message_size(most);
                Ok(grpc.streaming(Exchange(shared), request).await)
            }),
            SNAPSHOT_PATH => Box::pin(async move {
                let most = SNAPSHOT_FRAME_MAX_BYTES;
                let mut grpc = Grpc::new(SnapshotCodec).max_decoding_message_size(most);
                Ok(grpc.streaming(Snapshot(shared), request).await)
            }),
            _ => Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) }),
        }
    }
}

struct Exchange(Arc<Shared>);

impl StreamingService<Frame> for Exchange {
    type Response = Welcome;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<Frame>>) -> Self::Future {
        let connection = request.extensions().get().cloned();
        Box::pin(receiver::exchange(Arc::clone(&self.0), connection, request.into_inner()))
    }
}

struct Snapshot(Arc<Shared>);

impl StreamingService<SnapshotFrame> for Snapshot {
    type Response = SnapshotReceipt;
    type ResponseStream = Receipts;
    type Future = BoxFuture<Response<Receipts>, Status>;

    fn call(&mut self, request: Request<Streaming<SnapshotFrame>>) -> Self::Future {
        let connection = request.extensions().get().cloned();
        Box::pin(snapshot::receive(Arc::clone(&self.0), connection, request.into_inner()))
    }
}

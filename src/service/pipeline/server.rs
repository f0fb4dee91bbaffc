//! The gRPC service of one kind of shard. Written by hand where the generated server would do, because
//! the requests of a batch are counted before they are built: one of two bytes takes a hundred times
//! that in memory, so the size of a batch alone is no bound.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::codegen::{Body as HttpBody, BoxFuture, Service, StdError};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{PipelineService, Protocol, ReplyStream};
use crate::service::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS};
use crate::transport::codec::next_field;

/// Field number of the requests in a batch, of either kind of shard.
const REQUESTS: u64 = 1;

/// Serves the streams of one kind of shard.
pub struct PipelineServer<P> {
    service: Arc<PipelineService<P>>,
}

impl<P> PipelineServer<P> {
    pub(in crate::service) fn new(service: PipelineService<P>) -> Self {
        Self { service: Arc::new(service) }
    }
}

impl<P> Clone for PipelineServer<P> {
    fn clone(&self) -> Self {
        Self { service: Arc::clone(&self.service) }
    }
}

impl<P: Protocol> NamedService for PipelineServer<P> {
    const NAME: &'static str = P::SERVICE;
}

impl<P, B> Service<HttpRequest<B>> for PipelineServer<P>
where
    P: Protocol,
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
        let method = request.uri().path().rsplit('/').next();
        if method != Some("Pipeline") {
            return Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) });
        }
        let method = Pipeline(Arc::clone(&self.service));
        Box::pin(async move {
            let mut grpc = Grpc::new(BatchCodec::<P>(PhantomData))
                .max_decoding_message_size(MAX_BATCH_BYTES)
                .max_encoding_message_size(MAX_BATCH_BYTES);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct Pipeline<P>(Arc<PipelineService<P>>);

impl<P: Protocol> StreamingService<P::Batch> for Pipeline<P> {
    type Response = P::Replies;
    type ResponseStream = ReplyStream<P>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<P::Batch>>) -> Self::Future {
        let served = self.0.serve(request);
        Box::pin(async { served })
    }
}

/// Replies out, counted batches in.
struct BatchCodec<P>(PhantomData<fn() -> P>);

impl<P: Protocol> Codec for BatchCodec<P> {
    type Encode = P::Replies;
    type Decode = P::Batch;
    type Encoder = <ProstCodec<P::Replies, P::Batch> as Codec>::Encoder;
    type Decoder = BatchDecoder<P>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<P::Replies, P::Batch>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BatchDecoder(PhantomData)
    }
}

struct BatchDecoder<P>(PhantomData<fn() -> P>);

impl<P: Protocol> Decoder for BatchDecoder<P> {
    type Item = P::Batch;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<P::Batch>, Status> {
        decode::<P>(buffer).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// Reads a batch whose bytes are the whole of `buffer`, after counting its requests.
pub(in crate::service) fn decode<P: Protocol>(mut buffer: impl Buf) -> Result<P::Batch, Status> {
    let whole = buffer.copy_to_bytes(buffer.remaining());
    let (mut rest, mut requests) = (&whole[..], 0usize);
    while let Some((number, _)) = next_field(&mut rest).map_err(malformed)? {
        requests += usize::from(number == REQUESTS);
        if requests > MAX_BATCH_REQUESTS {
            return Err(Status::invalid_argument(format!(
                "a batch of more than {MAX_BATCH_REQUESTS} requests; send smaller ones"
            )));
        }
    }
    P::Batch::decode(whole).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("a batch of requests cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::service::{QueueProtocol, TableProtocol};

    /// Built, these would take hundreds of MiB.
    #[test]
    fn the_requests_of_a_batch_are_counted_before_they_are_built() {
        let empty = |count: usize| Bytes::from([REQUESTS as u8 * 8 + 2, 0].repeat(count));
        assert_eq!(
            decode::<TableProtocol>(empty(MAX_BATCH_REQUESTS)).unwrap().requests.len(),
            16_384
        );
        for count in [MAX_BATCH_REQUESTS + 1, MAX_BATCH_BYTES / 2] {
            let refused = decode::<TableProtocol>(empty(count)).unwrap_err();
            assert!(refused.message().contains("more than 16384 requests"), "{refused}");
            let refused = decode::<QueueProtocol>(empty(count)).unwrap_err();
            assert!(refused.message().contains("more than 16384 requests"), "{refused}");
        }
    }

    #[test]
    fn bytes_that_are_no_batch_are_refused_with_a_cause() {
        let refused = decode::<TableProtocol>(Bytes::from_static(&[10, 200])).unwrap_err();
        assert!(refused.message().contains("cannot be read"), "{refused}");
    }
}

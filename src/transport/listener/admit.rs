//! Lets requests of clients in, as far as there is room for their connections.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, StdError};
use tonic::service::Routes;

use super::table::Connection;

/// The same services, for connections that count as those of clients. Requests over others than
/// [`incoming`](super::incoming) gives are let in.
#[must_use]
pub fn admit_clients(services: Routes) -> Routes {
    let services = AdmitClients { inner: services.into_axum_router() };
    Routes::default().into_axum_router().fallback_service(services).into()
}

#[derive(Clone, Debug)]
struct AdmitClients<S> {
    inner: S,
}

impl<S, B, A> Service<Request<B>> for AdmitClients<S>
where
    S: Service<Request<B>, Response = Response<A>, Error = Infallible>,
    S::Future: Send + 'static,
    A: HttpBody<Data = Bytes> + Send + 'static,
    A::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let admitted = request.extensions().get().map_or(Ok(()), Connection::admit_client);
        if let Err(full) = admitted {
            tracing::debug!(%full, "refused a client");
            let refused = Status::resource_exhausted(full.to_string()).into_http();
            return Box::pin(async { Ok(refused) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(Body::new)) })
    }
}

//! Services whose answers are changed on their way out.

use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, StdError};
use tonic::service::Routes;

/// The same services; `change` is given each answer.
pub(super) fn answering(services: Routes, change: fn(Response<Body>) -> Response<Body>) -> Routes {
    let services = Answering { inner: services.into_axum_router(), change };
    Routes::default().into_axum_router().fallback_service(services).into()
}

#[derive(Clone, Debug)]
struct Answering<S> {
    inner: S,
    change: fn(Response<Body>) -> Response<Body>,
}

impl<S, B, A> Service<Request<B>> for Answering<S>
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
        let (answer, change) = (self.inner.call(request), self.change);
        Box::pin(async move { Ok(change(answer.await?.map(Body::new))) })
    }
}

//! Lets requests of clients in, as far as there is room for their connections.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use shardhost_proto::grants::Grant;
use shardhost_security::Caller;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, StdError};
use tonic::service::Routes;

use super::table::{Connection, OpenRequest};

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
    A: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    A::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let connection: Option<&Connection> = request.extensions().get();
        // Who is not known may ask for health, and is given the time of a silent connection for that.
        let caller = request.extensions().get::<Caller>();
        let connection = connection.filter(|_| caller != Some(&Caller::Unknown));
        let admitted = match connection {
            Some(connection) if is_operator(caller) => connection.admit_operator(),
            Some(connection) => connection.admit_client(),
            None => Ok(()),
        };
        if let Err(full) = admitted {
            tracing::debug!(%full, "refused a client");
            let refused = Status::resource_exhausted(full.to_string()).into_http();
            return Box::pin(async { Ok(refused) });
        }
        let open = connection.map(Connection::begin_request);
        let answer = self.inner.call(request);
        Box::pin(
            async move { Ok(answer.await?.map(|body| Body::new(Answer { body, _open: open }))) },
        )
    }
}

/// Whether it is a user who may do what operators do.
fn is_operator(caller: Option<&Caller>) -> bool {
    matches!(caller, Some(Caller::User(user)) if user.grants.allow(Grant::Operator))
}

/// The body of an answer, until which its request is open.
struct Answer<A> {
    body: A,
    _open: Option<OpenRequest>,
}

impl<A: HttpBody + Unpin> HttpBody for Answer<A> {
    type Data = A::Data;
    type Error = A::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<A::Data>, A::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{ConnectionLimits, Connections};
    use super::*;

    /// A body of which more comes.
    struct Endless;

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[derive(Clone)]
    struct Answers;

    impl Service<Request<Body>> for Answers {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::ready(Ok(Response::new(Body::new(Endless))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_open_until_its_answer_was_taken() {
        let mut limits = ConnectionLimits::of(64);
        limits.clients = 1;
        let table = Connections::new(limits);
        let [(first, cut), (second, _)] = [(); 2].map(|()| table.enter());
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(first);
        let answer = AdmitClients { inner: Answers }.call(request).await.unwrap();
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(second.admit_client().is_err() && !cut.is_cancelled(), "its answer is on the way");
        drop(answer);
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(second.admit_client().is_ok() && cut.is_cancelled());
    }
}

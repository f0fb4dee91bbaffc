//! Which calls a listener answers, where a host has more than one.

use std::convert::Infallible;
use std::task::{Context, Poll};

use shardhost_proto::methods::is_of_clients;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, StdError};
use tonic::service::Routes;

/// The calls that a listener answers. All answer those of health; a call that is for another listener gets
/// the address of that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// All calls.
    All,
    /// All but those of clients.
    AllButClients { clients_at: String },
    /// Those of clients, and no others.
    Clients { others_at: String },
}

impl Served {
    /// Why a call is not answered here.
    fn refusal(&self, path: &str) -> Option<Status> {
        let message = match self {
            Self::AllButClients { clients_at } if is_of_clients(path) => format!(
                "this address is for nodes and operators; clients of tables and queues are served at {clients_at}"
            ),
            Self::Clients { others_at } if !is_of_clients(path) && !is_of_health(path) => format!(
                "this address is for clients of tables and queues; nodes and operators are served at {others_at}"
            ),
            _ => return None,
        };
        Some(Status::failed_precondition(message))
    }
}

fn is_of_health(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.")
}

/// Those of the services that a listener answers. A connection over which others are asked for stays one
/// without a request, and ends as such.
#[must_use]
pub fn only(services: Routes, served: Served) -> Routes {
    if served == Served::All {
        return services;
    }
    let services = Only { inner: services.into_axum_router(), served };
    Routes::default().into_axum_router().fallback_service(services).into()
}

#[derive(Clone, Debug)]
struct Only<S> {
    inner: S,
    served: Served,
}

impl<S, B, A> Service<Request<B>> for Only<S>
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
        if let Some(refused) = self.served.refusal(request.uri().path()) {
            return Box::pin(async move { Ok(refused.into_http()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(Body::new)) })
    }
}

#[cfg(test)]
mod tests {
    use shardhost_proto::methods::METHODS;

    use super::*;

    const HEALTH: &str = "/grpc.health.v1.Health/Check";

    fn two() -> (Served, Served) {
        let (clients_at, others_at) = ("c:1".to_owned(), "o:1".to_owned());
        (Served::AllButClients { clients_at }, Served::Clients { others_at })
    }

    #[test]
    fn each_call_is_answered_by_one_of_two_listeners_and_the_other_names_that() {
        let (main, clients) = two();
        for path in METHODS {
            match (main.refusal(path), clients.refusal(path)) {
                (Some(refused), None) => {
                    assert!(is_of_clients(path) && refused.message().contains("c:1"), "{path}");
                }
                (None, Some(refused)) => {
                    assert!(!is_of_clients(path) && refused.message().contains("o:1"), "{path}");
                }
                other => panic!("{path}: {other:?}"),
            }
            assert!(Served::All.refusal(path).is_none());
        }
        assert!(main.refusal(HEALTH).is_none() && clients.refusal(HEALTH).is_none());
    }

    #[test]
    fn the_listener_of_clients_answers_nothing_that_is_not_theirs() {
        let (_, clients) = two();
        for path in
            ["/", "/nowhere", "/other.v1.Service/Call", "/shardhost.client.v2.Table/Pipeline"]
        {
            assert!(clients.refusal(path).is_some(), "{path}");
        }
    }
}

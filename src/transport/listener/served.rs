//! Which calls a listener answers, where a host has more than one.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::task::{Context, Poll};

use shardhost_proto::methods::{Audience, Audiences, OTHER_LISTENER, audiences_of};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, StdError};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Who is served at a listener, and where the others are. All listeners answer calls of health; one that is
/// for others gets the address that serves those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    here: Audiences,
    elsewhere: BTreeMap<Audience, String>,
}

impl Served {
    /// All are served here.
    #[must_use]
    pub const fn all() -> Self {
        Self { here: Audiences::ALL, elsewhere: BTreeMap::new() }
    }

    /// All but these are, who have an address of their own.
    #[must_use]
    pub fn all_but(elsewhere: BTreeMap<Audience, String>) -> Self {
        let here: Vec<Audience> =
            Audience::ALL.into_iter().filter(|one| !elsewhere.contains_key(one)).collect();
        Self { here: Audiences::of(&here), elsewhere }
    }

    /// Who is served here.
    #[must_use]
    pub const fn here(&self) -> Audiences {
        self.here
    }

    /// Why a call is not answered here.
    fn refusal(&self, path: &str) -> Option<Status> {
        let asked = audiences_of(path);
        if asked.meet(self.here) || is_of_health(path) {
            return None;
        }
        let here: Vec<&str> = self.here.iter().map(name).collect();
        let mut addresses: Vec<&str> = Vec::new();
        for address in asked.iter().filter_map(|one| self.elsewhere.get(&one)) {
            if !addresses.contains(&address.as_str()) {
                addresses.push(address);
            }
        }
        let served: Vec<String> = addresses.iter().map(|address| self.served_at(address)).collect();
        let message = format!("this address is for {}; {}", here.join(" and "), served.join(", "));
        let facts: HashMap<String, String> =
            self.elsewhere.iter().map(|(one, at)| (one.name().to_owned(), at.clone())).collect();
        let details = ErrorDetails::with_error_info(OTHER_LISTENER, "shardhost", facts);
        Some(Status::with_error_details(Code::FailedPrecondition, message, details))
    }

    /// Who is served at another address.
    fn served_at(&self, address: &str) -> String {
        let all = self.elsewhere.iter().filter(|(_, at)| *at == address);
        let names: Vec<&str> = all.map(|(one, _)| name(*one)).collect();
        format!("{} are served at {address}", names.join(" and "))
    }
}

const fn name(audience: Audience) -> &'static str {
    match audience {
        Audience::Nodes => "nodes",
        Audience::Operators => "operators",
        Audience::Clients => "clients of tables and queues",
    }
}

fn is_of_health(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.")
}

/// Those of the services that a listener answers. A connection over which others are asked for stays one
/// without a request, and ends as such.
#[must_use]
pub fn only(services: Routes, served: Served) -> Routes {
    if served == Served::all() {
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

    /// The listeners of a host where these have one of their own, each with its address.
    fn listeners(apart: &[Audience]) -> Vec<(String, Served)> {
        let all = Audience::ALL.map(|one| {
            let own = if apart.contains(&one) { one.name() } else { Audience::Nodes.name() };
            (one, format!("{own}.example:1"))
        });
        let own = |one: &Audience| all.iter().find(|(who, _)| who == one).unwrap().1.clone();
        let at = |address: String| {
            let elsewhere = all.iter().filter(|(_, at)| *at != address).cloned().collect();
            (address, Served::all_but(elsewhere))
        };
        [Audience::Nodes].iter().chain(apart).map(|one| at(own(one))).collect()
    }

    fn every_set_of_listeners() -> [Vec<(String, Served)>; 4] {
        use Audience::{Clients, Operators};
        [&[][..], &[Clients], &[Operators], &[Operators, Clients]].map(listeners)
    }

    #[test]
    fn each_call_is_answered_by_a_listener_of_those_who_make_it_and_named_by_every_other_one() {
        for listeners in every_set_of_listeners() {
            for path in METHODS {
                let (answer, refuse): (Vec<_>, Vec<_>) =
                    listeners.iter().partition(|(_, served)| served.refusal(path).is_none());
                let served: Vec<Audience> =
                    answer.iter().flat_map(|(_, served)| served.here().iter()).collect();
                for asks in audiences_of(path).iter() {
                    assert!(served.contains(&asks), "{path}: {asks:?} at {answer:?}");
                }
                for (_, refuses) in refuse {
                    let refused = refuses.refusal(path).unwrap();
                    for (address, _) in &answer {
                        let named = format!("are served at {address}");
                        assert!(refused.message().contains(&named), "{path}: {refused}");
                    }
                }
            }
            for (address, served) in &listeners {
                assert!(served.refusal(HEALTH).is_none(), "{address}");
            }
        }
    }

    #[test]
    fn a_listener_answers_nothing_that_is_for_others_alone() {
        let [all, ..] = every_set_of_listeners();
        assert_eq!(all[0].1, Served::all());
        for listeners in every_set_of_listeners() {
            for (address, served) in listeners {
                for path in METHODS {
                    let asked = audiences_of(path);
                    assert_eq!(
                        served.refusal(path).is_none(),
                        asked.meet(served.here()),
                        "{address}: {path}"
                    );
                }
                let of_nodes = served.here().has(Audience::Nodes);
                for path in [
                    "/",
                    "/nowhere",
                    "/other.v1.Service/Call",
                    "/shardhost.client.v2.Table/Pipeline",
                ] {
                    assert_eq!(served.refusal(path).is_none(), of_nodes, "{address}: {path}");
                }
            }
        }
    }

    #[test]
    fn a_refusal_says_who_is_served_where_in_words_and_as_facts() {
        let refusal = |apart: &[Audience], at: usize, path: &str| {
            let refused = listeners(apart)[at].1.refusal(path).unwrap();
            let info = refused.get_error_details().error_info().cloned().unwrap();
            assert_eq!(info.reason, OTHER_LISTENER);
            (refused.message().to_owned(), info.metadata)
        };
        let (status, join) = ("/shardhost.admin.v1.Admin/Status", "/shardhost.admin.v1.Admin/Join");
        let (words, facts) = refusal(&[Audience::Operators], 0, status);
        assert_eq!(
            words,
            "this address is for nodes and clients of tables and queues; operators are served at operators.example:1"
        );
        assert_eq!(facts["operators"], "operators.example:1");
        let (words, facts) = refusal(&[Audience::Clients], 1, status);
        assert_eq!(
            words,
            "this address is for clients of tables and queues; nodes and operators are served at nodes.example:1"
        );
        assert_eq!((&facts["operators"], &facts["nodes"]), (&facts["nodes"], &facts["operators"]));
        let (words, _) = refusal(&[Audience::Operators, Audience::Clients], 2, join);
        assert!(
            words.ends_with(
                "nodes are served at nodes.example:1, operators are served at operators.example:1"
            ),
            "{words}"
        );
    }
}

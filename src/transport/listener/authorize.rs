//! Lets a request in if its caller may make the call, and records what operators do.
//!
//! The caller is who the certificate of the connection names, or who the token of the request belongs to.
//! The record of a call goes to the log with the target [`AUDIT`]: who, which call, what was asked, and the
//! outcome.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use shardhost_security::{Caller, Denied, User, rights};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{Body as HttpBody, BoxFuture, Bytes, Service, StdError};
use tonic::service::Routes;
use tonic::{Code, Status};

use super::table::Connection;

/// Target of the records of calls in the log.
pub const AUDIT: &str = "shardhost::audit";
/// Longest text of what was asked, in characters.
const MAX_ASKED: usize = 512;
/// The same of the path of a call that is not known.
const MAX_PATH: usize = 128;
/// Between two lines about callers that are not known.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Who a token belongs to.
#[derive(Clone, Debug)]
pub struct TokenHolder {
    pub user: User,
    /// Ends when the token does: it was revoked, or expired.
    pub ended: CancellationToken,
}

/// Knows tokens.
pub trait Tokens: Send + Sync + fmt::Debug {
    /// Who a token belongs to; an error: why it counts for nothing.
    fn holder(&self, token: &str) -> Result<TokenHolder, &'static str>;
}

/// Where the tokens of the cluster are known, once that is there.
#[derive(Clone, Debug, Default)]
pub struct KnownTokens(Arc<OnceLock<Arc<dyn Tokens>>>);

impl KnownTokens {
    /// From now on, tokens are looked up there. Of two, the first counts.
    pub fn set(&self, tokens: Arc<dyn Tokens>) {
        self.0.get_or_init(|| tokens);
    }

    fn holder(&self, token: &str) -> Result<TokenHolder, &'static str> {
        match self.0.get() {
            Some(tokens) => tokens.holder(token),
            None => Err("this node knows no tokens"),
        }
    }
}

/// The same services, for callers that may use them.
#[must_use]
pub fn authorize(services: Routes, tokens: &KnownTokens) -> Routes {
    let (inner, strangers) = (services.into_axum_router(), Arc::default());
    let services = Authorize { inner, tokens: tokens.clone(), strangers };
    Routes::default().into_axum_router().fallback_service(services).into()
}

/// What a call asks for, as its record shows it. A service that changes something notes it.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<Mutex<String>>);

/// Notes what a request asks for, for the record of the call. Call it with the request as it came.
pub fn note_asked<T: fmt::Debug>(request: &tonic::Request<T>) {
    if let Some(Asked(asked)) = request.extensions().get() {
        *asked.lock() = shortened(request.get_ref());
    }
}

/// Who sent a request.
#[must_use]
pub fn caller_of<T>(request: &tonic::Request<T>) -> Caller {
    request.extensions().get().cloned().unwrap_or(Caller::Unchecked)
}

fn shortened(asked: &impl fmt::Debug) -> String {
    format!("{asked:?}").chars().take(MAX_ASKED).collect()
}

/// The record of a call that is under way. One that is dropped ended without an outcome that is known: its
/// caller went away.
#[derive(Debug)]
pub struct CallRecord {
    caller: Caller,
    call: String,
    asked: Asked,
    recorded: bool,
}

impl CallRecord {
    fn new(caller: &Caller, call: &str) -> Self {
        let asked = Asked::default();
        Self { caller: caller.clone(), call: call.to_owned(), asked, recorded: false }
    }

    /// Of a change of the catalog, about which a service decides.
    #[must_use]
    pub fn of_change(caller: &Caller, change: &impl fmt::Debug) -> Self {
        let record = Self::new(caller, "a change of the catalog");
        *record.asked.0.lock() = shortened(change);
        record
    }

    /// The call ended so.
    pub fn ends(mut self, outcome: Code) {
        self.write(outcome);
    }

    /// Another node carries it out, and records it.
    pub fn is_passed_on(mut self) {
        self.recorded = true;
    }

    fn write(&mut self, outcome: Code) {
        self.recorded = true;
        let Self { caller, call, asked, .. } = self;
        let asked = &*asked.0.lock();
        tracing::info!(target: AUDIT, %caller, call, asked, ?outcome, "a call");
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if !self.recorded {
            self.write(Code::Unknown);
        }
    }
}

/// Calls of those who are not known: all are counted, and a few are logged, because anyone can make many.
#[derive(Debug, Default)]
struct Strangers {
    logged: Mutex<(u64, Option<Instant>)>,
}

impl Strangers {
    fn note(&self, path: &str, why: &str) {
        let mut logged = self.logged.lock();
        logged.0 += 1;
        let now = Instant::now();
        if logged.1.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL) {
            logged.1 = Some(now);
            let so_far = logged.0;
            let call: String = path.chars().take(MAX_PATH).collect();
            tracing::info!(target: AUDIT, call, why, so_far, "refused a caller that is not known");
        }
    }
}

#[derive(Clone, Debug)]
struct Authorize<S> {
    inner: S,
    tokens: KnownTokens,
    strangers: Arc<Strangers>,
}

impl<S> Authorize<S> {
    /// Who calls, and when that ends.
    fn caller(
        &self,
        connection: Option<&Connection>,
        headers: &HeaderMap,
    ) -> Result<(Caller, Option<CancellationToken>), &'static str> {
        let caller = connection.map_or(Caller::Unchecked, Connection::caller);
        if caller != Caller::Unknown {
            return Ok((caller, None));
        }
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok((caller, None)) };
        let token = header.to_str().ok().and_then(|header| header.strip_prefix("Bearer "));
        let token = token.ok_or("the authorization of a request is `Bearer` and a token")?;
        let TokenHolder { user, ended } = self.tokens.holder(token)?;
        if connection.is_some_and(|connection| !connection.uses(&ended)) {
            return Err("over this connection too many tokens were used; open another one");
        }
        Ok((Caller::User(user), Some(ended)))
    }

    /// Whether the call may be made, who makes it, and until when.
    fn check<B>(
        &self,
        request: &Request<B>,
    ) -> Result<(Caller, Option<CancellationToken>), Status> {
        let path = request.uri().path();
        let found = self.caller(request.extensions().get(), request.headers());
        let (caller, ended) = found.map_err(|why| {
            self.strangers.note(path, why);
            Status::unauthenticated(why)
        })?;
        let Err(denied) = rights::check(&caller, path) else { return Ok((caller, ended)) };
        let refused = refusal(&denied);
        match &caller {
            Caller::Unknown => self.strangers.note(path, refused.message()),
            known if rights::is_recorded(path) => {
                CallRecord::new(known, path).ends(refused.code());
            }
            _ => {}
        }
        Err(refused)
    }
}

impl<S, B, A> Service<Request<B>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<A>, Error = Infallible>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError>,
    A: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    A::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (caller, ended) = match self.check(&request) {
            Ok(found) => found,
            Err(refused) => return Box::pin(async move { Ok(refused.into_http()) }),
        };
        let path = request.uri().path();
        let record = rights::is_recorded(path).then(|| CallRecord::new(&caller, path));
        request.extensions_mut().insert(caller);
        if let Some(record) = &record {
            request.extensions_mut().insert(record.asked.clone());
        }
        let Some(ended) = ended else {
            let answer = self.inner.call(request.map(Body::new));
            return Box::pin(async move { Ok(recorded(answer.await?.map(Body::new), record)) });
        };
        let asking =
            |body| Body::new(Asking { body, ended: Box::pin(ended.clone().cancelled_owned()) });
        let answer = self.inner.call(request.map(asking));
        Box::pin(async move {
            // What a service waits for, as the rest of a request, ends with the token.
            let answer = tokio::select! {
                biased;
                () = ended.cancelled() => over().into_http(),
                answer = answer => {
                    let ended = Some(Box::pin(ended.cancelled_owned()));
                    answer?.map(|body| Body::new(Answer { body, ended }))
                }
            };
            Ok(recorded(answer, record))
        })
    }
}

/// The token of the caller ended. What was asked for may be carried out.
fn over() -> Status {
    Status::cancelled("the token of the caller was removed, or expired")
}

/// Writes down how a call went: one that failed has its outcome among the headers of the answer.
fn recorded(answer: Response<Body>, record: Option<CallRecord>) -> Response<Body> {
    if let Some(record) = record {
        record.ends(outcome_in(answer.headers()).unwrap_or(Code::Ok));
    }
    answer
}

fn refusal(denied: &Denied) -> Status {
    match denied {
        Denied::Unknown => Status::unauthenticated(denied.to_string()),
        Denied::UnknownCall(_) => Status::unimplemented(denied.to_string()),
        _ => Status::permission_denied(denied.to_string()),
    }
}

fn outcome_in(headers: &HeaderMap) -> Option<Code> {
    let status = headers.get("grpc-status")?;
    Some(Code::from_bytes(status.as_bytes()))
}

type Ended = Pin<Box<WaitForCancellationFutureOwned>>;

/// The body of a request by token, which fails when the token ends.
struct Asking<B> {
    body: B,
    ended: Ended,
}

impl<B> HttpBody for Asking<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(over())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        polled
            .map(|frame| frame.map(|frame| frame.map_err(|error| Status::from_error(error.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer to a request by token, which ends when the token does.
struct Answer<A> {
    body: A,
    ended: Option<Ended>,
}

impl<A: HttpBody<Data = Bytes> + Unpin> HttpBody for Answer<A> {
    type Data = Bytes;
    type Error = A::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, A::Error>>> {
        let Some(ended) = &mut self.ended else { return Poll::Ready(None) };
        if ended.as_mut().poll(cx).is_ready() {
            self.ended = None;
            let trailers = over().into_http::<Body>().headers().clone();
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.ended.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConnectionLimits, Connections};
    use super::*;

    /// One user with one token.
    #[derive(Debug)]
    struct One(CancellationToken);

    impl Tokens for One {
        fn holder(&self, token: &str) -> Result<TokenHolder, &'static str> {
            match token {
                "ann" => {
                    let grants = "operator".parse().unwrap();
                    let user = User { name: token.to_owned(), grants };
                    Ok(TokenHolder { user, ended: self.0.clone() })
                }
                _ => Err("the token is not known"),
            }
        }
    }

    /// Part of a body, after which nothing comes.
    struct Half(Option<Bytes>);

    impl HttpBody for Half {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.take() {
                Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
                None => Poll::Pending,
            }
        }
    }

    /// Reads a request to its end, and then answers without one.
    #[derive(Clone)]
    struct Reads(Arc<Mutex<Vec<String>>>);

    impl Service<Request<Body>> for Reads {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Response<Body>, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let seen = Arc::clone(&self.0);
            let caller = request.extensions().get::<Caller>().cloned().unwrap();
            seen.lock().push(caller.to_string());
            let streams = request.uri().path().ends_with("/Pipeline");
            Box::pin(async move {
                if streams {
                    let body = request.into_body();
                    tokio::spawn(async move {
                        let mut body = std::pin::pin!(body);
                        let next = |cx: &mut Context<'_>| body.as_mut().poll_frame(cx);
                        let mut next = std::future::poll_fn(next);
                        while let Some(Ok(_)) = (&mut next).await {}
                        seen.lock().push("the request ended".to_owned());
                    });
                    return Ok(Response::new(Body::new(Half(None))));
                }
                let mut body = std::pin::pin!(request.into_body());
                let mut next = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx));
                while let Some(Ok(_)) = (&mut next).await {}
                seen.lock().push("the request ended".to_owned());
                Ok(Response::new(Body::empty()))
            })
        }
    }

    struct World {
        service: Authorize<Reads>,
        seen: Arc<Mutex<Vec<String>>>,
        ended: CancellationToken,
        connection: Connection,
    }

    impl World {
        /// A connection over TLS without a certificate.
        fn new() -> Self {
            let (tokens, ended, seen) =
                (KnownTokens::default(), CancellationToken::new(), Arc::default());
            tokens.set(Arc::new(One(ended.clone())));
            let inner = Reads(Arc::clone(&seen));
            let service = Authorize { inner, tokens, strangers: Arc::default() };
            let (connection, _) = Connections::new(ConnectionLimits::of(64)).enter();
            Self { service, seen, ended, connection }
        }

        fn request(&self, path: &str, token: Option<&str>) -> Request<Half> {
            let mut request = Request::new(Half(Some(Bytes::from_static(b"half"))));
            *request.uri_mut() = path.parse().unwrap();
            request.extensions_mut().insert(self.connection.clone());
            if let Some(token) = token {
                let token = format!("Bearer {token}").parse().unwrap();
                request.headers_mut().insert(AUTHORIZATION, token);
            }
            request
        }
    }

    const DRAIN: &str = "/shardhost.balance.v1.Balance/Drain";

    fn code(answer: &Response<Body>) -> Option<Code> {
        outcome_in(answer.headers())
    }

    #[tokio::test]
    async fn who_is_not_known_or_lacks_a_grant_reaches_no_service() {
        let mut world = World::new();
        for (path, token, expected) in [
            (DRAIN, None, Code::Unauthenticated),
            (DRAIN, Some("eve"), Code::Unauthenticated),
            ("/shardhost.admin.v1.Admin/RemoveNode", Some("ann"), Code::PermissionDenied),
            ("/shardhost.peer.v1.Peer/Exchange", Some("ann"), Code::PermissionDenied),
            ("/shardhost.balance.v1.Balance/Drain/", Some("ann"), Code::Unimplemented),
            ("/nowhere", Some("ann"), Code::Unimplemented),
            ("/nowhere", None, Code::Unimplemented),
        ] {
            let request = world.request(path, token);
            let answer = world.service.call(request).await.unwrap();
            assert_eq!(code(&answer), Some(expected), "{path} {token:?}");
        }
        assert!(world.seen.lock().is_empty());
    }

    /// A request could be begun with a token, and completed long after that was removed.
    #[tokio::test]
    async fn a_request_that_is_half_there_ends_with_its_token() {
        let mut world = World::new();
        let request = world.request(DRAIN, Some("ann"));
        let answer = tokio::spawn(world.service.call(request));
        while world.seen.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        world.ended.cancel();
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(code(&answer), Some(Code::Cancelled));
        assert_eq!(*world.seen.lock(), ["user ann (operator)"], "the service never got all of it");
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_token_on_both_ways() {
        let mut world = World::new();
        let request = world.request("/shardhost.client.v1.Table/Pipeline", Some("ann"));
        let answer = world.service.call(request).await.unwrap();
        let mut body = std::pin::pin!(answer.into_body());
        world.ended.cancel();
        let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await.unwrap().unwrap();
        let trailers = frame.into_trailers().ok().unwrap();
        assert_eq!(outcome_in(&trailers), Some(Code::Cancelled));
        assert!(std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await.is_none());
        while world.seen.lock().len() < 2 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn without_tls_nothing_is_checked() {
        let world = World::new();
        let request: Request<Half> = Request::new(Half(None));
        let (caller, ended) = world.service.check(&request).unwrap();
        assert!(caller == Caller::Unchecked && ended.is_none());
    }
}

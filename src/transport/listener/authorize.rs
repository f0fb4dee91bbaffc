//! Lets a request in if its caller may make the call, and records what operators do.
//!
//! The caller is who the certificate of the connection names, or who the token of the request belongs to.
//! The record of a call goes to the log with the target [`AUDIT`]: who, which call, what was asked, and the
//! outcome.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
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
pub struct KnownTokens(Arc<ArcSwapOption<Arc<dyn Tokens>>>);

impl KnownTokens {
    /// From now on, tokens are looked up there.
    pub fn set(&self, tokens: Arc<dyn Tokens>) {
        self.0.store(Some(Arc::new(tokens)));
    }

    fn holder(&self, token: &str) -> Result<TokenHolder, &'static str> {
        match &*self.0.load() {
            Some(tokens) => tokens.holder(token),
            None => Err("this node knows no tokens"),
        }
    }
}

/// The same services, for callers that may use them.
#[must_use]
pub fn authorize(services: Routes, tokens: &KnownTokens) -> Routes {
    let services = Authorize { inner: services.into_axum_router(), tokens: tokens.clone() };
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

/// Records a call that a service decided about itself.
pub fn record_call(caller: &Caller, call: &str, asked: &impl fmt::Debug, outcome: Code) {
    record(caller, call, &shortened(asked), outcome);
}

fn shortened(asked: &impl fmt::Debug) -> String {
    format!("{asked:?}").chars().take(MAX_ASKED).collect()
}

fn record(caller: &Caller, call: &str, asked: &str, outcome: Code) {
    tracing::info!(target: AUDIT, %caller, call, asked, ?outcome, "a call");
}

#[derive(Clone, Debug)]
struct Authorize<S> {
    inner: S,
    tokens: KnownTokens,
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
        Ok((Caller::User(user), Some(ended)))
    }
}

impl<S, B, A> Service<Request<B>> for Authorize<S>
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let connection: Option<&Connection> = request.extensions().get();
        let found = self.caller(connection, request.headers());
        let (caller, ended) = match found {
            Ok(found) => found,
            Err(why) => {
                let refused = Status::unauthenticated(why).into_http();
                return Box::pin(async { Ok(refused) });
            }
        };
        let path = request.uri().path();
        let recorded = rights::is_recorded(path).then(|| Record::new(&caller, path));
        if let Err(denied) = rights::check(&caller, path) {
            let refused = refusal(&denied);
            if let Some(record) = recorded {
                record.ends(refused.code());
            }
            return Box::pin(async { Ok(refused.into_http()) });
        }
        request.extensions_mut().insert(caller);
        if let Some(record) = &recorded {
            request.extensions_mut().insert(record.asked.clone());
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let mut recorded = recorded;
            // An answer without content has its outcome among its headers.
            if let Some(outcome) = outcome_in(answer.headers())
                && let Some(record) = recorded.take()
            {
                record.ends(outcome);
            }
            if recorded.is_none() && ended.is_none() {
                return Ok(answer.map(Body::new));
            }
            let ended = ended.map(|ended| Box::pin(ended.cancelled_owned()));
            Ok(answer.map(|body| Body::new(Answer { body, recorded, ended })))
        })
    }
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

/// The record of a call that is under way. One that is dropped ended without an answer.
struct Record {
    caller: Caller,
    call: String,
    asked: Asked,
    recorded: bool,
}

impl Record {
    fn new(caller: &Caller, call: &str) -> Self {
        let asked = Asked::default();
        Self { caller: caller.clone(), call: call.to_owned(), asked, recorded: false }
    }

    fn ends(mut self, outcome: Code) {
        self.recorded = true;
        record(&self.caller, &self.call, &self.asked.0.lock(), outcome);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.recorded {
            record(&self.caller, &self.call, &self.asked.0.lock(), Code::Cancelled);
        }
    }
}

/// The body of an answer: its end says how the call went, and comes early if the caller's token ends.
struct Answer<A> {
    body: A,
    recorded: Option<Record>,
    ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl<A: HttpBody<Data = Bytes> + Unpin> HttpBody for Answer<A> {
    type Data = Bytes;
    type Error = A::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, A::Error>>> {
        if let Some(ended) = &mut self.ended
            && ended.as_mut().poll(cx).is_ready()
        {
            self.ended = None;
            let status = Status::cancelled("the token of the caller was removed, or expired");
            if let Some(record) = self.recorded.take() {
                record.ends(status.code());
            }
            let trailers = status.into_http::<Body>().headers().clone();
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(outcome) = frame.trailers_ref().and_then(outcome_in)
            && let Some(record) = self.recorded.take()
        {
            record.ends(outcome);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

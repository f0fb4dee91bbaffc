//! Channels of gRPC to nodes: over TLS or not, with a token or without.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use shardhost_proto::ids::NodeId;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderValue, Request, Response, Uri};
use tonic::transport::{Channel as Plain, Endpoint, Error};
use tower_service::Service;

use super::connect::{TlsStream, connect};
use super::credentials::Credentials;

/// A secret that says who a user is. It is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(HeaderValue);

impl Token {
    /// A token as it was handed out; `None`: no token looks so.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let graphic = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut value =
            HeaderValue::from_str(&format!("Bearer {text}")).ok().filter(|_| graphic)?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// How a process reaches nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// `None`: without TLS.
    pub credentials: Option<Credentials>,
    /// Sent over TLS alone.
    pub token: Option<Token>,
}

impl Security {
    /// With these certificates, or without TLS, and without a token: as nodes reach each other.
    #[must_use]
    pub fn without_token(credentials: impl Into<Option<Credentials>>) -> Self {
        Self { credentials: credentials.into(), token: None }
    }

    /// A channel that connects when it is used.
    #[must_use]
    pub fn lazily(&self, endpoint: &Endpoint, meant: Option<NodeId>) -> Channel {
        let inner = match &self.credentials {
            None => endpoint.connect_lazy(),
            Some(credentials) => {
                endpoint.connect_with_connector_lazy(self.dialer(credentials, meant))
            }
        };
        self.channel(inner)
    }

    /// A channel that is connected.
    ///
    /// # Errors
    /// The node is not reached, or it is another one than is meant.
    pub async fn now(&self, endpoint: &Endpoint, meant: Option<NodeId>) -> Result<Channel, Error> {
        let inner = match &self.credentials {
            None => endpoint.connect().await?,
            Some(credentials) => {
                endpoint.connect_with_connector(self.dialer(credentials, meant)).await?
            }
        };
        Ok(self.channel(inner))
    }

    fn dialer(&self, credentials: &Credentials, meant: Option<NodeId>) -> Dialer {
        Dialer { credentials: credentials.clone(), meant }
    }

    fn channel(&self, inner: Plain) -> Channel {
        let token = self.token.clone().filter(|_| self.credentials.is_some());
        Channel { inner, token: token.map(|Token(value)| value) }
    }
}

/// What went wrong on the way to a node, from the nearest cause to the deepest. A node that refused was
/// reached: there is none.
fn causes(status: &tonic::Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |cause| (*cause).source())
}

/// The cause that lies deepest, in its words, if it has any.
#[must_use]
pub fn deepest_cause(status: &tonic::Status) -> Option<String> {
    causes(status).last().map(ToString::to_string).filter(|words| !words.is_empty())
}

/// Whether a request was not sent: there was no connection to send on.
#[must_use]
pub fn is_not_sent(status: &tonic::Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::ConnectError>())
}

/// A channel to a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: Plain,
    token: Option<HeaderValue>,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Error;
    type Future = tonic::transport::channel::ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        self.inner.call(request)
    }
}

/// Connects over TLS.
#[derive(Clone, Debug)]
struct Dialer {
    credentials: Credentials,
    meant: Option<NodeId>,
}

type Dialed = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

impl Service<Uri> for Dialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Dialed;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Dialed {
        let Self { credentials, meant } = self.clone();
        Box::pin(async move {
            let address = uri.authority().map(|authority| authority.as_str().to_owned());
            let address = address.ok_or_else(|| io::Error::other("an address without a host"))?;
            connect(&address, &credentials, meant).await.map(TokioIo::new)
        })
    }
}

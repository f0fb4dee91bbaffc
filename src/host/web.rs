//! Pages and metrics of a host over HTTP, on a listener of its own: who asks is checked as for calls.

use std::io;
use std::net::SocketAddr;

use shardhost_security::Credentials;
use tonic::body::Body;
use tonic::codegen::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use tonic::codegen::http::{HeaderValue, Response, StatusCode};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Code, Status};

use super::Host;
use super::answers::answering;
use crate::transport::{ConnectionLimits, Connections, admit_clients, authorize, incoming_within};

/// Connections at most: a browser opens a few for each page that is open.
const MOST_CONNECTIONS: usize = 256;
/// Headers of a request at most, and requests of one connection at a time.
const HEADER_LIST_BYTES: u32 = 16 << 10;
const MOST_STREAMS_PER_CONNECTION: u32 = 64;

impl Host {
    /// Answers requests over HTTP/1.1 and HTTP/2 at a listener of its own, until the host stops. Who asks is
    /// known as for calls, by a certificate or a token, and may ask for what
    /// [`rights`](shardhost_security::rights) lists under the path.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn serve_pages(
        &self,
        listener: std::net::TcpListener,
        pages: Routes,
    ) -> io::Result<SocketAddr> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let socket = tokio::net::TcpListener::from_std(listener)?;
        let connections = Connections::new(ConnectionLimits::of(MOST_CONNECTIONS));
        let pages = answering(authorize(admit_clients(pages), &self.inner.tokens), as_page);
        let credentials = self.inner.config.credentials.as_ref().map(Credentials::for_pages);
        let incoming = incoming_within(socket, &connections, credentials);
        let stop = self.inner.stop.clone();
        let serving = tokio::spawn(async move {
            let stopped = async move { stop.cancelled().await };
            server().add_routes(pages).serve_with_incoming_shutdown(incoming, stopped).await
        });
        self.serving.lock().tasks.push(serving);
        Ok(address)
    }
}

fn server() -> Server {
    Server::builder()
        .accept_http1(true)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .max_concurrent_streams(MOST_STREAMS_PER_CONNECTION)
}

/// The answer to a refused call, as the status of a page.
fn as_page(answer: Response<Body>) -> Response<Body> {
    let Some(refused) = Status::from_header_map(answer.headers()) else { return answer };
    let (code, text) = (page_code(refused.code()), format!("{}\n", refused.message()));
    let mut page = Response::new(Body::new(text));
    *page.status_mut() = code;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    page.headers_mut().insert(CONTENT_TYPE, text);
    if code == StatusCode::UNAUTHORIZED {
        page.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    page
}

const fn page_code(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Unauthenticated | Code::Cancelled => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unimplemented | Code::NotFound => StatusCode::NOT_FOUND,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::ResourceExhausted | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

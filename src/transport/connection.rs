//! Settings of the HTTP/2 connections, on the side that connects and the side that listens.
//!
//! The defaults of HTTP/2 are made for browsers: windows of 64 KiB stall a stream of appends, and
//! a silent peer is never noticed.

use std::error::Error;
use std::time::Duration;

use shardhost_security::channel::{Channel, Security};
use shardhost_storage::NodeId;
use tonic::transport::{Endpoint, Server};

use super::config::TransportConfig;
use super::sender::LaneError;

/// Bytes a stream may carry ahead of what the receiver took: so much for each round trip.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for all streams of a connection. Streams that are not read leave what they carry in it, so a
/// service that reads some of its streams later bounds their number: together they must not fill it.
pub const CONNECTION_WINDOW_BYTES: u32 = 40 << 20;
/// Largest HTTP/2 frame that is accepted; one system call writes one.
const HTTP2_FRAME_BYTES: u32 = 256 << 10;
/// Most bytes of the headers of a request.
const HEADER_LIST_BYTES: u32 = 16 << 10;
/// Streams that a connection may have open.
const MOST_STREAMS_PER_CONNECTION: u32 = 1024;
/// A connection over which nothing comes for this long is asked whether it is alive,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// and is given this long to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a connection to a peer.
pub(super) async fn connect(
    config: &TransportConfig,
    node: NodeId,
    address: &str,
) -> Result<Channel, LaneError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| LaneError::Address(address.to_owned(), chain(&error)))?
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let security = Security::without_token(config.credentials.clone());
    let connected = security.now(&endpoint, Some(node)).await;
    connected.map_err(|error| LaneError::Connect(address.to_owned(), chain(&error)))
}

/// A server with the settings that the peer streams need; the host adds its services to it.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .max_concurrent_streams(MOST_STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// An error with all its causes in a line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

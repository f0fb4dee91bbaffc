//! How a node is connected to.

use std::time::Duration;

use shardhost_security::channel::{Channel, deepest_cause};
use tonic::transport::Endpoint;

use super::options::ClientOptions;

const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// A node that vanished without a word is noticed after both.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a node refused, or what went wrong on the way, in words for people: the message, and the cause
/// that lies deepest.
pub(super) fn words_of(status: &tonic::Status) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    match deepest_cause(status) {
        Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
        _ => message.to_owned(),
    }
}

/// A channel that connects when it is first used.
pub(super) fn open(address: &str, options: &ClientOptions) -> Result<Channel, String> {
    let uri =
        if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|error| format!("{address:?} is no address of a node: {error}"))?
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(options.security.lazily(&endpoint, None))
}

#[cfg(test)]
mod tests {
    use shardhost_proto::admin::ShowGroupRequest;
    use shardhost_proto::admin::admin_client::AdminClient;

    use super::*;

    #[tokio::test]
    async fn a_node_that_is_not_there_is_told_without_the_types_of_the_library() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let channel = open(&unused.to_string(), &ClientOptions::default()).unwrap();
        let asked = AdminClient::new(channel).show_group(ShowGroupRequest { group: 7 }).await;
        let status = asked.unwrap_err();
        let words = words_of(&status);
        assert!(words.contains("refused"), "{words}");
        for raw in ["source", "Transport(", "ConnectError", "Os {"] {
            assert!(!words.contains(raw), "{raw}: {words}");
        }
    }

    #[test]
    fn what_a_node_says_itself_is_said_as_it_is() {
        assert_eq!(words_of(&tonic::Status::not_found("no group 7 here")), "no group 7 here");
        assert!(!words_of(&tonic::Status::unavailable("")).is_empty());
    }
}

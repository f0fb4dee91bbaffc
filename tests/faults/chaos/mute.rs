//! Clients that ask and read nothing, and connections that say nothing.

use std::time::Duration;

use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{Get, TableBatch, TableReplies, TableRequest};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const SILENT: usize = 40;
const STREAMS: usize = 8;
/// Gets that each stream asks for.
const BATCHES: usize = 20;
const GETS: u64 = 200;
const CONNECTING: Duration = Duration::from_secs(1);

/// They are there until this is dropped.
pub struct Mute {
    _silent: Vec<TcpStream>,
    _streams: Vec<(mpsc::Sender<TableBatch>, Streaming<TableReplies>)>,
}

impl Mute {
    /// Connects to a host as far as that lets it. `group` is a shard that it may lead.
    pub async fn connect(address: &str, group: u64, key: &str) -> Self {
        let mut silent = Vec::new();
        for _ in 0..SILENT {
            let made = tokio::time::timeout(CONNECTING, TcpStream::connect(address)).await;
            silent.extend(made.ok().and_then(Result::ok));
        }
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let made = tokio::time::timeout(CONNECTING, stream(address, group, key)).await;
            streams.extend(made.ok().flatten());
        }
        Self { _silent: silent, _streams: streams }
    }
}

async fn stream(
    address: &str,
    group: u64,
    key: &str,
) -> Option<(mpsc::Sender<TableBatch>, Streaming<TableReplies>)> {
    let mut client = TableClient::connect(format!("http://{address}")).await.ok()?;
    let (batches, receiver) = mpsc::channel(BATCHES);
    for batch in 0..BATCHES as u64 {
        let get = |number: u64| TableRequest {
            id: batch * GETS + number + 1,
            group,
            operation: Some(Operation::Get(Get { key: key.to_owned().into(), consistency: 0 })),
            ..TableRequest::default()
        };
        let requests = (0..GETS).map(get).collect();
        batches.try_send(TableBatch { requests }).ok()?;
    }
    let replies = client.pipeline(ReceiverStream::new(receiver)).await.ok()?.into_inner();
    Some((batches, replies))
}

//! Requests that wait take the memory that they are charged for, and no more.

use shardhost_proto::client::directory_client::DirectoryClient;
use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{Get, Put, ShardsRequest, TableBatch, TableReplies, TableRequest};
use shardhost_proto::limits::MAX_BATCH_REQUESTS;
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::service::MAX_STREAMS_PER_CONNECTION;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::host::{Host, TIMEOUT, peak_memory, resident_memory};
use super::needs::{Need, are_there};

const CLIENT_MEMORY_MIB: usize = 96;
/// What may come in addition: requests in the windows of a connection, and what the allocator keeps.
const BESIDE_MIB: usize = 64;
const MIB: usize = 1024 * 1024;

/// One stream of requests to a group.
struct Calls {
    group: u64,
    batches: mpsc::Sender<TableBatch>,
    replies: Streaming<TableReplies>,
}

impl Calls {
    async fn open(client: &mut TableClient<Channel>, group: u64) -> Self {
        let (batches, receiver) = mpsc::channel(2);
        let replies = client.pipeline(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { group, batches, replies }
    }

    async fn send(&self, operations: impl IntoIterator<Item = Operation>) {
        let request = |(id, operation)| TableRequest {
            id,
            group: self.group,
            operation: Some(operation),
            ..TableRequest::default()
        };
        let requests = (1..).zip(operations).map(request).collect();
        self.batches.send(TableBatch { requests }).await.unwrap();
    }
}

fn get() -> Operation {
    Operation::Get(Get { key: "k".into(), ..Get::default() })
}

/// The group of one of the tables of a host.
async fn table_of(host: &Host) -> u64 {
    let mut directory = DirectoryClient::connect(format!("http://{}", host.address)).await.unwrap();
    let request = ShardsRequest { kind: TABLE_KIND.to_owned() };
    directory.shards(request).await.unwrap().into_inner().shards[0].group
}

/// A table whose answers are so long that a client that takes none soon keeps its reads waiting.
async fn with_long_answers(host: &mut Host) -> u64 {
    host.serves("before").await;
    let group = table_of(host).await;
    let mut client = TableClient::connect(format!("http://{}", host.address)).await.unwrap();
    let mut calls = Calls::open(&mut client, group).await;
    let put = Put { key: "k".into(), value: vec![7; 64 * 1024].into() };
    calls.send([Operation::Put(put)]).await;
    assert!(calls.replies.message().await.unwrap().is_some());
    group
}

/// Each waits for one of the few places of its group. The client takes no answer, and others wait, so it
/// loses its connection: before that, the host has taken from it all that it may.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_reads_that_wait_take_no_more_memory_than_clients_may() {
    if !are_there("many_small_reads_that_wait_take_no_more_memory_than_clients_may", &[Need::Proc])
    {
        return;
    }
    let directory = TempDir::new().unwrap();
    let memory = format!("node = 1\nalone = true\nclient-memory-mib = {CLIENT_MEMORY_MIB}\n");
    let mut host = Host::configured(directory.path(), &memory);
    let group = with_long_answers(&mut host).await;
    let mut client = TableClient::connect(format!("http://{}", host.address)).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS_PER_CONNECTION {
        streams.push(Calls::open(&mut client, group).await);
    }
    let before = resident_memory(host.process());
    for calls in &streams {
        for _ in 0..2 {
            calls.send((0..MAX_BATCH_REQUESTS).map(|_| get())).await;
        }
    }
    timeout(TIMEOUT, streams[0].batches.closed()).await.expect("the connection is cut in time");
    let took = peak_memory(host.process()).saturating_sub(before) / MIB;
    assert!(
        took < CLIENT_MEMORY_MIB + BESIDE_MIB,
        "clients took {took} MiB of {CLIENT_MEMORY_MIB}"
    );
    host.serves("after").await;
}

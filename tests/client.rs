//! The services and the client on three real hosts, over loopback.

#[path = "support/in_process.rs"]
mod in_process;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use in_process::InProcess;
use shardhost::{GroupId, LogIndex, NodeId, Shutdown};
use shardhost_client::{Client, ClientError, ClientOptions};
use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{
    Consistency, FailureReason, Get, Put, TableBatch, TableReply, TableRequest,
};
use shardhost_proto::limits::{MAX_BATCH_BYTES, MAX_BATCH_REQUESTS};
use shardhost_proto::shard_map::{QUEUE_KIND, TABLE_KIND};
use shardhost_server::config::ShardCounts;
use shardhost_server::group_of_shard;
use shardhost_server::service::MAX_IN_FLIGHT_REQUESTS;
use shardhost_server::shards::table::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const NODES: u64 = 3;
const TABLES: u64 = 4;
const QUEUES: u64 = 2;
const SOON: Duration = Duration::from_secs(30);

/// Three hosts of one cluster.
struct Cluster(InProcess);

impl Cluster {
    async fn start() -> Self {
        let servers = InProcess::start(NODES, |_, config| {
            config.shards =
                ShardCounts { tables: TABLES, queues: QUEUES, ..ShardCounts::default() };
        });
        let cluster = Self(servers.await);
        cluster.0.await_shards().await;
        cluster
    }

    async fn client(&self) -> Client {
        let options = ClientOptions { deadline: SOON, ..ClientOptions::default() };
        Client::connect(self.0.addresses.values().cloned(), options).await.unwrap()
    }

    async fn stop(self) {
        self.0.stop().await;
    }

    /// The node that leads a group, once one does.
    async fn leader_of(&self, group: GroupId) -> u64 {
        let server = self.0.running.values().next().unwrap();
        let group = server.host().group(group).unwrap();
        let status = group.wait_for(|status| status.leader.is_some(), SOON).await.unwrap();
        status.leader.unwrap().node.get()
    }

    async fn stream_to(&self, node: u64) -> RawStream {
        let address = format!("http://{}", self.0.addresses[&node]);
        let mut client = TableClient::connect(address).await.unwrap();
        let (batches, receiver) = mpsc::channel(1);
        let replies = client.pipeline(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        RawStream { batches, replies }
    }
}

/// A stream of the table service without the client's help.
struct RawStream {
    batches: mpsc::Sender<TableBatch>,
    replies: Streaming<shardhost_proto::client::TableReplies>,
}

impl RawStream {
    async fn ask(&mut self, requests: Vec<TableRequest>) -> BTreeMap<u64, Answer> {
        let count = requests.len();
        self.batches.send(TableBatch { requests }).await.unwrap();
        let replies = self.replies(count).await;
        replies.into_iter().map(|reply| (reply.id, reply.result.unwrap())).collect()
    }

    async fn replies(&mut self, count: usize) -> Vec<TableReply> {
        let mut replies = Vec::new();
        while replies.len() < count {
            let more = timeout(SOON, self.replies.message()).await.unwrap().unwrap();
            replies.extend(more.expect("the stream goes on").replies);
        }
        replies
    }
}

fn put(id: u64, group: GroupId, key: &str) -> TableRequest {
    let put = Put { key: key.to_owned().into(), value: "v".into() };
    TableRequest {
        id,
        group: group.get(),
        map: 0,
        session: None,
        operation: Some(Operation::Put(put)),
    }
}

fn table(shard: u64) -> GroupId {
    group_of_shard(TABLE_KIND, shard).unwrap()
}

fn reason(answer: &Answer) -> Option<FailureReason> {
    match answer {
        Answer::Failure(failure) => Some(failure.reason()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_keeps_what_it_is_given() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let words = client.table();

    let first = words.put("apple", "red").await.unwrap();
    assert!(first.done && !first.existed && first.index > 0);
    assert!(words.put("apple", "green").await.unwrap().existed);
    assert_eq!(words.get("apple").await.unwrap().as_deref(), Some(&b"green"[..]));
    assert_eq!(words.get("pear").await.unwrap(), None);

    let wrong = words.compare_and_set("apple", Some("red".into()), None).await.unwrap();
    assert_eq!((wrong.done, wrong.actual.as_deref()), (false, Some(&b"green"[..])));
    let right = words.compare_and_set("apple", Some("green".into()), None).await.unwrap();
    assert!(right.done);
    assert_eq!(words.get("apple").await.unwrap(), None);
    assert!(!words.delete("apple").await.unwrap().existed);

    let too_long = words.put("k".repeat(MAX_KEY_BYTES + 1), "v").await.unwrap_err();
    assert!(matches!(too_long, ClientError::Invalid { .. }) && too_long.is_definite());
    let too_large = words.put("k", vec![0; MAX_VALUE_BYTES + 1]).await.unwrap_err();
    assert!(matches!(too_large, ClientError::Invalid { .. }), "{too_large}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_goes_through_all_shards_in_order_page_by_page() {
    let cluster = Cluster::start().await;
    let words = cluster.client().await.table();
    let keys: BTreeSet<String> = (0..500).map(|number| format!("key-{number:03}")).collect();
    let puts = keys.iter().map(|key| words.put(key.clone(), key.clone()));
    assert!(join_all(puts).await.iter().all(Result::is_ok));

    let mut found = Vec::new();
    let mut next = Some(Bytes::new());
    while let Some(from) = next {
        let page = words.scan(from, "key-450", Some(97)).await.unwrap();
        assert!(page.pairs.len() <= 97);
        found.extend(page.pairs.into_iter().map(|pair| pair.key));
        next = page.next;
    }
    let expected: Vec<Bytes> =
        keys.iter().filter(|key| key.as_str() < "key-450").map(|key| key.clone().into()).collect();
    assert_eq!(found, expected);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_shows_a_write_once_it_has_applied_it() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let words = client.table();
    let written = words.put("apple", "red").await.unwrap();
    let group = words.group_of(b"apple").unwrap();
    for node in client.nodes().into_keys() {
        let index = LogIndex::new(written.index);
        client.wait_applied(node, group, index, SOON).await.unwrap();
        let value = words.get_via(node, "apple").await.unwrap();
        assert_eq!(value.as_deref(), Some(&b"red"[..]), "through node {node}");
    }
    let far = LogIndex::new(u64::MAX);
    let short = Duration::from_millis(50);
    let late = client.wait_applied(NodeId::must(1), group, far, short).await.unwrap_err();
    assert!(late.to_string().contains("has applied"), "{late}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_delivers_each_partition_in_order() {
    let cluster = Cluster::start().await;
    let jobs = cluster.client().await.queue();
    let partitions = ["red", "green", "blue"];
    for number in 0..20u32 {
        let sends = partitions.map(|key| {
            let id = format!("{key}-{number}");
            jobs.send(key, number.to_string(), id)
        });
        assert!(join_all(sends).await.iter().all(|sent| !sent.as_ref().unwrap().duplicate));
    }
    let again = jobs.send("red", "again", "red-0").await.unwrap();
    assert!(again.duplicate);
    let shard = jobs.shard_of(b"red").unwrap();
    let seen = jobs.peek(shard, 0, None).await.unwrap().messages;
    assert!(seen.iter().filter(|message| &message.partition_key[..] == b"red").count() == 20);

    let mut received: BTreeMap<Bytes, Vec<u32>> = BTreeMap::new();
    for shard in 0..jobs.shards() {
        loop {
            let batch = jobs.receive(shard, 7, Duration::from_secs(60)).await.unwrap();
            if batch.messages.is_empty() {
                break;
            }
            for message in &batch.messages {
                let number = String::from_utf8_lossy(&message.body).parse().unwrap();
                received.entry(message.partition_key.clone()).or_default().push(number);
            }
            let acked = jobs.ack(shard, batch.receipts()).await.unwrap();
            assert_eq!((acked.acked as usize, acked.stale), (batch.messages.len(), 0));
        }
    }
    let all: Vec<u32> = (0..20).collect();
    assert_eq!(received.len(), partitions.len());
    assert!(received.values().all(|numbers| *numbers == all), "{received:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_operations_at_once_survive_the_loss_of_a_host() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let words = client.table();
    let victim = cluster.leader_of(table(0)).await;
    let put_all = |round: u32| {
        let words = words.clone();
        async move {
            let puts = (0..2_000u32).map(|key| words.put(format!("{key}"), format!("{round}")));
            join_all(puts).await
        }
    };
    assert!(put_all(0).await.iter().all(Result::is_ok));
    let server = cluster.0.running.remove(&victim).unwrap();
    let (written, ()) = tokio::join!(put_all(1), server.shutdown(Shutdown::Immediate));
    for outcome in written {
        outcome.unwrap();
    }
    let values = join_all((0..2_000u32).map(|key| words.get(format!("{key}")))).await;
    for value in values {
        assert_eq!(value.unwrap().as_deref(), Some(&b"1"[..]));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_disturbs_no_other_of_its_batch() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader_of(table(0)).await;
    cluster.client().await.table().put("warm-up", "v").await.unwrap();
    let mut stream = cluster.stream_to(leader).await;
    let queue = group_of_shard(QUEUE_KIND, 0).unwrap();
    let get = |consistency: Consistency| {
        Operation::Get(Get { key: "k".into(), consistency: consistency.into() })
    };
    let request = |id, group: GroupId, operation| TableRequest {
        id,
        group: group.get(),
        operation,
        ..TableRequest::default()
    };
    let requests = vec![
        put(1, table(0), "before"),
        request(2, table(0), None),
        put(3, GroupId::new(77), "nowhere"),
        put(4, queue, "wrong kind"),
        put(5, table(0), &"k".repeat(MAX_KEY_BYTES + 1)),
        request(6, GroupId::new(77), Some(get(Consistency::Linearizable))),
        request(7, table(0), Some(get(Consistency::Stale))),
        put(8, table(0), "behind"),
        put(8, table(0), "the same id again"),
    ];
    let count = requests.len();
    stream.batches.send(TableBatch { requests }).await.unwrap();
    let replies = stream.replies(count).await;
    let mut reasons: Vec<_> =
        replies.iter().map(|reply| (reply.id, reason(reply.result.as_ref().unwrap()))).collect();
    reasons.sort_by_key(|(id, _)| *id);
    let expected = [
        (1, None),
        (2, Some(FailureReason::Invalid)),
        (3, Some(FailureReason::UnknownGroup)),
        (4, Some(FailureReason::UnknownGroup)),
        (5, Some(FailureReason::Invalid)),
        (6, Some(FailureReason::UnknownGroup)),
        (7, None),
        (8, None),
        (8, None),
    ];
    assert_eq!(reasons, expected);
    cluster.stop().await;
}

/// An operation that no stream takes is refused by the client: it would break the stream of all
/// others, again with each try.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_is_far_too_large_disturbs_no_other() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let (words, jobs) = (client.table(), client.queue());
    words.put("k", "before").await.unwrap();
    let shard = jobs.shard_of(b"k").unwrap();
    let huge = || Bytes::from(vec![7; 2 * MAX_BATCH_BYTES]);
    let (put, sent, acked) = tokio::join!(
        timeout(SOON / 3, words.put("k", huge())),
        timeout(SOON / 3, jobs.send("k", huge(), "id")),
        timeout(SOON / 3, jobs.ack(shard, (0..MAX_BATCH_BYTES as u64).map(|at| u64::MAX - at))),
    );
    let refused = [
        put.expect("it is refused at once").unwrap_err(),
        sent.expect("it is refused at once").unwrap_err(),
        acked.expect("it is refused at once").unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, ClientError::Invalid { .. }) && error.is_definite(), "{error}");
    }
    assert_eq!(words.get("k").await.unwrap().as_deref(), Some(&b"before"[..]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_names_the_leader_and_its_address() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader_of(table(0)).await;
    let follower = (1..=NODES).find(|node| *node != leader).unwrap();
    let told = cluster.0.running[&follower].host().group(table(0)).unwrap();
    told.wait_for(|status| status.leader.is_some(), SOON).await.unwrap();
    let mut stream = cluster.stream_to(follower).await;
    let get = Operation::Get(Get { key: "k".into(), consistency: 0 });
    let get = TableRequest {
        id: 2,
        group: table(0).get(),
        operation: Some(get),
        ..TableRequest::default()
    };
    let answers = stream.ask(vec![put(1, table(0), "k"), get]).await;
    for answer in answers.values() {
        let Answer::Failure(failure) = answer else { panic!("{answer:?}") };
        assert_eq!(failure.reason(), FailureReason::NotLeader);
        assert_eq!(failure.leader_node, leader);
        assert_eq!(failure.leader_address, cluster.0.addresses[&leader]);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_too_many_requests_ends_the_stream_and_says_why() {
    let cluster = Cluster::start().await;
    let mut stream = cluster.stream_to(1).await;
    let requests = (0..=MAX_BATCH_REQUESTS as u64).map(|id| put(id, table(0), "k")).collect();
    stream.batches.send(TableBatch { requests }).await.unwrap();
    let ended = timeout(SOON, stream.replies.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), tonic::Code::InvalidArgument, "{ended}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_replies_is_not_read_either() {
    let cluster = Cluster::start().await;
    cluster.client().await.table().put("warm-up", "v").await.unwrap();
    let mut stream = cluster.stream_to(1).await;
    // Each is refused at once with a message, so replies pile up as fast as can be.
    let batch: Vec<_> = (0..4_096).map(|id| put(id, GroupId::new(77), "k")).collect();
    let mut sent = 0;
    let limit = Duration::from_secs(2);
    loop {
        let requests = batch.clone();
        match timeout(limit, stream.batches.send(TableBatch { requests })).await {
            Ok(outcome) => outcome.unwrap(),
            Err(_) => break,
        }
        sent += batch.len();
        assert!(sent < 100 * MAX_IN_FLIGHT_REQUESTS, "it is read without end");
    }
    assert_eq!(stream.replies(sent).await.len(), sent);
    cluster.stop().await;
}

/// A caller that waits however long it takes names the longest time there is.
#[tokio::test(flavor = "multi_thread")]
async fn the_longest_deadline_is_one() {
    let cluster = Cluster::start().await;
    let options = ClientOptions {
        deadline: Duration::MAX,
        attempt_timeout: Duration::MAX,
        connect_timeout: Duration::MAX,
        max_waiting: usize::MAX,
        ..ClientOptions::default()
    };
    let client = Client::connect(cluster.0.addresses.values().cloned(), options).await.unwrap();
    let table = client.table();
    let written = table.put("color", "red").await.unwrap();
    assert_eq!(table.get("color").await.unwrap().as_deref(), Some(&b"red"[..]));
    let group = table.group_of(b"color").unwrap();
    let index = LogIndex::new(written.index);
    client.wait_applied(NodeId::must(1), group, index, Duration::MAX).await.unwrap();
    assert!(cluster.0.running[&1].await_shards(Duration::MAX).await);
    cluster.stop().await;
}

#[tokio::test]
async fn connecting_to_nobody_says_so() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let refused = Client::connect([address.clone()], ClientOptions::default()).await;
    let Err(ClientError::Unavailable { message }) = refused.map(drop) else { panic!() };
    assert!(message.contains(&address), "{message}");
}

//! Clients that go away, that read nothing, and that ask for more than there is memory for.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shardhost::{Group, GroupId, GroupSpec, Host, HostConfig, NodeId};
use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{
    CompareAndSet, FailureReason, Get, Put, TableBatch, TableReplies, TableRequest,
};
use shardhost_proto::limits::MAX_BATCH_BYTES;
use shardhost_proto::shard_map::{ShardMap, TABLE_KIND};
use shardhost_server::service::{
    ClientBudget, GroupLookup, MAX_STREAMS, MAX_STREAMS_PER_CONNECTION, MIN_CLIENT_BYTES,
    STALL_TIMEOUT, table_server,
};
use shardhost_server::shards::{ShardTimes, StateDb, StateDbOptions};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const TABLE: GroupId = GroupId::new(1);
const SOON: Duration = Duration::from_secs(30);
const MIB: usize = 1024 * 1024;

struct Lookup(Host, Arc<ShardTimes>);

impl GroupLookup for Lookup {
    fn group(&self, id: GroupId) -> Option<Group> {
        self.0.group(id)
    }

    fn map(&self) -> Option<Arc<ShardMap>> {
        None
    }

    fn times(&self) -> Arc<ShardTimes> {
        Arc::clone(&self.1)
    }

    fn addresses(&self) -> BTreeMap<NodeId, String> {
        BTreeMap::new()
    }
}

/// A host of one table whose key `large` has a value of a MiB, and whose clients share little memory.
struct Fixture {
    address: String,
    budget: Arc<ClientBudget>,
    _host: Host,
    _directory: TempDir,
}

/// One stream of requests.
struct Calls {
    batches: mpsc::Sender<TableBatch>,
    replies: Streaming<TableReplies>,
}

impl Fixture {
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let node = NodeId::must(1);
        let config = HostConfig::new(node, directory.path().join("host"));
        let host = Host::builder(config).listener(listener).start().await.unwrap();
        let state = directory.path().join("state");
        let state = StateDb::open(state, StateDbOptions::small()).unwrap();
        let spec = GroupSpec::new(TABLE, [node]).kind(TABLE_KIND);
        let group = host.create_group(spec, state.table(TABLE)).await.unwrap();
        group.wait_for(|status| status.serving, SOON).await.expect("it leads alone");
        let budget = ClientBudget::new(MIN_CLIENT_BYTES);
        host.serve(Routes::new(table_server(
            Arc::new(Lookup(host.clone(), Arc::clone(state.times()))),
            &budget,
        )));
        let fixture = Self { address, budget, _host: host, _directory: directory };
        let mut calls = fixture.connect().await;
        let put = Put { key: "large".into(), value: vec![7; MIB].into() };
        calls.send([Operation::Put(put)]).await;
        assert!(matches!(calls.answers(1).await[..], [Answer::Written(_)]));
        fixture
    }

    /// A stream on a separate connection.
    async fn connect(&self) -> Calls {
        open(&mut self.client().await).await.unwrap()
    }

    /// A separate connection.
    async fn client(&self) -> TableClient<Channel> {
        let client = TableClient::connect(format!("http://{}", self.address)).await.unwrap();
        client.max_decoding_message_size(MAX_BATCH_BYTES)
    }

    async fn until_nothing_is_held(&self) {
        let freed = async {
            while self.budget.used_bytes() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let held = || format!("{} bytes are held", self.budget.used_bytes());
        assert!(timeout(SOON, freed).await.is_ok(), "{}", held());
    }
}

/// A stream on this connection.
async fn open(client: &mut TableClient<Channel>) -> Result<Calls, Status> {
    let (batches, receiver) = mpsc::channel(1);
    let replies = client.pipeline(ReceiverStream::new(receiver)).await?.into_inner();
    Ok(Calls { batches, replies })
}

impl Calls {
    async fn send(&self, operations: impl IntoIterator<Item = Operation>) {
        let request = |(id, operation)| TableRequest {
            id,
            group: TABLE.get(),
            operation: Some(operation),
            ..TableRequest::default()
        };
        let requests = (1..).zip(operations).map(request).collect();
        self.batches.send(TableBatch { requests }).await.unwrap();
    }

    async fn answers(&mut self, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        while answers.len() < count {
            let replies =
                timeout(SOON, self.replies.message()).await.expect("answers come in time");
            let replies = replies.unwrap().expect("the stream goes on").replies;
            answers.extend(replies.into_iter().filter_map(|reply| reply.result));
        }
        answers
    }
}

fn get() -> Operation {
    Operation::Get(Get { key: "large".into(), ..Get::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_leave_nothing_behind() {
    let fixture = Fixture::start().await;
    for _ in 0..9 {
        let calls = fixture.connect().await;
        calls.send((0..300).map(|_| get())).await;
        // Some of the answers are there, none was read.
        while fixture.budget.used_bytes() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        drop(calls);
    }
    fixture.until_nothing_is_held().await;
    let mut calls = fixture.connect().await;
    calls.send([get()]).await;
    assert!(matches!(calls.answers(1).await[..], [Answer::Value(_)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_nothing_hold_no_more_than_they_may_and_lose_it_to_others() {
    let fixture = Fixture::start().await;
    let mut mute = Vec::new();
    for _ in 0..8 {
        let calls = fixture.connect().await;
        calls.send((0..250).map(|_| get())).await;
        mute.push(calls);
    }
    let mut calls = fixture.connect().await;
    let others = async {
        // A read may be refused while its group holds all that it may.
        loop {
            assert!(fixture.budget.used_bytes() <= MIN_CLIENT_BYTES);
            calls.send([get()]).await;
            if matches!(calls.answers(1).await[..], [Answer::Value(_)]) {
                return;
            }
        }
    };
    timeout(3 * STALL_TIMEOUT, others).await.expect("others are served in the end");
    drop(mute);
    fixture.until_nothing_is_held().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_to_many_writes_are_given_as_far_as_there_is_memory() {
    let fixture = Fixture::start().await;
    let mut calls = fixture.connect().await;
    let expect = Some(Bytes::from_static(b"another"));
    let fails = CompareAndSet { key: "large".into(), expect, value: Some("x".into()) };
    calls.send((0..4_000).map(|_| Operation::CompareAndSet(fails.clone()))).await;
    let (mut whole, mut refused) = (0, 0);
    for answer in calls.answers(4_000).await {
        match answer {
            Answer::Written(written) => {
                assert!(!written.done && written.actual.is_some_and(|value| value.len() == MIB));
                whole += 1;
            }
            Answer::Failure(failure) => {
                assert_eq!(failure.reason(), FailureReason::Overloaded, "{failure:?}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(whole > 0 && refused > 0, "{whole} whole, {refused} refused");
    fixture.until_nothing_is_held().await;
}

/// They come one after the other, and those that wait leave the connection to the one that comes.
#[tokio::test(flavor = "multi_thread")]
async fn large_batches_of_one_connection_do_not_keep_each_other_from_coming() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let mut streams = Vec::new();
    for _ in 0..MAX_STREAMS_PER_CONNECTION {
        streams.push(open(&mut client).await.unwrap());
    }
    // Keys that are too long are refused without a write.
    let key = Bytes::from(vec![1; MIB - 64]);
    let ask = || Operation::Get(Get { key: key.clone(), ..Get::default() });
    let all = MAX_BATCH_BYTES / MIB;
    for calls in &streams {
        calls.send((0..all).map(|_| ask())).await;
    }
    for calls in &mut streams {
        let answers = calls.answers(all).await;
        assert!(answers.iter().all(|answer| matches!(answer, Answer::Failure(_))));
    }
    fixture.until_nothing_is_held().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_answered_with_the_limit() {
    let fixture = Fixture::start().await;
    let mut calls = fixture.connect().await;
    calls.send([get()]).await;
    let put = Put { key: "k".into(), value: vec![0; MAX_BATCH_BYTES].into() };
    calls.send([Operation::Put(put)]).await;
    assert!(
        matches!(calls.answers(1).await[..], [Answer::Value(_)]),
        "what came before is answered"
    );
    let ended = timeout(SOON, calls.replies.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::OutOfRange, "{ended}");
    assert!(ended.message().contains(&MAX_BATCH_BYTES.to_string()), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_a_client_leaks_keep_no_other_from_one() {
    let fixture = Fixture::start().await;
    let mut leaked = Vec::new();
    let mut leaks = Vec::new();
    while leaked.len() < MAX_STREAMS {
        let mut client = fixture.client().await;
        for _ in 0..MAX_STREAMS_PER_CONNECTION.min(MAX_STREAMS - leaked.len()) {
            // A stream of the fixture may not have ended yet.
            match open(&mut client).await {
                Ok(calls) => leaked.push(calls),
                Err(refused) => assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}"),
            }
        }
        if leaks.is_empty() {
            let refused = open(&mut client).await.map(drop).unwrap_err();
            assert!(refused.message().contains("this connection has"), "{refused}");
        }
        leaks.push(client);
    }
    let mut other = fixture.client().await;
    let refused = open(&mut other).await.map(drop).unwrap_err();
    assert!(refused.message().contains("this node has"), "{refused}");
    let served = async {
        loop {
            match open(&mut other).await {
                Ok(calls) => return calls,
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let mut calls = timeout(SOON, served).await.expect("idle streams give way");
    calls.send([get()]).await;
    assert!(matches!(calls.answers(1).await[..], [Answer::Value(_)]));
    let ended = timeout(SOON, leaked[0].replies.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
}

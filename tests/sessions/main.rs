//! Writes that clients resend take effect once: a host behind a proxy that loses answers and holds
//! up requests.

mod proxy;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use shardhost::{GroupId, LogIndex, NodeId, Shutdown};
use shardhost_client::{Client, ClientOptions, QueueClient, Resend, TableClient};
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{
    FailureReason, Put, Session, TableBatch, TableRequest, table_client,
};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::config::ShardCounts;
use shardhost_server::shards::session::MAX_SESSIONS;
use shardhost_server::{Server, ServerConfig, group_of_shard};
use tempfile::TempDir;

use self::proxy::Proxy;

const SOON: Duration = Duration::from_secs(30);
const SEED: u64 = 20_251;
const WORKERS: usize = 6;
const WRITES: usize = 40;

/// One host, which clients reach through a proxy.
struct Fixture {
    server: Server,
    proxy: Proxy,
    /// Without the proxy.
    address: String,
    _directory: TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        println!("seed {SEED}");
        let proxy = Proxy::start(address.clone(), SEED).await;
        let mut config = ServerConfig::alone(directory.path());
        config.alone = false;
        config.nodes = [("1".to_owned(), proxy.address.clone())].into();
        config.shards = ShardCounts { tables: 1, queues: 1, ..ShardCounts::default() };
        let server = Server::start(config, Some(listener)).await.unwrap();
        assert!(server.await_shards(SOON).await, "the shards are never there");
        Self { server, proxy, address, _directory: directory }
    }

    async fn client(&self, resend: Resend) -> Client {
        let attempt_timeout = Duration::from_secs(2);
        let options =
            ClientOptions { deadline: SOON, attempt_timeout, resend, ..ClientOptions::default() };
        Client::connect([self.proxy.address.clone()], options).await.unwrap()
    }

    async fn stop(self) {
        self.server.shutdown(Shutdown::Immediate).await;
    }
}

fn table() -> GroupId {
    group_of_shard(TABLE_KIND, 0).unwrap()
}

/// The final value when the first put is delayed, sent again and acknowledged, followed by another
/// put, and then arrives.
async fn value_after_a_late_copy(resend: Resend) -> String {
    let fixture = Fixture::start().await;
    let client = fixture.client(resend).await;
    let words = client.table();
    words.put("color", "none").await.unwrap();
    fixture.proxy.hold_up(b"early-red");
    let (early, ()) = tokio::join!(words.put("color", "early-red"), fixture.proxy.held());
    assert!(early.unwrap().done);
    let later = words.put("color", "later-blue").await.unwrap();
    let connection = fixture.proxy.release().await;
    let late = LogIndex::new(later.index + 1);
    client.wait_applied(NodeId::must(1), table(), late, SOON).await.unwrap();
    let value = words.get("color").await.unwrap().unwrap();
    drop(connection);
    fixture.stop().await;
    String::from_utf8_lossy(&value).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_arrives_late_overwrites_no_later_one() {
    assert_eq!(value_after_a_late_copy(Resend::ExactlyOnce).await, "later-blue");
}

/// A put that was given up is no later than the next one either, also while an older write of the
/// session has no answer as far as its caller knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_was_given_up_overwrites_no_later_one_when_it_arrives() {
    let fixture = Fixture::start().await;
    let client = fixture.client(Resend::ExactlyOnce).await;
    let words = client.table();
    let first = words.put("color", "none").await.unwrap();
    // Its caller looks for the answer at the end only.
    let mut older = Box::pin(words.put("size", "large"));
    assert!(futures::poll!(&mut older).is_pending());
    let older_is_in = LogIndex::new(first.index + 1);
    client.wait_applied(NodeId::must(1), table(), older_is_in, SOON).await.unwrap();

    fixture.proxy.hold_up(b"early-red");
    tokio::select! {
        early = words.put("color", "early-red") => panic!("it is held up: {early:?}"),
        () = fixture.proxy.held() => {}
    }
    let later = words.put("color", "later-blue").await.unwrap();
    let connection = fixture.proxy.release().await;
    let late = LogIndex::new(later.index + 1);
    client.wait_applied(NodeId::must(1), table(), late, SOON).await.unwrap();
    assert_eq!(words.get("color").await.unwrap().as_deref(), Some(&b"later-blue"[..]));
    assert!(older.await.unwrap().done);
    drop(connection);
    fixture.stop().await;
}

/// What sessions are for, and why this is not the default.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_session_a_put_that_arrives_late_overwrites_a_later_one() {
    assert_eq!(value_after_a_late_copy(Resend::Idempotent).await, "early-red");
}

/// Adds 1 to a counter that others add to, too.
async fn increment(words: &TableClient) {
    loop {
        let before = words.get("counter").await.unwrap();
        let count: u64 =
            before.as_deref().map_or(0, |value| String::from_utf8_lossy(value).parse().unwrap());
        let after = (count + 1).to_string().into();
        if words.compare_and_set("counter", before, Some(after)).await.unwrap().done {
            return;
        }
    }
}

/// Counts, puts and deletes a separate key, and sends.
async fn work(worker: usize, words: TableClient, jobs: QueueClient) {
    let key = format!("worker-{worker}");
    for write in 0..WRITES {
        increment(&words).await;
        let put = words.put(key.clone(), write.to_string()).await.unwrap();
        assert!(!put.existed, "the answer of the first copy");
        assert!(words.delete(key.clone()).await.unwrap().existed, "the answer of the first copy");
        jobs.send(key.clone(), write.to_string(), "").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_takes_effect_once_while_answers_are_lost() {
    let fixture = Fixture::start().await;
    let client = fixture.client(Resend::default()).await;
    let (words, jobs) = (client.table(), client.queue());
    fixture.proxy.be_lossy(true);
    join_all((0..WORKERS).map(|worker| work(worker, words.clone(), jobs.clone()))).await;
    let losses = fixture.proxy.losses();
    println!("answers were lost {losses} times");
    assert!(losses >= 20, "{losses}");
    let count = words.get("counter").await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&count), (WORKERS * WRITES).to_string());
    let messages = jobs.peek(0, 0, None).await.unwrap().messages;
    let bodies: BTreeSet<_> =
        messages.iter().map(|message| (&message.partition_key, &message.body)).collect();
    assert_eq!((messages.len(), bodies.len()), (WORKERS * WRITES, WORKERS * WRITES));

    // A receive is not sent again.
    fixture.proxy.be_lossy(false);
    let received = jobs.receive(0, 1_000, Duration::from_secs(600)).await.unwrap();
    fixture.proxy.be_lossy(true);
    let receipts: Vec<u64> = received.receipts().collect();
    let acks = receipts.chunks(10).map(|chunk| jobs.ack(0, chunk.to_vec()));
    for acked in try_join_all(acks).await.unwrap() {
        assert_eq!((acked.acked, acked.stale), (10, 0));
    }
    assert_eq!(jobs.peek(0, 0, None).await.unwrap().messages.len(), 0);
    fixture.stop().await;
}

/// Shows that the losses are of answers to writes that took effect: without sessions a resent put
/// or delete finds what its first copy did.
#[tokio::test(flavor = "multi_thread")]
async fn without_sessions_the_same_losses_give_answers_of_second_copies() {
    let fixture = Fixture::start().await;
    let words = fixture.client(Resend::Idempotent).await.table();
    fixture.proxy.be_lossy(true);
    let mut of_second_copies = 0;
    for write in 0..WORKERS * WRITES {
        let put = words.put("key", write.to_string()).await.unwrap();
        of_second_copies += usize::from(put.existed);
        of_second_copies += usize::from(!words.delete("key").await.unwrap().existed);
    }
    assert!(of_second_copies > 0, "answers were lost {} times", fixture.proxy.losses());
    fixture.stop().await;
}

/// Sends puts of sessions without a client's help, and returns their answers by number.
async fn put_in_sessions(address: &str, sessions: Vec<Session>) -> Vec<Answer> {
    let request = |(id, session)| TableRequest {
        id,
        group: table().get(),
        operation: Some(Operation::Put(Put { key: "raw".into(), value: "value".into() })),
        session: Some(session),
        ..TableRequest::default()
    };
    let count = sessions.len();
    let requests = (0..).zip(sessions).map(request).collect();
    let mut client = table_client::TableClient::connect(format!("http://{address}")).await.unwrap();
    let batches = tokio_stream::iter([TableBatch { requests }]);
    let mut stream = client.pipeline(batches).await.unwrap().into_inner();
    let mut replies = Vec::new();
    while replies.len() < count {
        replies.extend(stream.message().await.unwrap().unwrap().replies);
    }
    replies.sort_by_key(|reply| reply.id);
    replies.into_iter().map(|reply| reply.result.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_goes_on_when_its_session_was_dropped_and_an_old_write_is_refused() {
    let fixture = Fixture::start().await;
    let words = fixture.client(Resend::default()).await.table();
    words.put("key", "before").await.unwrap();
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let session = |id| Session { id, start: now_ms, sequence: 1, lowest_unanswered: 1 };
    let first = put_in_sessions(&fixture.address, vec![session(0)]).await;
    assert!(matches!(first[..], [Answer::Written(_)]), "{first:?}");
    // Sessions that start later drop those two.
    let later = |id| Session { start: now_ms + 1_000, ..session(id) };
    let others = (1..=MAX_SESSIONS as u64).map(later).collect();
    let others = put_in_sessions(&fixture.address, others).await;
    assert!(others.iter().all(|answer| matches!(answer, Answer::Written(_))));

    let again = put_in_sessions(&fixture.address, vec![session(0)]).await;
    let [Answer::Failure(failure)] = &again[..] else { panic!("{again:?}") };
    assert_eq!(failure.reason(), FailureReason::SessionOver);
    let accepted = Session { start: failure.session_start, ..session(0) };
    let accepted = put_in_sessions(&fixture.address, vec![accepted]).await;
    assert!(matches!(accepted[..], [Answer::Written(_)]), "{accepted:?}");
    assert!(words.put("key", "after").await.unwrap().existed);

    let invalid = put_in_sessions(&fixture.address, vec![Session::default()]).await;
    let [Answer::Failure(failure)] = &invalid[..] else { panic!("{invalid:?}") };
    assert_eq!(failure.reason(), FailureReason::Invalid);
    fixture.stop().await;
}

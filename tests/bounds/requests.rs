//! Questions that would stop others: each does a bounded work, and none is a write for nothing.

use std::time::Duration;

use shardhost::Shutdown;
use shardhost_client::{Client, ClientOptions};
use shardhost_proto::admin::ListGroupsRequest;
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::system::GoneRequest;
use shardhost_proto::system::system_client::SystemClient;
use shardhost_server::{Server, ServerConfig};
use tempfile::TempDir;
use tonic::Code;

const QUEUES: u64 = 8;

async fn start(directory: &TempDir) -> (Server, String) {
    let mut config = ServerConfig::alone(directory.path().to_owned());
    // Another host of this machine may have the usual port.
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.shards.tables = 2;
    config.shards.queues = QUEUES;
    // Nothing but what a test does is in a log.
    config.consistency_check = 0;
    let server = Server::start(config, None).await.unwrap();
    assert!(server.await_shards(Duration::from_secs(60)).await);
    for group in server.host().groups() {
        let serves = group.wait_for(|status| status.serving, Duration::from_secs(60)).await;
        serves.expect("it leads alone");
    }
    let address = server.host().address().to_string();
    (server, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_of_an_empty_queue_writes_nothing() {
    let directory = TempDir::new().unwrap();
    let (server, address) = start(&directory).await;
    let queue = Client::connect([address], ClientOptions::default()).await.unwrap().queue();
    let proposals = || {
        let queues = server.host().groups().into_iter().filter(|group| group.kind() == "queue");
        queues.map(|group| group.status().last.get()).sum::<u64>()
    };
    let before = proposals();
    for shard in 0..queue.shards() {
        let received = queue.receive(shard, 10, Duration::from_secs(30)).await.unwrap();
        assert!(received.messages.is_empty() && !received.more);
    }
    assert_eq!(proposals(), before, "nothing was received, and nothing is in the log");
    let shard = queue.shard_of(b"key").unwrap();
    queue.send("key", "body", "").await.unwrap();
    let received = queue.receive(shard, 10, Duration::from_secs(30)).await.unwrap();
    assert_eq!(received.messages.len(), 1, "what was acknowledged is received");
    let before = proposals();
    let again = queue.receive(shard, 10, Duration::from_secs(30)).await.unwrap();
    assert!(again.messages.is_empty(), "it is in flight");
    assert_eq!(proposals(), before);
    server.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_listed_page_by_page() {
    let directory = TempDir::new().unwrap();
    let (server, address) = start(&directory).await;
    let mut admin = AdminClient::connect(format!("http://{address}")).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let request = ListGroupsRequest { after_group: seen.last().copied(), limit: 3 };
        let page = admin.list_groups(request).await.unwrap().into_inner();
        assert!(page.groups.len() <= 3);
        seen.extend(page.groups.iter().map(|group| group.group));
        if !page.more {
            break;
        }
    }
    let mut all: Vec<u64> = server.host().groups().iter().map(|group| group.id().get()).collect();
    all.sort_unstable();
    assert_eq!(seen, all);
    assert!(all.len() as u64 > QUEUES, "with the group of the catalog");
    server.shutdown(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_a_million_groups_is_refused_with_the_limit() {
    let directory = TempDir::new().unwrap();
    let (server, address) = start(&directory).await;
    let mut system = SystemClient::connect(format!("http://{address}")).await.unwrap();
    let groups = (5_000_000..6_000_000).collect();
    let refused = system.gone(GoneRequest { groups }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("4096"), "{refused}");
    let groups = vec![1_000_000, 5_000_000];
    let gone = system.gone(GoneRequest { groups }).await.unwrap().into_inner();
    assert_eq!(gone.groups, [5_000_000]);
    server.shutdown(Shutdown::Immediate).await;
}

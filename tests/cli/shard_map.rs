//! The map of shards: founded once, and refused where a configuration says otherwise.

use shardhost_client::{Client, ClientOptions};
use shardhost_proto::client::directory_client::DirectoryClient;
use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{
    FailureReason, Put, ShardsReply, ShardsRequest, TableBatch, TableReply, TableRequest,
};

use super::servers::Servers;

async fn started(nodes: u64, settings: &str, tables: u64) -> Servers {
    let mut servers = Servers::new(nodes, settings, &format!("tables = {tables}"));
    for node in 1..=nodes {
        servers.start(node, &[]);
    }
    servers.put(1, "key", "first").await;
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_founded_with_8_shards_refuses_16_with_both_numbers() {
    for settings in ["catalog = true", "catalog = false"] {
        let mut servers = started(1, settings, 8).await;
        let remembered = servers.data_dir(1).join("shard-map");
        servers.until("the map is remembered", || async { remembered.exists() }).await;
        servers.kill_all().await;
        for tables in [16, 4] {
            servers.shards = format!("tables = {tables}");
            let refused = servers.refused(1).await;
            let says = format!("the configuration says 0 queue shards, {tables} table shards");
            for words in ["the cluster has 0 queue shards, 8 table shards", &says] {
                assert!(refused.contains(words), "{settings}: {refused}");
            }
            assert!(refused.contains("put the number of shards back"), "{refused}");
        }
        servers.shards = "tables = 8".to_owned();
        servers.start(1, &[]);
        servers.await_value(1, "key", "first").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_with_another_number_ends_and_says_what_the_cluster_has() {
    let mut servers = Servers::new(2, "catalog = true", "tables = 8\nvoters = [1]");
    servers.start(1, &[]);
    servers.put(1, "key", "first").await;
    servers.shards = "tables = 16\nvoters = [1]".to_owned();
    let refused = servers.refused(2).await;
    for words in ["the cluster has 0 queue shards, 8 table", "says 0 queue shards, 16 table"] {
        assert!(refused.contains(words), "{refused}");
    }
    // Nothing wrong was remembered.
    servers.shards = "tables = 8\nvoters = [1]".to_owned();
    servers.start(2, &[]);
    servers.await_value(2, "key", "first").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_catalog_that_disagree_refuse_each_other_with_both_numbers() {
    let mut servers = Servers::new(2, "catalog = false", "tables = 8");
    servers.start(1, &[]);
    servers.shards = "tables = 16".to_owned();
    servers.start(2, &[]);
    servers
        .await_log(1, &["the peer has 0 queue shards, 16 table", "this host 0 queue shards, 8"])
        .await;
    servers.await_log(2, &["the peer has 0 queue shards, 8 table"]).await;
    for node in [1, 2] {
        assert_eq!(servers.status(node).await["groups"], 0);
    }
    // Corrected, they found the cluster.
    servers.kill(2).await;
    servers.shards = "tables = 8".to_owned();
    servers.start(2, &[]);
    servers.put(2, "key", "first").await;
}

async fn shards_at(address: &str) -> ShardsReply {
    let mut client = DirectoryClient::connect(format!("http://{address}")).await.unwrap();
    let request = ShardsRequest { kind: "table".to_owned() };
    client.shards(request).await.unwrap().into_inner()
}

async fn put_with(address: &str, group: u64, map: u64) -> TableReply {
    let mut client = TableClient::connect(format!("http://{address}")).await.unwrap();
    let put = Put { key: "other".into(), value: "value".into() };
    let operation = Some(Operation::Put(put));
    let request = TableRequest { id: 1, group, map, session: None, operation };
    let batches = tokio_stream::iter([TableBatch { requests: vec![request] }]);
    let mut replies = client.pipeline(batches).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap().replies.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_map_is_refused_with_the_right_one_and_not_applied() {
    let servers = started(1, "catalog = true", 4).await;
    let address = servers.address(1);
    let shards = shards_at(address).await;
    let map = shards.map.clone().unwrap();
    assert_eq!((shards.shards.len(), map.version, map.hash.as_str()), (4, 1, "xxh64"));
    let client = Client::connect([address], ClientOptions::default()).await.unwrap();
    let group = client.table().group_of(b"other").unwrap().get();

    let refused = put_with(address, group, map.fingerprint ^ 1).await;
    let Some(Answer::Failure(failure)) = refused.result else { panic!("{refused:?}") };
    assert_eq!(failure.reason(), FailureReason::WrongMap);
    assert_eq!(failure.map, Some(map.clone()));
    assert!(failure.message.contains("4 table shards"), "{failure:?}");
    assert_eq!(client.table().get("other").await.unwrap(), None);

    for fingerprint in [map.fingerprint, 0] {
        let taken = put_with(address, group, fingerprint).await;
        assert!(matches!(taken.result, Some(Answer::Written(_))), "{taken:?}");
    }
    let found = client.table().get("other").await.unwrap();
    assert_eq!(found.as_deref(), Some(&b"value"[..]));
}

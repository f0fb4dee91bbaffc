//! Connections never take the descriptors that the databases need.

use std::time::{Duration, Instant};

use shardhost_client::security::channel::Security;
use shardhost_proto::admin::StatusRequest;
use shardhost_proto::admin::admin_client::AdminClient;
use shardhost_proto::client::ShardsRequest;
use shardhost_proto::client::directory_client::DirectoryClient;
use shardhost_proto::shard_map::TABLE_KIND;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::host::{Host, open_files};
use super::needs::{Need, are_there};

/// Open files that the host is allowed.
const LIMIT: usize = 256;

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_end_and_keep_nobody_out() {
    if !are_there(
        "connections_that_say_nothing_end_and_keep_nobody_out",
        &[Need::Limits, Need::Proc],
    ) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let mut host = Host::start(directory.path(), &format!("ulimit -n {LIMIT};"), "error");
    let mut idle = Vec::new();
    for _ in 0..LIMIT + 64 {
        // The backlog of a listener that does not accept fills up.
        let connect = timeout(Duration::from_secs(5), TcpStream::connect(&host.address)).await;
        idle.push(connect.expect("the listener accepts").unwrap());
    }
    let begin = Instant::now();
    for number in 0..20 {
        host.serves(&format!("among many {number}")).await;
    }
    assert!(begin.elapsed() < Duration::from_secs(8), "it takes {:?}", begin.elapsed());
    assert!(open_files(host.process()) < LIMIT * 3 / 4, "{}", open_files(host.process()));
    // Some at once, because of the others; the last ones because they were silent for ten seconds.
    let ended = async {
        for stream in &mut idle {
            // A greeting, and then its end, or that it broke.
            let mut said = Vec::new();
            let ended = stream.read_to_end(&mut said).await;
            assert!(said.len() < 1_024, "{} bytes, {ended:?}", said.len());
        }
    };
    timeout(Duration::from_secs(30), ended).await.expect("all of them end");
    host.serves("afterwards").await;
}

async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Without certificates operators count as clients.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_keep_all_their_places_keep_no_operator_out_at_another_listener() {
    if !are_there(
        "clients_that_keep_all_their_places_keep_no_operator_out_at_another_listener",
        &[Need::Limits],
    ) {
        return;
    }
    for (apart, served) in [(&["--admin-listen", "127.0.0.1:0"][..], true), (&[], false)] {
        let directory = TempDir::new().unwrap();
        let before = format!("ulimit -n {LIMIT};");
        let host = Host::secured(directory.path(), &before, apart, Security::default());
        let mut kept = Vec::new();
        let full = loop {
            let mut client = DirectoryClient::new(channel(&host.client_address).await);
            match client.shards(ShardsRequest { kind: TABLE_KIND.to_owned() }).await {
                Ok(_) => kept.push(client),
                Err(refused) => break refused,
            }
            assert!(kept.len() < LIMIT, "there is no bound");
        };
        assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
        let mut admin = AdminClient::new(channel(&host.admin_address).await);
        let status = admin.status(StatusRequest {}).await;
        match status {
            Ok(_) => assert!(served, "it has a place that is for clients"),
            Err(refused) => {
                assert!(!served, "{refused}");
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised_as_far_as_the_system_allows() {
    if !are_there(
        "the_limit_of_open_files_is_raised_as_far_as_the_system_allows",
        &[Need::Limits, Need::Proc],
    ) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let host = Host::start(directory.path(), "ulimit -Sn 128; ulimit -Hn 640;", "error");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", host.process())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers, [640, 640], "{line}");
}

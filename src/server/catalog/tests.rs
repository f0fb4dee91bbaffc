use std::net::TcpListener;

use shardhost_policy::catalog::Placement;
use tempfile::TempDir;

use super::*;
use crate::config::ServerConfig;
use crate::{FIRST_TABLE, Server};

const SHARD: GroupId = GroupId::new(FIRST_TABLE);
const SOON: Duration = Duration::from_secs(30);

async fn server(directory: &TempDir) -> Server {
    let mut config = ServerConfig::alone(directory.path());
    config.shards.tables = 1;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    config.listen = listener.local_addr().unwrap();
    let server = Server::start(config, Some(listener)).await.unwrap();
    assert!(server.await_shards(SOON).await);
    server
}

/// A group refused what was recorded; meanwhile something else of the group was changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_requirement_is_taken_back_unless_another_one_was_recorded() {
    let directory = TempDir::new().unwrap();
    let server = server(&directory).await;
    let system = server.system.clone().unwrap();
    let intentions = Intentions::new(&server.host, Some(&system));
    let requirement = |name: &str| Requirement::hard([name]).unwrap();
    let intended = async || system.fresh_view().await.unwrap().groups()[&SHARD].requirement();

    let before = intentions.require(SHARD, &requirement("gpu")).await.unwrap().unwrap();
    let placement = Placement { pin: Some(NodeId::must(1)), ..Placement::default() };
    let place = Operation::SetPlacement { group: SHARD, placement };
    system.catalog().apply(place).await.unwrap();
    assert_eq!(intended().await, requirement("gpu"));
    intentions.put_back(before).await;
    assert_eq!(intended().await, Requirement::default());

    let before = intentions.require(SHARD, &requirement("gpu")).await.unwrap().unwrap();
    let other = Operation::SetRequirement { group: SHARD, requirement: requirement("fifo") };
    system.catalog().apply(other).await.unwrap();
    intentions.put_back(before).await;
    assert_eq!(intended().await, requirement("fifo"));
    server.shutdown(shardhost::Shutdown::Immediate).await;
}

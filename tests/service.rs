//! One group whose state machine hangs must not keep a client from the other groups of its stream.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use shardhost::{
    ApplyBatch, ApplyFault, Group, GroupId, GroupSpec, Host, HostConfig, LogPosition, NodeId,
    QueryError, Shutdown, SnapshotWriter, StateMachine,
};
use shardhost_proto::client::table_client::TableClient;
use shardhost_proto::client::table_reply::Result as Answer;
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{Consistency, Get, Scan, TableBatch, TableRequest};
use shardhost_proto::shard_map::{ShardMap, TABLE_KIND};
use shardhost_server::service::{
    ClientBudget, DEFAULT_CLIENT_BYTES, GroupLookup, MAX_READ_WEIGHT, table_server,
};
use shardhost_server::shards::{ShardTimes, StateDb, StateDbOptions};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;

const HANGS: GroupId = GroupId::new(1);
const WORKS: GroupId = GroupId::new(2);
const SOON: Duration = Duration::from_secs(30);
/// Below `GroupsConfig::query_timeout`, after which the hung reads end.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Opened once: then queries are answered.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn wait(&self) {
        let opened = self.0.lock().unwrap();
        drop(self.1.wait_while(opened, |opened| !*opened).unwrap());
    }
}

/// Queries of it hang until its gate opens.
struct Hangs {
    applied: Option<LogPosition>,
    gate: Arc<Gate>,
}

impl StateMachine for Hangs {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.applied = Some(batch.last());
        Ok(())
    }

    fn query(&self, _: &Bytes) -> Result<Bytes, QueryError> {
        self.gate.wait();
        Err(QueryError::Unsupported)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        Ok(Box::new(Nothing))
    }

    fn restore(&mut self, at: LogPosition, _: &mut dyn Read) -> Result<(), ApplyFault> {
        self.applied = Some(at);
        Ok(())
    }
}

struct Nothing;

impl SnapshotWriter for Nothing {
    fn write_to(self: Box<Self>, _: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}

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

/// A host of two groups, and its address.
async fn start(directory: &TempDir, gate: &Arc<Gate>) -> (Host, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = NodeId::must(1);
    let config = HostConfig::new(node, directory.path().join("host"));
    let host = Host::builder(config).listener(listener).start().await.unwrap();
    let state = StateDb::open(directory.path().join("state"), StateDbOptions::small()).unwrap();
    let spec = |group| GroupSpec::new(group, [node]).kind(TABLE_KIND);
    let hangs = Hangs { applied: None, gate: Arc::clone(gate) };
    let groups = [
        host.create_group(spec(HANGS), hangs).await.unwrap(),
        host.create_group(spec(WORKS), state.table(WORKS)).await.unwrap(),
    ];
    for group in &groups {
        group.wait_for(|status| status.serving, SOON).await.expect("it leads alone");
    }
    host.serve(Routes::new(table_server(
        Arc::new(Lookup(host.clone(), Arc::clone(state.times()))),
        &ClientBudget::new(DEFAULT_CLIENT_BYTES),
    )));
    (host, address)
}

fn get(id: u64, group: GroupId) -> TableRequest {
    let get = Get { key: "k".into(), consistency: Consistency::Quorum.into() };
    TableRequest {
        id,
        group: group.get(),
        operation: Some(Operation::Get(get)),
        ..TableRequest::default()
    }
}

fn scan(id: u64, group: GroupId) -> TableRequest {
    let scan = Scan { consistency: Consistency::Quorum.into(), ..Scan::default() };
    TableRequest { operation: Some(Operation::Scan(scan)), ..get(id, group) }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_group_that_hangs_keep_no_other_group_from_its_reads() {
    let (directory, gate) = (TempDir::new().unwrap(), Arc::new(Gate::default()));
    let (host, address) = start(&directory, &gate).await;
    let mut client = TableClient::connect(format!("http://{address}")).await.unwrap();
    let (batches, receiver) = mpsc::channel(1);
    let mut replies = client.pipeline(ReceiverStream::new(receiver)).await.unwrap().into_inner();

    let hung = u64::from(MAX_READ_WEIGHT) + 1;
    let requests = (1..=hung).map(|id| get(id, HANGS)).collect();
    batches.send(TableBatch { requests }).await.unwrap();
    let requests = vec![get(hung + 1, WORKS), scan(hung + 2, WORKS)];
    batches.send(TableBatch { requests }).await.unwrap();

    let mut answered = Vec::new();
    while answered.len() < 2 {
        let more = timeout(AT_ONCE, replies.message()).await.expect("the other group answers");
        answered.extend(more.unwrap().expect("the stream goes on").replies);
    }
    answered.sort_by_key(|reply| reply.id);
    assert!(matches!(answered[0].result, Some(Answer::Value(_))), "{answered:?}");
    assert!(matches!(answered[1].result, Some(Answer::Pairs(_))), "{answered:?}");

    // Those that hung are answered, too, and what they held is free again.
    gate.open();
    let mut left = hung;
    while left > 0 {
        let more = timeout(SOON, replies.message()).await.expect("every read ends").unwrap();
        left -= more.expect("the stream goes on").replies.len() as u64;
    }
    host.shutdown(Shutdown::Immediate).await;
}

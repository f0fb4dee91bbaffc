//! A host whose disk hangs or fails, among others that are well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::Signal;
use shardhost_client::Client;
use shardhost_proto::client::Consistency;
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::cluster::Cluster;
use crate::shim::{Effect, Operations, Slot};

const TABLES: u64 = 6;
const QUEUES: u64 = 3;
/// Bytes of a value that is a block of its own.
const LARGE: usize = 256 << 10;
/// A few election timeouts, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(12);
/// Longer than any operation is tried.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Puts a key after the other, and remembers which were acknowledged.
pub struct Writer {
    shared: Arc<Written>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Written {
    acknowledged: Mutex<Vec<u64>>,
    stop: AtomicBool,
    tried: AtomicU64,
}

impl Writer {
    pub fn start(client: Client, bytes: usize) -> Self {
        let shared = Arc::<Written>::default();
        let written = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while !written.stop.load(Ordering::Relaxed) {
                let number = written.tried.fetch_add(1, Ordering::Relaxed);
                let (key, value) = (format!("key {number}"), value(number, bytes));
                if client.table().put(key, value).await.is_ok() {
                    written.acknowledged.lock().push(number);
                }
            }
        });
        Self { shared, task }
    }

    fn count(&self) -> usize {
        self.shared.acknowledged.lock().len()
    }

    /// Waits until so many more are acknowledged.
    pub async fn more(&self, more: usize) {
        let enough = self.count() + more;
        crate::process::until("more is acknowledged", || self.count() >= enough).await;
    }

    /// Ends, and holds all that was acknowledged against what is there.
    pub async fn verify(self, client: &Client, bytes: usize) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let acknowledged = self.shared.acknowledged.lock().clone();
        for number in acknowledged {
            let got = Cluster::get(client, &format!("key {number}")).await;
            assert_eq!(got, Some(value(number, bytes)), "key {number} was acknowledged");
        }
    }
}

/// What a key holds.
fn value(number: u64, bytes: usize) -> String {
    format!("{number} {}", "x".repeat(bytes))
}

/// Whether a process says of itself that it serves.
async fn is_serving(cluster: &Cluster, node: u64) -> bool {
    let address = format!("http://{}", cluster.servers.address(node));
    let Ok(channel) = Endpoint::from_shared(address).unwrap().connect().await else { return false };
    let mut client = HealthClient::new(channel);
    let asked = client.check(HealthCheckRequest { service: String::new() });
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
    answer.is_ok_and(|answer| {
        answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
    })
}

/// A cluster whose node 1 leads everything under writes.
pub async fn led_by_one(test: &str, bytes: usize) -> Option<(Cluster, Writer, Client)> {
    let mut cluster = Cluster::new(test, 3, TABLES, QUEUES).await?;
    let handing_over = ["--shutdown-timeout", "2"];
    cluster.nodes().for_each(|node| cluster.servers.start(node, &handing_over));
    let others = cluster.client(&[2, 3], Duration::from_secs(2)).await;
    cluster.serves_all(&others, TIMEOUT).await;
    cluster.lead_all(1).await;
    let writer = Writer::start(others.clone(), bytes);
    writer.more(20).await;
    Some((cluster, writer, others))
}

/// Every shard is led by another node soon, and served.
pub async fn others_take_over(cluster: &Cluster, client: &Client) {
    let began = Instant::now();
    let served = cluster.serves_all(client, SOON).await;
    let led = || async {
        let led: usize = cluster.led_by(2).await.len() + cluster.led_by(3).await.len();
        led as u64 == TABLES + QUEUES
    };
    cluster.servers.until("the others lead everything", led).await;
    println!("served after {served:?}, all led by the others after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_log_hangs_is_replaced_says_so_and_comes_back() {
    let test = "a_leader_whose_log_hangs_is_replaced_says_so_and_comes_back";
    let Some((cluster, writer, others)) = led_by_one(test, 16).await else { return };
    let faults = cluster.faults(1);
    for operations in [Operations::SYNC, Operations::CHANGES] {
        faults.set(Slot::Log, &cluster.log(1), operations, Effect::Hang);
        others_take_over(&cluster, &others).await;
        assert!(faults.hanging(Slot::Log) > 0, "nothing hangs");
        writer.more(20).await;
        let said = || async { !is_serving(&cluster, 1).await };
        cluster.servers.until("the health of node 1 tells", said).await;
        for node in [1, 2] {
            let said =
                || async { cluster.findings(node).await.contains("write of the log takes longer") };
            cluster.servers.until(&format!("status by node {node} says what is wrong"), said).await;
        }
        // Longer than anything that would end it: it is there, and leads nothing.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(cluster.led_by(1).await.is_empty());
        faults.heal(Slot::Log);
        let well = || async { is_serving(&cluster, 1).await };
        cluster.servers.until("node 1 serves again", well).await;
        cluster.lead_all(1).await;
        writer.more(20).await;
    }
    writer.verify(&others, 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_log_hangs_ends_when_it_is_told_to() {
    let test = "a_host_whose_log_hangs_ends_when_it_is_told_to";
    let Some((mut cluster, writer, others)) = led_by_one(test, 16).await else { return };
    cluster.faults(1).set(Slot::Log, &cluster.log(1), Operations::CHANGES, Effect::Hang);
    others_take_over(&cluster, &others).await;
    cluster.servers.signal(1, Signal::TERM);
    let began = Instant::now();
    let status = cluster.servers.end(1).await;
    println!("ended with {status} after {:?}", began.elapsed());
    // Handing over, and closing: each has its time.
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    cluster.faults(1).forget();
    cluster.servers.start(1, &[]);
    cluster.lead_all(1).await;
    writer.verify(&others, 16).await;
}

/// The state of what node 1 leads can neither be written nor read, under a load that its memory does not hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_state_hangs_is_replaced_and_comes_back() {
    let test = "a_leader_whose_state_hangs_is_replaced_and_comes_back";
    let Some((cluster, writer, others)) = led_by_one(test, LARGE).await else { return };
    let operations = Operations::CHANGES.and(Operations::READ);
    let faults = cluster.faults(1);
    faults.set(Slot::State, &cluster.state(1), operations, Effect::Hang);
    writer.more(400).await;
    others_take_over(&cluster, &others).await;
    faults.heal(Slot::State);
    let well = || async { is_serving(&cluster, 1).await };
    cluster.servers.until("node 1 serves again", well).await;
    cluster.lead_all(1).await;
    writer.more(20).await;
    writer.verify(&others, LARGE).await;
}

/// Reads what was written, so that blocks of the state are wanted that no memory holds.
struct Readers(Vec<JoinHandle<()>>);

impl Readers {
    /// More than there are apply threads, each from another key on.
    fn start(client: &Client, written: &Arc<Written>) -> Self {
        let start = |first: u64| {
            let (client, written) = (client.clone(), Arc::clone(written));
            tokio::spawn(async move {
                for read in first.. {
                    if written.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key =
                        format!("key {}", read % written.tried.load(Ordering::Relaxed).max(1));
                    // Whether it is answered is not asked here: nothing of the state can be read.
                    drop(client.table().get_with(key, Consistency::Linearizable).await);
                }
            })
        };
        Self((0..8).map(|number| start(number * 7)).collect())
    }

    async fn end(self) {
        for reader in self.0 {
            reader.await.unwrap();
        }
    }
}

/// Nothing of the state of what node 1 leads can be read. Its log is well, and so are its heartbeats.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_read_its_state_is_replaced_says_so_and_comes_back() {
    let test = "a_leader_that_cannot_read_its_state_is_replaced_says_so_and_comes_back";
    let Some((mut cluster, writer, others)) = led_by_one(test, LARGE).await else { return };
    writer.more(60).await;
    // After a start no memory holds what was written before it.
    cluster.servers.signal(1, Signal::TERM);
    cluster.servers.end(1).await;
    cluster.servers.start(1, &[]);
    cluster.lead_all(1).await;
    let faults = cluster.faults(1);
    faults.set(Slot::State, &cluster.state(1), Operations::READ, Effect::Hang);
    let readers = Readers::start(&others, &writer.shared);
    hangs(&cluster, 1).await;
    others_take_over(&cluster, &others).await;
    assert!(faults.hanging(Slot::State) >= 2, "an apply thread is free");
    writer.more(20).await;
    let said = || async { !is_serving(&cluster, 1).await };
    cluster.servers.until("the health of node 1 tells", said).await;
    for node in [1, 2] {
        let said = || async {
            cluster.findings(node).await.contains("hold every thread that runs state machines")
        };
        cluster.servers.until(&format!("status by node {node} says what is wrong"), said).await;
    }
    assert!(cluster.servers.log(1).contains("the state machine hangs"));
    // Longer than anything that would end it: it is there, and leads nothing.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.led_by(1).await.is_empty());
    faults.heal(Slot::State);
    let well = || async { is_serving(&cluster, 1).await };
    cluster.servers.until("node 1 serves again", well).await;
    cluster.lead_all(1).await;
    writer.more(20).await;
    writer.verify(&others, LARGE).await;
    readers.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_read_its_state_ends_when_it_is_told_to() {
    let test = "a_host_that_cannot_read_its_state_ends_when_it_is_told_to";
    let Some((mut cluster, writer, others)) = led_by_one(test, 16).await else { return };
    let readers = Readers::start(&others, &writer.shared);
    let operations = Operations::CHANGES.and(Operations::READ);
    cluster.faults(1).set(Slot::State, &cluster.state(1), operations, Effect::Hang);
    hangs(&cluster, 1).await;
    cluster.servers.signal(1, Signal::TERM);
    let began = Instant::now();
    let status = cluster.servers.end(1).await;
    println!("ended with {status} after {:?}", began.elapsed());
    // Handing over, and closing: each has its time.
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    others_take_over(&cluster, &others).await;
    cluster.faults(1).forget();
    cluster.servers.start(1, &[]);
    cluster.lead_all(1).await;
    writer.verify(&others, 16).await;
    readers.end().await;
}

/// Waits until something of the state of a node hangs.
async fn hangs(cluster: &Cluster, node: u64) {
    crate::process::until("something hangs", || cluster.faults(node).hanging(Slot::State) > 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_log_fails_stops_and_the_others_serve() {
    let test = "a_host_whose_log_fails_stops_and_the_others_serve";
    let Some((mut cluster, writer, others)) = led_by_one(test, 16).await else { return };
    for (operations, error) in [
        (Operations::WRITE, Errno::IO),
        (Operations::SYNC, Errno::IO),
        (Operations::WRITE, Errno::NOSPC),
    ] {
        cluster.faults(1).set(Slot::Log, &cluster.log(1), operations, Effect::Fail(error));
        let status = cluster.servers.end(1).await;
        assert_ne!(status.code(), Some(0), "{status}");
        assert!(cluster.servers.log(1).contains("the host stops"), "{}", cluster.servers.log(1));
        others_take_over(&cluster, &others).await;
        cluster.faults(1).heal(Slot::Log);
        cluster.servers.start(1, &[]);
        cluster.lead_all(1).await;
        writer.more(20).await;
    }
    writer.verify(&others, 16).await;
}

/// It hung, and fails at last: what was never acknowledged is not acknowledged by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_hung_and_fails_ends_the_host_and_loses_nothing() {
    let test = "a_log_that_hung_and_fails_ends_the_host_and_loses_nothing";
    let Some((mut cluster, writer, others)) = led_by_one(test, 16).await else { return };
    cluster.faults(1).set(Slot::Log, &cluster.log(1), Operations::SYNC, Effect::Hang);
    others_take_over(&cluster, &others).await;
    cluster.faults(1).fail_what_hangs(Slot::Log, Errno::IO);
    let status = cluster.servers.end(1).await;
    assert_ne!(status.code(), Some(0), "{status}");
    cluster.faults(1).forget();
    cluster.servers.start(1, &[]);
    cluster.lead_all(1).await;
    writer.verify(&others, 16).await;
}

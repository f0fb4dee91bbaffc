//! What clients of real processes see while these are killed, paused, and lose their leaders, must
//! be explained by operations that took effect one at a time.

#[path = "cli/process.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod process;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use process::Supervised;
use rustix::process::Signal;
use shardhost::client::{Client, ClientError, ClientOptions, Resend};
use shardhost::proto::client::Written;
use shardhost_groups::testing::linearizability::table::{Action, Answer, Table, TableOp};
use shardhost_groups::testing::linearizability::{Call, Limits, Recorder, check};
use tempfile::TempDir;

const CLIENTS: u64 = 8;
const KEYS: u64 = 4;
/// Operations that must have been answered before the next fault, and faults.
const OPERATIONS_PER_FAULT: u64 = 400;
const FAULTS: u64 = 8;

type Op = TableOp<u64, String>;
type Told = Answer<String>;

/// What all clients of the test share.
#[derive(Default)]
struct Shared {
    recorder: Recorder<Op, Told>,
    answered: AtomicU64,
    stop: AtomicBool,
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn told_of_write(written: &Written) -> Told {
    if written.done {
        return Answer::Done { existed: written.existed };
    }
    Answer::Differs { actual: text(written.actual.clone()) }
}

impl Shared {
    fn note(&self, call: Call<Op, Told>, outcome: Result<Told, ClientError>) {
        match outcome {
            Ok(answer) => {
                call.answered(answer);
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_definite() => call.refused(),
            Err(_) => call.unknown(),
        }
    }
}

/// One client: puts, deletes, compares and reads a few keys, one thing after the other. Values
/// are never written twice, so that every read tells which write it saw.
async fn work(client: Client, shared: Arc<Shared>, number: u64) {
    let table = client.table();
    let mut expect = None;
    for step in 0.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let key = (number + step) % KEYS;
        let name = format!("key-{key}");
        let value = format!("{number}/{step}");
        let action = match (number * 7 + step) % 8 {
            0 | 1 => Action::Put(value),
            2 => Action::CompareAndSet { expect: expect.clone(), value: Some(value) },
            3 if step % 5 == 0 => Action::Delete,
            _ => Action::Get,
        };
        let call = shared.recorder.call(number, Op::new(key, action.clone()));
        let bytes = |value: Option<String>| value.map(Bytes::from);
        let outcome = match action {
            Action::Get => table.get(name).await.map(|value| {
                expect = text(value);
                Answer::Value(expect.clone())
            }),
            Action::Put(value) => table.put(name, value).await.map(|w| told_of_write(&w)),
            Action::Delete => table.delete(name).await.map(|w| told_of_write(&w)),
            Action::CompareAndSet { expect, value } => {
                let set = table.compare_and_set(name, bytes(expect), bytes(value)).await;
                set.map(|w| told_of_write(&w))
            }
        };
        shared.note(call, outcome);
    }
}

/// One thing that goes wrong, and is well again at the end.
async fn trouble(cluster: &mut Supervised, number: u64) {
    let node = number % 3 + 1;
    match number % 4 {
        // Paused for longer than any lease and any election: what it believed is history.
        0 | 2 => {
            cluster.signal(node, Signal::STOP);
            tokio::time::sleep(Duration::from_millis(1_700)).await;
            cluster.signal(node, Signal::CONT);
        }
        1 => {
            cluster.kill(node).await;
            cluster.restart(node).await;
        }
        // Whether there is anybody fit to take it is not the point.
        _ => drop(cluster.run(&["leader", "transfer", "1000000"]).await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_under_faults_is_linearizable() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 1, 0).await;
    let shared = Arc::new(Shared::default());
    let options = ClientOptions {
        deadline: Duration::from_secs(5),
        attempt_timeout: Duration::from_secs(1),
        ..ClientOptions::default()
    };
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let addresses = cluster.addresses().values().cloned();
        // What is resent in a session must be as good as what is not resent.
        let resend = if number % 2 == 0 { Resend::ExactlyOnce } else { Resend::Never };
        let options = ClientOptions { resend, ..options.clone() };
        let client = Client::connect(addresses, options).await.unwrap();
        clients.push(tokio::spawn(work(client, Arc::clone(&shared), number)));
    }
    for fault in 0..FAULTS {
        let enough = shared.answered.load(Ordering::Relaxed) + OPERATIONS_PER_FAULT;
        let reached = || shared.answered.load(Ordering::Relaxed) >= enough;
        process::until("enough operations are answered", reached).await;
        trouble(&mut cluster, fault).await;
    }
    shared.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let history = shared.recorder.history();
    println!("{} operations", history.operations().len());
    let limits = Limits::default().steps(50_000_000).time(Duration::from_secs(60));
    check(&Table::new(), &history, limits).demand();
    cluster.kill_all().await;
}

//! What clients of real processes see while these are killed, paused, and lose their leaders, must
//! be explained by operations that took effect one at a time.

#[path = "cli/process.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod process;

#[path = "faults/tables.rs"]
mod tables;

use std::sync::Arc;
use std::time::Duration;

use process::Supervised;
use rustix::process::Signal;
use shardhost_client::{Client, ClientOptions, Resend};
use tables::TableLoad;
use tempfile::TempDir;

const CLIENTS: u64 = 8;
/// Operations that must have been answered before the next fault, and faults.
const OPERATIONS_PER_FAULT: u64 = 400;
const FAULTS: u64 = 8;

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
        // Whether there is an eligible target is not the point.
        _ => drop(cluster.run(&["leader", "transfer", "1000000"]).await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_under_faults_is_linearizable() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 1, 0).await;
    let load = TableLoad::new(u64::MAX, Duration::ZERO);
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
        clients.push(tokio::spawn(Arc::clone(&load).work(client, number)));
    }
    for fault in 0..FAULTS {
        let enough = load.answered() + OPERATIONS_PER_FAULT;
        let reached = || load.answered() >= enough;
        process::until("enough operations are answered", reached).await;
        trouble(&mut cluster, fault).await;
    }
    load.stop();
    for client in clients {
        client.await.unwrap();
    }
    let checked = load.verify(Duration::from_secs(60)).unwrap_or_else(|why| panic!("{why}"));
    println!("{checked} operations");
    cluster.kill_all().await;
}

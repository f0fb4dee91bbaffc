//! The clients of a run.

use std::sync::Arc;
use std::time::Duration;

use shardhost_client::{Client, ClientOptions, Resend};
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::queues::QueueLoad;
use crate::tables::TableLoad;

const TABLE_CLIENTS: u64 = 6;
const SENDERS: u64 = 3;
const RECEIVERS: u64 = 2;
const PAUSE: Duration = Duration::from_millis(4);
/// Answers after which the clients of the table go on to other keys.
const PER_EPOCH: u64 = 2_000;
/// Longer than any operation is tried, and than all operations of a client in progress when it is
/// to end.
const CLIENTS_END: Duration = Duration::from_secs(60);

/// The clients, and what they saw.
pub struct Load {
    pub tables: Arc<TableLoad>,
    pub queues: Arc<QueueLoad>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts all clients.
    pub async fn start(cluster: &Cluster) -> Self {
        let tables = TableLoad::new(PER_EPOCH, PAUSE);
        let queues = QueueLoad::new(PAUSE);
        let mut tasks = Vec::new();
        for number in 0..TABLE_CLIENTS {
            // What is resent in a session must be as good as what is not resent.
            let resend = if number % 2 == 0 { Resend::ExactlyOnce } else { Resend::Never };
            let client = connect(cluster, resend).await;
            tasks.push(tokio::spawn(Arc::clone(&tables).work(client, number)));
        }
        for number in 0..SENDERS {
            let client = connect(cluster, Resend::ExactlyOnce).await;
            tasks.push(tokio::spawn(Arc::clone(&queues).send(client, number)));
        }
        for _ in 0..RECEIVERS {
            let client = connect(cluster, Resend::ExactlyOnce).await;
            tasks.push(tokio::spawn(Arc::clone(&queues).receive(client)));
        }
        Self { tables, queues, tasks }
    }

    /// Ends them all, and has what they saw.
    pub async fn end(mut self) -> Result<Self, String> {
        self.tables.stop();
        self.queues.stop();
        for task in std::mem::take(&mut self.tasks) {
            let ended = tokio::time::timeout(CLIENTS_END, task).await;
            let ended = ended.map_err(|_| "the operation of a client does not end".to_owned())?;
            ended.map_err(|error| format!("a client failed: {error}"))?;
        }
        Ok(self)
    }
}

async fn connect(cluster: &Cluster, resend: Resend) -> Client {
    let options = ClientOptions {
        deadline: Duration::from_secs(5),
        attempt_timeout: Duration::from_secs(1),
        resend,
        ..ClientOptions::default()
    };
    let addresses = cluster.nodes().map(|node| cluster.servers.address(node));
    let addresses: Vec<String> = addresses.map(str::to_owned).collect();
    Client::connect(addresses, options).await.expect("all of them are there")
}

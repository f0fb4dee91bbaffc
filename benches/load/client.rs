//! Writes, as clients do them: every node runs the server of `shardhost serve`, and this process
//! puts values into its tables over gRPC, with the client that users have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shardhost_client::{Client, ClientOptions, TableClient};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::arguments::WriteArguments;
use super::certificates;
use super::nodes::{Layout, Measured, Nodes, Usage};
use super::process::cpu_time;
use super::report;
use super::tally::{Counted, Tally};
use super::write::{DRAIN, Payload, WARM_UP};

/// Runs the benchmark: starts the servers, spreads the leaders, writes, reports.
pub async fn run(arguments: &WriteArguments) -> anyhow::Result<()> {
    let data = arguments.output.data()?;
    let layout = Layout::of(arguments);
    let limit = Duration::from_secs(arguments.seconds + 120);
    let (mut nodes, addresses) = Nodes::start_servers(&layout, data.path(), |_| {}).await?;
    nodes.spread(limit).await?;
    let mut options = ClientOptions::default();
    if arguments.tls {
        options.security = certificates::of_client(&Nodes::certificates(data.path()))?;
    }
    let client = Client::connect(addresses, options).await?;
    let load = Load::start(client.table(), arguments)?;
    let outcome = measure(&load, &mut nodes, Duration::from_secs(arguments.seconds)).await?;
    load.end().await;
    nodes.end().await?;
    let used = Some(outcome.client_cpu_seconds);
    report::print(&report::write(arguments, &outcome.measured, used)?, arguments.output.json);
    Ok(())
}

/// What was measured: the writes as this process saw them, then what each node used.
struct Outcome {
    measured: Vec<Measured>,
    client_cpu_seconds: f64,
}

async fn measure(load: &Load, nodes: &mut Nodes, duration: Duration) -> anyhow::Result<Outcome> {
    tokio::time::sleep(WARM_UP).await;
    nodes.usage().await?;
    let (started, cpu) = (Instant::now(), cpu_time());
    drop(load.take());
    tokio::time::sleep(duration).await;
    let counted = load.take();
    let seconds = started.elapsed().as_secs_f64();
    let client_cpu_seconds = (cpu_time() - cpu).as_secs_f64();
    let own = Usage { seconds, ..Usage::default() };
    let mut measured = vec![Measured::new(&counted, own)];
    let used = nodes.usage().await?;
    measured.extend(used.into_iter().map(Measured::of_usage));
    Ok(Outcome { measured, client_cpu_seconds })
}

/// The load while it runs.
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    writers: JoinSet<()>,
    stop: tokio_util::sync::CancellationToken,
}

#[derive(Clone)]
struct Writer {
    table: TableClient,
    tally: Arc<Mutex<Tally>>,
    payload: Arc<Mutex<Payload>>,
    stop: tokio_util::sync::CancellationToken,
}

impl Load {
    /// Begins to write into tables.
    pub fn start(table: TableClient, arguments: &WriteArguments) -> anyhow::Result<Self> {
        let tally = Arc::new(Mutex::new(Tally::new()?));
        let stop = tokio_util::sync::CancellationToken::new();
        let payload = Arc::new(Mutex::new(Payload::new(arguments)));
        let writer = Writer { table, tally: Arc::clone(&tally), payload, stop: stop.clone() };
        let mut writers = JoinSet::new();
        if arguments.rate > 0 {
            let interval = Duration::from_secs_f64(1.0 / arguments.rate as f64);
            writers.spawn(writer.offer(interval, arguments.outstanding));
        } else {
            for _ in 0..arguments.outstanding {
                writers.spawn(writer.clone().repeat());
            }
        }
        Ok(Self { tally, writers, stop })
    }

    /// What was written since the last time.
    pub fn take(&self) -> Counted {
        self.tally.lock().take()
    }

    /// Stops the load and waits for the answers that are under way.
    pub async fn end(mut self) {
        self.stop.cancel();
        let drained = async { while self.writers.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some writes were never answered");
        }
    }
}

impl Writer {
    /// One write after the other.
    async fn repeat(self) {
        while !self.stop.is_cancelled() {
            self.write(Instant::now()).await;
        }
    }

    /// A write at every interval, whatever the answers, unless too many are under way: then they
    /// start late, and their latency counts from when they were due.
    async fn offer(self, interval: Duration, outstanding: usize) {
        let slots = Arc::new(Semaphore::new(outstanding));
        let mut under_way = JoinSet::new();
        let mut due = Instant::now();
        while !self.stop.is_cancelled() {
            tokio::time::sleep_until(due.into()).await;
            while due <= Instant::now() && !self.stop.is_cancelled() {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
                let writer = self.clone();
                under_way.spawn(async move {
                    writer.write(due).await;
                    drop(slot);
                });
                due += interval;
            }
            while under_way.try_join_next().is_some() {}
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn write(&self, due: Instant) {
        let (key, value) = self.payload.lock().pair();
        let outcome = self.table.put(key, value).await;
        if let Err(error) = &outcome {
            tracing::debug!(%error, "a write failed");
        }
        self.tally.lock().count(outcome.is_ok(), due.elapsed());
    }
}

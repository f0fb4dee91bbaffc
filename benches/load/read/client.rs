//! Reads, as clients do them: every node runs the server of `shardhost serve`, and this process
//! reads and writes its tables over gRPC, with the client that users have.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use shardhost::NodeId;
use shardhost_client::{Client, ClientOptions, TableClient};
use shardhost_proto::client::Consistency;

use super::embedded::ReadMeasured;
use super::mix::{self, Load, Mix, Target};
use super::{ReadArguments, ReadKind, Run, RunKind, TIMEOUT};
use crate::nodes::Nodes;
use crate::process::cpu_time;

const KEYS: u64 = 10_000;
/// Values that are written at a time before the measurement.
const FILLED_TOGETHER: usize = 256;

/// Starts the servers and runs everything.
pub async fn runs(arguments: &ReadArguments, directory: &Path) -> anyhow::Result<Vec<Run>> {
    let layout = arguments.layout();
    let (mut nodes, addresses) = Nodes::start_servers(&layout, directory, |_| {}).await?;
    nodes.spread(TIMEOUT).await?;
    let client = Client::connect(addresses, ClientOptions::default()).await?;
    let names: Arc<[NodeId]> = client.nodes().into_keys().collect();
    let remote = Remote { table: client.table(), nodes: names, kind: ReadKind::Lease };
    remote.fill().await?;
    let mut runs = Vec::new();
    for kind in arguments.runs() {
        runs.push(run(arguments, &remote, kind, &mut nodes).await?);
    }
    nodes.end().await?;
    Ok(runs)
}

async fn run(
    arguments: &ReadArguments,
    remote: &Remote,
    kind: RunKind,
    nodes: &mut Nodes,
) -> anyhow::Result<Run> {
    let remote = Remote { kind: kind.reads.unwrap_or(ReadKind::Lease), ..remote.clone() };
    let mix = Mix { percent_writes: kind.percent_writes };
    let load = Load::start(&remote, arguments.outstanding, mix)?;
    tokio::time::sleep(arguments.warm_up()).await;
    nodes.usage().await?;
    let (mixed, before, after) =
        mix::measure(&load, Duration::ZERO, arguments.duration(), || (Instant::now(), cpu_time()))
            .await;
    let used = nodes.usage().await?;
    load.end().await;
    let mut measured: Vec<ReadMeasured> =
        used.into_iter().map(|usage| ReadMeasured { usage, ..ReadMeasured::default() }).collect();
    let first = measured.first_mut().context("no nodes")?;
    first.mixed = mixed;
    // What was counted was counted here.
    let seconds = (after.0 - before.0).as_secs_f64();
    measured.iter_mut().for_each(|one| one.usage.seconds = seconds);
    let client_cpu_seconds = Some((after.1 - before.1).as_secs_f64());
    Ok(Run { kind, measured, client_cpu_seconds })
}

/// The tables of the cluster.
#[derive(Clone)]
struct Remote {
    table: TableClient,
    nodes: Arc<[NodeId]>,
    kind: ReadKind,
}

impl Remote {
    async fn fill(&self) -> anyhow::Result<()> {
        let puts = (0..KEYS).map(|key| self.table.put(key_of(key), vec![b'v'; 16]));
        let mut puts = stream::iter(puts).buffer_unordered(FILLED_TOGETHER);
        let filled = async {
            while puts.try_next().await?.is_some() {}
            anyhow::Ok(())
        };
        tokio::time::timeout(TIMEOUT, filled).await.context("the tables cannot be filled")?
    }
}

impl Target for Remote {
    async fn read(&self, lot: u64) -> bool {
        let key = key_of(lot);
        let answer = match self.kind {
            ReadKind::Lease => self.table.get(key).await,
            ReadKind::Quorum => self.table.get_with(key, Consistency::Quorum).await,
            ReadKind::Follower => self.table.get_with(key, Consistency::Follower).await,
            ReadKind::Stale => {
                let place = usize::try_from(lot >> 32).unwrap_or(0) % self.nodes.len();
                self.table.get_via(self.nodes[place], key).await
            }
        };
        if let Err(error) = &answer {
            tracing::debug!(%error, "a read failed");
        }
        matches!(answer, Ok(Some(_)))
    }

    async fn write(&self, lot: u64) -> bool {
        self.table.put(key_of(lot), lot.to_be_bytes().repeat(2)).await.is_ok()
    }
}

fn key_of(lot: u64) -> String {
    format!("key-{:05}", lot % KEYS)
}

//! How long it takes until a node that joins holds its part of the replicas.
//!
//! Three nodes hold everything. A fourth one comes, and the allocator has replicas moved to it until
//! all four hold as many as each other.

use clap::Args;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::replicas::{Cluster, Progress, ReplicasArguments, VOTERS, Written};
use super::report;

/// How the benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct JoinArguments {
    #[command(flatten)]
    pub replicas: ReplicasArguments,
}

const NODES: u64 = 4;
/// The one that joins.
const NEW: u64 = 4;

/// Runs the benchmark and reports.
pub async fn run(arguments: &JoinArguments) -> anyhow::Result<()> {
    let arguments = &arguments.replicas;
    let data = arguments.output.data()?;
    let mut cluster = Cluster::start(arguments, data.path(), NODES, NODES - 1).await?;
    let before = cluster.write(NODES - 1).await?;
    let began = Instant::now();
    cluster.serve(NEW).await?;
    cluster.usage(NODES).await?;
    let (groups, mut progress) = (arguments.groups, Progress::default());
    let part = groups * VOTERS / NODES;
    let done = cluster
        .until(NODES, |places| {
            progress.note(places.on(NEW), part, began.elapsed().as_secs_f64());
            places.led == groups && places.whole == groups && places.is_even(NODES)
        })
        .await?;
    let during =
        Written { flowed: cluster.lap(NODES).await?, seconds: began.elapsed().as_secs_f64() };
    let usage = cluster.usage(NODES).await?;
    let places = cluster.look(NODES).await?;
    let snapshots = places.snapshot_bytes as f64;
    cluster.nodes.end().await?;
    let seconds = (done - began).as_secs_f64();
    let mut figures = Map::new();
    let mut put = |name: &str, value: Value| figures.insert(name.to_owned(), value);
    put("groups", json!(groups));
    put("state_bytes_per_group", json!(arguments.state));
    put("replicas_of_the_new_node", json!(places.on(NEW)));
    put("seconds_until_even", json!(seconds));
    put("replicas_per_second", json!(part as f64 / seconds));
    put("percent_slower", json!((1.0 - during.rate() / before.rate().max(1.0)) * 100.0));
    put("snapshots_mib", json!(snapshots / f64::from(1 << 20)));
    put("snapshots_mib_per_second", json!(snapshots / f64::from(1 << 20) / seconds));
    put("cores", json!(usage.iter().map(|one| one.cpu_seconds / one.seconds).sum::<f64>()));
    progress.put_into(&mut figures);
    before.put_into(&mut figures, "before");
    during.put_into(&mut figures, "during");
    report::print(&Value::Object(figures), arguments.output.json);
    Ok(())
}

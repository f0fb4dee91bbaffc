//! How long it takes until every replica of a node that is lost for good has a successor elsewhere.
//!
//! Four nodes, three of which hold each group. One is killed; once it counts as gone the allocator
//! has its replicas replaced by others, on the one of the three that are left which lacks the group.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::replicas::{Cluster, Progress, ReplicasArguments, Written};
use super::report;

/// How the benchmark runs.
#[derive(Clone, Debug, Args)]
pub struct ReplaceArguments {
    #[command(flatten)]
    pub replicas: ReplicasArguments,
}

const NODES: u64 = 4;
/// The one that is lost. It holds the catalog, too.
const LOST: u64 = 3;

/// Runs the benchmark and reports.
pub async fn run(arguments: &ReplaceArguments) -> anyhow::Result<()> {
    let arguments = &arguments.replicas;
    let data = arguments.output.data()?;
    let mut cluster = Cluster::start(arguments, data.path(), NODES, NODES).await?;
    let before = cluster.write(NODES).await?;
    let lost = cluster.look(NODES).await?.on(LOST);
    cluster.nodes.kill_one(LOST).await?;
    let killed = Instant::now();
    // Until then no replica is replaced: others are elected, and it may come back.
    let gone = killed + Duration::from_secs(arguments.replace_after);
    tokio::time::sleep_until(gone).await;
    let silent =
        Written { flowed: cluster.lap(NODES).await?, seconds: killed.elapsed().as_secs_f64() };
    cluster.usage(NODES).await?;
    let (began, mut progress) = (Instant::now(), Progress::default());
    let groups = arguments.groups;
    let done = cluster
        .until(NODES, |places| {
            let left = places.on(LOST);
            if places.led == groups {
                progress.note(lost - left.min(lost), lost, gone.elapsed().as_secs_f64());
            }
            let catalog = !places.catalog.is_empty() && !places.catalog.contains(&LOST);
            places.whole == groups && left == 0 && catalog
        })
        .await?;
    let during =
        Written { flowed: cluster.lap(NODES).await?, seconds: began.elapsed().as_secs_f64() };
    let usage = cluster.usage(NODES).await?;
    let snapshots = cluster.look(NODES).await?.snapshot_bytes as f64;
    cluster.nodes.end().await?;
    let seconds = (done - gone).as_secs_f64();
    let mut figures = Map::new();
    let mut put = |name: &str, value: Value| figures.insert(name.to_owned(), value);
    put("groups", json!(groups));
    put("state_bytes_per_group", json!(arguments.state));
    put("replicas_lost", json!(lost));
    put("seconds_after_it_was_gone", json!(seconds));
    put("replicas_per_second", json!(lost as f64 / seconds));
    put("snapshots_mib", json!(snapshots / f64::from(1 << 20)));
    put("snapshots_mib_per_second", json!(snapshots / f64::from(1 << 20) / seconds));
    put("cores", json!(usage.iter().map(|one| one.cpu_seconds / one.seconds).sum::<f64>()));
    progress.put_into(&mut figures);
    before.put_into(&mut figures, "before");
    silent.put_into(&mut figures, "while_silent");
    during.put_into(&mut figures, "during");
    report::print(&Value::Object(figures), arguments.output.json);
    Ok(())
}

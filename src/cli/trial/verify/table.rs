//! Every key that was put, at every replica.

use std::fmt;
use std::sync::atomic::Ordering;

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use shardhost::NodeId;
use shardhost_client::{ClientError, TableClient};
use shardhost_proto::shard_map::TABLE_KIND;
use shardhost_server::group_of_shard;

use super::{Verification, Verified};
use crate::output::text;
use crate::trial::findings::{Fault, Findings};

/// Reads under way at any moment.
const IN_FLIGHT: usize = 1_024;
/// Linearizable reads, spread over all keys.
const LINEARIZABLE: usize = 2_000;
/// A read that is not answered is asked so often.
const TRIES: usize = 5;

/// How a key is read.
#[derive(Clone, Copy, Debug)]
enum Via {
    Node(NodeId),
    /// The newest, through the leader.
    Leader,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Leader => f.write_str("its leader"),
        }
    }
}

/// Reads all keys at all replicas, and some through the leaders.
pub async fn verify(on: &Verification<'_>, verified: &mut Verified) -> anyhow::Result<()> {
    let lines = on.load.book.lines_put();
    let sample = lines.len().div_ceil(LINEARIZABLE).max(1);
    let fresh: Vec<u32> = lines.iter().copied().step_by(sample).collect();
    let table = on.client.table();
    let holders = |line: &u32| on.holders(table.group_of(on.load.input.line(*line)));
    let at_replicas = |line: &u32| lines_at(*line, holders(line));
    let replicas: u64 = lines.iter().map(|line| holders(line).len() as u64).sum();
    let mut progress = on.screen.progress("read", replicas + fresh.len() as u64);
    let all =
        lines.iter().flat_map(at_replicas).chain(fresh.iter().map(|line| (Via::Leader, *line)));
    let reads = all.map(|(via, line)| check(on, &table, via, line));
    let mut reads = futures::stream::iter(reads).buffer_unordered(IN_FLIGHT);
    let mut done = 0;
    while let Some(found) = reads.next().await {
        verified.findings.merge(found?);
        done += 1;
        progress.set(done);
    }
    verified.linearizable_reads += fresh.len() as u64;
    verified.reads += replicas;
    Ok(())
}

/// A line at each of these nodes.
fn lines_at(line: u32, holders: &[NodeId]) -> impl Iterator<Item = (Via, u32)> {
    holders.iter().map(move |node| (Via::Node(*node), line))
}

/// There must be no key that was never put. Not known when a put has an unknown outcome.
pub fn verify_count(on: &Verification<'_>, verified: &mut Verified) {
    let shards = (0..on.layout.tables).filter_map(|shard| group_of_shard(TABLE_KIND, shard));
    let counts: Option<Vec<u64>> =
        shards.map(|group| verified.items.get(&group.get()).copied()).collect();
    let (Some(counts), expected) = (counts, on.load.input.distinct()) else { return };
    let found: u64 = counts.iter().sum();
    let all_known = on.load.tally.given_up.load(Ordering::Relaxed) == 0;
    if all_known && found > expected {
        let detail = format!("{found} keys, {expected} were put");
        verified.findings.add(Fault::Wrong, "the table".to_owned(), detail);
    }
}

async fn check(
    on: &Verification<'_>,
    table: &TableClient,
    via: Via,
    line: u32,
) -> anyhow::Result<Findings> {
    let key = on.load.input.line(line);
    let expected = on.load.book.expected(line, on.load.input.value(line));
    let found = read(table, via, key).await;
    let found = found.with_context(|| format!("key {:?} via {via}", text(key)))?;
    Ok(compare(key, via, &expected, found.as_ref()))
}

async fn read(table: &TableClient, via: Via, key: &Bytes) -> Result<Option<Bytes>, ClientError> {
    let mut tries = 0;
    loop {
        let found = match via {
            Via::Node(node) => table.get_via(node, key.clone()).await,
            Via::Leader => table.get(key.clone()).await,
        };
        tries += 1;
        if found.is_ok() || tries == TRIES {
            return found;
        }
    }
}

fn compare(key: &Bytes, via: Via, expected: &Bytes, found: Option<&Bytes>) -> Findings {
    let mut findings = Findings::default();
    let subject = format!("key {:?}", text(key));
    match found {
        None => findings.add(Fault::Lost, subject, format!("not there via {via}")),
        Some(found) if found != expected => {
            let detail = format!("{:?} via {via}, not {:?}", text(found), text(expected));
            findings.add(Fault::Wrong, subject, detail);
        }
        Some(_) => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_value_is_lost_and_another_value_is_wrong() {
        let (key, value) = (Bytes::from("apple"), Bytes::from("1:aa"));
        let found = |found: Option<&Bytes>| compare(&key, Via::Leader, &value, found);
        assert!(found(Some(&value)).is_clean());
        assert_eq!(found(None).count(Fault::Lost), 1);
        assert_eq!(found(Some(&Bytes::from("2:bb"))).count(Fault::Wrong), 1);
    }
}

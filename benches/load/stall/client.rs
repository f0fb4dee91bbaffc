//! The same stream of writes, offered by a client over gRPC.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use parking_lot::Mutex;
use shardhost::GroupId;
use shardhost_client::{Client, ClientOptions, TableClient};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::offer::Ack;
use crate::process::now_ns;
use crate::write::DRAIN;

/// Writes under way at most: beyond, they are offered late.
const OUTSTANDING: usize = 16_384;
/// Keys that are written to.
const KEYS: u64 = 10_000;

/// A client that writes.
pub struct ClientLoad {
    acks: Arc<Mutex<Vec<Ack>>>,
    streams: JoinSet<()>,
    stop: CancellationToken,
}

impl ClientLoad {
    /// Connects, and offers so many writes per second to the group and to all others.
    pub async fn start(
        addresses: Vec<String>,
        group: u64,
        rate: u64,
        others: u64,
    ) -> anyhow::Result<Self> {
        let table = Client::connect(addresses, ClientOptions::default()).await?.table();
        let measured = |key: &String| table.group_of(key.as_bytes()) == Some(GroupId::new(group));
        let keys = (0..KEYS).map(|key| format!("key-{key:05}"));
        let (own, rest): (Vec<String>, Vec<String>) = keys.partition(measured);
        ensure!(!own.is_empty(), "no key belongs to group {group}");
        let (acks, stop) = (Arc::<Mutex<Vec<Ack>>>::default(), CancellationToken::new());
        let mut streams = JoinSet::new();
        for (keys, rate, acks) in [(own, rate, Some(Arc::clone(&acks))), (rest, others, None)] {
            if rate > 0 && !keys.is_empty() {
                let interval = Duration::from_secs_f64(1.0 / rate as f64);
                let stream = Stream { table: table.clone(), keys: keys.into(), interval, acks };
                streams.spawn(stream.run(stop.clone()));
            }
        }
        Ok(Self { acks, streams, stop })
    }

    /// Ends the stream; what was acknowledged.
    pub async fn end(mut self) -> Vec<Ack> {
        self.stop.cancel();
        let drained = async { while self.streams.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some writes were never answered");
        }
        std::mem::take(&mut *self.acks.lock())
    }
}

/// Writes to some keys in turn.
struct Stream {
    table: TableClient,
    keys: Arc<[String]>,
    interval: Duration,
    acks: Option<Arc<Mutex<Vec<Ack>>>>,
}

impl Stream {
    async fn run(self, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(OUTSTANDING));
        let mut under_way = JoinSet::new();
        let mut due = Instant::now();
        for key in self.keys.iter().cycle() {
            tokio::time::sleep_until(due.into()).await;
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
            if stop.is_cancelled() {
                break;
            }
            let (table, key, acks) = (self.table.clone(), key.clone(), self.acks.clone());
            under_way.spawn(async move {
                write(&table, key, due, acks).await;
                drop(slot);
            });
            while under_way.try_join_next().is_some() {}
            due += self.interval;
        }
        while under_way.join_next().await.is_some() {}
    }
}

async fn write(table: &TableClient, key: String, due: Instant, acks: Option<Arc<Mutex<Vec<Ack>>>>) {
    let outcome = table.put(key, &b"sixteen bytes ..."[..16]).await;
    match (outcome, acks, now_ns()) {
        (Ok(_), Some(acks), Ok(at_ns)) => {
            let took_us = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
            acks.lock().push(Ack { at_ns, took_us });
        }
        (Err(error), ..) => tracing::debug!(%error, "a write failed"),
        _ => {}
    }
}

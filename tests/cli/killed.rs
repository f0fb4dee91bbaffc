//! Nothing acknowledged is lost when all nodes are killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_client::{Client, ClientOptions};
use tempfile::TempDir;

use super::process::{Supervised, until};

/// What the writers of a test saw acknowledged.
#[derive(Default)]
struct Acknowledged {
    puts: Mutex<BTreeMap<String, u64>>,
    /// Sequence and body of each message, by partition key, in the order they were sent.
    sends: Mutex<BTreeMap<String, Vec<(u64, String)>>>,
    count: AtomicU64,
    stop: AtomicBool,
}

const WRITERS: u64 = 64;

/// Writes one after the other until stopped. A write without an acknowledgement may or may not have
/// taken effect: the put has a separate key and the partition ends with the send.
async fn write(client: Client, seen: Arc<Acknowledged>, life: u64, writer: u64) {
    let (table, queue) = (client.table(), client.queue());
    let partition = format!("partition-{life}-{writer}");
    let mut in_order = true;
    for number in 0.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("key-{life}-{writer}-{number}");
        if table.put(key.clone(), number.to_string()).await.is_ok() {
            seen.puts.lock().insert(key, number);
            seen.count.fetch_add(1, Ordering::Relaxed);
        }
        let body = format!("body-{number}");
        if in_order {
            match queue.send(partition.clone(), body.clone(), Bytes::new()).await {
                Ok(sent) => {
                    let mut sends = seen.sends.lock();
                    sends.entry(partition.clone()).or_default().push((sent.sequence, body));
                }
                Err(_) => in_order = false,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_all_nodes_are_killed_under_load() {
    let directory = TempDir::new().unwrap();
    let mut cluster = Supervised::start(directory.path(), 6, 6).await;
    let seen = Arc::new(Acknowledged::default());
    for life in 1..=3 {
        seen.stop.store(false, Ordering::Relaxed);
        let options =
            ClientOptions { deadline: Duration::from_secs(20), ..ClientOptions::default() };
        let client = Client::connect(cluster.addresses().values().cloned(), options.clone());
        let client = client.await.unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(client.clone(), Arc::clone(&seen), life, writer)))
            .collect();
        until("enough is acknowledged", || seen.count.load(Ordering::Relaxed) >= life * 1_500)
            .await;
        cluster.kill_all().await;
        seen.stop.store(true, Ordering::Relaxed);
        cluster.restart_all().await;
        for writer in writers {
            writer.await.unwrap();
        }
        let client = Client::connect(cluster.addresses().values().cloned(), options).await.unwrap();
        verify(&client, &seen).await;
    }
    cluster.kill_all().await;
}

async fn verify(client: &Client, seen: &Acknowledged) {
    let puts = seen.puts.lock().clone();
    let table = client.table();
    let reads = puts.iter().map(|(key, number)| {
        let table = &table;
        async move {
            let found = table.get(key.clone()).await.unwrap();
            assert_eq!(found, Some(number.to_string().into()), "{key}");
        }
    });
    futures::future::join_all(reads).await;
    let sends = seen.sends.lock().clone();
    let mut found: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for shard in 0..client.queue().shards() {
        let page = client.queue().peek(shard, 0, Some(10_000)).await.unwrap();
        assert!(!page.more, "the test sends more than it reads");
        for message in page.messages {
            let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let message_of = (message.sequence, text(message.body));
            found.entry(text(message.partition_key)).or_default().push(message_of);
        }
    }
    for (partition, sent) in sends {
        let there = found.remove(&partition).unwrap_or_default();
        assert!(there.starts_with(&sent), "{partition}: {sent:?} was sent, {there:?} is there");
        assert!(there.len() <= sent.len() + 1, "{partition}: one send may be in doubt: {there:?}");
    }
}

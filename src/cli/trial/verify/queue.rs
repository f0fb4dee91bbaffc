//! Every message that was sent: seen at every replica, then received and acked, each time in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::future::try_join_all;
use shardhost::NodeId;
use shardhost_client::{ClientError, QueueClient};
use shardhost_proto::client::Delivery;
use tokio::time::Instant;

use super::{Verification, Verified};
use crate::output::text;
use crate::trial::TIMEOUT;
use crate::trial::book::PartitionBook;
use crate::trial::findings::{Fault, Findings};
use crate::trial::input::Input;

const PEEK: u32 = 5_000;
const RECEIVE: u32 = 1_000;
/// What a receive with an unknown outcome took comes back after this.
const VISIBILITY: Duration = Duration::from_secs(5);
/// A peek that is not answered is asked so often.
const TRIES: usize = 5;
/// Before asking again for hidden messages.
const PAUSE: Duration = Duration::from_millis(100);

/// What was delivered of each partition, in the order of delivery.
type Deliveries = HashMap<Bytes, Vec<Delivery>>;

/// Compares what every node holds with what was acknowledged.
pub async fn peek_everywhere(on: &Verification<'_>, verified: &mut Verified) -> anyhow::Result<()> {
    let queue = on.client.queue();
    let total = on.load.book.partitions().values().map(|p| p.sent.len() as u64).sum::<u64>();
    let mut progress = on.screen.progress("peek", total * on.layout.nodes);
    for node in &on.nodes {
        let held = |shard: &usize| on.holders(queue.group(*shard)).contains(node);
        let held: Vec<usize> = (0..queue.shards()).filter(held).collect();
        let shards = held.iter().map(|shard| peek_shard(&queue, *node, *shard));
        let seen: Vec<Delivery> = try_join_all(shards).await?.into_iter().flatten().collect();
        verified.peeked += seen.len() as u64;
        progress.set(verified.peeked);
        let place = format!("on node {node}");
        verified.findings.merge(compare_all(on, &queue, &held, by_partition(seen), &place)?);
    }
    Ok(())
}

async fn peek_shard(
    queue: &QueueClient,
    node: NodeId,
    shard: usize,
) -> anyhow::Result<Vec<Delivery>> {
    let mut messages: Vec<Delivery> = Vec::new();
    loop {
        let from = messages.last().map_or(0, |message| message.sequence + 1);
        let page = peek_page(queue, node, shard, from).await;
        let page = page.with_context(|| format!("shard {shard} of the queue on node {node}"))?;
        let more = page.more && !page.messages.is_empty();
        messages.extend(page.messages);
        if !more {
            return Ok(messages);
        }
    }
}

async fn peek_page(
    queue: &QueueClient,
    node: NodeId,
    shard: usize,
    from: u64,
) -> Result<shardhost_proto::client::Deliveries, ClientError> {
    let mut tries = 0;
    loop {
        let page = queue.peek_via(node, shard, from, Some(PEEK)).await;
        tries += 1;
        if page.is_ok() || tries == TRIES {
            return page;
        }
    }
}

/// Receives and acks all messages and compares them with what was acknowledged.
pub async fn receive_everything(
    on: &Verification<'_>,
    verified: &mut Verified,
) -> anyhow::Result<()> {
    let queue = on.client.queue();
    let left = expected_by_shard(on, &queue)?;
    let shards = (0..queue.shards())
        .map(|shard| receive_shard(&queue, shard, left.get(&shard).copied().unwrap_or(0)));
    let received: Vec<Delivery> = try_join_all(shards).await?.into_iter().flatten().collect();
    verified.received += received.len() as u64;
    let all: Vec<usize> = (0..queue.shards()).collect();
    let found = compare_all(on, &queue, &all, by_partition(received), "received")?;
    verified.findings.merge(found);
    Ok(())
}

fn expected_by_shard(
    on: &Verification<'_>,
    queue: &QueueClient,
) -> anyhow::Result<BTreeMap<usize, usize>> {
    let mut expected = BTreeMap::new();
    for (key, partition) in on.load.book.partitions() {
        *expected.entry(queue.shard_of(&key)?).or_default() += partition.sent.len();
    }
    Ok(expected)
}

/// Until as many as were sent were received and nothing more comes, or nothing comes for longer
/// than anything may be hidden.
async fn receive_shard(
    queue: &QueueClient,
    shard: usize,
    expected: usize,
) -> anyhow::Result<Vec<Delivery>> {
    let mut received = Vec::new();
    let mut last_came = Instant::now();
    let begun = Instant::now();
    loop {
        if begun.elapsed() > TIMEOUT {
            bail!("shard {shard} of the queue is not empty after {TIMEOUT:?}");
        }
        let messages = match queue.receive(shard, RECEIVE, VISIBILITY).await {
            Ok(part) => part.messages,
            // What it took comes back.
            Err(ClientError::OutcomeUnknown { .. }) => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("shard {shard}")),
        };
        if messages.is_empty() {
            if received.len() >= expected || last_came.elapsed() > VISIBILITY * 2 {
                return Ok(received);
            }
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let receipts: Vec<u64> = messages.iter().map(|message| message.receipt).collect();
        received.extend(messages);
        queue.ack(shard, receipts).await.with_context(|| format!("shard {shard}"))?;
        last_came = Instant::now();
    }
}

fn by_partition(messages: Vec<Delivery>) -> Deliveries {
    let mut partitions = Deliveries::new();
    for message in messages {
        partitions.entry(message.partition_key.clone()).or_default().push(message);
    }
    partitions
}

/// Compares what was delivered of these shards with what was acknowledged of them.
fn compare_all(
    on: &Verification<'_>,
    queue: &QueueClient,
    shards: &[usize],
    mut seen: Deliveries,
    place: &str,
) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    for (key, expected) in on.load.book.partitions() {
        if !shards.contains(&queue.shard_of(&key)?) {
            continue;
        }
        let delivered = seen.remove(&key).unwrap_or_default();
        findings.merge(compare(&on.load.input, &key, &expected, &delivered, place));
    }
    for (key, messages) in seen {
        let subject = format!("partition {:?}", text(&key));
        let detail = format!("{} messages {place} that were never sent", messages.len());
        findings.add(Fault::Wrong, subject, detail);
    }
    Ok(findings)
}

/// Compares what was delivered of one partition with what was acknowledged.
fn compare(
    input: &Input,
    key: &Bytes,
    expected: &PartitionBook,
    delivered: &[Delivery],
    place: &str,
) -> Findings {
    let mut findings = Findings::default();
    let subject = |sequence: u64| format!("message {sequence} of {:?}", text(key));
    let places: HashMap<u64, usize> =
        expected.sent.iter().enumerate().map(|(at, sent)| (sent.sequence, at)).collect();
    let mut seen = HashSet::new();
    let mut furthest = None;
    for message in delivered {
        if !seen.insert(message.sequence) {
            findings.redelivered += 1;
            continue;
        }
        let Some(at) = places.get(&message.sequence).copied() else {
            if expected.in_doubt.is_none_or(|line| *input.line(line) != message.body) {
                let detail = format!("{:?} {place}, never acknowledged", text(&message.body));
                findings.add(Fault::Wrong, subject(message.sequence), detail);
            }
            continue;
        };
        let line = input.line(expected.sent[at].line);
        if *line != message.body {
            let detail = format!("{:?} {place}, not {:?}", text(&message.body), text(line));
            findings.add(Fault::Wrong, subject(message.sequence), detail);
        }
        if furthest.is_some_and(|furthest| at < furthest) {
            let detail = format!("{place} behind a later one");
            findings.add(Fault::OutOfOrder, subject(message.sequence), detail);
        }
        furthest = furthest.max(Some(at));
    }
    for sent in expected.sent.iter().filter(|sent| !seen.contains(&sent.sequence)) {
        let detail = format!("{:?} is not there {place}", text(input.line(sent.line)));
        findings.add(Fault::Lost, subject(sent.sequence), detail);
    }
    // Two messages with one sequence cannot both be there.
    if places.len() < expected.sent.len() {
        let detail = "two messages were acknowledged with one sequence".to_owned();
        findings.add(Fault::Lost, format!("partition {:?}", text(key)), detail);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::book::SentMessage;

    fn input() -> Input {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "zero\none\ntwo\n").unwrap();
        Input::read(Some(file.path()), None).unwrap()
    }

    fn message(sequence: u64, body: &'static str) -> Delivery {
        Delivery { sequence, body: body.into(), ..Delivery::default() }
    }

    /// Lost, wrong, out of order, redelivered.
    fn faults(delivered: &[Delivery], in_doubt: Option<u32>) -> [u64; 4] {
        let sent = [(10, 0), (20, 1)];
        let sent = sent.map(|(sequence, line)| SentMessage { sequence, line }).to_vec();
        let book = PartitionBook { sent, in_doubt };
        let found = compare(&input(), &"p".into(), &book, delivered, "here");
        let [lost, wrong, order] =
            [Fault::Lost, Fault::Wrong, Fault::OutOfOrder].map(|fault| found.count(fault));
        [lost, wrong, order, found.redelivered]
    }

    #[test]
    fn what_was_sent_and_delivered_in_order_is_right() {
        assert_eq!(faults(&[message(10, "zero"), message(20, "one")], None), [0, 0, 0, 0]);
    }

    #[test]
    fn a_message_that_is_missing_is_lost() {
        assert_eq!(faults(&[message(20, "one")], None), [1, 0, 0, 0]);
    }

    #[test]
    fn a_message_before_an_earlier_one_is_out_of_order() {
        assert_eq!(faults(&[message(20, "one"), message(10, "zero")], None), [0, 0, 1, 0]);
    }

    #[test]
    fn another_body_and_a_message_of_nobody_are_wrong() {
        let delivered = [message(10, "zero"), message(20, "two"), message(30, "two")];
        assert_eq!(faults(&delivered, None), [0, 2, 0, 0]);
    }

    #[test]
    fn a_message_whose_outcome_stayed_unknown_may_be_there_or_not() {
        let delivered = [message(10, "zero"), message(20, "one"), message(30, "two")];
        assert_eq!(faults(&delivered, Some(2)), [0, 0, 0, 0]);
        assert_eq!(faults(&delivered[..2], Some(2)), [0, 0, 0, 0]);
    }

    #[test]
    fn a_redelivery_is_allowed_and_counted() {
        let delivered = [message(10, "zero"), message(20, "one"), message(10, "zero")];
        assert_eq!(faults(&delivered, None), [0, 0, 0, 1]);
    }
}

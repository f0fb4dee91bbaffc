//! `shardhost queue`: single messages in and out.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shardhost_client::{ClientError, QueueClient, Received};
use shardhost_proto::client::{Acked, Delivery};
use shardhost_proto::limits::MAX_RECEIVE;

use super::ended::PARTLY;
use super::output::{Column, bytes_json, number, table, text, whole};
use super::target::Target;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Append a message.
    Send {
        /// Messages of one partition key are delivered in order.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        partition_key: String,
        /// The message.
        body: String,
        /// A message with the id of an earlier one of the same partition key is not stored again, for
        /// five minutes. Another key may use the id for another message.
        #[arg(long, value_name = "ID", default_value = "")]
        dedup_id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Take messages; without --ack they come back when their visibility ends.
    ///
    /// Ends with exit code 3 when not all was done: a shard gave no answer, or messages that were printed
    /// could not be removed, because their visibility was over.
    Receive(ReceiveArguments),
    /// Remove messages that were received, by the receipts that `receive` prints.
    ///
    /// Ends with exit code 3 when a receipt was stale: the visibility was over, and the message is or was
    /// received again.
    Ack {
        /// Receipts, as SHARD:NUMBER.
        #[arg(required = true, value_name = "RECEIPT")]
        receipts: Vec<Receipt>,
        #[command(flatten)]
        target: Target,
    },
    /// Show messages, received or not, without receiving them.
    ///
    /// Ends with exit code 3 when a shard gave no answer.
    Peek {
        /// Only those of this shard; left out: of all, one after the other.
        #[arg(long)]
        shard: Option<usize>,
        /// Only those from this sequence on.
        #[arg(long, value_name = "SEQUENCE", default_value = "0", value_parser = whole)]
        from: u64,
        /// How many at most.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        #[command(flatten)]
        target: Target,
    },
}

/// What a delivery is acknowledged by, as it is printed and typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    shard: usize,
    number: u64,
}

impl FromStr for Receipt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(shard, number)| {
            Some(Self { shard: shard.parse().ok()?, number: number.parse().ok()? })
        });
        parts.ok_or_else(|| "it is no receipt; they are printed as SHARD:NUMBER".to_owned())
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.shard, self.number)
    }
}

/// What to receive.
#[derive(Debug, Args)]
pub struct ReceiveArguments {
    /// Only messages of this partition key; left out: of any.
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    partition_key: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RECEIVE)))]
    max: u32,
    /// How long others do not see them, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=43_200))]
    visibility: u64,
    /// Remove them from the queue once they are printed.
    #[arg(long)]
    ack: bool,
    #[command(flatten)]
    target: Target,
}

/// Sends or receives.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Send { partition_key, body, dedup_id, target } => {
            send(partition_key, body, dedup_id, &target).await?;
        }
        Command::Receive(arguments) => return receive(&arguments).await,
        Command::Ack { receipts, target } => return acknowledge(&receipts, &target).await,
        Command::Peek { shard, from, limit, target } => {
            return peek(shard, from, limit, &target).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(
    partition_key: String,
    body: String,
    dedup_id: String,
    target: &Target,
) -> anyhow::Result<()> {
    let queue = target.client().await?.queue();
    let shard = queue.shard_of(partition_key.as_bytes())?;
    let sent = queue.send(partition_key, body, dedup_id).await?;
    let (sequence, duplicate) = (sent.sequence, sent.duplicate);
    if target.json {
        println!("{}", json!({ "shard": shard, "sequence": sequence, "duplicate": duplicate }));
    } else if duplicate {
        println!("was there already: message {sequence} of shard {shard}");
    } else {
        println!("sent as message {sequence} of shard {shard}");
    }
    Ok(())
}

/// The result of a receive.
#[derive(Debug, Default)]
struct Taken {
    parts: Vec<Received>,
    /// Shards that gave no answer, and why.
    failed: BTreeMap<usize, String>,
    /// Messages that were to be removed and were not, by shard: another consumer has them by now,
    /// or will.
    stale: BTreeMap<usize, u32>,
}

impl Taken {
    fn is_whole(&self) -> bool {
        self.failed.is_empty() && self.stale.is_empty()
    }
}

async fn receive(arguments: &ReceiveArguments) -> anyhow::Result<ExitCode> {
    let queue = arguments.target.client().await?.queue();
    let mut taken = take(&queue, arguments).await?;
    // Before they are removed: a message that is lost on the way to a reader comes again.
    show(&taken, arguments.target.json);
    if arguments.ack {
        ack(&queue, &mut taken).await;
    }
    tell(&taken);
    Ok(if taken.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// From the shard of the partition key, or from one shard after the other until it is enough.
async fn take(queue: &QueueClient, arguments: &ReceiveArguments) -> anyhow::Result<Taken> {
    let visibility = Duration::from_secs(arguments.visibility);
    if let Some(key) = &arguments.partition_key {
        let received = queue.receive_partition(key.clone(), arguments.max, visibility).await?;
        return Ok(Taken { parts: vec![received], ..Taken::default() });
    }
    let mut left = arguments.max;
    let mut taken = Taken::default();
    // Another one each time, so that no shard waits behind the others for ever.
    let first = rand::random_range(0..queue.shards().max(1));
    for shard in from_shard(first, queue.shards()) {
        if left == 0 {
            break;
        }
        match queue.receive(shard, left, visibility).await {
            Ok(part) => {
                left = left.saturating_sub(u32::try_from(part.messages.len()).unwrap_or(u32::MAX));
                taken.parts.push(part);
            }
            Err(error @ ClientError::Invalid { .. }) => return Err(error.into()),
            Err(error) => {
                taken.failed.insert(shard, error.to_string());
            }
        }
    }
    if let Some(why) = taken.failed.values().next().filter(|_| taken.parts.is_empty()) {
        bail!("no shard of the queue answers: {why}");
    }
    Ok(taken)
}

/// All shards once, from `first` on.
fn from_shard(first: usize, shards: usize) -> impl Iterator<Item = usize> {
    (0..shards).map(move |step| (first + step) % shards)
}

/// Removes messages by their receipts.
async fn acknowledge(receipts: &[Receipt], target: &Target) -> anyhow::Result<ExitCode> {
    let queue = target.client().await?.queue();
    let mut by_shard: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for receipt in receipts {
        if receipt.shard >= queue.shards() {
            bail!("{receipt} is of no shard: the queue has {}", queue.shards());
        }
        by_shard.entry(receipt.shard).or_default().push(receipt.number);
    }
    let (mut acked, mut stale, mut failed) = (0, 0, BTreeMap::new());
    for (shard, receipts) in by_shard {
        match queue.ack(shard, receipts).await {
            Ok(answer) => {
                acked += answer.acked;
                stale += answer.stale;
            }
            Err(error) => drop(failed.insert(shard, error.to_string())),
        }
    }
    match target.json {
        true => println!("{}", json!({ "acked": acked, "stale": stale, "failed": failed })),
        false => println!("{acked} messages removed"),
    }
    for (shard, error) in &failed {
        eprintln!("shard {shard}: {error}");
    }
    if stale > 0 {
        eprintln!(
            "{stale} receipts were stale: those messages are gone already, or are received again"
        );
    }
    if acked == 0 && stale == 0 && !failed.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let whole = stale == 0 && failed.is_empty();
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// Shows messages of one shard or of all.
async fn peek(
    shard: Option<usize>,
    from: u64,
    limit: u32,
    target: &Target,
) -> anyhow::Result<ExitCode> {
    let queue = target.client().await?.queue();
    if let Some(shard) = shard.filter(|shard| *shard >= queue.shards()) {
        bail!("there is no shard {shard}: the queue has {}", queue.shards());
    }
    let shards = shard.map_or(0..queue.shards(), |shard| shard..shard + 1);
    let mut taken = Taken::default();
    let (mut left, mut more) = (limit, false);
    for shard in shards {
        if left == 0 {
            more = true;
            break;
        }
        match queue.peek(shard, from, Some(left)).await {
            Ok(found) => {
                more |= found.more;
                left = left.saturating_sub(u32::try_from(found.messages.len()).unwrap_or(u32::MAX));
                let (messages, more) = (found.messages, found.more);
                taken.parts.push(Received { shard, messages, more });
            }
            Err(error) => drop(taken.failed.insert(shard, error.to_string())),
        }
    }
    if let Some(why) = taken.failed.values().next().filter(|_| taken.parts.is_empty()) {
        bail!("no shard of the queue answers: {why}");
    }
    if target.json {
        let shown = messages_json(&taken);
        println!("{}", json!({ "messages": shown, "more": more, "failed": taken.failed }));
    } else {
        println!("{}", table(&COLUMNS[..5], messages(&taken).map(row)));
        if more {
            println!("there is more; show it with --limit, or with --shard and --from");
        }
    }
    tell(&taken);
    Ok(if taken.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

async fn ack(queue: &QueueClient, taken: &mut Taken) {
    for part in taken.parts.iter().filter(|part| !part.messages.is_empty()) {
        match queue.ack(part.shard, part.receipts()).await {
            Ok(Acked { stale: 0, .. }) => {}
            Ok(acked) => drop(taken.stale.insert(part.shard, acked.stale)),
            Err(error) => drop(taken.failed.insert(part.shard, format!("not removed: {error}"))),
        }
    }
}

fn messages(taken: &Taken) -> impl Iterator<Item = (usize, &Delivery)> {
    taken.parts.iter().flat_map(|part| part.messages.iter().map(|message| (part.shard, message)))
}

fn messages_json(taken: &Taken) -> Vec<Value> {
    messages(taken).map(|(shard, message)| message_json(shard, message)).collect()
}

/// The columns of a message, without its receipt.
fn row((shard, message): (usize, &Delivery)) -> Vec<String> {
    vec![
        shard.to_string(),
        number(message.sequence),
        text(&message.partition_key),
        text(&message.body),
        message.attempt.to_string(),
    ]
}

fn show(taken: &Taken, json: bool) {
    if json {
        let shown = messages_json(taken);
        return println!("{}", json!({ "messages": shown, "failed": taken.failed }));
    }
    if messages(taken).next().is_none() {
        return println!("no message can be received now");
    }
    let rows = messages(taken).map(|(shard, message)| {
        let mut row = row((shard, message));
        row.push(Receipt { shard, number: message.receipt }.to_string());
        row
    });
    println!("{}", table(&COLUMNS, rows));
}

/// Prints what was not done.
fn tell(taken: &Taken) {
    for (shard, error) in &taken.failed {
        eprintln!("shard {shard}: {error}");
    }
    for (shard, stale) in &taken.stale {
        eprintln!(
            "shard {shard}: {stale} of these messages were not removed: their visibility was over, and \
             they are received again; give more time with --visibility"
        );
    }
}

const COLUMNS: [Column; 6] = [
    Column::Right("shard"),
    Column::Right("sequence"),
    Column::Left("partition key"),
    Column::Left("body"),
    Column::Right("attempt"),
    Column::Left("receipt"),
];

fn message_json(shard: usize, message: &Delivery) -> Value {
    let mut shown = json!({
        "shard": shard,
        "sequence": message.sequence,
        "partition_key": bytes_json(&message.partition_key),
        "body": bytes_json(&message.body),
        "attempt": message.attempt,
    });
    // A peek gives none.
    if message.receipt != 0 {
        let receipt = Receipt { shard, number: message.receipt };
        shown["receipt"] = json!(message.receipt);
        shown["ack"] = json!(receipt.to_string());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_that_are_printed_can_be_typed() {
        for receipt in [Receipt { shard: 0, number: 1 }, Receipt { shard: 31, number: u64::MAX }] {
            assert_eq!(receipt.to_string().parse(), Ok(receipt));
        }
        for wrong in ["", "7", "7:", ":7", "a:1", "1:-1", "1:2:3"] {
            assert!(wrong.parse::<Receipt>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_shard_is_asked_once_wherever_it_begins() {
        for first in 0..5 {
            let order: Vec<usize> = from_shard(first, 5).collect();
            assert_eq!(order[0], first);
            let mut sorted = order;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert_eq!(from_shard(0, 0).count(), 0);
    }
}

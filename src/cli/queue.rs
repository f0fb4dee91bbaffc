//! `shardhost queue`: single messages in and out.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shardhost::client::{ClientError, QueueClient, Received};
use shardhost::proto::client::{Acked, Delivery};

use super::output::{Column, bytes_json, number, table, text};
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
}

/// What to receive.
#[derive(Debug, Args)]
pub struct ReceiveArguments {
    /// Only messages of this partition key; left out: of any.
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    partition_key: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 10)]
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

/// What came of a receive.
#[derive(Debug, Default)]
struct Taken {
    parts: Vec<Received>,
    /// Shards that gave no answer, and why.
    failed: BTreeMap<usize, String>,
    /// Messages that were to be removed and were not, by shard: somebody else has them by now, or will.
    stale: BTreeMap<usize, u32>,
}

impl Taken {
    fn is_whole(&self) -> bool {
        self.failed.is_empty() && self.stale.is_empty()
    }
}

/// Exit code of what was done in part.
const PARTLY: u8 = 3;

async fn receive(arguments: &ReceiveArguments) -> anyhow::Result<ExitCode> {
    let queue = arguments.target.client().await?.queue();
    let mut taken = take(&queue, arguments).await?;
    // Before they are removed: what is lost on the way to a reader comes again.
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
    for shard in 0..queue.shards() {
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

/// Removes what was received.
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

fn show(taken: &Taken, json: bool) {
    if json {
        let shown: Vec<Value> =
            messages(taken).map(|(shard, message)| message_json(shard, message)).collect();
        return println!("{}", json!({ "messages": shown, "failed": taken.failed }));
    }
    if messages(taken).next().is_none() {
        return println!("no message can be received now");
    }
    let rows = messages(taken).map(|(shard, message)| {
        vec![
            shard.to_string(),
            number(message.sequence),
            text(&message.partition_key),
            text(&message.body),
            message.attempt.to_string(),
        ]
    });
    println!("{}", table(&COLUMNS, rows));
}

/// Says what was not done.
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

const COLUMNS: [Column; 5] = [
    Column::Right("shard"),
    Column::Right("sequence"),
    Column::Left("partition key"),
    Column::Left("body"),
    Column::Right("attempt"),
];

fn message_json(shard: usize, message: &Delivery) -> Value {
    json!({
        "shard": shard,
        "sequence": message.sequence,
        "partition_key": bytes_json(&message.partition_key),
        "body": bytes_json(&message.body),
        "receipt": message.receipt,
        "attempt": message.attempt,
    })
}

//! `shardhost queue`: single messages in and out.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shardhost::client::{QueueClient, Received};
use shardhost::proto::client::Delivery;

use super::output::{Column, bytes_json, number, table, text};
use super::target::Target;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Append a message.
    Send {
        /// Messages of one partition key are delivered in order.
        partition_key: String,
        /// The message.
        body: String,
        /// A message with the id of an earlier one is not stored again.
        #[arg(long, value_name = "ID", default_value = "")]
        dedup_id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Take messages; without --ack they come back when their visibility ends.
    Receive(ReceiveArguments),
}

/// What to receive.
#[derive(Debug, Args)]
pub struct ReceiveArguments {
    /// Only messages of this partition key.
    #[arg(long, value_name = "KEY")]
    partition_key: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 10)]
    max: u32,
    /// How long others do not see them, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
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
        Command::Receive(arguments) => receive(&arguments).await?,
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

async fn receive(arguments: &ReceiveArguments) -> anyhow::Result<()> {
    let queue = arguments.target.client().await?.queue();
    let received = take(&queue, arguments).await?;
    show(&received, arguments.target.json);
    if arguments.ack {
        for part in &received {
            queue.ack(part.shard, part.receipts()).await?;
        }
    }
    Ok(())
}

/// From the shard of the partition key, or from one shard after the other until it is enough.
async fn take(queue: &QueueClient, arguments: &ReceiveArguments) -> anyhow::Result<Vec<Received>> {
    let visibility = Duration::from_secs(arguments.visibility);
    if let Some(key) = &arguments.partition_key {
        let received = queue.receive_partition(key.clone(), arguments.max, visibility).await?;
        return Ok(vec![received]);
    }
    let mut left = arguments.max;
    let mut parts = Vec::new();
    for shard in 0..queue.shards() {
        if left == 0 {
            break;
        }
        let part = queue.receive(shard, left, visibility).await?;
        left = left.saturating_sub(u32::try_from(part.messages.len()).unwrap_or(u32::MAX));
        parts.push(part);
    }
    Ok(parts)
}

fn show(parts: &[Received], json: bool) {
    let messages =
        || parts.iter().flat_map(|part| part.messages.iter().map(|message| (part.shard, message)));
    if json {
        let shown: Vec<Value> =
            messages().map(|(shard, message)| message_json(shard, message)).collect();
        println!("{}", json!({ "messages": shown }));
        return;
    }
    if messages().next().is_none() {
        println!("no message can be received now");
        return;
    }
    let rows = messages().map(|(shard, message)| {
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

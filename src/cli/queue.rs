//! `shardhost queue`: single messages in and out.

mod gather;

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shardhost_client::{QueueClient, Received};
use shardhost_proto::client::{Acked, Deliveries, Delivery};
use shardhost_proto::limits::MAX_RECEIVE;

use self::gather::{Bounds, Failure, Failures, News};
use super::ended::{PARTLY, partly};
use super::output::{Column, bytes_json, counted, number, table, text, whole, whole_in};
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
    /// All shards are asked side by side, and what some give is printed while others are waited for; JSON is
    /// printed at the end. Once something came, others are waited for until half its visibility is over.
    ///
    /// Ends with exit code 3 when not all was done: a shard gave no answer, or messages that were printed
    /// could not be removed, because their visibility was over.
    Receive(ReceiveArguments),
    /// Remove messages that were received, by the receipts that `receive` prints.
    ///
    /// Ends with exit code 3 when a receipt was stale, for the visibility was over and the message is or was
    /// received again, or when it is unknown whether messages were removed.
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
        /// Only those of this shard; left out: of all, by shard.
        #[arg(long)]
        shard: Option<usize>,
        /// Only those from this sequence on.
        #[arg(long, value_name = "SEQUENCE", default_value = "0", value_parser = whole)]
        from: u64,
        /// How many at most.
        #[arg(long, default_value_t = 10, value_parser = whole_in::<u32>(1..=10_000))]
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
    #[arg(long, default_value_t = 10, value_parser = whole_in::<u32>(1..=u64::from(MAX_RECEIVE)))]
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
    failed: Failures,
    /// Messages that were to be removed and were not, by shard: another consumer has them by now,
    /// or will.
    stale: BTreeMap<usize, u32>,
}

impl Taken {
    fn is_whole(&self) -> bool {
        self.failed.is_empty() && self.stale.is_empty()
    }

    /// No shard did what was asked of it.
    fn check_answered(&self) -> anyhow::Result<()> {
        let unknown = self.failed.values().find(|failure| failure.unknown);
        match unknown.or_else(|| self.failed.values().next()) {
            Some(why) if self.parts.is_empty() => Err(no_answer(why)),
            _ => Ok(()),
        }
    }
}

fn no_answer(why: &Failure) -> anyhow::Error {
    let text = format!("no shard of the queue answers: {}", why.text);
    match why.unknown {
        true => partly(text),
        false => anyhow::anyhow!(text),
    }
}

async fn receive(arguments: &ReceiveArguments) -> anyhow::Result<ExitCode> {
    let queue = arguments.target.client().await?.queue();
    let json = arguments.target.json;
    // Before they are removed: a message that is lost on the way to a reader comes again.
    let mut taken = take(&queue, arguments, |parts| show(parts, json)).await?;
    if json {
        let shown = messages_json(&taken.parts);
        println!("{}", json!({ "messages": shown, "failed": failed_json(&taken.failed) }));
    } else if messages(&taken.parts).next().is_none() {
        println!("no message can be received now");
    }
    if arguments.ack {
        ack(&queue, &mut taken).await;
    }
    tell(&taken);
    Ok(if taken.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// From the shard of the partition key, or from all shards until it is enough.
async fn take(
    queue: &QueueClient,
    arguments: &ReceiveArguments,
    mut show: impl FnMut(&[Received]),
) -> anyhow::Result<Taken> {
    let visibility = Duration::from_secs(arguments.visibility);
    if let Some(key) = &arguments.partition_key {
        let received = queue.receive_partition(key.clone(), arguments.max, visibility).await?;
        let taken = Taken { parts: vec![received], ..Taken::default() };
        show(&taken.parts);
        return Ok(taken);
    }
    // Another one each time, so that no shard waits behind the others for ever.
    let first = rand::random_range(0..queue.shards().max(1));
    let order: Vec<usize> = from_shard(first, queue.shards()).collect();
    // The client gives up at the timeout, and knows why.
    let within = arguments.target.timeout() + GRACE;
    let bounds = Bounds { max: arguments.max, within, visibility };
    let answers = async |shard| {
        queue.peek(shard, 0, Some(1)).await?;
        Ok(())
    };
    let receive = async |shard, part| Ok(queue.receive(shard, part, visibility).await?);
    let gather::Taken { parts, failed } =
        gather::take(&order, bounds, answers, receive, show).await;
    let taken = Taken { parts, failed, ..Taken::default() };
    taken.check_answered()?;
    Ok(taken)
}

/// How much longer than the client shards are waited for.
const GRACE: Duration = Duration::from_millis(500);

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
    let mut removed = Removed::default();
    let acked = async |shard| queue.ack(shard, by_shard[&shard].iter().copied()).await;
    gather::ask(by_shard.keys().copied(), acked, |news| {
        if let News::Of(shard, answer) = news {
            removed.add(shard, by_shard[&shard].len(), answer.map_err(Failure::from));
        }
        false
    })
    .await;
    let Removed { acked, stale, unknown, failed } = &removed;
    match target.json {
        true => println!(
            "{}",
            json!({
                "acked": acked, "stale": stale, "unknown": unknown, "failed": failed_json(failed)
            })
        ),
        false if *unknown > 0 => {
            println!(
                "{} removed, of {unknown} more that is unknown",
                counted(*acked as u64, "message")
            );
        }
        false => println!("{} removed", counted(*acked as u64, "message")),
    }
    for (shard, failure) in failed {
        eprintln!("shard {shard}: {}", failure.text);
    }
    if *stale > 0 {
        eprintln!(
            "{stale} receipts were stale: those messages are gone already, or are received again"
        );
    }
    Ok(ExitCode::from(removed.code()))
}

/// What became of receipts.
#[derive(Debug, Default)]
struct Removed {
    acked: u32,
    stale: u32,
    /// Receipts of which it is unknown whether they were taken.
    unknown: usize,
    failed: Failures,
}

impl Removed {
    fn add(&mut self, shard: usize, receipts: usize, answer: Result<Acked, Failure>) {
        match answer {
            Ok(answer) => {
                self.acked += answer.acked;
                self.stale += answer.stale;
            }
            Err(failure) => {
                self.unknown += if failure.unknown { receipts } else { 0 };
                self.failed.insert(shard, failure);
            }
        }
    }

    fn code(&self) -> u8 {
        match (self.stale == 0 && self.failed.is_empty(), self.acked == 0 && self.stale == 0) {
            (true, _) => 0,
            (false, true) if self.unknown == 0 => 1,
            (false, _) => PARTLY,
        }
    }
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
    let mut seen = Seen { left: limit as usize, ..Seen::default() };
    let show = |parts: &[Received]| {
        if !target.json {
            println!("{}", table(&COLUMNS[..5], messages(parts).map(row)));
        }
    };
    let found = async |shard| queue.peek(shard, from, Some(limit)).await;
    gather::ask(shards, found, |news| {
        match news {
            News::Of(shard, found) => seen.add(shard, found.map_err(Failure::from)),
            News::Pause if seen.has_fresh_messages() && !target.json => show(seen.cut()),
            News::Pause => {}
        }
        seen.is_enough()
    })
    .await;
    let shows_more = seen.has_fresh_messages() || seen.taken.parts.is_empty();
    let last = seen.cut();
    if shows_more && !last.is_empty() {
        show(last);
    }
    let Seen { taken, more, .. } = seen;
    taken.check_answered()?;
    if target.json {
        let (shown, failed) = (messages_json(&taken.parts), failed_json(&taken.failed));
        println!("{}", json!({ "messages": shown, "more": more, "failed": failed }));
    } else if more {
        println!("there is more; show it with --limit, or with --shard and --from");
    }
    tell(&taken);
    Ok(if taken.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// What a peek found so far.
#[derive(Debug, Default)]
struct Seen {
    /// Shown, or to be shown.
    taken: Taken,
    /// What came since something was shown last.
    fresh: Vec<Received>,
    /// So many more messages are shown.
    left: usize,
    /// There is more than is shown.
    more: bool,
}

impl Seen {
    fn add(&mut self, shard: usize, found: Result<Deliveries, Failure>) {
        match found {
            Ok(Deliveries { messages, more }) => {
                self.more |= more;
                self.fresh.push(Received { shard, messages, more });
            }
            Err(failure) => drop(self.taken.failed.insert(shard, failure)),
        }
    }

    fn has_fresh_messages(&self) -> bool {
        self.fresh.iter().any(|part| !part.messages.is_empty())
    }

    /// What came, by shard, and no more than is to be shown.
    fn cut(&mut self) -> &[Received] {
        let at = self.taken.parts.len();
        self.fresh.sort_unstable_by_key(|part| part.shard);
        for mut part in std::mem::take(&mut self.fresh) {
            self.more |= part.messages.len() > self.left;
            part.messages.truncate(self.left);
            self.left -= part.messages.len();
            self.taken.parts.push(part);
        }
        &self.taken.parts[at..]
    }

    /// Nothing more is to be shown: other shards are not waited for.
    fn is_enough(&mut self) -> bool {
        self.more |= self.left == 0;
        self.left == 0
    }
}

async fn ack(queue: &QueueClient, taken: &mut Taken) {
    let parts = taken.parts.iter().filter(|part| !part.messages.is_empty());
    let mut receipts: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for part in parts {
        receipts.entry(part.shard).or_default().extend(part.receipts());
    }
    let acked = async |shard| queue.ack(shard, receipts[&shard].iter().copied()).await;
    let (failed, stale) = (&mut taken.failed, &mut taken.stale);
    gather::ask(receipts.keys().copied(), acked, |news| {
        match news {
            News::Of(_, Ok(Acked { stale: 0, .. })) | News::Pause => {}
            News::Of(shard, Ok(acked)) => drop(stale.insert(shard, acked.stale)),
            News::Of(shard, Err(error)) => {
                let failure = Failure::from(error);
                let text = format!("not removed: {}", failure.text);
                failed.insert(shard, Failure { text, ..failure });
            }
        }
        false
    })
    .await;
}

fn failed_json(failed: &Failures) -> Value {
    failed.iter().map(|(shard, failure)| (shard.to_string(), json!(failure.text))).collect()
}

fn messages(parts: &[Received]) -> impl Iterator<Item = (usize, &Delivery)> {
    parts.iter().flat_map(|part| part.messages.iter().map(|message| (part.shard, message)))
}

fn messages_json(parts: &[Received]) -> Vec<Value> {
    messages(parts).map(|(shard, message)| message_json(shard, message)).collect()
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

/// JSON is one document, and is printed when everything is there.
fn show(parts: &[Received], json: bool) {
    if json || messages(parts).next().is_none() {
        return;
    }
    let rows = messages(parts).map(|(shard, message)| {
        let mut row = row((shard, message));
        row.push(Receipt { shard, number: message.receipt }.to_string());
        row
    });
    println!("{}", table(&COLUMNS, rows));
}

/// Prints what was not done.
fn tell(taken: &Taken) {
    for (shard, failure) in &taken.failed {
        eprintln!("shard {shard}: {}", failure.text);
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
    use crate::ended::code_of;

    #[test]
    fn receipts_that_are_printed_can_be_typed() {
        for receipt in [Receipt { shard: 0, number: 1 }, Receipt { shard: 31, number: u64::MAX }] {
            assert_eq!(receipt.to_string().parse(), Ok(receipt));
        }
        for wrong in ["", "7", "7:", ":7", "a:1", "1:-1", "1:2:3"] {
            assert!(wrong.parse::<Receipt>().is_err(), "{wrong}");
        }
    }

    fn failure(unknown: bool) -> Failure {
        Failure { text: "no leader".to_owned(), unknown }
    }

    #[test]
    fn a_removal_of_unknown_outcome_did_not_fail() {
        let acked = |acked, stale| Ok(Acked { acked, stale });
        for (answers, code, unknown) in [
            (vec![acked(2, 0)], 0, 0),
            (vec![acked(1, 1)], PARTLY, 0),
            (vec![Err(failure(false))], 1, 0),
            (vec![Err(failure(true))], PARTLY, 2),
            (vec![Err(failure(false)), Err(failure(true))], PARTLY, 2),
            (vec![Err(failure(false)), acked(2, 0)], PARTLY, 0),
        ] {
            let mut removed = Removed::default();
            let words = format!("{answers:?}");
            for (shard, answer) in answers.into_iter().enumerate() {
                removed.add(shard, 2, answer);
            }
            assert_eq!((removed.code(), removed.unknown), (code, unknown), "{words}");
        }
    }

    #[test]
    fn a_receive_that_may_have_taken_messages_did_not_fail() {
        let code = |failed: &[bool]| {
            let failed = failed.iter().map(|unknown| failure(*unknown)).enumerate().collect();
            let taken = Taken { failed, ..Taken::default() };
            taken.check_answered().map_err(|error| code_of(&error))
        };
        assert_eq!(code(&[false, false]), Err(1));
        assert_eq!(code(&[false, true]), Err(PARTLY));
        assert_eq!(code(&[]), Ok(()));
    }

    #[test]
    fn a_peek_shows_the_first_shards_first_and_no_more_than_its_limit() {
        let found =
            |count| Ok(Deliveries { messages: vec![Delivery::default(); count], more: false });
        let mut seen = Seen { left: 5, ..Seen::default() };
        seen.add(2, found(4));
        seen.add(0, found(2));
        let counts = |parts: &[Received]| -> Vec<_> {
            parts.iter().map(|part| (part.shard, part.messages.len())).collect()
        };
        assert_eq!(counts(seen.cut()), [(0, 2), (2, 3)]);
        assert!(seen.more && seen.is_enough());
        let mut seen = Seen { left: 5, ..Seen::default() };
        seen.add(1, found(4));
        assert_eq!(counts(seen.cut()), [(1, 4)]);
        assert!(!seen.is_enough() && !seen.more);
        seen.add(0, found(1));
        assert_eq!(counts(seen.cut()), [(0, 1)]);
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

//! The load: every line into the table and into the queue, each write until it is acknowledged. All
//! lines are loaded at least once, and again until it is enough.
//!
//! A write whose outcome is unknown is counted and made again: a put of the same value and a send
//! with the same de-duplication id do twice what they do once.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use shardhost_client::{Client, ClientError, ClientOptions, QueueClient, Resend, TableClient};
use tokio::task::JoinSet;

use super::book::{Book, PartitionBook, SentMessage};
use super::input::Input;
use super::pace::Pace;
use crate::security::security;

/// Puts under way at any moment.
const PUTS_IN_FLIGHT: usize = 1_024;
/// How long a write is made again and again before it counts as never acknowledged.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long the client tries once.
pub const TRY_FOR: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// What the writes came to so far.
#[derive(Debug)]
pub struct Tally {
    pub puts: AtomicU64,
    pub sends: AtomicU64,
    /// Tries with an unknown outcome.
    pub unknown: AtomicU64,
    /// Tries that were surely refused for the whole time of a try.
    pub refused: AtomicU64,
    /// Writes that were never acknowledged.
    pub given_up: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
    /// The longest time that the client waited since the last look, in microseconds.
    longest_us: AtomicU64,
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        let longest = u64::try_from(TIMEOUT.as_micros()).unwrap_or(u64::MAX);
        let latencies = Histogram::new_with_max(longest.saturating_mul(2), 3)?;
        Ok(Self {
            puts: AtomicU64::new(0),
            sends: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            latencies: Mutex::new(latencies),
            longest_us: AtomicU64::new(0),
        })
    }

    /// All writes that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.puts.load(Ordering::Relaxed) + self.sends.load(Ordering::Relaxed)
    }

    /// How long the client waited, in microseconds: the median, the 99th percentile, the longest.
    pub fn quantiles_us(&self) -> (u64, u64, u64) {
        let latencies = self.latencies.lock();
        let quantile = |at| latencies.value_at_quantile(at);
        (quantile(0.5), quantile(0.99), latencies.max())
    }

    /// The longest time that the client waited for a write that was acknowledged since the last time
    /// that this was asked.
    pub fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }

    /// Tries that did not end with an acknowledgement.
    pub fn failed_tries(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed) + self.refused.load(Ordering::Relaxed)
    }

    fn acknowledge(&self, kind: &AtomicU64, took: Duration) {
        kind.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latencies.lock().saturating_record(micros);
        self.longest_us.fetch_max(micros, Ordering::Relaxed);
    }
}

/// The load and everything that it leaves.
#[derive(Debug)]
pub struct Load {
    pub input: Input,
    pub book: Book,
    pub tally: Tally,
    pub pace: Pace,
}

/// A client that resends a write as far as it should, or returns at once when an outcome is
/// unknown.
pub async fn connect(
    addresses: impl IntoIterator<Item = String>,
    resend: Resend,
) -> anyhow::Result<Client> {
    let options = ClientOptions {
        deadline: TRY_FOR,
        resend,
        security: security(),
        ..ClientOptions::default()
    };
    Client::connect(addresses, options).await.context("the client finds no host")
}

impl Load {
    /// Nothing is loaded yet; writes begin at this rate per second from here on.
    pub fn new(input: Input, rate: u32) -> anyhow::Result<Self> {
        let book = Book::new(input.len());
        Ok(Self { input, book, tally: Tally::new()?, pace: Pace::new(rate) })
    }

    /// Begins to write; when it is enough, and all writes are made, both tasks end.
    pub fn start(self: &Arc<Self>, client: &Client) -> JoinSet<anyhow::Result<()>> {
        let (puts, sends) = (Arc::clone(self), Arc::clone(self));
        let (table, queue) = (client.table(), client.queue());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { puts.put_all(&table).await });
        tasks.spawn(async move { sends.send_all(&queue).await });
        tasks
    }

    /// The lines again and again, each with the number of times that it came before.
    fn passes<L: Iterator<Item = u32>>(
        &self,
        lines: impl Fn() -> L,
    ) -> impl Iterator<Item = (u64, u32)> {
        let passes = (0..).flat_map(move |pass| lines().map(move |line| (pass, line)));
        passes.take_while(|(pass, _)| *pass == 0 || !self.pace.is_enough())
    }

    async fn put_all(&self, table: &TableClient) -> anyhow::Result<()> {
        let lines = self.passes(|| self.input.numbers());
        let puts = lines.map(|(_, line)| self.put(table, line));
        let mut puts = futures::stream::iter(puts).buffer_unordered(PUTS_IN_FLIGHT);
        while let Some(done) = puts.next().await {
            done?;
        }
        Ok(())
    }

    async fn put(&self, table: &TableClient, line: u32) -> anyhow::Result<()> {
        let (key, value) = (self.input.line(line), self.input.value(line));
        let put = || table.put(key.clone(), value.clone());
        if self.until_acknowledged(&self.tally.puts, put).await?.is_some() {
            self.book.put(line);
        }
        Ok(())
    }

    /// The partitions side by side, each one message after the other.
    async fn send_all(&self, queue: &QueueClient) -> anyhow::Result<()> {
        let partitions = self.input.partitions();
        let side_by_side = partitions.len().max(1);
        let chains = partitions.into_iter().map(|(key, lines)| self.send_chain(queue, key, lines));
        let mut chains = futures::stream::iter(chains).buffer_unordered(side_by_side);
        while let Some(done) = chains.next().await {
            done?;
        }
        Ok(())
    }

    async fn send_chain(
        &self,
        queue: &QueueClient,
        key: Bytes,
        lines: Vec<u32>,
    ) -> anyhow::Result<()> {
        let mut book = PartitionBook::default();
        // A key that no line belongs to has nothing to repeat.
        let lines = (!lines.is_empty()).then_some(lines).into_iter();
        for (pass, line) in lines.flat_map(|lines| self.passes(move || lines.clone().into_iter())) {
            let id = Bytes::from(format!("pass-{pass}-line-{line}"));
            let send = || queue.send(key.clone(), self.input.line(line).clone(), id.clone());
            match self.until_acknowledged(&self.tally.sends, send).await? {
                Some(sent) => book.sent.push(SentMessage { sequence: sent.sequence, line }),
                None => {
                    // Those behind it would not be in order if it turned up.
                    book.in_doubt = Some(line);
                    break;
                }
            }
        }
        self.book.sent(key, book);
        Ok(())
    }

    /// Makes a write until it is acknowledged; `None` when it never was.
    async fn until_acknowledged<T, F>(
        &self,
        kind: &AtomicU64,
        write: impl Fn() -> F,
    ) -> anyhow::Result<Option<T>>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        self.pace.turn().await;
        let begun = Instant::now();
        loop {
            match write().await {
                Ok(done) => {
                    self.tally.acknowledge(kind, begun.elapsed());
                    return Ok(Some(done));
                }
                Err(error @ ClientError::Invalid { .. }) => return Err(error.into()),
                Err(error) if error.is_definite() => {
                    self.tally.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => {
                    self.tally.unknown.fetch_add(1, Ordering::Relaxed);
                }
            }
            if begun.elapsed() > TIMEOUT {
                self.tally.given_up.fetch_add(1, Ordering::Relaxed);
                return Ok(None);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

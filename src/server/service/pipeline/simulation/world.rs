//! A host and its clients.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shardhost_proto::client::table_request::Operation;
use shardhost_proto::client::{Get, Put, Scan, TableBatch, TableRequest};
use shardhost_proto::limits::MAX_BATCH_BYTES;
use shardhost_security::Caller;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::time::{Instant, advance};
use tokio_util::sync::CancellationToken;

use super::super::arrival::{Arrival, Batches};
use super::super::stream::Stream;
use super::super::writer::{self, ReplyStream};
use super::super::{REPLY_BATCHES, reader};
use super::groups::{Groups, HUNG, Modelled, UNCOUNTED, zeros};
use crate::service::known_bugs::{KnownBug, KnownBugs};
use crate::service::no_groups::NoGroups;
use crate::service::{ClientBudget, MAX_STREAMS_PER_CONNECTION, MIN_CLIENT_BYTES, STALL_TIMEOUT};

/// Clients that do not behave, at a time.
const HOSTILE_AT_ONCE: usize = 6;
/// The longest that a client that behaves waits once the others begin nothing more: for what each of them
/// leaves half sent, or does not take, one after the other.
const IN_TIME: Duration = STALL_TIMEOUT.saturating_mul(3 * HOSTILE_AT_ONCE as u32 / 2);
/// The largest batches, one for each group: made once, for they are sent often.
static LARGEST: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let put = || Operation::Put(Put { key: zeros(16), value: zeros(MAX_BATCH_BYTES - 100) });
    let to = |group| TableRequest {
        id: UNCOUNTED,
        group,
        operation: Some(put()),
        ..TableRequest::default()
    };
    (1..=HUNG).map(|group| framed(vec![to(group)])).collect()
});

/// What a client is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// One small request after the other, whose answer it takes.
    Good,
    /// Asks for the longest answers and takes none.
    NeverReads,
    /// Sends the largest batches, piece by piece, and stops in some.
    Large,
    /// Does all that, and goes away in the middle.
    Vanishes,
    /// Opens what streams it gets, and does nothing with them.
    Opens,
}

const HOSTILE: [Manner; 4] = [Manner::NeverReads, Manner::Large, Manner::Vanishes, Manner::Opens];

/// An open stream, from the side of its client.
struct Open {
    gone: CancellationToken,
    arrival: Arc<Mutex<Arrival>>,
    bytes: UnboundedSender<Bytes>,
    replies: ReplyStream<Modelled>,
    /// Of the batch that is half sent: what was sent, and what was not.
    half: (usize, Bytes),
    asked: Vec<u64>,
}

impl Open {
    /// Bytes of the batch that is on its way, as far as they were taken from the connection.
    fn arriving(&self) -> usize {
        let comes = matches!(*self.arrival.lock(), Arrival::Comes(_));
        if comes && !self.half.1.is_empty() { self.half.0 } else { 0 }
    }

    /// Begins a large batch.
    fn begin(&mut self, batch: Bytes) {
        self.half = (0, batch);
        self.send(64);
    }

    /// Sends the next so many bytes of the half batch.
    fn send(&mut self, count: usize) {
        let count = count.min(self.half.1.len());
        let piece = self.half.1.split_to(count);
        self.half.0 += count;
        // The stream may have ended.
        drop(self.bytes.send(piece));
    }
}

struct Client {
    connection: u64,
    manner: Manner,
    streams: Vec<Open>,
    /// Since when it waits for a stream, or an answer.
    waits: Option<Instant>,
    /// Answers that it got since the others begin nothing more.
    answered: u32,
}

/// A host and its clients.
pub(super) struct World {
    rng: StdRng,
    budget: Arc<ClientBudget>,
    limit: usize,
    groups: Arc<Groups>,
    clients: Vec<Client>,
    next_connection: u64,
    next_request: u64,
    hangs: bool,
    /// Since when the others begin nothing more.
    quiet: Option<Instant>,
    /// The longest that a client that behaves waited.
    pub(super) longest: Duration,
}

/// What is wrong.
pub(super) type Wrong = String;

impl World {
    pub(super) fn new(seed: u64, bug: Option<KnownBug>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let limit = MIN_CLIENT_BYTES * rng.random_range(1..=4);
        let budget = Arc::new(ClientBudget::with_bugs(limit, KnownBugs { on: bug }));
        let hangs = rng.random_bool(0.3);
        let good = rng.random_range(1..=3);
        let mut world = Self {
            rng,
            budget,
            limit,
            groups: Arc::default(),
            clients: Vec::new(),
            next_connection: 0,
            next_request: 0,
            hangs,
            quiet: None,
            longest: Duration::ZERO,
        };
        (0..good).for_each(|_| world.come(Manner::Good));
        world
    }

    fn come(&mut self, manner: Manner) {
        self.next_connection += 1;
        let (connection, streams, waits) = (self.next_connection, Vec::new(), None);
        self.clients.push(Client { connection, manner, streams, waits, answered: 0 });
    }

    /// Opens a stream, as the service does.
    fn open(&self, connection: u64) -> Option<Open> {
        let place = self.budget.streams.enter(Some(connection)).ok()?;
        let (bytes, received) = mpsc::unbounded_channel();
        let batches = Batches::fed(received, &self.budget, &place);
        let arrival = batches.arrival();
        let (replies, receiver) = mpsc::channel(REPLY_BATCHES);
        let (lookup, budget) = (Arc::new(NoGroups), Arc::clone(&self.budget));
        let of_batches = Arc::clone(&arrival);
        let mut stream = Stream::new(lookup, budget, place, of_batches, Caller::Unchecked);
        stream.modelled = Some(Arc::clone(&self.groups));
        let stream = Arc::new(stream);
        let gone = stream.gone.clone();
        tokio::spawn(reader::read::<Modelled>(Arc::clone(&stream), batches, replies.clone()));
        tokio::spawn(writer::write::<Modelled>(stream, replies, None));
        let replies = ReplyStream::new(receiver);
        let (half, asked) = ((0, Bytes::new()), Vec::new());
        Some(Open { gone, arrival, bytes, replies, half, asked })
    }

    fn request(&mut self, operation: Operation) -> TableRequest {
        self.next_request += 1;
        let group = self.rng.random_range(1..=HUNG);
        let operation = Some(operation);
        TableRequest { id: self.next_request, group, operation, ..TableRequest::default() }
    }

    fn get(&mut self) -> TableRequest {
        self.request(Operation::Get(Get { key: zeros(16), ..Get::default() }))
    }

    fn put(&mut self, bytes: usize) -> TableRequest {
        self.request(Operation::Put(Put { key: zeros(16), value: zeros(bytes) }))
    }

    fn largest(&mut self) -> Bytes {
        LARGEST[self.rng.random_range(0..LARGEST.len())].clone()
    }

    fn scan(&mut self) -> TableRequest {
        self.request(Operation::Scan(Scan { from: zeros(16), ..Scan::default() }))
    }

    /// The host does all that takes no time.
    async fn settle(&mut self) -> Result<(), Wrong> {
        tokio::task::yield_now().await;
        self.groups.forget_gone();
        self.lose_connections();
        self.take_answers();
        tokio::task::yield_now().await;
        self.check()
    }

    /// A client whose stream the host gave up loses its connection.
    fn lose_connections(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        for client in &mut clients {
            if client.streams.iter().any(|open| open.gone.is_cancelled()) {
                client.streams.drain(..).for_each(|open| self.leave(open));
            }
        }
        self.clients = clients;
    }

    fn leave(&self, open: Open) {
        open.asked.iter().for_each(|id| self.groups.forget(*id));
    }

    /// Clients that behave take what is there; others only see that their stream ended.
    fn take_answers(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        for client in clients.iter_mut().filter(|client| client.manner == Manner::Good) {
            let Some(open) = client.streams.first_mut() else { continue };
            let mut ended = false;
            while let Some(next) = open.replies.next().now_or_never() {
                let Some(Ok(replies)) = next else {
                    ended = true;
                    break;
                };
                for reply in replies.replies {
                    self.groups.forget(reply.id);
                    if open.asked.last() == Some(&reply.id) {
                        open.asked.clear();
                        client.waits = None;
                        client.answered += u32::from(self.quiet.is_some());
                    }
                }
            }
            // It opens another one.
            if ended || (client.waits.is_none() && self.rng.random_bool(0.2)) {
                client.streams.drain(..).for_each(|open| self.leave(open));
            }
        }
        self.clients = clients;
    }

    /// What the server has of clients is charged, and within what they may have.
    fn check(&self) -> Result<(), Wrong> {
        let used = self.budget.used_bytes();
        if used > self.limit {
            return Err(format!("{used} bytes are charged, the limit is {}", self.limit));
        }
        let (_, most) = self.budget.streams.open_and_most();
        if most > MAX_STREAMS_PER_CONNECTION {
            return Err(format!("a connection has {most} streams"));
        }
        let streams = self.clients.iter().flat_map(|client| &client.streams);
        let arriving: usize = streams.map(Open::arriving).sum();
        let held = self.groups.bytes() + arriving;
        if held > used {
            return Err(format!("{held} bytes are held for clients, {used} are charged"));
        }
        Ok(())
    }

    /// The clients that behave ask; none waits too long.
    fn ask(&mut self) -> Result<(), Wrong> {
        for at in 0..self.clients.len() {
            if self.clients[at].manner != Manner::Good {
                continue;
            }
            let now = Instant::now();
            let since = *self.clients[at].waits.get_or_insert(now);
            self.longest = self.longest.max(now - since);
            let quiet = self.quiet.map_or(Duration::ZERO, |quiet| now - quiet.max(since));
            if quiet > IN_TIME {
                let what =
                    if self.clients[at].streams.is_empty() { "a stream" } else { "an answer" };
                return Err(format!("a client that behaves waits {:?} for {what}", now - since));
            }
            if self.clients[at].streams.is_empty() {
                let open = self.open(self.clients[at].connection);
                self.clients[at].streams.extend(open);
            }
            if self.clients[at].streams.first().is_some_and(|open| open.asked.is_empty()) {
                let mut request = if self.rng.random() { self.get() } else { self.put(100) };
                request.group = request.group.min(HUNG - 1);
                send(&mut self.clients[at].streams[0], vec![request]);
            }
        }
        Ok(())
    }

    /// One of the others does something.
    fn disturb(&mut self) {
        let hostile = |client: &Client| client.manner != Manner::Good;
        let known = self.clients.iter().filter(|client| hostile(client)).count();
        if known == 0 || (known < HOSTILE_AT_ONCE && self.rng.random_bool(0.2)) {
            let manner = HOSTILE[self.rng.random_range(0..HOSTILE.len())];
            return self.come(manner);
        }
        let nth = self.rng.random_range(0..known);
        let at = (0..self.clients.len()).filter(|at| hostile(&self.clients[*at])).nth(nth);
        let Some(at) = at else { return };
        match self.clients[at].manner {
            Manner::Good => {}
            Manner::NeverReads => self.ask_for_much(at),
            Manner::Large => self.send_much(at),
            Manner::Opens => self.open_all(at),
            Manner::Vanishes if self.rng.random_bool(0.3) => self.vanish(at),
            Manner::Vanishes if self.rng.random() => self.ask_for_much(at),
            Manner::Vanishes => self.send_much(at),
        }
    }

    fn vanish(&mut self, at: usize) {
        let client = self.clients.swap_remove(at);
        client.streams.into_iter().for_each(|open| self.leave(open));
    }

    /// A stream of a client, and maybe a new one.
    fn any_stream(&mut self, at: usize) -> Option<usize> {
        let count = self.clients[at].streams.len();
        if count == 0 || self.rng.random_bool(0.3) {
            let open = self.open(self.clients[at].connection);
            self.clients[at].streams.extend(open);
        }
        let count = self.clients[at].streams.len();
        (count > 0).then(|| self.rng.random_range(0..count))
    }

    fn ask_for_much(&mut self, at: usize) {
        let Some(stream) = self.any_stream(at) else { return };
        let count = self.rng.random_range(1..=8);
        let requests: Vec<_> = (0..count)
            .map(|_| match self.rng.random_range(0..3) {
                0 => self.get(),
                1 => self.put(1_000),
                _ => self.scan(),
            })
            .collect();
        let open = &mut self.clients[at].streams[stream];
        if open.half.1.is_empty() {
            send(open, requests);
        }
    }

    fn send_much(&mut self, at: usize) {
        let Some(stream) = self.any_stream(at) else { return };
        if self.rng.random_bool(0.1) {
            // All at once.
            for _ in 0..MAX_STREAMS_PER_CONNECTION {
                let Some(open) = self.open(self.clients[at].connection) else { break };
                self.clients[at].streams.push(open);
                let batch = self.largest();
                let Some(open) = self.clients[at].streams.last_mut() else { break };
                open.begin(batch);
            }
        }
        if self.clients[at].streams[stream].half.1.is_empty() {
            // The pieces of a batch are charged from its length on.
            let batch = self.largest();
            self.clients[at].streams[stream].begin(batch);
        }
        let whole = self.rng.random_bool(0.2);
        let open = &mut self.clients[at].streams[stream];
        open.send(if whole { usize::MAX } else { 4_096 });
    }

    fn open_all(&mut self, at: usize) {
        // Together with others of its kind they have them all.
        let connections = if self.rng.random_bool(0.3) { 40 } else { 1 };
        for connection in 0..connections {
            let own = self.clients[at].connection + connection * 1_000_000;
            for _ in 0..=MAX_STREAMS_PER_CONNECTION {
                match self.open(own) {
                    Some(open) => self.clients[at].streams.push(open),
                    None => break,
                }
            }
        }
    }

    pub(super) async fn run(&mut self) -> Result<(), Wrong> {
        for _ in 0..60 {
            for _ in 0..self.rng.random_range(1..=4) {
                self.disturb();
            }
            self.ask()?;
            self.settle().await?;
            self.groups.answer(&mut self.rng, self.hangs, false);
            self.settle().await?;
            if self.rng.random_bool(0.5) {
                let time = Duration::from_millis(self.rng.random_range(1..4_000));
                self.pass(time).await?;
            }
        }
        // Those that are there stay as they are.
        self.quiet = Some(Instant::now());
        for _ in 0..IN_TIME.as_secs() + 10 {
            self.pass(Duration::from_secs(1)).await?;
            let waits = |client: &Client| client.manner == Manner::Good && client.answered < 3;
            if !self.clients.iter().any(waits) {
                break;
            }
        }
        self.end().await
    }

    async fn pass(&mut self, time: Duration) -> Result<(), Wrong> {
        self.groups.answer(&mut self.rng, self.hangs, true);
        self.settle().await?;
        advance(time).await;
        self.settle().await?;
        self.ask()?;
        self.settle().await
    }

    /// All go, and the group that hung answers.
    async fn end(&mut self) -> Result<(), Wrong> {
        for client in std::mem::take(&mut self.clients) {
            client.streams.into_iter().for_each(|open| self.leave(open));
        }
        self.hangs = false;
        for _ in 0..4 {
            self.settle().await?;
            self.groups.answer(&mut self.rng, self.hangs, true);
            advance(Duration::from_secs(1)).await;
        }
        self.settle().await?;
        let (used, (streams, _)) = (self.budget.used_bytes(), self.budget.streams.open_and_most());
        match (used, streams) {
            (0, 0) => Ok(()),
            _ => Err(format!("all are gone, and {used} bytes are charged for {streams} streams")),
        }
    }
}

/// Sends a batch.
fn send(open: &mut Open, requests: Vec<TableRequest>) {
    open.asked.extend(requests.iter().map(|request| request.id));
    open.half = (0, framed(requests));
    open.send(usize::MAX);
}

/// A batch as it goes over the connection.
fn framed(requests: Vec<TableRequest>) -> Bytes {
    let message = TableBatch { requests }.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    bytes.into()
}

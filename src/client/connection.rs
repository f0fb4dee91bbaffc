//! One stream to one node for one kind of shard, shared by all operations that go there.
//!
//! A task owns it. It takes all that waits, sends it as one batch, and hands each answer to its
//! caller. It connects when there is something to send, and again when the stream broke. It decides
//! nothing: the caller reacts to failures.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use shardhost_proto::client::Failure;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;
use tonic::Streaming;

use super::channel;
use super::options::ClientOptions;
use super::session::AnswerReceipt;
use super::wire::{Outgoing, Wire};
use shardhost_proto::limits::MAX_BATCH_BYTES;

/// Batches that wait for the connection's window.
const BATCHES: usize = 2;
/// A batch ends with the operation that reaches this size.
const BATCH_BYTES: usize = 512 * 1024;
/// Longest operation that is sent: with it a batch is within what a node takes. No valid operation
/// comes near it.
pub(super) const MAX_OPERATION_BYTES: usize = MAX_BATCH_BYTES / 2;

/// Why an operation has no answer.
#[derive(Clone, Debug)]
pub(super) enum CallError {
    NotSent(String),
    /// It left, and the stream broke before its answer.
    Lost(String),
    Failed(Failure),
    /// The node answered with nothing.
    Empty,
}

type Reply<W> = oneshot::Sender<Result<<W as Wire>::Answer, CallError>>;

/// An operation on its way.
struct Call<W: Wire> {
    outgoing: Outgoing<W::Operation>,
    reply: Reply<W>,
}

/// The near end of a stream. The task ends when the last one is dropped.
pub(super) struct Connection<W: Wire> {
    calls: mpsc::Sender<Call<W>>,
}

impl<W: Wire> Clone for Connection<W> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone() }
    }
}

impl<W: Wire> Connection<W> {
    /// Starts the task. Connects nothing yet.
    pub(super) fn start(address: String, options: Arc<ClientOptions>) -> Self {
        let (calls, receiver) = mpsc::channel(options.max_waiting.clamp(1, Semaphore::MAX_PERMITS));
        tokio::spawn(Task::<W>::new(address, options, receiver).run());
        Self { calls }
    }

    /// Sends one operation and waits for its answer.
    pub(super) async fn call(
        &self,
        outgoing: Outgoing<W::Operation>,
    ) -> Result<W::Answer, CallError> {
        let (reply, answer) = oneshot::channel();
        let ended = || CallError::NotSent("the connection's task ended".into());
        self.calls.send(Call { outgoing, reply }).await.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(CallError::Lost("the connection's task ended".into())))
    }
}

/// The caller that waits for the answer to an operation.
struct Pending<W: Wire> {
    reply: Reply<W>,
    receipt: Option<AnswerReceipt>,
}

struct Task<W: Wire> {
    address: String,
    options: Arc<ClientOptions>,
    calls: mpsc::Receiver<Call<W>>,
    /// Taken from `calls` and not sent yet.
    waiting: VecDeque<Call<W>>,
    /// Sent and not answered yet.
    pending: HashMap<u64, Pending<W>>,
    last_id: u64,
}

struct Open<W: Wire> {
    batches: mpsc::Sender<W::Batch>,
    replies: Streaming<W::Replies>,
}

impl<W: Wire> Task<W> {
    fn new(address: String, options: Arc<ClientOptions>, calls: mpsc::Receiver<Call<W>>) -> Self {
        let (waiting, pending) = (VecDeque::new(), HashMap::new());
        Self { address, options, calls, waiting, pending, last_id: 0 }
    }

    async fn run(mut self) {
        while self.take_waiting().await {
            match self.connect().await {
                Ok(open) => {
                    let why = self.exchange(open).await;
                    self.fail(&why);
                }
                Err(why) => self.fail(&why),
            }
        }
    }

    /// Waits for something to send; `false` when nothing will come any more.
    async fn take_waiting(&mut self) -> bool {
        if !self.waiting.is_empty() {
            return true;
        }
        match self.calls.recv().await {
            Some(call) => {
                self.waiting.push_back(call);
                true
            }
            None => false,
        }
    }

    async fn connect(&self) -> Result<Open<W>, String> {
        let channel = channel::open(&self.address, &self.options)?;
        let (batches, receiver) = mpsc::channel(BATCHES);
        match timeout(self.options.connect_timeout, W::open(channel, receiver)).await {
            Ok(Ok(replies)) => Ok(Open { batches, replies }),
            Ok(Err(status)) => {
                let why = channel::words_of(&status);
                Err(format!("{} cannot be reached: {why}", self.address))
            }
            Err(_) => Err(format!(
                "{} did not answer within {:?}",
                self.address, self.options.connect_timeout
            )),
        }
    }

    /// Sends and receives until the stream breaks, or no caller is left.
    async fn exchange(&mut self, mut open: Open<W>) -> String {
        let mut taken = Vec::new();
        let mut callers_left = true;
        loop {
            let has_room = self.pending.len() < self.options.max_in_flight;
            tokio::select! {
                // Answers free callers; what waits is gathered before it is sent.
                biased;
                replies = open.replies.message() => match replies {
                    Ok(Some(replies)) => self.answer(replies),
                    Ok(None) => return format!("{} ended the stream", self.address),
                    Err(status) => {
                        let why = channel::words_of(&status);
                        return format!("the stream to {} broke: {why}", self.address);
                    }
                },
                count = self.calls.recv_many(&mut taken, self.options.max_batch),
                    if callers_left && self.waiting.len() < self.options.max_batch =>
                {
                    callers_left = count > 0;
                    self.waiting.extend(taken.drain(..));
                    // Callers that are ready join the same batch.
                    yield_now().await;
                }
                // Only with a place in hand is anything counted as sent.
                place = open.batches.reserve(), if has_room && !self.waiting.is_empty() => {
                    match place {
                        Ok(place) => place.send(self.next_batch()),
                        Err(_) => return format!("the stream to {} is closed", self.address),
                    }
                }
            }
            if !callers_left && self.waiting.is_empty() && self.pending.is_empty() {
                return "the client is closed".into();
            }
        }
    }

    fn next_batch(&mut self) -> W::Batch {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while bytes < BATCH_BYTES
            && batch.len() < self.options.max_batch
            && let Some(call) = self.waiting.pop_front()
        {
            // The caller has given up: it must not take effect without its knowledge.
            if call.reply.is_closed() {
                continue;
            }
            bytes += W::size(&call.outgoing.operation);
            self.last_id += 1;
            let Call { mut outgoing, reply } = call;
            let receipt = outgoing.receipt.take();
            self.pending.insert(self.last_id, Pending { reply, receipt });
            batch.push((self.last_id, outgoing));
        }
        W::batch(batch.into_iter())
    }

    fn answer(&mut self, replies: W::Replies) {
        for (id, result) in W::answers(replies) {
            let result = match result {
                Some(Ok(answer)) => Ok(answer),
                Some(Err(failure)) => Err(CallError::Failed(failure)),
                None => Err(CallError::Empty),
            };
            let Some(Pending { reply, receipt }) = self.pending.remove(&id) else { continue };
            let is_answer = result.is_ok();
            // Refused when the caller has given up, or sends it once more.
            if reply.send(result).is_ok()
                && let Some(receipt) = receipt.filter(|_| is_answer)
            {
                receipt.answered();
            }
        }
    }

    fn fail(&mut self, why: &str) {
        for (_, pending) in self.pending.drain() {
            drop(pending.reply.send(Err(CallError::Lost(why.to_owned()))));
        }
        while let Ok(call) = self.calls.try_recv() {
            self.waiting.push_back(call);
        }
        for call in self.waiting.drain(..) {
            drop(call.reply.send(Err(CallError::NotSent(why.to_owned()))));
        }
    }
}

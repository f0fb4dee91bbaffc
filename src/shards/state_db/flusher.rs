//! The thread that makes the state durable from time to time.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tracing::error;

use super::error::StateDbError;
use super::shared::Shared;

/// What the flusher is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Enough was written.
    Flush,
    /// End.
    Stop,
}

/// Signals that may wait: one to flush is as good as many.
pub(crate) const SIGNALS: usize = 1;

/// The running thread. Ends, and is waited for, on drop.
#[derive(Debug)]
pub(crate) struct Flusher {
    signals: Sender<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(crate) fn start(
        shared: Arc<Shared>,
        signals: (Sender<Signal>, Receiver<Signal>),
        interval: Duration,
    ) -> Result<Self, StateDbError> {
        let (sender, receiver) = signals;
        let thread = thread::Builder::new()
            .name("state-flush".into())
            .spawn(move || run(&shared, &receiver, interval))
            .map_err(|error| StateDbError::Io {
                action: "starting the flush thread",
                message: error.to_string(),
            })?;
        Ok(Self { signals: sender, thread: Some(thread) })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let stopped = self.signals.send(Signal::Stop).is_err();
        let ended = self.thread.take().map(JoinHandle::join);
        if stopped || matches!(ended, Some(Err(_))) {
            error!("the flush thread of the shards' state had ended by itself");
        }
    }
}

fn run(shared: &Shared, signals: &Receiver<Signal>, interval: Duration) {
    loop {
        match signals.recv_timeout(interval) {
            Ok(Signal::Flush) => flush(shared),
            Err(RecvTimeoutError::Timeout) if shared.has_unflushed() => flush(shared),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A failed flush leaves the durable positions where they are, so the Raft log keeps what is not
/// on disk. RocksDB writes a whole new file the next time; nothing relies on the failed one.
fn flush(shared: &Shared) {
    if let Err(error) = shared.flush() {
        error!(%error, "the state of the shards could not be made durable");
    }
}

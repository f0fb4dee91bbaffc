//! The thread that makes the state durable from time to time.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tracing::error;

use super::cells::Cells;
use super::error::StateDbError;

/// The requests of the flusher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Flush,
    Stop,
}

/// Between two tries to flush on a full disk.
const RETRY: Duration = Duration::from_secs(1);
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
        cells: Arc<Cells>,
        signals: (Sender<Signal>, Receiver<Signal>),
        interval: Duration,
    ) -> Result<Self, StateDbError> {
        let (sender, receiver) = signals;
        let thread = thread::Builder::new()
            .name("state-flush".into())
            .spawn(move || run(&cells, &receiver, interval))
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
            error!("the flush thread of the shards' state had ended unexpectedly");
        }
    }
}

fn run(cells: &Cells, signals: &Receiver<Signal>, interval: Duration) {
    loop {
        // What waits for space shows that there is some by being flushed.
        let waits = cells.common().health.waits();
        let pause = if waits { interval.min(RETRY) } else { interval };
        match signals.recv_timeout(pause) {
            Ok(Signal::Flush) => flush(cells, false),
            Err(RecvTimeoutError::Timeout) => flush(cells, waits),
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A failed flush leaves the durable positions where they are, so the Raft log keeps what is not
/// on disk. RocksDB writes a whole new file the next time; nothing relies on the failed one.
fn flush(cells: &Cells, all: bool) {
    cells.common().flush_begins();
    for cell in cells.all() {
        if !all && !cell.shared.has_unflushed() {
            continue;
        }
        match cell.shared.flush() {
            // The host was notified, once.
            Ok(())
            | Err(
                StateDbError::Passing { .. }
                | StateDbError::Halted { .. }
                | StateDbError::Io { .. },
            ) => {}
            Err(error) => error!(%error, "the state of the shards could not be made durable"),
        }
    }
}

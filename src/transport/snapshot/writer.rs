//! The blocking thread that takes a snapshot into the store.

use std::sync::Arc;

use bytes::Bytes;
use shardhost_storage::{SnapshotAnnouncement, SnapshotError, SnapshotReceive, SnapshotStore};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::CHUNKS_BETWEEN;
use super::refusal::ReceiveError;

/// What the thread is given. Without an end, nothing is kept.
enum Part {
    Chunk(Bytes),
    /// All came.
    End,
    /// The stream broke.
    Pause,
}

/// The thread, as its feeder sees it.
pub(super) struct Writer {
    parts: mpsc::Sender<Part>,
    thread: JoinHandle<Result<u64, SnapshotError>>,
}

impl Writer {
    /// Sets room aside; also returns how many bytes are there already.
    pub async fn start(
        store: Arc<dyn SnapshotStore>,
        announced: SnapshotAnnouncement,
    ) -> Result<(Self, u64), ReceiveError> {
        let (parts, receiver) = mpsc::channel(CHUNKS_BETWEEN);
        let (begun, offset) = oneshot::channel();
        let thread = tokio::task::spawn_blocking(move || {
            let reception = store.receive(announced)?;
            match begun.send(reception.received()) {
                Ok(()) => write(reception, receiver),
                Err(_) => Ok(0),
            }
        });
        let mut writer = Self { parts, thread };
        match offset.await {
            Ok(offset) => Ok((writer, offset)),
            Err(_) => Err(writer.cause().await),
        }
    }

    /// Takes the next bytes.
    pub async fn append(&mut self, chunk: Bytes) -> Result<(), ReceiveError> {
        self.put(Part::Chunk(chunk)).await
    }

    /// Checks the whole and makes it a snapshot.
    pub async fn finish(mut self) -> Result<(), ReceiveError> {
        self.put(Part::End).await?;
        self.thread.await.map_err(|_| ReceiveError::Panicked)??;
        Ok(())
    }

    /// Keeps what came for another stream; returns how many bytes that are.
    pub async fn pause(mut self) -> Result<u64, ReceiveError> {
        self.put(Part::Pause).await?;
        Ok(self.thread.await.map_err(|_| ReceiveError::Panicked)??)
    }

    async fn put(&mut self, part: Part) -> Result<(), ReceiveError> {
        match self.parts.send(part).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.cause().await),
        }
    }

    /// Why the thread ended before it was told to.
    async fn cause(&mut self) -> ReceiveError {
        match (&mut self.thread).await {
            Ok(Err(error)) => error.into(),
            _ => ReceiveError::Panicked,
        }
    }
}

/// Writes until the end; returns how many bytes are kept.
fn write(
    mut reception: Box<dyn SnapshotReceive>,
    mut parts: mpsc::Receiver<Part>,
) -> Result<u64, SnapshotError> {
    loop {
        match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => reception.append(&chunk)?,
            Some(Part::End) => {
                let size = reception.received();
                return reception.finish().map(|()| size);
            }
            Some(Part::Pause) => return reception.pause(),
            None => return Ok(0),
        }
    }
}

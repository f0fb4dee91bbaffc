//! A snapshot's file as frames.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use shardhost_proto::peer::SnapshotFrame;
use shardhost_storage::SnapshotRead;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// An open snapshot. It stays open between streams: the store may remove its file meanwhile.
pub(super) type Source = Arc<Mutex<Box<dyn SnapshotRead>>>;

/// Reads a snapshot into frames, on a blocking thread, as fast as they are taken.
pub(super) struct Pump {
    pub source: Source,
    /// The first byte to send.
    pub offset: u64,
    pub chunk_bytes: usize,
    pub frames: mpsc::Sender<SnapshotFrame>,
    /// Set when frames are no longer taken, without an error.
    pub over: CancellationToken,
}

impl Pump {
    /// Ends at the end of the snapshot, or when frames are no longer taken.
    pub fn run(self, runtime: &Handle) -> io::Result<()> {
        let mut source = self.source.lock();
        source.read_from(self.offset)?;
        loop {
            let mut chunk = Vec::with_capacity(self.chunk_bytes);
            let most = self.chunk_bytes as u64;
            let count = source.by_ref().take(most).read_to_end(&mut chunk)?;
            let frame = SnapshotFrame { header: None, chunk: Bytes::from(chunk) };
            if count == 0 || !runtime.block_on(self.hand_on(frame)) {
                return Ok(());
            }
        }
    }

    async fn hand_on(&self, frame: SnapshotFrame) -> bool {
        tokio::select! {
            () = self.over.cancelled() => false,
            taken = self.frames.send(frame) => taken.is_ok(),
        }
    }
}

//! The blocking thread that takes a snapshot into the store.

use std::sync::Arc;

use bytes::Bytes;
use shardhost_groups::transport::Recipient;
use shardhost_storage::{SnapshotAnnouncement, SnapshotError, SnapshotReceive, SnapshotStore};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::CHUNKS_BETWEEN;
use super::refusal::ReceiveError;

/// What the thread is given. Without an end, nothing is kept.
enum Part {
    Chunk(Bytes),
    /// All came; it is for this opening of a replica.
    End(Recipient),
    Pause,
}

/// Why the thread ended without a snapshot.
enum WriteError {
    Store(SnapshotError),
    /// The replica was closed or destroyed meanwhile.
    Ended,
}

impl From<SnapshotError> for WriteError {
    fn from(error: SnapshotError) -> Self {
        Self::Store(error)
    }
}

impl From<WriteError> for ReceiveError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => Self::Store(error),
            WriteError::Ended => Self::Ended,
        }
    }
}

/// The thread, as its feeder sees it.
pub(super) struct Writer {
    parts: mpsc::Sender<Part>,
    thread: JoinHandle<Result<u64, WriteError>>,
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
    pub async fn finish(mut self, recipient: Recipient) -> Result<(), ReceiveError> {
        self.put(Part::End(recipient)).await?;
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

    /// Why the thread ended early.
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
) -> Result<u64, WriteError> {
    loop {
        match parts.blocking_recv() {
            Some(Part::Chunk(chunk)) => reception.append(&chunk)?,
            Some(Part::End(recipient)) => {
                let size = reception.received();
                let finished = recipient.while_open(|| reception.finish());
                finished.ok_or(WriteError::Ended)??;
                return Ok(size);
            }
            Some(Part::Pause) => return Ok(reception.pause()?),
            None => return Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use shardhost_groups::testing::alone::{Alone, Stateless};
    use shardhost_groups::{
        GroupId, GroupSpec, Groups, GroupsBuilder, GroupsConfig, LogPosition, NodeId, ReplicaId,
    };
    use shardhost_storage::{MemorySnapshots, MemoryStore};

    use super::*;

    const GROUP: GroupId = GroupId::new(7);
    const POSITION: LogPosition = LogPosition::new(3, 40);

    fn recipient(groups: &Groups) -> Recipient {
        use shardhost_groups::transport::Inbound;
        groups.inbound().wants_snapshot(GROUP, ReplicaId::must(1), POSITION).unwrap()
    }

    #[tokio::test]
    async fn a_snapshot_that_was_received_for_an_earlier_opening_is_not_published() {
        let snapshots = Arc::new(MemorySnapshots::new());
        let store: Arc<dyn SnapshotStore> = snapshots.clone();
        let groups = GroupsBuilder::new(GroupsConfig::new(NodeId::must(1)))
            .start(Arc::new(MemoryStore::new()), Arc::clone(&store), Arc::new(Alone))
            .unwrap();
        let members = [1, 2].map(NodeId::must);
        groups.create(GroupSpec::new(GROUP, members), Box::new(Stateless)).unwrap();
        let announced = |from| SnapshotAnnouncement {
            from: NodeId::must(from),
            group: GROUP,
            position: POSITION,
            size: 4,
            crc: crc32fast::hash(b"data"),
        };
        let earlier = recipient(&groups);
        let (mut writer, _) = Writer::start(Arc::clone(&store), announced(2)).await.unwrap();
        writer.append(Bytes::from_static(b"data")).await.unwrap();
        assert!(groups.close(GROUP).await);
        groups.open(GROUP, Box::new(Stateless)).unwrap();
        let refused = writer.finish(earlier).await.unwrap_err();
        assert!(matches!(refused, ReceiveError::Ended), "{refused}");
        assert!(snapshots.open(GROUP, POSITION).is_err(), "it was published");

        let (mut writer, _) = Writer::start(store, announced(2)).await.unwrap();
        writer.append(Bytes::from_static(b"data")).await.unwrap();
        writer.finish(recipient(&groups)).await.unwrap();
        assert!(snapshots.open(GROUP, POSITION).is_ok());
        tokio::task::spawn_blocking(move || groups.shutdown()).await.unwrap();
    }
}

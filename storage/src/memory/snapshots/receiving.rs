//! Snapshots that come from another host, into memory.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Inner;
use crate::ids::LogPosition;
use crate::snapshot::{SnapshotAnnouncement, SnapshotError, SnapshotReceive};

/// A reception that broke off.
#[derive(Debug)]
pub(super) struct Paused {
    announced: SnapshotAnnouncement,
    bytes: Vec<u8>,
}

impl Paused {
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub const fn position(&self) -> LogPosition {
        self.announced.position
    }
}

/// A reception. Until it ends it holds a reservation of all its bytes.
pub(super) struct Receiving {
    store: Arc<Mutex<Inner>>,
    announced: SnapshotAnnouncement,
    life: u64,
    bytes: Vec<u8>,
    /// All of it was here before.
    present: bool,
}

impl Receiving {
    pub fn begin(
        store: &Arc<Mutex<Inner>>,
        announced: SnapshotAnnouncement,
    ) -> Result<Self, SnapshotError> {
        let mut inner = store.lock();
        let SnapshotAnnouncement { group, size, .. } = announced;
        let life = inner.life;
        inner.check(group, "receiving")?;
        let present = inner.has(&announced);
        let mut bytes = Vec::new();
        if !present {
            let paused = inner.paused.remove(&group);
            let continued = paused.filter(|paused| paused.announced == announced);
            bytes = continued.map_or_else(Vec::new, |paused| paused.bytes);
            inner.reserve(announced)?;
        }
        debug_assert!(bytes.len() as u64 <= size);
        Ok(Self { store: Arc::clone(store), announced, life, bytes, present })
    }

    fn corrupt(&self, message: String) -> SnapshotError {
        let SnapshotAnnouncement { group, position, .. } = self.announced;
        SnapshotError::Corrupt { group, position, message }
    }

    fn check(&self, inner: &Inner) -> Result<(), SnapshotError> {
        inner.check_writer(self.announced.group, self.life)?;
        let SnapshotAnnouncement { size, crc, .. } = self.announced;
        let (came, found) = (self.bytes.len(), crc32fast::hash(&self.bytes));
        if came as u64 != size {
            return Err(self.corrupt(format!("{size} bytes were announced, {came} came")));
        }
        if found != crc {
            let message = format!("checksum {crc:08x} was announced, it is {found:08x}");
            return Err(self.corrupt(message));
        }
        Ok(())
    }
}

impl Inner {
    /// Whether the very snapshot is here, undamaged.
    fn has(&self, announced: &SnapshotAnnouncement) -> bool {
        let kept = self.kept.get(&(announced.group, announced.position));
        kept.is_some_and(|kept| {
            kept.bytes.len() as u64 == announced.size
                && kept.crc == announced.crc
                && crc32fast::hash(&kept.bytes) == announced.crc
        })
    }

    fn reserve(&mut self, announced: SnapshotAnnouncement) -> Result<(), SnapshotError> {
        let SnapshotAnnouncement { group, size: needed, .. } = announced;
        while needed > self.available() && self.paused.pop_first().is_some() {}
        let available = self.available();
        if needed > available {
            return Err(SnapshotError::NoSpace { group, needed, available });
        }
        self.unfinished += needed;
        Ok(())
    }
}

impl SnapshotReceive for Receiving {
    fn received(&self) -> u64 {
        if self.present { self.announced.size } else { self.bytes.len() as u64 }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.store.lock().check_writer(self.announced.group, self.life)?;
        if bytes.len() as u64 > self.announced.size - self.received() {
            return Err(
                self.corrupt(format!("more than the announced {} bytes", self.announced.size))
            );
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn pause(mut self: Box<Self>) -> Result<u64, SnapshotError> {
        let kept = self.received();
        if kept == 0 || self.present {
            return Ok(kept);
        }
        let bytes = std::mem::take(&mut self.bytes);
        let announced = self.announced;
        let mut inner = self.store.lock();
        inner.check_writer(announced.group, self.life)?;
        inner.paused.insert(announced.group, Paused { announced, bytes });
        Ok(kept)
    }

    fn finish(mut self: Box<Self>) -> Result<(), SnapshotError> {
        if self.present {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let mut inner = store.lock();
        self.check(&inner)?;
        let bytes = std::mem::take(&mut self.bytes);
        inner.keep(self.announced.group, self.announced.position, bytes);
        Ok(())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        if inner.life == self.life && !self.present {
            inner.unfinished -= self.announced.size;
        }
    }
}

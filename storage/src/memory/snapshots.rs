//! Snapshots in memory, with crashes and faults on command.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use crate::ids::{GroupId, LogPosition};
use crate::snapshot::{SnapshotError, SnapshotRead, SnapshotStore, SnapshotWrite};

/// Something that goes wrong with [`MemorySnapshots`], until [`MemorySnapshots::heal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SnapshotFault {
    /// Writing fails for lack of space.
    NoSpace,
    /// Everything that concerns this group fails.
    Io(GroupId),
}

/// A [`SnapshotStore`] in memory. Clones are handles of the same store.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshots {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: BTreeMap<(GroupId, LogPosition), Kept>,
    faults: BTreeSet<SnapshotFault>,
    /// Counts crashes: a writer from before the last one is dead.
    life: u64,
}

#[derive(Clone, Debug)]
struct Kept {
    bytes: Bytes,
    crc: u32,
}

impl MemorySnapshots {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The process dies and starts again: what was not finished is gone, and its writers fail.
    pub fn crash(&self) {
        self.inner.lock().life += 1;
    }

    /// Damages a kept snapshot: one bit of it, or its checksum when it is empty. False when
    /// there is none.
    #[must_use]
    pub fn corrupt(&self, group: GroupId, position: LogPosition) -> bool {
        let mut inner = self.inner.lock();
        let Some(kept) = inner.kept.get_mut(&(group, position)) else { return false };
        let mut bytes = kept.bytes.to_vec();
        match bytes.first_mut() {
            Some(first) => *first ^= 1,
            None => kept.crc ^= 1,
        }
        kept.bytes = bytes.into();
        true
    }

    /// Asks for a fault.
    pub fn inject(&self, fault: SnapshotFault) {
        self.inner.lock().faults.insert(fault);
    }

    /// Takes back every fault that was asked for. What is corrupt stays so.
    pub fn heal(&self) {
        self.inner.lock().faults.clear();
    }
}

impl Inner {
    fn check(&self, group: GroupId, action: &'static str) -> Result<(), SnapshotError> {
        if self.faults.contains(&SnapshotFault::Io(group)) {
            let message = "a fault on command".to_owned();
            return Err(SnapshotError::Io { group, action, message });
        }
        Ok(())
    }

    fn check_writer(&self, group: GroupId, life: u64) -> Result<(), SnapshotError> {
        if self.life != life {
            let message = "its process crashed".to_owned();
            return Err(SnapshotError::Io { group, action: "writing", message });
        }
        if self.faults.contains(&SnapshotFault::NoSpace) {
            return Err(SnapshotError::NoSpace { group });
        }
        self.check(group, "writing")
    }

    fn positions(&self, group: GroupId) -> impl Iterator<Item = LogPosition> + '_ {
        let from = (group, LogPosition::default());
        let to = (group, LogPosition::new(u64::MAX, u64::MAX));
        self.kept.range(from..=to).map(|((_, position), _)| *position)
    }
}

impl SnapshotStore for MemorySnapshots {
    fn create(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotWrite>, SnapshotError> {
        let inner = self.inner.lock();
        inner.check_writer(group, inner.life)?;
        let store = Arc::clone(&self.inner);
        Ok(Box::new(Writer { store, group, position, life: inner.life, bytes: Vec::new() }))
    }

    fn open(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        let inner = self.inner.lock();
        inner.check(group, "opening")?;
        let kept = inner.kept.get(&(group, position));
        let kept = kept.ok_or(SnapshotError::Missing { group, position })?;
        let crc = crc32fast::hash(&kept.bytes);
        if crc != kept.crc {
            let message = format!("checksum {:08x} was written, it is {crc:08x}", kept.crc);
            return Err(SnapshotError::Corrupt { group, position, message });
        }
        Ok(Box::new(Reader { size: kept.bytes.len() as u64, crc, rest: kept.bytes.clone() }))
    }

    fn list(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        let inner = self.inner.lock();
        inner.check(group, "listing")?;
        Ok(inner.positions(group).collect())
    }

    fn remove_below(&self, group: GroupId, keep: Option<LogPosition>) -> Result<(), SnapshotError> {
        let mut inner = self.inner.lock();
        inner.check(group, "removing")?;
        let below = |position: &LogPosition| keep.is_none_or(|keep| *position < keep);
        let gone: Vec<_> = inner.positions(group).filter(below).collect();
        for position in gone {
            inner.kept.remove(&(group, position));
        }
        Ok(())
    }
}

struct Writer {
    store: Arc<Mutex<Inner>>,
    group: GroupId,
    position: LogPosition,
    life: u64,
    bytes: Vec<u8>,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.store.lock().check_writer(self.group, self.life) {
            Ok(()) => self.bytes.write(bytes),
            Err(error @ SnapshotError::NoSpace { .. }) => {
                Err(io::Error::new(io::ErrorKind::StorageFull, error))
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWrite for Writer {
    fn finish(self: Box<Self>) -> Result<(u64, u32), SnapshotError> {
        let Self { store, group, position, life, bytes } = *self;
        let mut inner = store.lock();
        inner.check_writer(group, life)?;
        let (size, crc) = (bytes.len() as u64, crc32fast::hash(&bytes));
        inner.kept.insert((group, position), Kept { bytes: bytes.into(), crc });
        Ok((size, crc))
    }
}

struct Reader {
    size: u64,
    crc: u32,
    rest: Bytes,
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

impl SnapshotRead for Reader {
    fn size(&self) -> u64 {
        self.size
    }
    fn crc(&self) -> u32 {
        self.crc
    }
}

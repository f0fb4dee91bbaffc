//! Snapshots in memory, with crashes and faults on command.

mod receiving;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use crc32fast::Hasher;
use parking_lot::Mutex;

use crate::ids::{GroupId, LogPosition};
use crate::snapshot::{
    SnapshotAnnouncement, SnapshotError, SnapshotRead, SnapshotReceive, SnapshotStore,
    SnapshotWrite,
};
use receiving::{Paused, Receiving};

/// Something that goes wrong with [`MemorySnapshots`], until [`MemorySnapshots::heal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SnapshotFault {
    /// Writing fails for lack of space.
    NoSpace,
    /// Everything that concerns this group fails.
    Io(GroupId),
    /// So many bytes fit, over all snapshots, finished or not.
    Capacity(u64),
}

/// What fits without a [`SnapshotFault::Capacity`]: no address space holds more.
const CAPACITY_BYTES: u64 = 1 << 47;

/// A [`SnapshotStore`] in memory. Clones are handles of the same store.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshots {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: BTreeMap<(GroupId, LogPosition), Kept>,
    /// Broken receptions, one per group; they wait for ever.
    paused: BTreeMap<GroupId, Paused>,
    /// Bytes that unfinished snapshots hold or were reserved.
    unfinished: u64,
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
        let mut inner = self.inner.lock();
        inner.life += 1;
        inner.unfinished = 0;
        inner.paused.clear();
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

    /// Removes every injected fault. Corrupted data stays so.
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
            return Err(SnapshotError::DiskFull { group });
        }
        self.check(group, "writing")
    }

    fn available(&self) -> u64 {
        let capacity = |fault: &SnapshotFault| match fault {
            SnapshotFault::Capacity(bytes) => Some(*bytes),
            SnapshotFault::NoSpace => Some(0),
            SnapshotFault::Io(_) => None,
        };
        let capacity = self.faults.iter().filter_map(capacity).min().unwrap_or(CAPACITY_BYTES);
        let kept: u64 = self.kept.values().map(|kept| kept.bytes.len() as u64).sum();
        let paused: u64 = self.paused.values().map(Paused::size).sum();
        capacity.saturating_sub(kept).saturating_sub(paused).saturating_sub(self.unfinished)
    }

    fn positions(&self, group: GroupId) -> impl Iterator<Item = LogPosition> + '_ {
        let from = (group, LogPosition::default());
        let to = (group, LogPosition::new(u64::MAX, u64::MAX));
        self.kept.range(from..=to).map(|((_, position), _)| *position)
    }

    fn keep(&mut self, group: GroupId, position: LogPosition, bytes: Vec<u8>) -> (u64, u32) {
        let (size, crc) = (bytes.len() as u64, crc32fast::hash(&bytes));
        self.kept.insert((group, position), Kept { bytes: bytes.into(), crc });
        self.forget_paused(group, |paused| paused <= position);
        (size, crc)
    }

    fn forget_paused(&mut self, group: GroupId, goes: impl Fn(LogPosition) -> bool) {
        if self.paused.get(&group).is_some_and(|paused| goes(paused.position())) {
            self.paused.remove(&group);
        }
    }

    fn remove_where(&mut self, group: GroupId, goes: impl Fn(LogPosition) -> bool) {
        let gone: Vec<_> = self.positions(group).filter(|position| goes(*position)).collect();
        for position in gone {
            self.kept.remove(&(group, position));
        }
    }

    fn read(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<(Reader, &Kept), SnapshotError> {
        self.check(group, "opening")?;
        let kept = self.kept.get(&(group, position));
        let kept = kept.ok_or(SnapshotError::Missing { group, position })?;
        let (bytes, rest) = (kept.bytes.clone(), kept.bytes.clone());
        let (of, crc) = ((group, position), kept.crc);
        Ok((Reader { of, bytes, rest, crc, found: Some(Hasher::new()) }, kept))
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

    fn receive(
        &self,
        announced: SnapshotAnnouncement,
    ) -> Result<Box<dyn SnapshotReceive>, SnapshotError> {
        Ok(Box::new(Receiving::begin(&self.inner, announced)?))
    }

    fn open(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        let inner = self.inner.lock();
        let (reader, kept) = inner.read(group, position)?;
        compare(kept.crc, crc32fast::hash(&kept.bytes))
            .map_err(|message| SnapshotError::Corrupt { group, position, message })?;
        Ok(Box::new(reader))
    }

    fn open_unchecked(
        &self,
        group: GroupId,
        position: LogPosition,
    ) -> Result<Box<dyn SnapshotRead>, SnapshotError> {
        Ok(Box::new(self.inner.lock().read(group, position)?.0))
    }

    fn groups(&self) -> Result<Vec<GroupId>, SnapshotError> {
        let inner = self.inner.lock();
        let mut groups: Vec<_> = inner.kept.keys().map(|(group, _)| *group).collect();
        groups.dedup();
        Ok(groups)
    }

    fn list(&self, group: GroupId) -> Result<Vec<LogPosition>, SnapshotError> {
        let inner = self.inner.lock();
        inner.check(group, "listing")?;
        Ok(inner.positions(group).collect())
    }

    fn remove_below(&self, group: GroupId, keep: Option<LogPosition>) -> Result<(), SnapshotError> {
        let mut inner = self.inner.lock();
        inner.check(group, "removing")?;
        let below = |position: LogPosition| keep.is_none_or(|keep| position < keep);
        inner.remove_where(group, below);
        inner.forget_paused(group, below);
        Ok(())
    }

    fn remove_except(
        &self,
        group: GroupId,
        keep: Option<LogPosition>,
    ) -> Result<(), SnapshotError> {
        let mut inner = self.inner.lock();
        inner.check(group, "removing")?;
        inner.remove_where(group, |position| keep != Some(position));
        Ok(())
    }

    fn forget_stale(&self) -> Option<Duration> {
        None
    }
}

fn compare(written: u32, found: u32) -> Result<(), String> {
    if found == written {
        return Ok(());
    }
    Err(format!("checksum {written:08x} was written, it is {found:08x}"))
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
        let mut inner = self.store.lock();
        inner.check_writer(self.group, self.life)?;
        if bytes.len() as u64 > inner.available() {
            return Err(SnapshotError::DiskFull { group: self.group }.into());
        }
        inner.unfinished += bytes.len() as u64;
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotWrite for Writer {
    fn finish(mut self: Box<Self>) -> Result<(u64, u32), SnapshotError> {
        let mut inner = self.store.lock();
        inner.check_writer(self.group, self.life)?;
        let bytes = std::mem::take(&mut self.bytes);
        inner.unfinished -= bytes.len() as u64;
        Ok(inner.keep(self.group, self.position, bytes))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        if inner.life == self.life {
            inner.unfinished -= self.bytes.len() as u64;
        }
    }
}

struct Reader {
    of: (GroupId, LogPosition),
    bytes: Bytes,
    rest: Bytes,
    crc: u32,
    /// Of what was handed out, when that began at the start.
    found: Option<Hasher>,
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut out[..count]);
        if let Some(found) = &mut self.found {
            found.update(&out[..count]);
            if count == 0 && !out.is_empty() {
                let (group, position) = self.of;
                compare(self.crc, found.clone().finalize())
                    .map_err(|message| SnapshotError::Corrupt { group, position, message })?;
            }
        }
        Ok(count)
    }
}

impl SnapshotRead for Reader {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn crc(&self) -> u32 {
        self.crc
    }
    fn read_from(&mut self, offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().filter(|offset| *offset <= self.bytes.len());
        let Some(offset) = rest else { return Err(io::ErrorKind::InvalidInput.into()) };
        self.rest = self.bytes.slice(offset..);
        self.found = (offset == 0).then(Hasher::new);
        Ok(())
    }
}

//! A state machine with a large state: it keeps the state in a file, and no copy of it in memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shardhost::{ApplyBatch, ApplyFault, LogIndex, LogPosition, SnapshotWriter, StateMachine};

const CHUNK_BYTES: usize = 256 << 10;
/// Bytes that are written before they are synced.
const SYNC_BYTES: usize = 8 << 20;

/// Counts commands beside a file that represents a state.
pub struct Large {
    file: PathBuf,
    applied: Option<LogPosition>,
    commands: u64,
    seen: Arc<Seen>,
}

/// What the benchmark knows of a machine.
#[derive(Debug, Default)]
pub struct Seen {
    /// CRC-32 of the file, once it is there.
    crc: AtomicU64,
}

impl Seen {
    pub fn crc(&self) -> Option<u32> {
        u32::try_from(self.crc.load(Ordering::Relaxed).checked_sub(1)?).ok()
    }

    fn set(&self, crc: u32) {
        self.crc.store(u64::from(crc) + 1, Ordering::Relaxed);
    }
}

impl Large {
    /// Without a state.
    pub fn empty(file: PathBuf) -> Self {
        Self { file, applied: None, commands: 0, seen: Arc::default() }
    }

    /// With a state of so many bytes that no two groups share.
    pub fn filled(file: PathBuf, size: u64, seed: u64) -> io::Result<Self> {
        let large = Self::empty(file);
        let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).take(size);
        let crc = write_synced(&large.file, &mut noise)?;
        large.seen.set(crc);
        Ok(large)
    }

    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }
}

impl StateMachine for Large {
    fn applied(&self) -> Result<Option<LogPosition>, ApplyFault> {
        Ok(self.applied)
    }

    fn apply(&mut self, batch: &mut ApplyBatch<'_>) -> Result<(), ApplyFault> {
        self.commands += batch.len() as u64;
        self.applied = Some(batch.last());
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotWriter>, ApplyFault> {
        let file = File::open(&self.file).map_err(ApplyFault::new)?;
        Ok(Box::new(View { commands: self.commands, file }))
    }

    fn restore(&mut self, at: LogPosition, source: &mut dyn Read) -> Result<(), ApplyFault> {
        let mut commands = [0; 8];
        source.read_exact(&mut commands).map_err(ApplyFault::new)?;
        let crc = write_synced(&self.file, source).map_err(ApplyFault::new)?;
        self.seen.set(crc);
        self.commands = u64::from_be_bytes(commands);
        self.applied = Some(at);
        Ok(())
    }

    /// As a machine on disk does: so the host truncates the log without snapshots, and makes one on
    /// request.
    fn durable_index(&self) -> Option<LogIndex> {
        self.applied.map(|applied| applied.index)
    }
}

struct View {
    commands: u64,
    file: File,
}

impl SnapshotWriter for View {
    fn write_to(mut self: Box<Self>, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(&self.commands.to_be_bytes())?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match self.file.read(&mut chunk)? {
                0 => return Ok(()),
                count => sink.write_all(&chunk[..count])?,
            }
        }
    }
}

/// Writes a file in chunks; returns the CRC-32 of its bytes.
fn write_synced(path: &Path, source: &mut dyn Read) -> io::Result<u32> {
    let mut file = File::create(path)?;
    let (mut chunk, mut crc) = (vec![0; CHUNK_BYTES], crc32fast::Hasher::new());
    let mut unsynced = 0;
    loop {
        let count = source.read(&mut chunk)?;
        if count == 0 {
            file.sync_all()?;
            return Ok(crc.finalize());
        }
        file.write_all(&chunk[..count])?;
        crc.update(&chunk[..count]);
        unsynced += count;
        if unsynced >= SYNC_BYTES {
            unsynced = 0;
            file.sync_data()?;
        }
    }
}

/// Bytes without a pattern that a disk or a wire could use.
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        for word in out.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
        Ok(out.len())
    }
}

//! A snapshot file being written.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::space::Reservation;
use super::trailer::Trailer;
use super::{Name, Shared};
use crate::snapshot::{SnapshotError, SnapshotWrite};

const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes between two waits for the rate: many states are written in small pieces.
const PACE_BYTES: usize = 256 << 10;
/// Room that is requested at once when the size is unknown.
pub(super) const ROOM_STEP_BYTES: u64 = 16 << 20;

/// Writes under a temporary name, and removes it when it is dropped before it was finished.
pub(super) struct Writer {
    shared: Arc<Shared>,
    name: Name,
    temporary: PathBuf,
    file: BufWriter<File>,
    size: u64,
    crc: crc32fast::Hasher,
    /// Written since the last sync.
    unsynced: u64,
    /// Written since the last wait for the rate.
    unpaced: usize,
    /// Room for the bytes to come; `None`: the file system allocated it.
    reservation: Option<Reservation>,
    finished: bool,
}

impl Writer {
    /// Creates the file. Nothing is reserved to it yet.
    pub fn create(shared: &Arc<Shared>, name: Name) -> Result<Self, SnapshotError> {
        let temporary = shared.temporary_path(name);
        let file = File::create_new(&temporary)
            .map_err(|error| SnapshotError::from_io(name.group, "creating its file", &error))?;
        Ok(Self {
            shared: Arc::clone(shared),
            name,
            temporary,
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            size: 0,
            crc: crc32fast::Hasher::new(),
            unsynced: 0,
            unpaced: 0,
            reservation: None,
            finished: false,
        })
    }

    /// A writer of unknown size: it requests more room while it writes.
    pub fn growing(mut self, reservation: Reservation) -> Self {
        self.reservation = Some(reservation);
        self
    }

    /// Bytes written.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// CRC-32 of the bytes written.
    pub fn crc(&self) -> u32 {
        self.crc.clone().finalize()
    }

    /// Sets room aside for `bytes` more, the trailer included, which the reservation covers.
    pub fn allocate(&mut self, bytes: u64, reservation: Reservation) -> io::Result<()> {
        let (file, mode) = (self.file.get_ref(), FallocateFlags::KEEP_SIZE);
        self.reservation = match rustix::fs::fallocate(file, mode, self.size, bytes) {
            Ok(()) => None,
            // Then it is the reservation that keeps others away.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Some(reservation),
            Err(error) => return Err(error.into()),
        };
        Ok(())
    }

    /// Brings what was written into the file, and gives back the room for more.
    pub fn settle(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.reservation = None;
        self.file.get_ref().set_len(self.size)
    }

    fn make_room(&mut self, bytes: u64) -> Result<(), SnapshotError> {
        match &mut self.reservation {
            Some(reservation) if reservation.bytes() < bytes => {
                reservation.grow(self.name.group, bytes.max(ROOM_STEP_BYTES))
            }
            _ => Ok(()),
        }
    }

    fn note_written(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len() as u64;
        if let Some(reservation) = &mut self.reservation {
            reservation.use_up(count);
        }
        self.crc.update(bytes);
        self.size += count;
        self.unsynced += count;
        self.unpaced += bytes.len();
        if self.unpaced >= PACE_BYTES {
            self.shared.rate.wait(std::mem::take(&mut self.unpaced));
        }
        // A sync of a gibibyte at the end would block the log, which is on the same disk.
        if self.unsynced >= self.shared.options.sync_bytes {
            self.unsynced = 0;
            self.file.flush()?;
            self.file.get_ref().sync_data()?;
        }
        Ok(())
    }

    fn complete(&mut self, trailer: &Trailer) -> io::Result<()> {
        self.file.write_all(&trailer.encode())?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        self.shared.publish(&self.temporary, self.name)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.make_room(bytes.len() as u64)?;
        let count = self.file.write(bytes)?;
        self.note_written(&bytes[..count])?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl SnapshotWrite for Writer {
    fn finish(mut self: Box<Self>) -> Result<(u64, u32), SnapshotError> {
        let trailer = Trailer { name: self.name, size: self.size, crc: self.crc() };
        self.complete(&trailer)
            .map_err(|error| SnapshotError::from_io(self.name.group, "finishing it", &error))?;
        self.finished = true;
        Ok((trailer.size, trailer.crc))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(error) = fs::remove_file(&self.temporary) {
            let file = self.temporary.display();
            tracing::warn!(%file, %error, "an unfinished snapshot stays until the next start");
        }
    }
}

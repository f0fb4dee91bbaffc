//! A snapshot file being written.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::trailer::Trailer;
use super::{Name, Shared, failed};
use crate::snapshot::{SnapshotError, SnapshotWrite};

const BUFFER_BYTES: usize = 64 * 1024;

/// Writes under a temporary name, and removes it when it is dropped before it was finished.
pub(super) struct Writer {
    shared: Arc<Shared>,
    name: Name,
    temporary: PathBuf,
    file: BufWriter<File>,
    size: u64,
    crc: crc32fast::Hasher,
    finished: bool,
}

impl Writer {
    pub fn create(shared: Arc<Shared>, name: Name) -> Result<Self, SnapshotError> {
        let temporary = shared.temporary_path(name);
        let file = File::create_new(&temporary)
            .map_err(|error| failed(name.group, "creating its file", &error))?;
        Ok(Self {
            shared,
            name,
            temporary,
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            size: 0,
            crc: crc32fast::Hasher::new(),
            finished: false,
        })
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
        let count = self.file.write(bytes)?;
        self.crc.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl SnapshotWrite for Writer {
    fn finish(mut self: Box<Self>) -> Result<(u64, u32), SnapshotError> {
        let crc = self.crc.clone().finalize();
        let trailer = Trailer { name: self.name, size: self.size, crc };
        self.complete(&trailer).map_err(|error| failed(self.name.group, "finishing it", &error))?;
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

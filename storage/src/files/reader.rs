//! A snapshot file being read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crc32fast::Hasher;

use super::Name;
use super::trailer::{self, Trailer};
use crate::snapshot::{SnapshotError, SnapshotRead};

const BUFFER_BYTES: usize = 64 * 1024;

/// Hands out the bytes of a file.
pub(super) struct Reader {
    file: io::Take<File>,
    trailer: Trailer,
    /// Checksum of the bytes handed out, if reading began at the start: bytes that are read twice
    /// can differ.
    crc: Option<crc32fast::Hasher>,
}

/// Why a file is not handed out.
pub(super) enum Refusal {
    Damage(String),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Refusal {
    fn into_error(self, name: Name) -> SnapshotError {
        let Name { group, position } = name;
        match self {
            Self::Damage(message) => SnapshotError::Corrupt { group, position, message },
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                SnapshotError::Missing { group, position }
            }
            Self::Io(error) => SnapshotError::from_io(group, "opening it", &error),
        }
    }
}

impl Reader {
    /// Opens a file after reading all of it once.
    pub fn open(path: &Path, name: Name) -> Result<Self, SnapshotError> {
        let reader = Self::open_unchecked(path, name)?;
        reader.check().map_err(|refusal| refusal.into_error(name))?;
        Ok(reader)
    }

    /// Opens a file whose size and trailer are right.
    pub fn open_unchecked(path: &Path, name: Name) -> Result<Self, SnapshotError> {
        let opened = File::open(path).map_err(Refusal::Io).and_then(|file| Self::of(file, name));
        opened.map_err(|refusal| refusal.into_error(name))
    }

    fn of(mut file: File, name: Name) -> Result<Self, Refusal> {
        let trailer = read_trailer(&mut file)?;
        if trailer.name != name {
            return Err(Refusal::Damage(format!("it is {}", trailer.name)));
        }
        file.rewind()?;
        Ok(Self { file: file.take(trailer.size), trailer, crc: Some(Hasher::new()) })
    }

    /// Compares all bytes with the checksum. Called before any was handed out.
    pub fn check(&self) -> Result<(), Refusal> {
        let mut file = self.file.get_ref();
        file.rewind()?;
        let crc = checksum(&mut file.take(self.trailer.size))?;
        self.compare(crc).map_err(Refusal::Damage)?;
        file.rewind()?;
        Ok(())
    }

    fn compare(&self, found: u32) -> Result<(), String> {
        let written = self.trailer.crc;
        if found == written {
            return Ok(());
        }
        Err(format!("checksum {written:08x} was written, it is {found:08x}"))
    }

    fn check_end(&self) -> io::Result<()> {
        let missing = self.file.limit();
        let compared = match &self.crc {
            _ if missing > 0 => Err(format!("its last {missing} bytes are missing")),
            Some(crc) => self.compare(crc.clone().finalize()),
            None => Ok(()),
        };
        let Name { group, position } = self.trailer.name;
        compared.map_err(|message| SnapshotError::Corrupt { group, position, message }.into())
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(out)?;
        if let Some(crc) = &mut self.crc {
            crc.update(&out[..count]);
        }
        if count == 0 && !out.is_empty() {
            self.check_end()?;
        }
        Ok(count)
    }
}

impl SnapshotRead for Reader {
    fn size(&self) -> u64 {
        self.trailer.size
    }
    fn crc(&self) -> u32 {
        self.trailer.crc
    }
    fn read_from(&mut self, offset: u64) -> io::Result<()> {
        let Some(rest) = self.trailer.size.checked_sub(offset) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.file.get_mut().seek(SeekFrom::Start(offset))?;
        self.file.set_limit(rest);
        self.crc = (offset == 0).then(Hasher::new);
        Ok(())
    }
}

fn read_trailer(file: &mut File) -> Result<Trailer, Refusal> {
    let length = file.metadata()?.len();
    let Some(size) = length.checked_sub(trailer::BYTES as u64) else {
        return Err(Refusal::Damage(format!("{length} bytes are too few for a snapshot")));
    };
    file.seek(SeekFrom::Start(size))?;
    let mut bytes = [0; trailer::BYTES];
    file.read_exact(&mut bytes)?;
    let trailer = Trailer::decode(&bytes).map_err(Refusal::Damage)?;
    if trailer.size != size {
        let message = format!("{} bytes were written, {size} are there", trailer.size);
        return Err(Refusal::Damage(message));
    }
    Ok(trailer)
}

fn checksum(bytes: &mut impl Read) -> io::Result<u32> {
    let mut crc = Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match bytes.read(&mut buffer) {
            Ok(0) => return Ok(crc.finalize()),
            Ok(count) => crc.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

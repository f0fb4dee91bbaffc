//! A snapshot file being read, after all of it was checked.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::trailer::{self, Trailer};
use super::{Name, failed};
use crate::snapshot::{SnapshotError, SnapshotRead};

const BUFFER_BYTES: usize = 64 * 1024;

/// Hands out the bytes of a checked file.
pub(super) struct Reader {
    file: io::Take<File>,
    trailer: Trailer,
    /// Of what was handed out: what is read twice can differ.
    crc: crc32fast::Hasher,
}

/// Why a file is not handed out.
enum Refusal {
    Damage(String),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Reader {
    pub fn open(path: &Path, name: Name) -> Result<Self, SnapshotError> {
        let Name { group, position } = name;
        let checked =
            File::open(path).map_err(Refusal::Io).and_then(|file| Self::check(file, name));
        checked.map_err(|refusal| match refusal {
            Refusal::Damage(message) => SnapshotError::Corrupt { group, position, message },
            Refusal::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                SnapshotError::Missing { group, position }
            }
            Refusal::Io(error) => failed(group, "opening it", &error),
        })
    }

    fn check(mut file: File, name: Name) -> Result<Self, Refusal> {
        let trailer = read_trailer(&mut file)?;
        if trailer.name != name {
            return Err(Refusal::Damage(format!("it is {}", trailer.name)));
        }
        file.rewind()?;
        let crc = checksum(&mut (&mut file).take(trailer.size))?;
        if crc != trailer.crc {
            let message = format!("checksum {:08x} was written, it is {crc:08x}", trailer.crc);
            return Err(Refusal::Damage(message));
        }
        file.rewind()?;
        Ok(Self { file: file.take(trailer.size), trailer, crc: crc32fast::Hasher::new() })
    }

    fn check_end(&self) -> io::Result<()> {
        if self.file.limit() > 0 || self.crc.clone().finalize() != self.trailer.crc {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file changed meanwhile"));
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(out)?;
        self.crc.update(&out[..count]);
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
    let mut crc = crc32fast::Hasher::new();
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

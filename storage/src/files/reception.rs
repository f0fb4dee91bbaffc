//! A snapshot that comes from another host, on its way into a file.

use std::io::{self, Write};
use std::sync::Arc;

use super::paused::Paused;
use super::trailer;
use super::writer::Writer;
use super::{Name, Shared};
use crate::ids::GroupId;
use crate::snapshot::{SnapshotAnnouncement, SnapshotError, SnapshotReceive, SnapshotWrite};

/// Takes bytes into a file whose room was set aside.
pub(super) struct Reception {
    shared: Arc<Shared>,
    announced: SnapshotAnnouncement,
    writer: Box<Writer>,
    /// What the file holds is not known.
    failed: bool,
}

impl Reception {
    /// Allocates room and begins, or continues a paused one.
    pub fn begin(
        shared: &Arc<Shared>,
        announced: SnapshotAnnouncement,
    ) -> Result<Self, SnapshotError> {
        let paused = shared.paused.take(announced.group);
        let continued = paused.filter(|paused| paused.announced == announced);
        let received = continued.as_ref().map_or(0, |paused| paused.writer.size());
        let rest = announced.size.saturating_sub(received);
        let needed = rest.saturating_add(trailer::BYTES as u64);
        let reservation = shared.room_for(announced.group, needed)?;
        let mut writer = match continued {
            Some(paused) => paused.writer,
            None => Box::new(Writer::create(shared, Name::of(&announced))?),
        };
        writer
            .allocate(needed, reservation)
            .map_err(|error| Self::no_room(shared, announced.group, needed, &error))?;
        Ok(Self { shared: Arc::clone(shared), announced, writer, failed: false })
    }

    /// Reserved room could not be allocated: another writer was quicker.
    fn no_room(shared: &Shared, group: GroupId, needed: u64, error: &io::Error) -> SnapshotError {
        let error = SnapshotError::from_io(group, "setting room aside", error);
        let available = shared.space.left().unwrap_or(0).min(needed.saturating_sub(1));
        if error.is_lack_of_space() {
            return SnapshotError::NoSpace { group, needed, available };
        }
        error
    }

    fn corrupt(&self, message: String) -> SnapshotError {
        let SnapshotAnnouncement { group, position, .. } = self.announced;
        SnapshotError::Corrupt { group, position, message }
    }

    /// Whether what came is what was announced.
    fn check(&self) -> Result<(), SnapshotError> {
        let SnapshotAnnouncement { size, crc, .. } = self.announced;
        let (came, found) = (self.writer.size(), self.writer.crc());
        if came != size {
            return Err(self.corrupt(format!("{size} bytes were announced, {came} came")));
        }
        if found != crc {
            let message = format!("checksum {crc:08x} was announced, it is {found:08x}");
            return Err(self.corrupt(message));
        }
        Ok(())
    }
}

impl SnapshotReceive for Reception {
    fn received(&self) -> u64 {
        self.writer.size()
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        if bytes.len() as u64 > self.announced.size - self.writer.size() {
            self.failed = true;
            return Err(
                self.corrupt(format!("more than the announced {} bytes", self.announced.size))
            );
        }
        let written = self.writer.write_all(bytes);
        self.failed |= written.is_err();
        written.map_err(|error| SnapshotError::from_io(self.announced.group, "writing it", &error))
    }

    fn pause(mut self: Box<Self>) -> Result<u64, SnapshotError> {
        let kept = self.writer.size();
        if self.failed || kept == 0 {
            return Ok(0);
        }
        let group = self.announced.group;
        self.writer
            .settle()
            .map_err(|error| SnapshotError::from_io(group, "pausing it", &error))?;
        let Self { shared, announced, writer, .. } = *self;
        Ok(if shared.paused.put(Paused::new(announced, writer)) { kept } else { 0 })
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotError> {
        self.check()?;
        self.writer.finish().map(|_| ())
    }
}

/// A snapshot that is there already, whole: nothing more is wanted.
pub(super) struct Present {
    pub announced: SnapshotAnnouncement,
}

impl SnapshotReceive for Present {
    fn received(&self) -> u64 {
        self.announced.size
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let SnapshotAnnouncement { group, position, size, .. } = self.announced;
        let message = format!("more than the announced {size} bytes");
        Err(SnapshotError::Corrupt { group, position, message })
    }

    fn pause(self: Box<Self>) -> Result<u64, SnapshotError> {
        Ok(self.announced.size)
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotError> {
        Ok(())
    }
}

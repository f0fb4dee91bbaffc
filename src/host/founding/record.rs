//! What a founder remembers, as a file of the data directory.
//!
//! ```text
//! <CRC-32 of the rest>
//! store <store id>
//! phase <gathering, recorded, decided or holds>
//! founders <node>,<node>
//! <node> <store id>             one line for each founder that is known
//! ```
//!
//! Numbers of stores and the checksum are hexadecimal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shardhost_storage::NodeId;

use super::decide::{Phase, Record, StoreId, list};
use shardhost_storage::replace_file;

/// Where the record of one scope is kept.
#[derive(Clone, Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
}

const PHASES: [(Phase, &str); 4] = [
    (Phase::Gathering, "gathering"),
    (Phase::Recorded, "recorded"),
    (Phase::Decided, "decided"),
    (Phase::Holds, "holds"),
];

impl RecordFile {
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the record; `None`: there is none.
    ///
    /// # Errors
    /// When it cannot be read or is damaged. It must not be taken for a missing one.
    pub fn read(&self) -> io::Result<Option<Record>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        parse(&text).map(Some).ok_or_else(|| {
            let text =
                "the record of the founding is damaged; restore the file, or replace the node";
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    /// Replaces the record. Durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written: then the old one is kept.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        replace_file(&self.path, text_of(record).as_bytes())
    }
}

fn text_of(record: &Record) -> String {
    let phase = PHASES.iter().find(|(phase, _)| *phase == record.phase).map_or("", |pair| pair.1);
    let founders = list(&record.founders).replace(' ', "");
    let stores: String =
        record.stores.iter().map(|(node, store)| format!("{node} {store}\n")).collect();
    let body = format!("store {}\nphase {phase}\nfounders {founders}\n{stores}", record.store);
    format!("{:08x}\n{body}", crc32fast::hash(body.as_bytes()))
}

fn parse(text: &str) -> Option<Record> {
    let (checksum, body) = text.split_once('\n')?;
    if checksum != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
        return None;
    }
    let store_of = |text: &str| u64::from_str_radix(text, 16).ok().map(StoreId::new);
    let node_of = |text: &str| NodeId::new(text.parse().ok()?);
    let mut lines = body.lines();
    let store = store_of(lines.next()?.strip_prefix("store ")?)?;
    let name = lines.next()?.strip_prefix("phase ")?;
    let phase = PHASES.iter().find(|pair| pair.1 == name)?.0;
    let founders = lines.next()?.strip_prefix("founders ")?;
    let founders = founders.split(',').map(node_of).collect::<Option<_>>()?;
    let pair = |line: &str| {
        let (node, store) = line.split_once(' ')?;
        Some((node_of(node)?, store_of(store)?))
    };
    let stores = lines.map(pair).collect::<Option<_>>()?;
    Some(Record { store, phase, founders, stores })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let (one, two) = (NodeId::must(1), NodeId::must(2));
        let (first, second) = (StoreId::new(0xA), StoreId::new(u64::MAX));
        Record {
            store: first,
            phase: Phase::Recorded,
            founders: [one, two].into(),
            stores: [(one, first), (two, second)].into(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_in_every_phase() {
        let directory = tempfile::tempdir().unwrap();
        let file = RecordFile::new(directory.path().join("founding"));
        assert_eq!(file.read().unwrap(), None);
        for (phase, _) in PHASES {
            let record = Record { phase, ..record() };
            file.write(&record).unwrap();
            assert_eq!(file.read().unwrap(), Some(record));
        }
    }

    #[test]
    fn a_damaged_record_is_refused_at_every_byte() {
        let directory = tempfile::tempdir().unwrap();
        let file = RecordFile::new(directory.path().join("founding"));
        file.write(&record()).unwrap();
        let whole = fs::read(file.path()).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(file.path(), &bytes).unwrap();
            assert!(file.read().unwrap_err().to_string().contains("damaged"), "{at}");
            fs::write(file.path(), &whole[..at]).unwrap();
            assert!(file.read().unwrap_err().to_string().contains("damaged"), "cut at {at}");
        }
    }
}

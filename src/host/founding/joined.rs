//! Which founding a node joined that founded nothing itself: it was added to a cluster, or lost its
//! disk. A file of the data directory, written before the first replica is created.
//!
//! ```text
//! <CRC-32 of the rest>
//! store <store id>
//! scope <system or shards>
//! founding <founding>
//! ```
//!
//! All numbers are hexadecimal.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use shardhost_groups::Groups;

use super::Scope;
use super::decide::StoreId;
use crate::transport::FoundedBy;
use shardhost_storage::replace_file;

/// The founding that this node joined.
#[derive(Debug)]
pub(super) struct Joined {
    path: PathBuf,
    store: StoreId,
    /// The content of the file that counts for this log.
    stored: Option<Stored>,
    founded: OnceLock<(Scope, FoundedBy)>,
    /// The log holds replicas: they may belong to another bootstrap than the next one reported.
    holds: AtomicBool,
    /// Held while the file is written.
    writing: Mutex<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    store: StoreId,
    scope: Scope,
    founding: u64,
}

impl Joined {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn open(path: PathBuf, store: StoreId) -> io::Result<Self> {
        let stored = read(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        // A log that was replaced since belongs to no founding.
        let stored = stored.filter(|stored| stored.store == store);
        let (founded, holds) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Self { path, store, stored, founded, holds, writing: Mutex::new(()) })
    }

    /// Publishes which bootstrap was joined, now and when one is: unless this node knows better.
    pub fn bind(&self, scope: Scope, founded: &FoundedBy) {
        if let Some(stored) = self.stored.filter(|stored| stored.scope == scope) {
            founded.learn(stored.founding);
        }
        if self.founded.set((scope, founded.clone())).is_err() {
            tracing::error!("a founding was bound twice");
        }
    }

    /// Before this node creates a replica among nodes that reported this bootstrap (0: they do not
    /// know): it joins that one, durably, if the replica is the first here and it knows of none.
    ///
    /// # Errors
    /// When it cannot be written down, or the log cannot be read: the replica must not be created.
    pub fn before_creation(&self, groups: &Groups, said: u64) -> io::Result<()> {
        let Some((scope, founded)) = self.founded.get() else { return Ok(()) };
        if said == 0 || founded.get() != 0 || self.holds(groups)? {
            return Ok(());
        }
        let _writing = self.writing.lock();
        if founded.get() == 0 {
            let stored = Stored { store: self.store, scope: *scope, founding: said };
            replace_file(&self.path, text_of(stored).as_bytes())?;
            if founded.learn(said) {
                tracing::info!(founding = format!("{said:016x}"), "this node joins a cluster");
            }
        }
        Ok(())
    }

    fn holds(&self, groups: &Groups) -> io::Result<bool> {
        if self.holds.load(Ordering::Acquire) {
            return Ok(true);
        }
        // Those that cannot be read are parked.
        let stored = groups.stored().map_err(io::Error::other)?;
        let holds = !stored.is_empty() || !groups.parked().is_empty();
        self.holds.store(holds, Ordering::Release);
        Ok(holds)
    }
}

const SCOPES: [(Scope, &str); 2] = [(Scope::System, "system"), (Scope::Shards, "shards")];

fn text_of(Stored { store, scope, founding }: Stored) -> String {
    let scope = SCOPES.iter().find(|(one, _)| *one == scope).map_or("", |pair| pair.1);
    let body = format!("store {store}\nscope {scope}\nfounding {founding:016x}\n");
    format!("{:08x}\n{body}", crc32fast::hash(body.as_bytes()))
}

fn read(path: &PathBuf) -> io::Result<Option<Stored>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse(&text).map(Some).ok_or_else(|| {
        let text = "the record of the founding that this node joined is damaged; restore the file, or \
                    replace the node";
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn parse(text: &str) -> Option<Stored> {
    let (checksum, body) = text.split_once('\n')?;
    if checksum != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut lines = body.lines();
    let store = StoreId::new(number(lines.next()?.strip_prefix("store ")?)?);
    let name = lines.next()?.strip_prefix("scope ")?;
    let scope = SCOPES.iter().find(|pair| pair.1 == name)?.0;
    let founding = number(lines.next()?.strip_prefix("founding ")?)?;
    Some(Stored { store, scope, founding })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use shardhost_groups::testing::alone::{Alone, Stateless};
    use shardhost_groups::{GroupSpec, GroupsBuilder, GroupsConfig};
    use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore, NodeId};

    use super::*;

    const STORE: StoreId = StoreId::new(0xA);

    /// One process of node 1 after the other, on one log.
    struct Process {
        joined: Joined,
        founded: FoundedBy,
        groups: Groups,
    }

    impl Process {
        fn start(path: &Path, store: StoreId, log: &Arc<MemoryStore>) -> Self {
            let joined = Joined::open(path.join("founding-joined"), store).unwrap();
            let groups = GroupsBuilder::new(GroupsConfig::new(NodeId::must(1)))
                .start(Arc::clone(log) as _, Arc::new(MemorySnapshots::new()), Arc::new(Alone))
                .unwrap();
            let founded = FoundedBy::default();
            joined.bind(Scope::Shards, &founded);
            Self { joined, founded, groups }
        }

        fn hears(&self, said: u64) -> u64 {
            self.joined.before_creation(&self.groups, said).unwrap();
            self.founded.get()
        }

        fn holds_a_group(&self) {
            let spec = GroupSpec::new(GroupId::new(7), (1..=3).map(NodeId::must));
            self.groups.create(spec, Box::new(Stateless)).unwrap();
        }

        fn end(self) {
            self.groups.shutdown();
        }
    }

    #[test]
    fn a_node_with_nothing_joins_the_first_founding_that_is_said_and_stays_with_it() {
        let (directory, log) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
        let first = Process::start(directory.path(), STORE, &log);
        assert_eq!(first.hears(0), 0);
        assert_eq!(first.hears(5), 5);
        assert_eq!(first.hears(9), 5);
        first.holds_a_group();
        first.end();
        let later = Process::start(directory.path(), STORE, &log);
        assert_eq!((later.founded.get(), later.hears(9)), (5, 5));
        later.end();
        // The log was lost, and with it what it belonged to.
        let emptied = Process::start(directory.path(), StoreId::new(0xB), &Arc::default());
        assert_eq!(emptied.hears(9), 9);
        emptied.end();
    }

    #[test]
    fn a_node_that_holds_replicas_of_an_unknown_founding_joins_none() {
        let (directory, log) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
        let older = Process::start(directory.path(), STORE, &log);
        older.holds_a_group();
        assert_eq!(older.hears(5), 0);
        older.end();
    }

    #[test]
    fn what_the_node_knows_of_itself_or_of_another_scope_is_not_replaced() {
        let (directory, log) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
        let first = Process::start(directory.path(), STORE, &log);
        assert_eq!(first.hears(5), 5);
        first.end();
        let joined = Joined::open(directory.path().join("founding-joined"), STORE).unwrap();
        let (founder, other) = (FoundedBy::default(), FoundedBy::default());
        founder.set(7);
        joined.bind(Scope::Shards, &founder);
        assert_eq!(founder.get(), 7);
        joined.bind(Scope::System, &other);
        assert_eq!(other.get(), 0);
    }

    #[test]
    fn a_damaged_file_is_refused_at_every_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("founding-joined");
        let stored = Stored { store: STORE, scope: Scope::System, founding: 5 };
        let whole = text_of(stored).into_bytes();
        assert_eq!(parse(&text_of(stored)), Some(stored));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let refused = Joined::open(path.clone(), STORE).unwrap_err().to_string();
            assert!(refused.contains("damaged") && refused.contains("founding-joined"), "{at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(Joined::open(path.clone(), STORE).is_err(), "cut at {at}");
        }
    }
}

//! What a host remembers of the starts of nodes, and what it does when its own data directory turns
//! out to be an older copy.

use std::io;
use std::sync::OnceLock;

use parking_lot::Mutex;
use shardhost_groups::Groups;
use shardhost_storage::{Certainty, Doubt, GroupWrite, LogBatch, LogError, LogStore, NodeId};

use crate::data_dir::addresses::PeerAddresses;
use crate::data_dir::peers::PeerStarts;
use crate::data_dir::{DataDir, RollbackNote};
use crate::transport::{IncarnationMemory, Rollback};

/// The memory of one host.
#[derive(Debug)]
pub(super) struct HostMemory {
    peers: PeerStarts,
    addresses: PeerAddresses,
    note: RollbackNote,
    /// Set before any message of a peer is taken.
    groups: OnceLock<Groups>,
    /// Held while the replicas are notified.
    noticed: Mutex<Noticed>,
}

/// Starts that peers reported and the data directory does not know.
#[derive(Debug)]
struct Noticed {
    /// The latest lost start that the replicas know of, through any process; 0: none.
    told: u64,
    /// The first peer's report, if there were replicas to notify. A node that lost its disk has
    /// none.
    rollback: Option<Rollback>,
}

impl HostMemory {
    /// Reads the notes; an earlier process may have died while its replicas were notified.
    pub fn open(data_dir: &DataDir, store: &dyn LogStore) -> io::Result<Self> {
        let note = data_dir.rollback_note();
        if note.exists() {
            // Which of the two it was is noted already, unless an earlier version wrote the note.
            if !note.disk_was_lost() {
                note.mark_rolled_back("an earlier process did not come to tell its replicas\n")?;
            }
            raise_doubt(store).map_err(io::Error::other)?;
            note.remove()?;
        }
        let peers = PeerStarts::open(data_dir.peers_path())?;
        let addresses = PeerAddresses::open(data_dir.addresses_path());
        let noticed = Noticed { told: note.told_through()?, rollback: None };
        let noticed = Mutex::new(noticed);
        Ok(Self { peers, addresses, note, groups: OnceLock::new(), noticed })
    }

    pub fn bind(&self, groups: Groups) {
        if self.note.was_rolled_back() {
            groups.doubt_creations(Doubt::RolledBack);
        }
        if self.note.disk_was_lost() {
            groups.disk_was_lost();
        }
        if self.groups.set(groups).is_err() {
            tracing::error!("a host was bound to its groups twice");
        }
    }

    pub fn rollback(&self) -> Option<Rollback> {
        self.noticed.lock().rollback
    }
}

impl IncarnationMemory for HostMemory {
    fn newest(&self, node: NodeId) -> u64 {
        self.peers.newest(node)
    }

    fn saw(&self, node: NodeId, incarnation: u64) -> io::Result<()> {
        self.peers.saw(node, incarnation)
    }

    fn moved_to(&self, node: NodeId) -> Option<String> {
        self.addresses.of(node)
    }

    fn found(&self, node: NodeId, address: Option<&str>) -> io::Result<()> {
        self.addresses.found(node, address)
    }

    fn rolled_back(&self, rollback: Rollback) -> io::Result<()> {
        let mut noticed = self.noticed.lock();
        if rollback.known <= noticed.told {
            return Ok(());
        }
        let groups = self.groups.get().ok_or_else(|| io::Error::other("the groups do not run"))?;
        let Rollback { by, known, held } = rollback;
        let text = format!("node {by} knows {known}, the directory {held}\n");
        self.note.write(&text)?;
        // A directory that knows no earlier start, or only some that were lost with a disk, is a new one.
        // Another is an older copy, and any replica may have been here.
        let only_lost = held <= noticed.told && self.note.disk_was_lost();
        if held == 0 || (only_lost && !self.note.was_rolled_back()) {
            self.note.mark_disk_lost(&text)?;
            groups.disk_was_lost();
        } else {
            self.note.mark_rolled_back(&text)?;
            groups.doubt_creations(Doubt::RolledBack);
        }
        let replicas = groups.raise_doubt(Doubt::RolledBack).map_err(io::Error::other)?;
        self.note.settle(known)?;
        noticed.told = known;
        if replicas == 0 {
            tracing::info!(%by, known, "a peer knows this node from another data directory");
            return Ok(());
        }
        noticed.rollback = Some(rollback);
        tracing::error!(%by, known, held, replicas,
            "the data directory does not know what a peer knows of this node: it was put back from a copy, or \
             is a new one. Its replicas take part in no election before enough of their peers have said \
             what they hold; `shardhost member replace` gives a group a replica elsewhere. If peers \
             refuse this start as an older one, the clock went back too: start the node once more");
        Ok(())
    }
}

/// Notes beside every replica in the log that it may have lost something.
fn raise_doubt(store: &dyn LogStore) -> Result<usize, LogError> {
    let certainty = Some(Certainty::InDoubt(Doubt::RolledBack));
    let groups = store.groups()?.into_iter();
    // A damaged replica takes part in nothing.
    let groups = groups.filter(|group| matches!(store.load(*group), Ok(Some(_))));
    let writes: Vec<_> =
        groups.map(|group| GroupWrite { certainty, ..GroupWrite::new(group) }).collect();
    let count = writes.len();
    store.write(&LogBatch { writes })?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use shardhost_groups::testing::alone::{Alone, Stateless};
    use shardhost_groups::{GroupSpec, GroupsBuilder, GroupsConfig};
    use shardhost_storage::{GroupId, MemorySnapshots, MemoryStore};

    use super::*;

    /// One process of node 1 after the other, on one log.
    struct Process {
        directory: DataDir,
        memory: HostMemory,
        groups: Groups,
        store: Arc<MemoryStore>,
    }

    impl Process {
        fn start(path: &Path, store: &Arc<MemoryStore>) -> Self {
            let directory = DataDir::open(path).unwrap();
            let memory = HostMemory::open(&directory, &**store).unwrap();
            let groups = GroupsBuilder::new(GroupsConfig::new(NodeId::must(1)))
                .start(Arc::clone(store) as _, Arc::new(MemorySnapshots::new()), Arc::new(Alone))
                .unwrap();
            memory.bind(groups.clone());
            Self { directory, memory, groups, store: Arc::clone(store) }
        }

        fn hears(&self, known: u64) {
            let starts = self.directory.earlier_starts().iter().copied();
            let held = starts.into_iter().find(|start| *start < known).unwrap_or(0);
            self.memory.rolled_back(Rollback { by: NodeId::must(2), known, held }).unwrap();
        }

        /// Creates a group of three; whether its replica is in doubt.
        fn doubts(&self, group: u64, of: impl FnOnce(GroupSpec) -> GroupSpec) -> bool {
            let spec = of(GroupSpec::new(GroupId::new(group), (1..=3).map(NodeId::must)));
            self.groups.create(spec, Box::new(Stateless)).unwrap();
            self.is_in_doubt(group)
        }

        fn is_in_doubt(&self, group: u64) -> bool {
            self.store.load(GroupId::new(group)).unwrap().unwrap().certainty.is_in_doubt()
        }

        fn end(self) {
            self.groups.shutdown();
        }
    }

    const fn as_is(spec: GroupSpec) -> GroupSpec {
        spec
    }

    #[test]
    fn a_directory_that_was_put_back_doubts_what_is_created_there_in_every_process() {
        let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
        let first = Process::start(directory.path(), &store);
        assert!(!first.doubts(1, as_is));
        first.end();
        let told = Process::start(directory.path(), &store);
        told.hears(LATER);
        assert!(told.is_in_doubt(1));
        assert!(told.doubts(2, GroupSpec::on_known_disk));
        told.end();
        let later = Process::start(directory.path(), &store);
        assert!(later.doubts(3, GroupSpec::on_known_disk));
        assert!(later.memory.rollback().is_none());
        later.end();
    }

    #[test]
    fn a_new_directory_of_a_known_node_doubts_what_was_founded_on_another_disk() {
        let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
        let told = Process::start(directory.path(), &store);
        told.hears(LATER);
        assert!(told.doubts(1, as_is));
        assert!(!told.doubts(2, GroupSpec::on_known_disk));
        assert!(told.memory.rollback().is_none());
        told.end();
        let later = Process::start(directory.path(), &store);
        assert!(later.doubts(3, as_is));
        assert!(!later.doubts(4, GroupSpec::on_known_disk));
        later.end();
    }

    /// It was started once before, and no peer answered then.
    #[test]
    fn a_new_directory_that_was_started_before_is_still_a_new_one() {
        let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
        Process::start(directory.path(), &store).end();
        let told = Process::start(directory.path(), &store);
        assert!(!told.doubts(1, as_is));
        told.hears(1);
        assert!(told.is_in_doubt(1), "created by hand before the peer said it");
        assert!(told.doubts(2, as_is));
        assert!(!told.doubts(3, GroupSpec::on_known_disk));
        told.end();
    }

    /// Starts that were lost together are reported one by one, also to later processes.
    #[test]
    fn a_replica_hears_once_of_the_starts_that_were_lost_together() {
        let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
        Process::start(directory.path(), &store).end();
        let told = Process::start(directory.path(), &store);
        assert!(!told.doubts(1, as_is));
        told.hears(LATER);
        told.hears(LATER - 1);
        told.end();
        settle(&store, 1);
        let later = Process::start(directory.path(), &store);
        later.hears(LATER - 2);
        assert!(!later.is_in_doubt(1));
        later.hears(LATER + 1);
        assert!(later.is_in_doubt(1));
        later.end();
    }

    /// Later than any clock today, and possible.
    const LATER: u64 = crate::data_dir::LATEST_START - 10;

    fn settle(store: &MemoryStore, group: u64) {
        let sure =
            GroupWrite { certainty: Some(Certainty::Sure), ..GroupWrite::new(GroupId::new(group)) };
        store.write(&LogBatch { writes: vec![sure] }).unwrap();
    }
}

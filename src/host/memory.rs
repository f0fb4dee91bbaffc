//! What a host remembers of the starts of nodes, and what it does when its own data directory turns
//! out to be an older copy.

use std::io;
use std::sync::OnceLock;

use parking_lot::Mutex;
use shardhost_groups::Groups;
use shardhost_storage::{Certainty, Doubt, GroupWrite, LogBatch, LogError, LogStore, NodeId};

use crate::data_dir::peers::PeerStarts;
use crate::data_dir::{DataDir, RollbackNote};
use crate::transport::{IncarnationMemory, Rollback};

/// The memory of one host.
#[derive(Debug)]
pub(super) struct HostMemory {
    peers: PeerStarts,
    note: RollbackNote,
    /// Set before any peer is heard.
    groups: OnceLock<Groups>,
    /// Held while the replicas are told.
    noticed: Mutex<Noticed>,
}

/// What peers said that the data directory does not know.
#[derive(Debug, Default)]
struct Noticed {
    /// The latest lost start of which the replicas were told; 0: none.
    told: u64,
    /// What the first peer said, if there were replicas to tell. A node that lost its disk has none.
    rollback: Option<Rollback>,
}

impl HostMemory {
    /// Reads what was kept; an earlier process may have died while its replicas were told.
    pub fn open(data_dir: &DataDir, store: &dyn LogStore) -> io::Result<Self> {
        let note = data_dir.rollback_note();
        if note.exists() {
            let replicas = raise_doubt(store).map_err(io::Error::other)?;
            if replicas > 0 {
                note.mark_rolled_back("an earlier process did not come to tell its replicas\n")?;
            }
            note.remove()?;
        }
        let peers = PeerStarts::open(data_dir.peers_path())?;
        Ok(Self { peers, note, groups: OnceLock::new(), noticed: Mutex::default() })
    }

    pub fn bind(&self, groups: Groups) {
        if self.note.was_rolled_back() {
            groups.doubt_creations(Doubt::RolledBack);
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

    fn rolled_back(&self, rollback: Rollback) -> io::Result<()> {
        let mut noticed = self.noticed.lock();
        if rollback.known <= noticed.told {
            return Ok(());
        }
        let groups = self.groups.get().ok_or_else(|| io::Error::other("the groups do not run"))?;
        let Rollback { by, known, held } = rollback;
        let text = format!("node {by} knows {known}, the directory {held}\n");
        self.note.write(&text)?;
        let replicas = groups.raise_doubt(Doubt::RolledBack).map_err(io::Error::other)?;
        if replicas > 0 {
            self.note.mark_rolled_back(&text)?;
        }
        self.note.settle(known)?;
        noticed.told = known;
        if replicas == 0 {
            tracing::info!(%by, known, "a peer knows this node from another data directory");
            return Ok(());
        }
        noticed.rollback = Some(rollback);
        tracing::error!(%by, known, held, replicas,
            "the data directory is older than what a peer knows of this node: it was put back from \
             a copy. Its replicas take part in no election before enough of their peers have said \
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

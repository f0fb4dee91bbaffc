//! Which starts of its peers a node has seen, kept over its own restarts.
//!
//! A file of lines, written anew whenever a peer was started: `<checksum>` and behind it
//! `<node> <incarnation>` for each peer.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use parking_lot::Mutex;
use shardhost_storage::NodeId;

use super::LATEST_START;
use super::lines::{parse, text_of};

/// The newest incarnation of each peer that was seen, none above [`LATEST_START`].
#[derive(Debug)]
pub struct PeerStarts {
    path: PathBuf,
    newest: Mutex<BTreeMap<NodeId, u64>>,
}

impl PeerStarts {
    /// Reads what was kept.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged. It must not be taken for an empty one.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let mut newest = match fs::read_to_string(&path) {
            Ok(text) => parse(&text).ok_or_else(|| {
                let text = format!("{} is damaged", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        newest.retain(|node, start| {
            let possible = *start <= LATEST_START;
            if !possible {
                tracing::warn!(%node, start, "forgot a start of a peer that no clock can say");
            }
            possible
        });
        Ok(Self { path, newest: Mutex::new(newest) })
    }

    /// The newest incarnation of a peer; 0: it was never seen.
    pub fn newest(&self, node: NodeId) -> u64 {
        self.newest.lock().get(&node).copied().unwrap_or(0)
    }

    /// A peer was seen. Durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written; it is not remembered then.
    pub fn saw(&self, node: NodeId, incarnation: u64) -> io::Result<()> {
        let mut newest = self.newest.lock();
        if newest.get(&node).is_some_and(|known| *known >= incarnation) {
            return Ok(());
        }
        let mut then = newest.clone();
        then.insert(node, incarnation);
        shardhost_storage::replace_file(&self.path, text_of(&then).as_bytes())?;
        *newest = then;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_start_of_a_peer_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers");
        let (two, three) = (NodeId::must(2), NodeId::must(3));
        let peers = PeerStarts::open(path.clone()).unwrap();
        assert_eq!(peers.newest(two), 0);
        for (node, incarnation) in [(two, 7), (three, 9), (two, 8), (two, 5)] {
            peers.saw(node, incarnation).unwrap();
        }
        for peers in [peers, PeerStarts::open(path).unwrap()] {
            assert_eq!((peers.newest(two), peers.newest(three)), (8, 9));
        }
    }

    #[test]
    fn a_start_that_no_clock_can_say_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers");
        let peers = PeerStarts::open(path.clone()).unwrap();
        peers.saw(NodeId::must(2), u64::MAX).unwrap();
        peers.saw(NodeId::must(3), 7).unwrap();
        let peers = PeerStarts::open(path).unwrap();
        assert_eq!((peers.newest(NodeId::must(2)), peers.newest(NodeId::must(3))), (0, 7));
    }

    #[test]
    fn a_damaged_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers");
        PeerStarts::open(path.clone()).unwrap().saw(NodeId::must(2), 7).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let refused = PeerStarts::open(path.clone()).unwrap_err();
            assert!(refused.to_string().contains("peers"), "{at}: {refused}");
        }
    }
}

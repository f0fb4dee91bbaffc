//! Where nodes were found that are not where the configuration says, kept over the restarts of this node:
//! of two nodes that moved, the one that was restarted later would not know where the other one is.
//!
//! A file of lines, as that of the starts of peers: `<checksum>` and behind it `<node> <address>`. Without
//! it a node is looked for where the configuration says, so a damaged one is forgotten.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use shardhost_storage::NodeId;

use super::lines::{parse, text_of};

/// The address of each peer that moved, as its greeting named it and as it was reached there.
#[derive(Debug)]
pub struct PeerAddresses {
    path: PathBuf,
    found: Mutex<BTreeMap<NodeId, String>>,
}

impl PeerAddresses {
    /// Reads what was kept. What cannot be read is forgotten: peers name their addresses again.
    pub fn open(path: PathBuf) -> Self {
        let found = match read(&path) {
            Ok(bytes) => std::str::from_utf8(&bytes).ok().and_then(parse).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "forgot where peers were found: it is damaged");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "forgot where peers were found");
                BTreeMap::new()
            }
        };
        Self { path, found: Mutex::new(found) }
    }

    /// Where a peer was found last; `None`: where the configuration says, or never.
    pub fn of(&self, node: NodeId) -> Option<String> {
        self.found.lock().get(&node).cloned()
    }

    /// Where each peer was found.
    pub fn all(&self) -> BTreeMap<NodeId, String> {
        self.found.lock().clone()
    }

    /// A peer was found there; `None`: where the configuration says. Durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written; it is not remembered then.
    pub fn found(&self, node: NodeId, address: Option<&str>) -> io::Result<()> {
        let mut found = self.found.lock();
        if found.get(&node).map(String::as_str) == address {
            return Ok(());
        }
        let mut then = found.clone();
        match address {
            Some(address) => then.insert(node, address.to_owned()),
            None => then.remove(&node),
        };
        shardhost_storage::replace_file(&self.path, text_of(&then).as_bytes())?;
        *found = then;
        Ok(())
    }
}

/// A longer file is cut, and damaged therefore.
const MAX_BYTES: u64 = 1 << 20;

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_peer_was_found_is_kept_until_it_is_where_it_should_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("addresses");
        let (two, three) = (NodeId::must(2), NodeId::must(3));
        let peers = PeerAddresses::open(path.clone());
        peers.found(three, None).unwrap();
        assert!(!path.exists(), "there is nothing to keep");
        for (node, address) in [(two, "b:1"), (three, "[::1]:7"), (two, "b:2")] {
            peers.found(node, Some(address)).unwrap();
        }
        for peers in [peers, PeerAddresses::open(path.clone())] {
            assert_eq!(peers.of(two).as_deref(), Some("b:2"));
            peers.found(three, None).unwrap();
        }
        assert_eq!(PeerAddresses::open(path).of(three), None);
    }

    #[test]
    fn a_damaged_file_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("addresses");
        let two = NodeId::must(2);
        PeerAddresses::open(path.clone()).found(two, Some("b:1")).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let peers = PeerAddresses::open(path.clone());
            assert_eq!(peers.of(two), None, "{at}");
        }
        PeerAddresses::open(path.clone()).found(two, Some("b:2")).unwrap();
        assert_eq!(PeerAddresses::open(path).of(two).as_deref(), Some("b:2"));
    }

    #[test]
    fn one_that_cannot_be_read_keeps_no_node_from_starting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("addresses");
        fs::create_dir(&path).unwrap();
        assert_eq!(PeerAddresses::open(path).of(NodeId::must(2)), None);
    }
}

//! The identity file: whose store this is, and how far its log is known to have come.
//!
//! It is beside the database and not in it, because it has to notice when the database lost
//! something. It is renewed when the log has grown by some megabytes, not per write: between two
//! renewals its numbers lag behind. They lead only when the database lost something.
//!
//! ```text
//! magic, 8 bytes | CRC-32 of the rest, 4 | flags, 1 | sequence, 8 | log file, 8
//!     | boot id, 16, if the flags say so | StoreIdentity
//! ```

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use bytes::{Buf, BufMut};
use prost::Message;
use shardhost_proto::log::StoreIdentity;
use shardhost_proto::version::ClusterVersion;

use super::boot::BootId;
use crate::ids::NodeId;
use crate::store::{LogError, store_id};
use crate::types::{Certainty, Doubt};

const NAME: &str = "identity";
pub(super) const TEMPORARY_NAME: &str = "identity.tmp";
const MAGIC: &[u8; 8] = b"shardlog";

/// Flag: the store was finished.
const READY: u8 = 1;
/// Flag: the boot id follows.
const BOOT: u8 = 2;
/// Flag: a tail was cut that may have been acknowledged, and not every replica knows it yet.
const IN_DOUBT: u8 = 4;

/// Whose log a store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: String,
    pub node: NodeId,
}

impl Identity {
    /// The identity of a store that is being created, which programs open that know this version.
    pub(super) fn new_store(&self, version: ClusterVersion) -> StoreIdentity {
        StoreIdentity {
            format: version.get(),
            cluster: self.cluster.clone(),
            node: self.node.get(),
            store: store_id(),
        }
    }

    /// Whether a store would be ours but for the name of the cluster.
    pub(super) fn differs_by_cluster_alone(&self, found: &StoreIdentity) -> bool {
        found.node == self.node.get() && ClusterVersion::new(found.format).is_known()
    }

    /// Checks that a store is ours, and that this program knows what may be in it.
    pub(super) fn check(&self, found: &StoreIdentity, path: &Path) -> Result<(), LogError> {
        let path = || path.display().to_string();
        if found.cluster != self.cluster || found.node != self.node.get() {
            let (found, expected) = (describe(found), self.to_string());
            return Err(LogError::Foreign { path: path(), found, expected });
        }
        match ClusterVersion::new(found.format) {
            version if version.is_known() => Ok(()),
            version => Err(LogError::NewerVersion { path: path(), version }),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, node } = self;
        write!(f, "the log of node {node} of cluster {cluster:?}")
    }
}

/// How far the creation of a store has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It was begun. Nothing in the database was ever acknowledged.
    Creating,
    Ready,
}

/// The content of the identity file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct IdentityFile {
    pub stage: Stage,
    /// The database's sequence number: it never falls, except for a tail that is cut in doubt.
    pub sequence: u64,
    /// Number of the log file that was written: this one or a later one always exists.
    pub log_file: u64,
    /// The run of the machine in which the log file was begun; `None`: not known.
    pub boot: Option<BootId>,
    /// Whether the part that was cut from the log may have been acknowledged. Written before it is
    /// cut, and removed when every replica has a note.
    pub certainty: Certainty,
    pub identity: StoreIdentity,
}

impl IdentityFile {
    /// Reads the file in `directory`; `None` when there is none.
    pub fn read(directory: &Path) -> Result<Option<Self>, LogError> {
        let path = directory.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading the identity file", &error)),
        };
        let corrupt = |message: &str| LogError::Corrupt {
            place: path.display().to_string(),
            message: message.to_owned(),
        };
        Self::decode(&bytes).map(Some).map_err(corrupt)
    }

    /// Replaces the file in `directory`, durably: a crash leaves the old or the new one.
    pub fn write(&self, directory: &Path) -> Result<(), LogError> {
        self.replace(directory).map_err(|error| io_error("renewing the identity file", &error))
    }

    fn replace(&self, directory: &Path) -> io::Result<()> {
        let temporary = directory.join(TEMPORARY_NAME);
        let mut file = File::create(&temporary)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&temporary, directory.join(NAME))?;
        File::open(directory)?.sync_all()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut rest = vec![self.flags()];
        rest.put_u64(self.sequence);
        rest.put_u64(self.log_file);
        if let Some(boot) = self.boot {
            rest.put_u128(boot.get());
        }
        self.identity.encode_raw(&mut rest);
        Self::sealed(&rest)
    }

    /// The file with this content behind its checksum.
    pub(super) fn sealed(rest: &[u8]) -> Vec<u8> {
        [MAGIC.as_slice(), &crc32fast::hash(rest).to_be_bytes(), rest].concat()
    }

    fn flags(&self) -> u8 {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        flag(self.stage == Stage::Ready, READY)
            | flag(self.boot.is_some(), BOOT)
            | flag(self.certainty.is_in_doubt(), IN_DOUBT)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("it is not an identity file")?;
        let (crc, mut rest) = rest.split_first_chunk::<4>().ok_or("it is cut short")?;
        if u32::from_be_bytes(*crc) != crc32fast::hash(rest) {
            return Err("its checksum is wrong");
        }
        let flags = rest.try_get_u8().map_err(|_| "it is cut short")?;
        let sequence = rest.try_get_u64().map_err(|_| "it is cut short")?;
        let log_file = rest.try_get_u64().map_err(|_| "it is cut short")?;
        let boot = match flags & BOOT {
            0 => None,
            _ => BootId::new(rest.try_get_u128().map_err(|_| "it is cut short")?),
        };
        let stage = if flags & READY == 0 { Stage::Creating } else { Stage::Ready };
        let certainty = match flags & IN_DOUBT {
            0 => Certainty::Sure,
            _ => Certainty::InDoubt(Doubt::TornTail),
        };
        let identity = StoreIdentity::decode(rest).map_err(|_| "it holds no identity")?;
        Ok(Self { stage, sequence, log_file, boot, certainty, identity })
    }
}

/// Whether a name in the store's directory is one of this file's.
pub(super) fn is_name(name: &str) -> bool {
    [NAME, TEMPORARY_NAME].contains(&name)
}

pub(super) fn describe(identity: &StoreIdentity) -> String {
    let StoreIdentity { cluster, node, .. } = identity;
    format!("the log of node {node} of cluster {cluster:?}")
}

pub(super) fn io_error(action: &'static str, error: &io::Error) -> LogError {
    LogError::Io { action, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Identity {
        Identity { cluster: "north".to_owned(), node: NodeId::must(3) }
    }

    fn file() -> IdentityFile {
        let identity = ours().new_store(ClusterVersion::NEWEST);
        let (boot, certainty) = (BootId::new(5), Certainty::Sure);
        let (sequence, log_file) = (70_000, 12);
        IdentityFile { stage: Stage::Ready, sequence, log_file, boot, certainty, identity }
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(IdentityFile::read(dir.path()), Ok(None));
        let doubt = Certainty::InDoubt(Doubt::TornTail);
        for (stage, boot, certainty) in [
            (Stage::Creating, BootId::new(5), Certainty::Sure),
            (Stage::Ready, BootId::new(u128::MAX), doubt),
            (Stage::Ready, None, Certainty::Sure),
        ] {
            let file = IdentityFile { stage, boot, certainty, ..file() };
            file.write(dir.path()).expect("written");
            assert_eq!(IdentityFile::read(dir.path()), Ok(Some(file)));
        }
    }

    #[test]
    fn a_damaged_file_is_corrupt_and_never_taken_for_a_missing_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = file().encode();
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        let flipped = (0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            bytes
        });
        for bytes in cut.chain(flipped) {
            fs::write(dir.path().join(NAME), &bytes).expect("written");
            let read = IdentityFile::read(dir.path());
            assert!(matches!(read, Err(LogError::Corrupt { .. })), "{read:?}");
        }
    }

    #[test]
    fn a_store_of_another_cluster_or_node_is_foreign_and_both_sides_are_named() {
        let store = ours().new_store(ClusterVersion::NEWEST);
        let path = Path::new("/data/log");
        assert_eq!(ours().check(&store, path), Ok(()));
        let others = [
            (StoreIdentity { cluster: "south".to_owned(), ..store.clone() }, "\"south\""),
            (StoreIdentity { node: 4, ..store.clone() }, "node 4"),
        ];
        for (other, word) in others {
            let refused = ours().check(&other, path).expect_err("foreign").to_string();
            for word in [word, "node 3 of cluster \"north\"", "/data/log"] {
                assert!(refused.contains(word), "{refused}");
            }
        }
    }

    #[test]
    fn a_store_of_a_later_version_is_refused_with_both_and_every_earlier_one_is_ours() {
        let path = Path::new("/data/log");
        for number in 0..=ClusterVersion::NEWEST.get() {
            let store = StoreIdentity { format: number, ..ours().new_store(ClusterVersion::FIRST) };
            assert_eq!(ours().check(&store, path), Ok(()), "{number}");
        }
        let format = ClusterVersion::NEWEST.get() + 1;
        let store = StoreIdentity { format, ..ours().new_store(ClusterVersion::FIRST) };
        let refused = ours().check(&store, path).expect_err("later").to_string();
        for word in [format.to_string(), ClusterVersion::NEWEST.to_string(), "/data/log".to_owned()]
        {
            assert!(refused.contains(&word), "{refused}");
        }
    }

    #[test]
    fn two_new_stores_differ() {
        assert_ne!(
            ours().new_store(ClusterVersion::NEWEST).store,
            ours().new_store(ClusterVersion::NEWEST).store
        );
    }
}

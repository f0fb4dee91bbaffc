//! Opens a store, or refuses to with the cause.
//!
//! ```text
//! lock       held while the store is open
//! identity   whose store it is and how far it has come
//! db/        RocksDB
//! ```
//!
//! Order matters, because a look must not destroy what it looks for: first whose directory it
//! is, then what the write-ahead log looks like, and only then RocksDB, which rewrites that log.
//! Before it cuts anything, RocksDB only reads (see [`Opening::look`]): a store that does not open
//! keeps all of its log.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use prost::Message;
use rocksdb::{ColumnFamilyDescriptor, DB, DBRecoveryMode, WriteOptions};
use rustix::fs::{FlockOperation, flock};
use shardhost_proto::log::StoreIdentity;
use shardhost_proto::version::ClusterVersion;

use super::identity::{self, Identity, IdentityFile, Stage, describe, io_error};
use super::wal::{self, TailShape, WalDamage, WalPlace, WalState};
use super::{BootId, RocksOptions, database_error, keys, recovery};
use crate::directory::create_directory;
use crate::store::LogError;
use crate::types::{Certainty, Doubt};

const LOCK: &str = "lock";
const DATABASE: &str = "db";
const FAMILIES: [&str; 3] = [rocksdb::DEFAULT_COLUMN_FAMILY_NAME, keys::REPLICAS, keys::LOG];
/// RocksDB's text when another process, such as one of its tools, holds the database.
const LOCK_WORDS: [&str; 2] = ["While lock file", "lock hold by"];
/// What a file system may put into the root directory of an otherwise empty disk.
const LOST_AND_FOUND: &str = "lost+found";

/// The directory of an open store.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    identity: StoreIdentity,
    boot: Option<BootId>,
    /// The number of the version that a program must know.
    version: AtomicU32,
    /// Locked until it is closed.
    _lock: File,
}

impl Directory {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens or creates the store in `path`. Whether something was cut from its log that may have
    /// been acknowledged is asked again at every opening until [`renew`](Self::renew) is called.
    pub fn open(
        path: &Path,
        identity: &Identity,
        options: &RocksOptions,
    ) -> Result<(Self, DB, Certainty), LogError> {
        create_directory(path).map_err(|error| io_error("creating the directory", &error))?;
        let lock = lock(path)?;
        let mut file = IdentityFile::read(path)?;
        let opening = Opening { path, database: path.join(DATABASE), options };
        if let Some(file) = &mut file
            && let Err(foreign) = identity.check(&file.identity, path)
        {
            if !identity.differs_by_cluster_alone(&file.identity) || !opening.is_unused(file) {
                return Err(foreign);
            }
            tracing::warn!(
                found = describe(&file.identity),
                cluster = identity.cluster,
                "the log was begun for a cluster of another name and never held anything: it is begun anew"
            );
            file.stage = Stage::Creating;
            file.identity.cluster.clone_from(&identity.cluster);
        }
        let present = opening.database.join("CURRENT").exists();
        let Opened { identity, database, certainty } = match (file, present) {
            (Some(file), true) if file.stage == Stage::Ready => opening.existing(file)?,
            (Some(file), false) if file.stage == Stage::Ready => {
                return Err(lost(&opening.database, "the database is gone"));
            }
            (Some(begun), _) => opening.create(begun.identity)?,
            (None, _) => {
                opening.check_empty()?;
                opening.create(identity.new_store(options.version))?
            }
        };
        let (path, boot) = (path.to_owned(), options.boot);
        let version = AtomicU32::new(identity.format);
        let directory = Self { path, identity, boot, version, _lock: lock };
        Ok((directory, database, certainty))
    }

    /// Which store it is.
    pub const fn store_id(&self) -> u64 {
        self.identity.store
    }

    /// Notes in the identity file how far the log has come, that it is written in this run of the
    /// machine, and that every replica knows of what may be missing.
    pub fn renew(&self, database: &DB) -> Result<(), LogError> {
        self.write_identity(database, self.version())
    }

    fn write_identity(&self, database: &DB, version: ClusterVersion) -> Result<(), LogError> {
        let files = wal::files(&self.path.join(DATABASE))
            .map_err(|error| io_error("listing the log files", &error))?;
        let file = IdentityFile {
            stage: Stage::Ready,
            sequence: database.latest_sequence_number(),
            log_file: files.last().map_or(0, |(number, _)| *number),
            boot: self.boot,
            certainty: Certainty::Sure,
            identity: StoreIdentity { format: version.get(), ..self.identity.clone() },
        };
        file.write(&self.path)
    }

    /// The version that a program must know to open the store.
    pub fn version(&self) -> ClusterVersion {
        ClusterVersion::new(self.version.load(Ordering::Relaxed))
    }

    /// Raises it, durably. Only the identity file has it: it is read before anything else. Called by one
    /// thread at a time.
    pub fn raise_version(&self, version: ClusterVersion, database: &DB) -> Result<(), LogError> {
        if version > self.version() {
            self.write_identity(database, version)?;
            // Not before it is durable: others count on it.
            self.version.store(version.get(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// An attempt to open a store.
struct Opening<'a> {
    path: &'a Path,
    database: PathBuf,
    options: &'a RocksOptions,
}

/// A database that was opened.
struct Opened {
    identity: StoreIdentity,
    database: DB,
    certainty: Certainty,
}

impl Opening<'_> {
    fn check_empty(&self) -> Result<(), LogError> {
        if self.database.exists() {
            return Err(lost(self.path, "the identity file beside the database is gone"));
        }
        let entries = fs::read_dir(self.path);
        for entry in entries.map_err(|error| io_error("listing the directory", &error))? {
            let name =
                entry.map_err(|error| io_error("listing the directory", &error))?.file_name();
            let name = name.to_string_lossy();
            if name != LOCK && name != LOST_AND_FOUND && !identity::is_name(&name) {
                let path = self.path.display().to_string();
                let (found, expected) =
                    (format!("{name:?}"), "to start in an empty one".to_owned());
                return Err(LogError::Foreign { path, found, expected });
            }
        }
        Ok(())
    }

    /// Whether nothing was ever written to a store: then whose it is may still be corrected. Looks
    /// without changing anything; what cannot be looked at may hold something.
    fn is_unused(&self, file: &IdentityFile) -> bool {
        if file.stage == Stage::Creating {
            return true;
        }
        let options = self.options.database(DBRecoveryMode::AbsoluteConsistency);
        let opened = DB::open_cf_for_read_only(&options, &self.database, FAMILIES, false);
        opened.is_ok_and(|database| {
            // One that lost what it held was used.
            let whole = database.latest_sequence_number() >= file.sequence;
            whole
                && [keys::REPLICAS, keys::LOG].into_iter().all(|name| {
                    database.cf_handle(name).is_some_and(|family| {
                        let mut records = database.raw_iterator_cf(family);
                        records.seek_to_first();
                        !records.valid() && records.status().is_ok()
                    })
                })
        })
    }

    /// Creates the store. When it was begun before, it starts over: nothing was ever
    /// acknowledged from it.
    fn create(&self, identity: StoreIdentity) -> Result<Opened, LogError> {
        let begun = IdentityFile {
            stage: Stage::Creating,
            sequence: 0,
            log_file: 0,
            boot: self.options.boot,
            certainty: Certainty::Sure,
            identity: identity.clone(),
        };
        begun.write(self.path)?;
        if self.database.exists() {
            let removed = fs::remove_dir_all(&self.database);
            removed.map_err(|error| io_error("starting over with a new store", &error))?;
        }
        let database = self.database(DBRecoveryMode::AbsoluteConsistency, Creation::Create)?;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        database
            .put_opt(keys::IDENTITY, identity.encode_to_vec(), &options)
            .and_then(|()| database.flush())
            .map_err(|error| database_error("creating the log", &error))?;
        sync_directory(&self.database)?;
        Ok(Opened { identity, database, certainty: Certainty::Sure })
    }

    fn existing(&self, file: IdentityFile) -> Result<Opened, LogError> {
        self.check_log_files(&file)?;
        let state = wal::inspect(&self.database)
            .map_err(|error| io_error("inspecting the log files", &error))?;
        let (file, database) = match state {
            WalState::Whole => (file, self.whole()?),
            WalState::TornTail(place, shape) => self.torn(&place, shape, file)?,
            WalState::Damaged(place, damage) => return Err(damaged(&place, damage)),
        };
        self.check_identity(&file, &database)?;
        self.check_past(&file, database.latest_sequence_number())?;
        Ok(Opened { identity: file.identity, database, certainty: file.certainty })
    }

    /// The last write cannot be read: was it acknowledged?
    ///
    /// | | written in this run of the machine | power may have been lost since |
    /// |---|---|---|
    /// | the file ends within it | no | no |
    /// | anything else | yes, and it was damaged | unknown |
    ///
    /// The mark may say that it was. A file that ends within it was shortened then, and is refused.
    /// Anything else is cut all the same after a loss of power: a replica in doubt takes every write
    /// that is cut for an acknowledged one.
    fn torn(
        &self,
        place: &WalPlace,
        shape: TailShape,
        file: IdentityFile,
    ) -> Result<(IdentityFile, DB), LogError> {
        let (name, offset) = (place.file.display(), place.offset);
        let same_boot = file.boot.is_some() && file.boot == self.options.boot;
        match shape {
            TailShape::CutShort => {
                self.check_past(&file, self.look(&file)?)?;
                tracing::warn!(file = %name, offset,
                    "the log ends within a write that was never acknowledged: cutting it");
                let database = self.cut(place)?;
                Ok((file, database))
            }
            TailShape::Garbled if same_boot => Err(garbled(place)),
            TailShape::Garbled => {
                let file = self.doubtful(place, file)?;
                tracing::error!(file = %name, offset,
                    "the last write of the log cannot be read, and power may have been lost since: \
                     it may have been acknowledged. Cutting it; the replicas of this host take \
                     part in no election before their peers have said what they hold");
                file.write(self.path)?;
                let database = self.cut(place)?;
                Ok((file, database))
            }
        }
    }

    /// What the identity file has to say before a garbled tail is cut: that there is doubt, and a mark
    /// that the rest of the log reaches. What the mark goes back by has to be in the tail.
    fn doubtful(&self, place: &WalPlace, file: IdentityFile) -> Result<IdentityFile, LogError> {
        let rest = self.look(&file)?;
        let cut = wal::bytes_from(&self.database, place)
            .map_err(|error| io_error("measuring the log files", &error))?;
        // Each sequence number takes at least a byte.
        if file.sequence.saturating_sub(rest) > cut {
            self.check_past(&file, rest)?;
        }
        if rest < file.sequence {
            tracing::error!(file = %place.file.display(), noted = file.sequence, rest,
                "the last write of the log was acknowledged: this host had noted it");
        }
        let sequence = file.sequence.min(rest);
        Ok(IdentityFile { certainty: Certainty::InDoubt(Doubt::TornTail), sequence, ..file })
    }

    /// Reads the database as it will be without its torn tail, and changes nothing: whether it is ours
    /// and can be read. Returns its sequence number.
    fn look(&self, file: &IdentityFile) -> Result<u64, LogError> {
        let options = self.options.database(DBRecoveryMode::PointInTime);
        let database = DB::open_cf_for_read_only(&options, &self.database, FAMILIES, false)
            .map_err(|error| self.refused(&error))?;
        self.check_identity(file, &database)?;
        recovery::recover(&database)?;
        Ok(database.latest_sequence_number())
    }

    fn whole(&self) -> Result<DB, LogError> {
        self.database(DBRecoveryMode::TolerateCorruptedTailRecords, Creation::MustExist)
    }

    /// Lets RocksDB drop a torn tail. The file that had it must be removed durably before anything
    /// else is written: a later write behind it would make it look like damage.
    fn cut(&self, place: &WalPlace) -> Result<DB, LogError> {
        let database = self.database(DBRecoveryMode::PointInTime, Creation::MustExist)?;
        if place.file.exists() {
            let message = format!("{} is still there", place.file.display());
            return Err(LogError::Io { action: "cutting a torn tail", message });
        }
        sync_directory(&self.database)?;
        Ok(database)
    }

    /// RocksDB makes a new log file before it removes an old one, and opens "fine" without any.
    fn check_log_files(&self, file: &IdentityFile) -> Result<(), LogError> {
        let files = wal::files(&self.database)
            .map_err(|error| io_error("listing the log files", &error))?;
        if files.last().is_none_or(|(number, _)| *number < file.log_file) {
            let message = format!("log file {:06}.log or a later one is missing", file.log_file);
            return Err(lost(&self.database, &message));
        }
        Ok(())
    }

    fn check_identity(&self, file: &IdentityFile, database: &DB) -> Result<(), LogError> {
        let inside = database.get(keys::IDENTITY);
        let inside = inside.map_err(|error| database_error("reading the identity", &error))?;
        let inside = inside.ok_or_else(|| lost(&self.database, "the database has no identity"))?;
        let inside = StoreIdentity::decode(inside.as_slice()).map_err(|_| LogError::Corrupt {
            place: format!("the identity in {}", self.database.display()),
            message: "it cannot be read".to_owned(),
        })?;
        // Only the file says which version the store asks for now.
        let inside = StoreIdentity { format: file.identity.format, ..inside };
        if inside == file.identity { Ok(()) } else { Err(self.mixed_up(&inside, &file.identity)) }
    }

    /// Whether a log that comes to this sequence number reaches the mark.
    fn check_past(&self, file: &IdentityFile, sequence: u64) -> Result<(), LogError> {
        if sequence < file.sequence {
            let message = format!("it had come to {}, it is at {sequence}", file.sequence);
            return Err(lost(&self.database, &message));
        }
        Ok(())
    }

    /// The database and the identity file are of two different stores.
    fn mixed_up(&self, inside: &StoreIdentity, file: &StoreIdentity) -> LogError {
        let named = |identity: &StoreIdentity| {
            format!("{}, store {:x}", describe(identity), identity.store)
        };
        let path = self.database.display().to_string();
        LogError::Foreign { path, found: named(inside), expected: named(file) }
    }

    fn database(&self, mode: DBRecoveryMode, creation: Creation) -> Result<DB, LogError> {
        let mut options = self.options.database(mode);
        options.create_if_missing(creation == Creation::Create);
        options.create_missing_column_families(creation == Creation::Create);
        let family = self.options.column_family();
        let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, family.clone()));
        DB::open_cf_descriptors(&options, &self.database, families)
            .map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &rocksdb::Error) -> LogError {
        let (path, message) = (self.database.display().to_string(), error.to_string());
        match error.kind() {
            rocksdb::ErrorKind::IOError if LOCK_WORDS.iter().any(|w| message.contains(w)) => {
                LogError::Locked { path }
            }
            rocksdb::ErrorKind::Corruption | rocksdb::ErrorKind::InvalidArgument => {
                LogError::Corrupt { place: path, message }
            }
            _ => LogError::Io { action: "opening the log", message },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Creation {
    Create,
    MustExist,
}

fn lock(path: &Path) -> Result<File, LogError> {
    let file = File::options().create(true).truncate(false).write(true).open(path.join(LOCK));
    let file = file.map_err(|error| io_error("opening the lock file", &error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(LogError::Locked { path: path.display().to_string() })
        }
        Err(error) => Err(io_error("locking the directory", &error.into())),
    }
}

fn sync_directory(path: &Path) -> Result<(), LogError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| io_error("syncing the directory of the database", &error))
}

fn damaged(place: &WalPlace, damage: WalDamage) -> LogError {
    corrupt(
        place,
        match damage {
            WalDamage::Followed => "a write that was acknowledged cannot be read; others follow it",
            WalDamage::WrongLength => {
                "the length of the last write was changed after it was written"
            }
        },
    )
}

fn garbled(place: &WalPlace) -> LogError {
    corrupt(
        place,
        "the last write cannot be read although it has its full length, and power was not lost \
         since: it was changed after it was acknowledged",
    )
}

fn corrupt(place: &WalPlace, message: &str) -> LogError {
    let place = format!("{} offset {}", place.file.display(), place.offset);
    LogError::Corrupt { place, message: message.to_owned() }
}

fn lost(path: &Path, message: &str) -> LogError {
    LogError::LostPast { message: format!("{}: {message}", path.display()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    fn ours() -> Identity {
        Identity { cluster: "north".to_owned(), node: NodeId::must(3) }
    }

    fn open(path: &Path) -> Result<Directory, LogError> {
        let options = RocksOptions { write_buffer_bytes: 65536, ..RocksOptions::default() };
        let (directory, database, _) = Directory::open(path, &ours(), &options)?;
        directory.renew(&database)?;
        Ok(directory)
    }

    fn begin(path: &Path) {
        let identity = ours().new_store(ClusterVersion::NEWEST);
        let begun = IdentityFile {
            stage: Stage::Creating,
            sequence: 0,
            log_file: 0,
            boot: None,
            certainty: Certainty::Sure,
            identity,
        };
        begun.write(path).expect("written");
    }

    #[test]
    fn a_creation_that_a_crash_cut_short_starts_over() {
        let half_identity =
            |path: &Path| fs::write(path.join("identity.tmp"), "half").expect("written");
        let half_database = |path: &Path| {
            begin(path);
            fs::create_dir(path.join(DATABASE)).expect("created");
            fs::write(path.join(DATABASE).join("CURRENT"), "half").expect("written");
        };
        for stage in [half_identity, begin, half_database] {
            let directory = tempfile::tempdir().expect("a directory");
            stage(directory.path());
            let created = open(directory.path()).expect("a new store").identity;
            let opened = open(directory.path()).expect("the same store").identity;
            assert_eq!(created, opened);
        }
    }

    #[test]
    fn a_store_of_a_later_version_is_refused_with_both_and_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        open(directory.path()).expect("a new store");
        let mut file = IdentityFile::read(directory.path()).expect("readable").expect("a file");
        file.identity.format = ClusterVersion::NEWEST.get() + 1;
        file.write(directory.path()).expect("written");
        let refused = open(directory.path()).expect_err("newer");
        assert!(matches!(refused, LogError::NewerVersion { .. }), "{refused}");
        assert_eq!(IdentityFile::read(directory.path()), Ok(Some(file)));
    }

    /// The database keeps the version that it was created with.
    #[test]
    fn a_version_is_raised_for_good_and_never_goes_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = RocksOptions {
            write_buffer_bytes: 65536,
            version: ClusterVersion::FIRST,
            ..RocksOptions::default()
        };
        let open = || {
            let (opened, database, _) = Directory::open(directory.path(), &ours(), &options)?;
            Ok::<_, LogError>((opened, database))
        };
        let (opened, database) = open().expect("a new store");
        assert_eq!(opened.version(), ClusterVersion::FIRST);
        opened.renew(&database).expect("written");
        opened.raise_version(ClusterVersion::NEWEST, &database).expect("written");
        opened.raise_version(ClusterVersion::FIRST, &database).expect("nothing to do");
        drop((opened, database));
        let (opened, database) = open().expect("the same store");
        assert_eq!(opened.version(), ClusterVersion::NEWEST);
        let later = ClusterVersion::new(ClusterVersion::NEWEST.get() + 1);
        fs::create_dir(directory.path().join(identity::TEMPORARY_NAME)).expect("in the way");
        opened.raise_version(later, &database).expect_err("it cannot be written");
        assert_eq!(opened.version(), ClusterVersion::NEWEST, "and is not claimed");
    }

    #[test]
    fn a_log_that_never_held_anything_takes_a_corrected_name_of_its_cluster() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = RocksOptions { write_buffer_bytes: 65536, ..RocksOptions::default() };
        let open_as = |cluster: &str, node: u64, write: bool| {
            let identity = Identity { cluster: cluster.to_owned(), node: NodeId::must(node) };
            let (opened, database, _) = Directory::open(directory.path(), &identity, &options)?;
            if write {
                let family = database.cf_handle(keys::REPLICAS).expect("a family");
                let mut synced = WriteOptions::default();
                synced.set_sync(true);
                database.put_cf_opt(family, b"12345678m", b"value", &synced).expect("written");
            }
            opened.renew(&database)?;
            Ok::<_, LogError>(opened.identity.clone())
        };
        let typo = open_as("nroth", 3, false).expect("a new store");
        let refused = open_as("north", 4, false).expect_err("another node");
        assert!(matches!(refused, LogError::Foreign { .. }), "{refused}");
        let corrected = open_as("north", 3, true).expect("nothing was written");
        assert_eq!((corrected.cluster.as_str(), corrected.store), ("north", typo.store));
        assert_eq!(open_as("north", 3, false).as_ref(), Ok(&corrected), "and stays so");
        let refused = open_as("nroth", 3, false).expect_err("something was written");
        assert!(refused.to_string().contains("\"north\""), "{refused}");
    }

    #[test]
    fn a_database_that_a_tool_holds_is_locked() {
        let directory = tempfile::tempdir().expect("a directory");
        open(directory.path()).expect("a new store");
        let path = directory.path().join(DATABASE);
        let _tool = DB::open_cf(&rocksdb::Options::default(), path, FAMILIES).expect("opened");
        let refused = open(directory.path()).expect_err("locked");
        assert!(matches!(refused, LogError::Locked { .. }), "{refused}");
    }
}

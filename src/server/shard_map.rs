//! The map of shards of a running server: what its data directory remembers, and what the catalog says.
//!
//! With a catalog the map comes from there, and the data directory remembers it. Without one it comes
//! from the configuration, and is remembered as soon as the node holds shards. A configuration that
//! differs from what is remembered is refused before anything is opened.
//!
//! The file: a checksum line, then `version`, `generation` and `hash`, and a line
//! `kind <name> <count> <first group>` for each kind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use shardhost_storage::GroupId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use shardhost::driver::{CatalogView, with_each_view};
use shardhost_policy::catalog::View;
use shardhost_proto::shard_map::{KindShards, MapMismatch, ShardMap};
use shardhost_storage::replace_file;

/// The file in the data directory.
const NAME: &str = "shard-map";

/// The map that this server uses; none before the catalog was read for the first time.
#[derive(Debug)]
pub(super) struct CurrentMap {
    path: PathBuf,
    configured: ShardMap,
    map: ArcSwapOption<ShardMap>,
    /// Set when the catalog has another map than the configuration.
    mismatch: watch::Sender<Option<MapMismatch>>,
}

impl CurrentMap {
    /// Reads what the data directory remembers and compares it with the configuration.
    ///
    /// # Errors
    /// [`OpenMapError`].
    pub fn open(data_dir: &Path, configured: ShardMap) -> Result<Self, OpenMapError> {
        let path = data_dir.join(NAME);
        let remembered = read(&path)
            .map_err(|error| OpenMapError::Io { path: path.display().to_string(), error })?;
        if let Some(map) = &remembered {
            map.check(&configured)?;
        }
        let map = ArcSwapOption::from(remembered.map(Arc::new));
        Ok(Self { path, configured, map, mismatch: watch::Sender::new(None) })
    }

    /// The map, if it is known.
    pub fn get(&self) -> Option<Arc<ShardMap>> {
        self.map.load_full()
    }

    /// Uses the map of the configuration, without remembering it.
    pub fn use_configured(&self) {
        if self.map.load().is_none() {
            self.map.store(Some(Arc::new(self.configured.clone())));
        }
    }

    /// Remembers the map of the configuration, unless one is remembered. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember_configured(&self) -> io::Result<()> {
        self.use_configured();
        match self.path.exists() {
            true => Ok(()),
            false => replace_file(&self.path, text_of(&self.configured).as_bytes()),
        }
    }

    /// The mismatch that ends this server, once there is one.
    pub fn mismatch(&self) -> watch::Receiver<Option<MapMismatch>> {
        self.mismatch.subscribe()
    }

    /// Follows the map of the catalog until `stop`.
    pub async fn follow(
        self: Arc<Self>,
        views: watch::Receiver<CatalogView>,
        stop: CancellationToken,
    ) {
        let take = async move |view: &View| {
            if let Some(map) = view.settings().shard_map.clone() {
                self.take(map).await;
            }
        };
        with_each_view(views, stop, take).await;
    }

    /// Takes over the map of the catalog.
    async fn take(self: &Arc<Self>, map: Arc<ShardMap>) {
        if self.map.load().as_ref().is_some_and(|known| known.version >= map.version) {
            return;
        }
        if let Err(mismatch) = map.check(&self.configured) {
            tracing::error!(%mismatch, "the configuration contradicts the catalog");
            self.mismatch.send_replace(Some(mismatch));
        }
        let (path, text) = (self.path.clone(), text_of(&map));
        let written =
            tokio::task::spawn_blocking(move || replace_file(&path, text.as_bytes())).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            // Without it the next start compares with the catalog only.
            tracing::error!(%error, "the map of shards cannot be remembered");
        }
        self.map.store(Some(map));
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenMapError {
    /// The configuration differs from the map that the cluster has.
    #[error(transparent)]
    Mismatch(#[from] MapMismatch),
    /// What the data directory remembers cannot be read, or is damaged.
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
}

fn read(path: &Path) -> io::Result<Option<ShardMap>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse(&text).map(Some).ok_or_else(|| {
        let text = "the map of shards is damaged; copy the file from a node of the same cluster";
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn text_of(map: &ShardMap) -> String {
    let kinds = map.kinds.iter();
    let kinds: String = kinds
        .map(|(kind, shards)| format!("kind {kind} {} {}\n", shards.count, shards.first_group))
        .collect();
    let ShardMap { version, generation, hash, .. } = map;
    let body = format!("version {version}\ngeneration {generation}\nhash {hash}\n{kinds}");
    format!("{:08x}\n{body}", crc32fast::hash(body.as_bytes()))
}

fn parse(text: &str) -> Option<ShardMap> {
    let (checksum, body) = text.split_once('\n')?;
    if checksum != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
        return None;
    }
    let mut lines = body.lines();
    let version = lines.next()?.strip_prefix("version ")?.parse().ok()?;
    let generation = lines.next()?.strip_prefix("generation ")?.parse().ok()?;
    let hash = lines.next()?.strip_prefix("hash ")?.to_owned();
    let kind = |line: &str| {
        let mut words = line.strip_prefix("kind ")?.split(' ');
        let name = words.next()?.to_owned();
        let count = words.next()?.parse().ok()?;
        let first_group = GroupId::new(words.next()?.parse().ok()?);
        words.next().is_none().then_some((name, KindShards { count, first_group }))
    };
    let kinds = lines.map(kind).collect::<Option<_>>()?;
    let map = ShardMap { version, generation, hash, kinds };
    map.validate().is_ok().then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(tables: u64) -> ShardMap {
        let shards = |count, first| KindShards { count, first_group: GroupId::new(first) };
        ShardMap::first([
            ("table".to_owned(), shards(tables, 1_000_000)),
            ("queue".to_owned(), shards(2, 2_000_000)),
        ])
    }

    #[test]
    fn a_directory_that_remembers_another_number_refuses_with_both() {
        let directory = tempfile::tempdir().unwrap();
        let fresh = CurrentMap::open(directory.path(), map(8)).unwrap();
        assert_eq!(fresh.get(), None);
        // A number that no shard was created with may be corrected.
        fresh.use_configured();
        let fresh = CurrentMap::open(directory.path(), map(16)).unwrap();
        fresh.remember_configured().unwrap();
        let again = CurrentMap::open(directory.path(), map(16)).unwrap();
        assert_eq!(again.get().as_deref(), Some(&map(16)));
        let refused = CurrentMap::open(directory.path(), map(8)).unwrap_err().to_string();
        for words in ["has 2 queue shards, 16 table", "says 2 queue shards, 8 table"] {
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn a_damaged_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let current = CurrentMap::open(directory.path(), map(8)).unwrap();
        current.remember_configured().unwrap();
        let path = directory.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            let refused = CurrentMap::open(directory.path(), map(8)).unwrap_err().to_string();
            assert!(refused.contains(NAME), "{at}: {refused}");
        }
    }

    #[tokio::test]
    async fn the_catalogs_map_is_used_and_remembered_and_a_contradiction_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let current = Arc::new(CurrentMap::open(directory.path(), map(16)).unwrap());
        current.take(Arc::new(map(8))).await;
        assert_eq!(current.get().as_deref(), Some(&map(8)));
        let mismatch = current.mismatch().borrow().clone().unwrap();
        assert_eq!((*mismatch.cluster, *mismatch.configured), (map(8), map(16)));
        let later = ShardMap { version: 2, ..map(8) };
        current.take(Arc::new(later.clone())).await;
        current.take(Arc::new(map(8))).await;
        assert_eq!(current.get().as_deref(), Some(&later), "a map never goes back");
        let opened = CurrentMap::open(directory.path(), map(8)).unwrap();
        assert_eq!(opened.get().as_deref(), Some(&later));
    }
}

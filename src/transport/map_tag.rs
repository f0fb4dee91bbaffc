//! Comparing the maps of shards of two hosts whose cluster has no catalog.

use shardhost_proto::peer as wire;

use super::handshake::Refusal;
use shardhost_proto::shard_map::ShardMap;

/// Longest text of a peer about its map that is repeated, in characters.
const LONGEST_TEXT_TOLD: usize = 200;

/// Names a map of shards to peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapTag {
    /// Differs where maps differ; never 0.
    pub fingerprint: u64,
    pub text: String,
}

impl MapTag {
    /// The tag of a map.
    #[must_use]
    pub fn of(map: &ShardMap) -> Self {
        Self { fingerprint: map.fingerprint(), text: map.to_string() }
    }

    pub(crate) fn to_wire(&self) -> wire::MapTag {
        wire::MapTag { fingerprint: self.fingerprint, text: self.text.clone() }
    }
}

/// Compares the tag of a peer with this host's. A host that has none compares nothing.
pub(crate) fn check(ours: Option<&MapTag>, theirs: Option<&wire::MapTag>) -> Result<(), Refusal> {
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return Ok(()) };
    if ours.fingerprint == theirs.fingerprint {
        return Ok(());
    }
    let text = theirs.text.chars().take(LONGEST_TEXT_TOLD).collect();
    Err(Refusal::ShardMap { theirs: text, ours: ours.text.clone() })
}

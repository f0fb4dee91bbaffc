//! What takes bytes from outside, as targets that the test `fuzz` of the workspace drives: from peers,
//! clients, disks, operators.
//!
//! Only with feature `testing`: the targets look at decoders that are private.

pub use shardhost_storage::testing::fuzz::{Seed, Target};

/// All targets.
#[must_use]
pub fn targets() -> Vec<Target> {
    vec![
        crate::transport::fuzz::peer_frames(),
        crate::service::fuzz::client_batches(),
        shardhost_storage::testing::fuzz::log_values(),
        shardhost_storage::testing::fuzz::snapshot_files(),
        crate::shards::fuzz::shard_snapshots(),
        crate::shards::fuzz::shard_commands(),
        crate::policy::catalog::fuzz::catalog_commands(),
        crate::policy::catalog::fuzz::catalog_snapshots(),
        crate::server::fuzz::configurations(),
    ]
}

//! What takes bytes from outside: from peers, clients, disks, operators.

pub use shardhost_storage::testing::fuzz::Target;

/// All targets.
pub fn targets() -> Vec<Target> {
    vec![
        shardhost::transport::fuzz::peer_frames(),
        shardhost_server::service::fuzz::client_batches(),
        shardhost_storage::testing::fuzz::log_values(),
        shardhost_storage::testing::fuzz::snapshot_files(),
        shardhost_server::shards::fuzz::shard_snapshots(),
        shardhost_server::shards::fuzz::shard_commands(),
        shardhost_policy::catalog::fuzz::catalog_commands(),
        shardhost_policy::catalog::fuzz::catalog_snapshots(),
        shardhost_server::fuzz::configurations(),
    ]
}

//! The messages of shardhost: what stands on disk and what travels between nodes and to clients.
//!
//! The types are generated from the `.proto` files beside this crate. This crate knows nothing
//! of Raft's rules: it only says how things are written down. What is read from a disk or a peer
//! is checked by the crates that use it.
#![allow(missing_docs, clippy::all)]

// Generated code refers to other packages by their path, so the modules nest as the packages do.
mod shardhost {
    pub mod log {
        pub mod v1 {
            tonic::include_proto!("shardhost.log.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("shardhost.peer.v1");
        }
    }
    pub mod client {
        pub mod v1 {
            tonic::include_proto!("shardhost.client.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("shardhost.admin.v1");
        }
    }
    pub mod balance {
        pub mod v1 {
            tonic::include_proto!("shardhost.balance.v1");
        }
    }
    pub mod catalog {
        pub mod v1 {
            tonic::include_proto!("shardhost.catalog.v1");
        }
    }
    pub mod system {
        pub mod v1 {
            tonic::include_proto!("shardhost.system.v1");
        }
    }
}

/// What operators ask of a host.
pub use shardhost::admin::v1 as admin;
/// Draining, and what a node knows of the cluster.
pub use shardhost::balance::v1 as balance;
/// What a cluster intends: commands and state of the system group.
pub use shardhost::catalog::v1 as catalog;
/// What clients say to the shards of a host.
pub use shardhost::client::v1 as client;
/// What stands in the shared Raft log.
pub use shardhost::log::v1 as log;
/// What hosts of one cluster say to each other.
pub use shardhost::peer::v1 as peer;
/// How hosts speak to the system group, and how its leader has leaderships moved.
pub use shardhost::system::v1 as system;

/// Version of the peer protocol. Hosts refuse a peer that speaks another one.
pub const PROTOCOL_VERSION: u32 = 1;
/// Version of the disk format. A store with another one is refused.
pub const DISK_FORMAT: u32 = 1;

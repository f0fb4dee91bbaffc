//! The messages of shardhost: on disk, between nodes and with clients.
//!
//! Also the definitions that hosts and clients must agree on.
//!
//! | where | what |
//! |---|---|
//! | [`ids`] | the numbers that name nodes, groups, replicas, terms and log positions |
//! | [`shard_map`] | which shards a cluster has |
//! | [`routing`] | the shard that a key belongs to |
//! | [`hash`] | the hash of keys, and checksums of sequences |
//! | [`limits`] | bounds of requests |
//! | [`version`] | the version of a cluster |
//! | [`grants`] | what a caller may do |
//! | [`methods`] | the calls of all services |
//! | [`fields`] | a message, field by field, before it is decoded |
//!
//! The messages are generated from the `.proto` files beside this crate. This crate knows nothing
//! of Raft's rules. What is read from a disk or a peer is checked by the crates that use it.
//!
//! The features `client` and `server` add the gRPC stubs; without them the crate needs no tonic.

#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used)]

pub mod fields;
pub mod grants;
pub mod hash;
pub mod ids;
pub mod limits;
pub mod methods;
mod redacted;
pub mod routing;
pub mod shard_map;
pub mod version;

// Generated code refers to other packages by their path, so the modules nest as the packages do.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod shardhost {
    pub mod log {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/shardhost.log.v1.rs"));
        }
    }
    pub mod peer {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/shardhost.peer.v1.rs"));
        }
    }
    pub mod client {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/shardhost.client.v1.rs"));
        }
    }
    pub mod admin {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/shardhost.admin.v1.rs"));
        }
    }
    pub mod balance {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/shardhost.balance.v1.rs"));
        }
    }
    pub mod catalog {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/shardhost.catalog.v1.rs"));
        }
    }
    pub mod system {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/shardhost.system.v1.rs"));
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
/// Messages in the shared Raft log.
pub use shardhost::log::v1 as log;
/// What hosts of one cluster say to each other.
pub use shardhost::peer::v1 as peer;
/// How hosts speak to the system group, and how its leader has leaderships moved.
pub use shardhost::system::v1 as system;

/// Version of the peer protocol. Hosts refuse a peer that speaks another one.
pub const PROTOCOL_VERSION: u32 = 1;

//! Nodes, and what they advertise.

use shardhost_storage::NodeId;

use super::super::name::Name;
use super::Revision;

/// Advertised capabilities of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Of the node's process; larger is later.
    pub incarnation: u64,
    pub capabilities: Box<[Name]>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    pub id: NodeId,
    pub revision: Revision,
    /// Where it is reached. No two nodes have the same one.
    pub address: Box<str>,
    /// What fails together with it; `None`: nothing is known.
    pub zone: Option<Name>,
    /// How many leaders it takes, compared with others; 0: none.
    pub weight: u32,
    /// Which disk it has: the identity of its store, which another disk does not have.
    /// [`UNKNOWN_STORE`](super::super::UNKNOWN_STORE): it was announced and never seen.
    pub store: u64,
    /// The revision since when. Groups that were founded before may have had a replica on a disk
    /// that is lost, and are not created on this one.
    pub store_since: Revision,
    /// Its advertised capabilities; `None`: not known.
    pub advertisement: Option<Advertisement>,
}

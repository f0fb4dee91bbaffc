//! Ids as plain numbers in recorded snapshots and plans. The ids themselves know no encoding.

use serde::{Deserialize, Deserializer, Serializer, de::Error};
use shardhost_storage::NodeId;

fn checked<E: Error>(value: u64) -> Result<NodeId, E> {
    NodeId::new(value).ok_or_else(|| E::custom("a node id is never zero; the record has 0"))
}

/// A node's id as a number that is not zero.
pub(crate) mod node {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(id: &NodeId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(id.get())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NodeId, D::Error> {
        checked(u64::deserialize(from)?)
    }
}

/// A node's id or null.
pub(crate) mod node_option {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(id: &Option<NodeId>, to: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => to.serialize_some(&id.get()),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<NodeId>, D::Error> {
        Option::<u64>::deserialize(from)?.map(checked).transpose()
    }
}

/// A group's id as a number.
pub(crate) mod group {
    use super::*;
    use shardhost_storage::GroupId;

    pub(crate) fn serialize<S: Serializer>(id: &GroupId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(id.get())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GroupId, D::Error> {
        u64::deserialize(from).map(GroupId::new)
    }
}

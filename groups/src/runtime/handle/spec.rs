//! What a group is created from.

use std::collections::BTreeMap;

use shardhost_storage::{GroupId, Membership, NodeId, ReplicaId};

/// What a group is created from. Equal on every node that holds a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSpec {
    pub id: GroupId,
    pub membership: Membership,
    /// Name of the kind of state machine, for finding its factory after a restart.
    pub kind: String,
    pub labels: BTreeMap<String, String>,
    pub on_known_disk: bool,
}

impl GroupSpec {
    /// A group whose voters are on these nodes. Their replica ids follow from the set, so every
    /// node that is given the same set derives the same group.
    #[must_use]
    pub fn new(id: GroupId, voters: impl IntoIterator<Item = NodeId>) -> Self {
        let membership = Membership::initial(voters);
        let (kind, labels) = (String::new(), BTreeMap::new());
        Self { id, membership, kind, labels, on_known_disk: false }
    }
    /// The group had this many lives before, all destroyed. The ids of its replicas start anew
    /// behind those of earlier lives, so that nothing that is left of them is taken for this one.
    /// Every node must be given the same number.
    #[must_use]
    pub fn incarnation(mut self, lives: u32) -> Self {
        let shift = u64::from(lives) << 32;
        let members = std::mem::take(&mut self.membership.members);
        let shifted = members.into_iter().filter_map(|(id, member)| {
            let local = id.get() & u64::from(u32::MAX);
            Some((ReplicaId::new(shift | local)?, member))
        });
        self.membership = Membership::founded_by(shifted.collect());
        self
    }
    /// Names the kind of state machine.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }
    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
    /// The node's present disk was known when the group was created: no replica of this generation
    /// of the group was on another disk of it. Where the node lost a disk, a replica without this
    /// mark asks the others first; see [`Groups::disk_was_lost`](crate::Groups::disk_was_lost).
    #[must_use]
    pub const fn on_known_disk(mut self) -> Self {
        self.on_known_disk = true;
        self
    }
}

//! An order of groups in which those that follow each other in number do not act at once.

use shardhost_storage::GroupId;

/// Numbers of groups that follow each other, spread over everything.
pub(crate) const fn spread(group: GroupId) -> u64 {
    let mixed = group.get().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

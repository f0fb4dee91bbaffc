//! What destroyed replicas left behind: state that could not be removed. A destruction that is repeated
//! removes it; a replica that is created begins without it.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;
use shardhost_storage::GroupId;

use super::Lives;

/// Removes what a state machine kept. Called again when it failed.
pub(crate) type Clear = Box<dyn FnMut() -> Result<(), String> + Send>;

/// The state that remains, by group.
#[derive(Default)]
pub(super) struct Remains(Mutex<BTreeMap<GroupId, Option<Clear>>>);

impl fmt::Debug for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.lock().keys()).finish()
    }
}

impl Lives {
    /// The groups of which state remains here, in ascending order.
    pub(crate) fn remains(&self) -> Vec<GroupId> {
        self.remains.0.lock().keys().copied().collect()
    }

    /// Whether state of a destroyed replica remains.
    pub(crate) fn has_remains(&self, group: GroupId) -> bool {
        self.remains.0.lock().contains_key(&group)
    }

    /// State of a destroyed replica remains. `clear` removes it; `None`: the next destruction knows
    /// how.
    pub(super) fn keep_remains(&self, group: GroupId, clear: Option<Clear>) {
        self.remains.0.lock().insert(group, clear);
    }

    /// State that remains is removed by the next destruction that knows how, and by nothing kept here.
    pub(super) fn drop_remains(&self, group: GroupId) {
        let clear = self.remains.0.lock().get_mut(&group).and_then(Option::take);
        drop(clear);
    }

    /// Nothing remains, or what does is the next replica's: what could remove it is dropped.
    pub(super) fn forget_remains(&self, group: GroupId) -> Option<Clear> {
        self.remains.0.lock().remove(&group).flatten()
    }
}

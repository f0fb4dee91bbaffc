//! Which groups of a host a registration is about.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::GroupId;

/// Which groups a registration is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupSelector {
    /// Every group of the host.
    All,
    One(GroupId),
    Many(BTreeSet<GroupId>),
    /// Groups that carry this label.
    Label {
        key: Cow<'static, str>,
        value: Cow<'static, str>,
    },
}

impl GroupSelector {
    /// Whether it is about the group, which has these labels.
    #[must_use]
    pub fn means(&self, group: GroupId, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => *one == group,
            Self::Many(many) => many.contains(&group),
            Self::Label { key, value } => {
                labels.get(key.as_ref()).is_some_and(|found| found == value.as_ref())
            }
        }
    }
}

//! The version of a cluster: what all of its nodes know, so that it may be used.
//!
//! A program knows a range of versions. A cluster is at one of them, which is a record of the catalog and
//! never goes back. What a version adds to the catalog, to the wire or to the disk is used only in clusters
//! that are at that version; until then an earlier program can take the place of a later one, and every
//! node may run either.
//!
//! A data directory notes the version that a program must know to open it. It is raised before the cluster
//! is, at every node: so a node whose program is too old cannot be there when the new things appear.
//!
//! | version | what it adds |
//! |---:|---|
//! | 1 | everything before there were versions |
//! | 2 | the version itself; removed nodes, whose numbers are never given again; replicas that are moved automatically; drains that are extended by the clock of the one who extends them |
//! | 3 | tokens of clients and operators in the catalog; rules for replicas, and reports of which members have no vote |

use std::fmt;

/// The version of a cluster. Later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterVersion(u32);

impl ClusterVersion {
    /// The one of clusters that name none.
    pub const FIRST: Self = Self(1);
    /// The latest that this program knows.
    pub const NEWEST: Self = Self(3);

    /// From its number; 0 is how those name it that know no versions.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        if number == 0 { Self::FIRST } else { Self(number) }
    }

    /// The number, from 1.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether this program knows it.
    #[must_use]
    pub fn is_known(self) -> bool {
        self <= Self::NEWEST
    }
}

impl Default for ClusterVersion {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

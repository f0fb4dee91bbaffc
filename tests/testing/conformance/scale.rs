//! On what clusters lines are shown.

use std::fmt;

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Calm,
    /// Messages are late, and some are lost.
    Stormy,
}

/// What kind of cluster a line is shown on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scale {
    pub nodes: u64,
    /// Groups that work beside the one that is looked at.
    pub other_groups: u64,
    pub weather: Weather,
}

impl Scale {
    /// One node.
    #[must_use]
    pub const fn one() -> Self {
        Self { nodes: 1, other_groups: 0, weather: Weather::Calm }
    }
    /// Three nodes.
    #[must_use]
    pub const fn three() -> Self {
        Self { nodes: 3, ..Self::one() }
    }
    /// Five nodes.
    #[must_use]
    pub const fn five() -> Self {
        Self { nodes: 5, ..Self::one() }
    }
    /// With so many groups at work beside the one that is tested, which must keep working.
    #[must_use]
    pub const fn among(mut self, other_groups: u64) -> Self {
        self.other_groups = other_groups;
        self
    }
    /// With messages that are late or lost.
    #[must_use]
    pub const fn stormy(mut self) -> Self {
        self.weather = Weather::Stormy;
        self
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, other_groups, weather } = self;
        write!(f, "{nodes} nodes, {other_groups} other groups, {weather:?}")
    }
}

/// Where a line can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    Anywhere,
    /// On any cluster, when no message is late or lost by chance.
    Calm,
    /// On three nodes or more.
    Cluster,
    /// On three nodes or more, when no message is late or lost by chance.
    CalmCluster,
}

impl Place {
    /// The smallest scale that has it.
    #[must_use]
    pub const fn smallest(self) -> Scale {
        match self {
            Self::Anywhere | Self::Calm => Scale::one(),
            Self::Cluster | Self::CalmCluster => Scale::three(),
        }
    }
    /// Whether a scale has it.
    #[must_use]
    pub fn is_at(self, scale: Scale) -> bool {
        let enough = scale.nodes >= self.smallest().nodes;
        let calm = matches!(self, Self::Calm | Self::CalmCluster);
        enough && (!calm || scale.weather == Weather::Calm)
    }
}

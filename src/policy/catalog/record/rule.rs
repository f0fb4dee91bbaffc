//! Rules for replicas: how many of them a group has, and where they may be.

use shardhost_storage::GroupId;

use super::super::name::Name;
use super::{GroupRecord, Label};

/// What holds for the replicas of some groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRule {
    /// Each rule has its own.
    pub name: Name,
    /// The groups that it is for. Of several rules that select a group the narrowest one counts, alone.
    pub groups: Selection,
    /// Voters that a group has: an odd number, up to [`MAX_RULED_VOTERS`](super::super::MAX_RULED_VOTERS).
    /// `None`: as many as it has.
    pub voters: Option<u32>,
    /// Learners that a group has: replicas that get the log and have no vote, for reads. At most
    /// [`MAX_RULED_LEARNERS`](super::super::MAX_RULED_LEARNERS). `None`: as many as it has.
    pub learners: Option<u32>,
    /// Replicas are in these zones alone, in ascending order; empty: in any.
    pub zones: Box<[Name]>,
    /// Replicas are on nodes that have all of these, in ascending order; empty: on any.
    pub capabilities: Box<[Name]>,
}

/// Groups that a rule is for, from the widest selection to the narrowest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All but the catalog.
    All,
    /// Those of a kind of state machine.
    Kind(Name),
    /// Those with a label. Of two such rules that select a group, the one with the lesser name counts.
    Label(Label),
    /// One; the catalog, too.
    Group(GroupId),
}

impl Selection {
    /// Whether a group is selected. The catalog has no record: see [`Selection::Group`].
    #[must_use]
    pub fn selects(&self, group: &GroupRecord) -> bool {
        match self {
            Self::All => true,
            Self::Kind(kind) => group.kind == *kind,
            Self::Label(label) => group.labels.contains(label),
            Self::Group(id) => group.id == *id,
        }
    }

    const fn narrowness(&self) -> u8 {
        match self {
            Self::All => 0,
            Self::Kind(_) => 1,
            Self::Label(_) => 2,
            Self::Group(_) => 3,
        }
    }
}

impl ReplicaRule {
    /// Whether a replica may be on a node with this zone and these capabilities, in ascending order.
    #[must_use]
    pub fn allows(&self, zone: Option<&Name>, capabilities: &[Name]) -> bool {
        let in_zone = || zone.is_some_and(|zone| self.zones.contains(zone));
        (self.zones.is_empty() || in_zone())
            && self.capabilities.iter().all(|name| capabilities.binary_search(name).is_ok())
    }
}

/// The rule that counts for a group, of rules in the order of their names.
#[must_use]
pub fn rule_of<'a>(rules: &'a [ReplicaRule], group: &GroupRecord) -> Option<&'a ReplicaRule> {
    narrowest(rules.iter().filter(|rule| rule.groups.selects(group)))
}

/// The rule that counts for the catalog: it is selected by its number alone.
#[must_use]
pub fn rule_of_catalog(rules: &[ReplicaRule]) -> Option<&ReplicaRule> {
    let catalog = Selection::Group(super::super::SYSTEM_GROUP);
    rules.iter().find(|rule| rule.groups == catalog)
}

fn narrowest<'a>(rules: impl Iterator<Item = &'a ReplicaRule>) -> Option<&'a ReplicaRule> {
    let mut found: Option<&ReplicaRule> = None;
    for rule in rules {
        if found.is_none_or(|found| rule.groups.narrowness() > found.groups.narrowness()) {
            found = Some(rule);
        }
    }
    found
}

//! Which rule counts for the replicas of each group, as the catalog has it.

use std::collections::BTreeMap;

use shardhost_policy::catalog::{
    PlannerMode, Record, RecordKind, ReplicaRule, rule_of, rule_of_catalog,
};

use super::catalog::Catalog;
use super::reached::Reached;
use super::target::Target;

/// The rules of groups.
#[derive(Debug, Default)]
pub struct Ruled {
    of: BTreeMap<u64, ReplicaRule>,
    /// Replicas are added, removed and moved until rules hold.
    is_kept: bool,
}

impl Ruled {
    /// Those of a cluster; without a catalog there are none.
    pub async fn look(cluster: &Reached, target: &Target) -> anyhow::Result<Self> {
        let mut ruled = Self::default();
        if !cluster.nodes().values().any(|one| one.status.has_catalog) {
            return Ok(ruled);
        }
        let catalog = Catalog::reach(target).await?;
        let settings = catalog.settings().await?;
        let rules = &settings.rules;
        if rules.is_empty() {
            return Ok(ruled);
        }
        ruled.is_kept = settings.replicas.is_some_and(|one| one.mode == PlannerMode::On);
        ruled.of.extend(rule_of_catalog(rules).map(|rule| (0, rule.clone())));
        for record in catalog.list(RecordKind::Group).await? {
            if let Record::Group(group) = record {
                ruled.of.extend(rule_of(rules, &group).map(|rule| (group.id.get(), rule.clone())));
            }
        }
        Ok(ruled)
    }

    /// The rule of a group.
    pub fn of(&self, group: u64) -> Option<&ReplicaRule> {
        self.of.get(&group)
    }

    /// How many voters a group is to have by its rule.
    pub fn voters(&self, group: u64) -> Option<usize> {
        self.of(group)?.voters.map(|voters| voters as usize)
    }

    /// Whether a group gets the voters that it lacks without a command.
    pub fn is_completed(&self, group: u64) -> bool {
        self.is_kept && self.voters(group).is_some()
    }

    #[cfg(test)]
    pub fn with(rules: impl IntoIterator<Item = (u64, ReplicaRule)>, is_kept: bool) -> Self {
        Self { of: rules.into_iter().collect(), is_kept }
    }
}

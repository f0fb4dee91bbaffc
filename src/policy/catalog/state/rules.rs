//! Rules for replicas. Each has a name, and selects other groups than all others.

use std::sync::Arc;

use super::super::error::{Refusal, Subject};
use super::super::name::Name;
use super::super::record::{Record, ReplicaRule, Selection, Settings};
use super::super::reply::Reply;
use super::super::{MAX_RULES, RULES_KNOWN, SYSTEM_GROUP};
use super::{Catalog, check_limit};

impl Catalog {
    /// Puts a rule in the place of the one of its name, if there is one.
    pub(super) fn put_rule(&mut self, rule: &ReplicaRule) -> Reply {
        self.check_version(RULES_KNOWN)?;
        self.check_selection(&rule.groups)?;
        for zone in &rule.zones {
            if !self.view.nodes().values().any(|node| node.zone.as_ref() == Some(zone)) {
                return Err(Refusal::UnknownZone { zone: zone.to_string() });
            }
        }
        let mut rules: Vec<ReplicaRule> = self.view.settings().rules.to_vec();
        rules.retain(|known| known.name != rule.name);
        if let Some(other) = rules.iter().find(|known| known.groups == rule.groups) {
            return Err(Refusal::SameGroups { rule: other.name.to_string() });
        }
        check_limit(Subject::Rules, rules.len() + 1, MAX_RULES)?;
        let at = rules.partition_point(|known| known.name < rule.name);
        rules.insert(at, rule.clone());
        self.set_rules(rules)
    }

    pub(super) fn remove_rule(&mut self, name: &Name) -> Reply {
        let mut rules: Vec<ReplicaRule> = self.view.settings().rules.to_vec();
        let before = rules.len();
        rules.retain(|known| known.name != *name);
        if rules.len() == before {
            return Err(Refusal::UnknownRule { rule: name.to_string() });
        }
        self.set_rules(rules)
    }

    fn set_rules(&mut self, rules: Vec<ReplicaRule>) -> Reply {
        let settings = Settings { rules: rules.into(), ..self.view.settings().clone() };
        self.store(Record::Settings(Arc::new(settings)))
    }

    fn check_selection(&self, groups: &Selection) -> Result<(), Refusal> {
        match groups {
            Selection::Group(group)
                if *group != SYSTEM_GROUP && !self.view.groups().contains_key(group) =>
            {
                Err(Refusal::UnknownGroup { group: *group })
            }
            _ => Ok(()),
        }
    }
}

//! Which nodes the rules for replicas allow.

use std::collections::BTreeMap;

use anyhow::Context;
use shardhost_policy::catalog::{
    Name, Record, RecordKind, ReplicaRule, Subject, rule_of, rule_of_catalog,
};

use super::choose::{Allowed, Held, Place};
use crate::catalog::Catalog;
use crate::target::Target;

/// The rule of each group, as the catalog has them.
pub struct Rules {
    of: BTreeMap<u64, ReplicaRule>,
}

impl Rules {
    pub async fn look(target: &Target) -> anyhow::Result<Self> {
        let reason = "the rules for replicas are not known, and nothing is moved without them";
        Self::read(target).await.context(reason)
    }

    async fn read(target: &Target) -> anyhow::Result<Self> {
        let catalog = Catalog::reach(target).await?;
        let rules = catalog.settings().await?.rules.clone();
        let mut of = BTreeMap::new();
        if rules.is_empty() {
            return Ok(Self { of });
        }
        of.extend(rule_of_catalog(&rules).map(|rule| (0, rule.clone())));
        for record in catalog.list(RecordKind::Group).await? {
            if let Record::Group(group) = record {
                of.extend(rule_of(&rules, &group).map(|rule| (group.id.get(), rule.clone())));
            }
        }
        Ok(Self { of })
    }

    /// Notes for each group which of the nodes its rule allows.
    pub fn note(&self, held: &mut [Held], places: &BTreeMap<u64, Place>) {
        for held in held {
            held.allowed = self.of.get(&held.group).map(|rule| {
                let nodes = places.iter().filter(|(_, place)| is_allowed(rule, place));
                let nodes = nodes.map(|(node, _)| *node).collect();
                Allowed { rule: rule.name.to_string(), nodes }
            });
        }
    }
}

fn is_allowed(rule: &ReplicaRule, place: &Place) -> bool {
    let zone = Name::new(Subject::Zone, &place.zone).ok();
    // In ascending order; one that is no name is in no rule.
    let has: Vec<Name> =
        place.has.iter().filter_map(|text| Name::new(Subject::Capability, text).ok()).collect();
    rule.allows(zone.as_ref(), &has)
}

#[cfg(test)]
mod tests {
    use shardhost_policy::catalog::Selection;

    use super::*;

    #[test]
    fn a_group_goes_where_its_rule_allows() {
        let name = |text: &str| Name::new(Subject::Zone, text).unwrap();
        let rule = ReplicaRule {
            name: name("near"),
            groups: Selection::All,
            voters: None,
            learners: None,
            zones: [name("a"), name("b")].into(),
            capabilities: [name("ssd")].into(),
        };
        let place = |zone: &str, has: &[&str]| Place {
            zone: zone.to_owned(),
            has: has.iter().map(|text| (*text).to_owned()).collect(),
            ..Place::default()
        };
        let places = BTreeMap::from([
            (1, place("a", &["fifo", "ssd"])),
            (2, place("b", &["fifo"])),
            (3, place("c", &["ssd"])),
            (4, place("", &["ssd"])),
        ]);
        let mut held = [Held { group: 7, ..Held::default() }, Held { group: 8, ..Held::default() }];
        Rules { of: [(7, rule)].into() }.note(&mut held, &places);
        let allowed = held[0].allowed.as_ref().unwrap();
        assert_eq!((allowed.rule.as_str(), &allowed.nodes), ("near", &[1].into()));
        assert_eq!(held[1].allowed, None);
    }
}

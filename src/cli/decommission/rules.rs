//! Which nodes the rules for replicas allow.

use std::collections::BTreeMap;

use shardhost_policy::catalog::{Name, ReplicaRule, Subject};

use super::choose::{Allowed, Held, Place};
use crate::ruled::Ruled;

/// Notes for each group which of the nodes its rule allows.
pub fn note(ruled: &Ruled, held: &mut [Held], places: &BTreeMap<u64, Place>) {
    for held in held {
        held.allowed = ruled.of(held.group).map(|rule| {
            let nodes = places.iter().filter(|(_, place)| is_allowed(rule, place));
            let nodes = nodes.map(|(node, _)| *node).collect();
            Allowed { rule: rule.name.to_string(), nodes }
        });
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
        note(&Ruled::with([(7, rule)], true), &mut held, &places);
        let allowed = held[0].allowed.as_ref().unwrap();
        assert_eq!((allowed.rule.as_str(), &allowed.nodes), ("near", &[1].into()));
        assert_eq!(held[1].allowed, None);
    }
}

//! Rules for replicas: which are taken, and which one counts for a group.

use super::*;

fn rule(text: &str, groups: Selection) -> ReplicaRule {
    ReplicaRule {
        name: name(text),
        groups,
        voters: Some(3),
        learners: None,
        zones: Box::default(),
        capabilities: Box::default(),
    }
}

fn gold() -> Selection {
    Selection::Label(Label { key: name("tier"), value: "gold".into() })
}

/// Group 7, a queue with the label tier=gold, on nodes 1 to 3.
fn newest() -> Catalog {
    let mut catalog = three_nodes();
    let prepared = (1..=3).map(|number| (node(number), 100 + number)).collect();
    run(&mut catalog, Operation::RaiseVersion { version: ClusterVersion::NEWEST, prepared })
        .unwrap();
    let labels = vec![Label { key: name("tier"), value: "gold".into() }];
    create(&mut catalog, NewGroup { labels, ..new_group(7, &[1, 2, 3]) });
    catalog
}

fn counts(catalog: &Catalog) -> Option<&str> {
    let view = catalog.view();
    rule_of(&view.settings().rules, &view.groups()[&group(7)]).map(|rule| rule.name.as_str())
}

#[test]
fn the_narrowest_rule_that_selects_a_group_counts() {
    let mut catalog = newest();
    assert_eq!(counts(&catalog), None);
    let kind = catalog.view().groups()[&group(7)].kind.clone();
    let other = Selection::Label(Label { key: name("tier"), value: "silver".into() });
    for (text, groups, expected) in [
        ("other", Selection::Group(group(0)), None),
        ("silver", other, None),
        ("all", Selection::All, Some("all")),
        ("kind", Selection::Kind(kind), Some("kind")),
        ("tier", gold(), Some("tier")),
        ("one", Selection::Group(group(7)), Some("one")),
    ] {
        run(&mut catalog, Operation::PutRule(rule(text, groups))).unwrap();
        assert_eq!(counts(&catalog), expected, "{text}");
    }
    let names: Vec<&str> =
        catalog.view().settings().rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["all", "kind", "one", "other", "silver", "tier"]);
    assert_eq!(rule_of_catalog(&catalog.view().settings().rules).unwrap().name, name("other"));
    run(&mut catalog, Operation::RemoveRule { name: name("one") }).unwrap();
    assert_eq!(counts(&catalog), Some("tier"));
}

#[test]
fn a_rule_that_cannot_hold_is_refused() {
    let mut catalog = newest();
    let mut refusal = |rule| refused(&mut catalog, Operation::PutRule(rule));
    for given in [0, 2, 4, 9, u32::MAX] {
        let even = ReplicaRule { voters: Some(given), ..rule("r", Selection::All) };
        assert_eq!(refusal(even), Refusal::BadVoters { given });
    }
    let many = ReplicaRule { learners: Some(9), ..rule("r", Selection::All) };
    says(&refusal(many), &["number of learners is 9", "at most 8"]);
    let nowhere = ReplicaRule { zones: [name("nowhere")].into(), ..rule("r", Selection::All) };
    assert_eq!(refusal(nowhere).name(), "UNKNOWN_ZONE");
    let zones = (0..=MAX_RULED_ZONES).map(|number| name(&format!("z{number:02}"))).collect();
    assert_eq!(refusal(ReplicaRule { zones, ..rule("r", Selection::All) }).name(), "OVER_LIMIT");
    assert_eq!(refusal(rule("r", Selection::Group(group(8)))).name(), "UNKNOWN_GROUP");
    let value = "x".repeat(MAX_LABEL_BYTES + 1).into();
    let long = Selection::Label(Label { key: name("tier"), value });
    assert_eq!(refusal(rule("r", long)).name(), "OVER_LIMIT");
}

#[test]
fn two_rules_for_the_same_groups_are_refused_and_one_is_changed_by_its_name() {
    let mut catalog = newest();
    run(&mut catalog, Operation::PutRule(rule("first", gold()))).unwrap();
    let second = refused(&mut catalog, Operation::PutRule(rule("second", gold())));
    assert_eq!(second, Refusal::SameGroups { rule: "first".to_owned() });
    let changed = ReplicaRule { voters: Some(5), ..rule("first", gold()) };
    run(&mut catalog, Operation::PutRule(changed.clone())).unwrap();
    assert_eq!(*catalog.view().settings().rules, *std::slice::from_ref(&changed));
    let again = run(&mut catalog, Operation::PutRule(changed)).unwrap();
    assert_eq!(again.effect, Effect::Unchanged);
    let unknown = refused(&mut catalog, Operation::RemoveRule { name: name("second") });
    says(&unknown, &["no rule second", "rule list"]);
}

#[test]
fn rules_are_bounded_in_number() {
    let mut catalog = newest();
    let label = |number: usize| {
        Selection::Label(Label { key: name("shard"), value: number.to_string().into() })
    };
    for number in 0..MAX_RULES {
        run(&mut catalog, Operation::PutRule(rule(&format!("r{number}"), label(number)))).unwrap();
    }
    let more = Operation::PutRule(rule("more", label(MAX_RULES)));
    says(&refused(&mut catalog, more), &["number of rules is 65", "at most 64"]);
}

#[test]
fn the_longest_rules_fit_into_a_snapshot() {
    let mut catalog = newest();
    let long = |number: usize| name(&format!("z{number:0>63}"));
    let zones: Vec<Name> = (0..MAX_RULED_ZONES).map(long).collect();
    for (number, zone) in (10..).zip(&zones) {
        let (id, address) = (node(number), format!("10.0.0.{number}:7400"));
        let new = NewNode { id, address, zone: Some(zone.clone()), weight: 1, store: number };
        run(&mut catalog, Operation::PutNode(new)).unwrap();
    }
    let capabilities: Vec<Name> = (0..MAX_CAPABILITIES).map(long).collect();
    for number in 0..MAX_RULES {
        let value = format!("{number:x>256}").into();
        let groups = Selection::Label(Label { key: long(number), value });
        let longest = ReplicaRule {
            name: long(number),
            zones: zones.clone().into(),
            capabilities: capabilities.clone().into(),
            ..rule("r", groups)
        };
        run(&mut catalog, Operation::PutRule(longest)).unwrap();
    }
    let mut bytes = Vec::new();
    write_snapshot(&catalog, &mut bytes).unwrap();
    assert!(read_snapshot(&mut &bytes[..]).unwrap() == catalog);
}

#[test]
fn there_are_rules_and_reports_of_learners_from_the_third_version_on() {
    let mut catalog = three_nodes();
    create(&mut catalog, new_group(7, &[1, 2, 3]));
    let refusal = refused(&mut catalog, Operation::PutRule(rule("r", Selection::All)));
    says(&refusal, &["needs version 3", "at version 1"]);
    let report = |learners: &[u64]| Operation::RecordMembers {
        group: group(7),
        config_index: LogIndex::new(9),
        nodes: [1, 2, 3].map(node).into(),
        founding: None,
        learners: Some(learners.iter().map(|number| node(*number)).collect()),
        generation: None,
    };
    assert_eq!(refused(&mut catalog, report(&[3])).name(), "NEEDS_VERSION");
    let mut catalog = newest();
    assert_eq!(catalog.view().groups()[&group(7)].learners(), Some(&[][..]));
    run(&mut catalog, report(&[3])).unwrap();
    assert_eq!(catalog.view().groups()[&group(7)].learners(), Some(&[node(3)][..]));
    says(&refused(&mut catalog, report(&[4])), &["a learner is none of the members"]);
}

/// A report of an earlier program lacks the learners; the same configuration is reported again with them.
#[test]
fn learners_are_reported_later_of_the_same_configuration() {
    let mut catalog = newest();
    run(&mut catalog, members(9, &[1, 2, 3], Some(&[1, 2, 3]))).unwrap();
    assert_eq!(catalog.view().groups()[&group(7)].learners(), None);
    let with_learners = match members(9, &[1, 2, 3], Some(&[1, 2, 3])) {
        Operation::RecordMembers { group, config_index, nodes, founding, generation, .. } => {
            let learners = Some([node(2)].into());
            Operation::RecordMembers { group, config_index, nodes, founding, learners, generation }
        }
        other => other,
    };
    run(&mut catalog, with_learners).unwrap();
    assert_eq!(catalog.view().groups()[&group(7)].learners(), Some(&[node(2)][..]));
    let without = refused(&mut catalog, members(9, &[1, 2, 3], Some(&[1, 2, 3])));
    assert_eq!(without.name(), "STALE_MEMBERS");
}

#[test]
fn rules_and_learners_are_in_snapshots() {
    let mut catalog = newest();
    let zones = [name("a")];
    put_node(&mut catalog, NewNode { zone: Some(zones[0].clone()), ..new_node(1) });
    let placed = ReplicaRule { zones: zones.into(), ..rule("placed", gold()) };
    run(&mut catalog, Operation::PutRule(placed)).unwrap();
    let mut bytes = Vec::new();
    write_snapshot(&catalog, &mut bytes).unwrap();
    assert_eq!(read_snapshot(&mut &bytes[..]).unwrap(), catalog);
}

//! Groups: accepted commands, and every refusal with both sides.

use shardhost_storage::{LogIndex, RequirementMode};

use super::*;

fn set_placement(number: u64, placement: Placement) -> Operation {
    Operation::SetPlacement { group: group(number), placement }
}

fn members(index: u64, nodes: &[u64]) -> Operation {
    super::members(index, nodes, None)
}

#[test]
fn a_group_is_held_as_it_was_created() {
    let mut catalog = three_nodes();
    put_node(&mut catalog, in_zone(4, "east"));
    let new = NewGroup {
        labels: vec![Label { key: name("team"), value: "Söder".into() }],
        requirement: Requirement::soft(["fifo", "ssd"]).unwrap(),
        placement: Placement {
            preference: [Place::Zone(name("east")), Place::Node(node(1))].into(),
            pin: Some(node(4)),
            spread: Some(name("orders")),
        },
        ..new_group(7, &[4, 1, 2])
    };
    let done = create(&mut catalog, new.clone());
    assert_eq!((done.revision, done.incarnation), (revision(5), Some(0)));
    let held = catalog.view().groups()[&group(7)].clone();
    assert_eq!(*held.founders, [node(1), node(2), node(4)]);
    assert_eq!(held.requirement(), new.requirement);
    assert_eq!(held.mode, RequirementMode::Soft);
    assert_eq!(held.placement.as_deref(), Some(&new.placement));
    assert_eq!((held.revision, held.founded), (revision(5), revision(5)));
    let spec = held.spec();
    assert_eq!((spec.id, spec.kind.as_str()), (group(7), "queue"));
    assert_eq!(spec.labels["team"], "Söder");
}

#[test]
fn a_group_that_exists_is_not_created_again() {
    let refusal = refused(&mut with_group(), Operation::CreateGroup(new_group(7, &[1])));
    assert_eq!(refusal, Refusal::GroupExists { group: group(7), founded: revision(4) });
    says(&refusal, &["group 7", "revision 4"]);
}

#[test]
fn founders_are_registered_and_at_least_one() {
    let mut catalog = three_nodes();
    let refusal = refused(&mut catalog, Operation::CreateGroup(new_group(7, &[1, 9])));
    assert_eq!(refusal, Refusal::UnknownNode { node: node(9) });
    says(&refusal, &["node 9", "register"]);
    let refusal = refused(&mut catalog, Operation::CreateGroup(new_group(7, &[])));
    assert_eq!(refusal, Refusal::Missing { subject: Subject::Founder });
    says(&refusal, &["no founding member", "at least 1"]);
}

#[test]
fn every_list_has_its_bound() {
    let mut catalog = three_nodes();
    let mut over = |change: &dyn Fn(&mut NewGroup)| {
        let mut new = new_group(7, &[1]);
        change(&mut new);
        refused(&mut catalog, Operation::CreateGroup(new))
    };
    let founders = over(&|new| new.founders.extend((1..=17).map(node)));
    says(&founders, &["founding member is 17", "at most 16"]);
    let label = |number: usize| Label { key: name(&number.to_string()), value: "".into() };
    let labels = over(&|new| new.labels = (0..33).map(label).collect());
    says(&labels, &["label is 33", "at most 32"]);
    let value = over(&|new| new.labels = vec![Label { value: "x".repeat(257).into(), ..label(1) }]);
    says(&value, &["label value's length is 257", "at most 256"]);
    let names: Vec<String> = (0..65).map(|number| number.to_string()).collect();
    let capabilities = over(&|new| new.requirement.capabilities.extend(names.iter().cloned()));
    says(&capabilities, &["capability is 65", "at most 64"]);
    let places: Box<[Place]> = (1..=33).map(|number| Place::Node(node(number))).collect();
    let preference = over(&|new| new.placement.preference = places.clone());
    says(&preference, &["preferred place is 33", "at most 32"]);
}

#[test]
fn malformed_names_are_refused_with_what_is_well_formed() {
    let mut catalog = three_nodes();
    for bad in ["", "Fifo", "a b", "ä", &"x".repeat(65)] {
        let mut new = new_group(7, &[1]);
        new.requirement.capabilities = [bad.to_owned()].into();
        let refusal = refused(&mut catalog, Operation::CreateGroup(new));
        says(&refusal, &[&format!("{bad:?} names no capability"), "1 to 64 of a-z, 0-9, '.'"]);
    }
    let endless = Name::new(Subject::Zone, &"X".repeat(1_000_000)).unwrap_err().to_string();
    assert!(endless.len() < 200, "a refusal shows only so much of what was given");
}

#[test]
fn what_stands_twice_is_refused() {
    let mut catalog = three_nodes();
    let label = Label { key: name("team"), value: "".into() };
    let new = NewGroup { labels: vec![label.clone(), label], ..new_group(7, &[1]) };
    let refusal = refused(&mut catalog, Operation::CreateGroup(new));
    says(&refusal, &["label team is named twice"]);
    let places = [Place::Node(node(2)), Place::Node(node(1)), Place::Node(node(2))];
    let placement = Placement { preference: places.into(), ..Placement::default() };
    let refusal = refused(&mut with_group(), set_placement(7, placement));
    says(&refusal, &["preferred place node 2 is named twice"]);
}

#[test]
fn preferences_name_nodes_and_zones_that_are_there() {
    let mut catalog = with_group();
    let prefer = |place| Placement { preference: [place].into(), ..Placement::default() };
    let unknown = refused(&mut catalog, set_placement(7, prefer(Place::Node(node(9)))));
    assert_eq!(unknown, Refusal::UnknownNode { node: node(9) });
    let zone = refused(&mut catalog, set_placement(7, prefer(Place::Zone(name("wset")))));
    assert_eq!(zone, Refusal::UnknownZone { zone: "wset".to_owned() });
    says(&zone, &["zone wset", "correct the name"]);
}

#[test]
fn only_a_member_is_pinned() {
    let mut catalog = with_group();
    put_node(&mut catalog, new_node(4));
    let pin = Placement { pin: Some(node(4)), ..Placement::default() };
    let refusal = refused(&mut catalog, set_placement(7, pin.clone()));
    says(&refusal, &["node 4 is no member of group 7", "1, 2, 3"]);
    // Once the group's leader reported that it is a member, it can be.
    run(&mut catalog, members(20, &[1, 2, 4])).unwrap();
    run(&mut catalog, set_placement(7, pin)).unwrap();
    // That it left is a fact, which no pin can forbid.
    run(&mut catalog, members(30, &[1, 2, 3])).unwrap();
}

#[test]
fn a_pin_must_be_the_first_preference() {
    let mut catalog = with_group();
    put_node(&mut catalog, in_zone(1, "east"));
    let place = |first: Place, pin: u64| {
        let preference = [first, Place::Node(node(3))].into();
        set_placement(7, Placement { preference, pin: Some(node(pin)), spread: None })
    };
    let refusal = refused(&mut catalog, place(Place::Node(node(1)), 3));
    says(&refusal, &["pinned to node 3", "prefer node 1"]);
    let refusal = refused(&mut catalog, place(Place::Zone(name("east")), 2));
    says(&refusal, &["pinned to node 2", "prefer zone east"]);
    run(&mut catalog, place(Place::Node(node(1)), 1)).unwrap();
    run(&mut catalog, place(Place::Zone(name("east")), 1)).unwrap();
}

#[test]
fn what_a_group_asks_for_can_be_changed_and_taken_back() {
    let mut catalog = with_group();
    let ask = |requirement| Operation::SetRequirement { group: group(7), requirement };
    let done = run(&mut catalog, ask(hard(&["nobody-has-this"]))).unwrap();
    assert_eq!((done.revision, done.effect), (revision(5), Effect::Changed));
    let again = run(&mut catalog, ask(hard(&["nobody-has-this"]))).unwrap();
    assert_eq!((again.revision, again.effect), (revision(5), Effect::Unchanged));
    run(&mut catalog, ask(Requirement::default())).unwrap();
    assert!(catalog.view().groups()[&group(7)].requirement().is_empty());
}

#[test]
fn nothing_is_known_of_a_group_that_is_not_there() {
    let mut catalog = three_nodes();
    let requirement = Requirement::default();
    for operation in [
        Operation::SetRequirement { group: group(8), requirement },
        set_placement(8, Placement::default()),
        Operation::DestroyGroup { group: group(8), generation: None },
        Operation::FinishDestroy { group: group(8) },
    ] {
        let refusal = refused(&mut catalog, operation);
        assert_eq!(refusal, Refusal::UnknownGroup { group: group(8) });
        says(&refusal, &["no group 8", "create it first"]);
    }
}

#[test]
fn members_are_as_the_latest_configuration_says() {
    let mut catalog = with_group();
    run(&mut catalog, members(20, &[3, 1])).unwrap();
    assert_eq!(catalog.view().groups()[&group(7)].members(), [node(1), node(3)]);
    assert_eq!(run(&mut catalog, members(20, &[1, 3])).unwrap().effect, Effect::Unchanged);
    let older = refused(&mut catalog, members(19, &[1, 3]));
    says(&older, &["index 19", "index 20"]);
    let other = refused(&mut catalog, members(20, &[1, 2]));
    let (given, actual) = (LogIndex::new(20), LogIndex::new(20));
    assert_eq!(other, Refusal::StaleMembers { group: group(7), given, actual });
}

#[test]
fn what_is_told_of_another_generation_is_refused() {
    let mut catalog = with_group();
    destroy(&mut catalog, 7);
    create(&mut catalog, new_group(7, &[1, 2, 3]));
    let late = Refusal::OtherGeneration { group: group(7), given: 0, actual: 1 };
    let members = |generation| match members(20, &[1]) {
        Operation::RecordMembers { group, config_index, nodes, founding, learners, .. } => {
            Operation::RecordMembers { group, config_index, nodes, founding, learners, generation }
        }
        other => other,
    };
    assert_eq!(refused(&mut catalog, members(Some(0))), late);
    let end = |generation| Operation::DestroyGroup { group: group(7), generation };
    assert_eq!(refused(&mut catalog, end(Some(0))), late);
    says(&late, &["generation 0 of group 7", "generation 1 is there"]);
    run(&mut catalog, members(Some(1))).unwrap();
    run(&mut catalog, end(Some(1))).unwrap();
    // A repeated order names the generation whose end it was.
    assert_eq!(refused(&mut catalog, end(Some(0))), late);
    assert_eq!(refused(&mut catalog, end(Some(1))).name(), "DESTROYING");
}

#[test]
fn who_is_still_a_first_member_is_told_later_of_the_same_configuration() {
    let mut catalog = with_group();
    run(&mut catalog, members(20, &[1, 3])).unwrap();
    assert_eq!(catalog.view().groups()[&group(7)].founding_members(), None);
    run(&mut catalog, super::members(20, &[1, 3], Some(&[3]))).unwrap();
    let known = &catalog.view().groups()[&group(7)];
    assert_eq!(known.founding_members(), Some(&[node(3)][..]));
    // Who does not know it takes nothing back.
    assert_eq!(refused(&mut catalog, members(20, &[1, 3])).name(), "STALE_MEMBERS");
    let stranger = refused(&mut catalog, super::members(21, &[1], Some(&[3])));
    says(&stranger, &["none of the members"]);
}

#[test]
fn the_catalogs_own_group_is_neither_created_nor_destroyed() {
    let mut catalog = with_group();
    let expected = Refusal::ReservedGroup { group: group(0) };
    assert_eq!(refused(&mut catalog, Operation::CreateGroup(new_group(0, &[1]))), expected);
    let end = Operation::DestroyGroup { group: group(0), generation: None };
    assert_eq!(refused(&mut catalog, end), expected);
}

#[test]
fn nothing_changes_a_group_once_its_end_is_ordered() {
    let mut catalog = with_group();
    let early = refused(&mut catalog, Operation::FinishDestroy { group: group(7) });
    says(&early, &["group 7 is active since revision 4"]);
    run(&mut catalog, Operation::DestroyGroup { group: group(7), generation: None }).unwrap();
    for operation in [
        Operation::DestroyGroup { group: group(7), generation: None },
        Operation::SetRequirement { group: group(7), requirement: hard(&["a"]) },
        set_placement(7, Placement::default()),
        members(9, &[1]),
    ] {
        let refusal = refused(&mut catalog, operation);
        assert_eq!(refusal, Refusal::Destroying { group: group(7), since: revision(5) });
        says(&refusal, &["group 7", "revision 5"]);
    }
    // A command that creates it again learns why it has to wait.
    let again = refused(&mut catalog, Operation::CreateGroup(new_group(7, &[1])));
    assert_eq!(again, Refusal::Destroying { group: group(7), since: revision(5) });
}

#[test]
fn each_life_of_a_group_has_its_own_number() {
    let mut catalog = with_group();
    destroy(&mut catalog, 7);
    let over = NewGroup { incarnation: Some(0), ..new_group(7, &[1]) };
    let refusal = refused(&mut catalog, Operation::CreateGroup(over));
    assert_eq!(refusal, Refusal::LifeOver { group: group(7), given: 0, next: 1 });
    says(&refusal, &["generation 0", "next one is 1"]);

    assert_eq!(create(&mut catalog, new_group(7, &[1])).incarnation, Some(1));
    let held = &catalog.view().groups()[&group(7)];
    assert_eq!((held.ended_from, held.incarnation), (0, 1));
    assert!(catalog.view().ended().is_empty());

    // An operator knows of lives that the catalog does not: what it ordered is not all of them.
    destroy(&mut catalog, 7);
    create(&mut catalog, NewGroup { incarnation: Some(5), ..new_group(7, &[1]) });
    let held = &catalog.view().groups()[&group(7)];
    assert_eq!((held.ended_from, held.incarnation), (5, 5));
    let endless = NewGroup { incarnation: Some(u32::MAX), ..new_group(8, &[1]) };
    let refusal = refused(&mut catalog, Operation::CreateGroup(endless));
    says(&refusal, &["4294967295", "4294967294"]);
}

#[test]
fn an_expected_revision_fences_every_change_of_a_record() {
    let mut catalog = with_group();
    let spread = Some(name("orders"));
    let place = set_placement(7, Placement { spread, ..Placement::default() });
    let late = Command::new(NOW, place.clone()).expecting(revision(3));
    let refusal = refused_command(&mut catalog, &late);
    let record = RecordKey::Group(group(7));
    let (expected, actual) = (revision(3), revision(4));
    assert_eq!(refusal, Refusal::WrongRevision { record, expected, actual });
    says(&refusal, &["group 7 is at revision 4", "3 is expected"]);
    let right = Command::new(NOW, place).expecting(revision(4));
    assert_eq!(run_command(&mut catalog, &right).unwrap().revision, revision(5));

    // Zero: there must be none.
    let fresh = Command::new(NOW, Operation::PutNode(new_node(1))).expecting(revision(0));
    says(&refused_command(&mut catalog, &fresh), &["node 1 is at revision 1", "0 is expected"]);
    // The settings are a record like any other.
    let mode = Operation::SetPlannerMode { mode: PlannerMode::On };
    let first = Command::new(NOW, mode.clone()).expecting(revision(0));
    run_command(&mut catalog, &first).unwrap();
    says(&refused_command(&mut catalog, &first), &["the record of settings is at revision 6"]);
    // Time names no record.
    let tick = Command::new(NOW, Operation::Tick).expecting(revision(0));
    says(&refused_command(&mut catalog, &tick), &["no record is named"]);
}

#[test]
fn there_are_so_many_groups_and_no_more() {
    let mut catalog = three_nodes();
    for number in 1..=MAX_GROUPS as u64 {
        catalog.apply(&Command::new(NOW, Operation::CreateGroup(new_group(number, &[1])))).unwrap();
    }
    let one_more = Operation::CreateGroup(new_group(u64::MAX, &[1]));
    let refusal = run(&mut catalog, one_more).unwrap_err();
    says(&refusal, &["number of groups is 200001", "at most 200000"]);
}

#[test]
fn the_whole_catalog_has_a_bound() {
    let mut catalog = three_nodes();
    let text: Box<str> = "x".repeat(MAX_LABEL_BYTES).into();
    let label = |number: usize| Label { key: name(&number.to_string()), value: text.clone() };
    let labels: Vec<Label> = (0..MAX_LABELS).map(label).collect();
    let full = |number: u64| NewGroup { labels: labels.clone(), ..new_group(number, &[1]) };
    let mut number = 0;
    let refusal = loop {
        number += 1;
        let command = Command::new(NOW, Operation::CreateGroup(full(number)));
        if let Err(refusal) = catalog.apply(&command) {
            break refusal;
        }
    };
    says(&refusal, &["catalog's size in bytes is 134", "at most 134217728"]);
    // What leaves the catalog smaller is never refused, and makes room.
    destroy(&mut catalog, 1);
    destroy(&mut catalog, 2);
    create(&mut catalog, full(number));
}

#[test]
fn ends_are_forgotten_beyond_their_bound_and_their_numbers_are_not() {
    let mut catalog = three_nodes();
    let mut apply = |operation| catalog.apply(&Command::new(NOW, operation)).unwrap();
    for number in 1..=MAX_ENDED as u64 + 2 {
        let group = group(number);
        // The first one had more lives than the others.
        let incarnation = (number == 1).then_some(8);
        apply(Operation::CreateGroup(NewGroup { incarnation, ..new_group(number, &[1]) }));
        apply(Operation::DestroyGroup { group, generation: None });
        apply(Operation::FinishDestroy { group });
    }
    assert_eq!(catalog.view().ended().len(), MAX_ENDED);
    assert_eq!(catalog.view().ended().keys().next(), Some(&group(3)));
    assert_eq!(create(&mut catalog, new_group(1, &[1])).incarnation, Some(9));
    assert_eq!(create(&mut catalog, new_group(2, &[1])).incarnation, Some(9));
    assert_eq!(create(&mut catalog, new_group(3, &[1])).incarnation, Some(1), "it is remembered");
    assert_eq!(create(&mut catalog, new_group(u64::MAX, &[1])).incarnation, Some(9));
}

//! What a host has to do, and above all what it must not.

use std::collections::BTreeMap;

use shardhost_groups::GroupSpec;
use shardhost_storage::ReplicaId;

use super::*;

fn held(incarnation: u32, state: HeldState) -> Held {
    Held { incarnation, state }
}

fn holds(list: &[(u64, Held)]) -> BTreeMap<GroupId, Held> {
    list.iter().map(|(number, held)| (group(*number), held.clone())).collect()
}

/// One round of node 1, whose store is the one that it is registered with.
fn look(catalog: &Catalog, list: &[(u64, Held)]) -> Round {
    let held = holds(list);
    let local = Local { node: node(1), store: 101, held: &held };
    reconcile(catalog.view(), local, GroupId::default(), 1_000)
}

fn one(round: &Round) -> (&Action, &Reason) {
    assert_eq!((round.steps.len(), round.findings.len()), (1, 0), "{round:?}");
    (&round.steps[0].action, &round.steps[0].reason)
}

fn odd(round: &Round) -> Oddity {
    assert_eq!((round.steps.len(), round.findings.len()), (0, 1), "{round:?}");
    round.findings[0].oddity
}

#[test]
fn a_founder_creates_what_it_does_not_hold() {
    let catalog = with_group();
    let round = look(&catalog, &[]);
    let (action, reason) = one(&round);
    let spec = GroupSpec::new(group(7), [1, 2, 3].map(node)).kind("queue");
    assert_eq!(*action, Action::Create { spec: spec.on_known_disk() });
    assert_eq!(*reason, Reason::Founder { founded: revision(4) });
    let follows = [(7, held(0, HeldState::Follows))];
    assert_eq!(look(&catalog, &follows), Round::default());
    for state in [HeldState::Creating, HeldState::Failed, HeldState::MoveOutcome] {
        assert_eq!(look(&catalog, &[(7, held(0, state))]), Round::default());
    }
}

#[test]
fn a_group_of_which_other_founders_hold_a_replica_is_created_here_too() {
    // The catalog names the group, and its leader reported its members: it was created elsewhere.
    let mut catalog = with_group();
    run(&mut catalog, members(1, &[1, 2, 3], Some(&[1, 2, 3]))).unwrap();
    assert!(matches!(one(&look(&catalog, &[])).0, Action::Create { .. }));
    // It was moved away from here since: nothing is to be created.
    run(&mut catalog, members(9, &[2, 3], Some(&[2, 3]))).unwrap();
    assert_eq!(look(&catalog, &[]), Round::default());
}

#[test]
fn the_first_replica_of_a_member_that_was_replaced_is_not_created() {
    // Removed, and added again: its member has another replica, which its leader asks.
    let mut catalog = with_group();
    run(&mut catalog, members(9, &[1, 2, 3], Some(&[2, 3]))).unwrap();
    assert_eq!(look(&catalog, &[]), Round::default());
    // A version that did not say whether it was replaced.
    let mut catalog = with_group();
    run(&mut catalog, members(9, &[1, 2, 3], None)).unwrap();
    assert_eq!(look(&catalog, &[]), Round::default());
    // Another one was replaced: this founder's member is still the first.
    let mut catalog = with_group();
    run(&mut catalog, members(9, &[1, 2, 3], Some(&[1, 3]))).unwrap();
    assert!(matches!(one(&look(&catalog, &[])).0, Action::Create { .. }));
}

#[test]
fn who_is_no_founder_creates_nothing() {
    let mut catalog = three_nodes();
    create(&mut catalog, new_group(7, &[2, 3]));
    assert_eq!(look(&catalog, &[]), Round::default());
    // The group itself asked this node.
    assert_eq!(look(&catalog, &[(7, held(0, HeldState::Follows))]), Round::default());
}

#[test]
fn a_lost_catalog_destroys_nothing() {
    let all = [
        (7, held(0, HeldState::Follows)),
        (8, held(3, HeldState::Leads(hard(&["fifo"])))),
        (9, held(0, HeldState::Failed)),
        (10, held(0, HeldState::Gone)),
    ];
    let round = look(&Catalog::default(), &all);
    assert_eq!(round.steps, []);
    let shown: Vec<_> =
        round.findings.iter().map(|finding| (finding.group.get(), finding.oddity)).collect();
    assert_eq!(shown, [7, 8, 9].map(|number| (number, Oddity::Unknown)));
}

#[test]
fn an_end_that_was_ordered_destroys_that_life_and_no_other() {
    let mut catalog = with_group();
    run(&mut catalog, Operation::DestroyGroup { group: group(7), generation: None }).unwrap();
    for state in [HeldState::Follows, HeldState::Failed, HeldState::Leads(hard(&["x"]))] {
        let round = look(&catalog, &[(7, held(0, state))]);
        let (action, reason) = one(&round);
        assert_eq!(*action, Action::Destroy { incarnation: 0 });
        assert_eq!(*reason, Reason::Ordered { since: revision(5) });
    }
    for state in [HeldState::Creating, HeldState::MoveOutcome, HeldState::Gone] {
        assert_eq!(look(&catalog, &[(7, held(0, state))]), Round::default());
    }
    let later = look(&catalog, &[(7, held(1, HeldState::Follows))]);
    assert_eq!(odd(&later), Oddity::OtherLife { held: 1, intended: 0 });
    assert_eq!(look(&catalog, &[]), Round::default(), "nothing is created that is to go");
}

#[test]
fn a_host_that_was_away_learns_which_lives_are_over() {
    let mut catalog = with_group();
    destroy(&mut catalog, 7);
    let stale = [(7, held(0, HeldState::Follows))];
    let round = look(&catalog, &stale);
    assert_eq!(one(&round), (&Action::Destroy { incarnation: 0 }, &Reason::LifeOver { next: 1 }));

    // The group lives again; the replica of its first life is in the way.
    create(&mut catalog, new_group(7, &[1]));
    assert_eq!(look(&catalog, &stale), round);
    let gone = look(&catalog, &[(7, held(0, HeldState::Gone))]);
    let spec = GroupSpec::new(group(7), [node(1)]).kind("queue").incarnation(1);
    assert_eq!(*one(&gone).0, Action::Create { spec: spec.on_known_disk() });
    let again = look(&catalog, &[(7, held(1, HeldState::Gone))]);
    assert_eq!(again, Round::default(), "this life was here and went: it does not come back");
}

#[test]
fn a_life_whose_end_nobody_ordered_is_left_alone() {
    let mut catalog = three_nodes();
    // An operator created four generations; the catalog ordered the end of none.
    create(&mut catalog, NewGroup { incarnation: Some(4), ..new_group(7, &[1]) });
    let round = look(&catalog, &[(7, held(3, HeldState::Follows))]);
    assert_eq!(odd(&round), Oddity::OtherLife { held: 3, intended: 4 });
    says_oddity(odd(&round), &["generation 3", "generation 4"]);
    let newer = look(&catalog, &[(7, held(5, HeldState::Follows))]);
    assert_eq!(odd(&newer), Oddity::OtherLife { held: 5, intended: 4 });
    destroy(&mut catalog, 7);
    let round = look(&catalog, &[(7, held(3, HeldState::Follows))]);
    assert_eq!(odd(&round), Oddity::OtherLife { held: 3, intended: 5 });
    let ordered = look(&catalog, &[(7, held(4, HeldState::Follows))]);
    assert_eq!(*one(&ordered).0, Action::Destroy { incarnation: 4 });
}

fn says_oddity(oddity: Oddity, words: &[&str]) {
    let text = oddity.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn a_founder_that_lost_its_disk_does_not_begin_anew() {
    let mut catalog = with_group();
    put_node(&mut catalog, NewNode { store: 555, ..new_node(1) });
    create(&mut catalog, new_group(8, &[1, 2, 3]));
    let none = BTreeMap::new();
    let local = Local { node: node(1), store: 555, held: &none };
    let round = reconcile(catalog.view(), local, GroupId::default(), 10);
    let created: Vec<_> = round.steps.iter().map(|step| step.group).collect();
    assert_eq!(created, [group(8)], "only what was founded with this disk");
    let (founded, store_since) = (revision(4), revision(5));
    assert_eq!(round.findings[0].oddity, Oddity::LostReplica { founded, store_since });
    says_oddity(round.findings[0].oddity, &["revision 4", "since 5", "replace the member"]);
}

#[test]
fn a_node_that_the_catalog_does_not_know_creates_nothing() {
    let catalog = with_group();
    let none = BTreeMap::new();
    let other = Local { node: node(1), store: 999, held: &none };
    let round = reconcile(catalog.view(), other, GroupId::default(), 10);
    assert_eq!(round.steps, []);
    assert_eq!(round.blocked, Some(Blocked::OtherStore { here: 999, registered: 101 }));
}

#[test]
fn the_leader_is_told_what_to_ask_for() {
    let mut catalog = with_group();
    let requirement = hard(&["fifo"]);
    let ask = Operation::SetRequirement { group: group(7), requirement: requirement.clone() };
    run(&mut catalog, ask).unwrap();
    let round = look(&catalog, &[(7, held(0, HeldState::Leads(Requirement::default())))]);
    let reason = Reason::Differs { asked: Requirement::default() };
    assert_eq!(
        one(&round),
        (&Action::SetRequirement { requirement: requirement.clone() }, &reason)
    );
    assert_eq!(reason.to_string(), "the group asks for nothing");
    let so_already = [(7, held(0, HeldState::Leads(requirement)))];
    assert_eq!(look(&catalog, &so_already), Round::default());
    assert_eq!(look(&catalog, &[(7, held(0, HeldState::Follows))]), Round::default());
}

#[test]
fn rounds_are_bounded_in_order_and_come_around() {
    let mut catalog = three_nodes();
    for number in (1..=10).rev() {
        create(&mut catalog, new_group(number, &[1]));
    }
    let none = BTreeMap::new();
    let local = Local { node: node(1), store: 101, held: &none };
    let round = |from| {
        let round = reconcile(catalog.view(), local, group(from), 4);
        let groups: Vec<u64> = round.steps.iter().map(|step| step.group.get()).collect();
        (groups, round.next)
    };
    assert_eq!(round(0), (vec![1, 2, 3, 4], Some(group(5))));
    assert_eq!(round(5), (vec![5, 6, 7, 8], Some(group(9))));
    assert_eq!(round(9), (vec![9, 10, 1, 2], Some(group(3))));
    let all = reconcile(catalog.view(), local, group(3), 10);
    assert_eq!((all.steps.len(), all.next), (10, None));
}

#[test]
fn findings_are_bounded_and_counted() {
    let many: Vec<_> = (0..130).map(|number| (number, held(0, HeldState::Follows))).collect();
    let round = look(&Catalog::default(), &many);
    assert_eq!((round.findings.len(), round.unnamed), (MAX_FINDINGS, 30));
}

/// Between two looks at the catalog.
#[test]
fn a_life_that_began_and_ended_in_between_makes_a_group_differ_and_nothing_else_does() {
    let mut catalog = with_group();
    create(&mut catalog, new_group(8, &[1]));
    destroy(&mut catalog, 7);
    let earlier = catalog.view().clone();
    assert_eq!(catalog.view().groups_unlike(&earlier), BTreeSet::new());
    create(&mut catalog, new_group(7, &[1]));
    destroy(&mut catalog, 7);
    put_node(&mut catalog, new_node(4));
    assert_eq!(catalog.view().groups_unlike(&earlier), BTreeSet::from([group(7)]));
}

/// All members that it knows may have been replaced while it was away.
#[test]
fn a_voter_without_a_leader_leaves_when_a_later_configuration_has_no_member_here() {
    let mut catalog = with_group();
    let replica = ReplicaId::new(1).unwrap();
    let unled = |config_index| {
        let config_index = LogIndex::new(config_index);
        [(7, held(0, HeldState::Unled { replica, config_index }))]
    };
    assert_eq!(look(&catalog, &unled(0)), Round::default(), "nothing was reported");
    run(&mut catalog, members(20, &[1, 2], Some(&[1, 2]))).unwrap();
    assert_eq!(look(&catalog, &unled(0)), Round::default(), "it is a member");
    run(&mut catalog, members(30, &[2, 3], Some(&[2, 3]))).unwrap();
    let round = look(&catalog, &unled(10));
    let config_index = LogIndex::new(30);
    assert_eq!(one(&round), (&Action::Leave { replica }, &Reason::Replaced { config_index }));
    for later in [30, 40] {
        assert_eq!(look(&catalog, &unled(later)), Round::default(), "it knows that, or more");
    }
    assert_eq!(look(&catalog, &[(7, held(0, HeldState::Follows))]), Round::default());
}

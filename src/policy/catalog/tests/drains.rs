//! Drains: fencing, time, and who could lead without the node.

use super::*;

const HOUR: u64 = 3_600_000;

fn drain(number: u64) -> NewDrain {
    NewDrain {
        node: node(number),
        owner: "anna".to_owned(),
        deadline_ms: NOW + HOUR,
        expires_ms: NOW + 2 * HOUR,
        fallback: DrainFallback::GiveUp,
        stranding: Stranding::Refuse,
    }
}

fn begin(catalog: &mut Catalog, new: NewDrain) -> IntentId {
    IntentId::new(run(catalog, Operation::BeginDrain(new)).unwrap().revision)
}

fn tick(catalog: &mut Catalog, now_ms: u64) -> Done {
    run_command(catalog, &Command::new(now_ms, Operation::Tick)).unwrap()
}

fn state(catalog: &Catalog, number: u64) -> Option<DrainState> {
    catalog.view().drains().get(&node(number)).map(|drain| drain.state)
}

fn advertise(catalog: &mut Catalog, number: u64, list: &[&str]) {
    let capabilities = names(list);
    let advertisement = Operation::Advertise { node: node(number), incarnation: 1, capabilities };
    run(catalog, advertisement).unwrap();
}

/// Time passes for all drains on the leader of the system group, whatever its time of day.
fn pass(catalog: &mut Catalog, passed_ms: u64, now_ms: u64) {
    if passed_ms > MAX_PASSED_MS {
        pass(catalog, passed_ms - MAX_PASSED_MS, now_ms);
    }
    let passed_ms = passed_ms.min(MAX_PASSED_MS);
    let drains: Vec<_> = catalog.view().drains().values().cloned().collect();
    for drain in drains {
        let operation = Operation::PassTime { node: drain.node, intent: drain.id, passed_ms };
        let command = Command::new(now_ms, operation).expecting(drain.revision);
        run_command(catalog, &command).unwrap();
    }
}

const DAY: u64 = 24 * HOUR;

#[test]
fn a_clock_that_is_two_days_ahead_ends_no_drain() {
    let mut catalog = three_nodes();
    let new = NewDrain { deadline_ms: NOW + DAY, expires_ms: NOW + DAY, ..drain(1) };
    begin(&mut catalog, new);
    pass(&mut catalog, 6_000, NOW + 2 * DAY);
    assert_eq!(state(&catalog, 1), Some(DrainState::Draining));
    let left = catalog.view().drains()[&node(1)].left();
    assert_eq!(left.as_secs(), 24 * 3_600 - 6);
    // Nor does one that is behind keep it.
    pass(&mut catalog, DAY - 6_001, 0);
    assert_eq!(state(&catalog, 1), Some(DrainState::Draining));
    pass(&mut catalog, 1, 0);
    assert_eq!(state(&catalog, 1), None);
}

#[test]
fn each_drain_has_the_clock_of_whoever_asked_for_it() {
    let mut catalog = three_nodes();
    begin(&mut catalog, drain(1));
    let ahead = NewDrain {
        deadline_ms: NOW + 2 * DAY + HOUR,
        expires_ms: NOW + 2 * DAY + 2 * HOUR,
        ..drain(2)
    };
    let command = Command::new(NOW + 2 * DAY, Operation::BeginDrain(ahead));
    let intent = IntentId::new(run_command(&mut catalog, &command).unwrap().revision);
    pass(&mut catalog, HOUR - 1, NOW);
    assert_eq!(state(&catalog, 1), Some(DrainState::Draining));
    assert_eq!(state(&catalog, 2), Some(DrainState::Draining));
    // Extended by a proposer whose clock is right.
    let (deadline_ms, expires_ms) = (NOW + 2 * HOUR, NOW + 3 * HOUR);
    let longer = Operation::ExtendDrain { node: node(2), intent, deadline_ms, expires_ms };
    run_command(&mut catalog, &Command::new(NOW + HOUR, longer)).unwrap();
    pass(&mut catalog, 1, NOW);
    assert_eq!(state(&catalog, 1), Some(DrainState::GivenUp));
    assert_eq!(state(&catalog, 2), Some(DrainState::Draining));
    pass(&mut catalog, HOUR - 1, NOW);
    assert_eq!(state(&catalog, 2), Some(DrainState::GivenUp));
}

#[test]
fn no_time_changes_nothing_and_too_much_is_refused() {
    let mut catalog = three_nodes();
    let intent = begin(&mut catalog, drain(1));
    let pass = |passed_ms| Operation::PassTime { node: node(1), intent, passed_ms };
    let late = Command::new(NOW + 9 * DAY, pass(0));
    assert_eq!(run_command(&mut catalog, &late).unwrap().effect, Effect::Unchanged);
    assert_eq!(tick(&mut catalog, 0).effect, Effect::Unchanged);
    let operation = pass(MAX_PASSED_MS + 1);
    says(&refused(&mut catalog, operation), &["3600001", "to 3600000"]);
}

#[test]
fn a_drain_is_begun_finished_and_ended_by_its_name() {
    let mut catalog = with_group();
    let intent = begin(&mut catalog, drain(1));
    assert_eq!(catalog.view().drains()[&node(1)].id, intent);
    assert_eq!(state(&catalog, 1), Some(DrainState::Draining));
    run(&mut catalog, Operation::FinishDrain { node: node(1), intent }).unwrap();
    assert_eq!(state(&catalog, 1), Some(DrainState::Drained));
    run(&mut catalog, Operation::EndDrain { node: node(1), intent }).unwrap();
    assert_eq!(state(&catalog, 1), None);
}

#[test]
fn two_operators_do_not_undo_each_others_drain() {
    let mut catalog = with_group();
    let annas = begin(&mut catalog, drain(1));
    let boris = NewDrain { owner: "boris".to_owned(), ..drain(1) };
    let refusal = refused(&mut catalog, Operation::BeginDrain(boris.clone()));
    says(&refusal, &["node 1", "for anna", "intent 5"]);

    run(&mut catalog, Operation::EndDrain { node: node(1), intent: annas }).unwrap();
    let over = refused(&mut catalog, Operation::FinishDrain { node: node(1), intent: annas });
    assert_eq!(over, Refusal::NotDraining { node: node(1), intent: annas });
    says(&over, &["node 1", "intent 5"]);

    begin(&mut catalog, boris);
    for operation in [
        Operation::EndDrain { node: node(1), intent: annas },
        Operation::FinishDrain { node: node(1), intent: annas },
        Operation::ExtendDrain {
            node: node(1),
            intent: annas,
            deadline_ms: NOW + 1,
            expires_ms: NOW + 2,
        },
    ] {
        says(&refused(&mut catalog, operation), &["intent 7 of boris", "not 5"]);
    }
}

#[test]
fn an_unknown_node_is_not_drained() {
    let refusal = refused(&mut three_nodes(), Operation::BeginDrain(drain(9)));
    assert_eq!(refusal, Refusal::UnknownNode { node: node(9) });
}

#[test]
fn times_of_a_drain_make_sense_at_the_time_of_its_command() {
    let mut catalog = with_group();
    let mut refuse = |deadline_ms, expires_ms| {
        let new = NewDrain { deadline_ms, expires_ms, ..drain(1) };
        refused(&mut catalog, Operation::BeginDrain(new))
    };
    says(&refuse(NOW + 1, NOW), &["expiry is 1000000 ms", "from 1000001 to 605800000"]);
    says(&refuse(NOW + 1, NOW + MAX_DRAIN_MS + 1), &["expiry is 605800001", "to 605800000"]);
    says(&refuse(NOW, NOW + 9), &["deadline is 1000000", "from 1000001 to 1000009"]);
    says(&refuse(NOW + 10, NOW + 9), &["deadline is 1000010", "to 1000009"]);
    let late = Command::new(MAX_TIME_MS + 1, Operation::Tick);
    says(&refused_command(&mut catalog, &late), &["time of the command", "253402300799999"]);
    let nobody = NewDrain { owner: String::new(), ..drain(1) };
    let refusal = refused(&mut catalog, Operation::BeginDrain(nobody));
    assert_eq!(refusal, Refusal::Missing { subject: Subject::Owner });
}

#[test]
fn a_drain_whose_deadline_passes_falls_back_as_declared() {
    let mut catalog = three_nodes();
    let gives_up = begin(&mut catalog, drain(1));
    begin(&mut catalog, NewDrain { fallback: DrainFallback::Proceed, ..drain(2) });
    let done = begin(&mut catalog, drain(3));
    run(&mut catalog, Operation::FinishDrain { node: node(3), intent: done }).unwrap();

    assert_eq!(tick(&mut catalog, NOW + HOUR - 1).effect, Effect::Unchanged);
    assert_eq!(tick(&mut catalog, NOW + HOUR).effect, Effect::Changed);
    assert_eq!(state(&catalog, 1), Some(DrainState::GivenUp));
    assert_eq!(state(&catalog, 2), Some(DrainState::Partial));
    assert_eq!(state(&catalog, 3), Some(DrainState::Drained));
    let late = Operation::FinishDrain { node: node(1), intent: gives_up };
    says(&refused(&mut catalog, late), &["node 1", "given up"]);
    let (deadline_ms, expires_ms) = (NOW + 5, NOW + 6);
    let longer =
        Operation::ExtendDrain { node: node(1), intent: gives_up, deadline_ms, expires_ms };
    assert_eq!(refused(&mut catalog, longer).name(), "DRAIN_OVER");
}

#[test]
fn a_drain_whose_owner_is_gone_expires() {
    let mut catalog = with_group();
    let intent = begin(&mut catalog, drain(1));
    let (deadline_ms, expires_ms) = (NOW + 3 * HOUR, NOW + 4 * HOUR);
    let longer = Operation::ExtendDrain { node: node(1), intent, deadline_ms, expires_ms };
    run(&mut catalog, longer).unwrap();
    tick(&mut catalog, NOW + 2 * HOUR);
    assert_eq!(state(&catalog, 1), Some(DrainState::Draining), "it was extended");
    tick(&mut catalog, NOW + 4 * HOUR);
    assert_eq!(state(&catalog, 1), None);
}

#[test]
fn a_drain_that_leaves_a_group_without_another_member_is_refused() {
    let mut catalog = three_nodes();
    for number in 1..=12 {
        create(&mut catalog, new_group(number, &[1]));
    }
    create(&mut catalog, new_group(20, &[1, 2]));
    let refusal = refused(&mut catalog, Operation::BeginDrain(drain(1)));
    let Refusal::Stranded { groups, total, .. } = &refusal else { panic!("{refusal}") };
    assert_eq!((groups.len(), *total), (10, 12));
    says(&refusal, &["node 1", "12 groups", "1 (no other member)", "10 (no other member), …"]);
    begin(&mut catalog, NewDrain { stranding: Stranding::Accept, ..drain(1) });
    // What another drain takes away does not count.
    let refusal = refused(&mut catalog, Operation::BeginDrain(drain(2)));
    says(&refusal, &["1 group: 20 (the others that could are being drained);"]);
    // The deadline of the first one passes: its node takes leaders again.
    tick(&mut catalog, NOW + HOUR);
    begin(&mut catalog, drain(2));
}

#[test]
fn a_drain_of_the_last_capable_node_is_refused() {
    let mut catalog = three_nodes();
    create(&mut catalog, NewGroup { requirement: hard(&["fifo"]), ..new_group(7, &[1, 2]) });
    // No node can lead this one, whatever is drained.
    create(&mut catalog, NewGroup { requirement: hard(&["gpu"]), ..new_group(8, &[1, 2]) });
    advertise(&mut catalog, 1, &["fifo", "ssd"]);
    advertise(&mut catalog, 2, &["ssd"]);
    advertise(&mut catalog, 3, &["fifo"]);
    let refusal = refused(&mut catalog, Operation::BeginDrain(drain(1)));
    says(&refusal, &["1 group: 7 (no other is capable)"]);
    // The other one leads nothing of this group anyway.
    let intent = begin(&mut catalog, drain(2));
    run(&mut catalog, Operation::EndDrain { node: node(2), intent }).unwrap();

    let soften = Requirement::soft(["fifo"]).unwrap();
    let soft = Operation::SetRequirement { group: group(7), requirement: soften };
    let mut soft_catalog = catalog.clone();
    run(&mut soft_catalog, soft).unwrap();
    begin(&mut soft_catalog, drain(1));

    advertise(&mut catalog, 2, &["fifo"]);
    begin(&mut catalog, drain(1));
}

#[test]
fn who_told_nothing_may_be_capable() {
    let mut catalog = three_nodes();
    create(&mut catalog, NewGroup { requirement: hard(&["fifo"]), ..new_group(7, &[1, 2]) });
    advertise(&mut catalog, 1, &["fifo"]);
    begin(&mut catalog, drain(1));
}

#[test]
fn a_node_that_takes_no_leaders_is_no_other_member() {
    let mut catalog = three_nodes();
    put_node(&mut catalog, NewNode { weight: 0, ..new_node(2) });
    create(&mut catalog, new_group(7, &[1, 2]));
    says(&refused(&mut catalog, Operation::BeginDrain(drain(1))), &["7 (no other member)"]);
    begin(&mut catalog, drain(2));
}

#[test]
fn groups_that_end_strand_nobody() {
    let mut catalog = three_nodes();
    create(&mut catalog, new_group(7, &[1]));
    run(&mut catalog, Operation::DestroyGroup { group: group(7), generation: None }).unwrap();
    begin(&mut catalog, drain(1));
}

#[test]
fn a_drain_that_was_given_up_makes_room_for_another() {
    let mut catalog = with_group();
    let given_up = begin(&mut catalog, drain(1));
    tick(&mut catalog, NOW + HOUR);
    assert_eq!(state(&catalog, 1), Some(DrainState::GivenUp));
    let next = begin(&mut catalog, NewDrain { owner: "boris".to_owned(), ..drain(1) });
    assert!(next > given_up);
    assert_eq!(state(&catalog, 1), Some(DrainState::Draining));
    assert_eq!(&*catalog.view().drains()[&node(1)].owner, "boris");
    let late = Operation::EndDrain { node: node(1), intent: given_up };
    says(&refused(&mut catalog, late), &["of boris"]);
}

/// Three members: one is not capable, the other is drained. The drain is what can be ended.
#[test]
fn the_cause_that_is_named_is_the_one_that_keeps_the_capable_away() {
    let mut catalog = three_nodes();
    create(&mut catalog, NewGroup { requirement: hard(&["fifo"]), ..new_group(7, &[1, 2, 3]) });
    advertise(&mut catalog, 1, &["fifo"]);
    advertise(&mut catalog, 2, &["ssd"]);
    advertise(&mut catalog, 3, &["fifo"]);
    let intent = begin(&mut catalog, drain(3));
    let refusal = refused(&mut catalog, Operation::BeginDrain(drain(1)));
    says(&refusal, &["7 (the others that could are being drained)"]);
    run(&mut catalog, Operation::EndDrain { node: node(3), intent }).unwrap();
    begin(&mut catalog, drain(1));
}

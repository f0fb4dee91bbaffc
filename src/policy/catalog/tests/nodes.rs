//! Nodes and settings.

use super::*;

fn advertise(number: u64, incarnation: u64, list: &[&str]) -> Operation {
    Operation::Advertise { node: node(number), incarnation, capabilities: names(list) }
}

#[test]
fn a_node_that_changes_keeps_what_it_told() {
    let mut catalog = three_nodes();
    run(&mut catalog, advertise(1, 9, &["fifo"])).unwrap();
    let moved = NewNode { address: "10.9.9.9:7400".to_owned(), weight: 4, ..in_zone(1, "east") };
    put_node(&mut catalog, moved.clone());
    let held = &catalog.view().nodes()[&node(1)];
    assert_eq!((&*held.address, held.weight), ("10.9.9.9:7400", 4));
    assert_eq!(*held.advertisement.as_ref().unwrap().capabilities, [name("fifo")]);
    assert_eq!(held.store_since, revision(1), "it has the same disk");
    assert_eq!(run(&mut catalog, Operation::PutNode(moved)).unwrap().effect, Effect::Unchanged);
}

#[test]
fn another_disk_is_remembered_with_its_revision() {
    let mut catalog = three_nodes();
    put_node(&mut catalog, NewNode { store: 999, ..new_node(2) });
    let held = &catalog.view().nodes()[&node(2)];
    assert_eq!((held.store, held.store_since), (999, revision(4)));
}

#[test]
fn no_two_nodes_have_one_address() {
    let mut catalog = three_nodes();
    let thief = NewNode { address: "10.0.0.2:7400".to_owned(), ..new_node(4) };
    let refusal = refused(&mut catalog, Operation::PutNode(thief));
    says(&refusal, &["10.0.0.2:7400", "node 2"]);
    let nowhere = NewNode { address: String::new(), ..new_node(4) };
    let refusal = refused(&mut catalog, Operation::PutNode(nowhere));
    assert_eq!(refusal, Refusal::Missing { subject: Subject::Address });
    let endless = NewNode { address: "x".repeat(257), ..new_node(4) };
    says(&refused(&mut catalog, Operation::PutNode(endless)), &["address's length is 257", "256"]);
}

#[test]
fn there_are_so_many_nodes_and_no_more() {
    let mut catalog = Catalog::default();
    let at = |number: u64| NewNode { address: format!("node-{number}:1"), ..new_node(number) };
    for number in 1..=MAX_NODES as u64 {
        put_node(&mut catalog, at(number));
    }
    let refusal = refused(&mut catalog, Operation::PutNode(at(5_000)));
    says(&refusal, &["number of nodes is 1025", "at most 1024"]);
    put_node(&mut catalog, NewNode { weight: 9, ..at(7) });
}

#[test]
fn an_advertisement_of_an_earlier_process_says_nothing() {
    let mut catalog = three_nodes();
    run(&mut catalog, advertise(1, 9, &["fifo"])).unwrap();
    let refusal = refused(&mut catalog, advertise(1, 8, &["fifo", "ssd"]));
    says(&refusal, &["node 1", "process 8", "process 9"]);
    // The same process may change its mind.
    run(&mut catalog, advertise(1, 9, &[])).unwrap();
    assert!(
        catalog.view().nodes()[&node(1)].advertisement.as_ref().unwrap().capabilities.is_empty()
    );
    assert_eq!(refused(&mut catalog, advertise(8, 1, &[])).name(), "UNKNOWN_NODE");
    let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    says(&refused(&mut catalog, advertise(1, 9, &many)), &["capability is 65", "at most 64"]);
}

#[test]
fn a_node_with_members_is_not_forgotten() {
    let mut catalog = three_nodes();
    for number in 1..=12 {
        create(&mut catalog, new_group(number, &[1, 2]));
    }
    let refusal = refused(&mut catalog, Operation::RemoveNode { node: node(2) });
    says(&refusal, &["node 2", "12 groups", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …"]);
    run(&mut catalog, Operation::RemoveNode { node: node(3) }).unwrap();
    assert!(!catalog.view().nodes().contains_key(&node(3)));
    let again = refused(&mut catalog, Operation::RemoveNode { node: node(3) });
    assert_eq!(again, Refusal::UnknownNode { node: node(3) });
}

#[test]
fn the_kill_switch_says_why_and_since_when() {
    let mut catalog = Catalog::default();
    let stop = |reason: &str| {
        let (moves, reason) = (PlannedMoves::Stopped, reason.to_owned());
        Operation::SetPlannedMoves { moves, reason }
    };
    run(&mut catalog, stop("anna: release")).unwrap();
    run(&mut catalog, Operation::SetPlannerMode { mode: PlannerMode::Shadow }).unwrap();
    let settings = catalog.view().settings();
    assert_eq!((settings.moves, settings.mode), (PlannedMoves::Stopped, PlannerMode::Shadow));
    assert_eq!((&*settings.reason, settings.since_ms), ("anna: release", NOW));
    let later = Command::new(NOW + 5, stop("anna: release"));
    assert_eq!(run_command(&mut catalog, &later).unwrap().effect, Effect::Unchanged);
    let endless = refused(&mut catalog, stop(&"x".repeat(257)));
    says(&endless, &["reason's length is 257", "at most 256"]);
}

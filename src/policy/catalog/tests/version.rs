//! The version of the cluster, and what depends on it.

use shardhost_proto::version::ClusterVersion;

use super::*;

const SECOND: ClusterVersion = ClusterVersion::new(2);

fn raise(version: ClusterVersion, prepared: &[u64]) -> Operation {
    {
        let prepared = prepared.iter().map(|number| (node(*number), 100 + number)).collect();
        Operation::RaiseVersion { version, prepared }
    }
}

fn at_second() -> Catalog {
    let mut catalog = three_nodes();
    run(&mut catalog, raise(SECOND, &[1, 2, 3])).unwrap();
    catalog
}

#[test]
fn a_version_is_raised_once_every_node_that_was_seen_is_prepared() {
    let mut catalog = three_nodes();
    put_node(&mut catalog, NewNode { store: UNKNOWN_STORE, ..new_node(4) });
    let refusal = refused(&mut catalog, raise(SECOND, &[1, 3, 4]));
    says(&refusal, &["node 2", "version 2"]);
    run(&mut catalog, raise(SECOND, &[1, 2, 3])).unwrap();
    assert_eq!(catalog.view().settings().cluster_version, SECOND);
    for again in [raise(SECOND, &[]), raise(ClusterVersion::FIRST, &[])] {
        assert_eq!(run(&mut catalog, again).unwrap().effect, Effect::Unchanged);
    }
    let later = ClusterVersion::new(ClusterVersion::NEWEST.get() + 1);
    let refusal = refused(&mut catalog, raise(later, &[1, 2, 3]));
    says(&refusal, &[&later.to_string(), "later program"]);
}

/// Programs of the first version read the records of a cluster at that version.
#[test]
fn at_the_first_version_a_catalog_has_the_bytes_that_it_always_had() {
    let mut catalog = three_nodes();
    run(&mut catalog, Operation::SetPlannerMode { mode: PlannerMode::On }).unwrap();
    run(&mut catalog, Operation::RemoveNode { node: node(3) }).unwrap();
    assert!(catalog.view().settings().removed_nodes.is_empty());
    // As f32a1377 made it of these commands.
    assert_eq!(catalog.digest(), 2_900_264_285_852_413_467);
}

#[test]
fn the_number_of_a_removed_node_is_never_given_again() {
    let mut catalog = at_second();
    run(&mut catalog, Operation::RemoveNode { node: node(2) }).unwrap();
    assert_eq!(*catalog.view().settings().removed_nodes, [node(2)]);
    let refusal = refused(&mut catalog, Operation::PutNode(new_node(2)));
    says(&refusal, &["node 2", "removed", "another number"]);
    put_node(&mut catalog, NewNode { address: new_node(2).address, ..new_node(4) });
    let written = |catalog: &Catalog| {
        let mut bytes = Vec::new();
        write_snapshot(catalog, &mut bytes).unwrap();
        bytes
    };
    let restored = read_snapshot(&mut &written(&catalog)[..]).unwrap();
    assert_eq!(restored, catalog);
}

#[test]
fn replicas_are_moved_automatically_from_the_second_version_on() {
    let on = |replace_after_ms| {
        let replicas = ReplicaSettings { mode: PlannerMode::On, replace_after_ms };
        Operation::SetReplicas { replicas }
    };
    let refusal = refused(&mut three_nodes(), on(5_000));
    says(&refusal, &["needs version 2", "at version 1", "cluster upgrade"]);
    let mut catalog = at_second();
    assert_eq!(catalog.view().settings().replicas, None);
    run(&mut catalog, on(5_000)).unwrap();
    let set = catalog.view().settings().replicas.unwrap();
    assert_eq!((set.mode, set.replace_after_ms), (PlannerMode::On, 5_000));
    for bad in [0, 999, MAX_REPLACE_AFTER_MS + 1, u64::MAX] {
        assert_eq!(refused(&mut catalog, on(bad)).name(), "BAD_TIME");
    }
}

#[test]
fn so_many_removed_nodes_are_remembered_and_no_more_are_removed() {
    let mut catalog = at_second();
    let at = |number: u64| NewNode { address: format!("node-{number}:1"), ..new_node(number) };
    for number in 10..10 + MAX_REMOVED_NODES as u64 {
        put_node(&mut catalog, at(number));
        run(&mut catalog, Operation::RemoveNode { node: node(number) }).unwrap();
    }
    put_node(&mut catalog, at(5));
    let refusal = refused(&mut catalog, Operation::RemoveNode { node: node(5) });
    says(&refusal, &["number of removed nodes is 10001", "at most 10000"]);
}

/// The clock of the one who extends it may differ from that of the one who began it by hours.
#[test]
fn a_drain_that_is_extended_runs_by_the_clock_of_the_one_who_extends_it() {
    for (version, clock_ms) in [(ClusterVersion::FIRST, NOW), (SECOND, NOW + 5_000)] {
        let mut catalog = three_nodes();
        run(&mut catalog, raise(version, &[1, 2, 3])).unwrap();
        let drain = NewDrain {
            node: node(1),
            owner: "anna".to_owned(),
            deadline_ms: NOW + 100,
            expires_ms: NOW + 200,
            fallback: DrainFallback::GiveUp,
            stranding: Stranding::Accept,
        };
        let intent =
            IntentId::new(run(&mut catalog, Operation::BeginDrain(drain)).unwrap().revision);
        let (deadline_ms, expires_ms) = (NOW + 5_100, NOW + 5_200);
        let extend = Operation::ExtendDrain { node: node(1), intent, deadline_ms, expires_ms };
        run_command(&mut catalog, &Command::new(NOW + 5_000, extend)).unwrap();
        assert_eq!(catalog.view().drains()[&node(1)].clock_ms, clock_ms, "version {version}");
    }
}

/// It came with an earlier program, perhaps, after the old one had said that it is prepared.
#[test]
fn a_raise_is_refused_when_a_disk_was_replaced() {
    let mut catalog = three_nodes();
    put_node(&mut catalog, NewNode { store: 999, ..new_node(3) });
    let refusal = refused(&mut catalog, raise(SECOND, &[1, 2, 3]));
    says(&refusal, &["node 3", "version 2"]);
}

/// Its end waits for members, and the member is to be removed because it does not come back.
#[test]
fn a_destroyed_group_keeps_no_node_from_being_removed() {
    let mut catalog = at_second();
    create(&mut catalog, new_group(7, &[1, 2, 3]));
    let remove = Operation::RemoveNode { node: node(3) };
    assert_eq!(refused(&mut catalog, remove.clone()).name(), "NODE_IN_USE");
    run(&mut catalog, Operation::DestroyGroup { group: group(7), generation: None }).unwrap();
    run(&mut catalog, remove).unwrap();
    assert!(!catalog.view().nodes().contains_key(&node(3)));
}

//! Snapshots that are refused.

use super::super::super::snapshot::{MAX_LOAD, MAX_WEIGHT};
use super::super::super::{Snapshot, SnapshotError, plan};
use super::super::build::{group, nodes, snapshot};
use super::id;
use shardhost_storage::GroupId;

fn sound() -> Snapshot {
    snapshot(nodes(2), (1..=2).map(|id| group(id, 1, &[1, 2])).collect())
}

#[test]
fn two_nodes_with_one_id_are_refused() {
    let mut snapshot = sound();
    snapshot.nodes[1].id = id(1);
    let expected = SnapshotError::Nodes { before: id(1), after: id(1) };
    assert_eq!(snapshot.clone().canonicalise(), Err(expected.clone()));
    assert_eq!(plan(&snapshot), Err(expected));
}

#[test]
fn two_moves_of_one_group_are_refused() {
    let mut snapshot = sound();
    let text = r#"{"group":1,"from":1,"to":2,"ticket":1,"since_ms":0,"completed_at_ms":null,
        "from_reported_ms":null,"to_reported_ms":null}"#;
    let entry: super::super::super::LedgerMove = serde_json::from_str(text).expect("a move");
    snapshot.moves = vec![entry.clone(), entry];
    let group = GroupId::new(1);
    assert_eq!(plan(&snapshot), Err(SnapshotError::Moves { before: group, after: group }));
}

#[test]
fn weights_and_loads_beyond_their_limits_are_refused() {
    let mut snapshot = sound();
    snapshot.nodes[1].weight = MAX_WEIGHT + 1;
    let refusal = plan(&snapshot).expect_err("too large a weight");
    assert_eq!(
        refusal.to_string(),
        "node 2 has weight 1001, the limit is 1000; divide all weights"
    );
    snapshot.nodes[1].weight = MAX_WEIGHT;
    snapshot.groups[0].load = MAX_LOAD + 1;
    plan(&snapshot).expect_err("too large a load");
    snapshot.groups[0].load = MAX_LOAD;
    plan(&snapshot).expect("at the limits");
}

#[test]
fn a_record_with_an_unknown_field_or_a_zero_node_is_refused() {
    let text = serde_json::to_string(&sound()).expect("plain data is JSON");
    serde_json::from_str::<Snapshot>(&text).expect("a snapshot");
    let unknown = text.replacen("\"seed\"", "\"sead\"", 1);
    serde_json::from_str::<Snapshot>(&unknown).expect_err("an unknown field");
    let zero = text.replacen("\"id\":1", "\"id\":0", 1);
    serde_json::from_str::<Snapshot>(&zero).expect_err("a node 0");
}

#[test]
fn an_empty_cluster_has_an_empty_plan() {
    let empty = plan(&Snapshot::default()).expect("nothing is wrong with nothing");
    assert_eq!(empty.moves, []);
    let mut nobody = sound();
    nobody.nodes.clear();
    assert_eq!(plan(&nobody).expect("nobody is known").moves, []);
}

#[test]
fn two_groups_with_one_id_and_two_voters_on_one_node_are_refused() {
    let mut snapshot = sound();
    snapshot.groups[1].id = GroupId::new(1);
    let group = GroupId::new(1);
    assert_eq!(plan(&snapshot), Err(SnapshotError::Groups { before: group, after: group }));
    snapshot.groups.truncate(1);
    snapshot.groups[0].voters[1].node = id(1);
    let expected = SnapshotError::Voters { group, before: id(1), after: id(1) };
    assert_eq!(plan(&snapshot), Err(expected));
}

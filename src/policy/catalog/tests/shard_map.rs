//! The map of shards: recorded once, never changed.

use std::sync::Arc;

use super::*;
use shardhost_proto::shard_map::{KindShards, ShardMap};

const FIRST_TABLE: u64 = 1_000_000;

fn map(tables: u64) -> ShardMap {
    let shards = |count, first| KindShards { count, first_group: group(first) };
    ShardMap::first([
        ("table".to_owned(), shards(tables, FIRST_TABLE)),
        ("queue".to_owned(), shards(0, 2_000_000)),
    ])
}

fn found(catalog: &mut Catalog, tables: u64) -> Reply {
    run(catalog, Operation::FoundShardMap { map: map(tables) })
}

/// A table as an earlier version created it.
fn table(number: u64) -> NewGroup {
    let founders = [node(1)];
    let mut new = NewGroup::new(group(FIRST_TABLE + number), name("table"), founders);
    new.labels = vec![Label { key: name("shard"), value: number.to_string().into() }];
    new
}

#[test]
fn the_first_map_stays_and_another_one_is_refused_with_it() {
    let mut catalog = Catalog::default();
    let founded = found(&mut catalog, 8).unwrap();
    assert_eq!(catalog.view().settings().shard_map.as_deref(), Some(&map(8)));
    assert_eq!(found(&mut catalog, 8).unwrap(), Done::unchanged(founded.revision));
    for other in [0, 7, 16] {
        let refused = found(&mut catalog, other).unwrap_err();
        assert_eq!(refused, Refusal::OtherShardMap { cluster: Arc::new(map(8)) });
        assert!(refused.to_string().contains("8 table shards"), "{refused}");
    }
    // What else is set leaves it alone.
    run(&mut catalog, Operation::SetPlannerMode { mode: PlannerMode::On }).unwrap();
    assert_eq!(catalog.view().settings().shard_map.as_deref(), Some(&map(8)));
}

#[test]
fn shards_of_an_earlier_version_decide_what_map_is_founded() {
    let mut catalog = Catalog::default();
    put_node(&mut catalog, new_node(1));
    for number in 0..4 {
        create(&mut catalog, table(number));
    }
    // Groups that happen to have such a number, or another kind, are no shards.
    create(&mut catalog, new_group(FIRST_TABLE + 50, &[1]));
    let refused = found(&mut catalog, 8).unwrap_err();
    assert_eq!(refused, Refusal::OtherShardMap { cluster: Arc::new(map(4)) });
    found(&mut catalog, 4).unwrap();
}

#[test]
fn a_map_that_makes_no_sense_is_malformed() {
    let mut catalog = Catalog::default();
    let version = ShardMap { version: 0, ..map(8) };
    let refused = catalog.apply(&Command::new(NOW, Operation::FoundShardMap { map: version }));
    assert!(matches!(refused, Err(Refusal::Malformed { .. })), "{refused:?}");
}

#[test]
fn the_map_is_part_of_snapshot_and_digest() {
    let (mut catalog, mut other) = (Catalog::default(), Catalog::default());
    found(&mut catalog, 8).unwrap();
    found(&mut other, 9).unwrap();
    assert_ne!(catalog.digest(), other.digest());
    let mut bytes = Vec::new();
    write_snapshot(&catalog, &mut bytes).unwrap();
    let read = read_snapshot(&mut &bytes[..]).unwrap();
    assert_eq!(read, catalog);
}

//! How large a cluster is, what its groups want, and how patient its planners are.

use std::collections::{BTreeMap, BTreeSet};

use shardhost_storage::{GroupId, NodeId};

use super::super::super::{BackOffSettings, Bounds, ExecutorSettings};
use super::Chance;
use super::host::Host;
use super::shard::{Hosts, Shard};
use crate::planner::{Requirement, RequirementMode};

/// How long a group rests in the simulation.
pub(super) const COOL_DOWN_MS: u64 = 60_000;
/// How long a target is left alone at first.
pub(super) const MUTE_MS: u64 = 2_000;

/// A cluster at its beginning.
pub(super) struct Shape {
    pub(super) hosts: Hosts,
    pub(super) shards: BTreeMap<GroupId, Shard>,
    pub(super) settings: ExecutorSettings,
}

impl Shape {
    pub(super) fn draw(chance: &mut Chance) -> Self {
        let nodes = chance.between(3, 5);
        let ids = 1..=nodes;
        let hosts = ids.map(|id| (NodeId::must(id), Host::new(id, abilities(chance)))).collect();
        let groups = chance.between(4, 16);
        let loaded = chance.per_mille(500);
        let shards = (1..=groups).map(|id| {
            let mut shard = shard(id, nodes, chance);
            shard.load = if loaded { chance.between(0, 3_000) } else { 0 };
            (shard.id, shard)
        });
        Self { hosts, shards: shards.collect(), settings: settings(chance) }
    }
}

fn abilities(chance: &mut Chance) -> BTreeSet<String> {
    let fifo = chance.per_mille(700).then(|| "fifo".to_owned());
    fifo.into_iter().collect()
}

fn shard(id: u64, nodes: u64, chance: &mut Chance) -> Shard {
    let mut voters = BTreeSet::new();
    while voters.len() < 3 {
        voters.insert(NodeId::must(chance.between(1, nodes)));
    }
    Shard {
        id: GroupId::new(id),
        leader: voters.first().copied(),
        voters,
        term: 1,
        requirement: requirement(chance.per_mille(300)),
        label: chance.per_mille(300).then(|| format!("label-{}", id % 2)),
        load: 0,
        moved_at_ms: None,
        transferring: false,
        elect_at_ms: None,
        elections: 0,
        news_at_ms: 0,
    }
}

pub(super) fn requirement(fifo: bool) -> Requirement {
    let capabilities = fifo.then(|| "fifo".to_owned()).into_iter().collect();
    Requirement { capabilities, mode: RequirementMode::Hard }
}

/// As in production, with shorter times, and sometimes with bounds that are reached.
fn settings(chance: &mut Chance) -> ExecutorSettings {
    let mut settings = ExecutorSettings {
        warm_up_ms: 5_000,
        warm_up_longest_ms: 20_000,
        silent_ms: 5_000,
        plan_life_ms: 2_500,
        answer_ms: 5_000,
        expiry_ms: 20_000,
        back_off: BackOffSettings { first_ms: MUTE_MS, longest_ms: 60_000 },
        ..ExecutorSettings::default()
    };
    settings.planner.cool_down_ms = COOL_DOWN_MS;
    settings.planner.warm_up_ms = 10_000;
    settings.planner.load_tier = chance.per_mille(500);
    settings.breaker.open = BackOffSettings { first_ms: 2_000, longest_ms: 30_000 };
    settings.node_breaker.open = settings.breaker.open;
    if chance.per_mille(300) {
        settings.bounds = Bounds {
            ledger: 2,
            back_offs: 3,
            queue: 4,
            cool_down: 1_000,
            records: 2,
            recorded_groups: 20,
        };
    }
    settings
}

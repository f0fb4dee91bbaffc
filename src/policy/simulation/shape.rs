//! How large a cluster is, what its nodes can do and its groups want, and how patient its planners
//! are.

use std::collections::BTreeMap;

use shardhost_groups::nodes::Advertisement;
use shardhost_groups::{GroupId, NodeId, Requirement};
use shardhost_testing::simulation::{Chance, Shape as ClusterShape};

use crate::executor::{BackOffSettings, ExecutorSettings};

/// How long a group rests.
pub(super) const COOL_DOWN_MS: u64 = 6_000;
/// How long a fresh planner moves nothing, at least.
pub(super) const WARM_UP_MS: u64 = 2_000;

/// A cluster at its beginning.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// The groups' world. Spare nodes are its last.
    pub(super) cluster: ClusterShape,
    pub(super) advertisements: BTreeMap<NodeId, Advertisement>,
    pub(super) requirements: BTreeMap<GroupId, Requirement>,
    /// Commands per second that clients send to each group, beside those of the groups' world.
    pub(super) rates: BTreeMap<GroupId, u64>,
    pub(super) settings: ExecutorSettings,
}

impl Shape {
    /// As a seed draws it.
    pub(super) fn draw(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0x9_1a9e);
        let mut shape = Self::calm(chance.between(3, 5), chance.between(3, 7), seed);
        let loaded = seed.is_multiple_of(50) || chance.per_mille(150);
        for node in (1..=shape.cluster.nodes).map(NodeId::must) {
            shape.advertisements.insert(node, any_advertisement(&mut chance));
        }
        for group in (1..=shape.cluster.groups).map(GroupId::new) {
            if chance.per_mille(400) {
                shape.requirements.insert(group, any_requirement(&mut chance));
            }
            shape.rates.insert(group, if loaded { 12 * chance.below(5) } else { 0 });
        }
        shape.settings.planner.load_tier = loaded;
        shape.cluster.drift = chance.below(30);
        shape
    }

    /// All nodes have all capabilities, and no group requires any.
    pub(super) fn calm(nodes: u64, groups: u64, seed: u64) -> Self {
        let mut cluster = ClusterShape::calm();
        (cluster.nodes, cluster.groups, cluster.replicas) = (nodes, groups, 3);
        cluster.system_group = true;
        cluster.policies = true;
        cluster.config.seed = seed;
        // Both are checked where groups are simulated alone.
        cluster.check_messages = false;
        cluster.load_every = 100;
        let nodes = (1..=nodes).map(NodeId::must);
        Self {
            cluster,
            advertisements: nodes.map(|node| (node, advertisement(&["fifo", "ssd"]))).collect(),
            requirements: BTreeMap::new(),
            rates: (1..=groups).map(|group| (GroupId::new(group), 0)).collect(),
            settings: settings(),
        }
    }
}

/// The advertisement of a node with these capabilities.
pub(super) fn advertisement(names: &[&str]) -> Advertisement {
    Advertisement {
        capabilities: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Advertisement::default()
    }
}

/// What a node may say of itself.
pub(super) fn any_advertisement(chance: &mut Chance) -> Advertisement {
    let kinds: [&[&str]; 6] =
        [&["fifo", "ssd"], &["fifo", "ssd"], &["fifo", "ssd"], &["fifo"], &["ssd"], &[]];
    advertisement(chance.pick(&kinds).unwrap_or(&[]))
}

/// What a group may ask for.
pub(super) fn any_requirement(chance: &mut Chance) -> Requirement {
    let made = match chance.below(5) {
        0 => Ok(Requirement::default()),
        1 => Requirement::soft(["fifo"]),
        2 | 3 => Requirement::hard(["fifo"]),
        _ => Requirement::hard(["fifo", "ssd"]),
    };
    made.expect("these names are fine")
}

/// As in production, with shorter times.
fn settings() -> ExecutorSettings {
    let mut settings = ExecutorSettings {
        warm_up_ms: WARM_UP_MS,
        warm_up_longest_ms: 6_000,
        silent_ms: 5_000,
        expiry_ms: 20_000,
        back_off: BackOffSettings { first_ms: 1_000, longest_ms: 8_000 },
        ..ExecutorSettings::default()
    };
    settings.planner.cool_down_ms = COOL_DOWN_MS;
    settings.planner.warm_up_ms = 2_000;
    settings.breaker.open = BackOffSettings { first_ms: 1_000, longest_ms: 8_000 };
    settings.node_breaker.open = settings.breaker.open;
    settings.load.smoothing_ms = 6_000;
    settings.load.centre_ms = 20_000;
    settings
}

//! Whole clusters from a seed: nodes are lost, return, join and are drained, orders take time, are refused or
//! lost. Eventually every loss that leaves a quorum is healed, and then nothing moves any more.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::choose::Bug;
use super::*;
use crate::catalog::{Name, Subject};

const REPLACE_AFTER: u64 = 20;
const SEEDS: u64 = 200;

#[derive(Clone, Debug)]
struct Group {
    members: BTreeSet<NodeId>,
    requires: bool,
    /// The one that gives, the one that gets, and when that ends.
    change: Option<(NodeId, NodeId, u64)>,
}

#[derive(Debug)]
struct Node {
    place: Place,
    live: bool,
    silent_since: u64,
}

/// A cluster as its groups and nodes are. Rules of groups: a change needs a quorum that answers and a target
/// that does.
struct Cluster {
    rng: SmallRng,
    nodes: BTreeMap<NodeId, Node>,
    groups: BTreeMap<GroupId, Group>,
    now: u64,
    moved: u64,
    zones: u64,
    bug: Option<Bug>,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let zones = rng.random_range(0..4u64);
        let (nodes, groups) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster = Self { rng, nodes, groups, now: 0, moved: 0, zones, bug: None };
        for _ in 0..cluster.rng.random_range(4..9u64) {
            cluster.add_node();
        }
        let ids: Vec<NodeId> = cluster.nodes.keys().copied().collect();
        for number in 1..=cluster.rng.random_range(1..60u64) {
            let mut members = BTreeSet::new();
            while members.len() < 3 {
                members.insert(ids[cluster.rng.random_range(0..ids.len())]);
            }
            let requires = cluster.rng.random_bool(0.3);
            cluster.groups.insert(GroupId::new(number), Group { members, requires, change: None });
        }
        cluster
    }

    fn add_node(&mut self) {
        let id = NodeId::must(self.nodes.len() as u64 + 1);
        let zone = (self.zones > 0).then(|| self.rng.random_range(0..self.zones));
        let zone = zone.map(|zone| Name::new(Subject::Zone, &format!("z{zone}")).unwrap());
        let has = self.rng.random_bool(0.7);
        let capabilities = has.then(fifo).into_iter().collect();
        let place = Place { standing: Standing::Open, zone, capabilities };
        self.nodes.insert(id, Node { place, live: true, silent_since: 0 });
    }

    fn live_in(&self, members: &BTreeSet<NodeId>) -> usize {
        members.iter().filter(|node| self.nodes[node].live).count()
    }

    /// Something happens to a node.
    fn disturb(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let id = ids[self.rng.random_range(0..ids.len())];
        match self.rng.random_range(0..10) {
            0 if self.nodes.len() < 12 => self.add_node(),
            1..=3 => {
                let (now, node) = (self.now, self.nodes.get_mut(&id).unwrap());
                if node.live {
                    (node.live, node.silent_since) = (false, now);
                }
            }
            4..=7 => self.nodes.get_mut(&id).unwrap().live = true,
            8 => {
                let node = self.nodes.get_mut(&id).unwrap();
                let open = node.place.standing == Standing::Open;
                node.place.standing = if open { Standing::Closed } else { Standing::Open };
            }
            _ => {}
        }
    }

    fn places(&self) -> BTreeMap<NodeId, Place> {
        let place = |node: &Node| {
            let standing = match (node.live, self.now - node.silent_since >= REPLACE_AFTER) {
                (true, _) => node.place.standing,
                (false, true) => Standing::Gone,
                (false, false) => Standing::Silent,
            };
            Place { standing, ..node.place.clone() }
        };
        self.nodes.iter().map(|(id, node)| (*id, place(node))).collect()
    }

    fn pass(&self, resting: &BTreeSet<GroupId>) -> Choice {
        let held = |(id, group): (&GroupId, &Group)| Held {
            group: *id,
            members: group.members.iter().copied().collect(),
            requires: group.requires.then(fifo).into_iter().collect(),
            short: false,
        };
        let groups: Vec<Held> = self.groups.iter().map(held).collect();
        let moving = self.groups.iter().filter_map(|(id, group)| {
            let (old, new, _) = group.change?;
            Some((*id, (old, new)))
        });
        choose(&Picture {
            places: &self.places(),
            groups: &groups,
            moving: &moving.collect(),
            avoided: &BTreeSet::new(),
            resting,
            limit: 16,
            spread: true,
            bug: self.bug,
        })
    }

    fn order(&mut self, change: &Change) {
        let Change { group: id, old, new, reason, .. } = *change;
        let group = &self.groups[&id];
        assert!(group.change.is_none(), "group {id} changes already");
        assert!(group.members.contains(&old) && !group.members.contains(&new), "{change:?}");
        assert!(self.nodes[&new].live, "{change:?}: the target does not answer");
        if reason == Reason::Gone {
            assert!(!self.nodes[&old].live, "{change:?}: the one that gives answers");
        } else {
            self.check_loses_nothing(change);
        }
        // Lost on the way, or refused.
        if self.rng.random_bool(0.1) {
            return;
        }
        let until = self.now + self.rng.random_range(1..15);
        self.groups.get_mut(&id).unwrap().change = Some((old, new, until));
    }

    fn check_loses_nothing(&self, change: &Change) {
        let group = &self.groups[&change.group];
        let then: BTreeSet<NodeId> = group
            .members
            .iter()
            .copied()
            .filter(|node| *node != change.old)
            .chain([change.new])
            .collect();
        let fit = |members: &BTreeSet<NodeId>| {
            members.iter().filter(|node| !self.nodes[node].place.capabilities.is_empty()).count()
        };
        assert!(!group.requires || fit(&then) >= fit(&group.members), "{change:?}");
        assert!(self.zones_of(&then) >= self.zones_of(&group.members), "{change:?}");
    }

    fn zones_of(&self, members: &BTreeSet<NodeId>) -> usize {
        let zones = members.iter().filter_map(|node| self.nodes[node].place.zone.as_ref());
        zones.collect::<BTreeSet<_>>().len()
    }

    /// Changes end whose time has come.
    fn progress(&mut self) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            let Some((old, new, until)) = self.groups[&id].change else { continue };
            let members = self.groups[&id].members.clone();
            let quorum = self.live_in(&members) > members.len() / 2;
            if !self.nodes[&new].live {
                // The leader cancels it when it is ordered to take another node.
                self.groups.get_mut(&id).unwrap().change = None;
            } else if quorum && self.now >= until {
                let before = self.live_in(&members);
                let group = self.groups.get_mut(&id).unwrap();
                group.members.remove(&old);
                group.members.insert(new);
                group.change = None;
                self.moved += 1;
                let after = self.live_in(&self.groups[&id].members);
                let returned = usize::from(self.nodes[&old].live);
                assert!(
                    after + returned > before,
                    "group {id} has fewer live voters by our own action"
                );
            }
        }
    }

    fn run(&mut self, steps: u64, disturbed: bool) {
        for _ in 0..steps {
            self.now += 1;
            if disturbed && self.rng.random_bool(0.15) {
                self.disturb();
            }
            self.progress();
            let resting = self.groups.keys().copied();
            let resting = resting.filter(|_| self.rng.random_bool(0.1)).collect();
            for change in self.pass(&resting).changes {
                self.order(&change);
            }
        }
    }

    /// The members are as they should be.
    fn check_healed(&self) {
        let places = self.places();
        for (id, group) in &self.groups {
            if self.live_in(&group.members) <= group.members.len() / 2 {
                continue;
            }
            let lost = group.members.iter().any(|node| places[node].standing == Standing::Gone);
            let open = places.iter().any(|(node, place)| {
                place.standing == Standing::Open && !group.members.contains(node)
            });
            assert!(!lost || !open, "group {id} has a lost replica and a node for another one");
        }
    }

    fn counts(&self) -> Vec<u64> {
        let open = self
            .nodes
            .iter()
            .filter(|(_, node)| node.live && node.place.standing == Standing::Open);
        let held = |id: &NodeId| {
            self.groups.values().filter(|group| group.members.contains(id)).count() as u64
        };
        open.map(|(id, _)| held(id)).collect()
    }
}

fn fifo() -> Name {
    Name::new(Subject::Capability, "fifo").unwrap()
}

fn heals(seed: u64, bug: Option<Bug>) {
    let mut cluster = Cluster::new(seed);
    cluster.bug = bug;
    cluster.run(300, true);
    cluster.run(600, false);
    cluster.check_healed();
    let moved = cluster.moved;
    cluster.run(100, false);
    assert_eq!(cluster.moved, moved, "seed {seed}: replicas move without a cause");
}

#[test]
fn every_loss_that_leaves_a_quorum_heals_and_then_nothing_moves() {
    (0..SEEDS).for_each(|seed| heals(seed, None));
}

/// How many replicas moved, and how many had to: without zones and requirements those above an even part.
fn spreads(seed: u64, bug: Option<Bug>) -> (u64, u64) {
    let mut cluster = Cluster::new(seed);
    cluster.bug = bug;
    for node in cluster.nodes.values_mut() {
        (node.place.zone, node.place.capabilities) = (None, [fifo()].into());
    }
    let mut counts = cluster.counts();
    let (total, nodes) = (counts.iter().sum::<u64>(), counts.len() as u64);
    // The fullest nodes keep one more.
    counts.sort_unstable_by(|one, other| other.cmp(one));
    let part = |at: u64| total / nodes + u64::from(at < total % nodes);
    let least = counts.iter().zip(0..).map(|(count, at)| count.saturating_sub(part(at))).sum();
    cluster.run(800, false);
    let counts = cluster.counts();
    let (most, fewest) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
    assert!(most - fewest <= 1, "seed {seed}: {counts:?}");
    (cluster.moved, least)
}

fn spreads_with_few_moves(seeds: u64, bug: Option<Bug>) {
    let all = (0..seeds).map(|seed| spreads(seed, bug));
    let (moved, least) = all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(moved * 100 <= least * 105, "{moved} moves, {least} are needed");
}

#[test]
fn spreading_moves_no_more_than_it_must() {
    spreads_with_few_moves(SEEDS, None);
}

/// What the simulation is for: each of these would be found.
#[test]
fn every_known_fault_is_found() {
    let bugs = [
        Bug::LevelsOne,
        Bug::ForgetsZones,
        Bug::ForgetsRequirements,
        Bug::ForgetsMoving,
        Bug::ReplacesOne,
    ];
    for bug in bugs {
        let found = std::panic::catch_unwind(|| {
            (0..SEEDS).for_each(|seed| heals(seed, Some(bug)));
            spreads_with_few_moves(SEEDS, Some(bug));
        });
        assert!(found.is_err(), "{bug:?} is not found");
    }
}

/// One pass over 10,000 groups on 50 nodes, one of which is gone.
#[test]
fn a_pass_over_a_large_cluster_is_short() {
    let mut rng = SmallRng::seed_from_u64(1);
    let place = |number: u64| {
        let zone = Some(Name::new(Subject::Zone, &format!("z{}", number % 5)).unwrap());
        let standing = if number == 50 { Standing::Gone } else { Standing::Open };
        (NodeId::must(number), Place { standing, zone, capabilities: Box::default() })
    };
    let places: BTreeMap<NodeId, Place> = (1..=50).map(place).collect();
    let mut group = |number: u64| {
        let mut members = BTreeSet::new();
        while members.len() < 3 {
            members.insert(NodeId::must(rng.random_range(1..=50)));
        }
        let members = members.into_iter().collect();
        Held { group: GroupId::new(number), members, requires: Box::default(), short: false }
    };
    let groups: Vec<Held> = (1..=10_000).map(&mut group).collect();
    let (moving, resting) = (BTreeMap::new(), BTreeSet::new());
    let began = std::time::Instant::now();
    let choice = choose(&Picture {
        places: &places,
        groups: &groups,
        moving: &moving,
        avoided: &BTreeSet::new(),
        resting: &resting,
        limit: MAX_MOVING,
        spread: true,
        bug: None,
    });
    let took = began.elapsed();
    println!("a pass took {took:?}");
    assert_eq!(choice.changes.len(), MAX_MOVING);
    // A debug build on a busy machine: far above what it takes.
    assert!(took.as_secs() < 5, "{took:?}");
}

//! Whole clusters from a seed: nodes are lost, return, join and are drained, orders take time, are refused or
//! lost. Eventually every loss that leaves a quorum is healed, and then nothing moves any more.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::choose::Bug;
use super::*;
use crate::catalog::{Name, Selection, Subject};

const REPLACE_AFTER: u64 = 20;
const SEEDS: u64 = 200;

#[derive(Clone, Debug)]
struct Group {
    members: BTreeSet<NodeId>,
    /// Those of them without a vote, in order.
    learners: Vec<NodeId>,
    requires: Vec<Name>,
    /// Where its leader is wanted.
    wanted: Option<catalog::Place>,
    rule: Option<ReplicaRule>,
    /// What becomes of it, and when that ends.
    change: Option<(Step, u64)>,
}

impl Group {
    fn voters(&self) -> BTreeSet<NodeId> {
        let voters = self.members.iter().filter(|member| !self.learners.contains(member));
        voters.copied().collect()
    }

    fn take(&mut self, step: Step) {
        let gets_no_vote = match step {
            Step::Replace { old, .. } => self.learners.contains(&old),
            Step::ReplaceLearner { .. } => true,
            Step::Add { learner, .. } => learner,
            Step::Remove { .. } => false,
        };
        if let Some(old) = step.old() {
            self.members.remove(&old);
            self.learners.retain(|node| *node != old);
        }
        if let Some(new) = step.new_node() {
            self.members.insert(new);
            self.learners.extend(gets_no_vote.then_some(new));
            self.learners.sort_unstable();
        }
    }

    fn with(&self, step: Step) -> Self {
        let mut then = self.clone();
        then.take(step);
        then
    }

    fn held(&self, group: GroupId) -> Held<'_> {
        Held {
            group,
            members: self.members.iter().copied().collect(),
            learners: Some(&self.learners),
            requires: &self.requires,
            wanted: self.wanted.iter().cloned().collect(),
            short: false,
            rule: self.rule.as_ref(),
        }
    }
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
    /// Operators set rules.
    ruled: bool,
    bug: Option<Bug>,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let zones = rng.random_range(0..4u64);
        let (nodes, groups) = (BTreeMap::new(), BTreeMap::new());
        let (ruled, bug) = (seed % 2 == 1, None);
        let mut cluster = Self { rng, nodes, groups, now: 0, moved: 0, zones, ruled, bug };
        for _ in 0..cluster.rng.random_range(4..9u64) {
            cluster.add_node();
        }
        let ids: Vec<NodeId> = cluster.nodes.keys().copied().collect();
        for number in 1..=cluster.rng.random_range(1..60u64) {
            let mut members = BTreeSet::new();
            while members.len() < 3 {
                members.insert(ids[cluster.rng.random_range(0..ids.len())]);
            }
            let requires = cluster.rng.random_bool(0.3).then(fifo).into_iter().collect();
            let wanted = cluster.rng.random_bool(0.2);
            let wanted = wanted.then(|| catalog::Place::Node(*members.first().unwrap()));
            let (learners, rule, change) = (Vec::new(), None, None);
            let group = Group { members, learners, requires, wanted, rule, change };
            cluster.groups.insert(GroupId::new(number), group);
        }
        cluster
    }

    /// An operator sets a rule for a part of the groups, or removes it.
    fn set_rule(&mut self) {
        let count = |rng: &mut SmallRng, of: &[u32]| {
            rng.random_bool(0.7).then(|| of[rng.random_range(0..of.len())])
        };
        let voters = count(&mut self.rng, &[1, 3, 3, 5]);
        let learners = count(&mut self.rng, &[0, 1, 2]);
        let zones = (0..self.zones).filter(|_| self.rng.random_bool(0.5)).map(zone).collect();
        let capabilities = self.rng.random_bool(0.2).then(fifo).into_iter().collect();
        let (name, groups) = (zone(0), Selection::All);
        let rule = ReplicaRule { name, groups, voters, learners, zones, capabilities };
        let rule = self.rng.random_bool(0.8).then_some(rule);
        let part = self.rng.random_range(1..4);
        for (id, group) in &mut self.groups {
            if id.get() % part == 0 {
                group.rule.clone_from(&rule);
            }
        }
    }

    fn add_node(&mut self) {
        let id = NodeId::must(self.nodes.len() as u64 + 1);
        let zone = (self.zones > 0).then(|| zone(self.rng.random_range(0..self.zones)));
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
        let groups: Vec<Held<'_>> = self.groups.iter().map(|(id, group)| group.held(*id)).collect();
        let moving = self.groups.iter().filter_map(|(id, group)| {
            let (step, _) = group.change?;
            Some((*id, step))
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
        let Change { group: id, step, reason, .. } = *change;
        let group = &self.groups[&id];
        assert!(group.change.is_none(), "group {id} changes already");
        assert!(step.old().is_none_or(|old| group.members.contains(&old)), "{change:?}");
        if let Some(new) = step.new_node() {
            assert!(!group.members.contains(&new), "{change:?}");
            assert!(self.nodes[&new].live, "{change:?}: the target does not answer");
            assert!(self.allows(group, new), "{change:?}: the rule does not allow the target");
        }
        match (reason, step) {
            (Reason::Gone, _) => {
                let old = step.old().unwrap();
                assert!(!self.nodes[&old].live, "{change:?}: the one that gives answers");
            }
            (Reason::Missing | Reason::Excess, _) => self.check_number(change),
            (_, Step::Replace { old, .. } | Step::ReplaceLearner { old, .. }) => {
                let breach = !self.allows(group, old);
                assert!(reason != Reason::Rule || breach, "{change:?}: the rule allows it");
                self.check_loses_nothing(change);
            }
            _ => panic!("{change:?}"),
        }
        // Lost on the way, or refused.
        if self.rng.random_bool(0.1) {
            return;
        }
        let until = self.now + self.rng.random_range(1..15);
        self.groups.get_mut(&id).unwrap().change = Some((step, until));
    }

    fn allows(&self, group: &Group, node: NodeId) -> bool {
        let place = &self.nodes[&node].place;
        let allows = |rule: &ReplicaRule| rule.allows(place.zone.as_ref(), &place.capabilities);
        group.rule.as_ref().is_none_or(allows)
    }

    /// A number of replicas changes towards that of the rule.
    fn check_number(&self, change: &Change) {
        let group = &self.groups[&change.group];
        let (before, after) = (group.held(change.group), group.with(change.step));
        let after = after.held(change.group);
        for learner in [false, true] {
            let (before, after) = (before.lacks(learner), after.lacks(learner));
            assert!(after.abs() <= before.abs(), "{change:?}: {before} to {after}");
        }
        let live = self.live_in(&self.groups[&change.group].voters());
        let wanted = group.rule.as_ref().and_then(|rule| rule.voters);
        let enough = wanted.is_none_or(|wanted| live >= wanted as usize);
        let takes_vote = group.with(change.step).voters().len() < group.voters().len();
        assert!(!takes_vote || enough, "{change:?}: a voter is removed and not all answer");
    }

    fn check_loses_nothing(&self, change: &Change) {
        let group = &self.groups[&change.group];
        let then = group.with(change.step);
        let fit = |group: &Group| {
            let has = |node: &&NodeId| !self.nodes[node].place.capabilities.is_empty();
            group.members.iter().filter(has).count()
        };
        assert!(group.requires.is_empty() || fit(&then) >= fit(group), "{change:?}");
        if change.reason == Reason::Rule {
            return;
        }
        assert!(self.zones_of(&then.members) >= self.zones_of(&group.members), "{change:?}");
        if let Some(catalog::Place::Node(wanted)) = &group.wanted {
            let left = group.members.contains(wanted) && !then.members.contains(wanted);
            assert!(!left, "{change:?}: its leader is wanted there");
        }
    }

    fn zones_of(&self, members: &BTreeSet<NodeId>) -> usize {
        let zones = members.iter().filter_map(|node| self.nodes[node].place.zone.as_ref());
        zones.collect::<BTreeSet<_>>().len()
    }

    /// Changes end whose time has come.
    fn progress(&mut self) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            let Some((step, until)) = self.groups[&id].change else { continue };
            let voters = self.groups[&id].voters();
            let quorum = self.live_in(&voters) > voters.len() / 2;
            if step.new_node().is_some_and(|new| !self.nodes[&new].live) {
                // The leader cancels it when it is ordered to take another node.
                self.groups.get_mut(&id).unwrap().change = None;
            } else if quorum && self.now >= until {
                self.end(id, step);
            }
        }
    }

    /// The leader refuses to remove a voter where too few of the others answer.
    fn end(&mut self, id: GroupId, step: Step) {
        let group = &self.groups[&id];
        let (before, then) = (self.live_in(&group.voters()), group.with(step));
        let after = self.live_in(&then.voters());
        let group = self.groups.get_mut(&id).unwrap();
        group.change = None;
        if matches!(step, Step::Remove { .. }) && after <= then.voters().len() / 2 {
            return;
        }
        group.take(step);
        self.moved += 1;
        let returned = usize::from(step.old().is_some_and(|old| self.nodes[&old].live));
        assert!(after + returned >= before, "group {id} has fewer live voters by our own action");
    }

    fn run(&mut self, steps: u64, disturbed: bool) {
        for _ in 0..steps {
            self.now += 1;
            if disturbed && self.rng.random_bool(0.15) {
                self.disturb();
            }
            if disturbed && self.ruled && self.rng.random_bool(0.01) {
                self.set_rule();
            }
            self.progress();
            let resting = self.groups.keys().copied();
            let resting = resting.filter(|_| self.rng.random_bool(0.1)).collect();
            for change in self.pass(&resting).changes {
                self.order(&change);
            }
        }
    }

    /// The members are as they should be, where they can be.
    fn check_healed(&self) {
        let places = self.places();
        for (id, group) in &self.groups {
            let voters = group.voters();
            if self.live_in(&voters) <= voters.len() / 2 {
                continue;
            }
            let open = |node: &NodeId, place: &Place| {
                place.standing == Standing::Open
                    && !group.members.contains(node)
                    && self.allows(group, *node)
            };
            let open: Vec<&NodeId> =
                places.iter().filter(|(node, place)| open(node, place)).map(|(id, _)| id).collect();
            let lost = group.members.iter().any(|node| places[node].standing == Standing::Gone);
            assert!(
                !lost || open.is_empty(),
                "group {id} has a lost replica and a node for another one"
            );
            let held = group.held(*id);
            let lacks = held.lacks(false) > 0 || held.lacks(true) > 0;
            assert!(!lacks || open.is_empty(), "group {id} lacks a replica: {group:?}");
            if places.values().any(|place| place.standing == Standing::Gone) {
                continue;
            }
            let excess = held.lacks(false) < 0 || held.lacks(true) < 0;
            assert!(!excess, "group {id} has too many replicas: {group:?}");
            let fit =
                |node: &NodeId| group.requires.is_empty() || !places[node].capabilities.is_empty();
            let forbidden = group.members.iter().find(|node| !self.allows(group, **node));
            let better = forbidden.filter(|old| open.iter().any(|new| fit(new) || !fit(old)));
            assert!(better.is_none(), "group {id} is where its rule does not allow it: {group:?}");
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

fn zone(number: u64) -> Name {
    Name::new(Subject::Zone, &format!("z{number}")).unwrap()
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
    for group in cluster.groups.values_mut() {
        group.wanted = None;
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
        Bug::ForgetsRules,
        Bug::RemovesOneMore,
        Bug::RemovesInNeed,
        Bug::ForgetsWishes,
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
        let zone = Some(zone(number % 5));
        let standing = if number == 50 { Standing::Gone } else { Standing::Open };
        (NodeId::must(number), Place { standing, zone, capabilities: Box::default() })
    };
    let places: BTreeMap<NodeId, Place> = (1..=50).map(place).collect();
    let mut group = |number: u64| {
        let mut members = BTreeSet::new();
        while members.len() < 3 {
            members.insert(NodeId::must(rng.random_range(1..=50)));
        }
        Held {
            group: GroupId::new(number),
            members: members.into_iter().collect(),
            learners: Some(&[]),
            requires: &[],
            wanted: Vec::new(),
            short: false,
            rule: None,
        }
    };
    let groups: Vec<Held<'_>> = (1..=10_000).map(&mut group).collect();
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

//! Founders in a world that loses, repeats and delays what they report, crashes them between any two
//! steps and takes their disks away.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shardhost_storage::NodeId;

use super::decide::{Agreement, Record, Report, Sabotage, StoreId, Stores, Verdict};

/// Reports under way at most; the oldest are lost.
const MAX_UNDER_WAY: usize = 64;
const STEPS: usize = 400;
/// Steps in which everything that lives must come to its end, when no disk was lost.
const CALM_STEPS: usize = 400;

/// One disk: it is gone when it is replaced.
struct Disk {
    store: StoreId,
    record: Option<Record>,
    /// The groups were created here, by the founders with these stores.
    founded: Option<Stores>,
}

struct Founder {
    disk: Disk,
    running: Option<Agreement>,
}

struct World {
    rng: StdRng,
    sabotage: Option<Sabotage>,
    founders: BTreeMap<NodeId, Founder>,
    under_way: Vec<(NodeId, Report)>,
    next_store: u64,
    /// Every founding that there ever was.
    foundings: BTreeSet<Vec<(NodeId, StoreId)>>,
    disks_lost: usize,
}

impl World {
    fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(1..=4);
        let mut world = Self {
            rng,
            sabotage,
            founders: BTreeMap::new(),
            under_way: Vec::new(),
            next_store: 1,
            foundings: BTreeSet::new(),
            disks_lost: 0,
        };
        for node in 1..=count {
            let disk = world.new_disk();
            world.founders.insert(NodeId::must(node), Founder { disk, running: None });
        }
        world
    }

    fn new_disk(&mut self) -> Disk {
        let store = StoreId::new(self.next_store);
        self.next_store += 1;
        Disk { store, record: None, founded: None }
    }

    fn node(&mut self) -> NodeId {
        let nodes: Vec<NodeId> = self.founders.keys().copied().collect();
        *nodes.choose(&mut self.rng).unwrap()
    }

    fn start(&mut self, node: NodeId) {
        let founders = self.founders.keys().copied().collect();
        let founder = self.founders.get_mut(&node).unwrap();
        if founder.running.is_some() {
            return;
        }
        if self.sabotage == Some(Sabotage::ForgetRecord) {
            founder.disk.record = None;
        }
        let Disk { store, record, founded } = &founder.disk;
        let mut agreement = Agreement::new(node, *store, founders, BTreeSet::new(), record.clone());
        agreement.sabotage = self.sabotage;
        if founded.is_some() {
            agreement.holds_groups();
        }
        self.keep(node, agreement);
    }

    /// What a change makes durable; a crash may come before it, or right after.
    fn keep(&mut self, node: NodeId, agreement: Agreement) {
        let crashes = self.rng.random_ratio(1, 40);
        let before = self.rng.random();
        let founder = self.founders.get_mut(&node).unwrap();
        if !(crashes && before) {
            founder.disk.record = Some(agreement.record().clone());
        }
        founder.running = (!crashes).then_some(agreement);
    }

    fn send(&mut self, from: NodeId, to: NodeId) {
        let Some(agreement) = &self.founders[&from].running else { return };
        self.under_way.push((to, agreement.report()));
        if self.under_way.len() > MAX_UNDER_WAY {
            self.under_way.remove(0);
        }
    }

    /// A report arrives, and may be under way once more.
    fn deliver(&mut self, faults: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.under_way.len());
        let repeated = faults && self.rng.random_ratio(1, 4);
        let (to, report) = match repeated {
            true => self.under_way[at].clone(),
            false => self.under_way.swap_remove(at),
        };
        let lost = faults && self.rng.random_ratio(1, 4);
        let running = self.founders[&to].running.clone().filter(|_| !lost);
        if let Some(mut agreement) = running {
            agreement.receive(report);
            self.keep(to, agreement);
        }
    }

    /// Creates the groups where that may be done.
    fn found(&mut self, node: NodeId) {
        let founder = self.founders.get_mut(&node).unwrap();
        let Some(agreement) = &founder.running else { return };
        if founder.disk.founded.is_some() || agreement.verdict() != Verdict::Found {
            return;
        }
        let stores = agreement.record().stores.clone();
        founder.disk.founded = Some(stores.clone());
        self.foundings.insert(stores.into_iter().collect());
    }

    fn step(&mut self, wipes: bool) {
        let (node, other) = (self.node(), self.node());
        match self.rng.random_range(0..100) {
            0..8 => self.start(node),
            8..12 => self.founders.get_mut(&node).unwrap().running = None,
            12..14 if wipes => {
                let disk = self.new_disk();
                self.founders.insert(node, Founder { disk, running: None });
                self.disks_lost += 1;
            }
            14..50 => self.send(node, other),
            50..80 => self.deliver(true),
            80..82 => drop(self.under_way.pop()),
            _ => self.found(node),
        }
    }

    fn calm(&mut self) {
        for _ in 0..CALM_STEPS {
            let (node, other) = (self.node(), self.node());
            self.start(node);
            self.send(node, other);
            self.deliver(false);
            self.deliver(false);
            self.found(node);
        }
    }

    /// No two foundings share a disk: the second one found every disk of the first one gone.
    fn check_one_founding(&self) -> Result<(), String> {
        let foundings: Vec<&Vec<(NodeId, StoreId)>> = self.foundings.iter().collect();
        for (at, first) in foundings.iter().enumerate() {
            for second in &foundings[at + 1..] {
                if first.iter().any(|one| second.contains(one)) {
                    return Err(format!("two foundings: {first:?} and {second:?}"));
                }
            }
        }
        let live = self.founders.values().filter_map(|founder| founder.disk.founded.as_ref());
        let live: BTreeSet<Vec<_>> = live.map(|stores| stores.iter().collect()).collect();
        match live.len() > 1 {
            true => Err(format!("replicas of different foundings: {live:?}")),
            false => Ok(()),
        }
    }

    fn check_end(&self) -> Result<(), String> {
        let founded = |founder: &&Founder| founder.disk.founded.is_some();
        match self.founders.values().filter(founded).count() == self.founders.len() {
            false if self.disks_lost == 0 => Err("it never ended".to_owned()),
            _ => Ok(()),
        }
    }
}

fn run(seed: u64, wipes: bool, sabotage: Option<Sabotage>) -> Result<usize, String> {
    let mut world = World::new(seed, sabotage);
    for _ in 0..STEPS {
        world.step(wipes);
        world.check_one_founding()?;
    }
    world.calm();
    world.check_one_founding()?;
    world.check_end()?;
    Ok(world.foundings.len())
}

const SEEDS: u64 = 3_000;

#[test]
fn there_is_never_a_second_founding_whatever_is_lost() {
    let mut founded = 0;
    for seed in 0..SEEDS {
        let foundings = run(seed, true, None);
        founded += foundings.unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
    assert!(founded as u64 > SEEDS / 4, "only {founded} foundings were looked at");
}

#[test]
fn founders_whose_disks_stay_found_in_the_end() {
    for seed in 0..SEEDS {
        run(seed, false, None).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
}

#[test]
fn each_guard_that_is_taken_away_is_noticed() {
    let guards = [
        Sabotage::FoundOnSilence,
        Sabotage::FoundWhenKnown,
        Sabotage::ChangeRecorded,
        Sabotage::ForgetRecord,
    ];
    for guard in guards {
        let fault = (0..SEEDS).find_map(|seed| run(seed, true, Some(guard)).err());
        let fault = fault.unwrap_or_else(|| panic!("nobody misses {guard:?}"));
        assert!(fault.contains("founding"), "{guard:?}: {fault}");
    }
}

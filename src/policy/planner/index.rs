//! The snapshot in dense numbers: nodes, zones, labels and requirements become small integers
//! here, once. Decides nothing about where a group should be.

use std::collections::BTreeMap;

use shardhost_storage::{GroupId, NodeId};

use super::snapshot::{Node, Requirement, Settings, Snapshot};

/// No node, no zone, no label, no move.
pub(super) const NONE: u32 = u32::MAX;

/// Properties of a node that need no look at any group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Open,
    /// Live for a short time only: takes those that have to go somewhere.
    Warming,
    /// Its leaders should go: it has no weight.
    Weightless,
    /// Its leaders should go: it is unfit.
    Unfit,
    /// Its leaders should go: it is to be emptied.
    Draining,
    Dead,
}

impl Standing {
    fn of(node: &Node, now_ms: u64, settings: &Settings) -> Self {
        match node {
            Node { live: false, .. } => Self::Dead,
            Node { draining: true, .. } => Self::Draining,
            Node { fit: false, .. } => Self::Unfit,
            Node { weight: 0, .. } => Self::Weightless,
            _ if now_ms.saturating_sub(node.live_since_ms) < settings.warm_up_ms => Self::Warming,
            _ => Self::Open,
        }
    }

    /// Whether leaders that are here should leave.
    pub(super) fn displaces(self) -> bool {
        matches!(self, Self::Weightless | Self::Unfit | Self::Draining)
    }
}

/// Whether a node has what a group requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    Capable,
    Unknown,
    Incapable,
}

impl Fitness {
    fn of(node: &Node, requirement: &Requirement) -> Self {
        if requirement.capabilities.is_empty() {
            return Self::Capable;
        }
        match &node.capabilities {
            None => Self::Unknown,
            Some(has) if requirement.capabilities.is_subset(has) => Self::Capable,
            Some(_) => Self::Incapable,
        }
    }
}

/// Rows of numbers, one after the other.
#[derive(Debug, Default)]
pub(super) struct Rows {
    ends: Vec<u32>,
    values: Vec<u32>,
}

impl Rows {
    pub(super) fn with_capacity(rows: usize) -> Self {
        Self { ends: Vec::with_capacity(rows), values: Vec::with_capacity(rows * 3) }
    }

    pub(super) fn push(&mut self, row: &[u32]) {
        self.values.extend_from_slice(row);
        self.ends.push(self.values.len() as u32);
    }

    pub(super) fn row(&self, at: usize) -> &[u32] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.values[start as usize..self.ends[at] as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// Nodes by id. Small ids are looked up directly.
struct Lookup {
    direct: Vec<u32>,
    ids: Vec<NodeId>,
}

const DIRECT_IDS: u64 = 1 << 16;

impl Lookup {
    fn new(nodes: &[Node]) -> Self {
        let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
        let last = ids.last().map_or(0, |id| id.get());
        let mut direct = Vec::new();
        if last < DIRECT_IDS {
            direct.resize(last as usize + 1, NONE);
            (0..).zip(&ids).for_each(|(at, id)| direct[id.get() as usize] = at);
        }
        Self { direct, ids }
    }

    fn find(&self, id: NodeId) -> Option<u32> {
        if self.direct.is_empty() {
            return self.ids.binary_search(&id).ok().map(|at| at as u32);
        }
        let at = usize::try_from(id.get()).ok().and_then(|id| self.direct.get(id)).copied();
        at.filter(|at| *at != NONE)
    }
}

/// The snapshot in dense numbers.
pub(super) struct Index<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) standing: Vec<Standing>,
    pub(super) zone_of: Vec<u32>,
    pub(super) zones: u32,
    /// Per group; `NONE` also for a label that no other group has.
    pub(super) label_of: Vec<u32>,
    pub(super) labels: usize,
    /// Per group: its id and the term of its leader. Plans name groups in an order of their own, and
    /// groups are large.
    pub(super) fences: Vec<(GroupId, u64)>,
    /// Per group: its unconfirmed move in the ledger.
    pub(super) flight_of: Vec<u32>,
    requirement_of: Vec<u32>,
    fitness: Vec<Fitness>,
    lookup: Lookup,
}

impl<'a> Index<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let standing = |node| Standing::of(node, snapshot.now_ms, &snapshot.settings);
        let (zone_of, zones) = intern(snapshot.nodes.iter().map(|node| node.zone.as_str()));
        let (label_of, labels) = shared_labels(snapshot);
        let mut fences = Vec::with_capacity(snapshot.groups.len());
        let groups = snapshot.groups.iter().inspect(|group| fences.push((group.id, group.term)));
        let requirements = groups.map(|group| &group.requirement);
        let (requirement_of, requirements) = intern(requirements);
        let fitness = requirements
            .iter()
            .flat_map(|wanted| snapshot.nodes.iter().map(|node| Fitness::of(node, wanted)));
        Self {
            snapshot,
            standing: snapshot.nodes.iter().map(standing).collect(),
            zone_of,
            zones: zones.len() as u32,
            label_of,
            labels,
            fences,
            flight_of: flights(snapshot),
            requirement_of,
            fitness: fitness.collect(),
            lookup: Lookup::new(&snapshot.nodes),
        }
    }

    pub(super) fn nodes(&self) -> usize {
        self.snapshot.nodes.len()
    }

    pub(super) fn groups(&self) -> usize {
        self.snapshot.groups.len()
    }

    pub(super) fn node(&self, id: NodeId) -> Option<u32> {
        self.lookup.find(id)
    }

    /// The node, if it is known and live.
    pub(super) fn live_node(&self, id: NodeId) -> Option<u32> {
        self.node(id).filter(|node| self.standing[*node as usize] != Standing::Dead)
    }

    pub(super) fn id(&self, node: u32) -> NodeId {
        self.snapshot.nodes[node as usize].id
    }

    pub(super) fn weight(&self, node: u32) -> u64 {
        self.snapshot.nodes[node as usize].weight.into()
    }

    pub(super) fn fitness(&self, group: usize, node: u32) -> Fitness {
        self.fitness[self.requirement_of[group] as usize * self.nodes() + node as usize]
    }

    /// Whether moving the group changes nothing but counts.
    pub(super) fn is_free(&self, group: usize) -> bool {
        self.label_of[group] == NONE && self.load(group) == 0
    }

    /// The load that counts: none while load is not balanced.
    pub(super) fn load(&self, group: usize) -> u64 {
        if self.snapshot.settings.load_tier { self.snapshot.groups[group].load.into() } else { 0 }
    }

    /// The order of nodes that are otherwise equal.
    pub(super) fn turn(&self, node: u32) -> u64 {
        let nodes = self.nodes() as u64;
        (u64::from(node) + nodes - self.snapshot.seed % nodes) % nodes
    }
}

/// Gives each different key a number, in the order in which they come.
fn intern<K: Ord + Copy>(keys: impl Iterator<Item = K>) -> (Vec<u32>, Vec<K>) {
    let (mut numbers, mut names) = (BTreeMap::new(), Vec::new());
    let mut last: Option<(K, u32)> = None;
    let number_of = |key: K| {
        if let Some((same, number)) = last.filter(|(last, _)| *last == key) {
            last = Some((same, number));
            return number;
        }
        let number = *numbers.entry(key).or_insert_with(|| {
            names.push(key);
            names.len() as u32 - 1
        });
        last = Some((key, number));
        number
    };
    let found = keys.map(number_of).collect();
    (found, names)
}

/// Numbers labels that at least two groups have.
fn shared_labels(snapshot: &Snapshot) -> (Vec<u32>, usize) {
    if snapshot.groups.iter().all(|group| group.label.is_none()) {
        return (vec![NONE; snapshot.groups.len()], 0);
    }
    let (mut numbers, names) = intern(snapshot.groups.iter().map(|group| group.label.as_deref()));
    let mut uses = vec![0_u32; names.len()];
    numbers.iter().for_each(|number| uses[*number as usize] += 1);
    let mut shared = 0;
    let mut renumber = |(name, uses): (&Option<&str>, &u32)| {
        let counts = name.is_some() && *uses > 1;
        shared += u32::from(counts);
        if counts { shared - 1 } else { NONE }
    };
    let renumbered: Vec<_> = names.iter().zip(&uses).map(&mut renumber).collect();
    numbers.iter_mut().for_each(|number| *number = renumbered[*number as usize]);
    (numbers, shared as usize)
}

fn flights(snapshot: &Snapshot) -> Vec<u32> {
    let mut flights = vec![NONE; snapshot.groups.len()];
    for (number, entry) in (0..).zip(&snapshot.moves) {
        if let Ok(at) = snapshot.groups.binary_search_by_key(&entry.group, |group| group.id)
            && !entry.is_confirmed()
        {
            flights[at] = number;
        }
    }
    flights
}
